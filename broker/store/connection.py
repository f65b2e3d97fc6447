"""The connection to Redis: one adapter, so that nothing of the client library is seen beyond it.

Commands go out on two pipelined sockets, one for what is small and one for what is large. A caller that is cancelled
never leaves a half-sent command behind, and what it asked for is done all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker.store.commands import Arg, Command, call, command
from broker.store.pipe import Answers, Client, Pipe, Then, Way
from broker.store.reasons import REFUSED, Refusal, StoreUnavailable
from broker.store.scripts import Script

__all__ = ["BULKY", "REFUSED", "Answers", "Command", "Connection", "StoreUnavailable", "call", "command"]

BULKY = 64 * 1024
"""Bytes from which a command takes the socket for large ones: small turns shall not wait behind it."""


class Connection:
    """The connection to one server.

    `timeout` and `connect_timeout` are seconds. A write is never repeated here: only who knows that it is idempotent
    may do that. A read is repeated once on a fresh socket. `round_trips` counts the questions.
    """

    def __init__(self, url: str, *, timeout: float = 1.0, connect_timeout: float = 0.5) -> None:
        # RESP2: no push frames between the answers, no maintenance notifications, no HELLO per socket
        pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout,
            socket_connect_timeout=connect_timeout,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        self._small: Way = Pipe(pool, timeout)
        self._large: Way = Pipe(pool, timeout)
        self.round_trips = 0

    @classmethod
    def over(cls, client: Any) -> Connection:
        """A connection over a client that somebody else made and will close."""
        made = cls.__new__(cls)
        made._small = made._large = Client(client)
        made.round_trips = 0
        return made

    async def ask(self, *commands: Command, read: bool = False, bulky: bool = False) -> list[Any]:
        """The answers to these commands, in order; raises `StoreUnavailable`.

        They are sent together, but they are no transaction. `read` says that asking again does no harm, `bulky` that
        they or their answers are large.
        """
        try:
            return await self._future(commands, bulky)
        except StoreUnavailable as lost:
            if not read or lost.reason != "connection":
                raise
        return await self._future(commands, bulky)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg], *, read: bool = False) -> Any:
        """The answer of one script."""
        return (await self.ask(call(script, keys, args), read=read))[0]

    async def ping(self) -> None:
        """Returns if the server answers."""
        await self.ask(command("PING"), read=True)

    async def close(self) -> None:
        """Wait for what is under way (bounded by the timeouts), then close all sockets."""
        await self._small.close()
        await self._large.close()

    def submit(self, commands: Sequence[Command], then: Then, *, bulky: bool = False) -> None:
        """Ask, and call `then` from the loop, never at once, with the answers or with why there are none."""
        self.round_trips += 1
        way = self._large if bulky else self._small

        def answered(answers: Answers) -> None:
            if isinstance(answers, list) and any(type(each) is Refusal for each in answers):
                if unknown := [i for i, each in enumerate(answers) if _reason_in(each) == "noscript"]:
                    self._teach(way, commands, answers, unknown, then)
                    return
                answers = _settled(answers)
            then(answers)

        way.ask(commands, answered)

    def _teach(
        self, way: Way, commands: Sequence[Command], answers: list[Any], unknown: Sequence[int], then: Then
    ) -> None:
        """The server has lost a script, so it has done nothing: this repetition is safe, and happens once."""
        self.round_trips += 1

        def learnt(more: Answers) -> None:
            if isinstance(more, list):
                for i, answer in zip(unknown, more, strict=True):
                    answers[i] = answer
                more = _settled(answers)
            then(more)

        way.ask([commands[i].in_full() for i in unknown], learnt)

    def _future(self, commands: Sequence[Command], bulky: bool) -> asyncio.Future[list[Any]]:
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def answered(answers: Answers) -> None:
            if answer.done():
                return
            if isinstance(answers, StoreUnavailable):
                answer.set_exception(answers)
            else:
                answer.set_result(answers)

        self.submit(commands, answered, bulky=bulky)
        return answer


def _reason_in(answer: Any) -> str | None:
    """The word of an answer that is a refusal."""
    return answer.reason if isinstance(answer, Refusal) else None


def _settled(answers: list[Any]) -> Answers:
    """The answers, or what the first refusal among them says: whoever asks for several things needs all of them."""
    refused = next((word for word in map(_reason_in, answers) if word is not None), None)
    return answers if refused is None else StoreUnavailable(refused)
