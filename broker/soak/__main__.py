"""The soak command: sessions x turns through two nodes under random faults, with a verdict."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

from broker.simulator import HttpClient, SessionClient, SimCredential, TurnResult
from broker.soak.faults import Schedule
from broker.stage import NodeProcess, Stage

CREDENTIALS = (
    SimCredential("A", "sk-soak-A", "acme"),
    SimCredential("B", "sk-soak-B", "acme"),
    SimCredential("C", "sk-soak-C", "globex"),
    SimCredential("D", "sk-soak-D", "globex"),
    SimCredential("E", "sk-soak-E", "initech"),
)
TRANSPORTS = {"B": ["http"], "C": ["websocket"], "E": ["http", "websocket"]}
"""What is not spoken by all: every kind of client meets every kind of endpoint."""

RETRIES = 3
NOTICED_WITHIN = 2.0
"""Seconds in which a client notices that its node was killed."""
SETTINGS = {
    "turn": {"hold": "1s", "first_event": "2s", "silence": "3s"},
    "store": {"refresh": "250ms"},
    "log": {"level": "warning", "format": "json"},
}


@dataclass
class Report:
    """What the soak found.

    `extra_dispatches` are turns that ran twice upstream without the broker having said so: what was sent and lost
    before anything was shown may be sent again, but it is counted (`ambiguous_replays`).
    """

    seed: int
    sessions: int
    turns_wanted: int
    turns: int = 0
    turns_by_http: int = 0
    attempts: int = 0
    interrupted_after_output: int = 0
    cut_by_us: int = 0
    reconnects: int = 0
    node_kills: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    failed_although_healthy: int = 0
    context_losses: int = 0
    doubles: int = 0
    extra_dispatches: int = 0
    unfinished: int = 0
    ran_twice: int = 0
    ambiguous_replays: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether the promise was kept."""
        bad = self.failed_although_healthy, self.context_losses, self.doubles, self.extra_dispatches, self.unfinished
        return not any(bad) and self.turns == self.sessions * self.turns_wanted

    def note(self, words: str) -> None:
        """Keep a few examples of what went wrong."""
        if len(self.samples) < 20:
            self.samples.append(words)


class Agent:
    """One session: takes its turns, reconnects when its socket or node is gone, and checks every answer.

    One that has a name may come by WebSocket now and by HTTP then.
    """

    def __init__(self, number: int, soak: Soak) -> None:
        self.number = number
        self.soak = soak
        self.chance = random.Random(f"{soak.report.seed}-{number}")
        self.named = self.chance.random() < 0.5
        self.client: SessionClient | HttpClient | None = None
        self.node: NodeProcess | None = None
        self.attempt = 0

    async def run(self) -> None:
        """All turns of this session."""
        try:
            await self._all_turns(self.soak.report.turns_wanted)
        finally:
            if self.client is not None:
                await self.client.close()

    async def _all_turns(self, wanted: int) -> None:
        for turn in range(wanted):
            if not await self._turn(turn):
                self.soak.report.unfinished += wanted - turn
                return
            await asyncio.sleep(self.soak.think * self.chance.random())
            if self.chance.random() < 0.03:
                await self._drop()

    async def _turn(self, turn: int) -> bool:
        for _ in range(RETRIES):
            client = await self._connected()
            if client is None:
                return False
            self.attempt += 1
            self.soak.report.attempts += 1
            nonce = f"<{self.number}.{turn}.{self.attempt}>"
            if client.heads.get(None) is not None and client.heads[None].calls:
                result = await client.tool_turn(extra={"metadata": {"nonce": nonce}})
            else:
                words = f"{nonce} {self._words()}"
                result = await client.turn(words, store=False, extra={"metadata": {"nonce": nonce}})
            self._check(result, nonce)
            if result.ok:
                self.soak.report.turns += 1
                self.soak.report.turns_by_http += isinstance(client, HttpClient)
                return True
            if isinstance(client, HttpClient):
                await client.close()  # perhaps its node is gone, and nothing else would tell
            if not self._excused(result, nonce):
                return False
        self.soak.report.failed_although_healthy += 1
        self.soak.report.note(f"session {self.number} turn {turn}: gave up after {RETRIES} tries")
        return False

    def _words(self) -> str:
        marks = "[[call:look]] " if self.chance.random() < 0.2 else ""
        if self.chance.random() < 0.03:
            marks += "[[pad:60000]] "
        return f"{marks}what about {self.chance.randint(0, 10**9)}?"

    def _check(self, result: TurnResult, nonce: str) -> None:
        if result.terminal == "response.completed" and not result.digest_ok:
            self.soak.report.context_losses += 1
            self.soak.report.note(f"{nonce}: wrong context: {result.problems}")
        if any("twice" in problem or "sequence" in problem or "after" in problem for problem in result.problems):
            self.soak.report.doubles += 1
            self.soak.report.note(f"{nonce}: {result.problems}")

    def _excused(self, result: TurnResult, nonce: str) -> bool:
        """Whether this turn may have failed: output was shown and told to be lost, or we cut it off ourselves."""
        report = self.soak.report
        if result.error_code == "upstream_interrupted":
            report.interrupted_after_output += 1
            return True
        if result.error is None and self.soak.killed_at > result.started - NOTICED_WITHIN:
            report.cut_by_us += 1
            return True
        report.failed_although_healthy += 1
        report.note(
            f"{nonce}: failed: {result.error} {result.problems} {self.client.notices[-1:] if self.client else ''}"
        )
        return True

    async def _connected(self) -> SessionClient | HttpClient | None:
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            if self.client is not None and self.client.connected:
                return self.client
            running = [node for node in self.soak.stage.nodes if node.running]
            await self._dial(self.chance.choice(running or self.soak.stage.nodes))
            if self.client is None or not self.client.connected:
                await asyncio.sleep(0.05 + 0.1 * self.chance.random())
        self.soak.report.note(f"session {self.number}: no connection for 20 s")
        return None

    async def _dial(self, node: NodeProcess) -> None:
        name = f"soak-{self.soak.report.seed}-{self.number}" if self.named else None
        fresh: SessionClient | HttpClient
        if name is not None and self.chance.random() < self.soak.http:
            whole = self.chance.random() < 0.3
            fresh = self.soak.stage.http_client(node, session_id=name, timeout=20.0, streamed=not whole)
        else:
            fresh = self.soak.stage.client(node, session_id=name, timeout=20.0)
        if self.client is not None:
            fresh.heads, fresh.results = self.client.heads, self.client.results
            await self.client.kill()
            self.soak.report.reconnects += 1
        self.client, self.node = fresh, node
        if isinstance(fresh, SessionClient) or await _listens(node):
            await fresh.connect()

    async def _drop(self) -> None:
        """The client's network goes away for a moment."""
        if self.client is not None:
            await self.client.kill()


class Soak:
    """The whole run."""

    def __init__(
        self, stage: Stage, report: Report, *, think: float, kill_every: float, fault_every: float, http: float
    ) -> None:
        self.stage, self.report, self.think, self.http = stage, report, think, http
        self.killed_at = 0.0
        self._kill_every = kill_every
        self._chance = random.Random(report.seed)
        names = [c.name for c in CREDENTIALS]
        self.schedule = Schedule(stage.sim, names, random.Random(report.seed + 1), every=fault_every)

    async def run(self, concurrency: int) -> None:
        """All sessions, `concurrency` at a time, under faults."""
        began = time.monotonic()
        gate = asyncio.Semaphore(concurrency)
        background = [asyncio.create_task(self.schedule.run()), asyncio.create_task(self._kill_nodes())]

        async def one(number: int) -> None:
            async with gate:
                await Agent(number, self).run()

        await asyncio.gather(*(one(number) for number in range(self.report.sessions)))
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        self.schedule.stop()
        self.report.seconds = time.monotonic() - began
        await asyncio.gather(*map(self.stage.ready, self.stage.nodes))
        self.report.faults = dict(self.schedule.counts)
        self.report.counters = await self._counters()
        self._count_dispatches()

    async def _kill_nodes(self) -> None:
        while True:
            await asyncio.sleep(self._kill_every * self._chance.uniform(0.7, 1.3))
            node = self._chance.choice(self.stage.nodes)
            if not all(other.running for other in self.stage.nodes):
                continue
            await self.stage.counters()  # what this node has counted would be gone
            self.killed_at = time.monotonic()
            self.report.node_kills += 1
            node.kill()
            node.launch()
            await self.stage.ready(node)

    def _count_dispatches(self) -> None:
        """One attempt of a client may run to its end upstream once; what was sent anew had failed before."""
        ended: Counter[str] = Counter()
        for turn in self.stage.sim.turns:
            nonce = (turn.fields.get("metadata") or {}).get("nonce")
            if nonce and turn.outcome in ("completed", "incomplete"):
                ended[nonce] += 1
        for count in ended.values():
            self.report.ran_twice += count - 1
        self.report.ambiguous_replays = int(self.report.counters.get("broker_ambiguous_replays_total", 0))
        self.report.extra_dispatches = max(0, self.report.ran_twice - self.report.ambiguous_replays)

    async def _counters(self) -> dict[str, float]:
        wanted = (
            "broker_failovers_total",
            "broker_pin_",
            "broker_replays_total",
            "broker_turns_total",
            "broker_commits",
            "broker_ambiguous",
        )
        return {
            key: value
            for key, value in (await self.stage.counters()).items()
            if key.startswith(wanted) and value and "_created" not in key
        }


async def _listens(node: NodeProcess) -> bool:
    """Whether a balancer would send anybody to this node."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    except OSError:
        return False
    writer.close()
    return True


def _show(report: Report, console: Console) -> None:
    table = Table("figure", "value", title=f"soak, seed {report.seed}")
    for key, value in asdict(report).items():
        if isinstance(value, int | float):
            table.add_row(key.replace("_", " "), f"{value:g}")
    console.print(table)
    console.print(f"faults armed: {sum(report.faults.values())} of {len(report.faults)} kinds")
    for key, value in sorted(report.counters.items()):
        console.print(f"  {key} {value:g}", highlight=False)
    for sample in report.samples:
        console.print(f"  ! {sample}", style="red", highlight=False, markup=False)
    console.print("CLEAN" if report.clean else "NOT CLEAN", style="bold green" if report.clean else "bold red")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak ARGS=...", description=__doc__)
    parser.add_argument("--sessions", type=int, default=200, help="sessions (default 200)")
    parser.add_argument("--turns", type=int, default=20, help="turns of each (default 20)")
    parser.add_argument("--concurrency", type=int, default=40, help="sessions at a time (default 40)")
    parser.add_argument("--think", type=float, default=0.5, help="longest pause between turns, seconds (default 0.5)")
    parser.add_argument(
        "--http", type=float, default=0.5, help="share of connections by HTTP, of sessions with a name (default 0.5)"
    )
    parser.add_argument("--fault-every", type=float, default=0.03, help="seconds between two faults (default 0.03)")
    parser.add_argument("--kill-every", type=float, default=8.0, help="seconds between node kills (default 8)")
    parser.add_argument("--seed", type=int, default=None, help="seed (default: by chance; it is printed)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(arguments)


async def _main(options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    report = Report(seed, options.sessions, options.turns)
    console = Console(stderr=options.json)
    console.print(f"seed {seed}: {report.sessions} sessions x {report.turns_wanted} turns", highlight=False)
    own = {name: {"transports": spoken} for name, spoken in TRANSPORTS.items()}
    async with Stage(CREDENTIALS, settings=SETTINGS, own=own, seed=seed, records=1_000_000) as stage:
        soak = Soak(
            stage,
            report,
            think=options.think,
            kill_every=options.kill_every,
            fault_every=options.fault_every,
            http=options.http,
        )
        await soak.run(options.concurrency)
    _show(report, console)
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    return 0 if report.clean else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; the exit status is 0 only if it was clean."""
    return asyncio.run(_main(_options(arguments)))


if __name__ == "__main__":
    sys.exit(main())
