"""Which blocks are worth a question, and whom to ask."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.domain.health import (
    AuthHealth,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    model_subject,
    pause_subject,
    rate_subject,
)
from broker.domain.probing import EXHAUSTED_EVERY, REVOKED_EVERY, SOFT_AFTER, SUSPECT_AFTER, due
from tests.domain.playbook import credential

S = HealthState
NOW = 1_000_000.0
KEY = credential("k", limit_group="team")
TWIN = credential("t", limit_group="team")
POOL = [KEY, TWIN]


def row(subject: str, state: HealthState, until: float, since: float = NOW - 1, **more: object) -> AuthHealth:
    return AuthHealth(subject, state, until, since, **more)  # type: ignore[arg-type]


def asked(*rows: AuthHealth) -> list[tuple[str, str]]:
    """Who is asked, and for which model."""
    found = due({r.subject: r for r in rows}, POOL, NOW)
    return [(probe.credential.name, probe.model) for probe in found]


@pytest.mark.parametrize("state", [S.COOLING, S.EXHAUSTED, S.REVOKED])
def test_asks_when_a_block_has_run_out(state: HealthState) -> None:
    subject = credential_subject(KEY)
    assert asked(row(subject, state, NOW)) == [("k", "")]
    assert asked(row(subject, state, NOW + 1)) == []


@pytest.mark.parametrize(
    ("state", "soft", "after"),
    [
        (S.SUSPECT, False, SUSPECT_AFTER),
        (S.SUSPECT, True, SUSPECT_AFTER),
        (S.REVOKED, True, SOFT_AFTER),
        (S.REVOKED, False, REVOKED_EVERY),
        (S.EXHAUSTED, False, EXHAUSTED_EVERY),
    ],
)
def test_believes_no_block_for_ever_although_it_holds(state: HealthState, soft: bool, after: float) -> None:
    subject = credential_subject(KEY)
    assert asked(row(subject, state, NOW + 9999, since=NOW - after, soft=soft)) == [("k", "")]
    assert asked(row(subject, state, NOW + 9999, since=NOW - after + 0.1, soft=soft)) == []


def test_a_soft_block_that_has_run_out_is_asked_about_too() -> None:
    assert asked(row(credential_subject(KEY), S.REVOKED, NOW - 1, soft=True)) == [("k", "")]


@pytest.mark.parametrize("state", [S.HEALTHY, S.PAUSED])
def test_leaves_alone_what_no_answer_could_change(state: HealthState) -> None:
    for subject in (credential_subject(KEY), pause_subject(KEY), group_subject(KEY)):
        assert asked(row(subject, state, NOW - 1, since=NOW - 9999)) == []


def test_leaves_alone_an_endpoint_and_one_that_is_on_trial() -> None:
    assert asked(row(endpoint_subject(KEY), S.COOLING, NOW - 1)) == []
    assert asked(row(credential_subject(KEY), S.SUSPECT, NOW + 60, since=NOW - 50, trust=NOW + 60)) == []


def test_asks_one_of_a_limit_group() -> None:
    assert asked(row(group_subject(KEY), S.EXHAUSTED, NOW)) == [("k", "")]


def test_asks_another_of_the_group_where_the_first_is_blocked_itself() -> None:
    revoked = row(credential_subject(KEY), S.REVOKED, NOW + 60)
    assert asked(row(group_subject(KEY), S.EXHAUSTED, NOW), revoked) == [("t", "")]
    paused = row(pause_subject(KEY), S.PAUSED, 0.0)
    assert asked(row(group_subject(KEY), S.EXHAUSTED, NOW), paused) == [("t", "")]


def test_asks_for_the_model_that_the_row_is_about() -> None:
    assert asked(row(rate_subject(KEY, "m:1"), S.COOLING, NOW)) == [("k", "m:1")]
    assert asked(row(model_subject(TWIN, "m:1"), S.COOLING, NOW)) == [("t", "m:1")]


def test_asks_nobody_for_a_model_that_nobody_serves_any_more() -> None:
    picky = replace(KEY, models=frozenset({"other"}))
    subject = rate_subject(KEY, "m")
    assert due({subject: row(subject, S.COOLING, NOW)}, [picky], NOW) == []


def test_asks_nobody_about_a_secret_that_is_no_longer_in_use() -> None:
    rotated = replace(KEY, secret=type(KEY.secret)("another"))
    subject = credential_subject(KEY)
    assert due({subject: row(subject, S.REVOKED, NOW)}, [rotated], NOW) == []
