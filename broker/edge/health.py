"""The node's view of health: the local copy of the shared table, and what is reported to it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from broker.domain.blame import blame
from broker.domain.credential import Credential
from broker.domain.failure import Effect, Failure
from broker.domain.health import (
    AuthHealth,
    HealthReport,
    HealthState,
    credential_subject,
    group_subject,
    limits_of,
    merge,
)
from broker.domain.limits import Limits
from broker.domain.snapshot import HealthSnapshot
from broker.metrics import Metrics
from broker.store.health import HealthStore
from broker.store.nodes import NodeBeat, NodeStore
from broker.store.reasons import StoreUnavailable

log = logging.getLogger(__name__)


TOLD_EVERY = 1.0
"""Seconds between two writes of what a vendor says about one and the same limits."""


RowChanged = Callable[[AuthHealth | None, AuthHealth], None]
Refreshed = Callable[[Mapping[str, AuthHealth], Mapping[str, NodeBeat]], None]


class HealthBoard:
    """This node's copy of the health table, and its voice there; nothing here makes a turn wait for the store.

    What is reported takes effect on this node at once; on the others as soon as the hint comes, and with their next
    refresh at the latest.
    """

    def __init__(
        self,
        store: HealthStore,
        nodes: NodeStore,
        metrics: Metrics,
        *,
        refresh: float,
        chance: random.Random,
    ) -> None:
        self.snapshot = HealthSnapshot()
        self._store = store
        self._nodes = nodes
        self._metrics = metrics
        self._refresh = refresh
        self._chance = chance
        self._streaks: Counter[str] = Counter()
        self._offset = time.time() - time.monotonic()
        self._reports: set[asyncio.Task[None]] = set()
        self._landing: Counter[str] = Counter()
        self._untold: dict[str, HealthReport] = {}
        self._heard: set[str] = set()
        self._told: dict[str, tuple[float, Limits]] = {}
        self._refresher: asyncio.Task[None] | None = None
        self._row_changed: RowChanged = lambda before, row: None
        self._refreshed: Refreshed = lambda before, beats: None

    def listen(self, row_changed: RowChanged, refreshed: Refreshed) -> None:
        """Who places turns hears of every row that changes, as it was and as it is, and of every refresh: the rows as
        they were, and the heartbeats of all nodes."""
        self._row_changed = row_changed
        self._refreshed = refreshed

    async def start(self) -> None:
        """Read the table once, if the store is there, and keep it fresh."""
        await self._refresh_safely()
        self._refresher = asyncio.create_task(self._keep_fresh(), name="health")

    async def stop(self) -> None:
        """End the refresher; reports under way are given a second."""
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait([self._refresher])
        if self._reports:
            await asyncio.wait(self._reports, timeout=1.0)

    def now(self) -> float:
        """The store's clock as far as this node knows it, in seconds; steps of the node's own clock do not touch it."""
        return time.monotonic() + self._offset

    def ailing(self, credential: Credential, model: str) -> list[AuthHealth]:
        """What is held against a credential now; a turn that succeeds disproves these rows and no newer ones."""
        return self.snapshot.ailing(credential, model)

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
        self._row_changed(before, row)

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
        self._refreshed(before, beats)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._refresh * (0.8 + 0.4 * self._chance.random()))
            await self._refresh_safely()

    async def _refresh_safely(self) -> None:
        try:
            await self.refresh()
        except Exception as error:  # noqa: BLE001 - a node that no longer looks would be worse off than one that errs
            log.error("the health table could not be taken over", extra={"kind": type(error).__name__})
