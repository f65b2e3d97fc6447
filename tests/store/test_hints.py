"""Hints: what changes in the table is heard at once, and a lost subscription is made again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from broker.domain.health import AuthHealth, HealthReport, HealthState
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.health import HealthStore
from broker.store.hints import Hints
from tests import engines
from tests.store.turns import wait_until

ENGINE = "valkey9"
AT_ONCE = 0.5
"""Seconds: well under the second in which all nodes must know."""

SUBJECT = "credential:a@0"


class Ear:
    """Keeps what was heard, and how often it was joined."""

    def __init__(self, url: str) -> None:
        self.rows: list[AuthHealth] = []
        self.joined = 0
        self.hints = Hints(url, self.rows.append, self._join)

    def _join(self) -> None:
        self.joined += 1


@pytest.fixture
def server() -> Iterator[engines.Server]:
    try:
        with engines.server(ENGINE) as started:
            yield started
    except LookupError as missing:
        pytest.skip(str(missing))


@pytest.fixture
async def ear(server: engines.Server) -> AsyncIterator[Ear]:
    made = Ear(server.url)
    made.hints.start()
    await wait_until(lambda: made.joined == 1)
    yield made
    await made.hints.stop()


@pytest.fixture
async def store(server: engines.Server) -> AsyncIterator[HealthStore]:
    connection = Connection(server.url)
    yield HealthStore(connection)
    await connection.close()


async def told(store: HealthStore, ear: Ear, lasting: float) -> AuthHealth:
    """Report something new, and wait until it was heard."""
    row = (await store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=lasting))).row
    await wait_until(lambda: row in ear.rows, AT_ONCE)
    return row


async def test_hears_every_change_at_once_and_nothing_else(store: HealthStore, ear: Ear) -> None:
    rows = [await told(store, ear, 60.0 + each) for each in range(20)]
    await store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=1.0))
    healed = HealthReport(SUBJECT, HealthState.HEALTHY, because="sérved", version=20, operator=True)
    rows.append((await store.report(healed)).row)
    await wait_until(lambda: rows[-1] in ear.rows, AT_ONCE)
    assert ear.rows == rows and ear.hints.listening


@pytest.mark.parametrize("name", engines.NAMES)
async def test_hears_on_every_engine(name: str) -> None:
    if engines.binary(name) is None:
        pytest.skip(f"no binary of {name} is installed")
    with engines.server(name) as server:
        connection, ear = Connection(server.url), Ear(server.url)
        ear.hints.start()
        await wait_until(lambda: ear.joined == 1)
        await told(HealthStore(connection), ear, 60.0)
        await ear.hints.stop()
        await connection.close()


async def test_listens_again_when_its_socket_is_killed(server: engines.Server, store: HealthStore, ear: Ear) -> None:
    for again in (2, 3):
        await told(store, ear, 60.0 + again)
        assert server.execute("CLIENT", "KILL", "TYPE", "pubsub") == b":1"
        await wait_until(lambda again=again: ear.joined == again, 2.0)  # type: ignore[misc]
    await told(store, ear, 99.0)


async def test_listens_again_when_the_server_was_away(server: engines.Server, ear: Ear) -> None:
    server.kill()
    await wait_until(lambda: not ear.hints.listening, 2.0)
    server.start()
    await wait_until(lambda: ear.joined == 2)
    connection = Connection(server.url)
    await told(HealthStore(connection), ear, 60.0)
    await connection.close()


async def test_joins_a_server_that_was_not_there_at_the_start(server: engines.Server) -> None:
    server.kill()
    ear = Ear(server.url)
    ear.hints.start()
    server.start()
    await wait_until(lambda: ear.joined == 1)
    await ear.hints.stop()


async def test_a_server_that_stands_still_does_not_wedge_it(server: engines.Server) -> None:
    ear = Ear(server.url)
    ear.hints.start()
    await wait_until(lambda: ear.joined == 1)
    server.pause()
    # the socket is there and says nothing: asked once, and given up
    await wait_until(lambda: not ear.hints.listening, 15.0)
    server.resume()
    await wait_until(lambda: ear.joined == 2)
    connection = Connection(server.url)
    await told(HealthStore(connection), ear, 60.0)
    await ear.hints.stop()
    await connection.close()


async def test_is_joined_only_when_the_server_has_said_so(server: engines.Server) -> None:
    # else what changes between the reading of the table and the subscription is heard by nobody
    ear, answered = Ear(server.url), asyncio.Event()
    server.pause()
    ear.hints.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(answered.wait(), 0.3)
    assert (ear.joined, ear.hints.listening) == (0, False)
    server.resume()
    await wait_until(lambda: ear.joined == 1)
    await ear.hints.stop()


async def test_hears_what_was_said_when_a_server_goes_on_soon(
    server: engines.Server, store: HealthStore, ear: Ear
) -> None:
    server.pause()
    report = asyncio.create_task(store.report(HealthReport(SUBJECT, HealthState.COOLING, lasting=60.0)))
    await asyncio.wait([report], timeout=0.1)
    server.resume()
    await asyncio.wait([report])
    await told(store, ear, 70.0)
    assert ear.joined == 1


GARBAGE = [
    b"",
    b"not json",
    b"{}",
    b"[]",
    b"null",
    b'{"subject":1,"state":"cooling"}',
    b'{"subject":"x","state":"no such state"}',
    b'{"subject":"x","state":"cooling","until":"soon"}',
    b"\xff\xfe\x00",
    b'{"subject":"\xff","state":"cooling"}',
    b'{"subject":"x","state":"cooling","deep":' + b"[" * 50_000,
    b"x" * 1_000_000,
]


async def test_ignores_what_is_no_row(server: engines.Server, store: HealthStore, ear: Ear) -> None:
    connection = Connection(server.url)
    for garbage in GARBAGE:
        (reached,) = await connection.ask(command("PUBLISH", keys.health_channel(), garbage))
        assert reached == 1
    row = await told(store, ear, 60.0)
    assert ear.rows == [row]
    assert ear.joined == 1 and ear.hints.listening
    await connection.close()


@pytest.mark.parametrize("fate", ["runs", "paused", "killed", "never started"])
async def test_stops_within_a_bound_whatever_the_server_does(server: engines.Server, fate: str) -> None:
    ear = Ear(server.url)
    if fate != "never started":
        ear.hints.start()
        await wait_until(lambda: ear.joined == 1)
    if fate == "paused":
        server.pause()
    if fate == "killed":
        server.kill()
    before = time.monotonic()
    await ear.hints.stop()
    assert time.monotonic() - before < 2.5
    server.resume()
    if server.running:
        # nobody listens any more
        await wait_until(lambda: server.execute("PUBLISH", keys.health_channel(), "x") == b":0")
    assert "health-hints" not in {task.get_name() for task in asyncio.all_tasks()}
