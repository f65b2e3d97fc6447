"""The audit stream of the health table, as recorders read it: each entry is given to one, until it is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.store import keys, scripts
from broker.store.connection import Connection, command

GROUP = "recorder"
"""The consumer group."""

CONSUMERS_LIVE = 3600.0
"""Seconds after which a consumer of which nobody has heard, and that has nothing, is forgotten."""

PROGRESS_LIVES = 30 * 86400
"""Seconds for which it is known how far the recorders have come."""


class HealthEvent(msgspec.Struct, frozen=True):
    """One change of a row. Times are seconds of the store's clock; `at` is when it was written, by its id.

    What an entry does not hold, or holds in a form that cannot be read, is empty, 0 or False.
    """

    id: str
    at: float
    subject: str = ""
    from_: str = msgspec.field(name="from", default="")
    state: str = ""
    until: float = 0.0
    since: float = 0.0
    because: str = ""
    evidence: str = ""
    told: bool = False
    soft: bool = False
    strikes: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Some events, the oldest first, and how many were lost: trimmed before anybody had them, or had recorded them."""

    events: Sequence[HealthEvent]
    lost: int


class EventStore:
    """The stream with its one consumer group. Every method may raise `StoreUnavailable`; each is one round trip.

    Nothing here waits for something to happen: the socket is everybody's.
    """

    def __init__(self, connection: Connection, *, consumers_live: float = CONSUMERS_LIVE) -> None:
        self._connection = connection
        self._consumers_live = consumers_live

    async def read(self, consumer: str, count: int) -> Batch:
        """At most `count` events that no consumer was given before; from now on they are this consumer's.

        A lost entry is told here once, to whoever reads next. Where the answer is lost, `reclaim` brings the events.
        """
        args = (GROUP, consumer, count, PROGRESS_LIVES)
        return await self._batch(scripts.READ_EVENTS, args)

    async def reclaim(self, consumer: str, idle: float, count: int) -> Batch:
        """At most `count` events that somebody was given `idle` seconds ago or earlier and has not acknowledged."""
        args = (GROUP, consumer, int(idle * 1000), count, int(self._consumers_live * 1000), PROGRESS_LIVES)
        return await self._batch(scripts.RECLAIM_EVENTS, args)

    async def ack(self, ids: Sequence[str]) -> None:
        """These need not be given to anybody again. Asked again, it changes nothing."""
        if ids:
            await self._connection.ask(command("XACK", keys.health_events(), GROUP, *ids), read=True)

    async def lost(self) -> int:
        """How many events were ever found to be lost, whoever found it."""
        (found,) = await self._connection.ask(command("HGET", keys.health_recorder(), "missed"), read=True)
        return int(found or 0)

    async def _batch(self, script: scripts.Script, args: Sequence[str | int]) -> Batch:
        lost, entries = await self._connection.run(script, (keys.health_events(), keys.health_recorder()), args)
        return Batch([event_of(id_, fields) for id_, fields in entries], int(lost))


def event_of(id_: bytes, fields: Sequence[bytes]) -> HealthEvent:
    """The event that an entry of the stream tells."""
    flat = [each.decode("utf-8", "replace") for each in fields]
    said: dict[str, str] = dict(zip(flat[::2], flat[1::2], strict=False))
    text = id_.decode()
    return HealthEvent(
        id=text,
        at=int(text.partition("-")[0]) / 1000,
        subject=said.get("subject", ""),
        from_=said.get("from", ""),
        state=said.get("state", ""),
        until=_number(said.get("until")),
        since=_number(said.get("since")),
        because=said.get("because", ""),
        evidence=said.get("evidence", ""),
        told=said.get("told") == "true",
        soft=said.get("soft") == "true",
        strikes=int(_number(said.get("strikes"))),
        version=int(_number(said.get("version"))),
    )


def _number(text: Any) -> float:
    """A finite number, 0 for anything else."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return 0.0
    return value if abs(value) < 1e18 else 0.0
