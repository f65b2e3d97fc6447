"""What a failure does to the shared health: which row, into which state, for how long."""

from __future__ import annotations

from broker.domain.classify import KEY_CODES
from broker.domain.credential import Credential
from broker.domain.failure import Effect, Failure
from broker.domain.health import (
    HealthReport,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    model_subject,
    rate_subject,
)

REVOKED_FOR = 900.0
REFUSED_FOR = 30.0
SUSPECT_FOR = 60.0
EXHAUSTED_FOR = 300.0
EXCLUDED_FOR = 600.0
COOLING_FOR = 2.0
OVERLOADED_FOR = 5.0
OVERLOADED_AT_MOST = 60.0
STREAK = 3
"""Transport losses in a row after which a credential is doubted. All spans are seconds until it may be tried again."""

COOLING_AT_LEAST = 0.2
COOLING_AT_MOST = 60.0
REFUSED_AT_MOST = 900.0
EXHAUSTED_AT_MOST = 3600.0
"""The bounds of a span in seconds, which doubles each time that it failed again when it was tried."""


def blame(
    failure: Failure,
    credential: Credential,
    model: str,
    *,
    confirmed: bool,
    streak: int,
    evidence: str,
    began: float,
    now: float,
    chance: float,
) -> HealthReport | None:
    """The report a failure deserves, or None.

    `confirmed`: nothing speaks for the request being at fault. `streak`: transport losses of this credential in a
    row. `evidence` is the turn, `began` when its request was sent. `chance` in [0, 1) spreads those who wait for one
    and the same time.
    """
    until = failure.until
    if until is not None and until <= now:
        until = None  # a reset in the past is no reset
    if until is None and failure.retry_after is not None:
        until = now + failure.retry_after

    def report(
        subject: str,
        state: HealthState,
        lasting: float,
        at_most: float = 0.0,
        *,
        until: float | None = None,
        soft: bool = False,
    ) -> HealthReport:
        return HealthReport(
            subject,
            state,
            lasting,
            until,
            because=failure.code or failure.kind.value,
            evidence=evidence,
            at=now,
            began=began,
            at_most=at_most,
            soft=soft,
        )

    match failure.row.effect:
        case Effect.REVOKE if confirmed and failure.names_key and failure.code in KEY_CODES:
            return report(credential_subject(credential), HealthState.REVOKED, REVOKED_FOR)
        case Effect.REVOKE if confirmed and failure.names_key:
            # a bare refusal at the door may be the door's fault, so it is soft, and looked at again soon
            return report(credential_subject(credential), HealthState.REVOKED, REFUSED_FOR, REFUSED_AT_MOST, soft=True)
        case Effect.REVOKE:
            return report(credential_subject(credential), HealthState.SUSPECT, SUSPECT_FOR, soft=True)
        case Effect.EXHAUST:
            return report(
                group_subject(credential), HealthState.EXHAUSTED, EXHAUSTED_FOR, EXHAUSTED_AT_MOST, until=until
            )
        case Effect.COOL:
            # one who ramps too steeply is told so for the whole of its organisation
            whole = failure.code == "slow_down" or not model
            subject = group_subject(credential) if whole else rate_subject(credential, model)
            jittered = None if until is None else max(until + (until - now) * 0.1 * chance, now + COOLING_AT_LEAST)
            lasting = COOLING_FOR * (1 + chance)
            return report(subject, HealthState.COOLING, lasting, COOLING_AT_MOST, until=jittered)
        case Effect.COOL_ENDPOINT:
            lasting = min(failure.retry_after or OVERLOADED_FOR, OVERLOADED_AT_MOST)
            return report(endpoint_subject(credential), HealthState.COOLING, lasting, soft=True)
        case Effect.EXCLUDE_MODEL if failure.orderly:
            return None  # an endpoint that is not offered, beside those that are
        case Effect.EXCLUDE_MODEL if failure.independent:
            # the endpoint does not offer what we need, or not now: no key's doing, and never the whole pool's end
            return report(endpoint_subject(credential), HealthState.COOLING, OVERLOADED_FOR, soft=True)
        case Effect.EXCLUDE_MODEL if confirmed:
            return report(model_subject(credential, model), HealthState.COOLING, EXCLUDED_FOR)
        case Effect.SUSPECT_BY_STREAK if not failure.orderly and streak >= STREAK:
            return report(credential_subject(credential), HealthState.SUSPECT, SUSPECT_FOR, soft=True)
    return None
