"""The node's view of health: the local copy of the shared table, what runs where, and what is reported."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.domain.blame import blame
from broker.domain.credential import Credential
from broker.domain.events import NonePlaced, Placed
from broker.domain.failure import Effect, Failure
from broker.domain.health import (
    BLOCKING,
    AuthHealth,
    HealthReport,
    HealthState,
    credential_subject,
    group_subject,
    limits_of,
    merge,
)
from broker.domain.limits import Limits
from broker.domain.probing import due
from broker.domain.selection import Candidate, Choice, Explained, Loads, Strategy, Wish, explain, keep, select
from broker.domain.snapshot import HealthSnapshot, Verdict
from broker.edge.allotment import Allotment
from broker.edge.licences import Licences
from broker.edge.waiting import Answered, Ticket, WaitingRoom
from broker.metrics import Metrics
from broker.store.health import HealthStore
from broker.store.nodes import NodeBeat, NodeStore
from broker.store.reasons import StoreUnavailable

log = logging.getLogger(__name__)


TRIAL_EVERY = 5.0
"""Seconds between two trials of a credential that is blocked until a time that we set ourselves, when nobody else is
left; and after which a block that has run out is tried by this node, if no worker has done so."""

REST = 2.0
"""Seconds for which one that is out on soft evidence rests when a turn of this node was placed on it."""

LIVE_WITHIN = 5.0
"""Seconds after its last heartbeat in which a node's load still counts."""

TOLD_EVERY = 1.0
"""Seconds between two writes of what a vendor says about one and the same limits."""


_NEVER = frozenset({"tried", "model", "boundary"})
"""Why one was passed over who will not serve this turn, however long it waits."""


@dataclass(frozen=True, slots=True)
class Placing:
    """How turns are placed: the strategy among equals, seconds a turn may wait for a credential, how many may wait."""

    strategy: Strategy = Strategy.LEAST_LOADED
    wait: float = 10.0
    waiting: int = 4096


class HealthBoard:
    """Places turns by the local snapshot and reports outcomes; neither makes a turn wait for the store.

    What is reported takes effect on this node at once; on the others as soon as the hint comes, and with their next
    refresh at the latest. A turn that nobody can serve now, but probably in a moment, may `wait`: for the end of a
    short block, for the one request that tries a credential whose block has run out, for its part of one that comes
    back slowly, for a slot where there is a cap.
    """

    def __init__(
        self,
        pool: Sequence[Credential],
        store: HealthStore,
        nodes: NodeStore,
        metrics: Metrics,
        *,
        node: str,
        refresh: float,
        chance: random.Random,
        placing: Placing | None = None,
        bound: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.placing = placing or Placing()
        self.snapshot = HealthSnapshot()
        self.in_flight: Counter[str] = Counter()
        self._node = node
        self._store = store
        self._nodes = nodes
        self._metrics = metrics
        self._refresh = refresh
        self._chance = chance
        self._bound = bound
        self._streaks: Counter[str] = Counter()
        self._offset = time.time() - time.monotonic()
        self._reports: set[asyncio.Task[None]] = set()
        self._landing: Counter[str] = Counter()
        self._untold: dict[str, HealthReport] = {}
        self._heard: set[str] = set()
        self._told: dict[str, tuple[float, Limits]] = {}
        self._refresher: asyncio.Task[None] | None = None
        self._turn = 0
        self._started: dict[str, int] = {}
        self._resting: dict[str, float] = {}
        self._total: Counter[str] = Counter()
        self._sessions: Counter[str] = Counter()
        self.waiting = WaitingRoom(
            self._place_waiting, self._refuse, patience=self.placing.wait, most=self.placing.waiting
        )
        self.licences = Licences(store, metrics, self.waiting.wake)
        self.allotment = Allotment(node, store, metrics, self.in_flight, self.waiting.wake)
        self.loads = Loads(
            self._total,
            self._sessions,
            self.in_flight,
            self.allotment.caps,
            self.licences.free,
            self._started,
            self._resting,
        )
        self.pool: Sequence[Credential] = ()
        self._by_name: dict[str, Credential] = {}
        self.adopt(pool)

    async def start(self) -> None:
        """Read the table once, if the store is there, and keep it fresh."""
        await self.refresh()
        self.licences.start()
        self._refresher = asyncio.create_task(self._keep_fresh(), name="health")

    async def stop(self) -> None:
        """End the refresher; reports under way are given a second."""
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait([self._refresher])
        await self.licences.stop()
        await self.allotment.stop()
        if self._reports:
            await asyncio.wait(self._reports, timeout=1.0)

    def adopt(self, pool: Sequence[Credential]) -> None:
        """Place turns on these credentials from now on; turns that run are not touched."""
        self.pool = tuple(pool)
        self._by_name = {credential.name: credential for credential in pool}
        self.waiting.wake()

    def now(self) -> float:
        """The store's clock as far as this node knows it, in seconds; steps of the node's own clock do not touch it."""
        return time.monotonic() + self._offset

    # --- placing ---

    def place(self, wish: Wish) -> Placed | NonePlaced | None:
        """Choose a credential for a turn; answers from memory. None: nobody now, but it is worth to `wait`."""
        pinned = self._by_name.get(wish.preferred) if wish.preferred is not None else None
        if pinned is not None and keep(pinned, self.snapshot, self.loads, wish, now=self.now()):
            if not self._has_room(pinned):
                return None
            if not self.snapshot.clear:
                self._count_start(self.snapshot.verdict(pinned, wish.model, self.now()))
            return self._seat(pinned, wish, "")
        if self.waiting.queues(wish):
            return None
        return self._place_waiting(wish)

    def wait(self, wish: Wish, then: Answered) -> Ticket | None:
        """Call `then` with the answer as soon as there is one, within `placing.wait`; None if too many wait."""
        self._metrics.waits.inc()
        return self.waiting.enter(wish, then)

    def refuse(self, wish: Wish) -> NonePlaced:
        """The answer to a turn that cannot wait."""
        return self._refuse(wish)

    def explain(self, wish: Wish) -> list[Explained]:
        """Who would serve such a turn now, and of every other one why not."""
        return explain(self._choose(wish), wish, self.placing.strategy)

    def usable(self) -> int:
        """How many credentials could serve some turn right now."""
        now = self.now()
        verdicts = (self.snapshot.verdict(credential, "", now) for credential in self.pool)
        return sum(verdict.usable or verdict.half_open for verdict in verdicts)

    def ailing(self, credential: Credential, model: str) -> list[AuthHealth]:
        """What is held against a credential now; a turn that succeeds disproves these rows and no newer ones."""
        return self.snapshot.ailing(credential, model)

    def engage(self, credential: Credential) -> None:
        """From its placement on, a turn counts as in flight on its credential."""
        self.in_flight[credential.name] += 1
        self._total[credential.name] += 1

    def release(self, credential: Credential, trial: str) -> None:
        """The turn is no longer on it; `trial` as it was placed."""
        self.in_flight[credential.name] -= 1
        self._total[credential.name] -= 1
        if trial:
            self.licences.over(trial)
        self.waiting.wake()

    def _choose(self, wish: Wish) -> Choice:
        self._turn += 1
        strategy = self.placing.strategy
        chance = self._turn if strategy is Strategy.ROUND_ROBIN else self._chance.getrandbits(64)
        return select(self.pool, self.snapshot, self.loads, wish, now=self.now(), chance=chance, strategy=strategy)

    def _place_waiting(self, wish: Wish) -> Placed | NonePlaced | None:
        choice = self._choose(wish)
        if (taken := choice.credential) is not None:
            if not self._has_room(taken):
                return None
            verdict = choice.candidates[0].verdict
            self._count_start(verdict)
            if verdict.row is not None and verdict.row.soft and verdict.row.state in BLOCKING:
                self._resting[taken.name] = self.now() + REST
            tried = verdict.row.subject if verdict.half_open and verdict.row is not None else ""
            return self._seat(taken, wish, self.licences.use(tried) if tried else "")
        return None if self._hopeful(choice.candidates) else self._none(choice.candidates, wish)

    def _count_start(self, verdict: Verdict) -> None:
        if verdict.ramp is not None:
            subject = verdict.ramp.subject
            self._started[subject] = self._started.get(subject, 0) + 1

    def _seat(self, credential: Credential, wish: Wish, trial: str) -> Placed:
        name = credential.name
        if name == wish.preferred:
            return Placed(credential, "", trial)
        self._sessions[name] += 1
        if wish.preferred is not None:
            self._sessions[wish.preferred] -= 1
        return Placed(credential, f"{self._chance.getrandbits(128):032x}", trial)

    def _has_room(self, credential: Credential) -> bool:
        return not credential.max_in_flight or self.allotment.has_room(credential, len(self.waiting))

    def _hopeful(self, candidates: Sequence[Candidate]) -> bool:
        """Whether one of them will probably serve in a moment; asks for the licence of who may be tried."""
        now = self.now()
        # all of them are asked, for whoever is tried first may fail
        promising = [self._promises(candidate, now) for candidate in candidates]
        return any(promising)

    def _promises(self, candidate: Candidate, now: float) -> bool:
        why, row = candidate.passed_over, candidate.verdict.row
        if why in ("busy", "ramping"):
            return True
        if row is None or why in _NEVER or row.state is HealthState.PAUSED:
            return False
        if why == "half_open":
            self.licences.wanted(row)
            return True
        if row.until and row.until - now <= self.placing.wait:
            return True
        if row.soft:
            return True  # it rests for a moment, and is then used again
        if row.told or now - row.since < TRIAL_EVERY:
            return False
        # with nobody left, an end that we set ourselves is looked at earlier: a mistake that took the whole pool out is
        # over soon after its cause. Where somebody else is at it, what comes of it is worth to wait for
        self.licences.wanted(row)
        return True

    def _refuse(self, wish: Wish) -> NonePlaced:
        return self._none(self._choose(wish).candidates, wish)

    def _none(self, candidates: Sequence[Candidate], wish: Wish) -> NonePlaced:
        # why a credential is out although it was tried in this turn is written in its row; one that was not passed over
        # had no slot left
        reasons = {
            c.verdict.row.state.value
            if c.passed_over == "tried" and c.verdict.row and not c.verdict.usable
            else c.passed_over or "busy"
            for c in candidates
        }
        able = [c.credential for c in candidates if c.passed_over not in ("model", "boundary")]
        now = self.now()
        return NonePlaced(frozenset(reasons), self.snapshot.earliest_reset(able, wish.model, now), now)

    # --- reporting ---

    def blame(
        self, credential: Credential, failure: Failure, model: str, *, confirmed: bool, evidence: str, began: float
    ) -> None:
        """Report a failure, as far as it says something about the credential; `began` as `now` was at its placement."""
        if failure.row.effect is Effect.SUSPECT_BY_STREAK and not failure.orderly:
            self._streaks[credential.key] += 1
        report = blame(
            failure,
            credential,
            model,
            confirmed=confirmed,
            streak=self._streaks[credential.key],
            evidence=evidence,
            began=began,
            now=self.now(),
            chance=self._chance.random(),
        )
        if report is not None:
            self._report(report)

    def retract(self, credential: Credential, evidence: str) -> None:
        """The doubt that this event cast on a credential was not its fault."""
        subject = credential_subject(credential)
        self._report(HealthReport(subject, HealthState.HEALTHY, because="retracted", evidence=evidence, retracts=True))

    def absolve(self, credential: Credential, disproved: Sequence[AuthHealth], evidence: str = "") -> None:
        """A turn of this credential is served; nothing is reported unless something was held against it."""
        self._streaks.pop(credential.key, None)
        for row in disproved:
            self._disprove(row, "served", evidence)

    def _disprove(self, row: AuthHealth, because: str, evidence: str) -> None:
        known = self.snapshot.rows.get(row.subject)
        if known is not None and known.version == row.version:
            self._report(
                HealthReport(row.subject, HealthState.HEALTHY, because=because, evidence=evidence, version=row.version)
            )

    def note_limits(self, credential: Credential, limits: Limits, disproved: Sequence[AuthHealth] = ()) -> None:
        """What the vendor says about the limits: new sessions stay away before they are used up, and what says that
        they are not used up ends a block for quota that was there before."""
        group = limits_of(credential)
        now = self.now()
        if limits.nearly_used(now):
            self.snapshot.limits[group] = limits
        else:
            self.snapshot.limits.pop(group, None)
            for row in disproved:
                if row.subject == group_subject(credential):
                    self._disprove(row, "fresh_limits", "")
        told_at, told = self._told.get(group, (0.0, None))
        crossed = told is None or told.nearly_used(now) != limits.nearly_used(now)
        moved = told is None or abs(told.used - limits.used) >= 0.01
        if crossed or (moved and now - told_at >= TOLD_EVERY):
            self._told[group] = (now, limits)
            self._run(self._tell_limits(group, limits))

    async def _tell_limits(self, group: str, limits: Limits) -> None:
        try:
            await self._store.note_limits(group, limits)
        except StoreUnavailable as error:
            self._told.pop(group, None)
            self._metrics.store_errors.inc(error.reason)

    def _report(self, report: HealthReport) -> None:
        before = self.snapshot.rows.get(report.subject)
        row = merge(before, report, self.now())
        if row is before or (before is None and row.version == 0):
            return
        log.info("health", extra={"reason": report.because, "kind": report.subject, "outcome": row.state.value})
        self._metrics.health_reports.inc(report.state.value)
        self._landing[report.subject] += 1
        self._take(row)
        self._run(self._tell(report))

    def _take(self, row: AuthHealth) -> None:
        """A row is as it is now, here or anywhere."""
        before = self.snapshot.rows.get(row.subject)
        self.snapshot.put(row)
        if before is None or before.returned != row.returned:
            self._started.pop(row.subject, None)
        if row.state not in BLOCKING or row.holds(self.now()):
            # the answer is there, whoever has found it
            self.licences.done(row.subject)
        self.waiting.wake()

    async def _tell(self, report: HealthReport) -> None:
        try:
            ruling = await self._store.report(report)
        except StoreUnavailable as error:
            # the local row holds; the others hear of it when the store is back
            self._untold[report.subject] = report
            self._metrics.store_errors.inc(error.reason)
            return
        finally:
            self._landed(report.subject)
        if self._untold.get(report.subject) == report:
            del self._untold[report.subject]
        if report.subject not in self._landing:
            self._take(ruling.row)

    def _landed(self, subject: str) -> None:
        self._landing[subject] -= 1
        if not self._landing[subject]:
            del self._landing[subject]

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name="health-report")
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    # --- staying fresh ---

    def hear(self, row: AuthHealth) -> None:
        """A row has changed somewhere. What this node is about to tell itself is not overwritten by it."""
        known = self.snapshot.rows.get(row.subject)
        if row.subject in self._landing or (known is not None and known.version >= row.version):
            return
        self._metrics.hints.inc()
        self._heard.add(row.subject)
        self._take(row)

    def refresh_soon(self) -> None:
        """Hints may have been missed."""
        self._run(self.refresh())

    async def refresh(self) -> None:
        """Take over the shared table, and what the other nodes run; without a store the local copy goes on."""
        for report in list(self._untold.values()):
            self._landing[report.subject] += 1
            await self._tell(report)
        try:
            beats = await self._nodes.nodes()
            self._heard.clear()
            table = await self._store.table()
        except StoreUnavailable as error:
            self._metrics.store_errors.inc(error.reason)
            self._show()
            return
        self._offset = table.now - time.monotonic()
        # a row that is about to be told, or could not be, or was heard of meanwhile, is newer here
        own = {s: self.snapshot.rows.get(s) for s in {*self._landing, *self._untold, *self._heard}}
        before = self.snapshot.rows
        self.snapshot.replace(table.rows, table.now)
        for subject, row in own.items():
            if row is not None:
                self.snapshot.rows[subject] = row
        self.snapshot.limits = {g: told for g, told in table.limits.items() if told.nearly_used(table.now)}
        self._count(beats)
        if before != self.snapshot.rows:
            self._settled(before)
            self.waiting.wake()
        self.allotment.settle(self._by_name)
        self._volunteer()
        self._show()

    def _settled(self, before: Mapping[str, AuthHealth]) -> None:
        now = self.now()
        for subject in list(self._started):
            row, known = self.snapshot.rows.get(subject), before.get(subject)
            if row is None or known is None or row.returned != known.returned:
                del self._started[subject]
        for subject in list(self.licences.free):
            row = self.snapshot.rows.get(subject)
            if row is None or row.state not in BLOCKING or (row != before.get(subject) and row.holds(now)):
                self.licences.done(subject)

    def _count(self, beats: Mapping[str, NodeBeat]) -> None:
        """What all nodes run together, and which part of what comes back slowly is this node's."""
        live = {n: b for n, b in beats.items() if b.age < LIVE_WITHIN and getattr(b, "role", "edge") == "edge"}
        others: Counter[str] = Counter()
        sessions = Counter(self._bound())
        for name, beat in live.items():
            if name != self._node:
                others.update(beat.load.get("in_flight", {}))
                sessions.update(beat.load.get("bound", {}))
        self._total.clear()
        self._total.update(others)
        self._total.update(self.in_flight)
        self._sessions.clear()
        self._sessions.update(sessions)
        names = sorted({*live, self._node})
        self.loads.share = self.allotment.share = (names.index(self._node), len(names))

    def _volunteer(self) -> None:
        """A block that ran out some time ago, and that no worker has looked into, is tried by a turn of this node."""
        now = self.now()
        for probe in due(self.snapshot.rows, self.pool, now):
            if probe.row.half_open(now) and now - probe.row.until > TRIAL_EVERY:
                self.licences.wanted(probe.row)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._refresh * (0.8 + 0.4 * self._chance.random()))
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - a node that no longer looks would be worse off than one that errs
                log.error("the health table could not be taken over", extra={"kind": type(error).__name__})

    def _show(self) -> None:
        now = self.now()
        for credential in self.pool:
            verdict = self.snapshot.verdict(credential, "", now)
            for state in HealthState:
                blocked = not verdict.usable and verdict.row is not None and verdict.row.state is state
                self._metrics.health_state.labels(credential.name, state.value).set(blocked)
