"""Items survive being compressed, encrypted and cut; whatever else comes back is refused."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.transcript import TurnItems
from broker.store import keys
from broker.store.codec import CHUNK, COMPRESS_FROM, THREAD_FROM, Codec, Unreadable
from broker.store.connection import Connection, command
from broker.store.sessions import ChainBroken, SessionStore
from tests.store.turns import IDLE_TTL, SID, turn

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
CANARY = "canary-7f3a91c2"


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from([None, KEY]))
def test_any_items_come_back(inputs: bytes, outputs: bytes, key: bytes | None) -> None:
    codec = Codec(key)
    assert codec.decode("s", "t", codec.encode("s", "t", TurnItems(inputs, outputs))) == TurnItems(inputs, outputs)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    "size", [COMPRESS_FROM - 20, COMPRESS_FROM + 20, CHUNK - 40, CHUNK, 3 * CHUNK, THREAD_FROM + 1]
)
def test_items_of_every_size_class_come_back(key: bytes | None, size: int) -> None:
    codec = Codec(key)
    items = TurnItems(random.Random(size).randbytes(size), b"[1]")
    chunks = codec.encode("s", "t", items)
    assert len(chunks) == -(-sum(map(len, chunks)) // CHUNK)
    assert max(map(len, chunks)) <= 256 * 1024
    assert codec.decode("s", "t", chunks) == items


def test_only_large_items_are_compressed() -> None:
    small, large = TurnItems(b"a" * 1000), TurnItems(b"a" * 100_000)
    assert b"a" * 1000 in (Codec().encode("s", "t", small))[0]
    assert sum(map(len, Codec().encode("s", "t", large))) < 1000


@pytest.mark.parametrize(
    ("sid", "turn_id", "key", "message"),
    [
        ("s", "t", OTHER_KEY, "wrong key"),
        ("s", "t", None, "no key"),
        ("other", "t", KEY, "wrong key"),
        ("s", "other", KEY, "wrong key"),
    ],
)
def test_sealed_items_open_only_where_they_belong(sid: str, turn_id: str, key: bytes | None, message: str) -> None:
    chunks = Codec(KEY).encode("s", "t", TurnItems(b'["secret"]'))
    with pytest.raises(Unreadable, match=message):
        Codec(key).decode(sid, turn_id, chunks)


def test_items_written_before_a_key_was_set_stay_readable() -> None:
    chunks = Codec().encode("s", "t", TurnItems(b"[1]"))
    assert Codec(KEY).decode("s", "t", chunks) == TurnItems(b"[1]")


def test_no_two_writings_are_alike_under_a_key() -> None:
    codec = Codec(KEY)
    assert codec.encode("s", "t", TurnItems()) != codec.encode("s", "t", TurnItems())


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("size", [100, 100_000])
def test_any_damage_is_noticed(key: bytes | None, size: int) -> None:
    codec, chance = Codec(key), random.Random(7)
    (whole,) = codec.encode("s", "t", TurnItems(chance.randbytes(size // 2) * 2, b"[1]"))
    for at in (*range(40), *chance.sample(range(len(whole)), 40)):
        damaged = whole[:at] + bytes((whole[at] ^ 0x41,)) + whole[at + 1 :]
        with pytest.raises(Unreadable):
            codec.decode("s", "t", [damaged])
    for short in (b"", whole[:1], whole[:5], whole[: len(whole) // 2], whole[:-1]):
        with pytest.raises(Unreadable):
            codec.decode("s", "t", [short])


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError):
        Codec(os.urandom(16))


async def test_a_wrong_key_breaks_the_chain(connection: Connection) -> None:
    stores = [
        SessionStore(connection, Codec(key), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
        for key in (KEY, OTHER_KEY, None)
    ]
    await stores[0].commit(turn("t1"))
    assert [stored.items for stored in await stores[0].chain(SID, "t1")] == [turn("t1").items]
    for other in stores[1:]:
        with pytest.raises(ChainBroken, match="unreadable"):
            await other.chain(SID, "t1")


async def dump(connection: Connection) -> bytes:
    """All keys, fields and values."""
    (found,) = await connection.ask(command("KEYS", "*"))
    seen = [*found]
    for key in found:
        (kind,) = await connection.ask(command("TYPE", key))
        if kind in (b"hash", "hash"):
            (fields,) = await connection.ask(command("HGETALL", key))
            seen += [part for pair in fields.items() for part in pair]
        else:
            seen += await connection.ask(command("GET", key))
    return b"\n".join(seen)


@pytest.mark.parametrize(("key", "readable"), [(KEY, False), (None, True)])
async def test_nothing_said_is_readable_in_redis_under_a_key(
    connection: Connection, key: bytes | None, readable: bool
) -> None:
    store = SessionStore(connection, Codec(key), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    said = f'["{CANARY}"]'.encode()
    await store.commit(turn("t1", items=TurnItems(said, said), minted=("d1",)))
    await store.commit(turn("t2", "t1", items=TurnItems(said * 2000, said)))
    everything = await dump(connection)
    assert keys.session(SID).encode() in everything
    # without a key the canary is there to be found: so this test does look in the right place
    assert (CANARY.encode() in everything) is readable
