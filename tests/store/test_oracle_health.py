"""Licences and claims against a plain Python model, through every order of acts of several nodes.

What ends by itself ends while we look, so the model knows until when something surely holds and from when on it surely
does not; between the two it takes the server's word.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from random import Random

import pytest

from broker.domain.health import AuthHealth, HealthReport, HealthState
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.health import HealthStore

SLACK = 0.003
"""Seconds by which the clocks of a server (milliseconds, cached) may differ from ours."""

SPANS = (0.004, 0.012, 60.0)
"""Some end while we look, others do not."""

ROW = HealthReport("credential:a@0", HealthState.COOLING, lasting=60.0)


@dataclass
class Span:
    """Something that holds for `lasting` from some moment between `asked` and `answered` on (our steady clock)."""

    asked: float
    answered: float
    lasting: float

    def surely(self, now: float) -> bool:
        return now < self.asked + self.lasting - SLACK

    def perhaps(self, now: float) -> bool:
        return now < self.answered + self.lasting + SLACK


def acts_of(engine: str) -> int:
    return 120 if engine == "fakeredis" else 800


# --- licences ---


@dataclass
class Held:
    token: str
    span: Span


@dataclass
class LicenceOracle:
    """Who holds the licence of each row."""

    versions: dict[str, int] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)

    def expects(self, act: str, subject: str, token: str, version: int, asked: float, answered: float) -> set[bool]:
        """The answers that are right."""
        holder = self.held.get(subject)
        mine = holder is not None and holder.token == token
        surely = holder is not None and holder.span.surely(answered)
        perhaps = holder is not None and holder.span.perhaps(asked)
        if act == "take":
            if self.versions.get(subject) != version or surely:
                return {False}
            return {True, False} if perhaps else {True}
        if not (mine and perhaps):
            return {False}
        return {True} if surely else {True, False}

    def learns(self, act: str, subject: str, token: str, answer: bool, span: Span) -> None:
        if answer and act == "drop":
            self.held.pop(subject, None)
        elif answer:
            self.held[subject] = Held(token, span)
        elif act != "take" and subject in self.held and self.held[subject].token == token:
            del self.held[subject]


@pytest.mark.parametrize("seed", range(3))
async def test_licences_agree_with_a_plain_model(connection: Connection, engine: str, seed: int) -> None:
    store, rng, oracle = HealthStore(connection), Random(seed), LicenceOracle()
    subjects, tokens = ["credential:a@0", "group:g", "model:a@0:m"], ["one", "two", "three", "four"]
    seen: set[tuple[str, bool]] = set()
    for round_ in range(acts_of(engine)):
        subject, token, lasting = rng.choice(subjects), rng.choice(tokens), rng.choice(SPANS)
        if rng.random() < 0.15:
            ruling = await store.report(HealthReport(subject, HealthState.COOLING, lasting=60.0 + round_))
            oracle.versions[subject] = ruling.row.version
        act = rng.choice(("take", "take", "keep", "drop"))
        holder = oracle.held.get(subject)
        if holder is not None and rng.random() < 0.4:
            token = holder.token
        version = oracle.versions.get(subject, 0) - rng.choice((0, 0, 0, 1))
        asked = time.monotonic()
        if act == "take":
            answer = await store.license(AuthHealth(subject, HealthState.COOLING, version=version), token, lasting)
        elif act == "keep":
            answer = await store.renew(subject, token, lasting)
        else:
            answer = await store.give_back(subject, token)
        answered = time.monotonic()
        assert answer in oracle.expects(act, subject, token, version, asked, answered), (round_, act, holder)
        oracle.learns(act, subject, token, answer, Span(asked, answered, lasting))
        seen.add((act, answer))
    assert len(seen) == 6
    for subject in subjects:
        (left,) = await connection.ask(command("PTTL", keys.health_licence(subject)))
        assert left == -2 or 0 <= left <= 60_000, "no licence is for ever"


async def due(store: HealthStore) -> AuthHealth:
    return (await store.report(ROW)).row


async def test_one_of_many_nodes_gets_the_licence(connection: Connection) -> None:
    store = HealthStore(connection)
    row = await due(store)
    granted = await asyncio.gather(*(store.license(row, f"node-{index}", 30.0) for index in range(40)))
    assert sum(granted) == 1
    holder = f"node-{granted.index(True)}"
    assert not await store.give_back(row.subject, "node-x")
    assert await store.renew(row.subject, holder, 30.0)
    assert await store.give_back(row.subject, holder)
    again = await asyncio.gather(*(store.license(row, f"node-{index}", 30.0) for index in range(5)))
    assert sum(again) == 1


async def test_a_licence_of_a_node_that_died_is_anothers_soon(connection: Connection) -> None:
    store = HealthStore(connection)
    row = await due(store)
    assert await store.license(row, "dead", 0.05)
    assert not await store.license(row, "alive", 30.0)
    async with asyncio.timeout(5):
        while not await store.license(row, "alive", 30.0):
            pass
    assert not await store.renew(row.subject, "dead", 30.0)
    assert not await store.give_back(row.subject, "dead")
    assert await store.renew(row.subject, "alive", 30.0)


async def test_a_licence_that_is_kept_goes_on(connection: Connection) -> None:
    store = HealthStore(connection)
    row = await due(store)
    assert await store.license(row, "one", 0.2)
    assert await store.renew(row.subject, "one", 60.0)
    (left,) = await connection.ask(command("PTTL", keys.health_licence(row.subject)))
    assert 50_000 < left <= 60_000


async def test_nobody_tries_a_row_that_has_changed_or_that_nobody_knows(connection: Connection) -> None:
    store = HealthStore(connection)
    row = await due(store)
    await store.report(HealthReport(row.subject, HealthState.HEALTHY, version=row.version, operator=True))
    assert not await store.license(row, "one", 30.0)
    assert not await store.license(AuthHealth("credential:b@0", HealthState.COOLING), "one", 30.0)
    assert not await store.license(AuthHealth("credential:b@0", HealthState.COOLING, version=1), "one", 30.0)


async def test_a_licence_for_one_row_is_none_for_another(connection: Connection) -> None:
    store = HealthStore(connection)
    first = await due(store)
    second = (await store.report(HealthReport("group:g", HealthState.COOLING, lasting=9.0))).row
    assert await store.license(first, "one", 30.0)
    assert await store.license(second, "two", 30.0)


# --- claims ---


NODES = ("one", "two", "three", "a:4")


@dataclass
class ClaimOracle:
    """How many slots each node holds."""

    held: dict[str, tuple[int, Span]] = field(default_factory=dict)

    def check(self, node: str, wanted: int, used: int, cap: int, answer: tuple[int, int], span: Span) -> None:
        others = [(slots, one) for name, (slots, one) in self.held.items() if name != node]
        least = sum(slots for slots, one in others if one.surely(span.answered))
        most = sum(slots for slots, one in others if one.perhaps(span.asked))
        mine, total = answer
        part = max(cap // len(NODES), 1)
        assert max(min(wanted, cap - most, part), used) <= mine <= max(min(wanted, cap - least), used)
        assert least <= total - mine <= most
        assert total <= cap or mine == used or mine == 0, "more than the cap only where turns run already"
        self.held[node] = (mine, span)


@pytest.mark.parametrize("lasting", SPANS)
async def test_claims_agree_with_a_plain_model(connection: Connection, engine: str, lasting: float) -> None:
    store, rng, oracle = HealthStore(connection), Random(int(lasting * 1000)), ClaimOracle()
    nodes, cap, full = NODES, 10, 0
    for _ in range(acts_of(engine)):
        node, wanted = rng.choice(nodes), rng.randrange(12)
        used = rng.choice((0, 0, rng.randrange(wanted + 1)))
        if rng.random() < 0.05:
            cap = rng.choice((5, 10, 12))
        asked = time.monotonic()
        answer = (await store.claim("c", node, wanted, used=used, cap=cap, lasting=lasting))[:2]
        oracle.check(node, wanted, used, cap, answer, Span(asked, time.monotonic(), lasting))
        full += answer[0] < wanted
        (left,) = await connection.ask(command("PTTL", keys.health_slots("c")))
        assert left == -2 or 0 <= left <= lasting * 2000 + 1
    assert full > 5


async def test_nodes_never_hold_more_than_the_cap_together_and_leave_nothing_unused(connection: Connection) -> None:
    store = HealthStore(connection)
    answers = await asyncio.gather(
        *(store.claim("c", f"node-{index}", 3, used=0, cap=10, lasting=30.0) for index in range(8))
    )
    assert [held for held, _, _ in answers] == [3, 3, 3, 1, 0, 0, 0, 0]
    assert [all_held for _, all_held, _ in answers] == [3, 6, 9, 10, 10, 10, 10, 10]
    assert (await store.claim("other", "node-0", 3, used=0, cap=10, lasting=30.0))[:2] == (3, 3)


async def test_a_claim_says_how_many_and_not_how_many_more(connection: Connection) -> None:
    store = HealthStore(connection)
    for _ in range(3):
        assert (await store.claim("c", "one", 4, used=1, cap=10, lasting=30.0))[:2] == (4, 4)
    assert (await store.claim("c", "one", 2, used=1, cap=10, lasting=30.0))[:2] == (2, 2)
    assert (await store.claim("c", "two", 9, used=0, cap=10, lasting=30.0))[:2] == (8, 10)
    assert (await store.claim("c", "one", 0, used=0, cap=10, lasting=30.0))[:2] == (0, 8)
    assert (await store.claim("c", "two", 0, used=0, cap=10, lasting=30.0))[:2] == (0, 0)
    (there,) = await connection.ask(command("EXISTS", keys.health_slots("c")))
    assert there == 0


async def test_what_is_in_use_is_held_although_its_claim_had_ended(connection: Connection) -> None:
    store = HealthStore(connection)
    assert (await store.claim("c", "paused", 6, used=6, cap=10, lasting=0.03))[:2] == (6, 6)
    async with asyncio.timeout(5):
        while (await store.claim("c", "other", 10, used=0, cap=10, lasting=30.0))[0] < 10:
            pass
    assert (await store.claim("c", "paused", 7, used=6, cap=10, lasting=30.0))[:2] == (6, 16)
    assert (await store.claim("c", "third", 5, used=0, cap=10, lasting=30.0))[:2] == (0, 16)
    assert (await store.claim("c", "other", 10, used=3, cap=10, lasting=30.0))[:2] == (4, 10)


async def test_the_slots_of_a_node_that_died_are_others_soon_and_not_before(connection: Connection) -> None:
    store, lasting = HealthStore(connection), 0.4
    asked = time.monotonic()
    assert (await store.claim("c", "dead", 9, used=9, cap=10, lasting=lasting))[:2] == (9, 9)
    answered = time.monotonic()
    async with asyncio.timeout(5):
        while (await store.claim("c", "alive", 5, used=0, cap=10, lasting=30.0))[:2] == (1, 10):
            assert time.monotonic() < answered + 2.5 * lasting
    assert time.monotonic() >= asked + lasting - SLACK
    assert (await store.claim("c", "alive", 5, used=0, cap=10, lasting=30.0))[:2] == (5, 5)
    (claims,) = await connection.ask(command("HKEYS", keys.health_slots("c")))
    assert claims == [b"alive"]


async def test_who_holds_all_is_told_its_part_as_soon_as_another_wants_some(connection: Connection) -> None:
    store = HealthStore(connection)
    assert await store.claim("c", "busy", 9, used=4, cap=4, lasting=30.0) == (4, 4, 4)
    assert await store.claim("c", "few", 1, used=0, cap=4, lasting=30.0) == (0, 4, 2)
    assert await store.claim("c", "busy", 9, used=4, cap=4, lasting=30.0) == (4, 4, 3), "the other wants but one"
    assert await store.claim("c", "busy", 9, used=3, cap=4, lasting=30.0) == (3, 3, 3)
    assert await store.claim("c", "few", 9, used=0, cap=4, lasting=30.0) == (1, 4, 2)
    assert await store.claim("c", "busy", 9, used=3, cap=4, lasting=30.0) == (3, 4, 2)


async def test_nobody_is_left_without_a_slot_where_there_are_more_nodes_than_slots(connection: Connection) -> None:
    store = HealthStore(connection)
    await store.claim("c", "one", 2, used=2, cap=2, lasting=30.0)
    for node in ("two", "three"):
        assert (await store.claim("c", node, 2, used=0, cap=2, lasting=30.0)).most == 1
