"""A node's copy of the health table, and how a credential stands in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from broker.domain.credential import Credential
from broker.domain.health import (
    BLOCKING,
    OUT,
    AuthHealth,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    limits_of,
    model_subject,
    pause_subject,
    rate_subject,
)
from broker.domain.limits import Limits

DOUBLINGS = 10
"""After how many doublings of its load one that came back carries as much as anybody."""


class Verdict(msgspec.Struct, frozen=True):
    """How a credential stands for one model right now.

    `rank` 0 is trusted, 1 doubted (SUSPECT, or its limits are nearly used up), 2 spared (its endpoint is overloaded),
    3 out on soft evidence alone, None blocked. `row` is the row that decided, where there is one. `half_open`: its
    block has run out, and whoever holds the licence for `row` may try it. `ramp` is the row by which it came back a
    moment ago.
    """

    rank: int | None
    row: AuthHealth | None = None
    half_open: bool = False
    ramp: AuthHealth | None = None

    @property
    def usable(self) -> bool:
        """Whether a turn may be placed on it without further ado."""
        return self.rank is not None


_TRUSTED = Verdict(0)


@dataclass(slots=True)
class HealthSnapshot:
    """This node's copy of the table; reading it costs no round trip. `limits` are those nearly used up, by group."""

    rows: dict[str, AuthHealth] = field(default_factory=dict)
    limits: dict[str, Limits] = field(default_factory=dict)

    @property
    def clear(self) -> bool:
        """Whether nothing is held against anybody."""
        return not self.rows and not self.limits

    def verdict(self, credential: Credential, model: str, now: float) -> Verdict:
        """How `credential` stands for `model` at `now` (store's clock, seconds)."""
        if self.clear:
            return _TRUSTED
        endpoint = self.rows.get(endpoint_subject(credential))
        if endpoint is not None and endpoint.state is HealthState.PAUSED and endpoint.holds(now):
            return Verdict(None, endpoint)
        rows = self._about(credential, model)
        if not rows:
            return self._behind(credential, endpoint, _TRUSTED, now)
        blocks = [row for row in rows if row.state in BLOCKING and not row.soft and row.holds(now)]
        if blocks:
            # it is free when the last of its blocks has ended
            return Verdict(None, max(blocks, key=_ends))
        ran_out = [row for row in rows if row.half_open(now)]
        if ran_out:
            return Verdict(None, max(ran_out, key=_ends), half_open=True)
        return self._behind(credential, endpoint, _usable(rows, now), now)

    def _about(self, credential: Credential, model: str) -> list[AuthHealth]:
        rows = self.rows
        subjects = (
            credential_subject(credential),
            pause_subject(credential),
            group_subject(credential),
            rate_subject(credential, model),
            model_subject(credential, model),
        )
        return [row for subject in subjects if (row := rows.get(subject)) is not None]

    def _behind(self, credential: Credential, endpoint: AuthHealth | None, verdict: Verdict, now: float) -> Verdict:
        """What the vendor said about its limits, and an endpoint's overload, make it come behind others."""
        rank = verdict.rank or 0
        if endpoint is not None and endpoint.state in OUT and endpoint.holds(now) and rank < 2:
            # an overloaded endpoint is spared, but it never takes the whole pool away
            return Verdict(2, endpoint, ramp=verdict.ramp)
        limits = self.limits.get(limits_of(credential))
        if rank == 0 and limits is not None and limits.nearly_used(now):
            return Verdict(1, verdict.row, ramp=verdict.ramp)
        return verdict

    def ailing(self, credential: Credential, model: str) -> list[AuthHealth]:
        """The rows that a success of `credential` with `model` would disprove."""
        if not self.rows:
            return []
        rows = self._about(credential, model)
        if (endpoint := self.rows.get(endpoint_subject(credential))) is not None:
            rows.append(endpoint)
        return [row for row in rows if row.state not in _NOTHING_TO_DISPROVE]

    def earliest_reset(self, pool: Iterable[Credential], model: str, now: float) -> float | None:
        """The earliest time, named by a vendor, at which one of `pool` is usable again; None if nobody named one."""
        times = []
        for credential in pool:
            row = self.verdict(credential, model, now).row
            if row is not None and row.told and row.until > now:
                times.append(row.until)
        return min(times, default=None)

    def put(self, row: AuthHealth) -> None:
        """Take over one row as the store has it; one that says nothing any more is no row."""
        if row.state is HealthState.HEALTHY and not row.returned:
            self.rows.pop(row.subject, None)
        else:
            self.rows[row.subject] = row

    def replace(self, rows: Mapping[str, AuthHealth], now: float) -> None:
        """Take over the whole table. A row that healed some time ago is kept there; here it is no row."""
        self.rows = {
            subject: row for subject, row in rows.items() if row.state is not HealthState.HEALTHY or ramps(row, now)
        }


_NOTHING_TO_DISPROVE = frozenset({HealthState.HEALTHY, HealthState.PAUSED})


def ramps(row: AuthHealth, now: float) -> bool:
    """Whether what came back by this row is still to be used with care."""
    return row.returned > 0.0 and now - row.returned < DOUBLINGS * row.pace


def _usable(rows: list[AuthHealth], now: float) -> Verdict:
    """The verdict where nothing blocks for certain: the worst of what is left."""
    rank, decided, ramp = 0, None, None
    for row in rows:
        if ramps(row, now) and (ramp is None or row.returned > ramp.returned):
            ramp = row
        worse = _rank(row, now)
        if worse > rank or (decided is None and row.state is not HealthState.HEALTHY):
            rank, decided = max(worse, rank), row
    return Verdict(rank, decided, ramp=ramp)


def _rank(row: AuthHealth, now: float) -> int:
    if row.state in OUT:
        return 3 if row.holds(now) else 1
    return 1 if row.state is HealthState.SUSPECT and row.holds(now) else 0


def _ends(row: AuthHealth) -> float:
    return row.until or math.inf
