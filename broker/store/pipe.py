"""The ways by which commands go to a server: a pipelined socket of our own, or somebody's client.

The socket is opened by redis-py, which knows about addresses, TLS and passwords; from then on its bytes come here. The
library's own way (a socket out of a pool, a lock, a timer and a task for each question) cost several times as much as
everything else about a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import hiredis
from redis.asyncio import ConnectionPool, Redis

from broker.store.commands import Command
from broker.store.reasons import DEMOTED, FOREIGN, Refusal, StoreUnavailable, reason_of

log = logging.getLogger(__name__)

DRIPPING = 10
"""Timeouts after which an answer that comes in drops is no answer."""

Answers = list[Any] | StoreUnavailable
"""What came back for each command, a `Refusal` where the server answered an error; or why nothing did."""

Then = Callable[[Answers], None]


class Way(Protocol):
    """How commands reach a server."""

    def ask(self, commands: Sequence[Command], then: Then) -> None:
        """Send these together; `then` is called from the loop, never at once, and always in the end."""

    async def close(self) -> None:
        """Wait for what is under way (bounded by the timeouts), and let go."""


class _Question:
    """Some commands that were sent, and what has come back so far."""

    __slots__ = ("answers", "asked_at", "names", "packed", "then")

    def __init__(self, names: Sequence[str], packed: bytes, then: Then, asked_at: float) -> None:
        self.names = names
        self.packed = packed
        self.then = then
        self.asked_at = asked_at
        self.answers: list[Any] = []


class Pipe(asyncio.Protocol):
    """One socket, opened when it is needed. Answers come in the order of the questions.

    A question that stays without any answer for `timeout` seconds ends the socket, and with it all that wait behind.
    """

    def __init__(self, pool: ConnectionPool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._callbacks: Any = Redis(connection_pool=pool).response_callbacks
        self._transport: asyncio.Transport | None = None
        self._opened: Any = None
        self._opening: asyncio.Task[None] | None = None
        self._reader = hiredis.Reader(replyError=Refusal)
        self._unsent: deque[_Question] = deque()
        self._sent: deque[_Question] = deque()
        self._leaving: list[bytes] = []
        self._heard_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    def ask(self, commands: Sequence[Command], then: Then) -> None:
        """Send these together, and with them all that is asked for in the same tick of the loop."""
        loop = asyncio.get_running_loop()
        packed = commands[0].packed() if len(commands) == 1 else b"".join([each.packed() for each in commands])
        question = _Question([str(each.args[0]) for each in commands], packed, then, loop.time())
        if self._transport is None:
            self._unsent.append(question)
            if self._opening is None:
                self._opening = loop.create_task(self._open(), name="store-open")
        else:
            self._send(question)

    def _send(self, question: _Question) -> None:
        self._sent.append(question)
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._write)
        self._leaving.append(question.packed)
        question.packed = b""

    def _write(self) -> None:
        leaving, self._leaving = self._leaving, []
        if self._transport is None or not leaving:
            return
        self._transport.write(leaving[0] if len(leaving) == 1 else b"".join(leaving))
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self._timeout / 4, self._check)

    # --- opening ---

    async def _open(self) -> None:
        failure = "client"
        try:
            opened: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await opened.connect()
            transport: asyncio.Transport = opened._writer.transport
            transport.set_protocol(self)
        except FOREIGN as error:
            failure = reason_of(error)
        else:
            failure = ""
            self._opened, self._transport = opened, transport
            self._reader = hiredis.Reader(replyError=Refusal)
        finally:
            self._opening = None
            self._send_waiting(failure)

    def _send_waiting(self, failure: str) -> None:
        unsent, self._unsent = self._unsent, deque()
        if failure:
            _fail(unsent, failure)
            self._show_empty()
            return
        now = asyncio.get_running_loop().time()
        for question in unsent:
            question.asked_at = now
            if self._transport is None:
                _fail([question], "connection")
            else:
                self._send(question)

    # --- what comes back ---

    def data_received(self, data: bytes) -> None:
        """Answers, whole or in part."""
        self._heard_at = asyncio.get_running_loop().time()
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                if not self._sent:
                    # an answer that nobody has asked for would put all others out of step
                    self._lose("protocol")
                    return
                self._take(answer)
        except hiredis.ProtocolError:
            self._lose("protocol")

    def _take(self, answer: Any) -> None:
        question = self._sent[0]
        answers = question.answers
        if isinstance(answer, Refusal):
            answers.append(answer)
        else:
            callback = self._callbacks.get(question.names[len(answers)])
            answers.append(answer if callback is None else callback(answer))
        if len(answers) == len(question.names):
            self._sent.popleft()
            _tell(question, answers)
            if not self._sent:
                self._show_empty()
            if any(isinstance(each, Refusal) and each.reason in DEMOTED for each in answers):
                self._lose("connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; whether what was sent was done is unknown."""
        self._lose("connection")

    def _check(self) -> None:
        self._watch = None
        if not self._sent:
            return
        loop = asyncio.get_running_loop()
        asked, now = self._sent[0].asked_at, loop.time()
        if now - max(asked, self._heard_at) > self._timeout or now - asked > self._timeout * DRIPPING:
            # an answer that comes late would be taken for another question's
            self._lose("timeout")
        else:
            self._watch = loop.call_later(self._timeout / 4, self._check)

    def _lose(self, reason: str) -> None:
        transport, opened, self._transport, self._opened = self._transport, self._opened, None, None
        if opened is not None:
            opened._writer = opened._reader = None  # it would speak up for a socket that is no longer its own
        if transport is not None:
            transport.abort()
        sent, self._sent, self._leaving = self._sent, deque(), []
        _fail(sent, reason)
        self._show_empty()

    # --- the end ---

    async def close(self) -> None:
        """Wait for what is under way (bounded by the timeouts), then close the socket."""
        while self._sent or self._unsent or self._opening is not None:
            self._empty = self._empty or asyncio.Event()
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._empty.wait()
        self._lose("connection")
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _show_empty(self) -> None:
        if self._empty is not None:
            self._empty.set()


def _fail(questions: Sequence[_Question] | deque[_Question], reason: str) -> None:
    for question in questions:
        _tell(question, StoreUnavailable(reason))


def _tell(question: _Question, answers: Answers) -> None:
    """Call back; what is raised there is a fault of ours, which shall not be felt by those who wait behind."""
    try:
        question.then(answers)
    except Exception as error:  # noqa: BLE001
        log.error("a callback of the store failed", extra={"kind": type(error).__name__})


class Client:
    """A way through a client of redis-py's kind that somebody else made and will close."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def ask(self, commands: Sequence[Command], then: Then) -> None:
        """Send these in one pipeline."""
        task = asyncio.create_task(self._ask(commands, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, commands: Sequence[Command], then: Then) -> None:
        answers: Answers = StoreUnavailable("client")
        try:
            async with self._turn:
                pipeline = self._client.pipeline(transaction=False)
                for each in commands:
                    pipeline.execute_command(*each.args)
                raw = await pipeline.execute(raise_on_error=False)
            answers = [_refusal(answer) if isinstance(answer, Exception) else answer for answer in raw]
        except FOREIGN as error:
            answers = StoreUnavailable(reason_of(error))
        finally:
            # whatever happened, nobody is left waiting for an answer
            then(answers)

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)


def _refusal(error: Exception) -> Refusal:
    refusal = Refusal("")
    refusal.reason = reason_of(error)
    return refusal
