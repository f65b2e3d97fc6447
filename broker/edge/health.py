"""The node's view of health: the local copy of the shared table, what runs where, and what is reported."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

from broker.domain.blame import blame
from broker.domain.credential import Credential
from broker.domain.events import NonePlaced, Placed
from broker.domain.failure import Effect, Failure
from broker.domain.health import AuthHealth, HealthReport, HealthSnapshot, HealthState, merge
from broker.domain.selection import Candidate, Wish, keep, select
from broker.metrics import Metrics
from broker.store.connection import StoreUnavailable
from broker.store.health import HealthStore

log = logging.getLogger(__name__)


TRIAL_EVERY = 5.0
"""Seconds between two trials of a credential that is blocked on evidence, when nobody else is left."""

_ON_EVIDENCE = frozenset({HealthState.COOLING.value, HealthState.EXHAUSTED.value, HealthState.REVOKED.value})


class HealthBoard:
    """Places turns by the local snapshot and reports outcomes; neither makes a turn wait for the store.

    A report takes effect on this node at once and on the others with their next refresh.
    """

    def __init__(
        self, pool: Sequence[Credential], store: HealthStore, metrics: Metrics, *, refresh: float, chance: random.Random
    ) -> None:
        self.pool = pool
        self._by_name = {credential.name: credential for credential in pool}
        self.snapshot = HealthSnapshot()
        self.in_flight: Counter[str] = Counter()
        self._store = store
        self._metrics = metrics
        self._refresh = refresh
        self._chance = chance
        self._streaks: Counter[str] = Counter()
        self._offset = 0.0
        self._reports: set[asyncio.Task[None]] = set()
        self._untold: dict[str, HealthReport] = {}
        self._tried: dict[str, float] = {}
        self._refresher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the table once, if the store is there, and keep it fresh."""
        await self.refresh()
        self._refresher = asyncio.create_task(self._keep_fresh(), name="health")

    async def stop(self) -> None:
        """End the refresher; reports under way are given a second."""
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait([self._refresher])
        if self._reports:
            await asyncio.wait(self._reports, timeout=1.0)

    def adopt(self, pool: Sequence[Credential]) -> None:
        """Place turns on these credentials from now on; turns that run are not touched."""
        self.pool = pool
        self._by_name = {credential.name: credential for credential in pool}

    def now(self) -> float:
        """The store's clock as far as this node knows it, in seconds."""
        return time.time() + self._offset

    # --- placing ---

    def place(self, wish: Wish) -> Placed | NonePlaced:
        """Choose a credential for a turn; answers from memory."""
        now = self.now()
        pinned = self._by_name.get(wish.preferred) if wish.preferred is not None else None
        if pinned is not None and keep(pinned, self.snapshot, self.in_flight, wish, now=now):
            return Placed(pinned, "")
        choice = select(self.pool, self.snapshot, self.in_flight, wish, now=now, chance=self._chance.random())
        if choice.credential is not None:
            return Placed(choice.credential, f"{self._chance.getrandbits(128):032x}")
        if (trial := self._trial(choice.candidates, now)) is not None:
            return Placed(trial, f"{self._chance.getrandbits(128):032x}")
        # why a credential is out although it was tried in this turn is written in its row
        reasons = {
            c.verdict.row.state.value
            if c.passed_over == "tried" and c.verdict.row and not c.verdict.usable
            else c.passed_over
            for c in choice.candidates
        }
        able = [c.credential for c in choice.candidates if c.passed_over not in ("model", "boundary")]
        return NonePlaced(frozenset(reasons), self.snapshot.earliest_reset(able, wish.model, now), now)

    def _trial(self, candidates: Sequence[Candidate], now: float) -> Credential | None:
        """With nobody left, one blocked credential is tried now and then, unless a vendor named the end of its block.

        A mistake that took the whole pool out is then over within seconds of its cause, and not with the last block.
        """
        for candidate in candidates:
            row, name = candidate.verdict.row, candidate.credential.name
            if candidate.passed_over not in _ON_EVIDENCE or row is None or row.told:
                continue
            if now - max(row.since, self._tried.get(name, 0.0)) >= TRIAL_EVERY:
                self._tried[name] = now
                return candidate.credential
        return None

    def usable(self) -> int:
        """How many credentials could serve some turn right now."""
        now = self.now()
        return sum(self.snapshot.verdict(credential, "", now).usable for credential in self.pool)

    def ailing(self, credential: Credential, model: str) -> list[AuthHealth]:
        """What is held against a credential now; a turn that succeeds disproves these rows and no newer ones."""
        return self.snapshot.ailing(credential, model)

    # --- reporting ---

    def blame(self, credential: Credential, failure: Failure, model: str, *, confirmed: bool, evidence: str) -> None:
        """Report a failure, as far as it says something about the credential."""
        if failure.row.effect is Effect.SUSPECT_BY_STREAK and not failure.orderly:
            self._streaks[credential.name] += 1
        report = blame(
            failure,
            credential,
            model,
            confirmed=confirmed,
            streak=self._streaks[credential.name],
            evidence=evidence,
            now=self.now(),
            chance=self._chance.random(),
        )
        if report is not None:
            self._report(report)

    def absolve(self, credential: Credential, disproved: Sequence[AuthHealth]) -> None:
        """A turn of this credential ended well; nothing is reported unless something was held against it."""
        self._streaks.pop(credential.name, None)
        for row in disproved:
            if self.snapshot.rows.get(row.subject) == row:
                self._report(HealthReport(row.subject, HealthState.HEALTHY, because="served", version=row.version))

    def _report(self, report: HealthReport) -> None:
        now = self.now()
        before = self.snapshot.rows.get(report.subject)
        row = merge(before, report, now)
        if row == before:
            return
        self.snapshot.put(row)
        log.info("health", extra={"reason": report.because, "kind": report.subject, "outcome": row.state.value})
        self._metrics.health_reports.inc(report.state.value)
        self._run(self._tell(report))

    async def _tell(self, report: HealthReport) -> None:
        try:
            row = await self._store.report(report)
        except StoreUnavailable as error:
            # the local row holds; the others hear of it when the store is back
            self._untold[report.subject] = report
            self._metrics.store_errors.inc(error.reason)
            return
        self._untold.pop(report.subject, None)
        known = self.snapshot.rows.get(row.subject)
        if known is None or row.version >= known.version:
            self.snapshot.put(row)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name="health-report")
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    # --- staying fresh ---

    async def refresh(self) -> None:
        """Take over the shared table; without a store the local copy goes on."""
        for report in list(self._untold.values()):
            await self._tell(report)
        if self._untold:
            return
        under_way = bool(self._reports)
        try:
            rows, store_now = await self._store.snapshot()
        except StoreUnavailable as error:
            self._metrics.store_errors.inc(error.reason)
            return
        self._offset = store_now - time.time()
        if not under_way and not self._reports:
            # with a report under way the table may be older than what this node has just learned
            self.snapshot.replace(rows)
        self._show()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._refresh * (0.8 + 0.4 * self._chance.random()))
            await self.refresh()

    def _show(self) -> None:
        now = self.now()
        for credential in self.pool:
            verdict = self.snapshot.verdict(credential, "", now)
            for state in HealthState:
                blocked = not verdict.usable and verdict.row is not None and verdict.row.state is state
                self._metrics.health_state.labels(credential.name, state.value).set(blocked)
