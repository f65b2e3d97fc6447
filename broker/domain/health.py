"""Auth health: what all nodes know about a credential, and what a report makes of it.

A row changes by `merge` alone; `store/lua/report.lua` is the same rule where all nodes meet, and a property test holds
the two together. What the rule guarantees:
- Reports of trouble are joined: the graver, the harder, the vendor's own word, the later end stays. Their order does
  not matter, and one that comes twice changes nothing, for its end is absolute.
- A recovery names the version that it disproves, and what began before a recovery is void from then on.
- Everything but PAUSED ends by itself. What has blocked is then *half-open*: one request in the whole cluster may try.
- Who was out comes back slowly (`returned`, `pace`), and is not trusted again before `trust`, longer each time.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec.structs import replace

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

OUT = BLOCKING - {HealthState.PAUSED}
"""Blocks for a reason of the credential's own: over only when it has shown that it serves. A pause just ends."""

MAX_BLOCK = 7 * 86400.0
"""Seconds after which any block but PAUSED ends by itself, whatever a vendor said."""

MAX_LEVEL = 16
"""How often the length of a block doubles at most."""

CALM = 3600.0
"""Seconds after a return from a block after which earlier blocks no longer count."""

FIRST_DWELL, DWELL_GROWS, LONGEST_DWELL, MAX_STRIKES = 5.0, 5.0, 3600.0, 8
"""Seconds before one that was out is trusted again: five times as long with each block, so less than seven an hour."""

SLOWEST_PACE, FASTEST_PACE, PACE_OF_BLOCK = 1.0, 0.1, 1 / 30
"""Seconds in which the load of one that comes back may double: a part of how long it was out, within these bounds."""


class AuthHealth(msgspec.Struct, frozen=True):
    """One row of the table. Times are seconds of the store's clock.

    `until` 0 means until somebody ends it; `since` is when the row last changed. `told` says that the vendor itself
    named `until`: only such a time may be told on to a client. `soft` evidence is not the vendor's own word about the
    credential: it never takes away the last one. `level` counts failures after a block had run out, `strikes` blocks
    since it was last calm. Evidence from before `cleared` is void. `returned` is when it came back from its last block,
    `pace` the seconds in which its load may double from then on, `trust` when it may be healthy again.
    """

    subject: str
    state: HealthState
    until: float = 0.0
    since: float = 0.0
    because: str = ""
    evidence: str = ""
    told: bool = False
    soft: bool = False
    level: int = 0
    strikes: int = 0
    cleared: float = 0.0
    returned: float = 0.0
    pace: float = 0.0
    trust: float = 0.0
    version: int = 0

    def holds(self, now: float) -> bool:
        """Whether the state is still in force."""
        return self.until == 0.0 or now < self.until

    def half_open(self, now: float) -> bool:
        """Whether its block has run out and nobody has shown yet that the credential serves again."""
        return self.state in OUT and not self.soft and not self.holds(now)


class HealthReport(msgspec.Struct, frozen=True):
    """An outcome told to the table: put `subject` into `state` until `until` if a vendor told it, else for `lasting`
    seconds from `at` on, twice as long each time that it fails again after its block, up to `at_most`.

    `evidence` names the event, so that one that is told twice counts once and one that was wrong can be retracted.
    `began` is when the request began that is the evidence, `at` when its outcome was seen; both on the store's clock,
    0 for unknown. A recovery (HEALTHY) names the `version` of the row it disproves: a row that changed since stays as
    it is, so a success of an older request clears no newer failure. `retracts`: the vote `evidence` was the request's
    fault. `operator`: a person said so.
    """

    subject: str
    state: HealthState
    lasting: float = 0.0
    until: float | None = None
    because: str = ""
    evidence: str = ""
    version: int = 0
    at: float = 0.0
    began: float = 0.0
    at_most: float = 0.0
    soft: bool = False
    retracts: bool = False
    operator: bool = False


# --- who a row is about ---


def credential_subject(credential: Credential) -> str:
    """The row of one credential with its present secret: a rotated key starts clean."""
    return f"credential:{credential.key}"


def pause_subject(credential: Credential) -> str:
    """The row in which an operator pauses a credential, whatever its secret."""
    return f"credential:{credential.name}"


def group_subject(credential: Credential) -> str:
    """The row of all credentials that share this one's quota."""
    return f"group:{limits_of(credential)}"


def rate_subject(credential: Credential, model: str) -> str:
    """The row of one model within a limit group: vendors count requests and tokens by both."""
    return f"group:{limits_of(credential)}:{model}"


def model_subject(credential: Credential, model: str) -> str:
    """The row of one credential with one model."""
    return f"model:{credential.key}:{model}"


def endpoint_subject(credential: Credential) -> str:
    """The row of an endpoint: an overload is the vendor's, not the key's."""
    return f"endpoint:{credential.base_url}"


def limits_of(credential: Credential) -> str:
    """The name of what shares its quota; one that shares it with nobody gets another quota with another secret."""
    group = credential.limit_group or credential.name
    return credential.key if group == credential.name else group


# --- what a report makes of a row ---


def merge(row: AuthHealth | None, report: HealthReport, now: float) -> AuthHealth:
    """What a row becomes through a report; the row itself where the report changes nothing."""
    known = row if row is not None else AuthHealth(report.subject, HealthState.HEALTHY)
    if report.state is HealthState.HEALTHY:
        return _retracted(known, report, now) if report.retracts else _recovered(known, report, now)
    return _failed(known, report, now)


def _recovered(row: AuthHealth, report: HealthReport, now: float) -> AuthHealth:
    if row.state is HealthState.HEALTHY or row.version != report.version:
        return row
    if row.state is HealthState.PAUSED and not report.operator:
        return row
    was_out = row.state in BLOCKING
    pace = min(max((now - row.since) * PACE_OF_BLOCK, FASTEST_PACE), SLOWEST_PACE) if was_out else row.pace
    returned = now if was_out else row.returned
    on_trial = now < row.trust and not report.operator
    if on_trial and not was_out and row.until >= row.trust:
        return row
    return AuthHealth(
        row.subject,
        HealthState.SUSPECT if on_trial else HealthState.HEALTHY,
        until=row.trust if on_trial else 0.0,
        since=now,
        because=report.because,
        evidence=report.evidence,
        strikes=row.strikes,
        cleared=now,
        returned=returned,
        pace=pace,
        trust=row.trust,
        version=row.version + 1,
    )


def _retracted(row: AuthHealth, report: HealthReport, now: float) -> AuthHealth:
    if row.state is not HealthState.SUSPECT or row.evidence != report.evidence:
        return row
    return replace(
        row,
        state=HealthState.HEALTHY,
        until=0.0,
        since=now,
        because=report.because,
        told=False,
        soft=False,
        level=0,
        version=row.version + 1,
    )


def _failed(row: AuthHealth, report: HealthReport, now: float) -> AuthHealth:
    if 0.0 < report.began < row.cleared:
        return row  # older than what disproved it
    # a burst that was under way when the block began counts once: only what began after it had run out counts anew
    again = row.state in OUT and not row.holds(now) and report.began >= row.until
    level = min(row.level + again, MAX_LEVEL) if row.state in OUT else 0
    ends, told = _ends(report, level if again else 0, now)
    if ends <= now and not (ends == 0.0 and report.state is HealthState.PAUSED):
        return row  # it says nothing about now
    if _outweighs(row, report, ends, told, now):
        return row
    strikes, trust = row.strikes, row.trust
    if report.state in OUT:
        if row.state not in OUT:
            strikes = 1 if now - row.returned >= CALM else min(strikes + 1, MAX_STRIKES)
        trust = now + dwell(strikes)
    return AuthHealth(
        row.subject,
        report.state,
        until=ends,
        since=now,
        because=report.because,
        evidence=report.evidence,
        told=told,
        soft=report.soft,
        level=level,
        strikes=strikes,
        cleared=row.cleared,
        returned=row.returned,
        pace=row.pace,
        trust=trust,
        version=row.version + 1,
    )


def dwell(strikes: int) -> float:
    """Seconds after its last failure in which one that was out `strikes` times lately is not trusted yet."""
    return min(FIRST_DWELL * DWELL_GROWS ** max(strikes - 1, 0), LONGEST_DWELL)


def _ends(report: HealthReport, doublings: int, now: float) -> tuple[float, bool]:
    if report.state is HealthState.PAUSED:
        return report.until or 0.0, report.until is not None
    if report.until is not None:
        # a time that had to be cut is no longer the vendor's own, and must not be told on as if it were
        return min(report.until, now + MAX_BLOCK), report.until <= now + MAX_BLOCK
    seen = min(report.at, now) if report.at > 0.0 else now
    lasting = report.lasting
    if doublings:
        lasting = min(lasting * 2**doublings, max(lasting, report.at_most))
    return min(seen + lasting, now + MAX_BLOCK), False


def _outweighs(row: AuthHealth, report: HealthReport, ends: float, told: bool, now: float) -> bool:
    if not row.holds(now):
        # doubt is no answer to a block that has run out and is not yet disproved
        return row.state in OUT and report.state not in BLOCKING
    said = _weight(report.state, report.soft, told, ends)
    return said <= _weight(row.state, row.soft, row.told, row.until)


def _weight(state: HealthState, soft: bool, told: bool, until: float) -> tuple[int, bool, bool, float]:
    # all pauses are a person's word, so among them only the end counts
    return state.severity, not soft, told or state is HealthState.PAUSED, until or MAX_TIME


MAX_TIME = 1e18
"""Later than any time: what ends only when somebody ends it."""
