"""All nodes know what one node learned: a fault seen by one protects the others, and so does a recovery."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest

from broker.domain.credential import Credential
from broker.domain.selection import Strategy
from broker.edge.app import Listeners
from broker.edge.placement import Placing
from broker.simulator import SessionClient
from tests.scenarios.house import House, held_against, shared_quota, wait_until

WITHIN = 1.0
"""Seconds in which every node knows."""


def level(pool: list[Credential], **weights: float) -> list[Credential]:
    """All in one tier, with these weights."""
    return [replace(c, priority=0, weight=weights.get(c.name, 1.0)) for c in pool]


async def opened(house: House, nodes: list[Listeners], count: int) -> list[SessionClient]:
    """That many sessions, by turns on the nodes, each with one turn behind it."""
    clients = [await house.connected(nodes[i % len(nodes)]) for i in range(count)]
    for turn in await asyncio.gather(*(client.turn("one") for client in clients)):
        assert turn.ok, turn.error
    return clients


def served(house: House, since: float = 0.0) -> Counter[str]:
    """How many turns each credential has answered since then."""
    return Counter(t.credential for t in house.sim.turns if t.outcome == "completed" and t.started >= since)


# --- what one has learned ---


@pytest.mark.parametrize("hints", [True, False])
async def test_no_other_node_sends_a_turn_to_a_quota_that_one_node_saw_end(house: House, hints: bool) -> None:
    pool = shared_quota(house.credentials()[:2], "team") + house.credentials()[2:]
    nodes = [await house.node(credentials=pool, hints=hints, refresh=0.3) for _ in range(3)]
    first, *others = [await house.connected(node) for node in nodes]
    house.sim.faults.set("A", "insufficient_quota")
    assert (await first.turn("one")).ok
    seen = time.monotonic()

    await wait_until(lambda: all("group:team" in held_against(node) for node in nodes), within=WITHIN)
    known = time.monotonic() - seen
    before = len(house.sim.turns)
    for client in others:
        assert (await client.turn("one")).ok

    assert [turn.credential for turn in house.sim.turns[before:]] == ["C", "C"], (
        "neither A nor B, which shares its quota"
    )
    assert known < (0.3 if hints else WITHIN)


async def test_a_recovery_seen_by_one_node_is_every_nodes(house: House) -> None:
    (only, *_) = house.credentials()
    nodes = [await house.node(credentials=[only]) for _ in range(3)]
    clients = [await house.connected(node) for node in nodes]
    house.sim.faults.set("A", "usage_limit_reached", resets_in=1, times=1)
    assert not (await clients[0].turn("one")).ok
    await wait_until(lambda: all(held_against(node) == {"group:A": "exhausted"} for node in nodes))

    again = await asyncio.gather(*(client.turn("one") for client in clients))

    assert all(turn.ok for turn in again), [turn.error for turn in again]
    await wait_until(lambda: not any("exhausted" in held_against(node).values() for node in nodes), within=WITHIN)


async def test_what_was_learnt_about_a_secret_says_nothing_about_the_next(house: House) -> None:
    one = await house.node()
    client = await house.connected(one)
    house.sim.faults.set("A", "token_revoked")
    assert (await client.turn("one")).ok
    await wait_until(lambda: held_against(one) == {"credential:A": "revoked"})
    (old, *_) = house.credentials()
    rotated = replace(old, secret=type(old.secret)("sk-another"))

    board = one.node.health
    assert not board.snapshot.verdict(old, "sim-1", board.now()).usable
    assert board.snapshot.verdict(rotated, "sim-1", board.now()).rank == 0


# --- the reset that many wait for ---


async def test_one_request_tries_what_has_run_out_and_the_others_come_back_little_by_little(house: House) -> None:
    (only, *_) = house.credentials()
    nodes = [await house.node(credentials=[only]) for _ in range(3)]
    clients = [await house.connected(nodes[i % 3]) for i in range(60)]
    reset = time.time() + 1.5
    house.sim.faults.set("A", "usage_limit_reached", resets_at=reset, until=reset)
    assert not (await clients[0].turn("one")).ok
    await wait_until(lambda: all(held_against(node) for node in nodes))

    turns = await asyncio.gather(*(client.turn("one [[slow:30]]") for client in clients))

    assert all(turn.ok for turn in turns), [turn.error for turn in turns if not turn.ok][:3]
    starts = sorted(t.started for t in house.sim.turns if t.started > reset - 0.2)
    assert len(starts) == 60, "nobody was sent upstream twice"
    first = starts[0]
    # the one that tries answers after its first delta; what follows may double in each pace, from one on
    pace = 0.1
    for at, started in enumerate(starts[1:], start=1):
        allowed = 1 + 2 ** ((started - first) / pace + 1)
        assert at <= allowed + 1, f"{at} turns {started - first:.3f} s after the first"
    assert starts[-1] - first > 4 * pace


async def test_a_waiting_turn_takes_no_more_licences_than_it_can_use(house: House) -> None:
    one, two = [await house.node() for _ in range(2)]
    first, second = await house.connected(one), await house.connected(two)
    for name in "ABC":
        house.sim.faults.set(name, "usage_limit_reached", resets_in=1, times=1)
    assert not (await first.turn("one")).ok
    await wait_until(lambda: two.node.placement.usable() == 3, within=3.0)
    for name in "ABC":
        house.sim.faults.set(name, "server_error", do="silence", times=1)
    before = len(house.sim.turns)
    tries = [asyncio.create_task(first.turn("two", parent=None))]
    await wait_until(lambda: len(house.sim.turns) == before + 1)

    tries.append(asyncio.create_task(second.turn("two", parent=None)))

    await wait_until(lambda: len(house.sim.turns) == before + 2, within=1.0)
    for trying in tries:
        trying.cancel()
    await asyncio.wait(tries)


async def test_goes_on_trying_when_the_node_that_holds_the_licence_says_nothing_more(house: House) -> None:
    (only, *_) = house.credentials()
    one, two = [await house.node(credentials=[only]) for _ in range(2)]
    client, other = await house.connected(one), await house.connected(two)
    house.sim.faults.set("A", "usage_limit_reached", resets_in=1, times=1)
    assert not (await client.turn("one")).ok
    await wait_until(lambda: all(held_against(node) for node in (one, two)))
    row = next(iter(one.node.health.snapshot.rows.values()))
    # somebody takes the licence, and dies
    assert await one.node.placement.licences._store.license(row, "somebody who has died", 2.0)

    began = time.monotonic()
    turn = await other.turn("one")

    assert turn.ok, turn.error
    assert 0.8 < time.monotonic() - began < 4.0


async def test_a_model_that_cooled_is_taken_up_again_without_a_worker(house: House) -> None:
    node = await house.node(credentials=level(house.credentials()[:2]))
    house.sim.faults.set("A", "rate_limit_exceeded", times=1)
    while "cooling" not in held_against(node).values():
        await opened(house, [node], 1)
    began = time.time()

    async def back() -> None:
        while not served(house, began)["A"]:
            await opened(house, [node], 1)
            await asyncio.sleep(0.1)

    await asyncio.wait_for(back(), 12.0)


# --- caps ---


async def test_a_cap_holds_over_all_nodes(house: House) -> None:
    (only, *_) = house.credentials()
    nodes = [await house.node(credentials=[replace(only, max_in_flight=4)]) for _ in range(3)]
    clients = [await house.connected(nodes[i % 3]) for i in range(24)]

    turns = await asyncio.gather(*(client.turn("one [[deltas:3]] [[slow:20]]") for client in clients))

    assert all(turn.ok for turn in turns), [turn.error for turn in turns if not turn.ok][:3]
    assert most_at_once(house) == 4


async def test_a_node_that_is_always_busy_leaves_others_their_part(house: House) -> None:
    (only, *_) = house.credentials()
    pool, placing = [replace(only, max_in_flight=4)], Placing(wait=4.0)
    one, two = [await house.node(credentials=pool, placing=placing) for _ in range(2)]
    many = [await house.connected(one) for _ in range(12)]
    few = [await house.connected(two) for _ in range(2)]
    ends = time.monotonic() + 6.0
    done: Counter[str] = Counter()

    async def works(client: SessionClient, whose: str) -> None:
        while time.monotonic() < ends:
            turn = await client.turn("again [[deltas:4]] [[slow:30]]", parent=None)
            assert turn.ok, turn.error
            done[whose] += 1

    busy = [asyncio.create_task(works(client, "many")) for client in many]
    await wait_until(lambda: done["many"] > 12)
    await asyncio.gather(*busy, *(works(client, "few") for client in few))

    assert done["few"] > done["many"] / 6, done
    assert most_at_once(house) == 4


async def test_a_cap_holds_while_slots_go_from_node_to_node(house: House) -> None:
    (only, *_) = house.credentials()
    nodes = [await house.node(credentials=[replace(only, max_in_flight=4)]) for _ in range(3)]
    clients = [await house.connected(nodes[i % 3]) for i in range(18)]
    ends = time.monotonic() + 4.0

    async def works(client: SessionClient, number: int) -> None:
        while time.monotonic() < ends:
            turn = await client.turn("again [[deltas:2]] [[slow:3]]")
            assert turn.ok, turn.error
            # nodes are busy and idle by turns, so slots are claimed and given back all the time
            await asyncio.sleep(0.15 * ((number + int(time.monotonic() * 3)) % 3))

    await asyncio.gather(*(works(client, number) for number, client in enumerate(clients)))

    assert len(house.sim.turns) > 100
    assert most_at_once(house) == 4


def most_at_once(house: House) -> int:
    marks = sorted(
        [(t.started, 1) for t in house.sim.turns] + [(t.ended or 0.0, -1) for t in house.sim.turns], key=lambda m: m
    )
    most = running = 0
    for _, step in marks:
        running += step
        most = max(most, running)
    return most


async def test_the_slots_of_a_node_that_was_cut_off_are_free_again_in_seconds(house: House) -> None:
    (only, *_) = house.credentials()
    capped = replace(only, max_in_flight=2)
    one, two = [await house.node(credentials=[capped]) for _ in range(2)]
    dead = one.node.placement.allotment._store
    assert (await dead.claim("A", "a node that has died", 2, used=2, cap=2, lasting=1.5)).held == 2
    client = await house.connected(two)

    began = time.monotonic()
    turn = await client.turn("one")

    assert turn.ok, turn.error
    assert 0.5 < time.monotonic() - began < 4.0


async def test_another_credential_serves_when_one_is_at_its_cap(house: House) -> None:
    pool = level(house.credentials()[:2])
    pool[0] = replace(pool[0], max_in_flight=1, priority=-1)
    node = await house.node(credentials=pool)
    clients = [await house.connected(node) for _ in range(4)]
    turns = await asyncio.gather(*(client.turn("one [[deltas:3]] [[slow:30]]") for client in clients))
    assert all(turn.ok for turn in turns)
    assert served(house) == {"A": 1, "B": 3}


# --- how load is shared ---


@pytest.mark.parametrize(
    "weights", [{"A": 1.0, "B": 1.0, "C": 1.0}, {"A": 2.0, "B": 1.0, "C": 1.0}, {"A": 5.0, "B": 3.0, "C": 2.0}]
)
async def test_sixty_sessions_on_three_nodes_are_spread_by_weight(house: House, weights: dict[str, float]) -> None:
    nodes = [await house.node(credentials=level(house.credentials(), **weights)) for _ in range(3)]
    for start in range(0, 60, 6):
        await opened(house, nodes, 6)
        # the nodes hear of each other's load by heartbeats
        for node in nodes:
            await node.node._nodes.beat(node.node.name, node.node.load())
        for node in nodes:
            await node.node.health.refresh()
        assert sum(served(house).values()) == start + 6
    total = sum(weights.values())
    for name, weight in weights.items():
        share = served(house)[name] / 60
        assert abs(share - weight / total) <= 0.1 * weight / total + 1 / 60, served(house)


async def test_a_credential_that_joins_takes_new_sessions_and_moves_nobody(house: House) -> None:
    node = await house.node(credentials=level(house.credentials()[:2]))
    clients = await opened(house, [node], 12)
    before = {client: (await house.session(client)).pin for client in clients}

    node.node.placement.adopt(level(house.credentials()))
    fresh = [(await opened(house, [node], 1))[0] for _ in range(24)]
    for turn in await asyncio.gather(*(client.turn("two") for client in clients)):
        assert turn.ok

    assert {client: (await house.session(client)).pin for client in clients} == before
    sessions = [await house.session(client) for client in fresh]
    pins = Counter(session.pin.credential for session in sessions if session.pin is not None)
    assert pins["C"] >= 7, "whenever it is one of the two drawn, until it has as many as the others"


async def test_a_credential_that_leaves_moves_its_own_sessions_and_nobody_else(house: House) -> None:
    node = await house.node(credentials=level(house.credentials()))
    clients = await opened(house, [node], 15)
    before = {client: (await house.session(client)).pin for client in clients}
    leaving = {client for client, pin in before.items() if pin is not None and pin.credential == "B"}
    assert leaving

    node.node.placement.adopt([c for c in level(house.credentials()) if c.name != "B"])
    for turn in await asyncio.gather(*(client.turn("two") for client in clients)):
        assert turn.ok

    after = {client: (await house.session(client)).pin for client in clients}
    assert {client for client in clients if after[client] != before[client]} == leaving
    assert all(pin is not None and pin.credential != "B" for pin in after.values())


async def test_fills_the_first_first_when_told_so(house: House) -> None:
    pool = level(house.credentials())
    pool[0] = replace(pool[0], max_in_flight=2)
    node = await house.node(credentials=pool, placing=Placing(Strategy.FILL_FIRST))
    clients = [await house.connected(node) for _ in range(5)]
    turns = await asyncio.gather(*(client.turn("one [[deltas:3]] [[slow:30]]") for client in clients))
    assert all(turn.ok for turn in turns)
    assert served(house) == {"A": 2, "B": 3}


# --- limits that are nearly used up ---


async def test_new_sessions_stay_away_from_limits_that_are_nearly_used_up(house: House) -> None:
    one, two = [await house.node(credentials=level(house.credentials()[:2])) for _ in range(2)]
    house.sim.tell_limits("A", used_percent=97, resets_at=time.time() + 3600, style="none")
    pinned = None
    while pinned is None:
        client = await house.connected(one)
        assert (await client.turn("one")).ok
        if house.sim.turns[-1].credential == "A":
            pinned = client
    await wait_until(lambda: bool(two.node.health.snapshot.limits), within=WITHIN)

    began = time.time()
    await opened(house, [one, two], 8)
    assert served(house, began) == {"B": 8}
    assert (await pinned.turn("two")).ok
    assert house.sim.turns[-1].credential == "A", "who is there already stays until it is refused"


async def test_headers_at_the_door_tell_of_limits_too(house: House) -> None:
    node = await house.node(credentials=level(house.credentials()[:2]))
    house.sim.tell_limits("A", used_percent=99, resets_at=time.time() + 3600, style="x-codex", frames=False)
    for _ in range(8):
        await opened(house, [node], 1)
    assert served(house)["A"] <= 1


# --- votes ---


async def test_one_poisonous_request_and_fifty_credentials(build: object) -> None:
    house: House = await build({f"c{i}": f"org-{i}" for i in range(50)})  # type: ignore[operator]
    one, two = await house.node(), await house.node()
    client = await house.connected(one)
    house.sim.faults.set("*", "forbidden_generic", when="poison")

    turn = await client.turn("poison")

    assert turn.error is not None and turn.error["status"] == 403
    assert len(house.sim.turns) == 2
    for node in (one, two):
        await node.node.health.refresh()
        assert held_against(node) == {}


async def test_a_thousand_poisonous_requests_disable_nobody(build: object) -> None:
    house: House = await build({f"c{i}": f"org-{i}" for i in range(10)})  # type: ignore[operator]
    nodes = [await house.node(credentials=level(house.credentials())) for _ in range(2)]
    clients = [await house.connected(nodes[i % 2]) for i in range(20)]
    for fault, word in (("forbidden_generic", "poison-a"), ("unauthorized_generic", "poison-b")):
        house.sim.faults.add("*", fault, when=word)
    house.sim.faults.add("*", "model_not_found", when="poison-c")
    house.sim.faults.add("*", "server_error", when="poison-d", do="reset")

    async def poisons(client: SessionClient, number: int) -> None:
        for i in range(50):
            await client.turn(f"poison-{'abcd'[(i + number) % 4]} {number} {i}", parent=None)

    await asyncio.gather(*(poisons(client, number) for number, client in enumerate(clients)))

    for node in nodes:
        await node.node.health.refresh()
        health = node.node.health
        assert all(health.snapshot.verdict(c, "sim-1", health.now()).usable for c in node.node.placement.pool), (
            held_against(node)
        )
    good = await house.connected(nodes[0])
    assert (await good.turn("harmless")).ok
