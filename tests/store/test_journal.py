"""The store goes away: turns wait, are found while they wait, and land once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker.domain.session import derive_rid
from broker.domain.transcript import Commit, StoredTurn, TurnItems
from broker.store import keys
from broker.store.codec import Codec
from broker.store.connection import Connection, StoreUnavailable, command
from broker.store.journal import Journal, JournalFull, Landed, Queued
from broker.store.sessions import ChainBroken, Committed, SessionStore
from tests import engines
from tests.circles import uncollected
from tests.store.turns import IDLE_TTL, SID, TENANT, ServerOf, landed, pin, turn, wait_until
from tests.store.wires import Cutter, listening

PERSISTENT = engines.NAMES


@dataclass
class House:
    """A journal over a server of its own, and what it told its listener."""

    server: engines.Server
    connection: Connection
    store: SessionStore
    journal: Journal
    landed: list[tuple[str, str]] = field(default_factory=list)

    def on_committed(self, commit: Commit, committed: Committed) -> None:
        self.landed.append((commit.meta.turn_id, committed.status))


@pytest.fixture(params=PERSISTENT)
def own_server(request: pytest.FixtureRequest) -> Iterator[engines.Server]:
    """A server that a test may kill; what it has written stays."""
    if engines.binary(request.param) is None:
        pytest.skip(f"no binary of {request.param} is installed")
    with engines.server(request.param, appendonly=True) as server:
        yield server


@pytest.fixture
async def house(own_server: engines.Server) -> AsyncIterator[House]:
    """A started journal."""
    connection = Connection(own_server.url, timeout=0.2, connect_timeout=0.2)
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    house = House(own_server, connection, store, Journal(store, max_turns=100, max_bytes=10_000, retry_for=0.2))
    house.journal.listen(house.on_committed)
    house.journal.start()
    yield house
    own_server.resume()
    await house.journal.close(0)
    await connection.close()


async def queue(house: House, *commits: Commit) -> None:
    for commit in commits:
        assert isinstance(await landed(house.journal, commit), Queued)


async def test_with_the_store_there_a_commit_goes_straight_through(house: House) -> None:
    answer = await landed(house.journal, turn("t1"))
    assert isinstance(answer, Committed) and answer.status == "ok"
    assert not house.journal.degraded and len(house.journal) == 0 and house.landed == []
    assert await house.journal.chain(SID, "t1") == await house.store.chain(SID, "t1")
    assert await house.journal.locate(TENANT, "resp-t1") == SID
    assert (await house.journal.find(SID, "resp-t1")) == turn("t1").meta


@pytest.mark.parametrize("fault", ["pause", "kill"])
async def test_turns_wait_and_land_once_oldest_first(house: House, fault: str) -> None:
    await landed(house.journal, turn("t0"))
    (house.server.pause if fault == "pause" else house.server.kill)()
    waiting = [turn(f"t{i}", f"t{i - 1}") for i in range(1, 20)]
    await queue(house, *waiting)
    assert house.journal.degraded and len(house.journal) == 19
    assert house.journal.pending(SID) == waiting
    (house.server.resume if fault == "pause" else house.server.start)()
    await wait_until(lambda: len(house.landed) == 19)
    assert [turn_id for turn_id, _ in house.landed] == [each.meta.turn_id for each in waiting]
    assert not house.journal.degraded and house.journal.pending(SID) == []
    session = await house.store.load(SID)
    assert session is not None and session.turns == 20
    assert [stored.meta.turn_id for stored in await house.store.chain(SID, "t19")] == [f"t{i}" for i in range(20)]
    answer = await landed(house.journal, turn("t20", "t19"))
    assert isinstance(answer, Committed) and answer.status == "ok"


async def test_a_whole_chain_that_waits_needs_no_store(house: House) -> None:
    house.server.kill()
    one, two = turn("t1"), turn("t2", "t1", minted=("d",))
    await queue(house, one, two)
    assert await house.journal.chain(SID, "t2") == [StoredTurn(each.meta, each.items) for each in (one, two)]
    assert await house.journal.find(SID, "resp-t2") == two.meta
    assert await house.journal.locate(TENANT, "resp-t2") == SID
    with pytest.raises(StoreUnavailable):
        await house.journal.find(SID, "never seen")
    with pytest.raises(StoreUnavailable):
        await house.journal.locate("another", "resp-t2")
    with pytest.raises(StoreUnavailable):
        await house.journal.find("another", "resp-t2")


async def test_a_chain_that_waits_is_broken_like_one_that_is_written(house: House) -> None:
    house.server.kill()
    await queue(house, turn("t1", rooted=False), turn("t2", "t1"), turn("t3", kept=False), turn("t4", "t3"))
    with pytest.raises(ChainBroken, match="root"):
        await house.journal.chain(SID, "t2")
    with pytest.raises(ChainBroken, match="not kept"):
        await house.journal.chain(SID, "t4")


async def test_the_newest_of_a_reused_response_id_is_found_while_it_waits(house: House) -> None:
    await landed(house.journal, turn("t0", response_id="same"))
    house.server.kill()
    await queue(house, turn("t1", "t0", response_id="same"), turn("t2", "t1", response_id="same"))
    found = await house.journal.find(SID, "same")
    assert found is not None and found.turn_id == "t2"


async def test_a_chain_is_put_together_from_both(own_server: engines.Server) -> None:
    """The journal here is not started, so that its turns go on waiting though the store is back."""
    connection = Connection(own_server.url, timeout=0.2, connect_timeout=0.2)
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    journal = Journal(store, max_turns=10, max_bytes=1000, retry_for=0.2)
    await landed(journal, turn("t1", minted=("d1",)))
    own_server.kill()
    await landed(journal, turn("t2", "t1", boundary="elsewhere", minted=("d2",)))
    own_server.start()
    assert [stored.meta.turn_id for stored in await journal.chain(SID, "t2")] == ["t1", "t2"]
    assert await journal.origins(SID) == {"d1": "org", "d2": "elsewhere"}
    assert await journal.close(0) == 1
    await connection.close()


async def test_an_answer_lost_after_the_write_is_not_doubled(tmp_path: Path, own_server: engines.Server) -> None:
    cutter = Cutter(own_server.socket_path)
    async with listening(cutter.serve, tmp_path) as url:
        connection = Connection(url, timeout=0.2)
        store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
        journal = Journal(store, max_turns=10, max_bytes=1000, retry_for=0.2)
        await landed(journal, turn("t0"))
        cutter.lose = 1
        answer = await landed(journal, turn("t1", "t0"))
        assert isinstance(answer, Committed) and answer.status == "duplicate"
        session = await store.load(SID)
        assert session is not None and session.turns == 2
        await connection.close()


async def test_answers_lost_for_long_are_not_doubled_either(tmp_path: Path, own_server: engines.Server) -> None:
    cutter = Cutter(own_server.socket_path)
    async with listening(cutter.serve, tmp_path) as url:
        connection = Connection(url, timeout=0.2)
        store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
        house = House(own_server, connection, store, Journal(store, max_turns=10, max_bytes=1000, retry_for=0.2))
        house.journal.listen(house.on_committed)
        house.journal.start()
        await landed(house.journal, turn("t0"))
        cutter.lose = 1 << 30
        await queue(house, turn("t1", "t0"), turn("t2", "t1"))
        cutter.lose = 0
        await wait_until(lambda: len(house.landed) == 2)
        # the first was written by every try, the second may have been
        assert house.landed[0] == ("t1", "duplicate") and house.landed[1][0] == "t2"
        session = await store.load(SID)
        assert session is not None and session.turns == 3
        assert await house.journal.close(1) == 0
        await connection.close()


async def test_sessions_land_in_the_order_in_which_they_came(house: House) -> None:
    house.server.kill()
    waiting = [turn(f"t{i}", sid=f"{i % 7:032x}") for i in range(60)]
    await queue(house, *waiting)
    house.server.start()
    await wait_until(lambda: len(house.landed) == 60)
    assert [turn_id for turn_id, _ in house.landed] == [each.meta.turn_id for each in waiting]


async def test_more_turns_than_there_is_room_for_are_refused(house: House) -> None:
    house.server.kill()
    await queue(house, *(turn(f"t{i}", items=TurnItems()) for i in range(100)))
    with pytest.raises(JournalFull):
        await landed(house.journal, turn("over", items=TurnItems()))
    assert len(house.journal) == 100
    house.server.start()
    await wait_until(lambda: not house.journal.degraded)
    assert isinstance(await landed(house.journal, turn("later")), Committed)


async def test_more_bytes_than_there_is_room_for_are_refused_until_some_have_landed(house: House) -> None:
    house.server.kill()
    large = TurnItems(b"x" * 6000, b"")
    await queue(house, turn("t1", items=large))
    with pytest.raises(JournalFull):
        await landed(house.journal, turn("t2", items=large))
    await queue(house, turn("t3"))
    house.server.start()
    await wait_until(lambda: not house.journal.degraded)
    house.server.kill()
    await queue(house, turn("t4", items=large))


async def test_a_cancelled_caller_does_not_stop_its_commit(house: House) -> None:
    house.server.pause()
    caller = asyncio.create_task(landed(house.journal, turn("t1")))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await wait_until(lambda: len(house.journal) == 1)
    house.server.resume()
    await wait_until(lambda: house.landed != [])
    assert [stored.meta.turn_id for stored in await house.store.chain(SID, "t1")] == ["t1"]


async def test_while_turns_wait_nobody_is_kept_waiting(house: House) -> None:
    house.server.pause()
    await queue(house, turn("t1"))
    begun = asyncio.get_running_loop().time()
    await queue(house, *(turn(f"u{i}", sid=f"{i:032x}") for i in range(20)))
    assert asyncio.get_running_loop().time() - begun < 0.2


async def test_closing_flushes_what_it_can(house: House) -> None:
    house.server.kill()
    await queue(house, turn("t1"), turn("t2", "t1"))
    closing = asyncio.create_task(house.journal.close(10))
    house.server.start()
    assert await closing == 0
    session = await house.store.load(SID)
    assert session is not None and session.turns == 2


async def test_closing_is_bounded_and_tells_what_is_left(house: House) -> None:
    house.server.kill()
    await queue(house, turn("t1"), turn("t2", "t1"))
    begun = asyncio.get_running_loop().time()
    assert await house.journal.close(0.2) == 2
    assert asyncio.get_running_loop().time() - begun < 2


async def test_a_clean_close_comes_after_the_turns_that_wait(house: House) -> None:
    house.server.kill()
    await queue(house, turn("t1"), turn("s1", store=True, response_id="stored"))
    await house.journal.close_cleanly(SID)
    # the client said that it is done: only what it stored may be asked for again
    with pytest.raises(StoreUnavailable):
        await house.journal.locate(TENANT, "resp-t1")
    assert await house.journal.locate(TENANT, "stored") == SID
    house.server.start()
    await wait_until(lambda: not house.journal.degraded)
    session = await house.store.load(SID)
    assert session is not None and session.closed


async def test_a_clean_close_leaves_nothing_behind_even_late(house: House) -> None:
    house.server.kill()
    await queue(house, turn("t1"))
    await house.journal.close_cleanly(SID)
    house.server.start()
    await wait_until(lambda: not house.journal.degraded)
    assert await house.store.load(SID) is None


async def test_a_turn_that_the_server_refuses_holds_up_nobody(house: House) -> None:
    spoilt = f"{1:032x}"
    await house.connection.ask(command("SET", keys.turns(spoilt), "not a hash"))
    house.server.kill()
    await queue(house, turn("bad", sid=spoilt), turn("good"))
    house.server.start()
    await wait_until(lambda: ("good", "ok") in house.landed)
    await wait_until(lambda: not house.journal.degraded, 20)
    assert house.journal.abandoned == 1
    assert isinstance(await landed(house.journal, turn("next", "good")), Committed)


async def test_a_listener_that_fails_does_not_end_the_writing(house: House) -> None:
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))

    def fail(commit: Commit, committed: Committed) -> None:
        raise RuntimeError(commit.meta.turn_id)

    house.journal.listen(fail)
    house.server.kill()
    await queue(house, turn("t1"), turn("t2", "t1"))
    house.server.start()
    await wait_until(lambda: len(house.landed) == 2 and len(failures) == 2)


async def test_a_retried_index_entry_is_written_too(tmp_path: Path, server_of: ServerOf) -> None:
    cutter = Cutter(server_of("valkey9").socket_path)
    async with listening(cutter.serve, tmp_path) as url:
        connection = Connection(url)
        store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
        await store.commit(turn("t1", under=pin(0, "a")))
        await connection.ask(command("DEL", keys.response(derive_rid(TENANT, "resp-t1"))))
        assert (await store.commit(turn("t1"))).status == "duplicate"
        assert await store.locate(TENANT, "resp-t1") == SID
        await connection.close()


async def test_a_commit_that_fails_is_kept_by_nobody() -> None:
    """A turn may be of many megabytes, and an outage has many of them: they shall not wait for a collection."""
    connection = Connection("unix:///nowhere/at/all")
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    with uncollected(Commit) as left:
        for i in range(3):
            with suppress(StoreUnavailable):
                await store.commit(turn(f"t{i}"))
        await wait_until(lambda: left().total() == 0)
    await connection.close()


async def test_a_commit_that_the_journal_has_no_room_for_is_kept_by_nobody() -> None:
    connection = Connection("unix:///nowhere/at/all")
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    journal = Journal(store, max_turns=0, max_bytes=1000, retry_for=0.1)
    told: list[Landed] = []
    with uncollected(Commit) as left:
        for i in range(3):
            journal.submit(turn(f"t{i}"), told.append)
        assert left().total() == 3
        await wait_until(lambda: len(told) == 3)
        assert all(isinstance(outcome, JournalFull) for outcome in told)
        await wait_until(lambda: left().total() == 0)
    assert await journal.close(0) == 0
    await connection.close()
