"""Several lanes on one socket, several sockets of one session, and input that steers a running response."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from broker.edge.wiring import Bounds
from broker.simulator import SessionClient
from tests.scenarios.house import House, counted, plain, wait_until

Event = dict[str, Any]


# --- several sockets of one session ---


@pytest.mark.parametrize("nodes", [1, 2])
async def test_serves_two_sockets_of_one_session_at_once(house: House, nodes: int) -> None:
    listeners = [await house.node() for _ in range(nodes)]
    one = await house.connected(listeners[0], session_id="agent-7")
    two = await house.connected(listeners[-1], session_id="agent-7")

    async def conversation(client: SessionClient) -> None:
        for number in range(5):
            turn = await client.turn(f"turn {number} [[deltas:6]] [[slow:2]]")
            assert turn.ok, turn.problems

    await asyncio.gather(conversation(one), conversation(two))

    session = await house.session(one)
    assert session.turns == 10 and session.pin is not None and session.pin.epoch == 1
    assert {turn.credential for turn in house.sim.turns} == {session.pin.credential}
    crossed = await two.turn("what the other one said", parent=one.heads[None])
    assert crossed.ok, crossed.problems


@pytest.mark.parametrize("nodes", [1, 2])
async def test_serves_both_sockets_of_one_session_when_its_credential_fails_under_them(
    house: House, nodes: int
) -> None:
    listeners = [await house.node() for _ in range(nodes)]
    one = await house.connected(listeners[0], session_id="agent-7")
    two = await house.connected(listeners[-1], session_id="agent-7")
    for client in (one, two):
        assert (await client.turn("one")).ok
    house.sim.faults.set("A", "usage_limit_reached")

    turns = await asyncio.gather(*(client.turn(f"two {at}") for at, client in enumerate((one, two))))
    more = await asyncio.gather(*(client.turn("three") for client in (one, two)))

    assert all(turn.ok for turn in (*turns, *more)), [turn.problems for turn in (*turns, *more)]
    session = await house.session(one)
    assert session.pin is not None and session.pin.epoch == 2 and session.turns == 6
    assert {turn.credential for turn in house.sim.turns[-2:]} == {session.pin.credential}


# --- lanes ---


async def test_leaves_the_other_lanes_alone_when_one_of_four_moves_to_another_credential(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    lanes = ["a", "b", "c", "d"]
    for lane in lanes:
        assert (await client.turn(f"first of {lane}", lane=lane)).ok
    house.sim.faults.set("A", "usage_limit_reached", when="second of c")

    seconds = await asyncio.gather(
        *(client.turn(f"second of {lane} [[deltas:12]] [[slow:15]]", lane=lane) for lane in lanes)
    )

    assert all(turn.ok for turn in seconds), [turn.problems for turn in seconds]
    served = {turn.lane: turn for turn in house.sim.turns if turn.outcome == "completed"}
    assert {lane: served[lane].credential == "A" for lane in lanes} == {"a": True, "b": True, "c": False, "d": True}
    assert Counter(turn.lane for turn in house.sim.turns) == {"a": 2, "b": 2, "c": 3, "d": 2}, "nothing is sent twice"
    forks = [await client.turn(f"fork of {lane}", lane=f"fork-{lane}", parent=client.heads[lane]) for lane in lanes]
    thirds = await asyncio.gather(*(client.turn(f"third of {lane}", lane=lane) for lane in lanes))
    assert all(turn.ok for turn in (*forks, *thirds)), [turn.problems for turn in (*forks, *thirds)]
    assert {turn.credential for turn in house.sim.turns[-8:]} == {served["c"].credential}
    assert client.notices == []


async def test_forks_across_lanes_before_and_after_the_session_has_moved(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    root = await client.turn("root", lane="source")
    left = await client.turn("left", lane="left", parent=root)
    house.sim.faults.set("A", "usage_limit_reached")
    right = await client.turn("right", lane="right", parent=root)
    onward = await client.turn("onward", lane="left")
    plain_lane = await client.turn("default lane", parent=left)

    for turn in (root, left, right, onward, plain_lane):
        assert turn.ok, turn.problems
    assert [item["role"] for item in house.sim.turns[-1].context if "role" in item].count("user") == 3


async def test_serves_the_turns_of_one_lane_in_their_order_and_one_at_a_time(house: House) -> None:
    node = await house.node()
    async with plain(node) as socket:
        for number in range(5):
            await socket.create(f"number {number} [[deltas:3]] [[slow:5]]", "lane")
        events = await socket.until(5)

    assert {event["stream_id"] for event in events} == {"lane"}
    order = [event["type"] for event in events if event["type"] in ("response.created", "response.completed")]
    assert order == ["response.created", "response.completed"] * 5
    said = [turn.input[0]["content"][0]["text"][:8] for turn in house.sim.turns]
    assert said == [f"number {number}" for number in range(5)]
    assert all(a.ended <= b.started for a, b in zip(house.sim.turns, house.sim.turns[1:], strict=False) if a.ended)


async def test_goes_on_with_a_lane_when_a_turn_of_it_has_failed(house: House) -> None:
    node = await house.node()
    house.sim.faults.set("*", "content_policy", when="bad words")
    async with plain(node) as socket:
        for text in ("good", "bad words", "good again"):
            await socket.create(text, "lane")
        events = await socket.until(3)

    ends = [event["type"] for event in events if event["type"] in ("response.completed", "error")]
    assert ends == ["response.completed", "error", "response.completed"]
    assert {event.get("stream_id") for event in events} == {"lane"}


async def test_keeps_16_turns_in_flight_and_the_rest_waiting(build: Callable[..., Awaitable[House]]) -> None:
    house = await build(in_flight=100)
    node = await house.node()
    most = 0
    async with plain(node) as socket:
        for number in range(24):
            await socket.create("words [[deltas:4]] [[slow:20]]", f"lane-{number}")
        done: list[Event] = []
        while len(done) < 24:
            event = await socket.event()
            done += [event] if event["type"] == "response.completed" else []
            most = max(most, sum(turn.outcome == "active" for turn in house.sim.turns))

    assert most == 16
    assert {event["stream_id"] for event in done} == {f"lane-{number}" for number in range(24)}


async def test_refuses_what_is_more_than_may_wait_and_goes_on(house: House) -> None:
    node = await house.node(bounds=Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=3.0, lane_queue=2))
    async with plain(node) as socket:
        for number in range(4):
            await socket.create(f"number {number} [[deltas:3]] [[slow:20]]", "lane")
        events = await socket.until(4)
        await socket.create("afterwards", "lane")
        more = await socket.until(1)

    refused = [event for event in events if event["type"] == "error"]
    assert [(event["status"], event["error"]["code"], event["stream_id"]) for event in refused] == [
        (429, "broker_limit_reached", "lane")
    ]
    assert more[-1]["type"] == "response.completed"


async def test_refuses_the_33rd_name_of_a_lane_and_leaves_the_others_alone(
    build: Callable[..., Awaitable[House]],
) -> None:
    house = await build(lane_names=1000)
    node = await house.node()
    async with plain(node) as socket:
        for number in range(32):
            await socket.create("words", f"lane-{number}")
        assert all(event["type"] != "error" for event in await socket.until(32))
        await socket.create("one too many", "lane-32")
        (refused,) = await socket.until(1)
        await socket.create("a known name", "lane-31")
        await socket.create("no name")
        good = await socket.until(2)

    assert refused["type"] == "error" and refused["status"] == 400
    assert refused["stream_id"] == "lane-32"
    assert refused["error"]["code"] == "websocket_stream_limit_reached"
    assert [event["type"] for event in good].count("response.completed") == 2
    assert len(house.sim.turns) == 34, "what is refused here is not sent"


@pytest.mark.parametrize("name", ["", "with blank", "ü", "x" * 257])
async def test_refuses_a_name_that_no_lane_can_have(house: House, name: str) -> None:
    node = await house.node()
    async with plain(node) as socket:
        await socket.create("words", name)
        (refused,) = await socket.until(1)
        await socket.create("words", "x" * 256)
        good = await socket.until(1)

    assert (refused["status"], refused["error"]["code"]) == (400, "invalid_stream_id")
    assert "stream_id" not in refused
    assert good[-1]["type"] == "response.completed" and len(house.sim.turns) == 1


# --- steering ---


async def steered(house: House, client: SessionClient, lane: str | None = None) -> tuple[Any, Any]:
    """A turn that was steered while it spoke, and its successor."""
    before = client.results.get(lane)
    speaking = asyncio.create_task(client.turn("a long story [[deltas:40]] [[slow:20]]", lane=lane))
    await wait_until(lambda: (now := client.results.get(lane)) is not before and now is not None and bool(now.text))
    await client.steer("no, a short one", lane=lane)
    turn = await speaking
    return turn, turn.successor


@pytest.mark.parametrize("lane", [None, "lane"])
async def test_passes_a_steer_through_and_continues_its_successor(house: House, lane: str | None) -> None:
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one", lane=lane)

    turn, successor = await steered(house, client, lane)
    following = await client.turn("and then?", lane=lane)

    assert first.ok and turn.ok, turn.problems
    assert turn.terminal == "response.incomplete" and turn.response is not None
    assert turn.response["incomplete_details"] == {"reason": "steered"}
    assert "response.steer.accepted" in turn.events
    assert successor is not None and successor.ok, successor and successor.problems
    assert following.ok, following.problems
    assert house.sim.turns[-1].previous_response_id == successor.response_id, "it was an increment"
    assert counted(node, "broker_turns_total", outcome="completed") == 4
    assert client.notices == []


@pytest.mark.parametrize("lane", [None, "lane"])
async def test_carries_the_words_of_a_steer_along_when_the_session_moves(house: House, lane: str | None) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one", lane=lane)).ok
    turn, successor = await steered(house, client, lane)
    assert turn.ok and successor is not None and successor.ok, turn.problems
    house.sim.faults.set("A", "usage_limit_reached")

    following = await client.turn("and then?", lane=lane)

    assert following.ok, following.problems
    served = house.sim.turns[-1]
    assert served.credential != "A" and served.previous_response_id is None
    said = [item["content"][0]["text"] for item in served.input if item.get("role") == "user"]
    assert said == ["one", "a long story [[deltas:40]] [[slow:20]]", "no, a short one", "and then?"]


async def test_rebuilds_a_steered_conversation_on_another_node(house: House) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one)
    turn, successor = await steered(house, client)
    assert turn.ok and successor is not None and successor.ok, turn.problems
    await client.kill()
    again = await house.connected(two)

    following = await again.turn("and then?", parent=successor)

    assert following.ok, following.problems


async def test_answers_a_steer_for_nothing_that_runs(house: House) -> None:
    node = await house.node()
    async with plain(node) as socket:
        await socket.ws.send_str('{"type":"response.steer","previous_response_id":"resp_0","input":"stop"}')
        answer = await socket.event()
        await socket.create("words")
        good = await socket.until(1)

    assert answer["type"] == "response.steer.failed"
    assert answer["error"]["code"] == "response_not_found"
    assert answer["steer"] == {"previous_response_id": "resp_0", "input": "stop"}
    assert good[-1]["type"] == "response.completed"


async def test_passes_on_that_the_vendor_refused_a_steer(house: House) -> None:
    node = await house.node()
    async with plain(node) as socket:
        await socket.create("a long story [[deltas:20]] [[slow:10]]")
        created = await socket.event()
        target = created["response"]["id"]
        steer = {"type": "response.steer", "previous_response_id": target, "input": "stop", "model": "sim-1"}
        await socket.ws.send_str(orjson.dumps(steer).decode())
        events = await socket.until(1)
        await socket.create("more", previous_response_id=target)
        more = await socket.until(1)

    failed = [event for event in events if event["type"] == "response.steer.failed"]
    assert [event["error"]["code"] for event in failed] == ["invalid_input"]
    assert more[-1]["type"] == "response.completed"
    assert [len(turn.input) for turn in house.sim.turns] == [1, 1], "the refused words are not part of anything"
