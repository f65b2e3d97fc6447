"""Keeps garbage collection from stopping the loop while sessions wait.

A full collection looks at every object of every session: at 2,000 sessions it stopped the loop for a quarter of a
second. What lives long is therefore frozen out of its sight as sessions arrive. A session that goes leaves no circles
behind, so counting references frees it, frozen or not; what little garbage there may be all the same is looked for when
few sessions are left to look at, or after very many have gone.

Turns take memory and give it back in pieces, between which the C library keeps the holes. After many sessions have come
or gone the holes go back to the system as soon as nothing runs; at 2,000 sessions that is 5 KB of each.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

THRESHOLDS = (20_000, 20, 100)
"""Young collections are rare and look at young objects only; the oldest generation is nearly always empty (frozen)."""

EVERY = 1.0
ARRIVED = 32
GONE = 200
FEW = 100
"""Sockets at which a full collection takes a few milliseconds."""

GONE_AT_MOST = 100_000


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Only the GNU C library has it."""


class Collector:
    """Tunes the collector of this process.

    `opened` and `closed` count client sockets ever, `busy` says whether turns run.
    """

    def __init__(self, opened: Callable[[], int], closed: Callable[[], int], busy: Callable[[], bool]) -> None:
        self._opened, self._closed, self._busy = opened, closed, busy
        self._frozen_at = 0
        self._collected_at = 0
        self._trimmed_at = 0

    def start(self) -> None:
        """After start-up: what is there now stays."""
        gc.set_threshold(*THRESHOLDS)
        gc.collect()
        gc.freeze()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self.step()

    def step(self) -> None:
        """Freeze what has come, look for what has gone, and give back what is not needed."""
        self._collect()
        passed = self._opened() + self._closed()
        if _trim is not None and passed - self._trimmed_at >= ARRIVED and not self._busy():
            self._trimmed_at = passed
            _trim(0)

    def _collect(self) -> None:
        gone = self._closed() - self._collected_at
        few = self._opened() - self._closed() <= FEW and not self._busy()
        if gone >= GONE_AT_MOST or (gone >= GONE and few):
            self._collected_at = self._closed()
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        elif self._opened() - self._frozen_at >= ARRIVED:
            gc.freeze()
        else:
            return
        self._frozen_at = self._opened()
