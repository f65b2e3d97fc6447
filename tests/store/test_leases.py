"""A lease has one holder, on the store's clock; who is late changes nothing."""

from __future__ import annotations

import asyncio

import pytest

from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.leases import LeaseStore

NAME = "duty:janitor"


async def left(connection: Connection, name: str = NAME) -> int:
    """Milliseconds that the lease still lasts; -1 if it has no end, -2 if there is none."""
    (answer,) = await connection.ask(command("PTTL", keys.lease(name)))
    return int(answer)


async def run_out(connection: Connection) -> None:
    """Wait until nobody holds it."""
    async with asyncio.timeout(5):
        while await left(connection) != -2:
            pass


async def test_one_at_a_time_holds_a_lease_and_asks_again_without_harm(connection: Connection) -> None:
    leases = LeaseStore(connection)
    assert await leases.acquire(NAME, "one", 10)
    assert not await leases.acquire(NAME, "two", 10)
    assert await leases.acquire(NAME, "one", 10)
    assert await leases.acquire("duty:recorder", "two", 10)
    (holder,) = await connection.ask(command("GET", keys.lease(NAME)))
    assert holder == b"one"


async def test_of_many_who_ask_at_once_one_gets_it(connection: Connection) -> None:
    leases = LeaseStore(connection)
    got = await asyncio.gather(*(leases.acquire(NAME, f"token-{i}", 10) for i in range(20)))
    assert sum(got) == 1


async def test_a_lease_always_has_an_end_which_renewing_moves(connection: Connection) -> None:
    leases = LeaseStore(connection)
    await leases.acquire(NAME, "one", 2.5)
    assert 1500 < await left(connection) <= 2500
    assert await leases.renew(NAME, "one", 20)
    assert 15000 < await left(connection) <= 20000
    assert await leases.acquire(NAME, "one", 5)
    assert 2500 < await left(connection) <= 5000


async def test_another_takes_it_at_once_when_it_was_released(connection: Connection) -> None:
    leases = LeaseStore(connection)
    await leases.acquire(NAME, "one", 10)
    assert await leases.release(NAME, "one")
    assert await left(connection) == -2
    assert await leases.acquire(NAME, "two", 10)


async def test_what_has_run_out_is_not_kept_but_only_taken_anew(connection: Connection) -> None:
    leases = LeaseStore(connection)
    await leases.acquire(NAME, "one", 0.05)
    await run_out(connection)
    assert not await leases.renew(NAME, "one", 10)
    assert await left(connection) == -2
    assert not await leases.release(NAME, "one")
    assert await leases.acquire(NAME, "one", 10)


async def test_a_late_holder_changes_nothing(connection: Connection) -> None:
    leases = LeaseStore(connection)
    await leases.acquire(NAME, "late", 0.05)
    await run_out(connection)
    assert await leases.acquire(NAME, "new", 5)
    assert not await leases.renew(NAME, "late", 60)
    assert not await leases.acquire(NAME, "late", 60)
    assert not await leases.release(NAME, "late")
    (holder,) = await connection.ask(command("GET", keys.lease(NAME)))
    assert holder == b"new" and 0 < await left(connection) <= 5000


async def test_a_lease_without_a_length_is_refused(connection: Connection) -> None:
    for act in (LeaseStore(connection).acquire, LeaseStore(connection).renew):
        with pytest.raises(ValueError, match="lasts"):
            await act(NAME, "one", 0.0001)
    assert await left(connection) == -2
