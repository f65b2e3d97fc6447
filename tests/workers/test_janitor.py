"""The janitor on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from broker.domain.credential import Credential, Secret
from broker.domain.health import (
    CALM,
    AuthHealth,
    HealthReport,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    model_subject,
    pause_subject,
    rate_subject,
)
from broker.metrics import WorkerMetrics
from broker.store import keys
from broker.store.codec import Codec
from broker.store.connection import Connection, command
from broker.store.health import HealthStore
from broker.store.leases import LeaseStore
from broker.store.nodes import NodeStore
from broker.store.sessions import SessionStore
from broker.store.sweep import SweepStore
from tests import engines
from tests.scenarios.house import wait_until
from tests.store.turns import IDLE_TTL, SID, TENANT, turn
from workers.__main__ import make_progress, run_until
from workers.cluster import Cluster, state_of
from workers.janitor import DAY, Janitor, outlived

RED = Credential("red", "http://red.example/v1", Secret("sk-red"), limit_group="acme")
BLUE = Credential("blue", "http://blue.example/v1", Secret("sk-blue"))
NOW = 2_000_000_000.0


class Fixture:
    """A janitor that is asked for its steps by hand."""

    def __init__(self, connection: Connection, pool: Sequence[Credential] = (RED, BLUE), **settings: Any) -> None:
        self.connection = connection
        self.pool = list(pool)
        self.metrics = WorkerMetrics()
        self.nodes = NodeStore(connection)
        self.janitor = Janitor(
            self.nodes,
            SweepStore(connection),
            lambda: self.pool,
            Cluster(self.metrics),
            idle_ttl=60.0,
            **settings,
        )

    async def steps(self, count: int) -> list[str]:
        return [await self.janitor.step() for _ in range(count)]

    def shown(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def fixture(connection: Connection) -> Fixture:
    return Fixture(connection)


async def rows_of(connection: Connection) -> set[str]:
    (found,) = await connection.ask(command("HKEYS", keys.health_rows()))
    return {subject.decode() for subject in found}


async def put(connection: Connection, *rows: AuthHealth) -> None:
    for row in rows:
        await connection.ask(command("HSET", keys.health_rows(), row.subject, msgspec.json.encode(row)))


# --- nodes ---


async def test_forgets_a_node_that_fell_silent_and_keeps_one_that_beats(server: engines.Server) -> None:
    connection = Connection(server.url)
    fixture, stopping = Fixture(connection, every=0.05, silent_for=0.5), asyncio.Event()
    nodes = fixture.nodes
    await nodes.beat("dead", {"sockets": 3})
    progress = make_progress([fixture.janitor], LeaseStore(connection), "token", fixture.metrics)
    worker = asyncio.create_task(run_until(stopping, progress))
    names: set[str] = {"dead"}

    async def look() -> None:
        while names != {"alive"}:
            await nodes.beat("alive", {"sockets": 1})
            names.clear()
            names.update(await nodes.nodes())
            await asyncio.sleep(0.05)

    await asyncio.wait_for(look(), 5.0)
    stopping.set()
    await asyncio.wait_for(worker, 5.0)
    await connection.close()


async def test_waits_for_a_store_that_is_away_and_goes_on_afterwards(
    server: engines.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    connection = Connection(server.url, timeout=0.3, connect_timeout=0.2)
    fixture, stopping = Fixture(connection, every=0.05, silent_for=0.5), asyncio.Event()
    server.kill()
    progress = make_progress([fixture.janitor], LeaseStore(connection), "token", fixture.metrics)
    worker = asyncio.create_task(run_until(stopping, progress))
    await wait_until(lambda: "duty waits for the store" in caplog.text)
    server.start()
    await wait_until(lambda: "duty goes on" in caplog.text, within=15.0)
    assert caplog.text.count("duty waits for the store") == 1
    stopping.set()
    await asyncio.wait_for(worker, 5.0)
    await connection.close()


# --- sessions and responses ---


async def test_forgets_the_index_of_a_session_that_is_gone_and_keeps_what_lives(
    fixture: Fixture, connection: Connection
) -> None:
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    await store.commit(turn("t1"))
    other = "another-session"
    await store.commit(msgspec.structs.replace(turn("t2"), sid=other))
    assert await store.locate(TENANT, "resp-t1") == SID and await store.locate(TENANT, "resp-t2") == other
    await store.delete(other)
    said = await fixture.steps(3)
    assert await store.locate(TENANT, "resp-t1") == SID
    assert await store.locate(TENANT, "resp-t2") is None
    assert said.count("orphan 1") == 1
    fixture.metrics.flush()
    assert fixture.shown("broker_janitor_removed_total", what="orphan") == 1


async def test_an_index_that_comes_before_its_session_is_not_removed(fixture: Fixture, connection: Connection) -> None:
    await connection.ask(command("SET", keys.response("early"), SID, "PX", 60_000))
    await fixture.steps(1)
    await connection.ask(command("HSET", keys.session(SID), "name", "x"))
    await fixture.steps(3)
    assert await connection.ask(command("EXISTS", keys.response("early"))) == [1]


async def test_keys_that_have_no_end_get_one_and_others_keep_theirs(fixture: Fixture, connection: Connection) -> None:
    store = SessionStore(connection, Codec(), idle_ttl=3600.0, max_transcript=1 << 20)
    await store.commit(turn("t1"))
    endless = (keys.session("a"), keys.turns("a"), keys.ids("a"))
    for key in endless:
        await connection.ask(command("HSET", key, "name", "x"))
    await connection.ask(command("SET", keys.response("a"), "a"))
    assert "endless 4" in await fixture.steps(2)
    ttls = await connection.ask(*(command("PTTL", key) for key in (*endless, keys.response("a"))))
    assert all(0 < ttl <= 60_000 for ttl in ttls)
    kept = await connection.ask(*(command("PTTL", key) for key in keys.of_session(SID)))
    assert all(ttl > 3_500_000 for ttl in kept)


async def test_a_step_does_no_more_for_a_store_that_is_large_and_all_is_seen_in_the_end(
    connection: Connection,
) -> None:
    fixture = Fixture(connection, looked_at=100)
    responses = [keys.response(f"r{i}") for i in range(2000)]
    await connection.ask(command("HSET", keys.session("here"), "name", "x"))
    await connection.ask(*(command("SET", key, "here" if i % 2 else "gone") for i, key in enumerate(responses)))

    async def untouched() -> int:
        return sum(1 for ttl in await connection.ask(*(command("PTTL", key) for key in responses)) if ttl == -1)

    left = [await untouched()]
    while left[-1] and len(left) < 100:
        await fixture.steps(1)
        left.append(await untouched())
    assert left[-1] == 0 and len(left) > 10
    assert max(a - b for a, b in pairwise(left)) < 300
    await fixture.steps(2)
    assert sum(await connection.ask(*(command("EXISTS", key) for key in responses))) == 1000


# --- rows of health ---


def row(subject: str, state: HealthState, **fields: Any) -> AuthHealth:
    return AuthHealth(subject, state, version=1, **fields)


OLD_RED = replace(RED, secret=Secret("sk-red-of-last-year"))
GONE = Credential("gone", "http://gone.example/v1", Secret("sk-gone"))
H, S, C, R, P = (HealthState(name) for name in ("healthy", "suspect", "cooling", "revoked", "paused"))


@pytest.mark.parametrize(
    ("kept", "given"),
    [
        # what is configured
        (True, row(credential_subject(RED), R, until=NOW + 10, since=NOW)),
        (True, row(credential_subject(RED), R, until=NOW - 9 * DAY, since=NOW - 10 * DAY)),
        (True, row(credential_subject(BLUE), H, since=NOW - DAY + 1)),
        (False, row(credential_subject(BLUE), H, since=NOW - DAY - 1)),
        (False, row(group_subject(RED), H, since=NOW - DAY - 1)),
        (True, row(group_subject(RED), C, until=NOW - 2 * DAY, since=NOW - 3 * DAY)),
        (True, row(endpoint_subject(RED), C, until=NOW - 2 * DAY, since=NOW - 3 * DAY)),
        (True, row(pause_subject(RED), P, since=NOW - 99 * DAY)),
        # one of its models, which clients may name as they like
        (True, row(model_subject(RED, "m"), C, until=NOW - DAY + 1, since=NOW - DAY)),
        (False, row(model_subject(RED, "m"), C, until=NOW - DAY - 1, since=NOW - DAY - 9)),
        (True, row(rate_subject(RED, "a:b"), S, until=NOW + 1, since=NOW - 9 * DAY)),
        (False, row(rate_subject(RED, "a:b"), C, until=NOW - DAY - 1, since=NOW - DAY - 9)),
        # what is not
        (True, row(credential_subject(GONE), R, until=NOW + 10, since=NOW)),
        (True, row(credential_subject(GONE), R, until=NOW - CALM + 1, since=NOW - DAY)),
        (False, row(credential_subject(GONE), R, until=NOW - CALM - 1, since=NOW - DAY)),
        (False, row(credential_subject(OLD_RED), R, until=NOW - CALM - 1, since=NOW - DAY)),
        (False, row(credential_subject(OLD_RED), H, since=NOW - CALM - 1)),
        (False, row(model_subject(OLD_RED, "m"), C, until=NOW - CALM - 1, since=NOW - DAY)),
        (False, row(group_subject(GONE), C, until=NOW - CALM - 1, since=NOW - DAY)),
        (False, row(rate_subject(GONE, "m"), C, until=NOW - CALM - 1, since=NOW - DAY)),
        (False, row(endpoint_subject(GONE), C, until=NOW - CALM - 1, since=NOW - DAY)),
        (True, row(pause_subject(GONE), P, since=NOW - 99 * DAY)),
    ],
)
def test_a_row_has_outlived_its_use(kept: bool, given: AuthHealth) -> None:
    assert outlived(given, [RED, BLUE], NOW) is not kept


async def test_removes_the_rows_that_say_nothing_any_more_and_follows_what_is_configured(
    connection: Connection,
) -> None:
    fixture, now = Fixture(connection, rows_every=1), time.time()
    ended = {"until": now - 2 * CALM, "since": now - DAY}
    await put(
        connection,
        row(credential_subject(RED), R, **ended),
        row(credential_subject(BLUE), R, **ended),
        row(credential_subject(BLUE) + "x", R, until=now + 60, since=now),
    )
    await connection.ask(command("HSET", keys.health_rows(), "credential:of-tomorrow", '{"version":"2.0"}'))
    await fixture.steps(1)
    assert len(await rows_of(connection)) == 4
    fixture.pool = [RED]
    assert await fixture.steps(1) == ["health_row 1"]
    expected = {credential_subject(RED), credential_subject(BLUE) + "x", "credential:of-tomorrow"}
    assert await rows_of(connection) == expected


async def test_rows_are_looked_at_only_now_and_then(connection: Connection) -> None:
    fixture, now = Fixture(connection, rows_every=4), time.time()
    await fixture.steps(1)
    await put(connection, row(credential_subject(GONE), R, until=now - 2 * CALM, since=now - DAY))
    assert await fixture.steps(4) == ["", "", "", "health_row 1"]


# --- events ---


async def test_events_of_more_than_a_week_ago_are_forgotten(fixture: Fixture, connection: Connection) -> None:
    now = int(time.time() * 1000)
    for age in (8, 6):
        await connection.ask(command("XADD", keys.health_events(), f"{now - int(age * DAY * 1000)}-0", "a", "b"))
    assert await fixture.steps(1) == ["event 1"]
    assert await connection.ask(command("XLEN", keys.health_events())) == [1]


# --- the whole cluster ---


async def test_shows_the_cluster_as_it_is(fixture: Fixture, connection: Connection) -> None:
    nodes, now = fixture.nodes, time.time()
    await nodes.beat("one", {"sockets": 3, "links": 2, "in_flight": {"red": 2}})
    await nodes.beat("two", {"sockets": 4, "links": 4, "in_flight": {"red": 1, "stranger": 9}})
    await nodes.beat("work", {"leads": ["janitor"]}, role="worker")
    await HealthStore(connection).report(HealthReport(group_subject(RED), C, lasting=60.0, at=now, because="test"))
    await fixture.steps(1)
    assert fixture.shown("broker_cluster_nodes", role="edge") == 2
    assert fixture.shown("broker_cluster_nodes", role="worker") == 1
    assert fixture.shown("broker_cluster_sockets", direction="client") == 7
    assert fixture.shown("broker_cluster_sockets", direction="upstream") == 6
    assert fixture.shown("broker_cluster_in_flight", credential="red") == 3
    assert fixture.shown("broker_cluster_in_flight", credential="blue") == 0
    assert fixture.shown("broker_cluster_in_flight", credential="stranger") is None
    states = {s: fixture.shown("broker_cluster_credential_state", credential="red", state=s.value) for s in HealthState}
    assert {state for state, value in states.items() if value} == {C} and None not in states.values()
    assert fixture.shown("broker_cluster_credential_state", credential="blue", state="healthy") == 1
    fixture.pool = [BLUE]
    await fixture.steps(1)
    assert fixture.shown("broker_cluster_credential_state", credential="red", state="cooling") is None
    assert fixture.shown("broker_cluster_in_flight", credential="red") is None


def test_the_gravest_state_that_holds_is_the_credentials() -> None:
    def state(*rows: AuthHealth) -> HealthState:
        return state_of(RED, {each.subject: each for each in rows}, NOW)

    cooling = row(group_subject(RED), C, until=NOW + 1)
    assert state() is H
    assert state(cooling) is C
    assert state(cooling, row(credential_subject(RED), R, until=NOW + 1)) is R
    assert state(cooling, row(credential_subject(RED), R, until=NOW - 1)) is C
    assert state(row(pause_subject(RED), P), cooling) is P
    assert state(row(credential_subject(OLD_RED), R, until=NOW + 1)) is H
