"""Auth health: what a report makes of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, permutations

import pytest
from msgspec.structs import replace

from broker.domain.health import (
    BLOCKING,
    CALM,
    LONGEST_DWELL,
    MAX_BLOCK,
    MAX_LEVEL,
    MAX_STRIKES,
    AuthHealth,
    HealthReport,
    HealthState,
    dwell,
    merge,
)

S = HealthState
NOW = 1_000_000.0
SICK = [S.SUSPECT, S.COOLING, S.EXHAUSTED, S.REVOKED, S.PAUSED]
OUT = [S.COOLING, S.EXHAUSTED, S.REVOKED]


def row(state: HealthState, until: float = NOW + 60, **fields: object) -> AuthHealth:
    return AuthHealth("x", state, until, **fields)  # type: ignore[arg-type]


def says(state: HealthState, lasting: float = 60.0, until: float | None = None, **fields: object) -> HealthReport:
    return HealthReport("x", state, lasting, until, **fields)  # type: ignore[arg-type]


def healed(row: AuthHealth, now: float, because: str = "", evidence: str = "", operator: bool = False) -> AuthHealth:
    return merge(row, says(S.HEALTHY, version=row.version, because=because, evidence=evidence, operator=operator), now)


# --- trouble ---


def test_a_first_report_makes_a_row() -> None:
    first = merge(None, says(S.COOLING, because="why", evidence="turn", soft=True), NOW)
    assert first == AuthHealth(
        "x", S.COOLING, NOW + 60, NOW, "why", "turn", soft=True, strikes=1, trust=NOW + 5, version=1
    )
    told = merge(None, says(S.EXHAUSTED, until=NOW + 99), NOW)
    assert (told.until, told.told) == (NOW + 99, True)


@pytest.mark.parametrize("new", SICK)
@pytest.mark.parametrize("old", SICK)
def test_a_milder_report_never_replaces_a_graver_row_that_holds(old: HealthState, new: HealthState) -> None:
    before = row(old, NOW + 10, version=4)
    after = merge(before, says(new, until=NOW + 20), NOW)
    assert after.state is max(old, new, key=lambda state: state.severity)
    assert (after is before) == (old.severity > new.severity)
    assert after.version == (4 if after is before else 5)


@pytest.mark.parametrize("new", SICK)
@pytest.mark.parametrize("old", SICK)
def test_a_row_that_has_run_out_makes_way_unless_it_blocked_and_is_only_doubted(
    old: HealthState, new: HealthState
) -> None:
    before = row(old, NOW, version=4)
    after = merge(before, says(new, until=NOW + 20), NOW)
    if old in BLOCKING - {S.PAUSED} and new is S.SUSPECT:
        assert after is before
    else:
        assert (after.state, after.until, after.since, after.version) == (new, NOW + 20, NOW, 5)


@pytest.mark.parametrize(("old", "new", "kept"), [(30.0, 20.0, 30.0), (20.0, 30.0, 30.0), (20.0, 20.0, 20.0)])
@pytest.mark.parametrize("state", SICK)
def test_the_same_state_keeps_the_later_end(state: HealthState, old: float, new: float, kept: float) -> None:
    before = row(state, NOW + old, told=True)
    after = merge(before, says(state, until=NOW + new), NOW)
    assert after.until == NOW + kept
    assert (after is before) == (new <= old)


@pytest.mark.parametrize("state", SICK[:-1])
def test_hard_beats_soft_and_the_vendors_own_word_beats_ours(state: HealthState) -> None:
    soft, ours, told = says(state, 50, soft=True), says(state, 40), says(state, until=NOW + 30)
    for reports in permutations((soft, ours, told)):
        after: AuthHealth | None = None
        for report in reports:
            after = merge(after, report, NOW)
        assert after is not None
        assert (after.soft, after.told, after.until) == (False, True, NOW + 30)
    assert merge(merge(None, ours, NOW), soft, NOW).until == NOW + 40


def test_a_pause_without_end_outlasts_one_with_an_end_whichever_came_first() -> None:
    for_ever, for_a_while = says(S.PAUSED), says(S.PAUSED, until=NOW + 60)
    assert merge(merge(None, for_ever, NOW), for_a_while, NOW).until == 0.0
    assert merge(merge(None, for_a_while, NOW), for_ever, NOW).until == 0.0
    assert merge(None, for_ever, NOW).holds(1e12)
    assert not merge(None, for_a_while, NOW).holds(NOW + 60)
    assert merge(None, says(S.PAUSED, until=NOW + 1e9), NOW).until == NOW + 1e9
    paused = merge(None, for_ever, NOW)
    assert merge(paused, for_ever, NOW) is paused


@pytest.mark.parametrize("state", SICK[:-1])
@pytest.mark.parametrize(
    ("until", "lasting", "end", "told"),
    [
        (NOW + 1e9, 0.0, NOW + MAX_BLOCK, False),
        (NOW + MAX_BLOCK, 0.0, NOW + MAX_BLOCK, True),
        (None, 1e9, NOW + MAX_BLOCK, False),
        (None, 5.0, NOW + 5, False),
    ],
)
def test_clamps_the_end_of_every_block(
    state: HealthState, until: float | None, lasting: float, end: float, told: bool
) -> None:
    after = merge(None, says(state, lasting, until), NOW)
    assert (after.until, after.told) == (end, told)


@pytest.mark.parametrize("state", SICK)
def test_what_was_over_when_it_arrived_says_nothing(state: HealthState) -> None:
    before = row(S.HEALTHY, 0.0, version=3)
    for report in (says(state, until=NOW), says(state, until=NOW - 50)):
        assert merge(before, report, NOW) is before
    if state is not S.PAUSED:
        assert merge(before, says(state, 60, at=NOW - 60), NOW) is before
        assert merge(before, says(state, 0.0), NOW) is before


def test_a_span_counts_from_when_it_was_seen_and_never_from_the_future() -> None:
    assert merge(None, says(S.COOLING, 60, at=NOW - 20), NOW).until == NOW + 40
    assert merge(None, says(S.COOLING, 60, at=NOW + 20), NOW).until == NOW + 60
    assert merge(None, says(S.COOLING, 60), NOW).until == NOW + 60


# --- blocks that come back ---


def test_a_block_doubles_each_time_that_it_fails_again_and_no_further_than_it_may() -> None:
    now, held, spans = NOW, None, []
    for _ in range(8):
        held = merge(held, says(S.COOLING, 2, at=now, began=now, at_most=60), now)
        spans.append(held.until - now)
        now = held.until
    assert spans == [2, 4, 8, 16, 32, 60, 60, 60]
    capped = merge(row(S.COOLING, NOW, level=MAX_LEVEL), says(S.COOLING, 2, began=NOW, at_most=1e6), NOW)
    assert (capped.level, capped.until) == (MAX_LEVEL, NOW + 2 * 2**MAX_LEVEL)
    longer = merge(row(S.COOLING, NOW, level=3), says(S.COOLING, 90, began=NOW, at_most=60), NOW)
    assert longer.until == NOW + 90


def test_a_burst_under_way_when_the_block_began_counts_once() -> None:
    held = merge(None, says(S.COOLING, 2, at=NOW, began=NOW - 1, at_most=60), NOW)
    for late in (1.0, 2.5, 3.0):
        held = merge(held, says(S.COOLING, 2, at=NOW + late, began=NOW - 0.5, at_most=60), NOW + late)
        assert held.level == 0 and held.until == NOW + late + 2
    unknown = merge(row(S.COOLING, NOW - 1), says(S.COOLING, 2, at=NOW, at_most=60), NOW)
    assert (unknown.level, unknown.until) == (0, NOW + 2)


def test_what_is_older_than_the_doubled_block_is_not_doubled() -> None:
    spent = says(S.EXHAUSTED, 300, at=NOW, began=NOW - 1, at_most=3600)
    held = merge(None, spent, NOW)
    held = merge(held, says(S.COOLING, 2, at=NOW + 301, began=NOW + 300.5, at_most=60), NOW + 301)
    assert (held.level, held.until) == (1, NOW + 305)
    assert merge(held, spent, NOW + 302) is held, "told twice counts once: its end has passed"


def test_a_recovery_ends_the_doubling() -> None:
    held = merge(row(S.COOLING, NOW, level=4, version=9), says(S.COOLING, 2, began=NOW, at_most=60), NOW)
    assert held.level == 5
    back = healed(held, NOW + 100)
    assert back.level == 0
    assert merge(back, says(S.COOLING, 2, began=NOW + 101, at_most=60), NOW + 101).until == NOW + 103


# --- recoveries ---


def test_a_recovery_counts_for_the_version_it_saw() -> None:
    sick = row(S.REVOKED, version=3, since=NOW - 60)
    for version in (0, 2, 4):
        assert merge(sick, says(S.HEALTHY, version=version), NOW) is sick
    back = healed(sick, NOW, because="served", evidence="e")
    assert back == AuthHealth(
        "x", S.HEALTHY, 0.0, NOW, "served", "e", cleared=NOW, returned=NOW, pace=1.0, trust=0.0, version=4
    )


def test_a_recovery_of_nothing_is_nothing() -> None:
    assert merge(None, says(S.HEALTHY), NOW) == AuthHealth("x", S.HEALTHY)
    well = row(S.HEALTHY, 0.0, version=3)
    assert merge(well, says(S.HEALTHY, version=3), NOW) is well


def test_only_a_person_ends_a_pause() -> None:
    paused = row(S.PAUSED, 0.0, version=3, since=NOW - 15)
    assert healed(paused, NOW) is paused
    assert (healed(paused, NOW, operator=True).state, healed(paused, NOW, operator=True).pace) == (S.HEALTHY, 0.5)


def test_what_began_before_a_recovery_is_void() -> None:
    back = healed(row(S.REVOKED, version=3), NOW)
    for state in SICK:
        assert merge(back, says(state, 500, began=NOW - 0.001), NOW + 1) is back
        assert merge(back, says(state, until=NOW + 500, began=NOW - 0.001), NOW + 1) is back
        assert merge(back, says(state, 500, began=NOW), NOW + 1).state is state
        assert merge(back, says(state, 500), NOW + 1).state is state
    again = merge(back, says(S.COOLING, 500, began=NOW + 1), NOW + 1)
    assert merge(again, says(S.REVOKED, 500, began=NOW - 1), NOW + 2) is again


@pytest.mark.parametrize(("out", "pace"), [(0.0, 0.1), (3.0, 0.1), (15.0, 0.5), (30.0, 1.0), (9999.0, 1.0)])
def test_comes_back_the_slower_the_longer_it_was_out(out: float, pace: float) -> None:
    back = healed(row(S.REVOKED, since=NOW - out), NOW)
    assert back.returned == NOW and back.pace == pytest.approx(pace)
    doubted = healed(row(S.SUSPECT, since=NOW - out, returned=5.0, pace=0.7), NOW)
    assert (doubted.returned, doubted.pace) == (5.0, 0.7)


def test_is_on_trial_until_it_may_be_trusted_again() -> None:
    held = merge(row(S.HEALTHY, 0.0, since=NOW - 1, returned=NOW - 1, strikes=2), says(S.COOLING, 1), NOW)
    trial = healed(held, NOW + 2)
    assert (trial.state, trial.until, trial.soft) == (S.SUSPECT, NOW + 125, False)
    assert healed(trial, NOW + 60) is trial
    assert healed(trial, NOW + 60, operator=True).state is S.HEALTHY
    assert healed(trial, NOW + 125).state is S.HEALTHY
    assert healed(held, NOW + 2, operator=True).state is S.HEALTHY


def test_is_trusted_the_later_the_more_often_it_was_out_until_it_was_calm() -> None:
    assert [dwell(strikes) for strikes in range(9)] == [5, 5, 25, 125, 625, 3125, 3600, 3600, 3600]
    now, known, told = NOW, row(S.HEALTHY, 0.0, since=NOW), []
    for _ in range(10):
        known = merge(known, says(S.COOLING, 1), now)
        told.append((known.strikes, known.trust - now))
        now = known.trust
        known = healed(known, now)
        assert known.state is S.HEALTHY
    assert told[5:] == [(6, LONGEST_DWELL), (7, LONGEST_DWELL), *[(MAX_STRIKES, LONGEST_DWELL)] * 3]
    assert merge(known, says(S.COOLING, 1), now + CALM - 1).strikes == MAX_STRIKES
    assert merge(known, says(S.COOLING, 1), now + CALM).strikes == 1


def test_a_doubt_just_before_a_block_does_not_undo_the_calm() -> None:
    calm = row(S.HEALTHY, 0.0, since=NOW - CALM, strikes=MAX_STRIKES)
    doubted = merge(calm, says(S.SUSPECT, soft=True), NOW)
    assert merge(doubted, says(S.COOLING, 1), NOW + 1).trust == merge(calm, says(S.COOLING, 1), NOW + 1).trust


def test_a_block_that_goes_on_is_one_strike_and_a_pause_is_none() -> None:
    held = merge(None, says(S.COOLING, 10), NOW)
    for later, report in ((1, says(S.EXHAUSTED, 10)), (20, says(S.COOLING, 10)), (40, says(S.REVOKED, 10))):
        held = merge(held, report, NOW + later)
        assert (held.strikes, held.trust) == (1, NOW + later + 5)
    paused = merge(held, says(S.PAUSED), NOW + 41)
    assert (paused.strikes, paused.trust) == (1, NOW + 45)


# --- retractions ---


def test_a_doubt_that_was_the_requests_fault_is_taken_back() -> None:
    doubted = merge(None, says(S.SUSPECT, evidence="turn", soft=True), NOW)
    mine = says(S.HEALTHY, because="retracted", evidence="turn", retracts=True)
    after = merge(doubted, mine, NOW + 1)
    assert after == replace(
        doubted, state=S.HEALTHY, until=0.0, since=NOW + 1, because="retracted", soft=False, version=2
    )
    assert merge(after, mine, NOW + 2) is after
    assert merge(doubted, says(S.HEALTHY, evidence="other", retracts=True, version=1), NOW + 1) is doubted
    for state in BLOCKING:
        block = row(state, evidence="turn", version=1)
        assert merge(block, replace(mine, version=1), NOW) is block


# --- every short history ---

Signal = Callable[[AuthHealth, float], HealthReport]

FAILURES: dict[str, Signal] = {
    "doubt": lambda row, now: says(S.SUSPECT, 60, evidence="d", soft=True, at=now, began=now - 1),
    "refused": lambda row, now: says(S.REVOKED, 30, soft=True, at=now, began=now - 1, at_most=900),
    "revoked": lambda row, now: says(S.REVOKED, 900, at=now, began=now - 1),
    "cool": lambda row, now: says(S.COOLING, 2, at=now, began=now - 1, at_most=60),
    "cool till": lambda row, now: says(S.COOLING, until=now + 9, at=now, began=now - 1),
    "spent": lambda row, now: says(S.EXHAUSTED, 300, at=now, began=now - 0.001, at_most=3600),
    "spent till": lambda row, now: says(S.EXHAUSTED, until=now + 30 * 86400, at=now, began=now - 1),
}
ENDINGS: dict[str, Signal] = {
    "served": lambda row, now: says(S.HEALTHY, version=row.version),
    "served long ago": lambda row, now: says(S.HEALTHY, version=row.version - 1),
    "retracted": lambda row, now: says(S.HEALTHY, evidence="d", retracts=True),
}
STEPS = {**FAILURES, **ENDINGS}
PAUSES = (0.5, 11.0, 4000.0)
STARTS = [
    AuthHealth("x", S.HEALTHY),
    row(S.HEALTHY, 0.0, since=NOW - 2 * CALM, strikes=8, trust=NOW - CALM, version=20, cleared=NOW - 2 * CALM),
    row(S.SUSPECT, NOW + 100, since=NOW - 3, strikes=3, trust=NOW + 100, version=7, cleared=NOW - 3, returned=NOW - 3),
]


def histories(row: AuthHealth, now: float, left: int) -> Iterator[tuple[AuthHealth, HealthReport, AuthHealth, float]]:
    """Every step (before, report, after, now) of every history of at most `left` signals, with pauses between them."""
    for signal in STEPS.values():
        report = signal(row, now)
        after = merge(row, report, now)
        yield row, report, after, now
        if left > 1:
            # a pause matters only where something has changed
            for pause in PAUSES if after is not row else PAUSES[:1]:
                yield from histories(after, now + pause, left - 1)


@pytest.mark.parametrize("start", STARTS, ids=["new", "calm", "on trial"])
def test_every_short_history_keeps_what_is_promised(start: AuthHealth) -> None:
    steps = 0
    for before, report, after, now in histories(start, NOW, 4):
        steps += 1
        changed = after is not before
        assert after.version == before.version + changed and changed == (after != before)
        assert merge(after, report, now) == after, "told twice at once counts once"
        if report.until is None or report.until < now + MAX_BLOCK:
            assert merge(after, report, now + 0.4) == after, "and told twice a moment later, too"
        assert after.state is S.HEALTHY or 0 < after.until <= now + MAX_BLOCK
        if report.state is not S.HEALTHY:
            assert after.state.severity >= (before.state.severity if before.holds(now) else 0)
            assert after.cleared == before.cleared and after.returned == before.returned
        elif changed and not report.retracts:
            assert report.version == before.version and after.cleared == now
            assert (after.state is S.HEALTHY) == (now >= before.trust)
        elif changed:
            assert before.state is S.SUSPECT
        if changed and report.state in BLOCKING:
            assert after.trust >= now + 5
    assert steps > 10_000


@pytest.mark.parametrize("start", STARTS, ids=["new", "calm", "on trial"])
@pytest.mark.parametrize("apart", [0.0, 0.1])
def test_the_order_of_failures_does_not_matter(start: AuthHealth, apart: float) -> None:
    reports = [signal(start, NOW) for signal in FAILURES.values() if signal is not FAILURES["spent till"]]
    for several in (chosen for count in (2, 3, 4, 5) for chosen in combinations(reports, count)):
        ends, trusts = set(), set()
        for order in permutations(several):
            after = start
            for place, report in enumerate(order * 2):
                after = merge(after, report, NOW + place * apart)
            ends.add((after.state, after.until, after.soft, after.told, after.level, after.strikes))
            trusts.add(after.trust)
        assert len(ends) == 1, several
        assert max(trusts) - min(trusts) <= 10 * apart


def test_nobody_comes_and_goes_more_than_six_times_an_hour() -> None:
    for every in (0.5, 3.0, 7.0, 61.0):
        known, now, fell = AuthHealth("x", S.HEALTHY), NOW, []
        while now < NOW + 3 * 3600:
            trusted = known.state is S.HEALTHY or not known.holds(now)
            if known.state is S.HEALTHY or (known.state is S.SUSPECT and trusted):
                known = merge(known, says(S.COOLING, 0.2, at=now, began=now), now)
                fell.append(now)
            else:
                known = healed(known, now)
            now += every
        assert max(sum(first <= each < first + 3600 for each in fell) for first in fell) <= 6
        assert all(later - earlier >= 5 for earlier, later in pairwise(fell))


def test_every_block_ends_by_itself() -> None:
    for state in OUT:
        for report in (says(state, 1e12), says(state, until=1e12), says(state, until=1e12, soft=True)):
            held = merge(None, report, NOW)
            assert not held.holds(NOW + MAX_BLOCK)
            assert held.half_open(NOW + MAX_BLOCK) is not report.soft
            assert healed(held, NOW + MAX_BLOCK).state is S.HEALTHY


def test_rows_are_values() -> None:
    with pytest.raises(AttributeError):
        row(S.COOLING).until = 0.0  # type: ignore[misc]
