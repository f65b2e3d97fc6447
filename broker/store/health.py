"""The health table in Redis, shared by all nodes, and the stream of what happened to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from broker.domain.health import MAX_BLOCK, AuthHealth, HealthReport
from broker.store import keys, scripts
from broker.store.connection import Connection, command

MAX_EVENTS = 10_000
"""About how many events the stream keeps."""

_row = msgspec.json.Decoder(AuthHealth).decode


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a report came to: the row as it is now, the store's time (seconds) at which it was ruled, and whether the
    report changed it."""

    row: AuthHealth
    at: float
    changed: bool


class HealthStore:
    """The table. Every method may raise `StoreUnavailable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def report(self, report: HealthReport) -> AuthHealth:
        """Tell the table an outcome; the answer is the row as it is now. One round trip."""
        return (await self.rule(report)).row

    async def rule(self, report: HealthReport) -> Ruling:
        """The same, with the time that it was ruled by. One round trip."""
        if not math.isfinite(report.lasting) or not math.isfinite(report.until or 0.0):
            raise ValueError("a block has an end")
        told = "" if report.until is None else repr(report.until)
        outcome = (report.subject, report.state.value, repr(report.lasting), told, report.because, report.evidence)
        row, at, changed = await self._connection.run(
            scripts.REPORT,
            (keys.health_rows(), keys.health_events()),
            (*outcome, report.version, repr(MAX_BLOCK), MAX_EVENTS),
        )
        return Ruling(_row(row), float(at), changed == b"1")

    async def snapshot(self) -> tuple[dict[str, AuthHealth], float]:
        """All rows, and the store's time in seconds. One round trip."""
        rows, (seconds, micros) = await self._connection.ask(
            command("HGETALL", keys.health_rows()), command("TIME"), read=True
        )
        return {subject.decode(): _row(row) for subject, row in rows.items()}, int(seconds) + int(micros) / 1e6
