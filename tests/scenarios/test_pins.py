"""Two nodes and one pin: who comes late changes nothing, adopts what is true, and its turn is served all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from broker.domain.session import Pin
from broker.edge.app import Listeners
from broker.simulator import SessionClient
from tests.scenarios.house import House, counted, wait_until

NAME = "agent-7"


async def two_nodes(house: House) -> tuple[Listeners, Listeners]:
    """Both hold the same pool; left to themselves, the first would go from A to B and the second from A to C."""
    pool = house.credentials()
    other = [replace(c, priority={"A": 0, "B": 2, "C": 1}[c.name]) for c in pool]
    # neither shall hear of the other's health reports: only the pin may tell it
    one = await house.node(refresh=60.0, hints=False)
    return one, await house.node(credentials=other, refresh=60.0, hints=False)


async def both_bound(house: House, one: Listeners, two: Listeners) -> tuple[SessionClient, SessionClient]:
    """Two sockets of one session, one on each node, with a turn on A behind each."""
    clients = await house.connected(one, session_id=NAME), await house.connected(two, session_id=NAME)
    for client in clients:
        turn = await client.turn("one")
        assert turn.ok, turn.problems
    assert {turn.credential for turn in house.sim.turns} == {"A"}
    return clients


async def pin_of(house: House, client: SessionClient) -> Pin:
    session = await house.session(client)
    assert session.pin is not None
    return session.pin


def races(*nodes: Listeners) -> float:
    return sum(counted(node, "broker_pin_races_total") for node in nodes)


def resets(*nodes: Listeners) -> float:
    return sum(counted(node, "broker_pin_resets_total") for node in nodes)


def in_flight(house: House, at: str) -> Callable[[], bool]:
    return lambda: any(turn.credential == at and turn.outcome == "active" for turn in house.sim.turns)


@pytest.mark.parametrize("late", ["first node", "second node"])
async def test_a_late_failure_report_does_not_undo_the_newer_pin_of_another_node(house: House, late: str) -> None:
    one, two = await two_nodes(house)
    clients = await both_bound(house, one, two)
    (slow, slow_node), (fast, fast_node) = list(zip(clients, (one, two), strict=True))[:: 1 if late[0] == "f" else -1]
    expected = "C" if fast_node is two else "B"
    before = await pin_of(house, fast)
    house.sim.faults.set("A", "server_error", at="before_created", do="silence", when="slow words", times=1)
    turning = asyncio.create_task(slow.turn("slow words"))
    await wait_until(in_flight(house, "A"))
    house.sim.faults.set("A", "usage_limit_reached")

    moved = await fast.turn("fast words")
    newer = await pin_of(house, fast)
    await house.sim.end_sockets("A")
    late_turn = await turning

    assert moved.ok and late_turn.ok, moved.problems + late_turn.problems
    assert (newer.credential, newer.epoch) == (expected, before.epoch + 1)
    assert (await pin_of(house, fast)).same(newer), "the late one must not move it again"
    assert house.sim.turns[-1].credential == expected, "the loser adopts the winner's pin"
    assert (races(slow_node), races(fast_node)) == (1, 0)
    assert (resets(slow_node), resets(fast_node)) == (0, 1)


async def test_a_node_with_a_stale_pin_adopts_the_newer_one_when_its_own_credential_fails(house: House) -> None:
    one, two = await two_nodes(house)
    first, second = await both_bound(house, one, two)
    house.sim.faults.set("A", "usage_limit_reached")
    moved = await second.turn("two")
    newer = await pin_of(house, second)
    assert moved.ok and newer.credential == "C"

    behind = await first.turn("two")
    after = await first.turn("three")

    assert behind.ok and after.ok, behind.problems + after.problems
    assert [turn.credential for turn in house.sim.turns[-3:]] == ["A", "C", "C"]
    assert (await pin_of(house, first)).same(newer)
    assert (races(one), races(two)) == (1, 0)
    assert not (await house.session(first)).incremental_disabled
    assert house.sim.turns[-1].previous_response_id == behind.response_id


async def test_one_of_two_nodes_wins_when_both_move_the_pin_at_once(house: House) -> None:
    one, two = await two_nodes(house)
    clients = await both_bound(house, one, two)
    before = await pin_of(house, clients[0])
    # both turns wait on A, and both lose it in the same moment
    house.sim.faults.set("A", "server_error", at="before_created", do="silence")
    turning = [asyncio.create_task(client.turn("two")) for client in clients]
    await wait_until(lambda: len([t for t in house.sent_to("A") if t.outcome == "active"]) == 2)
    await house.sim.end_sockets("A")

    turns = await asyncio.gather(*turning)
    third = [await client.turn("three") for client in clients]

    assert all(turn.ok for turn in (*turns, *third)), [turn.problems for turn in (*turns, *third)]
    after = await pin_of(house, clients[0])
    assert after.epoch == before.epoch + 1 and after.credential in ("B", "C")
    assert resets(one, two) == 1 and races(one, two) == 1
    assert {turn.credential for turn in house.sim.turns[-2:]} == {after.credential}
    assert one.node.sessions is not two.node.sessions
    for node in (one, two):
        (session,) = {socket.session.sid: socket.session for socket in node.node.sockets}.values()
        assert session.pin is not None and session.pin.same(after)


async def test_the_epoch_rises_by_one_with_every_change_and_never_falls(house: House) -> None:
    one, two = await two_nodes(house)
    clients = await both_bound(house, one, two)
    epochs = [(await pin_of(house, clients[0])).epoch]
    # each is away while a turn passes; the pin walks A -> B -> C -> A and both nodes take turns in moving it
    for number, away in enumerate(["A", "B", "C"]):
        house.sim.faults.set("*", "rate_limit_exceeded", when=f"turn {number}", times=1)
        turn = await clients[number % 2].turn(f"turn {number}")
        assert turn.ok, (away, turn.problems)
        epochs.append((await pin_of(house, clients[0])).epoch)

    assert epochs == sorted(epochs) and epochs[0] == 1
    assert epochs[-1] == 1 + resets(one, two)
    assert resets(one, two) >= 2


async def test_a_commit_under_an_older_pin_does_not_clear_the_flag_of_the_newer_one(house: House) -> None:
    one, two = await two_nodes(house)
    first, second = await both_bound(house, one, two)
    old = asyncio.create_task(first.turn("old words [[slow:100]]"))
    await wait_until(in_flight(house, "A"))
    house.sim.faults.set("A", "usage_limit_reached")
    new = asyncio.create_task(second.turn("new words [[slow:400]]"))
    await wait_until(in_flight(house, "C"))

    behind = await old
    between = await house.session(first)
    ahead = await new
    after = await house.session(first)

    assert behind.ok and ahead.ok, behind.problems + ahead.problems
    assert between.pin is not None and (between.pin.credential, between.pin.epoch) == ("C", 2)
    assert between.incremental_disabled, "only a turn of the present pin proves that its credential has the context"
    assert after.pin is not None and after.pin.same(between.pin) and not after.incremental_disabled
    next_turn = await first.turn("next")
    assert next_turn.ok, next_turn.problems
    assert house.sim.turns[-1].credential == "C"
