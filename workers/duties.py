"""What a duty is, and the loop that runs it."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol

from broker.store.connection import StoreUnavailable

log = logging.getLogger(__name__)

LONGEST_PAUSE = 10.0
"""Seconds between two tries while the store is away."""


class Duty(Protocol):
    """A small step, done again and again. Steps are idempotent, so any number of workers may run them."""

    name: str
    every: float

    async def step(self) -> str:
        """Do it once; the answer says in a few words what was done, empty if there was nothing to do."""


async def run_duty(duty: Duty) -> None:
    """Run a duty until cancelled. A store that is away is waited for, and said once."""
    pause, waiting = duty.every, False
    while True:
        try:
            done = await duty.step()
        except StoreUnavailable as error:
            if not waiting:
                log.warning("duty waits for the store", extra={"kind": duty.name, "reason": error.reason})
            waiting, pause = True, min(max(pause, 0.5) * 2, LONGEST_PAUSE)
        else:
            if waiting:
                log.info("duty goes on", extra={"kind": duty.name})
            if done:
                log.info("duty done", extra={"kind": duty.name, "reason": done})
            waiting, pause = False, duty.every
        # workers that were started together shall not all come at once
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))
