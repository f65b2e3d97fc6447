"""The vendor's age limit, and the broker's own rotation ahead of it: no client ever sees either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from broker.domain.session import Pin
from broker.edge.app import Listeners
from broker.simulator import SessionClient
from tests.scenarios.house import House, counted, wait_until

LIMIT = "websocket_connection_limit_reached"


async def pin_of(house: House, client: SessionClient) -> Pin:
    session = await house.session(client)
    assert session.pin is not None
    return session.pin


async def assert_unharmed(house: House, node: Listeners, client: SessionClient, before: Pin) -> None:
    """Nothing moved, nobody was blamed, and the client's socket is the one it opened."""
    assert (await pin_of(house, client)).same(before)
    assert {turn.credential for turn in house.sim.turns} == {before.credential}
    assert counted(node, "broker_health_reports_total") == 0
    assert node.node.health.snapshot.rows == {} and node.node.placement.usable() == 3
    assert counted(node, "broker_failovers_total") == 0
    assert client.connected and counted(node, "broker_handshakes_total", result="accepted") == 1
    assert client.notices == []


def upgrades(house: House) -> int:
    return sum(handshake.accepted for handshake in house.sim.handshakes)


async def test_replays_on_a_fresh_socket_when_the_vendor_ended_the_idle_one(
    build: Callable[..., Awaitable[House]],
) -> None:
    house = await build(age_limit=0.2)
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one")
    before = await pin_of(house, client)
    await wait_until(lambda: house.sim.sockets["A"] == 0)

    second = await client.turn("two")

    assert first.ok and second.ok, first.problems + second.problems
    assert upgrades(house) == 2
    assert house.sim.turns[-1].previous_response_id is None
    assert counted(node, "broker_replays_total") == 1
    await assert_unharmed(house, node, client, before)


async def test_survives_an_age_limit_that_ends_its_sockets_again_and_again(
    build: Callable[..., Awaitable[House]],
) -> None:
    house = await build(age_limit=0.15)
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    before = await pin_of(house, client)

    for number in range(2000):
        turn = await client.turn(f"turn {number}")
        assert turn.ok, turn.problems
        if upgrades(house) >= 5:
            break

    assert upgrades(house) >= 5
    assert counted(node, "broker_turns_total", outcome="completed") == len(client.results[None].chain())
    await assert_unharmed(house, node, client, before)


async def test_opens_a_fresh_socket_when_the_limit_is_announced_while_idle(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one")
    before = await pin_of(house, client)
    armed = house.sim.faults.set("A", LIMIT, at="idle", times=1)
    assert armed.fired == 1

    second = await client.turn("two")
    third = await client.turn("three")

    assert first.ok and second.ok and third.ok, second.problems + third.problems
    assert upgrades(house) == 2
    await assert_unharmed(house, node, client, before)


@pytest.mark.parametrize("at", ["before_created", "after_created"])
@pytest.mark.parametrize("deed", ["error", "failed"])
async def test_sends_a_turn_anew_when_the_limit_strikes_before_its_output(house: House, at: str, deed: str) -> None:
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one")
    before = await pin_of(house, client)
    house.sim.faults.set("A", LIMIT, at=at, do=deed, times=1)

    second = await client.turn("two")
    third = await client.turn("three")

    assert first.ok and second.ok and third.ok, second.problems + third.problems
    assert second.events.count("response.created") == 1
    assert [turn.outcome for turn in house.sim.turns] == ["completed", deed, "completed", "completed"]
    assert house.sim.turns[-2].previous_response_id is None
    assert house.sim.turns[-1].previous_response_id == second.response_id
    assert counted(node, "broker_replays_total", cause="connection_expired") == 1
    assert not (await house.session(client)).incremental_disabled
    await assert_unharmed(house, node, client, before)


async def test_sends_a_first_turn_anew_when_the_limit_strikes_it(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    house.sim.faults.set("A", LIMIT, at="after_created", times=1)

    first = await client.turn("one")

    assert first.ok, first.problems
    assert upgrades(house) == 2
    await assert_unharmed(house, node, client, await pin_of(house, client))


async def test_lets_what_shows_finish_and_sends_the_other_lane_anew_when_the_limit_strikes_in_between(
    house: House,
) -> None:
    node = await house.node()
    client = await house.connected(node)
    showing = asyncio.create_task(client.turn("long [[deltas:20]] [[slow:30]]", lane="long"))
    await wait_until(lambda: "long" in client.results and client.results["long"].first_output is not None)
    before = next(iter(node.node.sockets)).session.pin
    assert before is not None
    house.sim.faults.set("A", LIMIT, at="after_created", times=1)

    struck = await client.turn("short", lane="short")
    shown = await showing

    assert struck.ok and shown.ok, struck.problems + shown.problems
    assert upgrades(house) == 2
    again = [await client.turn("more", lane=lane) for lane in ("long", "short")]
    assert all(turn.ok for turn in again), [turn.problems for turn in again]
    assert {turn.credential for turn in house.sim.turns} == {before.credential}
    assert counted(node, "broker_health_reports_total") == 0


async def test_ends_a_showing_turn_soon_and_honestly_when_the_limit_interrupts_it(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one")
    before = await pin_of(house, client)
    house.sim.faults.set("A", LIMIT, at="after_deltas", after=2, times=1)

    cut = await client.turn("two [[deltas:8]] [[slow:5]]")
    again = await client.retry()

    assert first.ok
    assert cut.error is not None and cut.error["status"] == 503, cut.problems
    assert cut.duration < 2.0, "the upstream has said that this turn is over; nobody need wait for the silence"
    assert again.ok, again.problems
    await assert_unharmed(house, node, client, before)


async def test_rotates_its_sockets_between_turns_when_they_reach_the_age_set_for_the_credential(house: House) -> None:
    pool = [replace(credential, max_age=0.15) for credential in house.credentials()]
    node = await house.node(credentials=pool)
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    before = await pin_of(house, client)

    for number in range(2000):
        turn = await client.turn(f"turn {number}")
        assert turn.ok, turn.problems
        if upgrades(house) >= 4:
            break

    assert upgrades(house) >= 4
    await wait_until(lambda: house.sim.sockets["A"] == 1)
    await assert_unharmed(house, node, client, before)


async def test_does_not_rotate_under_a_turn_in_flight(house: House) -> None:
    pool = [replace(credential, max_age=0.15) for credential in house.credentials()]
    node = await house.node(credentials=pool)
    client = await house.connected(node)

    long = await client.turn("long [[deltas:20]] [[slow:20]]")
    before = await pin_of(house, client)
    after = await client.turn("next")

    assert long.ok and after.ok, long.problems + after.problems
    assert upgrades(house) == 2
    await assert_unharmed(house, node, client, before)
