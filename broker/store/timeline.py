"""What happened to each subject of the health table lately, and how often; every event counts once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from broker.store import keys, scripts
from broker.store.commands import Command
from broker.store.connection import Connection, call, command
from broker.store.events import HealthEvent

KEPT = 200
"""How many events of one subject are kept."""

TIMELINE_LIVES = 7 * 86400
"""Seconds after its last event for which a timeline is kept."""

COUNTS_LIVE = 30 * 86400
"""Seconds after the last event for which the counts are kept."""

MOST_COUNTS = 10_000
"""How many subjects and states are counted apart: models have any name that a client likes."""

OTHERS = "*"
"""The subject under which all is counted that has no room of its own."""

_event = msgspec.json.Decoder(HealthEvent).decode


class TimelineStore:
    """The timelines and the counts. Every method may raise `StoreUnavailable`; each is one round trip."""

    def __init__(self, connection: Connection, *, kept: int = KEPT, most_counts: int = MOST_COUNTS) -> None:
        self._connection = connection
        self._kept = kept
        self._most_counts = most_counts

    async def record(self, events: Sequence[HealthEvent]) -> int:
        """Record these, in any order; the answer is how many were new. One that was recorded before changes nothing."""
        if not events:
            return 0
        return sum(map(int, await self._connection.ask(*map(self._recording, events), read=True)))

    def _recording(self, event: HealthEvent) -> Command:
        at_keys = keys.health_timeline(event.subject), keys.health_counts()
        field, other = f"{event.state} {event.subject}", f"{event.state} {OTHERS}"
        encoded = msgspec.json.encode(event)
        limits = self._kept, TIMELINE_LIVES, field, other, self._most_counts, COUNTS_LIVE
        return call(scripts.RECORD_EVENT, at_keys, (encoded, _place(event), *limits))

    async def timeline(self, subject: str) -> list[HealthEvent]:
        """The newest events of a subject, the newest first. What another version has written otherwise is left out."""
        (found,) = await self._connection.ask(
            command("ZREVRANGE", keys.health_timeline(subject), 0, self._kept - 1), read=True
        )
        events = []
        for each in found:
            with suppress(msgspec.MsgspecError):
                events.append(_event(each))
        return events

    async def counts(self) -> dict[tuple[str, str], int]:
        """How often it came to that, by subject and state."""
        (found,) = await self._connection.ask(command("HGETALL", keys.health_counts()), read=True)
        counts = {}
        for field, count in found.items():
            state, _, subject = field.decode("utf-8", "replace").partition(" ")
            counts[subject, state] = int(count)
        return counts


def _place(event: HealthEvent) -> int:
    """Where an event stands in its timeline: rises with the id, and is exact as a double."""
    milliseconds, _, sequence = event.id.partition("-")
    return int(milliseconds) * 1000 + min(int(sequence or 0), 999)
