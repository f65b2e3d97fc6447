"""What a duty is, and the loop that runs it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from broker.metrics import Count
from broker.store.connection import StoreUnavailable
from workers.leadership import Lead, LeaseEnded, while_leading

log = logging.getLogger(__name__)

LONGEST_PAUSE = 10.0
"""Seconds between two tries while the store is away."""


class Duty(Protocol):
    """A small step, done again and again, `every` so many seconds. Steps are idempotent.

    `alone`: only one worker in the cluster runs its steps at any time. Such a step is cancelled when its lease ends. It
    must not leave tasks behind, for only the step itself is stopped.
    """

    name: str
    every: float
    alone: bool

    async def step(self) -> str:
        """Do it once; the answer says in a few words what was done, empty if there was nothing to do."""


class Progress:
    """How far a duty has come in this worker: when its last step went well, and whether this worker leads it."""

    def __init__(
        self,
        duty: Duty,
        lead: Lead | None = None,
        *,
        steps: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if duty.alone and lead is None:
            raise ValueError(f"{duty.name} is to be done alone, and has no lead")
        self.duty = duty
        self.lead = lead
        self._clock = clock
        self._steps = steps
        self._went_well = clock()
        self._waiting = False

    @property
    def leading(self) -> bool:
        """Whether this worker does it, alone or beside others."""
        return self.lead is None or self.lead.leading

    @property
    def age(self) -> float:
        """Seconds since a step last went well here, or since the start."""
        return self._clock() - self._went_well

    def note(self, result: str) -> None:
        """Count a step: done, idle, store_away or lease_ended."""
        if self._steps is not None:
            self._steps.inc(self.duty.name, result)

    def went_well(self, done: str) -> None:
        """A step has ended well; `done` says what it did."""
        self.hear(None)
        if done:
            log.info("duty done", extra={"kind": self.duty.name, "reason": done})
        self._went_well = self._clock()
        self.note("done" if done else "idle")

    def hear(self, error: StoreUnavailable | None) -> None:
        """The store has answered, or has not: that it is away, and that it is back, is said once."""
        if error is not None and not self._waiting:
            log.warning("duty waits for the store", extra={"kind": self.duty.name, "reason": error.reason})
        if error is None and self._waiting:
            log.info("duty goes on", extra={"kind": self.duty.name})
        self._waiting = error is not None


async def run_duty(progress: Progress) -> None:
    """Run a duty until cancelled. A store that is away is waited for, and said once.

    A duty that is to be done alone is done only while its lead lasts, which is given back at the end.
    """
    lead = progress.lead
    if lead is None:
        await _run(progress)
        return
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(lead.keep(progress.hear), name=f"lead:{progress.duty.name}")
            group.create_task(_run(progress), name=f"steps:{progress.duty.name}")
    finally:
        await lead.release()


async def _run(progress: Progress) -> None:
    pause = progress.duty.every
    while True:
        pause = await _once(progress, pause)
        # workers that were started together shall not all come at once
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))


async def _once(progress: Progress, pause: float) -> float:
    """One step; the answer is how many seconds to wait before the next."""
    duty, lead = progress.duty, progress.lead
    try:
        if lead is None:
            done = await duty.step()
        else:
            await lead.won()
            done = await while_leading(lead, duty.step)
    except StoreUnavailable as error:
        progress.hear(error)
        progress.note("store_away")
        return min(max(pause, 0.5) * 2, LONGEST_PAUSE)
    except LeaseEnded:
        log.warning("duty stopped, its lease has ended", extra={"kind": duty.name})
        progress.note("lease_ended")
        return duty.every
    progress.went_well(done)
    return duty.every
