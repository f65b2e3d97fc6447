"""Probing: which blocks are worth a question to the vendor, and whom to ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from broker.domain.credential import Credential
from broker.domain.health import OUT, AuthHealth, HealthState, credential_subject, group_subject, limits_of
from broker.domain.snapshot import HealthSnapshot

SUSPECT_AFTER = 2.0
SOFT_AFTER = 5.0
REVOKED_EVERY = 120.0
EXHAUSTED_EVERY = 900.0
"""Seconds since a row last changed after which it is looked into although it still holds: no block is believed for
longer than that."""


class Probe(msgspec.Struct, frozen=True):
    """A question worth asking: does `credential` serve `model` ('' for any) in spite of `row`?"""

    row: AuthHealth
    credential: Credential
    model: str


def due(rows: Mapping[str, AuthHealth], pool: Sequence[Credential], now: float) -> list[Probe]:
    """What is worth a question at `now`: blocks that have run out, doubts, and blocks that have held for long.

    Of a limit group one credential is asked, and nobody who is blocked by another row that still holds.
    """
    health = HealthSnapshot(dict(rows))
    found = []
    for row in rows.values():
        if not _worth_asking(row, now):
            continue
        asked = next((probe for probe in _who(row, pool) if _free(health, probe, now)), None)
        if asked is not None:
            found.append(asked)
    return found


def _worth_asking(row: AuthHealth, now: float) -> bool:
    after = _AFTER.get(row.state)
    if after is None or row.subject.startswith("endpoint:"):
        return False
    if row.state is HealthState.SUSPECT and now < row.trust:
        return False  # it serves already, and is on trial
    if row.state in OUT and not row.holds(now):
        return True
    return row.holds(now) and now - row.since >= (SOFT_AFTER if row.soft and after > SOFT_AFTER else after)


_AFTER: dict[HealthState, float] = {
    HealthState.SUSPECT: SUSPECT_AFTER,
    HealthState.COOLING: EXHAUSTED_EVERY,
    HealthState.EXHAUSTED: EXHAUSTED_EVERY,
    HealthState.REVOKED: REVOKED_EVERY,
}


def _who(row: AuthHealth, pool: Sequence[Credential]) -> Iterable[Probe]:
    kind, _, about = row.subject.partition(":")
    for credential in pool:
        if kind == "credential":
            if row.subject == credential_subject(credential):
                yield Probe(row, credential, "")
        elif kind == "group":
            group = limits_of(credential)
            if row.subject == group_subject(credential):
                yield Probe(row, credential, "")
            elif about.startswith(f"{group}:") and credential.serves(about[len(group) + 1 :]):
                yield Probe(row, credential, about[len(group) + 1 :])
        elif about.startswith(f"{credential.key}:"):
            yield Probe(row, credential, about.split(":", 1)[1])


def _free(health: HealthSnapshot, probe: Probe, now: float) -> bool:
    """Whether nothing but the row itself stands in the way of an answer."""
    verdict = health.verdict(probe.credential, probe.model, now)
    return verdict.usable or verdict.half_open or (verdict.row is not None and verdict.row.subject == probe.row.subject)
