"""Whatever the client library does, the adapter answers, or says in one word why it cannot."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from broker.domain.transcript import TurnItems
from broker.store import reasons, scripts
from broker.store.codec import Codec
from broker.store.connection import Connection, StoreUnavailable, call, command
from broker.store.sessions import SessionStore
from tests import engines
from tests.store.turns import SID, TENANT, ServerOf, pin, turn, wait_until
from tests.store.wires import Cutter, Dripper, Grumbler, listening

SECRET = "payload-canary"

GRUMBLES = [
    (b"-READONLY You can't write against a read only replica.", "readonly"),
    (b"-LOADING Redis is loading the dataset in memory", "loading"),
    (b"-OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script:1.", "oom"),
    (b"-MISCONF Redis is configured to save RDB snapshots, but it is unable to persist on disk.", "misconf"),
    (b"-NOREPLICAS Not enough good replicas to write.", "noreplicas"),
    (b"-CLUSTERDOWN Hash slot not served", "clusterdown"),
    (b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "masterdown"),
    (b"-TRYAGAIN Multiple keys request during rehashing of slot", "tryagain"),
    (b"-MOVED 3999 127.0.0.1:6381", "moved"),
    (b"-ASK 3999 127.0.0.1:6381", "moved"),
    (b"-NOSCRIPT No matching script. Please use EVAL.", "noscript"),
    (b"-NOPERM User default has no permissions to run the 'evalsha' command", "noperm"),
    (b"-NOAUTH Authentication required.", "auth"),
    (b"-BUSY Redis is busy running a script.", "busy"),
    (b"-WRONGTYPE Operation against a key holding the wrong kind of value", "refused"),
    (b"-ERR max number of clients reached", "connection"),
    (b"-ERR user_script:1: payload-canary", "refused"),
    (b"!!! this is not Redis", "protocol"),
]


@pytest.mark.parametrize(("grumble", "reason"), GRUMBLES, ids=[row[1] + str(i) for i, row in enumerate(GRUMBLES)])
async def test_every_grumble_has_a_word(tmp_path: Path, grumble: bytes, reason: str) -> None:
    async with listening(Grumbler(grumble + b"\r\n").serve, tmp_path) as url:
        connection = Connection(url)
        with pytest.raises(StoreUnavailable) as raised:
            await connection.ask(call(scripts.CHAIN, ["k"], [SECRET]), command("SET", "k", SECRET))
        assert raised.value.reason == reason
        assert str(raised.value) == raised.value.reason and SECRET not in repr(raised.value)
        await connection.close()


async def test_a_lost_script_is_sent_in_full_once(tmp_path: Path) -> None:
    grumbler = Grumbler(b"-NOSCRIPT No matching script.\r\n")
    async with listening(grumbler.serve, tmp_path) as url:
        connection = Connection(url)
        with pytest.raises(StoreUnavailable):
            await connection.run(scripts.CHAIN, ["k"], ["t", 1])
        assert grumbler.asked == [b"EVALSHA", b"EVAL"]
        await connection.close()


@pytest.mark.parametrize(("grumble", "sockets"), [(b"-READONLY no\r\n", 2), (b"-OOM no\r\n", 1)])
async def test_a_demoted_server_is_not_asked_over_the_same_socket(tmp_path: Path, grumble: bytes, sockets: int) -> None:
    grumbler = Grumbler(grumble)
    async with listening(grumbler.serve, tmp_path) as url:
        connection = Connection(url)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await connection.ask(command("SET", "k", "v"))
        # the socket is given up after the answer was delivered
        await wait_until(lambda: grumbler.connections == sockets)
        await connection.close()


@pytest.mark.parametrize("url", ["unix:///nowhere/at/all", "redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"])
async def test_a_server_that_is_not_there(url: str) -> None:
    connection = Connection(url)
    with pytest.raises(StoreUnavailable, match=r"^connection$"):
        await connection.ping()
    await connection.close()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(AttributeError("'NoneType' object has no attribute 'writelines'"), "client"), (TypeError("x"), "client")],
)
def test_what_escapes_the_client_library_has_a_word(error: Exception, reason: str) -> None:
    assert reasons.reason_of(error) == reason
    assert isinstance(error, reasons.FOREIGN)


async def test_a_write_is_never_repeated_and_a_read_once(tmp_path: Path, server_of: ServerOf) -> None:
    server = server_of("valkey9")
    cutter = Cutter(server.socket_path)
    async with listening(cutter.serve, tmp_path) as url:
        connection = Connection(url)
        await connection.ping()
        cutter.lose = 1
        with pytest.raises(StoreUnavailable, match=r"^connection$"):
            await connection.ask(command("INCR", "counter"))
        assert await connection.ask(command("GET", "counter")) == [b"1"]
        cutter.lose = 1
        assert await connection.ask(command("GET", "counter"), read=True) == [b"1"]
        cutter.lose = 2
        with pytest.raises(StoreUnavailable):
            await connection.ask(command("GET", "counter"), read=True)
        await connection.close()


async def test_a_move_whose_answer_was_lost_can_be_repeated(tmp_path: Path, server_of: ServerOf) -> None:
    cutter = Cutter(server_of("valkey9").socket_path)
    async with listening(cutter.serve, tmp_path) as url:
        connection = Connection(url)
        store = SessionStore(connection, Codec(), idle_ttl=60, max_transcript=1 << 20)
        await store.commit(turn("t1", under=pin(0, "a")))
        cutter.lose = 1
        with pytest.raises(StoreUnavailable):
            await store.move_pin(SID, "name", TENANT, pin(1, "a"), pin(nonce="b"))
        answer = await store.move_pin(SID, "name", TENANT, pin(1, "a"), pin(nonce="b"))
        assert answer.pin == pin(2, "b")
        await connection.close()


async def test_a_paused_server_costs_one_timeout(tmp_path: Path) -> None:
    with engines.server("valkey9") as server:
        connection = Connection(server.url, timeout=0.3)
        await connection.ping()
        server.pause()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable, match=r"^timeout$"):
            await connection.ask(command("SET", "k", b"x" * (8 << 20)))
        assert 0.2 < asyncio.get_running_loop().time() - begun < 2
        server.resume()
        await connection.ping()
        await connection.close()


async def test_a_cancelled_caller_leaves_the_others_their_own_answers(connection: Connection) -> None:
    await connection.ask(*(command("SET", f"k{i}", i) for i in range(100)))
    readers = [asyncio.create_task(connection.ask(command("GET", f"k{i}"))) for i in range(100)]
    writers = [asyncio.create_task(connection.ask(command("INCR", "written"))) for _ in range(50)]
    await asyncio.sleep(0)
    for task in (*readers[::2], *writers[::2]):
        task.cancel()
    answers = await asyncio.gather(*readers[1::2], *writers[1::2])
    assert [answer[0] for answer in answers[:50]] == [str(i).encode() for i in range(1, 100, 2)]
    # what was asked for is done, though nobody waited for it
    assert await connection.ask(command("GET", "written")) == [b"50"]


async def test_one_refused_command_spoils_no_other(connection: Connection) -> None:
    await connection.ask(command("SET", "text", "x"))
    outcomes = await asyncio.gather(
        connection.ask(command("GET", "text")),
        connection.ask(command("LPUSH", "text", "y")),
        connection.ask(command("GET", "text")),
        return_exceptions=True,
    )
    assert outcomes[0] == outcomes[2] == [b"x"]
    assert isinstance(outcomes[1], StoreUnavailable) and outcomes[1].reason == "refused"


async def test_a_large_request_does_not_hold_up_the_small_ones(tmp_path: Path) -> None:
    server = Grumbler(b"+OK\r\n", late=b"large")
    async with listening(server.serve, tmp_path) as url:
        connection = Connection(url, timeout=5.0)
        large = asyncio.ensure_future(connection.ask(command("SET", "large", b"x" * (1 << 20)), bulky=True))
        assert await connection.ask(command("SET", "small", "x")) == [True]
        assert not large.done()
        server.may_answer.set()
        assert await large == [True]
        await connection.close()


async def test_all_that_one_process_asks_goes_over_two_sockets(server_of: ServerOf) -> None:
    server = server_of("valkey9")
    connection = Connection(server.url)
    store = SessionStore(connection, Codec(), idle_ttl=60, max_transcript=64 << 20)
    large = TurnItems(random.Random(1).randbytes(1 << 20).hex().encode())
    small = [store.commit(turn(f"u{i}", sid=f"{i:032x}")) for i in range(1000)]
    committed = await asyncio.gather(*small, *(store.commit(turn(f"t{i}", items=large)) for i in range(3)))
    assert {each.status for each in committed} == {"ok"}
    (clients,) = await connection.ask(command("CLIENT LIST"))
    assert clients.count(b" cmd=") == 2
    await connection.close()


NO_COMMITS = {
    "a word": b"+OK\r\n",
    "nothing": b"$-1\r\n",
    "a number": b":1\r\n",
    "an empty list": b"*0\r\n",
    "a short list": b"*2\r\n$2\r\nok\r\n$1\r\n1\r\n",
    "no epoch": b"*7\r\n$9\r\nduplicate\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$1\r\n0\r\n$1\r\n1\r\n",
}
COMMITTED = b"*7\r\n$2\r\nok\r\n$1\r\n1\r\n$2\r\nn0\r\n$5\r\nalpha\r\n$6\r\nplaced\r\n$1\r\n0\r\n$1\r\n1\r\n"


@pytest.mark.parametrize("answer", NO_COMMITS.values(), ids=list(NO_COMMITS))
async def test_refuses_a_commit_when_its_answer_is_none_and_goes_on(tmp_path: Path, answer: bytes) -> None:
    grumbler = Grumbler(answer, late=b"late")
    async with listening(grumbler.serve, tmp_path) as url, asyncio.timeout(5):
        connection = Connection(url, timeout=10.0)
        store = SessionStore(connection, Codec(), idle_ttl=60, max_transcript=1 << 20)
        committing = asyncio.ensure_future(store.commit(turn("t1", response_id="")))
        # waits behind it on the same socket
        other = asyncio.ensure_future(connection.ask(command("SET", "late", "x")))
        with pytest.raises(StoreUnavailable, match=r"^refused$"):
            await committing
        grumbler.answer = b"+OK\r\n"
        grumbler.may_answer.set()
        assert await other == [True]
        grumbler.answer = COMMITTED
        committed = await store.commit(turn("t2", response_id=""))
        assert (committed.status, committed.pin) == ("ok", pin(1))
        assert grumbler.connections == 1
        await connection.close()


async def test_gives_its_socket_up_when_an_answer_comes_that_nobody_asked_for(tmp_path: Path) -> None:
    grumbler = Grumbler(b"$1\r\na\r\n$5\r\nextra\r\n")
    async with listening(grumbler.serve, tmp_path) as url:
        connection = Connection(url)
        assert await connection.ask(command("GET", "a")) == [b"a"]
        grumbler.answer = b"$1\r\nb\r\n"
        assert await connection.ask(command("GET", "b")) == [b"b"]
        assert grumbler.connections == 2
        await connection.close()


async def test_ends_an_answer_when_it_comes_in_drops_for_too_long(tmp_path: Path) -> None:
    async with listening(Dripper().serve, tmp_path) as url, asyncio.timeout(5):
        connection = Connection(url, timeout=0.1)
        with pytest.raises(StoreUnavailable, match=r"^timeout$"):
            await connection.ask(command("GET", "k"))
        await connection.close()


async def test_closing_waits_for_what_is_under_way(server_of: ServerOf) -> None:
    server = server_of("valkey9")
    connection = Connection(server.url)
    asked = [asyncio.ensure_future(connection.ask(command("INCR", "n"))) for _ in range(10)]
    await asyncio.sleep(0)
    await connection.close()
    assert server.execute("GET", "n").startswith(b"$2")
    assert [answer for (answer,) in await asyncio.gather(*asked)] == list(range(1, 11))


@pytest.mark.parametrize("name", engines.NAMES)
async def test_real_servers_grumble_in_these_words(name: str) -> None:
    if engines.binary(name) is None:
        pytest.skip(f"no binary of {name} is installed")
    with engines.server(name, tcp=True) as server:
        connection = Connection(server.url)
        store = SessionStore(connection, Codec(), idle_ttl=60, max_transcript=1 << 20)
        await store.commit(turn("t0"))
        for spoil, mend, reason in (
            ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "oom"),
            ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "noreplicas"),
            ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "readonly"),
        ):
            assert server.execute(*spoil.split()).startswith(b"+OK")
            with pytest.raises(StoreUnavailable) as raised:
                await store.commit(turn("t1", "t0"))
            assert raised.value.reason == reason
            assert server.execute(*mend.split()).startswith(b"+OK")
        assert (await store.commit(turn("t1", "t0"))).status == "ok"
        await connection.close()
