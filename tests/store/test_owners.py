"""Who owns what lives at a vendor: found again in one round trip, by its tenant alone, and only for a while."""

from __future__ import annotations

import asyncio

import pytest

from broker.store import keys
from broker.store.connection import Connection, StoreUnavailable, command
from broker.store.owners import RETENTION, Owner, OwnerStore, derive_own
from tests import engines
from tests.store.turns import ServerOf

ONE, OTHER = Owner("acme-1", "org-a"), Owner("acme-2", "org-b")


def key(thing: str, tenant: str = "t") -> str:
    return keys.owner(derive_own(tenant, thing))


async def left(connection: Connection, thing: str) -> int:
    """Milliseconds for which it is still known; -1 if it has no end, -2 if it is not known."""
    (answer,) = await connection.ask(command("PTTL", key(thing)))
    return int(answer)


async def test_finds_what_is_known_of_many_in_one_round_trip(connection: Connection) -> None:
    owners = OwnerStore(connection)
    await owners.note("t", "resp_1", ONE)
    await owners.note("t", "conv_é", OTHER)
    before = connection.round_trips
    found = await owners.find("t", ("resp_1", "nobody's", "conv_é", "resp_1"))
    assert found == {"resp_1": ONE, "conv_é": OTHER}
    assert connection.round_trips == before + 1


async def test_asks_nothing_when_nothing_is_wanted(connection: Connection) -> None:
    before = connection.round_trips
    assert await OwnerStore(connection).find("t", ()) == {}
    assert connection.round_trips == before


async def test_finds_more_than_small_questions_hold(connection: Connection) -> None:
    owners, things = OwnerStore(connection), [f"cmp:{i}" for i in range(1000)]
    await asyncio.gather(owners.note("t", things[0], ONE), owners.note("t", things[-1], OTHER))
    assert await owners.find("t", things) == {things[0]: ONE, things[-1]: OTHER}


async def test_another_tenant_finds_nothing(connection: Connection) -> None:
    owners = OwnerStore(connection)
    await owners.note("t", "resp_1", ONE)
    assert await owners.find("other", ("resp_1",)) == {}
    await owners.forget("other", "resp_1")
    assert await owners.find("t", ("resp_1",)) == {"resp_1": ONE}


async def test_the_last_word_stands(connection: Connection) -> None:
    owners = OwnerStore(connection)
    await owners.note("t", "conv_1", ONE)
    await owners.note("t", "conv_1", OTHER)
    assert await owners.find("t", ("conv_1",)) == {"conv_1": OTHER}


async def test_nothing_is_found_when_it_was_forgotten(connection: Connection) -> None:
    owners = OwnerStore(connection)
    await owners.note("t", "conv_1", ONE)
    await owners.forget("t", "conv_1")
    await owners.forget("t", "conv_1")
    assert await owners.find("t", ("conv_1",)) == {}


async def test_is_known_as_long_as_a_vendor_keeps_it_and_noting_it_again_begins_anew(connection: Connection) -> None:
    await OwnerStore(connection).note("t", "resp_1", ONE)
    assert (RETENTION - 10) * 1000 < await left(connection, "resp_1") <= RETENTION * 1000 == 30 * 86_400_000
    await OwnerStore(connection, 2.5).note("t", "resp_1", ONE)
    assert 1000 < await left(connection, "resp_1") <= 2500


async def test_is_unknown_when_its_time_has_run_out(connection: Connection) -> None:
    owners = OwnerStore(connection, 0.05)
    await owners.note("t", "resp_1", ONE)
    async with asyncio.timeout(5):
        while await owners.find("t", ("resp_1",)):
            pass


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"{}", b"null", b'["acme-1"]', b"[1,2]", b"[" * 5000])
async def test_what_cannot_be_read_is_unknown_and_hides_nothing_else(connection: Connection, raw: bytes) -> None:
    owners = OwnerStore(connection)
    await owners.note("t", "resp_1", ONE)
    await connection.ask(command("SET", key("resp_2"), raw))
    await connection.ask(command("HSET", key("resp_3"), "credential", "acme-1"))
    assert await owners.find("t", ("resp_3", "resp_2", "resp_1")) == {"resp_1": ONE}
    await owners.note("t", "resp_2", OTHER)
    await owners.note("t", "resp_3", OTHER)
    assert await owners.find("t", ("resp_3", "resp_2")) == {"resp_3": OTHER, "resp_2": OTHER}


async def test_no_text_of_a_client_stands_in_a_key_and_no_more_than_the_names_in_a_value(
    connection: Connection,
) -> None:
    await OwnerStore(connection).note("tenant-name", "conv_of-a-client", ONE)
    (found,) = await connection.ask(command("KEYS", "*"))
    (name,) = found
    (value,) = await connection.ask(command("GET", name.decode()))
    assert name.startswith(b"sb:o:{") and len(name) == len("sb:o:{}") + 32
    assert b"conv" not in name and b"tenant" not in name
    assert value == b'["acme-1","org-a"]'


async def test_who_has_no_task_is_called_back_when_it_is_written(connection: Connection) -> None:
    owners = OwnerStore(connection)
    outcome: asyncio.Future[StoreUnavailable | None] = asyncio.get_running_loop().create_future()
    owners.submit("t", "resp_1", ONE, outcome.set_result)
    owners.submit("t", "resp_2", OTHER)
    async with asyncio.timeout(5):
        assert await outcome is None
    assert await owners.find("t", ("resp_1", "resp_2")) == {"resp_1": ONE, "resp_2": OTHER}


async def test_who_has_no_task_hears_of_a_store_that_is_away() -> None:
    connection = Connection("redis://127.0.0.1:1/0")
    owners = OwnerStore(connection)
    outcome: asyncio.Future[StoreUnavailable | None] = asyncio.get_running_loop().create_future()
    owners.submit("t", "resp_1", ONE, outcome.set_result)
    owners.submit("t", "resp_2", ONE)
    async with asyncio.timeout(5):
        assert isinstance(await outcome, StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await owners.find("t", ("resp_1",))
    await connection.close()


@pytest.mark.parametrize("engine", engines.NAMES)
async def test_a_server_that_has_come_back_is_written_to_without_anybody_noticing(
    engine: str, server_of: ServerOf
) -> None:
    connection = Connection(server_of(engine).url)
    owners = OwnerStore(connection)
    await connection.ping()
    server_of(engine).execute("CLIENT", "KILL", "TYPE", "normal")
    outcome: asyncio.Future[StoreUnavailable | None] = asyncio.get_running_loop().create_future()
    owners.submit("t", "resp_1", ONE, outcome.set_result)
    async with asyncio.timeout(5):
        assert await outcome is None
    assert await owners.find("t", ("resp_1",)) == {"resp_1": ONE}
    await connection.close()
