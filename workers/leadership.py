"""Leadership: a worker does alone what only one may do, and stops before anybody else can begin."""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

from broker.store.connection import StoreUnavailable
from broker.store.leases import LeaseStore

T = TypeVar("T")

TTL = 6.0
"""Seconds that a lease lasts; after so long at most somebody else takes over from a worker that was killed."""

UNWIND = 1.0
"""Seconds that a step which is told to stop may take to clean up."""


class LeaseEnded(Exception):
    """The lease ran out, or was lost, in the middle of a step; the step was stopped."""


class Lead:
    """The lease of one duty as this worker holds it.

    It counts from before it was asked for, on a clock that nobody sets, and ends a sixth of `ttl` early: so this worker
    has stopped when the store lets another one in. Each time that it is won anew is another `term`; what began in one
    term never goes on in the next.
    """

    def __init__(
        self,
        leases: LeaseStore,
        name: str,
        token: str,
        *,
        ttl: float = TTL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._name = name
        self._token = token
        self._ttl = ttl
        self._clock = clock
        self._until = 0.0
        self._won = asyncio.Event()
        self.term = 0

    @property
    def leading(self) -> bool:
        """Whether this worker may act right now."""
        return self._clock() < self._until

    def holds(self, term: int) -> bool:
        """Whether that term is still under way."""
        return term == self.term and self.leading

    def left(self, term: int) -> float:
        """Seconds until that term ends unless it is kept; 0 if it has ended."""
        return max(0.0, self._until - self._clock()) if term == self.term else 0.0

    async def won(self) -> int:
        """Wait until this worker may act; the answer is the term."""
        while not self.leading:
            self._won.clear()
            await self._won.wait()
        return self.term

    async def keep(self, heard: Callable[[StoreUnavailable | None], None]) -> None:
        """Take the lease when it is free and keep it, until cancelled.

        `heard` is told each time whether the store has answered (None), or why not; it is asked again and again.
        """
        while True:
            pause = self._ttl / 24
            try:
                await self._ask()
            except StoreUnavailable as error:
                heard(error)
            else:
                heard(None)
                if self.leading:
                    pause = self._ttl / 3
            await asyncio.sleep(pause)

    async def _ask(self) -> None:
        asked, leading = self._clock(), self.leading
        act = self._leases.renew if leading else self._leases.acquire
        held = await act(self._name, self._token, self._ttl)
        if leading and not self.leading:
            # the answer came too late: what was begun has been stopped, and may only begin anew
            leading = False
        self._until = asked + self._ttl * 5 / 6 if held else 0.0
        if self.leading and not leading:
            self.term += 1
        if self.leading:
            self._won.set()

    async def release(self) -> None:
        """Let another worker take over at once. Call it when no step runs any more."""
        self._until = 0.0
        with contextlib.suppress(StoreUnavailable):
            await self._leases.release(self._name, self._token)


async def while_leading(lead: Lead, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `step` answers; raises `LeaseEnded` if the lease ended before. Whatever comes, the step has stopped."""
    term = lead.term
    acting = asyncio.create_task(_drive(step, lambda: lead.holds(term)), name="step")
    try:
        while not acting.done() and lead.holds(term):
            # in short waits, for a lease can be lost, and can be kept
            await asyncio.wait([acting], timeout=min(lead.left(term), 0.1))
    finally:
        stopped = await _stop(acting)
    if not stopped:
        raise RuntimeError("a step did not stop")
    if acting.cancelled():
        raise LeaseEnded
    return acting.result()


async def _stop(acting: asyncio.Task[Any]) -> bool:
    if not acting.done():
        acting.cancel()
        await asyncio.wait([acting], timeout=UNWIND)
    return acting.done()


async def _drive(step: Callable[[], Coroutine[Any, Any, T]], holds: Callable[[], bool]) -> T:
    return await _guarded(step(), holds)


@types.coroutine
def _guarded(step: Coroutine[Any, Any, T], holds: Callable[[], bool]) -> Generator[Any, Any, T]:
    """Drive a step, and look at the lease each time before it goes on.

    A process that stood still for long has its answers ready when it wakes, before any timer of its own has told it how
    late it is: so it is asked here, where the step would act next, and the step is cancelled instead. What it was about
    to write at that very moment still goes out, which is why steps are idempotent.
    """
    go_on: Callable[[], Any] = partial(step.send, None)
    ended = False
    while True:
        if not ended and not holds():
            ended, go_on = True, partial(step.throw, asyncio.CancelledError())
        try:
            waits_for = go_on()
        except StopIteration as done:
            answer: T = done.value
            return answer
        try:
            go_on = partial(step.send, (yield waits_for))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the step's
            go_on = partial(step.throw, error)
