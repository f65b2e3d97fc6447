"""The recorder: keeps what happened to the health table, and lets those know who want to hear of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from broker.metrics import Count
from broker.store.events import Batch, EventStore, HealthEvent
from broker.store.timeline import TimelineStore
from workers.webhooks import Webhooks

log = logging.getLogger(__name__)

BATCH, BATCHES = 100, 10
"""Events in one batch, and batches in one step: what has piled up is recorded bit by bit."""

IDLE = 15.0
"""Seconds after which a recorder that was given an event and did not record it is taken for dead."""

RECLAIM_EVERY = 8
"""After how many steps it is looked for what the dead have left."""


class Recorder:
    """Records every event in the timeline of its subject, and owes it to the webhooks; `every` so many seconds.

    Any number of recorders may run: each event is given to one of them. It is acknowledged when it is recorded and
    owed, and both may be done again without harm, so one that dies at any point loses nothing. `consumer` is the name
    of this one, another for each process. `recorded` and `missed` count since the start: events that were new, and
    those that were trimmed from the stream before they could be recorded; `counts` hears the same by result.
    """

    name = "recorder"
    alone = False

    def __init__(
        self,
        events: EventStore,
        timeline: TimelineStore,
        webhooks: Webhooks,
        consumer: str,
        *,
        every: float = 0.25,
        idle: float = IDLE,
        reclaim_every: int = RECLAIM_EVERY,
        counts: Count | None = None,
    ) -> None:
        self.every = every
        self.recorded = 0
        self.missed = 0
        self._events = events
        self._timeline = timeline
        self._webhooks = webhooks
        self._consumer = consumer
        self._idle = idle
        self._reclaim_every = reclaim_every
        self._counts = counts
        self._steps = 0
        self._in_hand: Sequence[HealthEvent] = ()

    async def step(self) -> str:
        """Record what is new, and now and then what a dead recorder has left. Raises `StoreUnavailable`."""
        before = self.recorded
        # of a step that broke off; in the stream they are this recorder's already
        await self._keep(self._in_hand)
        for _ in range(BATCHES):
            batch = await self._take(await self._events.read(self._consumer, BATCH))
            if batch < BATCH:
                break
        if self._steps % self._reclaim_every == 0:
            await self._take(await self._events.reclaim(self._consumer, self._idle, BATCH))
        self._steps += 1
        await self._webhooks.step()
        new = self.recorded - before
        return f"recorded {new}" if new else ""

    async def _take(self, batch: Batch) -> int:
        """Record a batch; the answer is how many events were in it."""
        if batch.lost:
            self.missed += batch.lost
            self._note("missed", batch.lost)
            log.error("events of health were trimmed before they were recorded", extra={"count": batch.lost})
        await self._keep(batch.events)
        return len(batch.events)

    async def _keep(self, events: Sequence[HealthEvent]) -> None:
        if not events:
            return
        self._in_hand = events
        new = await self._timeline.record(events)
        self.recorded += new
        self._note("recorded", new)
        self._note("again", len(events) - new)
        await self._webhooks.owe(events)
        await self._events.ack([event.id for event in events])
        self._in_hand = ()

    def _note(self, result: str, by: int) -> None:
        if by and self._counts is not None:
            self._counts.inc(result, by=by)
