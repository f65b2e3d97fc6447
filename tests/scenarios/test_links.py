"""Sockets to the vendor that are mute, slow, shared or refused: what one turn meets there is nobody else's trouble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from broker.domain.credential import Credential
from broker.domain.turn import Policy
from broker.edge.app import Listeners
from broker.edge.node import Node, StoreSettings
from broker.edge.wiring import Bounds
from broker.simulator import SessionClient
from broker.simulator.record import TurnRecord
from broker.upstream.dialer import DialSettings
from tests.scenarios.house import TENANTS, House, conversation, counted, held_against, plain, wait_until
from tests.scenarios.test_echoes import Frame, Speaker, upstream

HEARTBEAT = 0.8


async def brisk_node(house: House, credentials: list[Credential], bounds: Bounds) -> Listeners:
    """A node whose upstream sockets have a short heartbeat."""
    node = Node(
        "node-brisk",
        tenants=TENANTS,
        credentials=credentials,
        store=StoreSettings(house.url, refresh=0.1),
        bounds=bounds,
        policy=None,
        dial=DialSettings(connect=2.0, heartbeat=HEARTBEAT),
    )
    listeners = Listeners(node)
    await listeners.start(("127.0.0.1", 0), ("127.0.0.1", 0))
    house.nodes.append(listeners)
    return listeners


async def speaking(client: SessionClient, lane: str | None = None) -> None:
    """The lane's newest turn, which continues another one, has begun to speak."""

    def seen() -> bool:
        now = client.results.get(lane)
        return now is not None and now.parent is not None and bool(now.text)

    await wait_until(seen)


# --- silence ---


@pytest.mark.parametrize("passage", [True, False])
@pytest.mark.parametrize("begun", [False, True])
async def test_notices_a_mute_upstream_that_still_answers_pings(
    build: Callable[..., Awaitable[House]], passage: bool, begun: bool
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        if begun:
            await speaker.begin("r1")

    house = await build()
    async with upstream(script) as vendor:
        bounds = Bounds(hold=0.1, first_event=1.5, silence=1.5, leave=3.0, tap=passage)
        node = await brisk_node(house, [vendor.credential(), *house.credentials()[1:2]], bounds)
        async with plain(node) as socket:
            began = time.monotonic()
            await socket.create("words")
            events = await socket.until(1)
            took = time.monotonic() - began

    assert events[-1]["type"] == ("error" if begun else "response.completed"), events[-1]
    assert 1.4 < took < 2.5
    assert counted(node, "broker_upstream_failures_total", credential="M", kind="transport_lost") == 1
    assert counted(node, "broker_sockets_untapped") == 0


@asynccontextmanager
async def deaf() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """An endpoint that takes connections and answers nothing; its address, and who has come."""
    came: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: came.append(writer), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", came
    finally:
        server.close()
        for writer in came:
            writer.close()


async def test_gets_eight_lanes_past_a_mute_endpoint_with_one_dial(build: Callable[..., Awaitable[House]]) -> None:
    house = await build()
    first, second = house.credentials()[:2]
    async with deaf() as (address, came):
        node = await house.node(credentials=[replace(first, base_url=address), second], policy=Policy(placing=6.0))
        async with plain(node) as socket:
            began = time.monotonic()
            for number in range(8):
                await socket.create("words", f"lane-{number}")
            events = await socket.until(8)
            took = time.monotonic() - began

    ends = [event for event in events if event["type"] in ("response.completed", "error")]
    assert [event["type"] for event in ends] == ["response.completed"] * 8, ends
    assert {event["stream_id"] for event in ends} == {f"lane-{number}" for number in range(8)}
    assert took < 4.0, "connecting may take 2 s, and all wait for the same"
    assert len(came) <= 2
    assert [shake.credential for shake in house.sim.handshakes] == ["B"]


# --- a client that is slow ---


@pytest.mark.parametrize("passage", [True, False])
async def test_keeps_the_turn_of_a_client_that_pauses_for_longer_than_the_heartbeat(
    build: Callable[..., Awaitable[House]], passage: bool
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        await speaker.say("response.created", "r1")
        for number in range(1000):
            await speaker.say("response.output_text.delta", delta=f"{number}:" + "x" * 30_000)
        await speaker.finish("r1", "done")

    house = await build()
    async with upstream(script) as vendor:
        bounds = Bounds(hold=0.2, first_event=2.0, silence=2.0, leave=3.0, tap=passage)
        node = await brisk_node(house, [vendor.credential()], bounds)
        async with plain(node) as socket:
            await socket.create("words")
            assert (await socket.event())["type"] == "response.created"
            paused = time.monotonic()
            await wait_until(lambda: time.monotonic() > paused + 4 * HEARTBEAT)
            assert not vendor.said[0].done(), "the pause was felt up there"
            events = await socket.until(1)

    assert events[-1]["type"] == "response.completed", events[-1]
    heard = [event["delta"].split(":")[0] for event in events if "delta" in event]
    assert heard == [str(number) for number in range(1000)]
    assert counted(node, "broker_upstream_failures_total") == 0
    assert vendor.sockets == 1


# --- lanes that share a socket ---


async def test_keeps_another_lane_s_parent_when_one_lane_s_message_ends_the_socket(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("first of a", lane="a")).ok
    house.sim.faults.set("*", "server_error", do="close", close_code=1009, when="too big", code=None)
    innocent = asyncio.create_task(client.turn("second of a [[deltas:40]] [[slow:30]]", lane="a"))
    await speaking(client, "a")

    guilty = await client.turn("too big", lane="b")
    interrupted = await innocent
    again = await client.retry(lane="a")

    assert not guilty.ok and guilty.error is not None
    assert interrupted.error_code != "previous_response_not_found"
    assert again.ok, (again.error, again.problems)
    assert list(house.sim.turns[-1].context) == conversation(again)
    assert "A" not in " ".join(held_against(node)), held_against(node)
    following = await client.turn("next of b", lane="b")
    assert following.ok, following.problems


@pytest.mark.parametrize("status", [400, 500])
async def test_ends_the_only_running_named_lane_s_turn_by_an_error_without_a_lane(house: House, status: int) -> None:
    kind, code = ("invalid_request_error", "invalid_value") if status == 400 else ("server_error", "server_error")
    body = {"type": "error", "status": status, "error": {"type": kind, "code": code, "message": "no"}}
    node = await house.node()
    house.sim.faults.set("A", "server_error", do="failed", body=body)
    async with plain(node) as socket:
        began = time.monotonic()
        await socket.create("words", "lane")
        events = await socket.until(1)
        took = time.monotonic() - began
        house.sim.faults.clear()
        await socket.create("more words", "lane")
        more = await socket.until(1)

    assert took < 2.0, "the first event is waited for 5 s"
    # the vendor's own error is passed on as it is, so it may have no lane here either
    assert {event["stream_id"] for event in (*events, *more)} == {"lane"}
    assert events[-1]["type"] == ("error" if status == 400 else "response.completed"), events[-1]
    assert more[-1]["type"] == "response.completed"


# --- how much at once ---


def at_once(turns: list[TurnRecord]) -> int:
    """How many of these turns the vendor had to answer at the same time, at most."""
    return max(sum(other.started <= turn.started < (other.ended or turn.started) for other in turns) for turn in turns)


async def test_keeps_a_credential_s_bound_when_ten_turns_start_at_once(house: House) -> None:
    first, second = house.credentials()[:2]
    node = await house.node(credentials=[replace(first, max_in_flight=2), replace(second, max_in_flight=3)])
    clients = [await house.connected(node) for _ in range(10)]

    turns = await asyncio.gather(*(client.turn("words [[deltas:10]] [[slow:20]]") for client in clients))

    assert at_once(house.sent_to("A")) == 2
    assert at_once(house.sent_to("B")) == 3
    served = [turn for turn in turns if turn.ok]
    assert len(served) >= 5
    assert all(turn.error is not None and turn.error["status"] == 429 for turn in turns if not turn.ok), [
        turn.error for turn in turns
    ]
    await wait_until(lambda: not any(node.node.placement.in_flight.values()))
    assert all([(await client.turn("later")).ok for client in clients])
