"""Auth health: what all nodes know about a credential, and how much of a pool it leaves usable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from broker.domain.credential import Credential


class HealthState(StrEnum):
    """The states of a row, from best to worst."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    COOLING = "cooling"
    EXHAUSTED = "exhausted"
    REVOKED = "revoked"
    PAUSED = "paused"

    @property
    def severity(self) -> int:
        """Rises from HEALTHY (0) to PAUSED (5); a milder report never replaces a graver row that still holds."""
        return _SEVERITY[self]


_SEVERITY = {state: index for index, state in enumerate(HealthState)}

BLOCKING = frozenset({HealthState.COOLING, HealthState.EXHAUSTED, HealthState.REVOKED, HealthState.PAUSED})

MAX_BLOCK = 7 * 86400.0
"""Seconds after which any block but PAUSED ends by itself, whatever a vendor said."""


@dataclass(frozen=True, slots=True)
class AuthHealth:
    """One row of the table. Times are seconds of the store's clock; `until` 0 means until somebody ends it.

    `told` says that the vendor itself named `until`: only such a time may be told on to a client.
    """

    subject: str
    state: HealthState
    until: float = 0.0
    since: float = 0.0
    because: str = ""
    evidence: str = ""
    told: bool = False
    version: int = 0

    def holds(self, now: float) -> bool:
        """Whether the state is still in force; afterwards the credential may be tried, but is not yet trusted."""
        return self.until == 0.0 or now < self.until


@dataclass(frozen=True, slots=True)
class HealthReport:
    """An outcome told to the table: put `subject` into `state` for `lasting` seconds, or until `until` if told.

    A recovery (HEALTHY) names the `version` of the row it saw before the turn began; a row that changed since stays
    as it is, so a success of an older request cannot clear a newer failure.
    """

    subject: str
    state: HealthState
    lasting: float = 0.0
    until: float | None = None
    because: str = ""
    evidence: str = ""
    version: int = 0


def credential_subject(credential: Credential) -> str:
    """The row of one credential."""
    return f"credential:{credential.name}"


def group_subject(credential: Credential) -> str:
    """The row of all credentials that share this one's quota."""
    return f"group:{credential.limit_group or credential.name}"


def model_subject(credential: Credential, model: str) -> str:
    """The row of one credential with one model."""
    return f"model:{credential.name}:{model}"


def endpoint_subject(credential: Credential) -> str:
    """The row of an endpoint: an overload is the vendor's, not the key's."""
    return f"endpoint:{credential.base_url}"


class Verdict(msgspec.Struct, frozen=True):
    """How a credential stands for one model right now.

    `rank` 0 is trusted, 1 doubted (SUSPECT, or a block that has run out and is not yet disproved), 2 spared (its
    endpoint is overloaded), None blocked. `row` is the row that decided, where there is one.
    """

    rank: int | None
    row: AuthHealth | None = None

    @property
    def usable(self) -> bool:
        """Whether a turn may be placed on it."""
        return self.rank is not None


@dataclass(slots=True)
class HealthSnapshot:
    """This node's copy of the table; reading it costs no round trip."""

    rows: dict[str, AuthHealth] = field(default_factory=dict)

    @property
    def clear(self) -> bool:
        """Whether nothing is held against anybody."""
        return not self.rows

    def verdict(self, credential: Credential, model: str, now: float) -> Verdict:
        """How `credential` stands for `model` at `now` (store's clock, seconds)."""
        subjects = (credential_subject(credential), group_subject(credential), model_subject(credential, model))
        verdicts = [_read(self.rows.get(subject), now) for subject in subjects]
        blocked = [verdict for verdict in verdicts if verdict.rank is None]
        if blocked:
            # it is free when the last of its blocks has ended
            return max(blocked, key=_ends)
        worst = max(verdicts, key=lambda verdict: verdict.rank or 0)
        endpoint = self.rows.get(endpoint_subject(credential))
        if endpoint is not None and endpoint.state in BLOCKING and endpoint.holds(now):
            # soft evidence: an overloaded endpoint is spared, but it never takes the whole pool away
            return Verdict(None, endpoint) if endpoint.state is HealthState.PAUSED else Verdict(2, endpoint)
        return worst

    def ailing(self, credential: Credential, model: str) -> list[AuthHealth]:
        """The rows that a success of `credential` with `model` would disprove."""
        if not self.rows:
            return []
        subjects = (credential_subject(credential), group_subject(credential), model_subject(credential, model))
        rows = (self.rows.get(subject) for subject in (*subjects, endpoint_subject(credential)))
        return [row for row in rows if row is not None and row.state is not HealthState.PAUSED]

    def earliest_reset(self, pool: Iterable[Credential], model: str, now: float) -> float | None:
        """The earliest time, named by a vendor, at which one of `pool` is usable again; None if nobody named one."""
        times = []
        for credential in pool:
            row = self.verdict(credential, model, now).row
            if row is not None and row.told and row.until > now:
                times.append(row.until)
        return min(times, default=None)

    def put(self, row: AuthHealth) -> None:
        """Take over one row as the store has it; a healthy row is no row."""
        if row.state is HealthState.HEALTHY:
            self.rows.pop(row.subject, None)
        else:
            self.rows[row.subject] = row

    def replace(self, rows: Mapping[str, AuthHealth]) -> None:
        """Take over the whole table. A row that has healed is kept there for its version; here it is no row."""
        self.rows = {subject: row for subject, row in rows.items() if row.state is not HealthState.HEALTHY}


def _read(row: AuthHealth | None, now: float) -> Verdict:
    if row is None or row.state is HealthState.HEALTHY:
        return Verdict(0)
    if row.state is HealthState.SUSPECT:
        return Verdict(1 if row.holds(now) else 0, row)
    return Verdict(None, row) if row.holds(now) else Verdict(1, row)


def _ends(verdict: Verdict) -> float:
    until = verdict.row.until if verdict.row is not None else 0.0
    return until or math.inf


def merge(row: AuthHealth | None, report: HealthReport, now: float) -> AuthHealth:
    """What a row becomes through a report; the rule of the store's script, for nodes that cannot reach the store.

    A graver state that still holds stays; the same state keeps the later end; a recovery counts only for the version
    it saw; PAUSED ends by an operator alone; nothing but PAUSED lasts longer than `MAX_BLOCK`.
    """
    version = (row.version if row else 0) + 1
    if report.state is HealthState.HEALTHY:
        if row is None or row.state is HealthState.PAUSED or row.version != report.version:
            return row or AuthHealth(report.subject, HealthState.HEALTHY)
        return AuthHealth(report.subject, HealthState.HEALTHY, since=now, because=report.because, version=version)
    until = _until(report, now)
    if row is not None and row.holds(now):
        if row.state.severity > report.state.severity:
            return row
        if row.state is report.state and (row.until == 0.0 or row.until >= until > 0.0):
            return row
    # a time that had to be cut is no longer the vendor's own, and must not be told on as if it were
    told = report.until is not None and until == report.until
    return AuthHealth(report.subject, report.state, until, now, report.because, report.evidence, told, version)


def _until(report: HealthReport, now: float) -> float:
    if report.state is HealthState.PAUSED:
        return report.until or 0.0
    wanted = report.until if report.until is not None else now + report.lasting
    return min(max(wanted, now), now + MAX_BLOCK)
