"""Client CPU of a commit with 1,000 sessions at once: the store's way, and one command at a time through redis-py.

`python -m bench.commits SOCKET ROUNDS CORE` prints a JSON line for each round. The calls of the second way are
those of the first, as they went over the wire: the same script and index entry, into a store that is as empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from pathlib import Path

import uvloop
from redis.asyncio import BlockingConnectionPool, Redis

from broker.domain.transcript import Commit, TurnItems, TurnMeta
from broker.store.codec import Codec
from broker.store.connection import Connection
from broker.store.sessions import Committed, SessionStore

SESSIONS = 1000
TURNS = 3
SOCKETS = 32
"""Of the client library: a pool as one would set it up."""

PATIENCE = 30.0
"""Seconds; a thousand commits at once wait for each other, which is no reason to give up."""

_SCRIPT_CALLS = (b"EVALSHA", b"FCALL")
_ITEMS = TurnItems(b'["' + b"the input of a turn " * 30 + b'"]', b'["' + b"the answer to a turn " * 50 + b'"]')

Call = Sequence[bytes]


def main() -> None:
    """Measure, on one core."""
    path, rounds, core = sys.argv[1:4]
    os.sched_setaffinity(0, {int(core)})
    uvloop.run(_measure(Path(path), int(rounds)))


async def _measure(path: Path, rounds: int) -> None:
    url = f"unix://{path}"
    turns = [[_turn(session, number) for number in range(TURNS)] for session in range(SESSIONS)]
    async with _store(url) as store, _client(url) as client:
        # teaches the script to the server, which would have to be told in full otherwise
        await store.commit(_turn(SESSIONS, 0))
        calls = await _as_sent(path, turns)
        for number in range(rounds):
            ways = {"store": _all_through(store, turns), "one_by_one": _one_by_one(client, calls)}
            names = sorted(ways, reverse=number % 2 == 0)
            took = {name: await _cpu_us(client, ways[name]) for name in names}
            sys.stdout.write(json.dumps(took) + "\n")
            sys.stdout.flush()


def _turn(session: int, number: int) -> Commit:
    name = f"{session:06d}-{number:06d}"
    parent = f"{session:06d}-{number - 1:06d}" if number else None
    meta = TurnMeta(f"turn-{name}", parent, f"resp_bench_{name}", "key-0", "bench", False)
    return Commit(f"{session:040x}", f"session-{session}", "bench", meta, _ITEMS, 0, f"{session:032x}", "placed")


async def _cpu_us(client: Redis, way: Awaitable[None]) -> float:
    """CPU of this process, all threads, for one commit."""
    await client.flushall()
    gc.collect()
    began = time.process_time()
    await way
    return (time.process_time() - began) * 1e6 / (SESSIONS * TURNS)


async def _all_through(store: SessionStore, turns: Sequence[Sequence[Commit]]) -> None:
    """As the broker does it: a session's next turn is committed when it has been called back about the one before."""
    everybody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = len(turns)

    def session(commits: Iterator[Commit]) -> None:
        def then(outcome: Committed | Exception) -> None:
            nonlocal left
            if isinstance(outcome, Exception):
                everybody.set_exception(outcome)
            elif (commit := next(commits, None)) is not None:
                store.submit(commit, then)
            else:
                left -= 1
                if not left:
                    everybody.set_result(None)

        store.submit(next(commits), then)

    for commits in turns:
        session(iter(commits))
    await everybody


async def _one_by_one(client: Redis, calls: Sequence[Sequence[Call]]) -> None:
    async def session(own: Sequence[Call]) -> None:
        for call in own:
            await client.execute_command(*call)  # type: ignore[no-untyped-call]

    await asyncio.gather(*map(session, calls))


@contextlib.asynccontextmanager
async def _store(url: str) -> AsyncIterator[SessionStore]:
    connection = Connection(url, timeout=PATIENCE)
    yield SessionStore(connection, Codec(), idle_ttl=3600.0, max_transcript=64 << 20)
    await connection.close()


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[Redis]:
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(url, max_connections=SOCKETS, timeout=None)
    yield Redis(connection_pool=pool)
    await pool.aclose()


# --- what the store sends ---------------------------------------------------------------------------------------------


async def _as_sent(path: Path, turns: Sequence[Sequence[Commit]]) -> list[list[Call]]:
    """All commands of all commits, by session; seen from outside, so however the store makes them."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        between = Path(folder) / "store.sock"
        seen: list[bytearray] = []
        server = await asyncio.start_unix_server(lambda r, w: _pass_through(r, w, path, seen), str(between))
        async with _store(f"unix://{between}") as store:
            await _all_through(store, turns)
        server.close()
    by_session: dict[bytes, list[Call]] = {}
    for call in (call for stream in seen for call in _commands(stream)):
        if call[0].upper() in _SCRIPT_CALLS:
            by_session.setdefault(call[3][call[3].index(b"{") + 1 : -1], []).append(call)
        elif call[0].upper() == b"SET":
            by_session[call[2]].append(call)
    if sorted(map(len, by_session.values())) != [2 * TURNS] * SESSIONS:
        raise RuntimeError("a commit is no longer one script call and one SET: bench/commits.py is out of date")
    return list(by_session.values())


async def _pass_through(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path, seen: list[bytearray]
) -> None:
    server_reader, server_writer = await asyncio.open_unix_connection(str(path))
    stream = bytearray()
    seen.append(stream)
    await asyncio.gather(_copy(reader, server_writer, stream), _copy(server_reader, writer, bytearray()))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            kept += data
            writer.write(data)
            await writer.drain()
    writer.close()


def _commands(stream: bytearray) -> list[Call]:
    """The commands of a connection: arrays of strings, each with its length before it."""
    found: list[Call] = []
    at = 0

    def number() -> int:
        nonlocal at
        end = stream.index(b"\r\n", at)
        value, at = int(stream[at + 1 : end]), end + 2
        return value

    def text() -> bytes:
        nonlocal at
        length = number()
        value, at = bytes(stream[at : at + length]), at + length + 2
        return value

    while at < len(stream):
        found.append([text() for _ in range(number())])
    return found


if __name__ == "__main__":
    main()
