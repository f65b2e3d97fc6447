"""What each failure does to the shared health: which row, which state, until when."""

from __future__ import annotations

import pytest

from broker.domain import blame as spans
from broker.domain.blame import blame
from broker.domain.failure import Failure, FailureKind
from broker.domain.health import (
    HealthReport,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    model_subject,
    rate_subject,
)
from tests.domain.playbook import credential, failure

K = FailureKind
S = HealthState
NOW = 1000.0
BEGAN = 990.0
KEY = credential("k", limit_group="team")


def blamed(
    found: Failure, *, confirmed: bool = False, streak: int = 0, chance: float = 0.0, model: str = "m"
) -> HealthReport | None:
    return blame(
        found,
        KEY,
        model,
        confirmed=confirmed,
        streak=streak,
        evidence="turn-7",
        began=BEGAN,
        now=NOW,
        chance=chance,
    )


NOTHING = [
    K.REQUEST_FAULT,
    K.CONNECTION_EXPIRED,
    K.CONTINUATION_LOST,
    K.CIPHERTEXT_FOREIGN,
]


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("kind", NOTHING)
def test_leaves_health_alone(kind: FailureKind, confirmed: bool) -> None:
    assert blamed(failure(kind, names_key=True, until=NOW + 9), confirmed=confirmed, streak=99) is None


ROWS = [
    (K.AUTH_REJECTED, credential_subject(KEY), S.SUSPECT, spans.SUSPECT_FOR, 0.0, True),
    (K.QUOTA_EXHAUSTED, group_subject(KEY), S.EXHAUSTED, spans.EXHAUSTED_FOR, spans.EXHAUSTED_AT_MOST, False),
    (K.RATE_LIMITED, rate_subject(KEY, "m"), S.COOLING, spans.COOLING_FOR, spans.COOLING_AT_MOST, False),
    (K.OVERLOADED, endpoint_subject(KEY), S.COOLING, spans.OVERLOADED_FOR, 0.0, True),
]


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize(("kind", "subject", "state", "lasting", "at_most", "soft"), ROWS)
def test_reports_a_row_whether_confirmed_or_not(
    kind: FailureKind, subject: str, state: HealthState, lasting: float, at_most: float, soft: bool, confirmed: bool
) -> None:
    report = blamed(failure(kind, "why"), confirmed=confirmed)
    assert report == HealthReport(
        subject,
        state,
        lasting,
        None,
        because="why",
        evidence="turn-7",
        at=NOW,
        began=BEGAN,
        at_most=at_most,
        soft=soft,
    )


def test_covers_every_kind() -> None:
    assert {*NOTHING, *(row[0] for row in ROWS), K.UNSUPPORTED, K.TRANSPORT_LOST} == set(K)


@pytest.mark.parametrize(
    ("confirmed", "names_key", "state"),
    [(True, True, S.REVOKED), (True, False, S.SUSPECT), (False, True, S.SUSPECT), (False, False, S.SUSPECT)],
)
def test_revokes_only_a_confirmed_refusal_that_names_the_key(
    confirmed: bool, names_key: bool, state: HealthState
) -> None:
    report = blamed(failure(K.AUTH_REJECTED, names_key=names_key, code="invalid_api_key"), confirmed=confirmed)
    assert report is not None
    lasting = spans.REVOKED_FOR if state is S.REVOKED else spans.SUSPECT_FOR
    assert (report.subject, report.state, report.lasting) == (credential_subject(KEY), state, lasting)
    assert report.soft is (state is S.SUSPECT)


def test_looks_soon_again_at_a_key_that_was_refused_at_the_door_without_a_word_about_it() -> None:
    report = blamed(failure(K.AUTH_REJECTED, names_key=True, independent=True), confirmed=True)
    assert report is not None
    assert (report.state, report.lasting, report.soft) == (S.REVOKED, spans.REFUSED_FOR, True)


def test_an_endpoint_that_refuses_the_upgrade_is_spared_and_no_key_is_blamed() -> None:
    report = blamed(failure(K.UNSUPPORTED, independent=True), confirmed=True)
    assert report is not None
    assert (report.subject, report.state, report.lasting) == (endpoint_subject(KEY), S.COOLING, spans.OVERLOADED_FOR)
    assert report.soft


def test_a_reset_in_the_past_is_no_reset() -> None:
    report = blamed(failure(K.QUOTA_EXHAUSTED, until=1.0))
    assert report is not None
    assert (report.until, report.lasting) == (None, spans.EXHAUSTED_FOR)


def test_excludes_a_model_only_when_confirmed() -> None:
    assert blamed(failure(K.UNSUPPORTED)) is None
    report = blamed(failure(K.UNSUPPORTED), confirmed=True, model="big")
    assert report is not None
    assert (report.subject, report.state) == (model_subject(KEY, "big"), S.COOLING)
    assert (report.lasting, report.soft) == (spans.EXCLUDED_FOR, False)


@pytest.mark.parametrize(
    ("streak", "orderly", "suspected"),
    [(0, False, False), (2, False, False), (3, False, True), (9, False, True), (3, True, False), (9, True, False)],
)
def test_suspects_a_lost_transport_by_streak(streak: int, orderly: bool, suspected: bool) -> None:
    report = blamed(failure(K.TRANSPORT_LOST, orderly=orderly), streak=streak)
    assert (report is not None and report.state is S.SUSPECT) is suspected


def test_exhausts_until_the_time_the_vendor_named() -> None:
    report = blamed(failure(K.QUOTA_EXHAUSTED, until=NOW + 3600), chance=0.9)
    assert report is not None
    assert report.until == NOW + 3600
    after = blamed(failure(K.QUOTA_EXHAUSTED, retry_after=60.0))
    assert after is not None
    assert after.until == NOW + 60


def test_prefers_an_absolute_time_to_a_span() -> None:
    report = blamed(failure(K.QUOTA_EXHAUSTED, until=NOW + 5, retry_after=60.0))
    assert report is not None
    assert report.until == NOW + 5


def test_spreads_those_who_wait_for_the_same_time_and_never_ends_too_early() -> None:
    ends = [blamed(failure(K.RATE_LIMITED, retry_after=10.0), chance=chance) for chance in (0.0, 0.5, 0.99)]
    untils = [report.until for report in ends if report is not None and report.until is not None]
    assert untils == [NOW + 10, NOW + 10.5, pytest.approx(NOW + 10.99)]


def test_spreads_a_cooling_without_a_time() -> None:
    report = blamed(failure(K.RATE_LIMITED), chance=0.5)
    assert report is not None
    assert (report.lasting, report.until) == (spans.COOLING_FOR * 1.5, None)


@pytest.mark.parametrize(("retry_after", "lasting"), [(None, 5.0), (7.0, 7.0), (9999.0, spans.OVERLOADED_AT_MOST)])
def test_spares_an_overloaded_endpoint_only_briefly(retry_after: float | None, lasting: float) -> None:
    report = blamed(failure(K.OVERLOADED, retry_after=retry_after))
    assert report is not None
    assert (report.lasting, report.until) == (lasting, None)


def test_names_the_kind_where_the_vendor_gave_no_code() -> None:
    report = blamed(Failure(K.OVERLOADED))
    assert report is not None
    assert report.because == "overloaded"


def test_a_credential_without_a_group_is_its_own() -> None:
    alone = credential("solo")
    report = blame(
        failure(K.QUOTA_EXHAUSTED), alone, "m", confirmed=False, streak=0, evidence="", began=BEGAN, now=NOW, chance=0
    )
    assert report is not None
    assert report.subject == group_subject(alone) != group_subject(KEY)


@pytest.mark.parametrize(
    ("code", "model", "subject"),
    [
        ("rate_limit_exceeded", "m", rate_subject(KEY, "m")),
        ("rate_limit_exceeded", "", group_subject(KEY)),
        ("slow_down", "m", group_subject(KEY)),
    ],
)
def test_cools_one_model_of_the_group_unless_the_whole_is_meant(code: str, model: str, subject: str) -> None:
    report = blamed(failure(K.RATE_LIMITED, code), model=model)
    assert report is not None
    assert (report.subject, report.soft) == (subject, False)


def test_a_key_refused_at_the_door_in_words_that_name_it_is_revoked_for_certain() -> None:
    for code, soft in (("invalid_api_key", False), ("no_such_code", True)):
        report = blamed(failure(K.AUTH_REJECTED, code, names_key=True, independent=True), confirmed=True)
        assert report is not None
        assert (report.state, report.soft) == (S.REVOKED, soft)
        assert (report.lasting, report.at_most) == (
            (spans.REFUSED_FOR, spans.REFUSED_AT_MOST) if soft else (spans.REVOKED_FOR, 0.0)
        )


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_a_cooling_is_never_shorter_than_the_jitter_allows(chance: float) -> None:
    report = blamed(failure(K.RATE_LIMITED, retry_after=0.001), chance=chance)
    assert report is not None
    assert report.until == NOW + spans.COOLING_AT_LEAST


def test_every_report_says_when_and_by_what_evidence() -> None:
    for kind in FailureKind:
        for confirmed in (True, False):
            report = blamed(failure(kind, names_key=True), confirmed=confirmed, streak=9)
            if report is not None:
                assert (report.at, report.began, report.evidence, report.because) == (NOW, BEGAN, "turn-7", kind.value)
                assert not (report.retracts or report.operator) and report.state is not S.HEALTHY
