"""What the janitor needs of the store: to look at the keys bit by bit, and to remove what nobody will want again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.store import keys, scripts
from broker.store.connection import Connection, call, command


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at some keys has shown: where the next one begins (0: all were seen), how many keys there were,
    those that have no TTL, and the index entries of responses whose session is gone, each with its sid."""

    cursor: int
    seen: int
    endless: Sequence[bytes]
    orphans: Mapping[bytes, bytes]


class SweepStore:
    """Small steps of cleaning. Every method may raise `StoreUnavailable`, and may be asked again."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def look(self, cursor: int, count: int) -> Look:
        """Look at about `count` keys of all kinds, and more closely at those of sessions and responses among them."""
        ((following, found),) = await self._connection.ask(
            command("SCAN", cursor, "MATCH", keys.SWEPT, "COUNT", count), read=True
        )
        if not found:
            return Look(int(following), 0, (), {})
        ttls = await self._connection.ask(*(command("PTTL", key) for key in found), read=True)
        return Look(
            int(following),
            len(found),
            [key for key, ttl in zip(found, ttls, strict=True) if ttl == -1],
            await self.orphans([key for key in found if key.startswith(keys.RESPONSES)]),
        )

    async def orphans(self, entries: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those index entries that lead to a session which is not there, each with its sid. Two round trips."""
        if not entries:
            return {}
        # MGET, one by one: what is of another type is no entry, and no reason to stop
        answers = await self._connection.ask(*(command("MGET", key) for key in entries), read=True)
        sids = {key: sid for key, (sid,) in zip(entries, answers, strict=True) if sid is not None}
        if not sids:
            return {}
        wanted = (command("EXISTS", keys.session(sid.decode("utf-8", "replace"))) for sid in sids.values())
        there = await self._connection.ask(*wanted, read=True)
        return {key: sid for (key, sid), known in zip(sids.items(), there, strict=True) if not known}

    async def limit(self, endless: Sequence[bytes], ttl: float) -> int:
        """Let these keys live for `ttl` seconds, where they still have no end; the answer is how many got one."""
        if not endless:
            return 0
        milliseconds = math.ceil(ttl * 1000)
        given = await self._connection.ask(*(command("PEXPIRE", key, milliseconds, "NX") for key in endless), read=True)
        return sum(map(int, given))

    async def forget_responses(self, orphans: Mapping[bytes, bytes]) -> int:
        """Remove these index entries, where they still lead to the same sid; the answer is how many were removed."""
        if not orphans:
            return 0
        wanted = (call(scripts.FORGET_RESPONSE, (key.decode(),), (sid,)) for key, sid in orphans.items())
        return sum(map(int, await self._connection.ask(*wanted, read=True)))

    async def health_rows(self) -> tuple[dict[str, bytes], float]:
        """All rows of the health table byte for byte, by subject, and the store's time in seconds."""
        rows, (seconds, micros) = await self._connection.ask(
            command("HGETALL", keys.health_rows()), command("TIME"), read=True
        )
        return {subject.decode(): row for subject, row in rows.items()}, int(seconds) + int(micros) / 1e6

    async def forget_rows(self, rows: Mapping[str, bytes]) -> int:
        """Remove these rows, where they are still the same; the answer is how many were removed."""
        if not rows:
            return 0
        wanted = (call(scripts.FORGET_ROW, (keys.health_rows(),), row) for row in rows.items())
        return sum(map(int, await self._connection.ask(*wanted, read=True)))

    async def trim_events(self, older_than: float) -> int:
        """Forget the events of health that are older than that many seconds; the answer is how many there were."""
        return int(await self._connection.run(scripts.TRIM_EVENTS, (keys.health_events(),), (repr(older_than),)))
