"""Timelines and counts: each event once, whatever the order in which it comes."""

from __future__ import annotations

import random

from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.events import HealthEvent
from broker.store.timeline import TimelineStore

RED, BLUE = "credential:red@12345678", "group:acme"


def event(number: int, subject: str = RED, state: str = "revoked") -> HealthEvent:
    return HealthEvent(f"{1_795_000_000_000 + number}-0", 1_795_000_000 + number / 1000, subject, "healthy", state)


async def test_a_timeline_tells_the_newest_first_and_of_one_subject(connection: Connection) -> None:
    store = TimelineStore(connection)
    assert await store.record([event(1), event(2, BLUE), event(3, state="healthy")]) == 3
    assert await store.timeline(RED) == [event(3, state="healthy"), event(1)]
    assert await store.timeline(BLUE) == [event(2, BLUE)]
    assert await store.timeline("group:nobody") == []
    assert await store.counts() == {(RED, "revoked"): 1, (RED, "healthy"): 1, (BLUE, "revoked"): 1}


async def test_recording_again_in_any_order_changes_nothing(connection: Connection) -> None:
    store = TimelineStore(connection)
    events = [event(i) for i in range(50)]
    await store.record(events)
    told, counted = await store.timeline(RED), await store.counts()
    random.Random(7).shuffle(events)
    assert await store.record([*events, *events[:10]]) == 0
    assert await store.timeline(RED) == told and await store.counts() == counted


async def test_an_event_that_comes_late_stands_in_its_place(connection: Connection) -> None:
    store = TimelineStore(connection)
    for number in (3, 1, 2):
        await store.record([event(number)])
    assert await store.timeline(RED) == [event(3), event(2), event(1)]


async def test_events_of_one_millisecond_keep_their_order(connection: Connection) -> None:
    store = TimelineStore(connection)
    ids = [f"1795000000000-{i}" for i in range(12)]
    await store.record([HealthEvent(id_, 1_795_000_000.0, RED, version=i) for i, id_ in enumerate(ids)])
    assert [each.id for each in await store.timeline(RED)] == ids[::-1]


async def test_a_timeline_keeps_the_newest_and_what_it_has_dropped_is_not_counted_again(
    connection: Connection,
) -> None:
    store = TimelineStore(connection, kept=5)
    events = [event(i) for i in range(12)]
    await store.record(events)
    assert await store.timeline(RED) == events[:6:-1]
    assert await connection.ask(command("ZCARD", keys.health_timeline(RED))) == [5]
    assert await store.record(events[:8]) == 0
    assert await store.timeline(RED) == events[:6:-1] and await store.counts() == {(RED, "revoked"): 12}


async def test_what_another_version_wrote_otherwise_is_left_out(connection: Connection) -> None:
    store = TimelineStore(connection)
    await store.record([event(1)])
    await connection.ask(command("ZADD", keys.health_timeline(RED), 1, b'{"id":7}'))
    assert await store.timeline(RED) == [event(1)]


async def test_counts_of_more_subjects_than_there_is_room_for_go_together(connection: Connection) -> None:
    store = TimelineStore(connection, most_counts=2)
    await store.record([event(i, f"model:red@12345678:m-{i}") for i in range(4)])
    await store.record([event(9, "model:red@12345678:m-1")])
    assert await store.counts() == {
        ("model:red@12345678:m-0", "revoked"): 1,
        ("model:red@12345678:m-1", "revoked"): 2,
        ("*", "revoked"): 2,
    }


async def test_nothing_is_kept_for_ever(connection: Connection) -> None:
    await TimelineStore(connection).record([event(1)])
    timeline, counts = await connection.ask(
        command("TTL", keys.health_timeline(RED)), command("TTL", keys.health_counts())
    )
    assert 6 * 86400 < timeline <= 7 * 86400 and 29 * 86400 < counts <= 30 * 86400
