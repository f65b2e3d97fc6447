"""The journal: committed turns that wait for a store that is away, and are written when it is back.

Rules that hold here:
- Oldest first, and of one session never a later turn before an earlier one.
- A commit is never given up halfway: who waits for one may be cancelled, the commit goes on.
- Writing a turn twice changes nothing, so whenever it is unknown whether it was written, it is written again.
- Bounded in turns and bytes; beyond that a turn is refused, not forgotten.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.domain.transcript import Commit, StoredTurn, TurnMeta
from broker.store.connection import REFUSED, StoreUnavailable
from broker.store.sessions import ChainBroken, Committed, SessionStore

RETRY_FOR = 1.0
"""Seconds for which a commit is tried again before it is queued: an answer may have been lost."""

BACKOFF = (0.1, 2.0)
WINDOW = 32
"""Turns, each of another session, that are written in one go."""

MAX_REFUSALS = 5
"""How often a server may refuse the same turn before it is set aside, so that it does not hold up all others."""

Listener = Callable[[Commit, Committed], None]


class JournalFull(Exception):
    """The store is away and the journal has no room; whether this turn was written is unknown."""


class Queued(msgspec.Struct, frozen=True):
    """The store is away; the turn is the `position`-th to be written when it is back."""

    position: int


Landed = Committed | Queued | JournalFull | Exception
"""What has become of a turn; an exception of another kind is a fault of ours."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A turn to be written or, with no commit, a session to be closed."""

    sid: str
    commit: Commit | None = None
    last_turn: str = ""
    refusals: int = 0

    @property
    def size(self) -> int:
        return 0 if self.commit is None else self.commit.items.size


class Journal:
    """Commits through here wait for the store if they must, and are found again while they wait.

    `max_turns` and `max_bytes` (of items) bound what waits. `abandoned` counts turns that the server refused for good.
    """

    def __init__(self, store: SessionStore, *, max_turns: int, max_bytes: int, retry_for: float = RETRY_FOR) -> None:
        self._store = store
        self._retry_for = retry_for
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._queue: deque[_Entry] = deque()
        self._bytes = 0
        self._waiting = asyncio.Event()
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._calm = asyncio.Event()
        self._calm.set()
        self._writer: asyncio.Task[None] | None = None
        self._listeners: list[Listener] = []
        self.abandoned = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def degraded(self) -> bool:
        """Whether anything waits for the store."""
        return bool(self._queue)

    def listen(self, on_committed: Listener) -> None:
        """Be told of every queued turn when it lands (from the loop, in the order in which they land)."""
        self._listeners.append(on_committed)

    def start(self) -> None:
        """Begin to write what is queued."""
        self._writer = asyncio.create_task(self._write())

    async def close(self, deadline: float) -> int:
        """Flush for at most `deadline` seconds and stop; the answer is how many turns are left unwritten."""
        try:
            async with asyncio.timeout(deadline):
                self._show_calm()
                await self._calm.wait()
        except TimeoutError:
            pass
        if self._writer is not None:
            # what it has asked of the store is done all the same, only nobody waits for it
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        return sum(entry.commit is not None for entry in self._queue) + self._under_way + len(self._tasks)

    def submit(self, commit: Commit, then: Callable[[Landed], None]) -> None:
        """Write a turn, or queue it if the store is away; `then` is called from the loop, never at once.

        Takes at most about `retry_for` seconds and one timeout longer than the store, and no time while turns wait.
        """
        entry = _Entry(commit.sid, commit)
        if self._queue:
            asyncio.get_running_loop().call_soon(self._queue_up, entry, then)
            return

        def tried(outcome: Committed | Exception) -> None:
            self._under_way -= 1
            if isinstance(outcome, StoreUnavailable):
                self._run(self._try_again(entry, then))
            else:
                then(outcome)
            self._show_calm()

        self._store.submit(commit, tried)
        self._under_way += 1

    async def _try_again(self, entry: _Entry, then: Callable[[Landed], None]) -> None:
        try:
            committed = await self._insist(entry, BACKOFF[0] / 2)
        except Exception as error:  # noqa: BLE001 - whoever waits shall hear of it
            then(error)
            return
        if isinstance(committed, Committed):
            then(committed)
        else:
            self._queue_up(entry, then)

    def _queue_up(self, entry: _Entry, then: Callable[[Landed], None]) -> None:
        if len(self._queue) >= self._max_turns or self._bytes + entry.size > self._max_bytes:
            then(JournalFull(f"{len(self._queue)} turns, {self._bytes} bytes"))
            return
        self._append(entry)
        then(Queued(len(self._queue)))

    async def close_cleanly(self, sid: str, last_turn: str = "") -> None:
        """`SessionStore.close_cleanly`, after all that this session still has to write."""
        await asyncio.shield(self._run(self._close_session(sid, last_turn)))

    def pending(self, sid: str) -> list[Commit]:
        """The turns of a session that wait, oldest first."""
        return [entry.commit for entry in self._queue if entry.commit is not None and entry.sid == sid]

    async def find(self, sid: str, response_id: str) -> TurnMeta | None:
        """`SessionStore.find`, with the turns that wait."""
        for commit in self._answering(response_id):
            if commit.sid == sid:
                return commit.meta
        return await self._store.find(sid, response_id)

    async def locate(self, tenant: str, response_id: str) -> str | None:
        """`SessionStore.locate`, with the turns that wait."""
        for commit in self._answering(response_id):
            if commit.tenant == tenant:
                return commit.sid
        return await self._store.locate(tenant, response_id)

    async def origins(self, sid: str) -> dict[str, str]:
        """`SessionStore.origins`, with the turns that wait."""
        waiting = self.pending(sid)
        known = await self._store.origins(sid)
        return known | {digest: commit.meta.boundary for commit in waiting for digest in commit.minted}

    async def chain(self, sid: str, turn_id: str) -> list[StoredTurn]:
        """`SessionStore.chain`, with the turns that wait; needs no store where the whole chain waits."""
        waiting = {commit.meta.turn_id: commit for commit in self.pending(sid)}
        newest_first: list[StoredTurn] = []
        at: str | None = turn_id
        while at is not None and at in waiting:
            commit = waiting.pop(at)
            if not commit.meta.kept:
                raise ChainBroken("the items of a turn were not kept")
            newest_first.append(StoredTurn(commit.meta, commit.items))
            at = commit.meta.parent
        if at is not None:
            return await self._store.chain(sid, at) + newest_first[::-1]
        if not newest_first[-1].meta.rooted:
            raise ChainBroken("its root is not known")
        return newest_first[::-1]

    def _answering(self, response_id: str) -> Iterable[Commit]:
        """The waiting turns with this response id, newest first, without those whose session was closed since."""
        closed: set[str] = set()
        for entry in reversed(self._queue):
            if entry.commit is None:
                closed.add(entry.sid)
            elif entry.commit.meta.response_id == response_id and (entry.commit.meta.store or entry.sid not in closed):
                yield entry.commit

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that goes on although whoever waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        self._calm.clear()
        task.add_done_callback(self._ran)
        return task

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._show_calm()

    def _show_calm(self) -> None:
        if self._under_way or self._tasks or self._queue:
            self._calm.clear()
        else:
            self._calm.set()

    async def _close_session(self, sid: str, last_turn: str) -> None:
        entry = _Entry(sid, last_turn=last_turn)
        if await self._insist(entry) is None:
            self._append(entry)

    async def _insist(self, entry: _Entry, pause: float = 0.0) -> Committed | bool | None:
        """What the store answered, None if it is away: at once where something waits already, else after some tries.

        With a `pause`, one try was made already.
        """
        clock = asyncio.get_running_loop().time
        give_up = clock() + self._retry_for if pause else None
        while not self._queue:
            if pause:
                await asyncio.sleep(pause)
            try:
                return await self._perform(entry)
            except StoreUnavailable:
                give_up = give_up or clock() + self._retry_for
                pause = pause * 2 or BACKOFF[0] / 2
                if clock() + pause > give_up:
                    return None
        return None

    async def _perform(self, entry: _Entry) -> Committed | bool:
        if entry.commit is None:
            return await self._store.close_cleanly(entry.sid, entry.last_turn)
        return await self._store.commit(entry.commit)

    def _append(self, entry: _Entry) -> None:
        self._queue.append(entry)
        self._bytes += entry.size
        self._calm.clear()
        self._waiting.set()

    async def _write(self) -> None:
        pause = BACKOFF[0]
        while True:
            await self._waiting.wait()
            if await self._write_window():
                pause = BACKOFF[0]
            else:
                # nodes that lost the store together shall not come back together
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, BACKOFF[1])

    async def _write_window(self) -> bool:
        window = self._window()
        outcomes = await asyncio.gather(*map(self._perform, window), return_exceptions=True)
        for _ in window:
            self._queue.popleft()
        left = [entry for entry, outcome in zip(window, outcomes, strict=True) if not self._settle(entry, outcome)]
        self._queue.extendleft(reversed(left))
        if not self._queue:
            self._waiting.clear()
            self._show_calm()
        return not left

    def _window(self) -> list[_Entry]:
        """The oldest entries, each of another session, so that they may be written side by side."""
        window: dict[str, _Entry] = {}
        for entry in self._queue:
            if entry.sid in window or len(window) == WINDOW:
                break
            window[entry.sid] = entry
        return list(window.values())

    def _settle(self, entry: _Entry, outcome: Committed | bool | BaseException) -> bool:
        """Whether this entry is done with."""
        if isinstance(outcome, BaseException):
            if isinstance(outcome, StoreUnavailable) and outcome.reason != REFUSED:
                return False
            entry.refusals += 1
            if entry.refusals < MAX_REFUSALS:
                return False
            self.abandoned += entry.commit is not None
        self._bytes -= entry.size
        if entry.commit is not None and isinstance(outcome, Committed):
            for listener in self._listeners:
                # not called directly: what a listener raises must not end the writing
                asyncio.get_running_loop().call_soon(listener, entry.commit, outcome)
        return True
