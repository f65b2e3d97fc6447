"""The health table of the store follows the rule of the domain."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.domain.health import CALM, MAX_BLOCK, AuthHealth, HealthReport, HealthState, merge
from broker.domain.limits import Limits
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.health import LIMITS_LIVE, MAX_EVENTS, HealthStore

S = HealthState
SUBJECT = "credential:a@0"
TEXT = 'a "quoted" / slashed \\ reason, ünïcode\n\x00'


@dataclass(frozen=True)
class Step:
    """A report whose times and versions are said relative to the row that it will meet."""

    report: HealthReport
    until: float | None
    at: float | None
    began: str
    behind: int
    same_evidence: bool

    def meets(self, row: AuthHealth, now: float) -> HealthReport:
        began = {
            "unknown": 0.0,
            "before": row.cleared - 1e-3,
            "at recovery": row.cleared,
            "at end": row.until,
            "just before end": row.until - 1e-3,
            "now": now,
            "soon": now + 1,
        }[self.began]
        return replace(
            self.report,
            until=None if self.until is None else now + self.until,
            at=0.0 if self.at is None else now + self.at,
            began=max(began, 0.0),
            version=row.version - self.behind,
            evidence=row.evidence if self.same_evidence else self.report.evidence,
        )


steps = st.builds(
    Step,
    report=st.builds(
        HealthReport,
        st.sampled_from([SUBJECT, SUBJECT, "group:g"]),
        st.sampled_from([*S, S.HEALTHY, S.HEALTHY, S.SUSPECT, S.COOLING]),
        # a millionth of a second is over at the next report: expiry without waiting
        lasting=st.sampled_from([0.0, 1e-6, 1e-6, 1e-6, 30.0, 30.5, 3600.0, 2 * MAX_BLOCK]),
        because=st.sampled_from(["", "429", TEXT]),
        evidence=st.sampled_from(["", "turn", TEXT]),
        at_most=st.sampled_from([0.0, 1e-5, 60.0, 1e6]),
        soft=st.booleans(),
        retracts=st.sampled_from([False, False, True]),
        operator=st.sampled_from([False, False, True]),
    ),
    until=st.sampled_from([None, None, -1.0, 1e-4, 60.0, 1 / 3, 2 * MAX_BLOCK]),
    at=st.sampled_from([None, 0.0, -10.0, 10.0]),
    began=st.sampled_from(["unknown", "before", "at recovery", "at end", "just before end", "now", "soon"]),
    behind=st.sampled_from([0, 0, 0, 0, 1, -1]),
    same_evidence=st.booleans(),
)


@dataclass(frozen=True)
class Begin:
    """A row with which a history begins; times relative to the present."""

    row: AuthHealth
    until: float | None
    since: float
    trust: float

    def at(self, now: float) -> AuthHealth:
        until = 0.0 if self.until is None else now + self.until
        if self.row.state is S.HEALTHY:
            until = 0.0
        return replace(self.row, until=until, since=now - self.since, trust=now + self.trust, cleared=now - 100)


begins = st.builds(
    Begin,
    row=st.builds(
        AuthHealth,
        st.just(SUBJECT),
        st.sampled_from(list(S)),
        because=st.just(TEXT),
        evidence=st.sampled_from(["turn", ""]),
        told=st.booleans(),
        soft=st.booleans(),
        level=st.integers(0, 16),
        strikes=st.integers(0, 8),
        returned=st.sampled_from([0.0, 1.7e9 + 1 / 3]),
        pace=st.sampled_from([0.0, 1 / 3]),
        version=st.integers(1, 2**40),
    ),
    until=st.sampled_from([-20.0, -1e-3, 50.0, 70.0, None]),
    since=st.sampled_from([0.0, 1.0, 15.0, 1000.0, CALM - 60, CALM + 60]),
    trust=st.sampled_from([-5.0, 60.0, 60.0, 3000.0]),
)


async def events(connection: Connection) -> list[dict[str, str]]:
    (entries,) = await connection.ask(command("XRANGE", keys.health_events(), "-", "+"))
    return [{key.decode(): value.decode() for key, value in fields.items()} for _, fields in entries]


def told(before: HealthState, row: AuthHealth) -> dict[str, str]:
    """What the stream has to say about a change."""
    fields = msgspec.to_builtins(row)
    said = {
        key: fields[key] for key in ("subject", "state", "until", "since", "because", "evidence", "strikes", "version")
    }
    return {
        "from": before.value,
        **{key: f"{value:.17g}" if isinstance(value, float) else str(value) for key, value in said.items()},
        "told": str(row.told).lower(),
        "soft": str(row.soft).lower(),
    }


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(begin=st.none() | begins, sequence=st.lists(steps, min_size=1, max_size=12))
async def test_the_script_and_the_domain_agree(
    connection: Connection, begin: Begin | None, sequence: list[Step]
) -> None:
    await connection.ask(command("FLUSHALL"))
    store = HealthStore(connection)
    expected: dict[str, AuthHealth] = {}
    stream = []
    now = (await store.table()).now
    if begin is not None:
        expected[SUBJECT] = begin.at(now)
        await connection.ask(command("HSET", keys.health_rows(), SUBJECT, msgspec.json.encode(expected[SUBJECT])))
    for step in sequence:
        subject = step.report.subject
        before = expected.get(subject)
        known = before or AuthHealth(subject, S.HEALTHY)
        report = step.meets(known, now)
        ruling = await store.report(report)
        now = ruling.at
        after = merge(before, report, now)
        assert ruling.row == after
        assert ruling.changed == (after.version != known.version)
        if ruling.changed:
            expected[subject] = after
            stream.append(told(known.state, after))
    table = await store.table()
    assert table.rows == expected
    assert abs(table.now - time.time()) < 30
    assert await events(connection) == stream


async def agrees(connection: Connection, row: AuthHealth, report: HealthReport) -> AuthHealth:
    """What the script makes of a row, which is what the rule makes of it."""
    await connection.ask(command("HSET", keys.health_rows(), SUBJECT, msgspec.json.encode(row)))
    ruling = await HealthStore(connection).report(report)
    assert ruling.row == merge(row, report, ruling.at)
    return ruling.row


@pytest.mark.parametrize("level", [0, 1, 3, 16])
@pytest.mark.parametrize("at_most", [0.0, 60.0, 1e9])
async def test_the_script_and_the_domain_double_alike(connection: Connection, level: int, at_most: float) -> None:
    now = (await HealthStore(connection).table()).now
    row = AuthHealth(SUBJECT, S.COOLING, until=now - 1, since=now - 9, level=level, strikes=1, version=3)
    report = HealthReport(SUBJECT, S.COOLING, 2.0, at_most=at_most, at=now)
    levels = [
        (await agrees(connection, row, replace(report, began=now - 1 + hair))).level for hair in (-1e-3, 0.0, 1e-3)
    ]
    assert levels == [level, min(level + 1, 16), min(level + 1, 16)]


@pytest.mark.parametrize("strikes", [0, 1, 7, 8])
async def test_the_script_and_the_domain_call_the_same_time_calm(connection: Connection, strikes: int) -> None:
    now = (await HealthStore(connection).table()).now
    told = []
    for back in (CALM - 10, CALM + 10):
        row = AuthHealth(SUBJECT, S.HEALTHY, since=now - 5, returned=now - back, strikes=strikes, version=3)
        told.append((await agrees(connection, row, HealthReport(SUBJECT, S.REVOKED, 9.0))).strikes)
        await agrees(connection, row, HealthReport(SUBJECT, S.SUSPECT, 9.0))
        await agrees(connection, row, HealthReport(SUBJECT, S.PAUSED))
    assert told == [min(strikes + 1, 8), 1]


async def test_the_script_and_the_domain_weigh_pauses_alike(connection: Connection) -> None:
    now = (await HealthStore(connection).table()).now
    ends = (None, now + 50, now + 70)
    for held in ends:
        row = AuthHealth(SUBJECT, S.PAUSED, until=held or 0.0, since=now - 9, told=held is not None, version=3)
        for said in ends:
            await agrees(connection, row, HealthReport(SUBJECT, S.PAUSED, until=said))


def test_the_sequences_come_through_everything_that_a_report_can_do() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(begins, st.lists(steps, min_size=1, max_size=6))
    def look(begin: Begin, sequence: list[Step]) -> None:
        row, now = begin.at(1e9), 1e9
        for step in sequence:
            report = replace(step.meets(row, now), subject=SUBJECT)
            after = merge(row, report, now)
            kind = "retracts" if report.retracts and report.state is S.HEALTHY else report.state.value
            seen[f"{kind} {'changes' if after is not row else 'stays'}"] += 1
            seen["again"] += after.level > row.level
            seen["on trial"] += report.state is S.HEALTHY and after is not row and after.state is S.SUSPECT
            seen["calm"] += after.strikes == 1 < row.strikes
            row, now = after, now + 1e-3

    look()
    kinds = [*(state.value for state in S), "retracts"]
    assert all(seen[f"{kind} {what}"] for kind in kinds for what in ("changes", "stays"))
    assert seen["again"] and seen["on trial"] and seen["calm"]


async def test_a_report_is_on_the_servers_clock(connection: Connection) -> None:
    store = HealthStore(connection)
    report = HealthReport(SUBJECT, S.COOLING, lasting=10, because="429", evidence="x")
    ruling = await store.report(report)
    row, table = ruling.row, await store.table()
    assert ruling.changed and row == merge(None, report, ruling.at)
    assert (row.until, row.since) == (ruling.at + 10, ruling.at)
    assert 0 <= table.now - row.since < 5


async def test_only_changes_are_events(connection: Connection) -> None:
    store = HealthStore(connection)
    for report in (
        HealthReport(SUBJECT, S.HEALTHY),
        HealthReport(SUBJECT, S.EXHAUSTED, lasting=60, because="quota"),
        HealthReport(SUBJECT, S.COOLING, lasting=60),
        HealthReport(SUBJECT, S.HEALTHY, version=7),
        HealthReport(SUBJECT, S.HEALTHY, version=1, because="probe", operator=True),
    ):
        await store.report(report)
    said = [(e["from"], e["state"], e["because"], e["version"]) for e in await events(connection)]
    assert said == [("healthy", "exhausted", "quota", "1"), ("exhausted", "healthy", "probe", "2")]


async def test_a_success_of_an_older_request_clears_no_newer_failure(connection: Connection) -> None:
    store = HealthStore(connection)
    await store.report(HealthReport(SUBJECT, S.SUSPECT, lasting=60))
    await store.report(HealthReport(SUBJECT, S.COOLING, lasting=60))
    row = (await store.report(HealthReport(SUBJECT, S.HEALTHY, version=1))).row
    assert (row.state, row.version) == (S.COOLING, 2)


async def test_everything_takes_one_round_trip(connection: Connection) -> None:
    store = HealthStore(connection)
    await store.report(HealthReport(SUBJECT, S.COOLING, lasting=60))
    row = (await store.table()).rows[SUBJECT]
    await store.license(row, "warm", 1.0)
    await store.claim("a", "n", 1, used=0, cap=1, lasting=1.0)
    for asked in (
        store.table(),
        store.report(HealthReport(SUBJECT, S.COOLING, lasting=61)),
        store.license(row, "t", 1.0),
        store.renew(SUBJECT, "t", 1.0),
        store.give_back(SUBJECT, "t"),
        store.claim("a", "n", 1, used=0, cap=1, lasting=1.0),
        store.note_limits("g", Limits(1.0, 0.0, 0.0)),
    ):
        before = connection.round_trips
        await asked
        assert connection.round_trips == before + 1


async def test_many_nodes_report_at_once_and_no_version_is_lost(connection: Connection) -> None:
    store = HealthStore(connection)
    rulings = await asyncio.gather(*(store.report(HealthReport(SUBJECT, S.COOLING, lasting=60 + i)) for i in range(50)))
    assert [ruling.row.version for ruling in rulings] == list(range(1, 51))


async def test_the_stream_is_trimmed(connection: Connection, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis is too slow for thousands of scripts")
    store = HealthStore(connection)
    for start in range(0, MAX_EVENTS + 1000, 100):
        # few enough at once that the last of them is answered within the store's patience on a busy machine, too
        await asyncio.gather(
            *(store.report(HealthReport(SUBJECT, S.COOLING, lasting=start + i)) for i in range(1, 101))
        )
    (length,) = await connection.ask(command("XLEN", keys.health_events()))
    assert MAX_EVENTS <= length < MAX_EVENTS + 500


@pytest.mark.parametrize("never", [float("inf"), float("nan")])
async def test_a_block_without_end_is_refused(connection: Connection, never: float) -> None:
    store = HealthStore(connection)
    for report in (
        HealthReport(SUBJECT, S.COOLING, lasting=never),
        HealthReport(SUBJECT, S.PAUSED, until=never),
        HealthReport(SUBJECT, S.COOLING, at=never),
        HealthReport(SUBJECT, S.COOLING, began=never),
        HealthReport(SUBJECT, S.COOLING, at_most=never),
    ):
        with pytest.raises(ValueError):
            await store.report(report)
    assert (await store.table()).rows == {}


async def test_the_newest_limits_count_and_none_is_kept_for_long(connection: Connection) -> None:
    store = HealthStore(connection)
    await store.note_limits("team", Limits(0.5, 1.0, 2.0))
    await store.note_limits("team", Limits(1 / 3, 1.7e9 + 1 / 3, 3.0))
    await store.note_limits("ünï", Limits(1.0, 0.0, 0.0))
    table = await store.table()
    assert table.limits == {"team": Limits(1 / 3, 1.7e9 + 1 / 3, 3.0), "ünï": Limits(1.0, 0.0, 0.0)}
    (left,) = await connection.ask(command("TTL", keys.health_limits()))
    assert LIMITS_LIVE - 5 <= left <= LIMITS_LIVE


async def test_what_a_row_says_survives_the_trip(connection: Connection) -> None:
    store = HealthStore(connection)
    report = HealthReport('model:a@0:ünï "x"', S.REVOKED, 1 / 3, because=TEXT, evidence=TEXT, soft=True)
    ruling = await store.report(report)
    assert ruling.row == merge(None, report, ruling.at)
    assert (await store.table()).rows == {report.subject: ruling.row}


@pytest.mark.parametrize(
    "known",
    [
        b"not json",
        b"[]",
        b'{"state":"no such state"}',
        b'{"subject":"credential:a","state":"cooling","until":1.0,"since":1.0,"because":"","evidence":"","version":4}',
    ],
    ids=["no json", "no object", "no state", "an older form"],
)
async def test_a_row_that_cannot_be_read_is_mended_by_the_next_report(connection: Connection, known: bytes) -> None:
    store = HealthStore(connection)
    await connection.ask(command("HSET", keys.health_rows(), SUBJECT, known))
    ruling = await store.report(HealthReport(SUBJECT, S.REVOKED, lasting=60.0))
    assert ruling.changed and ruling.row.state is S.REVOKED
    assert ruling.row.version == (5 if b"version" in known else 1)
    assert (await store.table()).rows == {SUBJECT: ruling.row}
    assert await store.license(ruling.row, "token", 1.0)
