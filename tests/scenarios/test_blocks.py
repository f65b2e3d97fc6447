"""What is held against credentials ends with its cause, and survives an absent store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from broker.edge.placement import Placing
from broker.simulator import SessionClient, TurnResult
from tests import engines
from tests.scenarios.house import House, conversation, counted, everything_in, held_against, own_endpoints, wait_until


@pytest.fixture
def own_redis() -> Iterator[engines.Server]:
    """A server of this test's own, which keeps its data when it is killed."""
    with engines.server("valkey9", appendonly=True) as server:
        yield server


async def served(client: SessionClient, within: float) -> TurnResult:
    """The first turn that is served well, tried again a few times a second as an agent would."""
    began = time.monotonic()
    while not (turn := await client.turn("words")).ok:
        if time.monotonic() > began + within:
            raise AssertionError(f"not served within {within} s: {turn.error}")
        tried = time.monotonic()
        await wait_until(lambda at=tried: time.monotonic() > at + 0.2)  # type: ignore[misc]
    assert time.monotonic() < began + within, "it was served too late"
    return turn


# --- faults of the door ---


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("kind", "within"), [("generic_404", 6.5), ("unauthorized_generic", 8.0)])
async def test_serves_again_soon_after_every_handshake_was_refused(
    house: House, kind: str, within: float, apart: bool
) -> None:
    node = await house.node(credentials=own_endpoints(house.credentials()) if apart else None)
    house.sim.faults.set("*", kind, do="refuse", at="handshake")
    client = await house.connected(node)
    assert not (await client.turn("one")).ok
    await wait_until(lambda: len(held_against(node)) > 0)

    house.sim.faults.clear()
    turn = await served(client, within)

    assert list(house.sim.turns[-1].context) == conversation(turn)
    more = await asyncio.gather(*[(await house.connected(node)).turn("another") for _ in range(3)])
    assert all(turn.ok for turn in more), [turn.error for turn in more]


async def test_knocks_seldom_while_every_handshake_is_refused(house: House) -> None:
    node = await house.node(placing=Placing(wait=4.0))
    house.sim.faults.set("*", "unauthorized_generic", do="refuse", at="handshake")
    client = await house.connected(node)
    others = [await house.connected(node) for _ in range(9)]
    assert not (await client.turn("one")).ok
    before = len(house.sim.handshakes)
    assert before == 3

    began = time.monotonic()
    turns = await asyncio.gather(*(other.turn("again") for other in others))

    assert not any(turn.ok for turn in turns)
    assert all(turn.error is not None and turn.error["status"] >= 429 for turn in turns)
    seconds = time.monotonic() - began
    assert len(house.sim.handshakes) - before <= 3 * (1 + seconds / 2.0), "each door is tried every other second"


# --- the store is away ---


@pytest.mark.parametrize("away", ["killed", "paused"])
async def test_tells_the_store_what_was_learned_while_it_was_away(
    build: Callable[..., Awaitable[House]], own_redis: engines.Server, away: str
) -> None:
    house = await build()
    house.url = own_redis.url
    node = await house.node(timeout=0.3, connect_timeout=0.3)
    client = await house.connected(node)
    refreshed = counted(node, "broker_store_errors_total")
    own_redis.pause() if away == "paused" else own_redis.kill()
    house.sim.faults.set("A", "usage_limit_reached")
    turn = await client.turn("one")
    assert turn.ok, turn.error
    learned = held_against(node)
    assert "exhausted" in learned.values(), learned
    # the node has looked for the table at least once more, in vain
    await wait_until(lambda: counted(node, "broker_store_errors_total") > refreshed + 1)
    assert held_against(node) == learned

    own_redis.resume() if away == "paused" else own_redis.start()
    other = await house.node()
    await wait_until(lambda: held_against(other) == learned, 10.0)
    assert held_against(node) == learned
    assert any(b"exhausted" in held for held in (await everything_in(own_redis.url)).values())
    sent = len(house.sent_to("A"))
    for listeners in (node, other):
        assert (await (await house.connected(listeners)).turn("two")).ok
    assert len(house.sent_to("A")) == sent, "nobody tries what is known to be exhausted"


async def test_goes_on_on_its_socket_when_the_store_is_away_after_a_move(
    build: Callable[..., Awaitable[House]], own_redis: engines.Server
) -> None:
    house = await build()
    house.url = own_redis.url
    node = await house.node(timeout=0.3, connect_timeout=0.3)
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "usage_limit_reached")
    moving = asyncio.create_task(client.turn("two [[deltas:30]] [[slow:20]]"))
    await wait_until(lambda: (now := client.results[None]).parent is not None and bool(now.text))
    own_redis.kill()
    moved = await moving
    assert moved.ok, moved.problems

    for text in ("three", "four"):
        turn = await client.turn(text)

        assert turn.ok, (turn.error, turn.problems)
        assert list(house.sim.turns[-1].context) == conversation(turn)
        assert house.sim.turns[-1].previous_response_id is not None, "it was an increment"
    assert {turn.credential for turn in house.sim.turns[-3:]} == {"B"}

    own_redis.start()
    await wait_until(lambda: len(node.node.journal) == 0, 10.0)
    await client.kill()
    again = await house.connected(await house.node(), session_id=client.handshake_headers["x-session-id"])
    later = await again.turn("five", parent=client.heads[None])
    assert later.ok, (later.error, later.problems)
