"""The transcript is appended to, found again and forgotten."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from msgspec.structs import replace

from broker.domain.transcript import Commit, StoredTurn, TurnItems
from broker.store import keys, scripts
from broker.store.codec import CHUNK, Codec
from broker.store.connection import Connection, command
from broker.store.sessions import ChainBroken, Committed, SessionStore
from tests.store.turns import IDLE_TTL, SID, TENANT, ServerOf, pin, turn

KEY = b"k" * 32


async def commit_all(store: SessionStore, *commits: Commit) -> None:
    for each in commits:
        await store.commit(each)


async def ids_of(store: SessionStore, turn_id: str) -> list[str]:
    return [stored.meta.turn_id for stored in await store.chain(SID, turn_id)]


async def everything(connection: Connection) -> dict[bytes, int]:
    """Every key, and its TTL in ms."""
    (found,) = await connection.ask(command("KEYS", "*"))
    ttls = await connection.ask(*(command("PTTL", key) for key in found))
    return dict(zip(found, ttls, strict=True))


async def test_an_unknown_session_is_none(store: SessionStore) -> None:
    assert await store.load(SID) is None
    assert await store.find(SID, "resp") is None
    assert await store.locate(TENANT, "resp") is None
    assert await store.origins(SID) == {}


async def test_the_first_commit_binds_the_session(store: SessionStore) -> None:
    wish, bound = pin(0, "wish", "alpha", "affinity"), pin(1, "wish", "alpha", "affinity")
    assert await store.commit(turn("t1", under=wish)) == Committed("ok", bound, False, True)
    session = await store.load(SID)
    assert session is not None
    assert (session.pin, session.turns, session.boundaries) == (bound, 1, frozenset({"org"}))


async def test_commit_and_load_take_one_round_trip(store: SessionStore, connection: Connection) -> None:
    await store.commit(turn("t1"))
    before = connection.round_trips
    await store.commit(turn("t2", "t1"))
    assert connection.round_trips == before + 1
    await store.load(SID)
    assert connection.round_trips == before + 2


async def test_a_turn_committed_twice_is_written_once(store: SessionStore, connection: Connection) -> None:
    first = await store.commit(turn("t1"))
    again = await store.commit(replace(turn("t1"), items=TurnItems(b'["other"]', b"[]")))
    assert again == replace(first, status="duplicate")
    session = await store.load(SID)
    assert session is not None and session.turns == 1
    assert [stored.items for stored in await store.chain(SID, "t1")] == [turn("t1").items]
    (bytes_before, last) = (await connection.ask(command("HMGET", keys.session(SID), "bytes", "last_turn")))[0]
    assert int(bytes_before) > 0 and last == b"t1"


async def test_a_turn_committed_twice_has_a_pin_when_its_session_was_lost_in_between(
    store: SessionStore, connection: Connection
) -> None:
    """A server short of memory drops keys one by one; whoever repeats a commit needs an answer all the same."""
    first = await store.commit(turn("t1"))
    await connection.ask(command("DEL", keys.session(SID)))
    assert await store.commit(turn("t1")) == replace(first, status="duplicate")
    session = await store.load(SID)
    assert session is not None and session.pin == first.pin and session.boundaries == frozenset({"org"})


async def test_a_late_duplicate_is_not_the_newest_again(store: SessionStore) -> None:
    one, two = turn("t1", response_id="same"), turn("t2", "t1", response_id="same")
    await commit_all(store, one, two, one)
    found = await store.find(SID, "same")
    assert found is not None and found.turn_id == "t2"


async def test_a_duplicate_neither_clears_the_flag_nor_the_mark(store: SessionStore) -> None:
    await commit_all(store, turn("t1", under=pin(0, "a"), store=True))
    await store.move_pin(SID, "name", TENANT, pin(1, "a"), pin(nonce="b"))
    await store.close_cleanly(SID)
    answer = await store.commit(turn("t1", under=pin(2, "b"), store=True))
    assert answer == Committed("duplicate", pin(2, "b"), True, True)
    session = await store.load(SID)
    assert session is not None and session.closed


async def test_the_flag_is_cleared_by_a_turn_of_the_present_pin_only(store: SessionStore) -> None:
    await store.commit(turn("t1", under=pin(0, "a")))
    await store.move_pin(SID, "name", TENANT, pin(1, "a"), pin(nonce="b", credential="beta"))
    now = pin(2, "b", "beta")
    for late in (pin(1, "a"), pin(2, "a"), pin(1, "b"), pin(0, "b")):
        answer = await store.commit(turn(f"late-{late.epoch}-{late.nonce}", "t1", under=late))
        assert answer == Committed("ok", now, True, True)
    assert await store.commit(turn("t2", "t1", under=now)) == Committed("ok", now, False, True)
    session = await store.load(SID)
    assert session is not None and not session.incremental_disabled and session.pin == now


async def test_a_commit_never_moves_a_pin(store: SessionStore) -> None:
    await store.commit(turn("t1", under=pin(0, "a")))
    answer = await store.commit(turn("t2", "t1", under=pin(0, "z", "zeta")))
    assert answer.pin == pin(1, "a")


async def test_find_tells_all_of_the_meta(store: SessionStore) -> None:
    asked = turn("t2", "t1", store=True, rooted=False, under=pin(0, "a", "beta"), boundary="elsewhere")
    await store.commit(asked)
    assert await store.find(SID, "resp-t2") == asked.meta


async def test_locate_finds_the_session_of_its_own_tenant(store: SessionStore) -> None:
    await store.commit(turn("t1"))
    assert await store.locate(TENANT, "resp-t1") == SID
    assert await store.locate("another", "resp-t1") is None


async def test_a_turn_without_response_id_is_in_no_index(store: SessionStore, connection: Connection) -> None:
    await store.commit(turn("t1", response_id=""))
    assert await store.find(SID, "") is None
    assert await store.locate(TENANT, "") is None
    assert len(await everything(connection)) == 2
    assert await ids_of(store, "t1") == ["t1"]


async def test_a_reused_response_id_is_the_newest_turn_and_makes_no_cycle(store: SessionStore) -> None:
    await commit_all(store, *(turn(f"t{i}", f"t{i - 1}" if i else None, response_id="same") for i in range(5)))
    found = await store.find(SID, "same")
    assert found is not None and found.turn_id == "t4"
    assert await ids_of(store, "t4") == ["t0", "t1", "t2", "t3", "t4"]


async def test_forks_keep_their_own_pasts(store: SessionStore) -> None:
    await commit_all(store, turn("root"), turn("left", "root"), turn("right", "root"), turn("leaf", "left"))
    assert await ids_of(store, "leaf") == ["root", "left", "leaf"]
    assert await ids_of(store, "right") == ["root", "right"]


@pytest.mark.parametrize("length", [1, 2, 300])
async def test_a_chain_is_whole_and_in_order(store: SessionStore, length: int) -> None:
    wanted = [turn(f"t{i}", f"t{i - 1}" if i else None) for i in range(length)]
    await commit_all(store, *wanted)
    stored = await store.chain(SID, f"t{length - 1}")
    assert stored == [StoredTurn(each.meta, each.items) for each in wanted]


async def test_a_chain_longer_than_a_page_is_whole(store: SessionStore) -> None:
    commits = [turn(f"t{i}", f"t{i - 1}" if i else None) for i in range(1001)]
    await asyncio.gather(*map(store.commit, commits))
    assert await ids_of(store, "t1000") == [f"t{i}" for i in range(1001)]


@pytest.mark.parametrize("items", ["compressible", "not compressible"])
async def test_large_items_come_back_as_they_were(store: SessionStore, connection: Connection, items: str) -> None:
    size = 5 << 20
    noise = b"token " * (size // 6) if items == "compressible" else random.Random(1).randbytes(size)
    large = turn("t1", items=TurnItems(b"[" + noise + b"]", b'["out"]'))
    await commit_all(store, turn("t0"), replace(large, meta=replace(large.meta, parent="t0")), turn("t2", "t1"))
    chain = await store.chain(SID, "t2")
    assert [stored.items for stored in chain] == [turn("t0").items, large.items, turn("t2").items]
    (values,) = await connection.ask(command("HVALS", keys.turns(SID)))
    assert max(map(len, values)) <= CHUNK
    stored_bytes = sum(map(len, values))
    assert stored_bytes < 64 << 10 if items == "compressible" else stored_bytes > size


async def test_a_chain_with_a_missing_turn_is_broken(store: SessionStore) -> None:
    await store.commit(turn("t2", "t1"))
    with pytest.raises(ChainBroken, match="missing"):
        await store.chain(SID, "t2")


async def test_a_chain_with_missing_items_is_broken(store: SessionStore, connection: Connection) -> None:
    await commit_all(store, turn("t1"), turn("t2", "t1"))
    await connection.ask(command("HDEL", keys.turns(SID), "t1:0"))
    with pytest.raises(ChainBroken, match="missing"):
        await store.chain(SID, "t2")


async def test_a_chain_with_damaged_items_is_broken(store: SessionStore, connection: Connection) -> None:
    await store.commit(turn("t1"))
    (chunk,) = await connection.ask(command("HGET", keys.turns(SID), "t1:0"))
    await connection.ask(command("HSET", keys.turns(SID), "t1:0", chunk[:-1] + b"?"))
    with pytest.raises(ChainBroken, match="unreadable"):
        await store.chain(SID, "t1")


async def test_a_chain_that_leads_back_to_itself_is_broken(store: SessionStore, connection: Connection) -> None:
    await commit_all(store, turn("t1", "t2"), turn("t2", "t1"))
    async with asyncio.timeout(5):
        with pytest.raises(ChainBroken, match="itself"):
            await store.chain(SID, "t2")
    page = await connection.run(scripts.CHAIN, (keys.turns(SID),), ("t2", 1000))
    assert page[::2] == [b"t2", b"t1"]


async def test_a_chain_without_a_known_root_is_broken(store: SessionStore) -> None:
    await commit_all(store, turn("t1", rooted=False), turn("t2", "t1"))
    with pytest.raises(ChainBroken, match="root"):
        await store.chain(SID, "t2")


async def test_a_tenant_without_transcripts_keeps_no_items(store: SessionStore, connection: Connection) -> None:
    answer = await store.commit(turn("t1", kept=False, items=TurnItems()))
    assert not answer.kept
    (fields,) = await connection.ask(command("HKEYS", keys.turns(SID)))
    assert fields == [b"t1"]
    with pytest.raises(ChainBroken, match="not kept"):
        await store.chain(SID, "t1")
    found = await store.find(SID, "resp-t1")
    assert found is not None and not found.kept


async def test_a_transcript_over_its_cap_is_continued_but_not_rebuilt(connection: Connection) -> None:
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1000)
    room = TurnItems(b'["' + b"x" * 600 + b'"]', b"[]")
    assert (await store.commit(turn("t1", items=room))).kept
    over = turn("t2", "t1", items=room)
    assert not (await store.commit(over)).kept
    assert await store.commit(over) == Committed("duplicate", pin(1), False, False)
    assert (await store.find(SID, "resp-t2")) == replace(over.meta, kept=False)
    with pytest.raises(ChainBroken, match="not kept"):
        await store.chain(SID, "t2")
    assert await ids_of(store, "t1") == ["t1"]
    (fields,) = await connection.ask(command("HKEYS", keys.turns(SID)))
    assert b"t2:0" not in fields


async def test_origins_tell_which_boundary_minted_what(store: SessionStore) -> None:
    await commit_all(store, turn("t1", minted=("d1", "d2")), turn("t2", "t1", boundary="elsewhere", minted=("d3",)))
    assert await store.origins(SID) == {"d1": "org", "d2": "org", "d3": "elsewhere"}
    session = await store.load(SID)
    assert session is not None and session.boundaries == {"org", "elsewhere"}


async def test_a_clean_close_leaves_nothing_of_an_unstored_session(store: SessionStore, connection: Connection) -> None:
    await commit_all(store, turn("t1"), turn("t2", "t1"))
    assert await store.close_cleanly(SID)
    assert all(key.startswith(b"sb:r:") for key in await everything(connection))
    assert await store.load(SID) is None
    assert await store.find(SID, "resp-t2") is None
    with pytest.raises(ChainBroken):
        await store.chain(SID, "t2")


async def test_a_clean_close_keeps_a_session_with_a_stored_response(store: SessionStore) -> None:
    await commit_all(store, turn("t1", store=True), turn("t2", "t1"))
    assert not await store.close_cleanly(SID)
    session = await store.load(SID)
    assert session is not None and session.closed
    assert await ids_of(store, "t2") == ["t1", "t2"]
    await store.commit(turn("t3", "t1"))
    session = await store.load(SID)
    assert session is not None and not session.closed


async def test_a_clean_close_leaves_a_session_alone_that_another_socket_has_gone_on_with(store: SessionStore) -> None:
    await commit_all(store, turn("t1"), turn("t2", "t1"))
    assert not await store.close_cleanly(SID, "t1")
    session = await store.load(SID)
    assert session is not None and not session.closed
    assert await ids_of(store, "t2") == ["t1", "t2"]
    assert await store.close_cleanly(SID, "t2")
    assert await store.load(SID) is None


async def test_a_session_remembers_that_its_vendor_uses_ids_again(store: SessionStore) -> None:
    first = turn("t1", store=True)
    await store.commit(first)
    session = await store.load(SID)
    assert session is not None and not session.reuses_ids
    again = turn("t2", "t1", store=True)
    await store.commit(replace(again, meta=replace(again.meta, response_id=first.meta.response_id)))
    session = await store.load(SID)
    assert session is not None and session.reuses_ids


async def test_a_deleted_session_is_gone(store: SessionStore, connection: Connection) -> None:
    await store.commit(turn("t1", store=True, minted=("d",)))
    await store.delete(SID)
    assert all(key.startswith(b"sb:r:") for key in await everything(connection))


async def test_everything_of_a_session_has_a_ttl(store: SessionStore, connection: Connection) -> None:
    await store.move_pin(f"{1:032x}", "name", TENANT, None, pin(nonce="a"))
    await commit_all(store, turn("t1", minted=("d",)), turn("t2", "t1", store=True))
    await store.close_cleanly(SID)
    ttls = await everything(connection)
    assert len(ttls) == 6
    assert all(0 < ttl <= IDLE_TTL * 1000 for ttl in ttls.values()), ttls


@pytest.mark.parametrize("sign", ["commit", "duplicate", "move_pin", "touch"])
async def test_a_sign_of_life_renews_every_ttl(connection: Connection, sign: str) -> None:
    brief = SessionStore(connection, Codec(), idle_ttl=60, max_transcript=1 << 20)
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    await brief.commit(turn("t1", under=pin(0, "a")))
    if sign == "touch":
        await store.touch([SID, "unknown"])
    elif sign == "move_pin":
        await store.move_pin(SID, "name", TENANT, pin(1, "a"), pin(nonce="b"))
    else:
        await store.commit(turn("t1" if sign == "duplicate" else "t2", under=pin(1, "a")))
    spared = set() if sign == "touch" else {key for key in await everything(connection) if key.startswith(b"sb:r:")}
    ttls = {key: ttl for key, ttl in (await everything(connection)).items() if key not in spared}
    assert len(ttls) >= 3 and all(ttl > 60_000 for ttl in ttls.values()), ttls


async def test_a_stale_move_renews_nothing(connection: Connection) -> None:
    await SessionStore(connection, Codec(), idle_ttl=60, max_transcript=1 << 20).commit(turn("t1"))
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    await store.move_pin(SID, "name", TENANT, None, pin(nonce="b"))
    assert all(ttl <= 60_000 for ttl in (await everything(connection)).values())


async def test_fifty_commits_at_once_are_all_written(store: SessionStore) -> None:
    await store.commit(turn("root"))
    answers = await asyncio.gather(*(store.commit(turn(f"t{i}", "root")) for i in range(50)))
    assert {answer.pin for answer in answers} == {pin(1)}
    session = await store.load(SID)
    assert session is not None and session.turns == 51
    for i in range(50):
        assert await ids_of(store, f"t{i}") == ["root", f"t{i}"]


async def test_large_items_are_worked_on_in_a_thread(server_of: ServerOf) -> None:
    connection = Connection(server_of("valkey9").url, timeout=5.0)
    store = SessionStore(connection, Codec(KEY), idle_ttl=IDLE_TTL, max_transcript=64 << 20)
    items = TurnItems(b"[" + b'"all work and no play",' * (1 << 20) + b"0]")
    began = time.thread_time()
    Codec(KEY).encode(SID, "t1", items)
    encoding, began = time.thread_time() - began, time.thread_time()
    await store.commit(turn("t1", items=items))
    assert time.thread_time() - began < encoding / 2
    assert [stored.items for stored in await store.chain(SID, "t1")] == [items]
    await connection.close()
