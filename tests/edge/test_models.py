"""The list of models: merged over the pool, asked for rarely, and there although a vendor is not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from aiohttp import web

from broker.domain.credential import Credential, Secret
from broker.edge.models import AGAIN, FRESH, LARGEST, WITHIN, Fetch, Models, asked_by
from broker.simulator import Fault, SimCredential, Simulator
from broker.upstream.dialer import Dialer, DialSettings
from broker.upstream.identity import Identity
from tests.scenarios.house import wait_until
from tests.serving import serving


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    known = [SimCredential("A", "sk-a", models=["m-1", "m-2"]), SimCredential("B", "sk-b", models=["m-2", "m-3"])]
    simulator = Simulator(known)
    await simulator.start()
    yield simulator
    await simulator.stop()


@pytest.fixture
async def fetch() -> AsyncIterator[Fetch]:
    dialer = Dialer(DialSettings(connect=1.0), Identity(), clock=time.time)
    await dialer.start()
    yield asked_by(dialer)
    await dialer.stop()


class Pool:
    """A list of models over a pool that a test changes; it counts what vendors were asked."""

    def __init__(self, fetch: Callable[[Credential], Awaitable[list[dict[str, Any]]]], *members: Credential) -> None:
        self.members: Sequence[Credential] = members
        self.out: set[str] = set()
        self.now = 1000.0
        self.asked: list[str] = []
        self._fetch = fetch
        self.models = Models(lambda: self.members, self._ask, lambda c: c.name not in self.out, clock=lambda: self.now)

    async def _ask(self, credential: Credential) -> list[dict[str, Any]]:
        self.asked.append(credential.name)
        return await self._fetch(credential)

    async def listed(self) -> list[dict[str, Any]]:
        answer = orjson.loads(await self.models.listing())
        assert answer["object"] == "list" and set(answer) == {"object", "data"}
        return list(answer["data"])

    async def names(self) -> list[str]:
        return [model["id"] for model in await self.listed()]


def credential(name: str, base_url: str = "http://127.0.0.1:1/v1", **more: Any) -> Credential:
    return Credential(name, base_url, Secret(f"sk-{name.lower()}"), **more)


Vendor = Callable[[Callable[[web.Request], web.StreamResponse]], Awaitable[str]]


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    """Start a vendor that answers everything with what `answer` returns; the answer is its base_url."""
    async with AsyncExitStack() as running:

        async def start(answer: Callable[[web.Request], web.StreamResponse]) -> str:
            async def handle(request: web.Request) -> web.StreamResponse:
                return answer(request)

            route = web.route("*", "/{path:.*}", handle)
            return await running.enter_async_context(serving(route, cancels=True)) + "/v1"

        yield start


# --- merged ---


async def test_merges_what_vendors_list_and_what_is_configured(sim: Simulator, fetch: Fetch) -> None:
    named = credential("C", models=frozenset({"z", "m-1"}), aliases=MappingProxyType({"mine": "z"}), vendor="azure")
    pool = Pool(fetch, named, credential("A", sim.base_url), credential("B", sim.base_url))
    vendors = {"object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
    ours = {"object": "model", "created": 0, "owned_by": "azure"}
    assert await pool.listed() == [
        {"id": "m-1", **vendors},
        {"id": "m-2", **vendors},
        {"id": "m-3", **vendors},
        {"id": "mine", **ours},
        {"id": "z", **ours},
    ]
    assert sorted(pool.asked) == ["A", "B"]


async def test_knows_the_names_that_clients_use_where_the_vendor_was_asked(sim: Simulator, fetch: Fetch) -> None:
    pool = Pool(fetch, credential("A", sim.base_url, aliases=MappingProxyType({"gpt": "m-1"})))
    assert await pool.names() == ["gpt", "m-1", "m-2"]


async def test_gives_one_model_by_its_name(sim: Simulator, fetch: Fetch) -> None:
    pool = Pool(fetch, credential("A", sim.base_url))
    found = await pool.models.one("m-2")
    assert found is not None and orjson.loads(found)["owned_by"] == "simulator"
    assert await pool.models.one("m-3") is None


async def test_who_stands_first_in_the_pool_describes_what_several_have() -> None:
    async def told(asked: Credential) -> list[dict[str, Any]]:
        return [{"id": "m", "owned_by": asked.name, "more": {"n": [1.5, None]}}]

    pool = Pool(told, credential("B"), credential("A"), credential("C", models=frozenset({"m"})))
    assert await pool.listed() == [
        {"id": "m", "object": "model", "created": 0, "owned_by": "B", "more": {"n": [1.5, None]}}
    ]


async def test_is_empty_where_there_is_nobody() -> None:
    async def never(asked: Credential) -> list[dict[str, Any]]:
        raise AssertionError

    assert await Pool(never).listed() == []


async def test_leaves_out_who_cannot_serve_unless_nobody_can(sim: Simulator, fetch: Fetch) -> None:
    pool = Pool(fetch, credential("A", sim.base_url), credential("B", sim.base_url))
    pool.out = {"B"}
    assert await pool.names() == ["m-1", "m-2"] and pool.asked == ["A"]
    pool.out = {"A", "B"}
    assert await pool.names() == ["m-1", "m-2", "m-3"]


@pytest.mark.parametrize("model", ["m", None, {}, {"id": 7}, {"id": ""}, {"id": "x" * 257}, ["id"]])
async def test_what_nobody_could_ask_for_is_left_out(model: Any) -> None:
    async def told(asked: Credential) -> list[dict[str, Any]]:
        return [model, {"id": "good"}]

    assert await Pool(told, credential("A")).names() == ["good"]


# --- asked for rarely ---


async def test_asks_again_only_when_the_answer_is_old(sim: Simulator, fetch: Fetch) -> None:
    pool = Pool(fetch, credential("A", sim.base_url))
    await pool.names()
    pool.now += FRESH - 1
    await pool.names()
    assert pool.asked == ["A"]
    pool.now += 1
    await pool.names()
    assert pool.asked == ["A", "A"]


async def test_asks_anew_with_another_secret_and_forgets_who_is_gone(sim: Simulator, fetch: Fetch) -> None:
    pool = Pool(fetch, credential("A", sim.base_url))
    assert await pool.names() == ["m-1", "m-2"]
    first, pool.members = pool.members, [Credential("A", sim.base_url, Secret("sk-b"))]
    assert await pool.names() == ["m-2", "m-3"]
    pool.members = first
    await pool.names()
    assert pool.asked == ["A", "A", "A"]


async def test_many_who_wait_for_one_answer_ask_once_and_one_who_leaves_disturbs_nobody() -> None:
    told: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()

    async def slowly(asked: Credential) -> list[dict[str, Any]]:
        return await told

    pool = Pool(slowly, credential("A"))
    waiting = [asyncio.create_task(pool.names()) for _ in range(20)]
    await wait_until(lambda: pool.asked)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    told.set_result([{"id": "m"}])
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting[1:]) == [["m"]] * 19
    assert pool.asked == ["A"]


# --- there although a vendor is not ---


async def test_a_failure_leaves_the_last_answer_and_is_tried_again_soon(sim: Simulator, fetch: Fetch) -> None:
    pool = Pool(fetch, credential("A", sim.base_url))
    await pool.names()
    sim.faults.add("A", Fault(at="handshake", status=500, times=1))
    pool.now += FRESH
    assert await pool.names() == ["m-1", "m-2"]
    pool.now += AGAIN - 1
    assert await pool.names() == ["m-1", "m-2"] and pool.asked == ["A"] * 2
    pool.now += 1
    assert await pool.names() == ["m-1", "m-2"] and pool.asked == ["A"] * 3
    pool.now += FRESH - 1
    assert await pool.names() == ["m-1", "m-2"] and pool.asked == ["A"] * 3


async def test_one_who_fails_hides_nobody_else_and_says_nothing_secret(
    sim: Simulator, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(
        fetch, Credential("X", sim.base_url, Secret("sk-wrong")), credential("Y"), credential("B", sim.base_url)
    )
    with caplog.at_level(logging.DEBUG):
        assert await pool.names() == ["m-2", "m-3"]
    told = {record.__dict__["credential"]: record.__dict__["reason"] for record in caplog.records}
    assert told == {"X": "status 401", "Y": "ClientConnectorError"}
    assert "sk-" not in caplog.text


async def test_waits_for_nobody_longer_than_clients_do(sim: Simulator, fetch: Fetch) -> None:
    pool = Pool(fetch, credential("A", sim.base_url), credential("B", sim.base_url))
    sim.faults.add("A", Fault(at="handshake", do="silence"))
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(WITHIN + 5):
        assert await pool.names() == ["m-2", "m-3"]
    assert WITHIN - 0.5 < asyncio.get_running_loop().time() - began < 5


async def test_gives_up_what_is_asked_when_it_is_closed() -> None:
    given_up = asyncio.Event()
    answer: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()

    async def never(asked: Credential) -> list[dict[str, Any]]:
        try:
            return await answer
        finally:
            given_up.set()

    pool = Pool(never, credential("A"))
    waiting = asyncio.create_task(pool.names())
    await wait_until(lambda: pool.asked)
    await pool.models.close()
    async with asyncio.timeout(2):
        assert await waiting == []
    assert given_up.is_set()


# --- asked over HTTP ---


async def test_asks_with_the_headers_of_the_credential_once_each(vendor: Vendor, fetch: Fetch) -> None:
    seen: list[web.Request] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({"data": [{"id": "m"}]}, headers={"Set-Cookie": "a=b"})

    more = MappingProxyType({"OpenAI-Project": "p", "authorization": "Bearer another"})
    # by its name: no jar keeps cookies of an address
    base_url = (await vendor(answer)).replace("127.0.0.1", "localhost")
    asked = credential("A", base_url, headers=more)
    for _ in range(2):
        assert await fetch(asked) == [{"id": "m"}]
    for request in seen:
        assert (request.method, request.path) == ("GET", "/v1/models")
        assert request.headers.getall("Authorization") == ["Bearer sk-a"]
        assert request.headers["OpenAI-Project"] == "p" and "Cookie" not in request.headers


async def test_takes_a_bare_list_too(vendor: Vendor, fetch: Fetch) -> None:
    base_url = await vendor(lambda request: web.json_response([{"id": "m"}]))
    assert await Pool(fetch, credential("A", base_url)).names() == ["m"]


_DEEP = b'{"data":[{"id":"m","deep":' + b"[" * 500 + b"]" * 500 + b"}]}"
BAD = {
    "too large": lambda: web.Response(body=b"[" + b" " * LARGEST + b"]"),
    "not JSON": lambda: web.Response(body=b"<html>"),
    "not a list": lambda: web.json_response({"data": {"id": "m"}}),
    "status 302": lambda: web.Response(status=302, headers={"Location": "/v1/elsewhere"}),
    "status 204": lambda: web.Response(status=204),
    "status 404": lambda: web.json_response({"data": [{"id": "m"}]}, status=404),
    "TypeError": lambda: web.Response(body=_DEEP),
}


@pytest.mark.parametrize("reason", BAD)
async def test_what_is_no_list_of_models_is_a_failure(
    reason: str, vendor: Vendor, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return BAD[reason]()

    pool = Pool(fetch, credential("A", await vendor(answer)), credential("B", models=frozenset({"b"})))
    assert await pool.names() == ["b"]
    assert [record.__dict__["reason"] for record in caplog.records if record.name == "broker.edge.models"] == [reason]
    assert asked == ["/v1/models"]
