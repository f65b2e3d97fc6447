"""Licences: who may try a credential whose block has run out, one in the whole cluster at a time."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from broker.domain.health import AuthHealth
from broker.metrics import Metrics
from broker.store.health import HealthStore
from broker.store.reasons import StoreUnavailable

LASTS = 15.0
"""Seconds after which a licence of a node that has died is another's to take."""

RENEW_EVERY = 4.0

UNUSED_FOR = 1.5
"""Seconds after which a licence that no turn has used is given back."""

ASK_EVERY = 0.25
"""Seconds after a refusal in which the same licence is not asked for again."""

ALONE_EVERY = 5.0
"""Seconds between two licences that a node grants itself while the store is away."""


class Licences:
    """The licences of one node. `free` are the subjects that a turn may try now; a turn that does so takes the token by
    `use`, and brings it back by `over`. `got` is called when a licence has arrived."""

    def __init__(self, store: HealthStore, metrics: Metrics, got: Callable[[], None]) -> None:
        self.free: set[str] = set()
        self._store = store
        self._metrics = metrics
        self._got = got
        self._tokens: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._refused: dict[str, float] = {}
        self._alone: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._renewer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep what is in use, give back what nobody uses."""
        self._renewer = asyncio.create_task(self._keep(), name="licences")

    async def stop(self) -> None:
        """Give everything back, bounded."""
        if self._renewer is not None:
            self._renewer.cancel()
            await asyncio.wait([self._renewer])
        for subject in list(self._tokens):
            self.done(subject)
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=1.0)

    def wanted(self, row: AuthHealth) -> None:
        """Ask for the licence of a row, unless it is here, asked for, or was refused a moment ago."""
        subject = row.subject
        if subject in self._tokens or subject in self._tasks:
            return
        if asyncio.get_running_loop().time() >= self._refused.get(subject, 0.0):
            self._run(subject, self._ask(row))

    def use(self, subject: str) -> str:
        """A turn tries it now, so nobody else here may; the answer is the token of this trial."""
        self.free.discard(subject)
        return self._tokens.get(subject, "")

    def over(self, token: str) -> None:
        """The trial is over, whatever has come of it."""
        for subject in [subject for subject, held in self._tokens.items() if held == token]:
            self.done(subject)

    @property
    def on_hand(self) -> int:
        """How many are here unused, or were asked for."""
        return len(self.free) + len(self._tasks)

    def spare(self, subject: str) -> None:
        """The row blocks again: nobody shall begin to try it, and who is at it already brings its licence back."""
        if subject in self.free:
            self.done(subject)

    def done(self, subject: str) -> None:
        """The answer is there, or nobody wants it: no licence is needed any more."""
        self.free.discard(subject)
        token = self._tokens.pop(subject, None)
        self._since.pop(subject, None)
        if token is not None:
            self._run(f"{subject} {token}", self._give_back(subject, token))

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"licence:{name}")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._tasks.pop(name, None))

    async def _ask(self, row: AuthHealth) -> None:
        subject, token = row.subject, secrets.token_hex(8)
        now = asyncio.get_running_loop().time()
        try:
            granted = await self._store.license(row, token, LASTS)
        except StoreUnavailable as error:
            # nobody can be asked, and a credential shall not stay out for that
            self._metrics.store_errors.inc(error.reason)
            granted = now >= self._alone.get(subject, 0.0)
            if granted:
                self._alone[subject] = now + ALONE_EVERY
        self._metrics.licences.inc("granted" if granted else "refused")
        if granted:
            self._tokens[subject] = token
            self._since[subject] = asyncio.get_running_loop().time()
            self.free.add(subject)
        else:
            self._refused[subject] = asyncio.get_running_loop().time() + ASK_EVERY
        # not before this task has left: what it brings is asked for in the call
        asyncio.get_running_loop().call_soon(self._got)

    async def _give_back(self, subject: str, token: str) -> None:
        try:
            await self._store.give_back(subject, token)
        except StoreUnavailable as error:
            self._metrics.store_errors.inc(error.reason)  # it ends by itself

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY / 4)
            now = asyncio.get_running_loop().time()
            for subject in [s for s in self.free if now - self._since.get(s, now) > UNUSED_FOR]:
                self.done(subject)
            for subject, token in list(self._tokens.items()):
                if now - self._since.get(subject, now) > RENEW_EVERY:
                    await self._renew(subject, token)
            for told in (self._refused, self._alone):
                for subject in [s for s, until in told.items() if until < now]:
                    del told[subject]

    async def _renew(self, subject: str, token: str) -> None:
        try:
            kept = await self._store.renew(subject, token, LASTS)
        except StoreUnavailable as error:
            self._metrics.store_errors.inc(error.reason)
            return
        if self._tokens.get(subject) == token:
            if kept:
                self._since[subject] = asyncio.get_running_loop().time()
            else:
                self.free.discard(subject)
                del self._tokens[subject]
