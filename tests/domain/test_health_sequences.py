"""Random histories of reports, late, doubled, out of order and by clocks that differ, against what must hold.

The oracle keeps what was said, in plain lists, and never calls `merge`. Where the rule leaves room (how long exactly a
block is that came back), it gives bounds. All nodes must come to one and the same answer in the end.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from broker.domain.health import (
    BLOCKING,
    CALM,
    OUT,
    AuthHealth,
    HealthReport,
    HealthState,
    credential_subject,
    group_subject,
    merge,
)
from broker.domain.snapshot import HealthSnapshot
from tests.domain.playbook import credential

S = HealthState
KEY = credential("k", limit_group="team")
WEEK = 7 * 86400.0
FOR_EVER = 1e18
GRAVE = [S.HEALTHY, S.SUSPECT, S.COOLING, S.EXHAUSTED, S.REVOKED, S.PAUSED]
DWELLS = (5.0, 5.0, 25.0, 125.0, 625.0, 3125.0, 3600.0, 3600.0, 3600.0)


@dataclass(frozen=True)
class Claim:
    """One piece of evidence: how grave, how sure, and between which two times it may end."""

    weight: tuple[int, bool, bool]
    earliest: float
    latest: float


@dataclass
class Oracle:
    """What one row must be, by all that was said about it so far."""

    now: float = 0.0
    claims: list[Claim] = field(default_factory=list)
    ran_out: list[float] = field(default_factory=list)
    cleared: float = 0.0
    returned: float = 0.0
    pace: float = 0.0
    strikes: int = 0
    trust: float = 0.0
    taken_out: list[float] = field(default_factory=list)
    by_hand: bool = False

    def check(self, report: HealthReport, now: float, before: AuthHealth, after: AuthHealth) -> None:
        """Whether `after` is what `report` must make of `before`."""
        self.now = now
        changed = after != before
        assert after.version == before.version + changed
        assert not changed or after.since == now
        if report.state is not S.HEALTHY:
            self._failed(report, now, before, after)
        elif report.retracts:
            self._retracted(report, before, after)
        else:
            self._recovered(report, now, before, after)
        self._always(now, after)

    def _always(self, now: float, row: AuthHealth) -> None:
        assert row.state in (S.PAUSED, S.HEALTHY) or 0 < row.until <= now + WEEK
        assert row.state is not S.HEALTHY or row.until == 0
        assert (row.cleared, row.returned, row.pace) == (self.cleared, self.returned, self.pace)
        assert row.trust == self.trust
        assert self.by_hand or _most_within_an_hour(self.taken_out) <= 6

    # --- trouble ---

    def _failed(self, report: HealthReport, now: float, before: AuthHealth, after: AuthHealth) -> None:
        over = 0 < before.until <= now
        again = over and before.state in OUT and report.began >= before.until
        if before.state not in OUT:
            self.ran_out = []  # a pause between them, and it is another story
        claim = self._claim(report, now, again)
        if 0 < report.began < self.cleared or claim.latest <= now:
            assert after is before, "what is void or past says nothing"
            return
        if claim.earliest <= now and after is before:
            return
        if over or before.state is S.HEALTHY:
            if before.state in OUT and report.state not in BLOCKING:
                assert after is before, "doubt is no answer to a block that ran out"
                return
            self.claims = []
        self.claims.append(claim)
        heaviest = max(each.weight for each in self.claims)
        rivals = [each for each in self.claims if each.weight == heaviest]
        assert (GRAVE.index(after.state), not after.soft, after.told or after.state is S.PAUSED) == heaviest
        least, most = max(each.earliest for each in rivals), max(each.latest for each in rivals)
        assert least <= (after.until or FOR_EVER) <= most, (least - now, after.until - now, most - now)
        if after is not before:
            self._changed(report, now, before, again)

    def _changed(self, report: HealthReport, now: float, before: AuthHealth, again: bool) -> None:
        if again:
            self.ran_out.append(before.until)
        if report.state in OUT:
            if before.state not in OUT:
                if now - self.returned >= CALM:
                    self.strikes = 0
                self.strikes = min(self.strikes + 1, 8)
                if before.state is S.HEALTHY or before.until <= now:
                    self.taken_out.append(now)
            self.trust = now + DWELLS[self.strikes]

    def _claim(self, report: HealthReport, now: float, again: bool) -> Claim:
        if report.state is S.PAUSED:
            end = report.until or FOR_EVER
            return Claim((5, not report.soft, True), end, end)
        if report.until is not None:
            end = min(report.until, now + WEEK)
            return Claim((GRAVE.index(report.state), not report.soft, end == report.until), end, end)
        seen = now if not report.at else min(report.at, now)
        doubled = report.lasting * 2 ** (sum(end <= report.began for end in self.ran_out) + again)
        longest = report.lasting if doubled == report.lasting else max(report.lasting, min(doubled, report.at_most))
        plain, most = min(seen + report.lasting, now + WEEK), min(seen + longest, now + WEEK)
        return Claim((GRAVE.index(report.state), not report.soft, False), most if again else plain, most)

    # --- recovery ---

    def _recovered(self, report: HealthReport, now: float, before: AuthHealth, after: AuthHealth) -> None:
        if before.state is S.HEALTHY or report.version != before.version:
            assert after is before, "a recovery clears what it has seen, and nothing newer"
            return
        if before.state is S.PAUSED and not report.operator:
            assert after is before, "only a person ends a pause"
            return
        on_trial = now < self.trust and not report.operator
        if on_trial and before.state is S.SUSPECT and before.until >= self.trust:
            assert after is before, "it is on trial already"
            return
        assert after.state is (S.SUSPECT if on_trial else S.HEALTHY)
        assert after.until == (self.trust if on_trial else 0)
        assert (after.told, after.soft, after.level) == (False, False, 0)
        self.by_hand = self.by_hand or report.operator
        if before.state in BLOCKING:
            self.returned, self.pace = now, max(0.1, min(1.0, (now - before.since) / 30))
            assert after.pace == pytest.approx(self.pace)
            self.pace = after.pace
        self.cleared = now
        self.ran_out = []
        self.claims = [Claim((1, True, False), self.trust, self.trust)] if on_trial else []

    def _retracted(self, report: HealthReport, before: AuthHealth, after: AuthHealth) -> None:
        if before.state is S.SUSPECT and before.evidence == report.evidence:
            assert (after.state, after.until, after.level) == (S.HEALTHY, 0, 0)
            self.claims = []
        else:
            assert after is before, "only the doubt that it cast itself is taken back"


def _most_within_an_hour(times: list[float]) -> int:
    return max((sum(first <= each < first + 3600 for each in times) for first in times), default=0)


def standing(rows: list[AuthHealth], now: float) -> tuple[str, int]:
    """How a credential with these rows stands, in plain words: (blocked, half_open or usable, rank)."""
    out = [r for r in rows if r.state in (S.COOLING, S.EXHAUSTED, S.REVOKED, S.PAUSED)]
    running = [r for r in out if r.until == 0 or r.until > now]
    out = [r for r in out if r.state is not S.PAUSED]
    if any(not r.soft for r in running):
        return "blocked", -1
    if any(not r.soft for r in out):
        return "half_open", -1
    if running:
        return "usable", 3
    return "usable", int(bool(out) or any(r.state is S.SUSPECT and r.until > now for r in rows))


# --- a cluster whose messages do as they like ---


class Cluster:
    """One table, three nodes with clocks of their own, and whatever can happen to a message between them."""

    def __init__(self, chance: random.Random, seen: Counter[str]) -> None:
        self.chance, self.seen = chance, seen
        self.table: dict[str, AuthHealth] = {}
        self.oracles = {subject: Oracle() for subject in (credential_subject(KEY), group_subject(KEY))}
        self.nodes = [HealthSnapshot() for _ in range(3)]
        self.skew = [chance.uniform(-2, 2) for _ in self.nodes]
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.doubts: list[str] = []
        self.count = 0

    def at(self, when: float, what: Callable[[float], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what))

    def run(self) -> float:
        now = 1_000_000.0
        for _ in range(self.chance.randint(3, 12)):
            now += self.chance.choice((0.0, 0.01, 0.5, 3.0, 20.0, 90.0, 400.0, 4000.0)) * self.chance.random()
            self.at(now, self._acts)
        last = now
        while self.events:
            last, _, what = heapq.heappop(self.events)
            what(last)
        return last

    def _acts(self, now: float) -> None:
        node = self.chance.randrange(3)
        subject = self.chance.choice(list(self.oracles))
        local = now + self.skew[node]
        kind = self.chance.choices(("fails", "serves", "retracts", "pauses", "resumes"), (10, 6, 2, 0.4, 0.4))[0]
        self.count += 1
        row = self.nodes[node].rows.get(subject)
        version = row.version if row is not None else 0
        report = HealthReport(subject, S.HEALTHY, evidence=f"e{self.count}", version=version)
        if kind == "fails":
            report = self._failure(subject, local)
        elif kind == "retracts":
            evidence = self.chance.choice(self.doubts) if self.doubts else ""
            report = HealthReport(subject, S.HEALTHY, evidence=evidence, retracts=True)
        elif kind == "pauses":
            report = HealthReport(subject, S.PAUSED, until=self.chance.choice((None, local + 50)), operator=True)
        elif kind == "resumes":
            report = HealthReport(subject, S.HEALTHY, version=version, operator=True)
        self._send(node, report, now, local)

    def _failure(self, subject: str, local: float) -> HealthReport:
        chance = self.chance
        lasting, at_most = 0.0, 0.0
        soft, until = False, None
        if subject.startswith("credential") == (chance.random() < 0.8):
            state, lasting, at_most, soft = chance.choice(
                [(S.SUSPECT, 60.0, 0.0, True), (S.REVOKED, 30.0, 900.0, True), (S.REVOKED, 900.0, 0.0, False)]
            )
        else:
            state = chance.choice((S.COOLING, S.EXHAUSTED))
            lasting, at_most = ((2 * (1 + chance.random()), 60.0), (300.0, 3600.0))[state is S.EXHAUSTED]
            until = chance.choice((None, None, local + chance.choice((1.0, 9.0, 400.0, 2 * WEEK)) * chance.random()))
        began = local - chance.choice((0.0, 0.2, 5.0, 50.0)) * chance.random()
        evidence = f"e{self.count}"
        if state is S.SUSPECT:
            self.doubts.append(evidence)
        return HealthReport(
            subject,
            state,
            lasting,
            until,
            evidence=evidence,
            at=local,
            began=chance.choice((began, began, began, 0.0)),
            at_most=at_most,
            soft=soft,
        )

    def _send(self, node: int, report: HealthReport, now: float, local: float) -> None:
        snapshot = self.nodes[node]
        known = snapshot.rows.get(report.subject)
        if (row := merge(known, report, local)) is not known:
            snapshot.put(row)
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            self.at(now + self._delay(), lambda when: self._arrives(node, report, when))

    def _delay(self) -> float:
        return self.chance.choice((0.0, 0.001, 0.3, 8.0, 120.0, 1500.0)) * self.chance.random()

    def _arrives(self, node: int, report: HealthReport, now: float) -> None:
        before = self.table.get(report.subject, AuthHealth(report.subject, S.HEALTHY))
        after = merge(before, report, now)
        self.oracles[report.subject].check(report, now, before, after)
        self.seen[f"{before.state}>{after.state}" if after != before else f"{report.state} unchanged"] += 1
        if after.level:
            self.seen["level"] += 1
        if after != before:
            self.table[report.subject] = after
            assert merge(after, report, now) is after or report.state is not S.HEALTHY
            assert merge(after, report, now) == after, "what comes twice at once counts once"
            for other in range(3):
                for _ in range(self.chance.choice((0, 1, 1, 2))):
                    self.at(now + self._delay(), lambda when, to=other, row=after: self._hears(to, row))  # type: ignore[misc]
        self.at(now + self._delay(), lambda when: self.nodes[node].put(after))

    def _hears(self, node: int, row: AuthHealth) -> None:
        known = self.nodes[node].rows.get(row.subject)
        if known is None or known.version < row.version:
            self.nodes[node].put(row)

    def converges(self, last: float) -> None:
        """After a look at the table all nodes say the same, and what the evidence says, then and later."""
        for node in self.nodes:
            node.replace(self.table, last)
        ends = [row.until for row in self.table.values() if row.until > last]
        for now in (last, last + 0.05, last + 10, *ends, *(end - 0.001 for end in ends)):
            expected = standing(list(self.table.values()), now)
            for node in self.nodes:
                verdict = node.verdict(KEY, "m", now)
                kind = "usable" if verdict.usable else "half_open" if verdict.half_open else "blocked"
                assert (kind, -1 if verdict.rank is None else verdict.rank) == expected
                ramps = [o for o in self.oracles.values() if o.returned and now - o.returned < 10 * o.pace]
                assert (verdict.ramp is not None) == (bool(ramps) and verdict.usable)
        assert standing(list(self.table.values()), last + 2 * WEEK)[0] != "blocked" or any(
            row.state is S.PAUSED for row in self.table.values()
        )


@pytest.mark.timeout(3600)
def test_every_node_comes_to_what_the_evidence_says(pytestconfig: pytest.Config) -> None:
    seen: Counter[str] = Counter()
    for seed in range(pytestconfig.getoption("--sequences")):
        cluster = Cluster(random.Random(seed), seen)
        try:
            cluster.converges(cluster.run())
        except AssertionError as error:
            raise AssertionError(f"sequence {seed}") from error
        seen["sequences"] += 1
    print(dict(seen))
    # the sequences are worth something only where all of this has happened
    assert all(seen[f"{one}>{two}"] for one in GRAVE for two in GRAVE[1:-1] if GRAVE.index(one) < GRAVE.index(two))
    assert seen["level"] and seen["healthy unchanged"] and seen["cooling>suspect"] and seen["suspect>healthy"]
