"""The way to Redis: one adapter, so that nothing of the client library is seen beyond it.

Commands that are asked for in the same tick of the loop leave together, in one non-transactional pipeline, and are sent
by a task of the connection itself. So a caller that is cancelled never leaves a half-sent command behind, and what it
asked for is done all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
from redis import exceptions as errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker.store.scripts import Script

Arg = str | bytes | int | float

POOL = 16
"""Sockets at most. Few are needed, as a tick shares one."""

BATCH_COMMANDS = 512
BATCH_BYTES = 1 << 20
"""A batch is closed once it has as much as this: small turns shall not wait behind all the large ones."""


class StoreUnavailable(Exception):
    """The store cannot be asked, or does not answer. Whether a write was done is unknown.

    `reason` is a short token, safe for logs and labels; it never holds a key, a value or an address.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Command:
    """One command, and the script behind it if it calls one."""

    args: tuple[Arg, ...]
    script: Script | None = None

    @property
    def weight(self) -> int:
        """About how many bytes it has on the wire."""
        return sum(len(arg) if isinstance(arg, str | bytes) else 8 for arg in self.args)

    def in_full(self) -> Command:
        """The same call with the text of the script, which also teaches it to the server."""
        return Command(("EVAL", self.script.text, *self.args[2:])) if self.script is not None else self


def command(*args: Arg) -> Command:
    """A plain command."""
    return Command(args)


def call(script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Command:
    """A call of a script."""
    return Command(("EVALSHA", script.sha, len(keys), *keys, *args), script)


@dataclass(slots=True)
class _Asked:
    commands: Sequence[Command]
    answer: asyncio.Future[list[Any]]


# the first row that fits wins: MasterDown is a ClusterDown, BusyLoading and Authentication are ConnectionErrors
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (errors.NoScriptError, "noscript"),
    (errors.ReadOnlyError, "readonly"),
    (errors.BusyLoadingError, "loading"),
    (errors.OutOfMemoryError, "oom"),
    (errors.MasterDownError, "masterdown"),
    (errors.ClusterDownError, "clusterdown"),
    (errors.TryAgainError, "tryagain"),
    (errors.AskError, "moved"),
    (errors.NoPermissionError, "noperm"),
    (errors.AuthenticationError, "auth"),
    (errors.TimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (errors.InvalidResponse, "protocol"),
    (errors.ConnectionError, "connection"),
    (OSError, "connection"),
)

# codes that the client library has no class for
_CODES = {"MISCONF": "misconf", "NOREPLICAS": "noreplicas", "BUSY": "busy"}

REFUSED = "refused"
"""The reason where a server understood a command and would not do it; the next time it will be the same."""

_FOREIGN = (errors.RedisError, OSError, asyncio.TimeoutError, AttributeError, TypeError)
"""What escapes the client library; the last two when a connection goes away at a bad moment."""

_DEMOTED = frozenset({"readonly", "masterdown", "moved"})
"""Answers of a server that is no longer the one to talk to: its sockets are given up, not reused."""


def reason(error: BaseException) -> str:
    """The short token for whatever the client library raised."""
    for kind, token in _REASONS:
        if isinstance(error, kind):
            return token
    if isinstance(error, errors.ResponseError):
        return _CODES.get(str(error).split(" ", 1)[0], REFUSED)
    return "client"


class Connection:
    """A pool of sockets to one server.

    `timeout` and `connect_timeout` are seconds. A write is never repeated here: only who knows that it is idempotent
    may do that. A read is repeated once on a fresh socket. `round_trips` counts how often this went to the server.
    """

    def __init__(self, url: str, *, timeout: float = 1.0, connect_timeout: float = 0.5) -> None:
        # RESP2: no push frames between the answers of a pipeline, no maintenance notifications, no HELLO per socket
        self._pool: BlockingConnectionPool | None = BlockingConnectionPool.from_url(
            url,
            max_connections=POOL,
            timeout=timeout,
            protocol=2,
            socket_timeout=timeout,
            socket_connect_timeout=connect_timeout,
            health_check_interval=10,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        self._start(Redis(connection_pool=self._pool))

    @classmethod
    def over(cls, client: Any) -> Connection:
        """A connection over a client that somebody else made and will close."""
        made = cls.__new__(cls)
        made._pool = None
        made._start(client)
        return made

    def _start(self, client: Any) -> None:
        self._client = client
        self._asked: list[_Asked] = []
        self._sending: set[asyncio.Task[None]] = set()
        self.round_trips = 0

    async def ask(self, *commands: Command, read: bool = False) -> list[Any]:
        """The answers to these commands, in order; raises `StoreUnavailable`.

        They are sent together, but they are no transaction. `read` says that asking again does no harm.
        """
        try:
            return await self._queue(commands)
        except StoreUnavailable as lost:
            if not read or lost.reason != "connection":
                raise
        return await self._queue(commands)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg], *, read: bool = False) -> Any:
        """The answer of one script."""
        return (await self.ask(call(script, keys, args), read=read))[0]

    async def ping(self) -> None:
        """Returns if the server answers."""
        await self.ask(command("PING"), read=True)

    async def close(self) -> None:
        """Wait for what is under way (bounded by the timeouts), then close all sockets."""
        while self._asked or self._sending:
            await asyncio.sleep(0)
            await asyncio.gather(*self._sending, return_exceptions=True)
        if self._pool is not None:
            await self._client.aclose()
            await self._pool.aclose()

    def _queue(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._send)
        asked = _Asked(commands, loop.create_future())
        self._asked.append(asked)
        return asked.answer

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        for batch in _batches(asked):
            task = asyncio.create_task(self._deliver(batch))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _deliver(self, batch: list[_Asked]) -> None:
        failure = "client"
        try:
            answers = iter(await self._exchange([command for asked in batch for command in asked.commands]))
            for asked in batch:
                _answer(asked, [next(answers) for _ in asked.commands])
        except _FOREIGN as error:
            failure = reason(error)
        finally:
            # whatever happened, nobody is left waiting for an answer
            for asked in batch:
                _fail(asked, failure)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        answers = await self._pipeline(commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, errors.NoScriptError)]
        if unknown:
            # the server has lost the script, so it has done nothing: this repetition is safe, and happens once
            again = await self._pipeline([commands[i].in_full() for i in unknown])
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        if any(isinstance(answer, Exception) and reason(answer) in _DEMOTED for answer in answers):
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return answers

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        self.round_trips += 1
        if self._pool is not None:
            return await self._packed(self._pool, commands)
        pipeline = self._client.pipeline(transaction=False)
        for each in commands:
            pipeline.execute_command(*each.args)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _packed(self, pool: BlockingConnectionPool, commands: Sequence[Command]) -> list[Any]:
        """What a pipeline does, packed in C: redis-py's own packing was the greatest part of a commit's cost."""
        socket: Any = await pool.get_connection()  # type: ignore[no-untyped-call]
        clean = False
        try:
            await socket.send_packed_command(b"".join([_pack(each.args) for each in commands]))
            answers = [await self._read(socket, str(each.args[0])) for each in commands]
            clean = True
            return answers
        finally:
            if not clean:
                # an answer that nobody has read would be taken for the next question's
                await socket.disconnect(nowait=True)
            await pool.release(socket)

    async def _read(self, socket: Any, name: str) -> Any:
        try:
            answer = await socket.read_response()
        except errors.ResponseError as refused:
            return refused
        callback = self._client.response_callbacks.get(name)
        return callback(answer) if callback is not None else answer


def _pack(args: tuple[Any, ...]) -> bytes:
    if " " in args[0]:
        args = (*args[0].split(), *args[1:])  # a command of two words
    packed: bytes = hiredis.pack_command(args)
    return packed


def _answer(asked: _Asked, answers: list[Any]) -> None:
    failed = next((answer for answer in answers if isinstance(answer, Exception)), None)
    if failed is not None:
        _fail(asked, reason(failed))
    elif not asked.answer.done():
        asked.answer.set_result(answers)


def _fail(asked: _Asked, token: str) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(StoreUnavailable(token))


def _batches(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    batch: list[_Asked] = []
    commands = weight = 0
    for each in asked:
        batch.append(each)
        commands += len(each.commands)
        weight += sum(command.weight for command in each.commands)
        if commands >= BATCH_COMMANDS or weight >= BATCH_BYTES:
            yield batch
            batch, commands, weight = [], 0, 0
    if batch:
        yield batch
