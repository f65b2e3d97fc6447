"""The health table in Redis, shared by all nodes, the stream of what happened to it, and who may try whom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from broker.domain import health as rule
from broker.domain.health import AuthHealth, HealthReport
from broker.domain.limits import Limits
from broker.store import keys, scripts
from broker.store.connection import Connection, command
from broker.store.reading import readable

MAX_EVENTS = 10_000
"""About how many events the stream keeps."""

_row = msgspec.json.Decoder(AuthHealth).decode
_limits = msgspec.json.Decoder(Limits).decode

_RULE = msgspec.json.encode(
    {
        "max_block": rule.MAX_BLOCK,
        "max_level": rule.MAX_LEVEL,
        "calm": rule.CALM,
        "first_dwell": rule.FIRST_DWELL,
        "dwell_grows": rule.DWELL_GROWS,
        "longest_dwell": rule.LONGEST_DWELL,
        "max_strikes": rule.MAX_STRIKES,
        "slowest_pace": rule.SLOWEST_PACE,
        "fastest_pace": rule.FASTEST_PACE,
        "pace_of_block": rule.PACE_OF_BLOCK,
    }
)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a report came to: the row as it is now, the store's time (seconds) at which it was ruled, and whether the
    report changed it."""

    row: AuthHealth
    at: float
    changed: bool


@dataclass(frozen=True, slots=True)
class Table:
    """All rows by subject, what is known of limits by limit group, and the store's time in seconds."""

    rows: Mapping[str, AuthHealth]
    limits: Mapping[str, Limits]
    now: float


class Claim(NamedTuple):
    """Slots that a node holds, that all hold together, and that it may have at most while others want theirs."""

    held: int
    of_all: int
    most: int


class HealthStore:
    """The table. Every method may raise `StoreUnavailable`; each is one round trip."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def report(self, report: HealthReport) -> Ruling:
        """Tell the table an outcome. Idempotent: asked again, it changes nothing."""
        if not all(map(math.isfinite, (report.lasting, report.until or 0.0, report.at, report.began, report.at_most))):
            raise ValueError("a block has an end")
        row, at, changed = await self._connection.run(
            scripts.REPORT,
            (keys.health_rows(), keys.health_events()),
            (msgspec.json.encode(report), _RULE, MAX_EVENTS, keys.health_channel()),
        )
        return Ruling(_row(row), float(at), changed == b"1")

    async def table(self) -> Table:
        """The whole table."""
        rows, limits, (seconds, micros) = await self._connection.ask(
            command("HGETALL", keys.health_rows()), command("HGETALL", keys.health_limits()), command("TIME"), read=True
        )
        return Table(readable(rows, _row), readable(limits, _limits), int(seconds) + int(micros) / 1e6)

    async def note_limits(self, group: str, limits: Limits) -> None:
        """What a vendor said about the limits of a group; the newest is what counts, and none is kept for long."""
        await self._connection.ask(
            command("HSET", keys.health_limits(), group, msgspec.json.encode(limits)),
            command("EXPIRE", keys.health_limits(), LIMITS_LIVE),
        )

    # --- who may try one whose block has run out, and how many turns a node may run at once ---

    async def license(self, row: AuthHealth, token: str, lasting: float) -> bool:
        """Ask to be the only one who tries `row` for `lasting` seconds.

        Refused while somebody else is at it, and where the row has changed since it was seen: then the answer is there.
        """
        return await self._licence("take", row.subject, row.version, token, lasting)

    async def renew(self, subject: str, token: str, lasting: float) -> bool:
        """Keep a licence; False if it is no longer held."""
        return await self._licence("keep", subject, 0, token, lasting)

    async def give_back(self, subject: str, token: str) -> bool:
        """Let others try; a licence that was never used or brought no answer."""
        return await self._licence("drop", subject, 0, token, 0.0)

    async def _licence(self, act: str, subject: str, version: int, token: str, lasting: float) -> bool:
        answer = await self._connection.run(
            scripts.LICENCE,
            (keys.health_rows(), keys.health_licence(subject)),
            (act, subject, version, token, int(lasting * 1000)),
        )
        return bool(answer == b"1")

    async def claim(
        self, credential: str, node: str, slots: int, *, used: int, cap: int, lasting: float, wants: int = 0
    ) -> Claim:
        """Hold `slots` of the `cap` turns that all nodes together may run at once; renew within `lasting` seconds.

        `used` are in use now, and held in any case; `wants` is how many the node has use for. It says how many, not how
        many more: asked again, it changes nothing, and a node that dies loses its own.
        """
        held, of_all, most = await self._connection.run(
            scripts.CLAIM,
            (keys.health_slots(credential),),
            (node, slots, used, cap, int(lasting * 1000), max(wants, slots)),
        )
        return Claim(int(held), int(of_all), int(most))


LIMITS_LIVE = 86400
"""Seconds after which limits of which nobody has heard any more are forgotten."""
