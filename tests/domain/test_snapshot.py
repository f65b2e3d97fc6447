"""A node's copy of the table: how its rows, limits and endpoint make a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.credential import Credential, Secret
from broker.domain.health import (
    BLOCKING,
    AuthHealth,
    HealthReport,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    limits_of,
    merge,
    model_subject,
    pause_subject,
    rate_subject,
)
from broker.domain.limits import Limits
from broker.domain.snapshot import DOUBLINGS, HealthSnapshot, ramps
from tests.domain.playbook import credential

S = HealthState
NOW = 1000.0
KEY = credential("k", limit_group="team")
OTHER = credential("o", limit_group="team")
SUBJECTS = [
    credential_subject(KEY),
    pause_subject(KEY),
    group_subject(KEY),
    rate_subject(KEY, "m"),
    model_subject(KEY, "m"),
]
ENDPOINT = endpoint_subject(KEY)


def row(subject: str, state: HealthState, until: float = NOW + 60, **fields: object) -> AuthHealth:
    return AuthHealth(subject, state, until, **fields)  # type: ignore[arg-type]


def snapshot(*rows: AuthHealth, limits: dict[str, Limits] | None = None) -> HealthSnapshot:
    return HealthSnapshot({row.subject: row for row in rows}, limits or {})


# --- who a row is about ---


def test_a_row_speaks_of_the_present_secret_alone() -> None:
    rotated = Credential("k", KEY.base_url, Secret("sk-new"), limit_group="team")
    rows = [row(credential_subject(KEY), S.REVOKED), row(model_subject(KEY, "m"), S.COOLING)]
    assert not snapshot(*rows).verdict(KEY, "m", NOW).usable
    assert snapshot(*rows).verdict(rotated, "m", NOW).rank == 0
    alone, again = credential("solo"), Credential("solo", "https://solo.example/v1", Secret("sk-new"))
    assert group_subject(alone) != group_subject(again) and rate_subject(alone, "m") != rate_subject(again, "m")


def test_a_pause_and_a_shared_quota_outlive_the_secret() -> None:
    rotated = Credential("k", KEY.base_url, Secret("sk-new"), limit_group="team")
    for subject in (pause_subject(KEY), group_subject(KEY), rate_subject(KEY, "m")):
        assert not snapshot(row(subject, S.PAUSED)).verdict(rotated, "m", NOW).usable


def test_no_two_rows_share_a_subject() -> None:
    subjects = [*SUBJECTS, ENDPOINT, model_subject(KEY, "n"), rate_subject(KEY, "n"), credential_subject(OTHER)]
    assert len({*subjects}) == len(subjects)


def test_a_subject_says_nothing_of_the_secret() -> None:
    assert not any("sk-k" in subject for subject in [*SUBJECTS, ENDPOINT])


# --- verdict ---


def test_trusts_whom_nobody_speaks_of() -> None:
    verdict = snapshot(row("credential:other", S.REVOKED)).verdict(KEY, "m", NOW)
    assert (verdict.rank, verdict.row, verdict.usable) == (0, None, True)
    assert snapshot().verdict(KEY, "m", NOW).rank == 0


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("state", sorted(BLOCKING))
def test_blocks_by_any_of_its_rows_while_they_hold(state: HealthState, subject: str) -> None:
    for now in (NOW, NOW + 59.9):
        verdict = snapshot(row(subject, state)).verdict(KEY, "m", now)
        assert (verdict.rank, verdict.usable, verdict.half_open) == (None, False, False)
        assert verdict.row is not None and verdict.row.state is state


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("state", sorted(BLOCKING - {S.PAUSED}))
def test_is_half_open_when_a_block_has_run_out(state: HealthState, subject: str) -> None:
    verdict = snapshot(row(subject, state)).verdict(KEY, "m", NOW + 60)
    assert (verdict.usable, verdict.half_open) == (False, True)
    assert verdict.row is not None and verdict.row.subject == subject


def test_a_pause_that_has_run_out_is_over() -> None:
    # nobody but a person ends a pause, so no trial ever could
    paused = merge(None, HealthReport(pause_subject(KEY), S.PAUSED, until=NOW + 60, operator=True), NOW)
    assert not snapshot(paused).verdict(KEY, "m", NOW + 59).usable
    assert snapshot(paused).verdict(KEY, "m", NOW + 60).rank == 0


@pytest.mark.parametrize("held", [S.COOLING, S.EXHAUSTED])
def test_a_block_that_holds_comes_before_one_that_has_run_out(held: HealthState) -> None:
    for first, second in (SUBJECTS[:1] + SUBJECTS[2:3], SUBJECTS[2:3] + SUBJECTS[:1]):
        verdict = snapshot(row(first, S.REVOKED, NOW - 1), row(second, held)).verdict(KEY, "m", NOW)
        assert not verdict.half_open and verdict.row is not None and verdict.row.subject == second


@pytest.mark.parametrize(("now", "rank"), [(NOW, 1), (NOW + 59.9, 1), (NOW + 60, 0)])
def test_doubts_a_suspect_until_the_suspicion_ends(now: float, rank: int) -> None:
    assert snapshot(row(SUBJECTS[0], S.SUSPECT)).verdict(KEY, "m", now).rank == rank


@pytest.mark.parametrize(("now", "rank"), [(NOW, 3), (NOW + 59.9, 3), (NOW + 60, 1)])
def test_soft_evidence_never_blocks(now: float, rank: int) -> None:
    verdict = snapshot(row(SUBJECTS[0], S.REVOKED, soft=True)).verdict(KEY, "m", now)
    assert (verdict.rank, verdict.half_open) == (rank, False)
    assert verdict.row is not None and verdict.row.state is S.REVOKED


def test_the_worst_of_what_does_not_block_decides() -> None:
    states = [row(SUBJECTS[0], S.REVOKED, soft=True), row(SUBJECTS[2], S.SUSPECT), row(SUBJECTS[3], S.SUSPECT, NOW - 1)]
    for pair in combinations(states, 2):
        for rows in (pair, pair[::-1]):
            assert snapshot(*rows).verdict(KEY, "m", NOW).rank == (3 if states[0] in rows else 1)


def test_blocks_although_another_row_is_only_doubted() -> None:
    for doubt, block in combinations(SUBJECTS, 2):
        for one, two in ((doubt, block), (block, doubt)):
            for soft in (row(one, S.SUSPECT), row(one, S.REVOKED, soft=True)):
                assert not snapshot(soft, row(two, S.EXHAUSTED)).verdict(KEY, "m", NOW).usable


@pytest.mark.parametrize("subject", [model_subject(KEY, "m"), rate_subject(KEY, "m")])
def test_a_model_row_speaks_of_that_model_alone(subject: str) -> None:
    health = snapshot(row(subject, S.COOLING))
    assert not health.verdict(KEY, "m", NOW).usable
    assert health.verdict(KEY, "other", NOW).rank == 0


@pytest.mark.parametrize("subject", [group_subject(KEY), rate_subject(KEY, "m")])
def test_a_group_row_speaks_of_the_whole_group(subject: str) -> None:
    health = snapshot(row(subject, S.EXHAUSTED))
    assert not health.verdict(KEY, "m", NOW).usable
    assert not health.verdict(OTHER, "m", NOW).usable
    assert health.verdict(credential("stranger"), "m", NOW).rank == 0


@pytest.mark.parametrize("state", sorted(BLOCKING - {S.PAUSED}))
def test_spares_an_overloaded_endpoint_but_never_blocks_it(state: HealthState) -> None:
    assert snapshot(row(ENDPOINT, state)).verdict(KEY, "m", NOW).rank == 2
    assert snapshot(row(ENDPOINT, state)).verdict(KEY, "m", NOW + 60).rank == 0
    assert snapshot(row(ENDPOINT, state), row(SUBJECTS[0], S.SUSPECT)).verdict(KEY, "m", NOW).rank == 2
    assert snapshot(row(ENDPOINT, state), row(SUBJECTS[0], S.REVOKED, soft=True)).verdict(KEY, "m", NOW).rank == 3


@pytest.mark.parametrize("other", [None, row(SUBJECTS[0], S.SUSPECT), row(SUBJECTS[0], S.REVOKED, NOW - 1)])
def test_a_paused_endpoint_blocks(other: AuthHealth | None) -> None:
    rows = [row(ENDPOINT, S.PAUSED, 0.0), *([other] if other else [])]
    verdict = snapshot(*rows).verdict(KEY, "m", NOW)
    assert (verdict.usable, verdict.half_open) == (False, False)


def test_a_blocked_credential_is_blocked_at_a_spared_endpoint_too() -> None:
    assert not snapshot(row(ENDPOINT, S.COOLING), row(SUBJECTS[0], S.REVOKED)).verdict(KEY, "m", NOW).usable


def test_limits_that_are_nearly_used_up_make_it_doubted() -> None:
    full, empty = Limits(0.99, NOW + 60, NOW), Limits(0.5, NOW + 60, NOW)
    assert snapshot(limits={limits_of(KEY): full}).verdict(KEY, "m", NOW).rank == 1
    assert snapshot(limits={limits_of(KEY): full}).verdict(OTHER, "m", NOW).rank == 1
    assert snapshot(limits={limits_of(KEY): full}).verdict(KEY, "m", NOW + 60).rank == 0
    assert snapshot(limits={limits_of(KEY): empty}).verdict(KEY, "m", NOW).rank == 0
    softly = snapshot(row(SUBJECTS[0], S.REVOKED, soft=True), limits={limits_of(KEY): full})
    assert softly.verdict(KEY, "m", NOW).rank == 3
    spared = snapshot(row(ENDPOINT, S.COOLING), limits={limits_of(KEY): full})
    assert spared.verdict(KEY, "m", NOW).rank == 2


def test_names_the_block_that_ends_last() -> None:
    rows = row(credential_subject(KEY), S.COOLING), row(group_subject(KEY), S.EXHAUSTED, NOW + 3600)
    for order in (rows, rows[::-1]):
        verdict = snapshot(*order).verdict(KEY, "m", NOW)
        assert verdict.row is not None and verdict.row.state is S.EXHAUSTED
        later = snapshot(*order).verdict(KEY, "m", NOW + 3600)
        assert later.half_open and later.row is not None and later.row.state is S.EXHAUSTED
    endless = snapshot(*rows, row(pause_subject(KEY), S.PAUSED, 0.0)).verdict(KEY, "m", NOW)
    assert endless.row is not None and endless.row.state is S.PAUSED


def test_a_success_disproves_all_rows_but_a_pause() -> None:
    rows = [
        row(SUBJECTS[0], S.REVOKED),
        row(SUBJECTS[2], S.EXHAUSTED, NOW - 9),
        row(SUBJECTS[4], S.SUSPECT),
        row(ENDPOINT, S.COOLING),
    ]
    health = snapshot(*rows, row(pause_subject(KEY), S.PAUSED), row(model_subject(KEY, "other"), S.COOLING))
    assert health.ailing(KEY, "m") == rows
    assert snapshot(row(SUBJECTS[0], S.HEALTHY, returned=5.0)).ailing(KEY, "m") == []
    assert snapshot().ailing(KEY, "m") == []


# --- who comes back ---


def test_one_that_came_back_ramps_until_it_carries_as_much_as_anybody() -> None:
    back = row(SUBJECTS[0], S.HEALTHY, 0.0, returned=NOW, pace=0.5)
    for passed, ramping in ((0.0, True), (DOUBLINGS * 0.5 - 0.01, True), (DOUBLINGS * 0.5, False)):
        verdict = snapshot(back).verdict(KEY, "m", NOW + passed)
        assert (verdict.rank, verdict.ramp) == (0, back if ramping else None)
        assert ramps(back, NOW + passed) is ramping
    assert not ramps(row("x", S.HEALTHY, 0.0), NOW)


def test_the_newest_return_sets_the_ramp_whatever_else_is_held_against_it() -> None:
    old = row(SUBJECTS[0], S.HEALTHY, 0.0, returned=NOW - 1, pace=1.0)
    new = row(SUBJECTS[2], S.SUSPECT, returned=NOW, pace=1.0)
    full = {limits_of(KEY): Limits(0.99, NOW + 60, NOW)}
    for rows in ((old, new), (new, old)):
        assert snapshot(*rows).verdict(KEY, "m", NOW).ramp == new
        assert snapshot(*rows, row(ENDPOINT, S.COOLING)).verdict(KEY, "m", NOW).ramp == new
    assert snapshot(old, limits=full).verdict(KEY, "m", NOW).ramp == old


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
    assert earliest([KEY], row("group:team", S.EXHAUSTED, NOW, told=True)) is None


def test_a_credential_is_usable_again_when_the_last_of_its_blocks_ends() -> None:
    cooling = row(credential_subject(KEY), S.COOLING, NOW + 5, told=True)
    for told, expected in ((True, NOW + 3600), (False, None)):
        exhausted = row(group_subject(KEY), S.EXHAUSTED, NOW + 3600, told=told)
        assert earliest([KEY], cooling, exhausted) == expected


# --- taking over ---


def test_takes_over_rows_and_tables() -> None:
    health = snapshot()
    assert health.clear
    sick = row("credential:k", S.REVOKED)
    health.put(sick)
    assert health.rows == {"credential:k": sick} and not health.clear
    health.put(row("credential:k", S.HEALTHY, 0.0))
    assert health.rows == {} and health.clear
    table = {"credential:k": sick}
    health.replace(table, NOW)
    health.put(row("credential:k", S.HEALTHY, 0.0))
    assert table == {"credential:k": sick}
    assert not HealthSnapshot(limits={"g": Limits(1, 0, 0)}).clear


def test_keeps_who_came_back_as_long_as_it_ramps() -> None:
    back = row("credential:k", S.HEALTHY, 0.0, returned=NOW, pace=1.0)
    health = snapshot(row("credential:k", S.REVOKED))
    health.put(back)
    assert health.rows == {"credential:k": back}
    health.replace({"credential:k": back}, NOW + 9.9)
    assert health.rows == {"credential:k": back}
    health.replace({"credential:k": back}, NOW + 10)
    assert health.rows == {}


@settings(derandomize=True, deadline=None, database=None)
@given(
    st.lists(
        st.builds(
            AuthHealth,
            st.sampled_from([*SUBJECTS, ENDPOINT]),
            st.sampled_from([state for state in S if state is not S.PAUSED]),
            st.floats(1, 100),
            soft=st.booleans(),
        )
    )
)
def test_a_verdict_is_usable_unless_a_hard_row_blocks(rows: list[AuthHealth]) -> None:
    health, now = HealthSnapshot(), 50.0
    for each in rows:
        health.put(each)
    hard = [r for r in health.rows.values() if r.state in BLOCKING and not r.soft and r.subject != ENDPOINT]
    held = [r for r in hard if r.holds(now)]
    verdict = health.verdict(KEY, "m", now)
    assert verdict.usable is not bool(hard)
    assert verdict.half_open is (bool(hard) and not held)
