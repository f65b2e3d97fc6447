"""What the janitor asks of the store removes nothing that has changed since it was looked at."""

from __future__ import annotations

import time

from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.sweep import Look, SweepStore


async def look_at_all(sweep: SweepStore, count: int = 10) -> list[Look]:
    looks = [await sweep.look(0, count)]
    while looks[-1].cursor:
        looks.append(await sweep.look(looks[-1].cursor, count))
    return looks


async def test_looks_find_every_key_without_an_end_and_every_orphan(connection: Connection) -> None:
    sweep = SweepStore(connection)
    await connection.ask(
        command("HSET", keys.session("here"), "name", "x"),
        command("EXPIRE", keys.session("here"), 60),
        command("HSET", keys.turns("endless"), "name", "x"),
        command("SET", keys.response("good"), "here", "EX", 60),
        command("SET", keys.response("orphan"), "gone", "EX", 60),
        command("SET", keys.response("both"), "gone"),
        command("HSET", keys.response("of another kind"), "a", "b"),
        command("HSET", keys.health_rows(), "credential:a", "{}"),
        command("SET", "another program's", "x"),
    )
    looks = await look_at_all(sweep)
    endless = {key.decode() for look in looks for key in look.endless}
    assert endless == {keys.turns("endless"), keys.response("both"), keys.response("of another kind")}
    orphans = {key.decode(): sid for look in looks for key, sid in look.orphans.items()}
    assert orphans == {keys.response("orphan"): b"gone", keys.response("both"): b"gone"}


async def test_one_look_is_small_however_many_keys_there_are(connection: Connection) -> None:
    sweep = SweepStore(connection)
    await connection.ask(*(command("SET", keys.response(f"r{i}"), "gone", "EX", 60) for i in range(1000)))
    looks = await look_at_all(sweep, 50)
    assert sum(look.seen for look in looks) >= 1000
    # a bucket of the server's table is never cut in two
    assert max(look.seen for look in looks) < 200 and len(looks) > 5


async def test_a_key_gets_an_end_only_where_it_has_none(connection: Connection) -> None:
    sweep = SweepStore(connection)
    with_end, without, gone = (key.encode() for key in map(keys.session, ("with", "without", "gone")))
    await connection.ask(command("SET", with_end, "x", "EX", 1000), command("SET", without, "x"))
    assert await sweep.limit([with_end, without, gone], 60) == 1
    first, second = await connection.ask(command("TTL", with_end), command("TTL", without))
    assert first > 900 and 0 < second <= 60
    assert await sweep.limit([], 60) == 0


async def test_an_entry_that_leads_elsewhere_by_now_stays(connection: Connection) -> None:
    sweep = SweepStore(connection)
    one, two = keys.response("one").encode(), keys.response("two").encode()
    await connection.ask(command("SET", one, "gone", "EX", 60), command("SET", two, "gone", "EX", 60))
    orphans = await sweep.orphans([one, two])
    await connection.ask(command("SET", two, "another", "EX", 60))
    assert await sweep.forget_responses(orphans) == 1
    assert await connection.ask(command("GET", one), command("GET", two)) == [None, b"another"]
    assert await sweep.forget_responses({}) == 0


async def test_a_row_that_changed_since_it_was_read_stays(connection: Connection) -> None:
    sweep = SweepStore(connection)
    await connection.ask(command("HSET", keys.health_rows(), "credential:a", '{"version":1}', "model:b:é", "{}"))
    rows, now = await sweep.health_rows()
    assert rows == {"credential:a": b'{"version":1}', "model:b:é": b"{}"} and abs(now - time.time()) < 30
    await connection.ask(command("HSET", keys.health_rows(), "credential:a", '{"version":2}'))
    assert await sweep.forget_rows(rows) == 1
    assert (await sweep.health_rows())[0] == {"credential:a": b'{"version":2}'}
    assert await sweep.forget_rows({}) == 0


async def test_events_are_forgotten_by_age(connection: Connection) -> None:
    sweep = SweepStore(connection)
    key, now = keys.health_events(), int(time.time() * 1000)
    for age in (200_000, 150_000, 50_000):
        await connection.ask(command("XADD", key, f"{now - age}-0", "subject", "s"))
    assert await sweep.trim_events(1000) == 0
    assert await sweep.trim_events(100) == 2
    (events,) = await connection.ask(command("XRANGE", key, "-", "+"))
    assert [event[0] for event in events] == [f"{now - 50_000}-0".encode()]


async def test_nothing_to_sweep_is_no_trouble(connection: Connection) -> None:
    sweep = SweepStore(connection)
    assert await sweep.look(0, 10) == Look(0, 0, (), {})
    assert await sweep.trim_events(1) == 0 and await sweep.orphans([]) == {}
