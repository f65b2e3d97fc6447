"""What a turn costs the store and its client: CPU of a commit, connections, round trips, bytes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

from bench.finding import Finding, median_of, worst_of
from bench.holding import Holding
from bench.stand import ROOT, Missing, Relay, Stand
from broker.embedded import ends_with_parent

CPU_TARGET = 0.25
CONNECTIONS_TARGET = 3.0
BEFORE_TARGET = 0.0
PER_TURN_TARGET = 1.0
GROWTH_TARGET = 1.1
"""A turn has a parent from the second on, and the store is told; nothing else may come with the turns before."""

TURNS_LOOKED_AT = (1, 10, 100, 1000)
SESSIONS = 5
"""Of which every one is looked at: a heartbeat falls into one of them now and then, and the median leaves it out."""

SINGLE_TURNS = 41
BUSY_SESSIONS = 200
BUSY_SECONDS = 2.0


def store(rounds: int) -> list[Finding]:
    """The CPU is measured `rounds` times; the others are counted, so once is enough."""
    with Stand() as stand:
        found = _client_cpu(stand, rounds)
        relay = stand.broker()
        relay.start(stand.folder)
        with redis.Redis.from_url(stand.server.url) as client:
            server = Server(client)
            found += _connections(stand, relay, server) + _round_trips(stand, relay, server)
            found += _bytes(stand, relay, server)
    return found


# --- what the server tells --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What the server has seen of everybody but us, since it started."""

    connections: int
    commands: int
    bytes_in: int
    reads: int


class Server:
    """The store, asked from outside. It must count by connection, as Valkey 8 and its successors do."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._own = int(client.client_id())
        self._looks = 0

    def seen(self) -> Seen:
        """Now. What looking itself costs is taken off."""
        # a read is one look at a socket that had something: what was sent together is one
        reads = int(self._client.info("stats")["total_reads_processed"]) - 2 * self._looks
        self._looks += 1
        others = [row for row in self._client.client_list() if int(row["id"]) != self._own]
        if any("tot-net-in" not in row for row in others):
            raise Missing("server that counts bytes by connection: Valkey 8 or newer")
        return Seen(
            len(others),
            sum(int(row["tot-cmds"]) for row in others),
            sum(int(row["tot-net-in"]) for row in others),
            reads,
        )

    def during(self, action: Callable[[], Any]) -> Seen:
        """What came while something was done; `connections` are those there are at its end."""
        before = self.seen()
        action()
        after = self.seen()
        return Seen(
            after.connections,
            after.commands - before.commands,
            after.bytes_in - before.bytes_in,
            after.reads - before.reads,
        )


# --- the figures ------------------------------------------------------------------------------------------------------


def _client_cpu(stand: Stand, rounds: int) -> list[Finding]:
    """In a process of its own: it shall hold nothing but the client."""
    command = [sys.executable, "-m", "bench.commits", str(stand.server.socket_path), str(rounds), str(stand.relay_core)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=ends_with_parent())
    if done.returncode != 0:
        raise RuntimeError(f"bench.commits failed:\n{done.stderr[-2000:]}")
    took = [json.loads(line) for line in done.stdout.splitlines()]
    ratios = [one["store"] / one["one_by_one"] for one in took]
    return [
        median_of("store", "CPU/commit, store / redis-py", "ratio", ratios, CPU_TARGET),
        median_of("store", "CPU/commit, store", "us", [one["store"] for one in took]),
        median_of("store", "CPU/commit, redis-py", "us", [one["one_by_one"] for one in took]),
    ]


def _connections(stand: Stand, relay: Relay, server: Server) -> list[Finding]:
    counts: list[float] = []
    over = threading.Event()

    def count() -> None:
        while not over.wait(0.1):
            counts.append(float(server.seen().connections))

    with Holding(stand, relay, sessions=BUSY_SESSIONS) as load:
        counting = threading.Thread(target=count)
        counting.start()
        try:
            load.work(BUSY_SESSIONS, 0, BUSY_SECONDS)
        finally:
            over.set()
            counting.join()
    return [worst_of("store", "connections of a process", "", counts, CONNECTIONS_TARGET)]


def _round_trips(stand: Stand, relay: Relay, server: Server) -> list[Finding]:
    before: list[Seen] = []
    after: list[Seen] = []
    with Holding(stand, relay, sessions=1) as load:
        counted = _counted_by_broker(relay)
        for _ in range(SINGLE_TURNS):
            before.append(server.during(lambda: load.ask(0)))
            after.append(server.during(lambda: load.answer(0)))
        by_operation = _counted_by_broker(relay)
    operations = {name: (value - counted.get(name, 0.0)) / SINGLE_TURNS for name, value in by_operation.items()}
    # medians, as these are whole numbers: the node's own heartbeat falls between two looks now and then
    early = [float(one.reads) for one in before]
    return [
        _counted("round trips before sending", early, BEFORE_TARGET),
        _counted("round trips of a turn", _sums(early, [float(one.reads) for one in after]), PER_TURN_TARGET),
        _counted("commands of a turn", _sums([one.commands for one in before], [one.commands for one in after])),
        *(_counted(f"round trips, broker's {name}", [value]) for name, value in operations.items() if value),
    ]


def _bytes(stand: Stand, relay: Relay, server: Server) -> list[Finding]:
    found: dict[int, list[float]] = {}
    done = 0
    with Holding(stand, relay, sessions=SESSIONS, warm=0) as load:
        for turn in TURNS_LOOKED_AT:
            load.turns(0, SESSIONS, turn - done - 1)
            each = [server.during(partial(load.turns, at, 1, 1)) for at in range(SESSIONS)]
            found[turn] = [float(one.bytes_in) for one in each]
            done = turn
    first, *later = (statistics.median(values) for values in found.values())
    growth = max(later) / first
    return [
        *(median_of("store", f"bytes written by turn {turn}", "B", values) for turn, values in found.items()),
        Finding("store", "bytes, any turn / the first", "ratio", growth, growth, growth, 1, GROWTH_TARGET),
    ]


def _counted(figure: str, values: Sequence[float], target: float | None = None) -> Finding:
    return median_of("store", figure, "", values, target)


def _sums(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [float(a + b) for a, b in zip(one, other, strict=True)]


def _counted_by_broker(relay: Relay) -> dict[str, float]:
    """`broker_store_round_trips_total` by operation."""
    with urllib.request.urlopen(f"http://127.0.0.1:{relay.ready_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    rows = (line.rpartition(" ") for line in lines if line.startswith("broker_store_round_trips_total{"))
    return {name.split('"')[1]: float(value) for name, _, value in rows}
