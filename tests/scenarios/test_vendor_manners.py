"""The ways of vendors: below they make no difference, and above none is asked for what it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from broker.domain.credential import Credential
from broker.domain.vendors import API_KEY
from broker.edge.app import Listeners
from broker.simulator import SessionClient, TurnResult
from broker.simulator.manners import manner_of
from tests.scenarios.house import House, conversation, counted, held_against, plain, wait_until
from tests.scenarios.test_http_passed_on import vendor_of

Build = Callable[..., Awaitable[House]]

BOTH = ("websocket", "http")


async def houses_of(build: Build, manner: Any, vendor: str, **changes: Any) -> tuple[House, list[Credential]]:
    """Two credentials of a vendor with these manners."""
    house = await build({"A": "org-a", "B": "org-a"}, manners={"A": manner, "B": manner})
    known = {"transports": BOTH, "vendor": vendor, **changes}
    return house, [replace(credential, **known) for credential in house.credentials()]


def azure(credential: Credential) -> Credential:
    url = credential.base_url.replace("/v1", "/openai/v1")
    return replace(credential, base_url=url, auth=API_KEY, aliases={"sim-1": "deployment-7"}, models=frozenset())


@pytest.fixture(params=["socket", "streamed", "whole"])
def below(request: pytest.FixtureRequest) -> str:
    """What the client speaks."""
    return str(request.param)


async def talker(house: House, node: Listeners, below: str) -> Any:
    if below == "socket":
        return await house.connected(node, session_id="agent-7")
    return house.caller(node, session_id="agent-7", stream=below == "streamed")


def assert_good(turn: TurnResult) -> None:
    assert turn.ok and turn.digest_ok, (turn.error, turn.problems)


async def goes_on_and_moves(house: House, pool: list[Credential], below: str, *, store: bool) -> None:
    """A session of several turns, one of them with a call, that loses its credential in the middle."""
    node = await house.node(credentials=pool)
    talks = await talker(house, node, below)
    for number in range(3):
        assert_good(await talks.turn(f"turn {number}", store=store))
    if house.sim.sockets["A"]:
        await house.sim.end_sockets("A")
        await wait_until(lambda: node.node.dialer.open_links == 0)
    assert_good(await talks.turn("three", store=store))
    house.sim.faults.set("A", "usage_limit_reached")
    moved = await talks.turn("four", store=store)
    assert_good(moved)
    assert moved.events.count("response.created") == 1
    assert house.sim.turns[-1].credential == "B"
    assert list(house.sim.turns[-1].context) == conversation(moved)
    for number in range(2):
        assert_good(await talks.turn(f"turn {number}", store=store))
    assert set(held_against(node)) == {"group:A"}, "nobody is blamed for its manners"


STORED = pytest.mark.parametrize("store", [True, False], ids=["stored", "unstored"])


@STORED
@pytest.mark.parametrize("manner, vendor", [("azure", "azure"), ("xai", "xai"), ("vercel", "vercel")])
@pytest.mark.parametrize("transports", [BOTH, ("websocket",), ("http",)], ids=["both", "sockets", "requests"])
async def test_serves_a_session_whatever_the_manners_of_its_vendor(
    build: Build, below: str, manner: str, vendor: str, transports: tuple[str, ...], store: bool
) -> None:
    house, pool = await houses_of(build, manner, vendor, transports=transports)
    pool = [azure(credential) for credential in pool] if vendor == "azure" else pool
    await goes_on_and_moves(house, pool, below, store=store)


@STORED
async def test_serves_a_session_by_a_vendor_that_has_only_http_and_remembers_nothing(
    build: Build, below: str, store: bool
) -> None:
    house, pool = await houses_of(build, "http_only", "custom", transports=("http",))
    await goes_on_and_moves(house, pool, below, store=store)


@STORED
async def test_finds_out_that_a_vendor_has_only_http(build: Build, below: str, store: bool) -> None:
    house, pool = await houses_of(build, "http_only", "custom")
    await goes_on_and_moves(house, pool, below, store=store)


@STORED
async def test_serves_a_session_by_a_strict_vendor(build: Build, below: str, store: bool) -> None:
    house, pool = await houses_of(build, "strict", "vercel", transports=("websocket",))
    await goes_on_and_moves(house, pool, below, store=store)


# --- azure ---


async def lanes_of(house: House, pool: list[Credential]) -> tuple[Listeners, SessionClient]:
    node = await house.node(credentials=pool)
    return node, await house.connected(node, session_id="agent-7")


@pytest.mark.parametrize("manner", ["azure", "xai", "vercel"])
async def test_gives_each_lane_a_socket_of_its_own_where_the_vendor_has_no_lanes(build: Build, manner: str) -> None:
    house, pool = await houses_of(build, manner, manner, transports=("websocket",))
    _, client = await lanes_of(house, [azure(each) for each in pool] if manner == "azure" else pool)
    first = [await client.turn("before", lane=lane) for lane in ("a", "b")]
    slow = asyncio.create_task(client.turn("slow [[deltas:40]] [[slow:20]]", lane="a"))
    await wait_until(lambda: house.sim.turns[-1].outcome == "active")
    quick = [await client.turn(f"quick {number}", lane="b") for number in range(3)]
    assert not slow.done(), "one lane does not wait for the other"
    assert house.sim.sockets["A"] == 2
    for turn in (*first, *quick, await slow):
        assert_good(turn)
    assert not [record for record in house.sim.turns if "stream_id" in record.frame_keys]
    assert client.notices == []
    fork = await client.turn("fork", lane="c", parent=quick[-1])
    assert_good(fork)
    assert_good(await client.turn("on", lane="a"))
    assert house.sim.sockets["A"] <= 3


async def test_knows_that_a_vendor_without_lanes_remembers_one_response_of_a_socket(build: Build) -> None:
    house, pool = await houses_of(build, "azure", "azure", transports=("websocket",))
    node, client = await lanes_of(house, [azure(each) for each in pool])
    for number in range(3):
        for lane in ("a", "b"):
            assert_good(await client.turn(f"turn {number}", lane=lane))
    assert len(house.sim.turns) == 6, "nobody is asked to continue what it has forgotten"
    assert counted(node, "broker_upstream_failures_total") == 0


async def test_puts_the_name_of_a_lane_into_every_event_and_error(build: Build) -> None:
    house, pool = await houses_of(build, "azure", "azure", transports=("websocket",))
    node = await house.node(credentials=[azure(each) for each in pool])
    async with plain(node) as socket:
        for lane in ("a", "b", None):
            await socket.create(f"hello {lane} [[slow:5]]", lane=lane)
        events = await socket.until(3)
        assert {event.get("stream_id") for event in events} == {"a", "b", None}
        for lane in ("a", "b", None):
            own = [event["type"] for event in events if event.get("stream_id") == lane]
            assert own[0] == "response.created" and own[-1] == "response.completed", own
        house.sim.faults.set("*", "context_length_exceeded")
        await socket.create("too long", lane="b")
        (refused,) = await socket.until(1)
        assert (refused["type"], refused["stream_id"], refused["status"]) == ("error", "b", 400)


async def test_calls_a_deployment_by_its_own_name(build: Build, below: str) -> None:
    house, pool = await houses_of(build, "azure", "azure")
    node = await house.node(credentials=[azure(each) for each in pool])
    assert_good(await (await talker(house, node, below)).turn("hello"))
    (record,) = house.sim.turns
    assert record.model == "deployment-7"
    assert house.sim.handshakes[-1].path == "/openai/v1/responses"


async def test_shows_an_api_key_in_the_header_that_its_vendor_reads(build: Build) -> None:
    house = await build()
    body = b'{"object":"list","data":[]}'
    async with vendor_of(lambda request, raw: web.Response(body=body, content_type="application/json")) as vendor:
        credential = replace(vendor.credential(), vendor="azure", auth=API_KEY)
        node = await house.node(credentials=[credential])
        async with house.caller(node).ask("embeddings", {"model": "m", "input": "hello"}) as answer:
            assert answer.status == 200
    ((_, _, headers),) = vendor.seen
    assert headers["api-key"] == "sk-M" and "authorization" not in headers


# --- xai ---


async def test_ends_a_warm_up_for_its_client_where_the_vendor_only_begins_it(build: Build) -> None:
    house, pool = await houses_of(build, "xai", "xai", transports=("websocket",))
    node, client = await lanes_of(house, pool)
    for lane in (None, "a"):
        warm = await client.turn("the context", extra={"generate": False}, lane=lane)
        assert warm.ok and warm.events == ["response.created", "response.completed"], (warm.problems, warm.events)
        assert_good(await client.turn("the question", lane=lane))
    assert counted(node, "broker_turns_total", outcome="completed") == 4


@STORED
async def test_goes_on_with_the_newest_turn_where_the_vendor_uses_one_id_for_all(
    build: Build, below: str, store: bool
) -> None:
    house, pool = await houses_of(build, "xai", "xai", transports=("websocket",))
    one, two = await house.node(credentials=pool), await house.node(credentials=pool)
    talks = await talker(house, one, below)
    for number in range(4):
        turn = await talks.turn(f"turn {number}", store=store)
        assert_good(turn)
        assert list(house.sim.turns[-1].context) == conversation(turn)
    if below != "socket":
        talks.move(two)
        assert_good(await talks.turn("elsewhere", store=store))


async def test_drops_fields_that_only_requests_have_where_the_vendor_is_strict(build: Build) -> None:
    house, pool = await houses_of(build, "strict", "xai", transports=("websocket",))
    node = await house.node(credentials=pool)
    async with plain(node) as socket:
        await socket.create("hello", stream=True, stream_options={"include_obfuscation": False}, background=False)
        assert (await socket.until(1))[-1]["type"] == "response.completed"
    assert not {"stream", "stream_options", "background"} & set(house.sim.turns[-1].frame_keys)


# --- vercel ---


async def test_asks_for_a_second_model_on_a_socket_of_its_own(build: Build) -> None:
    house, pool = await houses_of(build, "vercel", "vercel", transports=("websocket",))
    node, client = await lanes_of(house, pool)
    first = await client.turn("one", model="sim-1")
    second = await client.turn("two", model="sim-2")
    third = await client.turn("three", model="sim-1")
    for turn in (first, second, third):
        assert_good(turn)
    assert held_against(node) == {}, "a second model is nobody's fault"


# --- any of them, in one pool ---


async def test_moves_a_session_through_vendors_of_every_kind(build: Build, below: str) -> None:
    kinds = {"A": "xai", "B": "azure", "C": "http_only", "D": "openai", "E": "vercel"}
    house = await build(dict.fromkeys(kinds, "org-a"), manners={**kinds, "C": manner_of("http_only")})
    vendors = {"A": "xai", "B": "azure", "C": "custom", "D": "openai", "E": "vercel"}
    pool = [replace(each, vendor=vendors[each.name], transports=BOTH) for each in house.credentials()]
    pool = [azure(each) if each.name == "B" else each for each in pool]
    node = await house.node(credentials=pool)
    talks = await talker(house, node, below)
    served = []
    for name in kinds:
        for number in range(2):
            turn = await talks.turn(f"{name} {number}", store=False)
            assert_good(turn)
            served.append(house.sim.turns[-1].credential)
        house.sim.faults.set(name, "usage_limit_reached")
    assert served == [name for name in kinds for _ in range(2)]
