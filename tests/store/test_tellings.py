"""What webhooks are owed: one worker tells it, another takes over, and there is a cap."""

from __future__ import annotations

import asyncio

from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.events import HealthEvent
from broker.store.tellings import Ended, Telling, TellingStore

MANY = 1000


def event(number: int) -> HealthEvent:
    return HealthEvent(f"{1_795_000_000_000 + number}-0", 1_795_000_000.0, "group:acme", "healthy", "revoked")


async def claims(store: TellingStore, *, count: int = 10, cap: int = MANY) -> list[Telling]:
    owed = await store.owed([("slack", count)])
    return list((await store.claim([(hook, id_, cap) for hook, id_ in owed])).tellings)


async def until_claimed(store: TellingStore, cap: int = MANY) -> list[Telling]:
    async with asyncio.timeout(5):
        while not (got := await claims(store, cap=cap)):
            pass
        return got


async def test_what_is_owed_is_claimed_once_the_oldest_first(connection: Connection) -> None:
    one, two = TellingStore(connection, "one"), TellingStore(connection, "two")
    assert await one.owe([("slack", event(i)) for i in (3, 1, 2)]) == []
    assert await claims(one, count=2) == [Telling("slack", event(i).id, event(i)) for i in (1, 2)]
    assert [told.id for told in await claims(two)] == [event(3).id]
    assert await claims(one) == [] and await claims(two) == []


async def test_two_that_claim_at_once_get_it_once(connection: Connection) -> None:
    stores = [TellingStore(connection, name) for name in ("one", "two")]
    await stores[0].owe([("slack", event(i)) for i in range(20)])
    wanted = [("slack", event(i).id, MANY) for i in range(20)]
    got = await asyncio.gather(*(store.claim(wanted) for store in stores))
    assert sorted(told.id for each in got for told in each.tellings) == [event(i).id for i in range(20)]


async def test_what_was_told_is_not_owed_again(connection: Connection) -> None:
    store = TellingStore(connection, "one")
    await store.owe([("slack", event(1))])
    await store.owe([("slack", event(1))])
    (told,) = await claims(store)
    assert await store.owed([("slack", 10)]) == []
    await store.owe([("slack", event(1))])
    assert await store.owed([("slack", 10)]) == [], "who is being told is not asked for"
    await store.end([Ended(told, done=True)])
    assert await connection.ask(*(command("EXISTS", key) for key in keys.health_owed("slack"))) == [0, 0]
    await store.owe([("slack", event(1)), ("pager", event(1))])
    assert await claims(store) == [] and await store.owed([("pager", 1)]) == [("pager", event(1).id)]


async def test_a_claim_that_was_not_ended_is_taken_over(connection: Connection) -> None:
    dead, other = TellingStore(connection, "dead", claim=0.15), TellingStore(connection, "other")
    await dead.owe([("slack", event(1))])
    (told,) = await claims(dead)
    assert await claims(other) == []
    assert await until_claimed(other) == [told]
    await dead.end([Ended(told, done=False)])
    assert await claims(other) == [], "who is late gives nothing back"
    await dead.end([Ended(told, done=True)])
    assert await other.owed([("slack", 1)]) == []


async def test_a_claim_that_is_given_back_is_free_at_once(connection: Connection) -> None:
    one, two = TellingStore(connection, "one"), TellingStore(connection, "two")
    await one.owe([("slack", event(1))])
    (told,) = await claims(one)
    await one.end([Ended(told, done=False)])
    assert await claims(two) == [told]


async def test_who_is_owed_too_much_is_named(connection: Connection) -> None:
    store = TellingStore(connection, "one", most_owed=2)
    lost = await store.owe([("slack", event(1)), ("slack", event(2)), ("slack", event(3)), ("pager", event(3))])
    assert lost == ["slack"]
    assert [told.id for told in await claims(store)] == [event(1).id, event(2).id]


async def test_more_than_the_cap_goes_into_one_summary_when_the_window_is_over(connection: Connection) -> None:
    store = TellingStore(connection, "one", window=0.3)
    await store.owe([("slack", event(i)) for i in range(5)])
    wanted = [("slack", event(i).id, 2) for i in range(5)]
    first = await store.claim(wanted)
    assert [told.id for told in first.tellings] == [event(0).id, event(1).id] and first.capped == {"slack": 3}
    await store.end([Ended(told, done=True) for told in first.tellings])
    await store.owe([("slack", event(i)) for i in range(5)])
    assert await store.owed([("slack", 10)]) == [], "neither the capped nor, yet, their summary"
    (summary,) = await until_claimed(store, cap=2)
    assert summary.event is None and summary.more == 3
    await store.end([Ended(summary, done=True)])
    assert await claims(store) == []
    assert await connection.ask(command("HEXISTS", keys.health_pace("slack"), summary.id)) == [0]
    await store.owe([("slack", event(9))])
    (told,) = await claims(store, cap=2)
    assert told.event == event(9), "a new window"


async def test_an_event_that_another_version_wrote_otherwise_is_told_all_the_same(connection: Connection) -> None:
    store = TellingStore(connection, "one")
    await store.owe([("slack", event(1))])
    await connection.ask(command("HSET", keys.health_owed("slack")[1], event(1).id, b"[]"))
    (told,) = await claims(store)
    assert told.id == event(1).id and told.event == HealthEvent(event(1).id, 0.0)


async def test_nothing_is_kept_for_ever(connection: Connection) -> None:
    store = TellingStore(connection, "one")
    await store.owe([("slack", event(i)) for i in range(3)])
    got = (await store.claim([("slack", event(i).id, 1) for i in range(2)])).tellings
    (found,) = await connection.ask(command("KEYS", "sb:h:*"))
    assert len(found) == 5
    await store.end([Ended(told, done=True) for told in got])
    (found,) = await connection.ask(command("KEYS", "sb:h:*"))
    ttls = await connection.ask(*(command("TTL", key) for key in found))
    assert all(0 < ttl <= 86400 for ttl in ttls)
