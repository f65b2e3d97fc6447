"""A steered response's successor that comes while the commit of the steered one is still under way."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from broker.edge.app import Listeners
from tests import engines
from tests.scenarios.house import House, counted, plain, wait_until
from tests.scenarios.test_echoes import Frame, Speaker, Upstream, continued, good, shown, started, steer, words
from tests.scenarios.test_echoes import upstream as upstream_of

SUCCESSION = [("response.steer.accepted", None), ("response.incomplete", "r1")]
"""What a client is told of the steered response."""

ENOUGH = 100
"""Events that are more than may wait for one turn."""


@contextmanager
def paused(server: engines.Server) -> Iterator[None]:
    """The store takes commits, and answers none of them until the end."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


async def steered(speaker: Speaker) -> None:
    """The vendor takes a steer of r1, and ends r1 for it."""
    await speaker.say("response.steer.accepted", steer={"id": "s"})
    await speaker.say("response.incomplete", "r1")


async def deltas(speaker: Speaker, count: int) -> None:
    for number in range(count):
        await speaker.say("response.output_text.delta", delta=str(number))


def held_up(node: Listeners) -> bool:
    """Whether more has come for the turn than may wait for it."""
    (client,) = node.node.sockets
    running = client.lanes.running(None)
    return running is not None and running.full


async def patient(house: House, vendor: Upstream) -> Listeners:
    """A node that would wait longer for its store than any test pauses it."""
    return await house.node(credentials=[vendor.credential()], timeout=10.0)


@pytest.mark.parametrize("count", [ENOUGH, 300])
async def test_passes_a_successor_on_whole_and_in_order_when_it_comes_during_the_commit(
    build: Callable[..., Awaitable[House]], redis_server: engines.Server, count: int
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        if frame["type"] == "response.steer":
            await steered(speaker)
            await speaker.say("response.created", "r2")
            await deltas(speaker, count)
            await speaker.finish("r2", "NEXT")
        elif words(frame["input"]) == ["one"]:
            await speaker.begin("r1")
        else:
            await speaker.tell("r-on", "on")

    house = await build()
    async with upstream_of(script) as vendor:
        node = await patient(house, vendor)
        async with plain(node, **{"x-session-id": "s"}) as socket:
            await started(socket, "one")
            with paused(redis_server):
                await steer(socket, "r1", "STEER")
                await wait_until(lambda: held_up(node))
            events = await socket.until(1)

        told = shown(events)
        assert [*told[:3], *told[-2:]] == [
            *SUCCESSION,
            ("response.created", "r2"),
            ("response.output_item.done", None),
            ("response.completed", "r2"),
        ]
        assert [event["delta"] for event in events if "delta" in event] == [str(number) for number in range(count)]
        assert await continued(node, vendor, "s", "r2") == ["one", "STEER", "NEXT"]


async def test_serves_the_lane_s_next_turn_when_a_successor_that_came_during_the_commit_is_garbled(
    build: Callable[..., Awaitable[House]], redis_server: engines.Server
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        if frame["type"] == "response.steer":
            await steered(speaker)
            await speaker.say("response.created", response=5)
            await deltas(speaker, ENOUGH)
        elif words(frame["input"])[-1] == "one":
            await speaker.begin("r1")
        else:
            await speaker.tell("r-next", "fine")

    house = await build()
    async with upstream_of(script) as vendor:
        node = await patient(house, vendor)
        async with plain(node) as socket:
            await started(socket, "one")
            with paused(redis_server):
                await steer(socket, "r1", "STEER")
                await wait_until(lambda: held_up(node))
            assert shown([await socket.event(), await socket.event()]) == SUCCESSION
            # the vendor has shown that nothing it says there can be relied on, so the next turn takes another socket
            await socket.create("another")
            assert shown(await socket.until(1)) == good("r-next")

        await wait_until(lambda: not node.node.sockets)
        assert not node.node.busy
        assert counted(node, "broker_turns_total", outcome="broken") == 0


async def test_tells_at_once_that_a_successor_was_lost_when_its_link_went_during_the_commit(
    build: Callable[..., Awaitable[House]], redis_server: engines.Server
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        if frame["type"] == "response.steer":
            await steered(speaker)
            await speaker.say("response.created", "r2")
            await speaker.say("response.output_text.delta", delta="x")
            assert speaker.request.transport is not None
            speaker.request.transport.close()  # what was said still arrives
        else:
            await speaker.begin("r1")

    house = await build()
    async with upstream_of(script) as vendor:
        node = await patient(house, vendor)
        async with plain(node) as socket:
            await started(socket, "one")
            with paused(redis_server):
                await steer(socket, "r1", "STEER")
                await wait_until(lambda: node.node.dialer.open_links == 0)
            began = time.monotonic()
            events = await socket.until(1)

        assert shown(events)[:2] == SUCCESSION
        assert events[-1]["type"] == "error"
        assert time.monotonic() - began < 2.0, "long before the bound for a silent vendor, 5 s"
        assert not node.node.busy
