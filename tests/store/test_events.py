"""The audit stream as recorders read it: everything once, from whoever died too, and what was trimmed is counted."""

from __future__ import annotations

import asyncio

import pytest

from broker.domain.health import HealthReport, HealthState
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.events import EventStore
from broker.store.health import HealthStore

SUBJECT = "credential:red@12345678"


@pytest.fixture(autouse=True)
def can_read(engine: str) -> None:
    if engine == "fakeredis":
        pytest.skip("fakeredis answers XREADGROUP within a script in a form of its own")


async def add(connection: Connection, count: int, first: int = 1) -> list[str]:
    """That many entries with versions that rise; the answer is their ids."""
    wanted = (
        command("XADD", keys.health_events(), "*", "subject", SUBJECT, "state", "revoked", "version", first + i)
        for i in range(count)
    )
    return [id_.decode() for id_ in await connection.ask(*wanted)]


async def cut(connection: Connection, left: int) -> None:
    """Trim the stream to exactly so many entries."""
    await connection.ask(command("XTRIM", keys.health_events(), "MAXLEN", "=", left))


async def versions(events: EventStore, consumer: str, count: int = 100) -> list[int]:
    return [event.version for event in (await events.read(consumer, count)).events]


async def consumers(connection: Connection) -> set[str]:
    (found,) = await connection.ask(command("XINFO CONSUMERS", keys.health_events(), "recorder"))
    return {_name(each) for each in found}


def _name(flat: object) -> str:
    if isinstance(flat, dict):
        told = {str(key, "ascii") if isinstance(key, bytes) else key: value for key, value in flat.items()}
        return str(told["name"], "ascii")
    assert isinstance(flat, list)
    return str(dict(zip(flat[::2], flat[1::2], strict=True))[b"name"], "ascii")


async def test_an_event_says_what_the_health_table_said(connection: Connection) -> None:
    report = HealthReport(SUBJECT, HealthState.REVOKED, lasting=60, because="invalid_api_key", evidence="turn-1")
    ruling = await HealthStore(connection).report(report)
    (event,) = (await EventStore(connection).read("one", 10)).events
    row = ruling.row
    assert (event.subject, event.from_, event.state, event.because) == (SUBJECT, "healthy", "revoked", row.because)
    assert (event.until, event.since, event.evidence, event.version) == (row.until, row.since, "turn-1", row.version)
    assert (event.told, event.soft, event.strikes) == (row.told, row.soft, row.strikes)
    assert abs(event.at - row.since) < 1


async def test_an_entry_that_says_little_or_nonsense_is_read_as_far_as_it_goes(connection: Connection) -> None:
    await connection.ask(
        command("XADD", keys.health_events(), "*", "more", "x"),
        command(
            "XADD", keys.health_events(), "*", "subject", b"\xff", "until", "nan", "version", "soon", "told", "true"
        ),
    )
    bare, odd = (await EventStore(connection).read("one", 10)).events
    assert (bare.subject, bare.from_, bare.until, bare.version, bare.told) == ("", "", 0.0, 0, False)
    assert (odd.subject, odd.until, odd.version, odd.told) == ("\ufffd", 0.0, 0, True)


async def test_what_was_there_before_the_first_recorder_is_read_in_order(connection: Connection) -> None:
    ids = await add(connection, 5)
    events = EventStore(connection)
    first = await events.read("one", 3)
    assert [event.id for event in first.events] == ids[:3]
    assert await versions(events, "one") == [4, 5]
    assert await versions(events, "one") == [] and await events.lost() == 0


async def test_each_event_goes_to_one_of_two(connection: Connection) -> None:
    events = EventStore(connection)
    await add(connection, 20)
    answers = await asyncio.gather(*(versions(events, f"reader-{i % 2}", 3) for i in range(10)))
    assert sorted(version for each in answers for version in each) == list(range(1, 21))


async def test_what_a_dead_consumer_left_is_taken_over_until_it_is_acknowledged(connection: Connection) -> None:
    events = EventStore(connection)
    ids = await add(connection, 3)
    await events.read("dead", 10)
    assert (await events.reclaim("one", 60.0, 10)).events == []
    taken = await events.reclaim("one", 0.0, 10)
    assert [event.id for event in taken.events] == ids
    await events.ack(ids[:2])
    assert [event.id for event in (await events.reclaim("two", 0.0, 10)).events] == ids[2:]
    await events.ack(ids)
    assert (await events.reclaim("two", 0.0, 10)).events == []


async def test_reclaims_nothing_where_there_is_no_group(connection: Connection) -> None:
    batch = await EventStore(connection).reclaim("one", 0.0, 10)
    assert (list(batch.events), batch.lost) == ([], 0)


async def test_a_recorder_that_has_nothing_and_is_silent_is_forgotten(connection: Connection) -> None:
    events = EventStore(connection)
    ids = await add(connection, 2)
    await events.read("has-one", 1)
    await events.read("has-none", 1)
    await events.ack(ids[1:])
    await events.reclaim("one", 60.0, 10)
    assert {"has-one", "has-none"} <= await consumers(connection)
    impatient = EventStore(connection, consumers_live=0.0)
    async with asyncio.timeout(5):
        while "has-none" in await consumers(connection):
            await impatient.reclaim("one", 60.0, 10)
    assert "has-one" in await consumers(connection)


async def test_what_was_trimmed_before_it_was_delivered_is_counted_once(connection: Connection) -> None:
    events = EventStore(connection)
    await add(connection, 4)
    assert await versions(events, "one", 2) == [1, 2]
    await add(connection, 6, first=5)
    await cut(connection, 3)
    batch = await events.read("one", 2)
    assert batch.lost == 5 and [event.version for event in batch.events] == [8, 9]
    assert (await events.read("two", 2)).lost == 0
    assert (await events.read("two", 2)).lost == 0
    assert await events.lost() == 5
    await add(connection, 3)
    await cut(connection, 0)
    assert (await events.read("two", 10)).lost == 3
    assert await events.lost() == 8


async def test_trimming_what_was_delivered_is_no_loss(connection: Connection) -> None:
    events = EventStore(connection)
    for _ in range(3):
        await add(connection, 4)
        batch = await events.read("one", 4)
        await events.ack([event.id for event in batch.events])
        await cut(connection, 1)
        assert batch.lost == 0
    await cut(connection, 0)
    assert (await events.read("one", 4)).lost == 0 and await events.lost() == 0


async def test_what_was_trimmed_before_the_first_recorder_is_no_loss(connection: Connection) -> None:
    await add(connection, 10)
    await cut(connection, 2)
    batch = await EventStore(connection).read("one", 1)
    assert batch.lost == 0 and [event.version for event in batch.events] == [1 + 8]


async def test_what_was_trimmed_before_it_was_acknowledged_is_counted_once(connection: Connection) -> None:
    events = EventStore(connection)
    await add(connection, 4)
    await events.read("dead", 10)
    await cut(connection, 1)
    batch = await events.reclaim("one", 0.0, 10)
    assert batch.lost == 3 and [event.version for event in batch.events] == [4]
    assert (await events.reclaim("two", 0.0, 10)).lost == 0
    assert await events.lost() == 3


async def test_goes_on_when_everything_was_flushed(connection: Connection) -> None:
    events = EventStore(connection)
    await add(connection, 50)
    await versions(events, "one")
    await connection.ask(command("FLUSHALL"))
    assert await versions(events, "one") == []
    await add(connection, 2, first=100)
    assert await versions(events, "one") == [100, 101]
    await connection.ask(command("DEL", keys.health_events()))
    await add(connection, 2, first=200)
    assert await versions(events, "one", 2) == [200, 201] and await events.lost() == 0
    await add(connection, 4)
    await cut(connection, 1)
    assert (await events.read("one", 2)).lost == 3, "it is counted from the new beginning"


async def test_how_far_recorders_have_come_is_not_kept_for_ever(connection: Connection) -> None:
    events = EventStore(connection)
    await add(connection, 1)
    await events.read("one", 10)
    (ttl,) = await connection.ask(command("TTL", keys.health_recorder()))
    assert 29 * 86400 < ttl <= 30 * 86400
    await connection.ask(command("DEL", keys.health_recorder()))
    assert (await events.read("one", 10)).lost == 0
    await add(connection, 2)
    await cut(connection, 1)
    assert (await events.read("one", 10)).lost == 1
