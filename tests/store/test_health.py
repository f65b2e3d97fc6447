"""The health table of the store follows the rule of the domain."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.domain.health import MAX_BLOCK, AuthHealth, HealthReport, HealthState, merge
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.health import MAX_EVENTS, HealthStore

SUBJECT = "credential:a"
TEXT = 'a "quoted" / slashed \\ reason, ünïcode\n'

reports = st.builds(
    HealthReport,
    st.sampled_from([SUBJECT, "group:g"]),
    st.sampled_from(list(HealthState)),
    # 0 lasts until now, and so is over at the next report: expiry without waiting
    lasting=st.sampled_from([0.0, 0.0, 1e-6, 30.0, 30.5, 3600.0, 2 * MAX_BLOCK]),
    until=st.one_of(
        st.none(), st.none(), st.sampled_from([0.0, 1.5, time.time() + 60, time.time() + 2 * MAX_BLOCK, 4e9 + 1 / 3])
    ),
    because=st.sampled_from(["", "429", TEXT]),
    evidence=st.sampled_from(["", TEXT]),
    version=st.integers(0, 12),
)


async def events(connection: Connection) -> list[dict[bytes, bytes]]:
    (entries,) = await connection.ask(command("XRANGE", keys.health_events(), "-", "+"))
    return [fields for _, fields in entries]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=st.lists(reports, max_size=12))
async def test_the_script_and_the_domain_agree(connection: Connection, sequence: list[HealthReport]) -> None:
    await connection.ask(command("FLUSHALL"))
    store = HealthStore(connection)
    expected: dict[str, AuthHealth] = {}
    changes = 0
    for report in sequence:
        before = expected.get(report.subject)
        ruling = await store.rule(report)
        after = merge(before, report, ruling.at)
        assert ruling.row == after
        assert ruling.changed == (after.version != (before.version if before else 0))
        changes += ruling.changed
        if ruling.changed:
            expected[report.subject] = after
    rows, now = await store.snapshot()
    assert rows == expected
    assert abs(now - time.time()) < 30
    assert len(await events(connection)) == changes


async def test_a_report_is_on_the_servers_clock(connection: Connection) -> None:
    store = HealthStore(connection)
    row = await store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=10, because="429", evidence="x"))
    _, now = await store.snapshot()
    assert row == AuthHealth(SUBJECT, HealthState.COOLING, row.since + 10, row.since, "429", "x", False, 1)
    assert 0 <= now - row.since < 5


async def test_only_changes_are_events(connection: Connection) -> None:
    store = HealthStore(connection)
    await store.report(HealthReport(SUBJECT, HealthState.HEALTHY))
    await store.report(HealthReport(SUBJECT, HealthState.EXHAUSTED, lasting=60, because="quota"))
    await store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=60))
    await store.report(HealthReport(SUBJECT, HealthState.HEALTHY, version=7))
    await store.report(HealthReport(SUBJECT, HealthState.HEALTHY, version=1, because="probe"))
    told = [(e[b"from"], e[b"state"], e[b"because"], e[b"version"]) for e in await events(connection)]
    assert told == [(b"healthy", b"exhausted", b"quota", b"1"), (b"exhausted", b"healthy", b"probe", b"2")]


async def test_a_success_of_an_older_request_clears_no_newer_failure(connection: Connection) -> None:
    store = HealthStore(connection)
    await store.report(HealthReport(SUBJECT, HealthState.SUSPECT, lasting=60))
    await store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=60))
    row = await store.report(HealthReport(SUBJECT, HealthState.HEALTHY, version=1))
    assert (row.state, row.version) == (HealthState.COOLING, 2)


async def test_snapshot_takes_one_round_trip(connection: Connection) -> None:
    before = connection.round_trips
    assert (await HealthStore(connection).snapshot())[0] == {}
    assert connection.round_trips == before + 1


async def test_many_nodes_report_at_once_and_no_version_is_lost(connection: Connection) -> None:
    store = HealthStore(connection)
    rows = await asyncio.gather(
        *(store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=60 + i)) for i in range(50))
    )
    assert [row.version for row in rows] == list(range(1, 51))


async def test_the_stream_is_trimmed(connection: Connection, engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis is too slow for thousands of scripts")
    store = HealthStore(connection)
    for start in range(0, MAX_EVENTS + 1000, 500):
        await asyncio.gather(
            *(store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=start + i)) for i in range(1, 501))
        )
    (length,) = await connection.ask(command("XLEN", keys.health_events()))
    assert MAX_EVENTS <= length < MAX_EVENTS + 500


@pytest.mark.parametrize("never", [float("inf"), float("nan")])
async def test_a_block_without_end_is_refused(connection: Connection, never: float) -> None:
    store = HealthStore(connection)
    for report in (
        HealthReport(SUBJECT, HealthState.COOLING, lasting=never),
        HealthReport(SUBJECT, HealthState.PAUSED, until=never),
    ):
        with pytest.raises(ValueError):
            await store.report(report)
