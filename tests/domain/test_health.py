"""Auth health: how rows make a verdict, and what a report makes of a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.credential import Credential
from broker.domain.health import (
    BLOCKING,
    MAX_BLOCK,
    AuthHealth,
    HealthReport,
    HealthSnapshot,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    merge,
    model_subject,
)
from tests.domain.playbook import credential

S = HealthState
NOW = 1000.0
KEY = credential("k", limit_group="team")
OTHER = credential("o", limit_group="team")
SUBJECTS = [credential_subject(KEY), group_subject(KEY), model_subject(KEY, "m")]
ENDPOINT = endpoint_subject(KEY)


def row(subject: str, state: HealthState, until: float = NOW + 60, **fields: object) -> AuthHealth:
    return AuthHealth(subject, state, until, **fields)  # type: ignore[arg-type]


def snapshot(*rows: AuthHealth) -> HealthSnapshot:
    return HealthSnapshot({row.subject: row for row in rows})


# --- verdict ---


def test_trusts_whom_nobody_speaks_of() -> None:
    verdict = snapshot(row("credential:other", S.REVOKED)).verdict(KEY, "m", NOW)
    assert (verdict.rank, verdict.row, verdict.usable) == (0, None, True)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("state", sorted(BLOCKING))
def test_blocks_by_any_of_its_rows_while_they_hold(state: HealthState, subject: str) -> None:
    verdict = snapshot(row(subject, state)).verdict(KEY, "m", NOW)
    assert (verdict.rank, verdict.usable) == (None, False)
    assert verdict.row is not None
    assert verdict.row.state is state


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("state", sorted(BLOCKING))
def test_doubts_when_a_block_has_run_out(state: HealthState, subject: str) -> None:
    assert snapshot(row(subject, state)).verdict(KEY, "m", NOW + 60).rank == 1


@pytest.mark.parametrize(("now", "rank"), [(NOW, 1), (NOW + 59.9, 1), (NOW + 60, 0)])
def test_doubts_a_suspect_until_the_suspicion_ends(now: float, rank: int) -> None:
    assert snapshot(row(SUBJECTS[0], S.SUSPECT)).verdict(KEY, "m", now).rank == rank


def test_holds_without_end_when_until_is_zero() -> None:
    assert row("x", S.PAUSED, 0.0).holds(1e12)


def test_blocks_although_another_row_is_only_doubted() -> None:
    for order in (0, 1):
        rows = [row(SUBJECTS[order], S.SUSPECT), row(SUBJECTS[1 - order], S.EXHAUSTED)]
        assert not snapshot(*rows).verdict(KEY, "m", NOW).usable


def test_a_model_row_speaks_of_that_model_alone() -> None:
    health = snapshot(row(model_subject(KEY, "m"), S.COOLING))
    assert not health.verdict(KEY, "m", NOW).usable
    assert health.verdict(KEY, "other", NOW).rank == 0


def test_a_group_row_speaks_of_the_whole_group() -> None:
    health = snapshot(row("group:team", S.EXHAUSTED))
    assert not health.verdict(KEY, "m", NOW).usable
    assert not health.verdict(OTHER, "m", NOW).usable


@pytest.mark.parametrize("state", sorted(BLOCKING - {S.PAUSED}))
def test_spares_an_overloaded_endpoint_but_never_blocks_it(state: HealthState) -> None:
    assert snapshot(row(ENDPOINT, state)).verdict(KEY, "m", NOW).rank == 2
    assert snapshot(row(ENDPOINT, state)).verdict(KEY, "m", NOW + 60).rank == 0


def test_a_paused_endpoint_blocks() -> None:
    assert not snapshot(row(ENDPOINT, S.PAUSED, 0.0)).verdict(KEY, "m", NOW).usable


def test_a_blocked_credential_is_blocked_at_a_spared_endpoint_too() -> None:
    assert not snapshot(row(ENDPOINT, S.COOLING), row(SUBJECTS[0], S.REVOKED)).verdict(KEY, "m", NOW).usable


def test_a_success_disproves_all_rows_but_a_pause() -> None:
    rows = [row(SUBJECTS[0], S.PAUSED), row(SUBJECTS[1], S.EXHAUSTED), row(ENDPOINT, S.COOLING)]
    health = snapshot(*rows, row("model:k:other", S.COOLING))
    assert health.ailing(KEY, "m") == rows[1:]


# --- the earliest reset ---


def earliest(pool: Sequence[Credential], *rows: AuthHealth) -> float | None:
    return snapshot(*rows).earliest_reset(pool, "m", NOW)


def test_tells_the_earliest_time_that_a_vendor_named() -> None:
    a, b, c = credential("a"), credential("b"), credential("c")
    rows = [
        row(group_subject(a), S.EXHAUSTED, NOW + 50, told=True),
        row(group_subject(b), S.EXHAUSTED, NOW + 40, told=True),
        row(group_subject(c), S.EXHAUSTED, NOW + 10, told=False),
    ]
    assert earliest([a, b, c], *rows) == NOW + 40


def test_invents_no_time() -> None:
    assert earliest([KEY], row("group:team", S.EXHAUSTED)) is None
    assert earliest([KEY]) is None
    assert earliest([], row("group:team", S.EXHAUSTED, told=True)) is None


def test_tells_no_time_that_has_passed() -> None:
    assert earliest([KEY], row("group:team", S.EXHAUSTED, NOW, told=True)) is None


def test_a_credential_is_usable_again_when_the_last_of_its_blocks_ends() -> None:
    cooling = row(credential_subject(KEY), S.COOLING, NOW + 5, told=True)
    exhausted = row(group_subject(KEY), S.EXHAUSTED, NOW + 3600, told=True)
    assert earliest([KEY], cooling, exhausted) == NOW + 3600


def test_an_invented_end_of_a_longer_block_makes_a_named_one_useless() -> None:
    cooling = row(credential_subject(KEY), S.COOLING, NOW + 5, told=True)
    exhausted = row(group_subject(KEY), S.EXHAUSTED, NOW + 300, told=False)
    assert earliest([KEY], cooling, exhausted) is None


def test_names_the_gravest_of_several_blocks() -> None:
    rows = row(credential_subject(KEY), S.COOLING), row(group_subject(KEY), S.EXHAUSTED, NOW + 3600)
    verdict = snapshot(*rows).verdict(KEY, "m", NOW)
    assert verdict.row is not None
    assert verdict.row.state is S.EXHAUSTED


def test_takes_over_rows_and_tables() -> None:
    health = snapshot()
    sick = row("credential:k", S.REVOKED)
    health.put(sick)
    assert health.rows == {"credential:k": sick}
    health.put(row("credential:k", S.HEALTHY))
    assert health.rows == {}
    table = {"credential:k": sick}
    health.replace(table)
    health.put(row("credential:k", S.HEALTHY))
    assert table == {"credential:k": sick}


# --- merge ---


def report(state: HealthState, lasting: float = 60.0, until: float | None = None, version: int = 0) -> HealthReport:
    return HealthReport("x", state, lasting, until, "why", "turn", version)


def test_a_first_report_makes_a_row() -> None:
    assert merge(None, report(S.COOLING), NOW) == AuthHealth("x", S.COOLING, NOW + 60, NOW, "why", "turn", False, 1)
    told = merge(None, report(S.EXHAUSTED, until=NOW + 99), NOW)
    assert (told.until, told.told) == (NOW + 99, True)


SICK = [S.SUSPECT, S.COOLING, S.EXHAUSTED, S.REVOKED, S.PAUSED]


@pytest.mark.parametrize("new", SICK)
@pytest.mark.parametrize("old", SICK)
def test_a_milder_report_never_replaces_a_graver_row_that_holds(old: HealthState, new: HealthState) -> None:
    before = row("x", old, NOW + 10, version=4)
    after = merge(before, report(new, until=NOW + 20), NOW)
    assert after.state is max(old, new, key=lambda state: state.severity)
    assert after.version == (4 if old.severity > new.severity else 5)


@pytest.mark.parametrize("new", SICK)
@pytest.mark.parametrize("old", SICK)
def test_any_report_replaces_a_row_that_has_run_out(old: HealthState, new: HealthState) -> None:
    after = merge(row("x", old, NOW, version=4), report(new, until=NOW + 20), NOW)
    assert (after.state, after.until, after.since, after.version) == (new, NOW + 20, NOW, 5)


@pytest.mark.parametrize(("old", "new", "kept"), [(30.0, 20.0, 30.0), (20.0, 30.0, 30.0), (20.0, 20.0, 20.0)])
@pytest.mark.parametrize("state", SICK)
def test_the_same_state_keeps_the_later_end(state: HealthState, old: float, new: float, kept: float) -> None:
    after = merge(row("x", state, NOW + old), report(state, until=NOW + new), NOW)
    assert after.until == NOW + kept


def test_a_pause_without_end_outlasts_one_with_an_end_whichever_came_first() -> None:
    for_ever, for_a_while = report(S.PAUSED), report(S.PAUSED, until=NOW + 60)
    assert merge(merge(None, for_ever, NOW), for_a_while, NOW).until == 0.0
    assert merge(merge(None, for_a_while, NOW), for_ever, NOW).until == 0.0


def test_a_recovery_counts_for_the_version_it_saw() -> None:
    sick = row("x", S.REVOKED, version=3)
    assert merge(sick, report(S.HEALTHY, version=2), NOW) == sick
    healed = merge(sick, report(S.HEALTHY, version=3), NOW)
    assert (healed.state, healed.version) == (S.HEALTHY, 4)


def test_a_recovery_of_nothing_is_nothing() -> None:
    assert merge(None, report(S.HEALTHY), NOW) == AuthHealth("x", S.HEALTHY)


def test_a_recovery_never_ends_a_pause() -> None:
    paused = row("x", S.PAUSED, 0.0, version=3)
    assert merge(paused, report(S.HEALTHY, version=3), NOW) == paused


@pytest.mark.parametrize("state", SICK[:-1])
@pytest.mark.parametrize(
    ("until", "lasting", "end"),
    [(NOW + 1e9, 0.0, NOW + MAX_BLOCK), (None, 1e9, NOW + MAX_BLOCK), (NOW - 50, 0.0, NOW), (None, 5.0, NOW + 5)],
)
def test_clamps_the_end_of_every_block(state: HealthState, until: float | None, lasting: float, end: float) -> None:
    assert merge(None, report(state, lasting, until), NOW).until == end


def test_a_pause_lasts_as_long_as_the_operator_says() -> None:
    assert merge(None, report(S.PAUSED, until=NOW + 1e9), NOW).until == NOW + 1e9


reports = st.builds(
    HealthReport,
    subject=st.just("x"),
    state=st.sampled_from([state for state in S if state is not S.PAUSED]),
    lasting=st.floats(0, 1e7),
    until=st.none() | st.floats(0, 1e12),
    version=st.integers(0, 5),
)


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(reports, st.floats(0.1, 1e5))))
def test_no_history_of_reports_makes_a_block_without_end(history: list[tuple[HealthReport, float]]) -> None:
    now, held = NOW, None
    for each, passed in history:
        before, held = held, merge(held, each, now)
        assert held.state is S.HEALTHY or 0 < held.until <= now + MAX_BLOCK
        if before != held:
            assert held.state is S.HEALTHY or now <= held.until
            assert before is None or held.version == before.version + 1
        now += passed


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.builds(AuthHealth, st.sampled_from([*SUBJECTS, ENDPOINT]), st.sampled_from(S), st.floats(0, 100))))
def test_a_verdict_is_usable_unless_a_hard_row_blocks(rows: list[AuthHealth]) -> None:
    health = HealthSnapshot()
    for each in rows:
        health.put(each)
    now = 50.0
    held = [each for each in health.rows.values() if each.state in BLOCKING and each.holds(now)]
    blocked = any(each.subject != ENDPOINT or each.state is S.PAUSED for each in held)
    assert health.verdict(KEY, "m", now).usable is not blocked


def test_rows_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        row("x", S.COOLING).until = 0.0  # type: ignore[misc]
