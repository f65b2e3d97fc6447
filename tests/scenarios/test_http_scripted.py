"""Vendors that do what no simulated one would: late, half, odd; and what is made of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import web

from broker.edge.wiring import Bounds
from broker.simulator import Fault
from tests.scenarios.house import KEY, PRIVATE_KEY, House, by, counted, held_against, plain, wait_until
from tests.scenarios.test_http_leaving import raw
from tests.scenarios.test_http_passed_on import vendor_of

Build = Any
HUGE = "x" * 20_000_000
STRICT = Bounds(hold=0.2, first_event=5.0, silence=5.0, leave=1.0, send_timeout=0.8)


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def response(**fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": "completed", "output": [], **fields}


CREATED = event("response.created", sequence_number=0, response=response(status="in_progress"))
DELTA = event("response.output_text.delta", sequence_number=1, delta="x")
ENDED = event("response.completed", sequence_number=2, response=response())


async def streamed(request: web.Request, *pieces: bytes | float) -> web.StreamResponse:
    """A stream of these pieces, with pauses (seconds) between them."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for piece in pieces:
        if isinstance(piece, bytes):
            await answer.write(piece)
        else:
            await asyncio.sleep(piece)
    return answer


# --- clients that take nothing ---

ENDLESS = event("response.output_text.delta", sequence_number=3, delta="y" * 500_000)
TAKEN_BY_NOBODY: dict[str, tuple[bool, tuple[bytes | float, ...]]] = {
    "the end of a stream": (
        True,
        (CREATED + DELTA, 0.1, event("response.completed", sequence_number=2, response=response(pad=HUGE))),
    ),
    "a whole answer": (
        False,
        (CREATED + DELTA, event("response.completed", sequence_number=2, response=response(pad=HUGE))),
    ),
    "the beginning of a stream": (
        True,
        (CREATED, event("response.output_text.delta", sequence_number=1, delta=HUGE), *[ENDLESS] * 40, ENDED),
    ),
}


@pytest.mark.parametrize(("stream", "pieces"), TAKEN_BY_NOBODY.values(), ids=list(TAKEN_BY_NOBODY))
async def test_cuts_off_a_client_that_takes_nothing(
    house: House, stream: bool, pieces: tuple[bytes | float, ...]
) -> None:
    async with vendor_of(lambda request, body: streamed(request, *pieces)) as vendor:
        node = await house.node(credentials=[vendor.credential()], bounds=STRICT)
        body = orjson.dumps({"model": "m", "input": "x", "stream": stream, "store": False})
        head = (
            f"POST /v1/responses HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"
        )
        async with raw(node, buffer=4096) as client:
            client.writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            await wait_until(lambda: len(node.node.requests) == 1)
            await wait_until(lambda: not node.node.requests, within=8.0)
            assert counted(node, "broker_socket_closes_total", code="slow") == 1


async def test_counts_whoever_still_sends_its_request(house: House) -> None:
    node = await house.node(bounds=replace(STRICT, max_sockets=2))
    head = f"POST /v1/responses HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n\r\n{{"
    async with raw(node) as first, raw(node) as second:
        for client in (first, second):
            client.writer.write(head.encode())
        await wait_until(lambda: node.node.arriving.total() == 2)
        async with house.caller(node).ask("responses", {"model": "sim-1", "input": "x"}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "node_busy")
    await wait_until(lambda: node.node.arriving.total() == 0)


# --- what may be sent again, and what not ---


async def test_moves_a_whole_answer_that_broke_off_unseen(house: House) -> None:
    async def breaks_off(request: web.Request, body: bytes) -> web.StreamResponse:
        answer = await streamed(request, CREATED + DELTA, 0.1)
        assert request.transport is not None
        request.transport.abort()
        return answer

    async with vendor_of(breaks_off) as vendor:
        first = replace(vendor.credential(), priority=-1)
        node = await house.node(credentials=[first, *by(house.credentials(), "http")])
        answer = await house.caller(node).turn("one", stream=False)
    assert answer.ok and len(vendor.seen) == 1 and len(house.sim.turns) == 1
    assert counted(node, "broker_ambiguous_replays_total") == 1, "it may be billed twice, and is counted"


async def test_takes_a_connection_that_is_cut_late_for_one_that_was_read(house: House) -> None:
    async def late(request: web.Request, body: bytes) -> web.StreamResponse:
        if b"first" in body:
            return web.json_response({"ok": 1})
        await asyncio.sleep(0.7)
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    async with vendor_of(late) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        caller = house.caller(node)
        async with caller.ask("embeddings", {"model": "m", "input": "first"}) as answer:
            assert answer.status == 200
        async with caller.ask("embeddings", {"model": "m", "input": "second"}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "upstream_unavailable")
    assert len(vendor.seen) <= 3 and counted(node, "broker_ambiguous_replays_total") == len(vendor.seen) - 2


async def test_tells_sdks_not_to_repeat_what_may_stand_in_a_conversation(house: House) -> None:
    async def lost(request: web.Request, body: bytes) -> web.StreamResponse:
        if request.path.endswith("/conversations"):
            return web.json_response({"id": "conv_1", "object": "conversation"})
        await asyncio.sleep(0.6)
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    async with vendor_of(lost) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        caller = house.caller(node)
        async with caller.ask("conversations", {}) as answer:
            assert answer.status == 200
        asks: list[tuple[str, dict[str, str]]] = [
            ("responses", {"model": "m", "input": "x", "conversation": "conv_1"}),
            ("conversations/conv_1/items", {}),
        ]
        for path, body in asks:
            async with caller.ask(path, body) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (502, "outcome_unknown")
                assert answer.headers["x-should-retry"] == "false" and "Retry-After" not in answer.headers
    assert len(vendor.seen) == 3, "each was sent once"


# --- signs of life, and of nothing ---


async def test_believes_a_vendor_that_says_by_comments_that_it_is_at_work(house: House) -> None:
    working = [piece for _ in range(8) for piece in (b": PROCESSING\n\n", 0.2)]
    async with vendor_of(lambda request, body: streamed(request, *working, CREATED + DELTA + ENDED)) as vendor:
        bounds = Bounds(hold=0.2, first_event=0.8, silence=0.8, leave=1.0)
        node = await house.node(credentials=[vendor.credential()], bounds=bounds)
        assert (await house.caller(node).turn("one", model="m")).status == 200
    assert len(vendor.seen) == 1


async def test_a_warm_up_that_is_answered_here_proves_nothing(build: Build) -> None:
    house = await build({"A": "org-a"})
    node = await house.node(credentials=by(house.credentials(), "http"))
    house.sim.faults.set("A", "unauthorized_generic")
    client = await house.connected(node)
    assert not (await client.turn("one")).ok
    doubted = held_against(node)
    assert list(doubted.values()) == ["suspect"], "it is doubted, and takes turns all the same"
    asked = len(house.sim.turns)
    assert (await client.turn("ahead", parent=None, extra={"generate": False})).ok
    assert len(house.sim.turns) == asked and held_against(node) == doubted, "nobody was asked"


async def test_an_error_that_is_null_is_none(house: House) -> None:
    told = b'{"error":null,"object":"list","data":[]}'
    async with vendor_of(lambda request, body: web.Response(body=told, content_type="application/json")) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with house.caller(node).ask("embeddings", {"model": "m", "input": "x"}) as answer:
            assert (answer.status, await answer.read()) == (200, told)


@pytest.mark.parametrize("value", ["\u00b2", "9" * 400, "soon", "-1", "Wed, 21 Oct 2099 07:28:00 GMT"])
async def test_no_header_of_a_vendor_breaks_an_answer(house: House, value: str) -> None:
    refused = {"error": {"type": "invalid_request_error", "code": "invalid_value", "message": "No.", "param": None}}

    def refuse(request: web.Request, body: bytes) -> web.Response:
        return web.json_response(refused, status=400, headers={"Retry-After": value, "x-ratelimit-limit-tokens": "1"})

    async with vendor_of(refuse) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with house.caller(node).ask("responses", {"model": "m", "input": "x"}) as answer:
            assert answer.status == 400 and (await answer.json())["error"]["code"] == "invalid_value"
            assert not {name for name in answer.headers if name.lower().startswith("x-ratelimit")}


# --- sessions and owners ---


async def test_what_is_passed_on_leaves_a_session_where_it_is(build: Build) -> None:
    house = await build({"A": "org-a", "B": "org-a"})
    pool = [replace(house.credentials()[0], transports=("websocket",)), *by(house.credentials()[1:], "http")]
    node = await house.node(credentials=pool)
    client = await house.connected(node, session_id="agent-7", key=PRIVATE_KEY)
    assert (await client.turn("one")).ok
    caller = house.caller(node, session_id="agent-7", key=PRIVATE_KEY)
    async with caller.ask("embeddings", {"model": "sim-1", "input": "x"}) as answer:
        assert answer.status == 200
    assert (await client.turn("two")).ok, "its context is at A, and nowhere else"
    assert [turn.credential for turn in house.sim.turns] == ["A", "B", "A"]


async def test_deleting_an_item_leaves_its_conversation_known(house: House) -> None:
    async def keeps(request: web.Request, body: bytes) -> web.StreamResponse:
        return web.json_response({"id": "conv_1", "object": "conversation"})

    async with vendor_of(keeps) as vendor:
        credential = vendor.credential()
        node = await house.node(credentials=[replace(credential, base_url=credential.base_url + "?api-version=v1")])
        caller = house.caller(node)
        async with caller.ask("conversations", {}) as answer:
            assert answer.status == 200
        async with caller.ask("conversations/conv_1/items/msg_1", method="DELETE") as answer:
            assert answer.status == 200
        asked = "conversations/conv_1?api-version=evil&include[]=a&limit=5"
        async with caller.ask(asked, method="GET") as answer:
            assert answer.status == 200
    query = vendor.seen[-1][0].rsplit("?", 1)[-1] if isinstance(vendor.seen[-1][0], str) else ""
    assert query.startswith("api-version=v1&") and query.endswith("limit=5") and "evil" not in query


async def test_lanes_of_a_vendor_without_lanes_keep_what_each_has_said(build: Build) -> None:
    house = await build({"A": "org-a"}, manners={"A": "azure"})
    node = await house.node(credentials=[replace(credential, vendor="azure") for credential in house.credentials()])
    client = await house.connected(node, key=PRIVATE_KEY)
    first = await client.turn("one", lane="a")
    assert first.ok and (await client.turn("two", lane="b")).ok
    assert (await client.turn("three", lane="a", parent=first)).ok, "nothing is recorded, so only its socket knows it"
    assert house.sim.sockets["A"] == 2


async def test_asks_nobody_twice_when_its_answer_breaks_in_silence(house: House) -> None:
    house.sim.faults.set("A", Fault(at="after_deltas", after=1, do="silence"))
    bounds = Bounds(hold=0.2, first_event=1.0, silence=0.6, leave=1.0)
    node = await house.node(credentials=by(house.credentials(), "http"), bounds=bounds)
    answer = await house.caller(node).turn("one", stream=False)
    assert answer.ok and [turn.credential for turn in house.sim.turns] == ["A", "B"]


async def test_shows_codex_no_limits_of_one_credential(house: House) -> None:
    told = {"x-codex-primary-used-percent": "97", "x-codex-turn-state": "t", "x-request-id": "req_1", "set-cookie": "a"}

    async def tells(request: web.Request, body: bytes) -> web.StreamResponse:
        return await streamed(request, CREATED + event("response.metadata", headers=told) + DELTA + ENDED)

    async with vendor_of(tells) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node, originator="codex_exec") as client:
            await client.create("one", model="m")
            events = await client.until(1)
    shown = [each["headers"] for each in events if each["type"] == "response.metadata"]
    assert shown == [{"x-request-id": "req_1"}]
