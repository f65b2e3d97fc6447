"""One timer for all turns of a node: a turn that had timers of its own would make and cancel two of them."""

from __future__ import annotations

import asyncio
from typing import Protocol

SLOWEST = 0.25
FASTEST = 0.01


class Timed(Protocol):
    """What wants to know that time passes."""

    def tick(self, now: float) -> None:
        """It is `now`, on the loop's clock, in seconds."""


class Pulse:
    """Ticks for whoever has entered, often enough that a bound of `shortest` seconds is kept to about an eighth."""

    def __init__(self, shortest: float) -> None:
        self._every = min(max(shortest / 8, FASTEST), SLOWEST)
        self._members: set[Timed] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, member: Timed) -> None:
        """Tick for `member` from now on."""
        self._members.add(member)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._tick)

    def leave(self, member: Timed) -> None:
        """Tick no more for it."""
        self._members.discard(member)

    def _tick(self) -> None:
        self._timer = None
        if not self._members:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._every, self._tick)
        now = loop.time()
        for member in list(self._members):
            member.tick(now)
