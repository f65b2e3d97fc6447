"""The prober: asks vendors whether what is blocked serves again, one question at a time in the whole cluster."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from broker.domain.blame import blame
from broker.domain.credential import Credential
from broker.domain.failure import Failure, FailureKind
from broker.domain.health import AuthHealth, HealthReport, HealthState
from broker.domain.probing import Probe, due
from broker.domain.snapshot import HealthSnapshot
from broker.store.connection import StoreUnavailable
from broker.store.health import HealthStore, Table
from broker.upstream.probe import MODELS, OFF, TIMEOUT, plan

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Questions under way at the same time, to different vendors and keys."""

AGAIN_AFTER, AGAIN_AT_MOST = 5.0, 300.0
"""Seconds before a row is asked about again that the last answer has not changed; twice as long each time."""


class Asks(Protocol):
    """Who sends the question (`broker.upstream.probe.Prober`)."""

    async def probe(self, credential: Credential, model: str, kind: str) -> Failure | None:
        """What failed; None if the credential serves."""


class Prober:
    """Looks every `every` seconds for what is worth a question, and tells the table what came of it.

    Whoever holds the licence of a row asks, be it another worker or a turn at an edge; a licence ends by itself, so a
    question that is lost blocks nobody. `answers` counts by result.
    """

    name = "prober"
    alone = False

    def __init__(
        self,
        store: HealthStore,
        asks: Asks,
        pool: Callable[[], Sequence[Credential]],
        *,
        every: float = 0.25,
        counted: Callable[[str, str], None] = lambda credential, result: None,
    ) -> None:
        self.every = every
        self._store = store
        self._asks = asks
        self._pool = pool
        self._counted = counted
        self._running: dict[str, asyncio.Task[None]] = {}
        self._later: dict[str, tuple[int, float, float]] = {}
        self._chance = random.Random()

    async def step(self) -> str:
        """Look once; the answer names what is asked about."""
        table = await self._store.table()
        begun = []
        for probe in due(table.rows, self._pool(), table.now):
            subject = probe.row.subject
            if subject in self._running or len(self._running) >= AT_ONCE or not self._ripe(probe.row):
                continue
            if self._kind_of(probe) == OFF:
                continue
            token = secrets.token_hex(8)
            if await self._store.license(probe.row, token, TIMEOUT + 5.0):
                task = asyncio.create_task(self._ask(probe, token, table), name=f"probe:{subject}")
                self._running[subject] = task
                task.add_done_callback(partial(self._done, subject))
                begun.append(probe.credential.name)
        self._forget(table.rows)
        return f"asks {', '.join(sorted(begun))}" if begun else ""

    async def stop(self) -> None:
        """Give up what is under way; its licences end by themselves, or are given back."""
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=2.0)

    def _ripe(self, row: AuthHealth) -> bool:
        version, at, _ = self._later.get(row.subject, (0, 0.0, 0.0))
        return version != row.version or asyncio.get_running_loop().time() >= at

    def _kind_of(self, probe: Probe) -> str:
        kind, _ = plan(probe.credential)
        if kind == MODELS and not probe.row.subject.startswith("credential:"):
            return OFF  # the list of models proves a key, and neither its quota nor a model
        return kind

    async def _ask(self, probe: Probe, token: str, table: Table) -> None:
        row, credential = probe.row, probe.credential
        kind, usual = plan(credential)
        began = asyncio.get_running_loop().time()
        try:
            model = credential.upstream_model(probe.model) if probe.model else usual
            failure = await self._asks.probe(credential, model, kind)
            took = asyncio.get_running_loop().time() - began
            if failure is None or failure.kind in _LET_IN:
                await self._absolve(probe, table, kind)
            else:
                await self._blame(probe, failure, table.now, table.now + took)
            self._counted(credential.name, "served" if failure is None else failure.kind.value)
            log.info(
                "probed",
                extra={
                    "credential": credential.name,
                    "kind": row.subject,
                    "outcome": "served" if failure is None else failure.kind.value,
                    "code": "" if failure is None else failure.code,
                },
            )
            self._put_off(row)
        finally:
            await asyncio.shield(self._store.give_back(row.subject, token))

    async def _absolve(self, probe: Probe, table: Table, kind: str) -> None:
        """Who serves this is free of all that was held against it for this; the list of models speaks of the key."""
        held = [probe.row]
        if kind != MODELS:
            held += HealthSnapshot(dict(table.rows)).ailing(probe.credential, probe.model)
        for row in {row.subject: row for row in held}.values():
            if row.state is not HealthState.PAUSED:
                await self._store.report(
                    HealthReport(row.subject, HealthState.HEALTHY, because="probed", version=row.version)
                )

    async def _blame(self, probe: Probe, failure: Failure, began: float, now: float) -> None:
        report = blame(
            failure,
            probe.credential,
            probe.model,
            confirmed=True,
            streak=0,
            evidence=f"probe:{secrets.token_hex(8)}",
            began=began,
            now=now,
            chance=self._chance.random(),
        )
        if report is not None:
            await self._store.report(report)

    def _put_off(self, row: AuthHealth) -> None:
        """If the answer has changed nothing, the next question comes later."""
        version, _, pause = self._later.get(row.subject, (0, 0.0, 0.0))
        pause = min(pause * 2, AGAIN_AT_MOST) if version == row.version and pause else AGAIN_AFTER
        self._later[row.subject] = (row.version, asyncio.get_running_loop().time() + pause, pause)

    def _forget(self, rows: Mapping[str, AuthHealth]) -> None:
        for subject in [subject for subject in self._later if subject not in rows]:
            del self._later[subject]

    def _done(self, subject: str, task: asyncio.Task[None]) -> None:
        del self._running[subject]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, StoreUnavailable):
            log.warning("a probe's answer could not be told", extra={"kind": subject, "reason": error.reason})
        elif error is not None:
            log.error("a probe broke", extra={"kind": subject, "reason": type(error).__name__})


_LET_IN = frozenset({FailureKind.REQUEST_FAULT, FailureKind.CONTINUATION_LOST, FailureKind.CIPHERTEXT_FOREIGN})
"""Refusals of our own question: who answers so has let the credential in."""
