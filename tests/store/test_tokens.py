"""Tokens that nodes share: only who has the secret of an application finds its token, and only while it lives."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from broker.domain.credential import Entra, Secret, Token
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.tokens import TokenShelf, _derive
from tests import engines

ENTRA = Entra("acme.example", "client-1", "https://ai.azure.com/.default", "https://login.microsoftonline.com")
SECRET = Secret("canary of the application")
TOKEN = Token(Secret("canary-token"), 3600.0, 3000.0)


@pytest.fixture
def shelf(connection: Connection) -> TokenShelf:
    return TokenShelf(connection)


def key(secret: Secret = SECRET) -> str:
    return keys.token(_derive(ENTRA, secret)[0])


async def raw(connection: Connection) -> bytes:
    (answer,) = await connection.ask(command("GET", key()))
    return bytes(answer)


async def test_finds_what_was_laid_there_and_how_long_it_lives(shelf: TokenShelf, connection: Connection) -> None:
    assert await shelf.get(ENTRA, SECRET) is None
    await shelf.put(ENTRA, SECRET, TOKEN)
    before = connection.round_trips
    found = await shelf.get(ENTRA, SECRET)
    assert connection.round_trips == before + 1
    assert found is not None and (found.value, found.life) == (TOKEN.value, 3600.0)
    assert 2990.0 < found.left <= 3000.0


async def test_it_is_gone_when_it_has_run_out(shelf: TokenShelf) -> None:
    await shelf.put(ENTRA, SECRET, replace(TOKEN, left=0.05))
    async with asyncio.timeout(5):
        while await shelf.get(ENTRA, SECRET) is not None:
            pass


@pytest.mark.parametrize("field", ["tenant", "client_id", "scope", "authority"])
async def test_another_application_finds_nothing(shelf: TokenShelf, field: str) -> None:
    await shelf.put(ENTRA, SECRET, TOKEN)
    assert await shelf.get(replace(ENTRA, **{field: "other"}), SECRET) is None


async def test_who_has_another_secret_finds_nothing_and_spoils_nothing(shelf: TokenShelf) -> None:
    await shelf.put(ENTRA, SECRET, TOKEN)
    assert await shelf.get(ENTRA, Secret("other")) is None
    await shelf.put(ENTRA, Secret("other"), replace(TOKEN, value=Secret("new")))
    found = await shelf.get(ENTRA, SECRET)
    assert found is not None and found.value == TOKEN.value


async def test_nothing_lies_in_clear_and_never_twice_in_the_same_way(shelf: TokenShelf, connection: Connection) -> None:
    await shelf.put(ENTRA, SECRET, TOKEN)
    first = await raw(connection)
    await shelf.put(ENTRA, SECRET, TOKEN)
    second = await raw(connection)
    assert first != second and first[1:13] != second[1:13], "a nonce is used once"
    for lying in (first, second, key().encode()):
        assert b"canary" not in lying and b"client-1" not in lying and b"acme" not in lying


@pytest.mark.parametrize("spoilt", [b"", b"\x01", b"\x02", b"\x01" + b"x" * 11, b"\x01" + b"x" * 100, b"canary-token"])
async def test_what_cannot_be_opened_is_none(shelf: TokenShelf, connection: Connection, spoilt: bytes) -> None:
    await connection.ask(command("SET", key(), spoilt, "PX", 10_000))
    assert await shelf.get(ENTRA, SECRET) is None
    await shelf.put(ENTRA, SECRET, TOKEN)
    assert await shelf.get(ENTRA, SECRET) is not None


async def test_what_was_changed_or_laid_elsewhere_is_none(shelf: TokenShelf, connection: Connection) -> None:
    await shelf.put(ENTRA, SECRET, TOKEN)
    whole = await raw(connection)
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        await connection.ask(command("SET", key(), changed, "PX", 10_000))
        assert await shelf.get(ENTRA, SECRET) is None
    await connection.ask(command("SET", key(Secret("other")), whole, "PX", 10_000))
    assert await shelf.get(ENTRA, Secret("other")) is None


async def test_what_is_of_another_type_or_without_an_end_is_none(shelf: TokenShelf, connection: Connection) -> None:
    await shelf.put(ENTRA, SECRET, TOKEN)
    whole = await raw(connection)
    await connection.ask(command("SET", key(), whole))
    assert await shelf.get(ENTRA, SECRET) is None
    await connection.ask(command("DEL", key()), command("HSET", key(), "a", "b"))
    assert await shelf.get(ENTRA, SECRET) is None


async def test_one_asks_at_a_time(shelf: TokenShelf, connection: Connection) -> None:
    assert await shelf.lock(ENTRA, SECRET, "one", 5.0)
    assert not await shelf.lock(ENTRA, SECRET, "other", 5.0)
    assert await shelf.lock(ENTRA, Secret("other"), "other", 5.0), "with another secret it is another application"
    await shelf.unlock(ENTRA, SECRET, "other")
    assert not await shelf.lock(ENTRA, SECRET, "other", 5.0), "only who holds it lets it go"
    await shelf.unlock(ENTRA, SECRET, "one")
    assert await shelf.lock(ENTRA, SECRET, "other", 0.05)
    async with asyncio.timeout(5):
        while not await shelf.lock(ENTRA, SECRET, "third", 5.0):
            pass


async def test_every_key_has_an_end_and_all_of_an_application_share_a_slot(
    shelf: TokenShelf, connection: Connection
) -> None:
    await shelf.put(ENTRA, SECRET, TOKEN)
    await shelf.lock(ENTRA, SECRET, "one", 5.0)
    (found,) = await connection.ask(command("KEYS", "*"))
    assert len(found) == 2 and len({name[name.index(b"{") : name.index(b"}")] for name in found}) == 1
    for name in found:
        (left,) = await connection.ask(command("PTTL", name))
        assert 0 < int(left) <= 3_600_000


async def test_a_store_that_is_away_is_told_in_the_words_of_the_contract() -> None:
    with engines.server("valkey9") as server:
        connection = Connection(server.url, timeout=0.2, connect_timeout=0.2)
        shelf = TokenShelf(connection)
        await shelf.put(ENTRA, SECRET, TOKEN)
        server.kill()
        for question in (
            shelf.get(ENTRA, SECRET),
            shelf.put(ENTRA, SECRET, TOKEN),
            shelf.lock(ENTRA, SECRET, "one", 5.0),
            shelf.unlock(ENTRA, SECRET, "one"),
        ):
            with pytest.raises(ConnectionError) as caught:
                await question
            assert "canary" not in repr(caught.value) and caught.value.__suppress_context__
        await connection.close()
