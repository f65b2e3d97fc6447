"""A turn that nobody can serve now, but probably in a moment, waits; never for long, and never unseen."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import aiohttp
import pytest

from broker.edge.app import Listeners
from broker.edge.placement import Placing
from tests.scenarios.house import KEY, House, counted, held_against, wait_until


async def alone(house: House, *, wait: float = 10.0, waiting: int = 4096, cap: int = 0) -> Listeners:
    """A node with one credential."""
    (only, *_) = house.credentials()
    placing = Placing(wait=wait, waiting=waiting)
    return await house.node(credentials=[replace(only, max_in_flight=cap)], placing=placing)


async def test_waits_for_the_end_of_a_short_block_instead_of_failing(house: House) -> None:
    node = await alone(house)
    client = await house.connected(node)
    house.sim.faults.set("A", "rate_limit_exceeded", times=1)

    began = time.monotonic()
    turn = await client.turn("one")

    assert turn.ok, turn.error
    assert 1.1 < time.monotonic() - began < 3.0, "as long as the vendor said"
    assert counted(node, "broker_placement_waits_total") == 1
    assert counted(node, "broker_failovers_total") == 0, "nobody else has served it"


async def test_tells_at_once_when_the_block_is_a_long_one(house: House) -> None:
    node = await alone(house)
    client = await house.connected(node)
    house.sim.faults.set("A", "usage_limit_reached", resets_in=60)
    began = time.monotonic()
    assert not (await client.turn("one")).ok
    assert not (await client.turn("two")).ok
    assert time.monotonic() - began < 1.0
    assert counted(node, "broker_placement_waits_total") == 0


async def test_waits_no_longer_than_it_may(house: House) -> None:
    node = await alone(house, wait=0.5, cap=1)
    busy, late = await house.connected(node), await house.connected(node)
    running = asyncio.create_task(busy.turn("one [[deltas:8]] [[slow:300]]"))
    await wait_until(lambda: house.sim.turns)

    began = time.monotonic()
    turn = await late.turn("two")

    assert turn.error is not None and (turn.error["status"], turn.error["code"]) == (429, "broker_limit_reached")
    assert 0.4 < time.monotonic() - began < 1.5
    assert (await running).ok


async def test_turns_wait_in_the_order_in_which_they_came(house: House) -> None:
    node = await alone(house, cap=1)
    clients = [await house.connected(node) for _ in range(6)]
    turns = []
    for number, client in enumerate(clients):
        turns.append(asyncio.create_task(client.turn(f"number {number} [[slow:20]]")))
        await wait_until(lambda n=number: len(node.node.placement.waiting) == n)  # type: ignore[misc]
    assert all(turn.ok for turn in await asyncio.gather(*turns))
    texts = [str(turn.input) for turn in house.sim.turns]
    assert [f"number {n}" in text for n, text in enumerate(texts)] == [True] * 6


async def test_only_so_many_wait(house: House) -> None:
    node = await alone(house, cap=1, waiting=2)
    busy, *others = [await house.connected(node) for _ in range(4)]
    running = asyncio.create_task(busy.turn("one [[deltas:4]] [[slow:60]]"))
    await wait_until(lambda: house.sim.turns)
    turns = await asyncio.gather(*(client.turn("two") for client in others))
    assert (await running).ok
    refused = [turn.error for turn in turns if not turn.ok]
    assert [error["code"] for error in refused if error] == ["broker_limit_reached"]


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_who_leaves_while_it_waits_is_not_sent_any_more(house: House, how: str) -> None:
    node = await alone(house, cap=1)
    busy, leaver, patient = [await house.connected(node) for _ in range(3)]
    running = asyncio.create_task(busy.turn("one [[deltas:4]] [[slow:100]]"))
    await wait_until(lambda: house.sim.turns)
    gone = asyncio.create_task(leaver.turn("never sent"))
    await wait_until(lambda: len(node.node.placement.waiting) == 1)
    waiting = asyncio.create_task(patient.turn("two"))
    await wait_until(lambda: len(node.node.placement.waiting) == 2)

    await (leaver.close() if how == "close" else leaver.kill())

    await wait_until(lambda: len(node.node.placement.waiting) == 1)
    assert (await running).ok and (await waiting).ok
    await gone
    assert "never sent" not in str([turn.input for turn in house.sim.turns])
    assert counted(node, "broker_turns_total", outcome="client_left") == 1


async def test_a_node_that_stops_lets_nobody_wait(house: House) -> None:
    node = await alone(house, cap=1)
    busy, late = await house.connected(node), await house.connected(node)
    running = asyncio.create_task(busy.turn("one [[deltas:20]] [[slow:200]]"))
    await wait_until(lambda: house.sim.turns)
    waiting = asyncio.create_task(late.turn("two"))
    await wait_until(lambda: len(node.node.placement.waiting) == 1)
    house.nodes.remove(node)

    began = time.monotonic()
    await node.stop()

    assert time.monotonic() - began < 9.0
    assert len(node.node.placement.waiting) == 0
    assert not (await waiting).ok
    await running


async def test_a_licence_of_a_turn_whose_client_left_is_anothers(house: House) -> None:
    node = await alone(house)
    first, second = await house.connected(node), await house.connected(node)
    house.sim.faults.set("A", "usage_limit_reached", resets_in=1, times=1)
    assert not (await first.turn("one")).ok
    house.sim.faults.set("A", "server_error", do="silence", times=1)
    trying = asyncio.create_task(first.turn("two"))
    await wait_until(lambda: len(house.sim.turns) == 2)
    assert held_against(node) == {"group:A": "exhausted"}

    await first.kill()
    turn = await second.turn("one")

    assert turn.ok, turn.error
    await trying


async def test_waits_for_what_comes_of_the_trial_that_another_node_makes(house: House) -> None:
    one, two = await alone(house), await alone(house)
    clients = [await house.connected(node) for node in (one, two, one, two)]
    house.sim.faults.set("A", "token_revoked", times=1)
    assert not (await clients[0].turn("one")).ok
    await wait_until(lambda: all(held_against(node) == {"credential:A": "revoked"} for node in (one, two)))
    since = next(iter(two.node.health.snapshot.rows.values())).since
    await wait_until(lambda: two.node.health.now() > since + 5.1, within=7.0)

    turns = await asyncio.gather(*(client.turn("two [[slow:30]]", parent=None) for client in clients))

    assert all(turn.ok for turn in turns), [turn.error for turn in turns]


async def test_explains_who_would_serve_and_why_the_others_would_not(house: House) -> None:
    pool = [
        replace(c, models=frozenset({"sim-1"}) if c.name != "C" else frozenset({"sim-2"})) for c in house.credentials()
    ]
    node = await house.node(credentials=pool)
    client = await house.connected(node, session_id="my-session")
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "usage_limit_reached", resets_in=600)
    other = await house.connected(node)
    assert (await other.turn("one")).ok

    async def explained(**query: str) -> dict[str, str]:
        url = f"http://127.0.0.1:{node.operations_port}/explain"
        async with aiohttp.ClientSession() as http, http.get(url, params=query) as answer:
            assert answer.status == 200, await answer.text()
            told = await answer.json()
            assert KEY not in str(told) and "sk-sim" not in str(told)
            return {c["credential"]: ("taken: " if c["taken"] else "") + c["why"] for c in told["candidates"]}

    asked = {"session": "my-session", "tenant": "team-a"}
    assert await explained(model="sim-1", **asked) == {
        "A": "exhausted",
        "B": "taken: least_loaded",
        "C": "model",
    }
    house.sim.faults.clear()
    assert await explained(model="sim-2") == {"C": "taken: least_loaded", "A": "model", "B": "model"}
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{node.operations_port}/explain"
        async with http.get(url, params={"session": "unknown", "tenant": "team-a"}) as answer:
            assert answer.status == 404
