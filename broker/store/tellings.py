"""What webhooks are owed: kept until one worker has told it, or has given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from broker.store import keys, scripts
from broker.store.commands import Command
from broker.store.connection import Connection, call
from broker.store.events import HealthEvent

MOST_OWED = 1000
"""How many events one webhook may be owed."""

CLAIM = 60.0
"""Seconds after which another worker takes over what one has claimed and not ended."""

KNOWN = 86400
"""Seconds for which it is known that something was told; also for which anything is owed."""

_event = msgspec.json.Decoder(HealthEvent).decode


class Telling(msgspec.Struct, frozen=True):
    """What this worker, and nobody else, is to tell a webhook now: an event, or that there were `more` of them."""

    hook: str
    id: str
    event: HealthEvent | None = None
    more: int = 0


class Ended(msgspec.Struct, frozen=True):
    """How a telling ended: `done` (told or given up), or another worker shall tell it."""

    telling: Telling
    done: bool


@dataclass(frozen=True, slots=True)
class Claims:
    """What was claimed, and by webhook how many events went into the summary of their window instead."""

    tellings: Sequence[Telling]
    capped: Mapping[str, int]


class TellingStore:
    """What is owed. Every method may raise `StoreUnavailable`, and is one round trip.

    A webhook hears `per_minute` events at most in one `window` of seconds, and then how many more there were. What a
    worker has claimed with its token is its own for `claim` seconds.
    """

    def __init__(
        self,
        connection: Connection,
        token: str,
        *,
        claim: float = CLAIM,
        window: float = 60.0,
        most_owed: int = MOST_OWED,
    ) -> None:
        self._connection = connection
        self._token = token
        self._claim = int(claim * 1000)
        self._window = int(window * 1000)
        self._most_owed = most_owed

    async def owe(self, wanted: Sequence[tuple[str, HealthEvent]]) -> list[str]:
        """Let these webhooks be told these events; the answer names the webhooks that are owed too much already, once
        for each event that is lost to them. One that was owed or told before changes nothing."""
        if not wanted:
            return []
        said = await self._connection.ask(*(self._owing(hook, event) for hook, event in wanted), read=True)
        return [hook for (hook, _), word in zip(wanted, said, strict=True) if word == b"full"]

    def _owing(self, hook: str, event: HealthEvent) -> Command:
        at_keys = *keys.health_owed(hook), keys.health_told(hook, event.id)
        return call(scripts.OWE, at_keys, (event.id, msgspec.json.encode(event), self._most_owed, KNOWN))

    async def owed(self, hooks: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        """What may be claimed now: webhook and id, for each webhook at most so many, the oldest first."""
        wanted = (call(scripts.OWED, keys.health_owed(hook)[:1], (count,)) for hook, count in hooks)
        found = await self._connection.ask(*wanted, read=True) if hooks else []
        return [(hook, each.decode()) for (hook, _), ids in zip(hooks, found, strict=True) for each in ids]

    async def claim(self, wanted: Sequence[tuple[str, str, int]]) -> Claims:
        """Claim these: webhook, id, and how many events that webhook hears per window.

        Where the answer is lost, what was claimed is told by whoever claims it when the claim has ended.
        """
        if not wanted:
            return Claims([], {})
        said = await self._connection.ask(*(self._claiming(*each) for each in wanted))
        tellings, capped = [], Counter[str]()
        for (hook, id_, _), (word, *what) in zip(wanted, said, strict=True):
            if word == b"claimed":
                tellings.append(Telling(hook, id_, event=_readable(what[0], id_)))
            elif word == b"summary":
                tellings.append(Telling(hook, id_, more=int(what[0])))
            elif word == b"capped":
                capped[hook] += 1
        return Claims(tellings, capped)

    def _claiming(self, hook: str, id_: str, per_minute: int) -> Command:
        args = id_, self._token, self._claim, per_minute, self._window, KNOWN
        return call(scripts.CLAIM_TELLING, _keys_of(hook, id_), args)

    async def end(self, ended: Sequence[Ended]) -> None:
        """Note how these ended. Asked again, it changes nothing."""
        if ended:
            await self._connection.ask(*map(self._ending, ended), read=True)

    def _ending(self, ended: Ended) -> Command:
        telling = ended.telling
        args = "done" if ended.done else "drop", telling.id, self._token, KNOWN
        return call(scripts.END_TELLING, _keys_of(telling.hook, telling.id), args)


def _readable(raw: bytes, id_: str) -> HealthEvent:
    """The event; of one that another version has written otherwise, only that there was one."""
    try:
        return _event(raw)
    except msgspec.MsgspecError:
        return HealthEvent(id_, 0.0)


def _keys_of(hook: str, id_: str) -> tuple[str, ...]:
    return *keys.health_owed(hook), keys.health_told(hook, id_), keys.health_pace(hook)
