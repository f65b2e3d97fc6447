"""The recorder on a real store: each change recorded and told once, whoever dies, and nobody waits for a webhook."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from broker.domain.health import HealthReport, HealthState
from broker.metrics import Count, WorkerMetrics
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.events import EventStore
from broker.store.health import HealthStore
from broker.store.leases import LeaseStore
from broker.store.tellings import TellingStore
from broker.store.timeline import TimelineStore
from tests import engines
from tests.scenarios.house import wait_until
from tests.workers.receiver import Receiver, receiving
from workers.__main__ import make_progress, run_until
from workers.recorder import Recorder
from workers.webhooks import Webhook, Webhooks

GROUP = "group:acme"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


@dataclass
class Fixture:
    """A recorder whose steps are asked for by hand."""

    recorder: Recorder
    webhooks: Webhooks
    timeline: TimelineStore
    events: EventStore

    async def until_idle(self) -> None:
        """Step until there is nothing to do any more, and all posts are made."""
        async with asyncio.timeout(5):
            while True:
                done = await self.recorder.step()
                if not done and not self.webhooks.under_way:
                    return
                await asyncio.sleep(0.002)


def made(
    connection: Connection,
    receiver: Receiver | None = None,
    consumer: str = "one",
    *,
    idle: float = 15.0,
    every: float = 0.02,
    counts: Count | None = None,
) -> Fixture:
    hooks = [Webhook("slack", receiver.url(), per_minute=1000)] if receiver is not None else []
    webhooks = Webhooks(hooks, TellingStore(connection, consumer), first_pause=0.01)
    events, timeline = EventStore(connection), TimelineStore(connection)
    recorder = Recorder(events, timeline, webhooks, consumer, idle=idle, every=every, reclaim_every=1, counts=counts)
    return Fixture(recorder, webhooks, timeline, events)


@pytest.fixture
async def fixture(connection: Connection, receiver: Receiver) -> AsyncIterator[Fixture]:
    one = made(connection, receiver)
    yield one
    await one.webhooks.close(0.1)


@asynccontextmanager
async def working(server: engines.Server, receiver: Receiver, *consumers: str) -> AsyncIterator[list[Fixture]]:
    """Workers that run a recorder each, as they do in the house."""
    async with AsyncExitStack() as stack:
        fixtures = []
        for consumer in consumers:
            connection = Connection(server.url, timeout=0.3, connect_timeout=0.2)
            stack.push_async_callback(connection.close)
            fixtures.append(made(connection, receiver, consumer))
            stack.push_async_callback(fixtures[-1].webhooks.close, 0.1)
            stopping = asyncio.Event()
            progress = make_progress([fixtures[-1].recorder], LeaseStore(connection), consumer, WorkerMetrics())
            worker = asyncio.create_task(run_until(stopping, progress))
            stack.push_async_callback(asyncio.wait_for, worker, 5.0)
            stack.callback(stopping.set)
        yield fixtures


async def change(connection: Connection, count: int = 1, first: int = 1) -> list[str]:
    """That many changes, out and back in turn; the answer is their ids."""
    ends = ("healthy", "revoked"), ("revoked", "healthy")
    wanted = (
        command(
            *("XADD", keys.health_events(), "*", "subject", GROUP, "version", version),
            *("from", ends[version % 2][1], "state", ends[version % 2][0], "because", "x"),
        )
        for version in range(first, first + count)
    )
    return [id_.decode() for id_ in await connection.ask(*wanted)]


async def cut(connection: Connection, left: int) -> None:
    await connection.ask(command("XTRIM", keys.health_events(), "MAXLEN", "=", left))


async def recorded(connection: Connection) -> list[int]:
    """The versions in the timeline, the oldest first; and that each was counted once."""
    store = TimelineStore(connection)
    versions = [event.version for event in await store.timeline(GROUP)][::-1]
    assert sum((await store.counts()).values()) == len(versions)
    return versions


async def pending(connection: Connection) -> int:
    """How many entries were given to a recorder and not acknowledged."""
    (found,) = await connection.ask(command("XPENDING", keys.health_events(), "recorder"))
    return int(found["pending"])


async def test_a_change_is_heard_of_within_a_second(
    server: engines.Server, connection: Connection, receiver: Receiver
) -> None:
    connections = [Connection(server.url) for _ in range(2)]
    webhooks = Webhooks([Webhook("slack", receiver.url())], TellingStore(connections[0], "one"))
    recorder = Recorder(EventStore(connections[0]), TimelineStore(connections[0]), webhooks, "one")
    stopping = asyncio.Event()
    progress = make_progress([recorder], LeaseStore(connections[0]), "one", WorkerMetrics())
    worker = asyncio.create_task(run_until(stopping, progress))
    await wait_until(lambda: connections[0].round_trips)
    report = HealthReport(GROUP, HealthState.EXHAUSTED, lasting=60, because="insufficient_quota")
    began = time.monotonic()
    await HealthStore(connections[1]).report(report)
    await wait_until(lambda: receiver.posts, within=1.0)
    assert time.monotonic() - began < 1.0
    assert (
        receiver.posts[0].json["text"].startswith("session-broker: limit group acme is exhausted (insufficient_quota)")
    )
    stopping.set()
    await asyncio.wait_for(worker, 5)
    await webhooks.close(0.1)
    for each in connections:
        await each.close()


async def test_records_in_order_tells_and_acknowledges(
    fixture: Fixture, connection: Connection, receiver: Receiver
) -> None:
    ids = await change(connection, 5)
    assert await fixture.recorder.step() == "recorded 5"
    await fixture.until_idle()
    assert await recorded(connection) == [1, 2, 3, 4, 5] and sorted(receiver.ids) == sorted(ids)
    assert await pending(connection) == 0
    assert await fixture.recorder.step() == "" and fixture.recorder.recorded == 5 and fixture.recorder.missed == 0


async def test_much_that_has_piled_up_is_recorded_in_few_steps(connection: Connection) -> None:
    one = made(connection)
    await change(connection, 1200)
    assert await one.recorder.step() == "recorded 1000"
    assert await one.recorder.step() == "recorded 200"
    assert (await TimelineStore(connection).counts()) == {(GROUP, "revoked"): 600, (GROUP, "healthy"): 600}
    assert await pending(connection) == 0


async def test_two_recorders_record_and_tell_each_change_once(
    server: engines.Server, connection: Connection, receiver: Receiver
) -> None:
    ids: list[str] = []
    async with working(server, receiver, "one", "two") as fixtures:
        for i in range(10):
            ids += await change(connection, 8, first=1 + 8 * i)
        await wait_until(lambda: len(receiver.posts) >= 80 and not any(each.webhooks.under_way for each in fixtures))
        assert sum(each.recorder.recorded for each in fixtures) == 80
    assert await recorded(connection) == list(range(1, 81))
    assert sorted(receiver.ids) == sorted(ids) and await pending(connection) == 0


@pytest.mark.parametrize("done", ["read", "recorded", "owed"])
async def test_another_finishes_what_a_recorder_had_begun_when_it_died(
    connection: Connection, receiver: Receiver, done: str
) -> None:
    dead = made(connection, receiver, "dead")
    ids = await change(connection, 3)
    events = (await dead.events.read("dead", 10)).events
    if done in ("recorded", "owed"):
        await dead.timeline.record(events)
    if done == "owed":
        await dead.webhooks.owe(events)
    patient, other = made(connection, receiver, "other"), made(connection, receiver, "other", idle=0.0)
    assert await patient.recorder.step() == "" and await pending(connection) == 3
    await other.until_idle()
    assert await recorded(connection) == [1, 2, 3] and sorted(receiver.ids) == sorted(ids)
    assert await pending(connection) == 0
    await other.webhooks.close(0.1)
    await patient.webhooks.close(0.1)


async def test_a_change_that_is_recorded_after_newer_ones_stands_in_its_place(
    connection: Connection, receiver: Receiver
) -> None:
    await change(connection, 2)
    await EventStore(connection).read("dead", 10)
    await change(connection, 2, first=3)
    other = made(connection, receiver, "other", idle=0.0)
    await other.until_idle()
    assert await recorded(connection) == [1, 2, 3, 4]
    await other.webhooks.close(0.1)


async def test_what_was_trimmed_unread_is_counted_and_said(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Count(CollectorRegistry(), "events", "Events.", ["result"])
    one, two = made(connection, counts=counts), made(connection, consumer="two")
    await change(connection, 2)
    await one.recorder.step()
    await change(connection, 6, first=3)
    await cut(connection, 2)
    await two.recorder.step()
    await one.recorder.step()
    assert (one.recorder.missed, two.recorder.missed) == (0, 6 - 2) and await one.events.lost() == 4
    assert await recorded(connection) == [1, 2, 7, 8]
    (record,) = [each for each in caplog.records if "trimmed before they were recorded" in each.message]
    assert vars(record)["count"] == 4


async def test_a_slow_webhook_does_not_hold_up_recording(
    fixture: Fixture, connection: Connection, receiver: Receiver
) -> None:
    receiver.open.clear()
    await change(connection, 30)
    await fixture.recorder.step()
    for i in range(5):
        await change(connection, 30, first=31 + 30 * i)
        async with asyncio.timeout(0.5):
            await fixture.recorder.step()
    assert await recorded(connection) == list(range(1, 181)) and await pending(connection) == 0
    assert fixture.webhooks.under_way > 0 and fixture.webhooks.results == {}
    receiver.open.set()
    await fixture.until_idle()
    assert len(set(receiver.ids)) == len(receiver.ids) == 180


async def test_a_webhook_that_fails_is_told_in_the_end(
    fixture: Fixture, connection: Connection, receiver: Receiver
) -> None:
    receiver.answers = [500, 500]
    (id_,) = await change(connection)
    await fixture.until_idle()
    assert receiver.ids == [id_] * 3 and fixture.webhooks.results == {("slack", "sent"): 1}


async def test_goes_on_when_everything_was_flushed(
    fixture: Fixture, connection: Connection, receiver: Receiver
) -> None:
    await change(connection, 4)
    await fixture.until_idle()
    await connection.ask(command("FLUSHALL"))
    await fixture.recorder.step()
    ids = await change(connection, 2, first=11)
    await fixture.until_idle()
    assert await recorded(connection) == [11, 12] and set(ids) < set(receiver.ids) and len(receiver.ids) == 6
    assert fixture.recorder.missed == 0


async def test_goes_on_when_the_store_was_away(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    with engines.server("valkey9", appendonly=True) as server:
        connection = Connection(server.url, timeout=0.3, connect_timeout=0.2)
        ids = await change(connection, 3)
        async with working(server, receiver, "one") as (one,):
            await wait_until(lambda: len(receiver.posts) == 3)
            server.kill()
            await wait_until(lambda: "duty waits for the store" in caplog.text)
            server.start()
            ids += await change(connection, 3, first=4)
            await wait_until(lambda: len(receiver.posts) == 6, within=10.0)
            assert one.recorder.recorded == 6
        assert await recorded(connection) == [1, 2, 3, 4, 5, 6] and sorted(receiver.ids) == sorted(ids)
        await connection.close()


async def test_a_batch_that_could_not_be_recorded_is_taken_up_again_in_the_next_step(
    server: engines.Server, connection: Connection, receiver: Receiver
) -> None:
    one = made(connection, receiver)
    await change(connection, 3)
    # a counter that is no hash refuses to be counted in
    await connection.ask(command("SET", keys.health_counts(), "x"))
    with pytest.raises(Exception, match="refused"):
        await one.recorder.step()
    assert receiver.posts == [] and await pending(connection) == 3
    await connection.ask(command("DEL", keys.health_counts()), command("DEL", keys.health_timeline(GROUP)))
    await one.until_idle()
    assert await recorded(connection) == [1, 2, 3] and len(receiver.posts) == 3 and await pending(connection) == 0
    await one.webhooks.close(0.1)
