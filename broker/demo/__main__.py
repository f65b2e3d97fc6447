"""The demonstration: quota, revocation and a killed node in mid-session, and what the clients saw of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass, field

from rich.console import Console

from broker.demo.show import CredentialLine, Screen, SessionLine
from broker.domain.health import AuthHealth, HealthState
from broker.domain.session import derive_sid
from broker.simulator import Fault, SessionClient, SimCredential, TurnResult
from broker.stage import CLIENT_KEY, NodeProcess, Stage
from broker.store.codec import Codec
from broker.store.connection import Connection
from broker.store.health import HealthStore, Table
from broker.store.sessions import SessionStore

CREDENTIALS = (
    SimCredential("A", "sk-demo-A", "acme"),
    SimCredential("B", "sk-demo-B", "acme"),
    SimCredential("C", "sk-demo-C", "globex"),
)
SESSIONS = 6
COUNTERS = (
    "broker_failovers_total",
    "broker_pin_resets_total",
    "broker_replays_total",
    "broker_boundary_dropped_items_total",
)


@dataclass
class Agent:
    """One agent's session, and every turn it took."""

    name: str
    node: NodeProcess
    client: SessionClient
    results: list[TurnResult] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    async def turn(self) -> None:
        """One increment: the client sends `previous_response_id` and the new words, nothing else."""
        words = f"{self.name}, turn {len(self.results) + 1}: and what follows from that?"
        self.results.append(await self.client.turn(words, store=False))

    @property
    def saw(self) -> tuple[str, bool]:
        """What the client saw of its last turn."""
        if not self.results:
            return "", True
        last = self.results[-1]
        if last.ok:
            return f"ok, all {len(last.after.items)} items in context", True
        return "; ".join(last.problems) or f"error {last.error_code}", False


class Demo:
    """The acts, in order."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self.stage, self.screen = stage, screen
        self.agents: list[Agent] = []
        connection = Connection(stage.server.url)
        self._connection = connection
        self._sessions = SessionStore(connection, Codec(), idle_ttl=3600, max_transcript=1 << 26)
        self._health = HealthStore(connection)

    async def run(self) -> bool:
        """All acts; the answer is whether the promise was kept."""
        began = time.monotonic()
        await self._open()
        await self._quota()
        await self._revoked()
        await self._killed()
        await self._recovered()
        return self._judge(time.monotonic() - began)

    async def close(self) -> None:
        """Let go of the clients."""
        for agent in self.agents:
            await agent.client.close()
        await self._connection.close()

    async def _open(self) -> None:
        self.screen.act(
            "1. six agents at work",
            "Two nodes, one worker, an embedded store, three credentials of two organisations. Every agent holds one "
            "WebSocket "
            "and sends only increments (previous_response_id, store=false).",
        )
        for index in range(SESSIONS):
            node = self.stage.nodes[index % 2]
            client = self.stage.client(node)
            if not await client.connect():
                raise RuntimeError(f"no connection to {node.name}")
            self.agents.append(Agent(f"agent-{index + 1}", node, client))
        await self._turns(2)
        await self._show()

    async def _quota(self) -> None:
        self.screen.act(
            "2. A runs out of quota", "From now on the vendor refuses every request of A with usage_limit_reached."
        )
        self.stage.sim.faults.set("A", "usage_limit_reached", at="before_created", resets_in=8)
        await self._act(1)

    async def _revoked(self) -> None:
        self.screen.act(
            "3. B is revoked", "The vendor answers B with 401 token_invalidated, in handshakes and on live sockets."
        )
        self.stage.sim.faults.set("B", "token_invalidated", at="before_created")
        self.stage.sim.faults.add("B", "token_invalidated", at="handshake", do="refuse")
        await self._act(1)

    async def _killed(self) -> None:
        node = self.stage.nodes[0]
        self.screen.act(
            f"4. {node.name} is killed (SIGKILL)",
            f"Its agents reconnect to {self.stage.nodes[1].name}, without a session id, and send their next increment.",
        )
        node.kill()
        for agent in [agent for agent in self.agents if agent.node is node]:
            await self._reconnect(agent, self.stage.nodes[1])
        await self._act(2)

    async def _reconnect(self, agent: Agent, node: NodeProcess) -> None:
        fresh = self.stage.client(node)
        fresh.heads, fresh.results = agent.client.heads, agent.client.results
        await agent.client.kill()
        if not await fresh.connect():
            raise RuntimeError(f"no connection to {node.name}")
        agent.client, agent.node = fresh, node

    async def _recovered(self) -> None:
        self.screen.act("5. A is back", "The reset that the vendor named has passed; C now runs out of quota, too.")
        self.stage.sim.faults.clear("A")
        await self._until_reset("A")
        self.stage.sim.faults.set("C", Fault(do="failed", status=429, code="insufficient_quota"), at="after_created")
        await self._act(1)

    async def _until_reset(self, name: str) -> None:
        deadline = time.monotonic() + 15.0
        while time.monotonic() < deadline:
            table = await self._health.table()
            if not any(row.holds(table.now) for row in _about(table, name)):
                return
            await asyncio.sleep(0.1)

    async def _act(self, turns: int) -> None:
        before = await self.stage.counters()
        await self._turns(turns)
        self.screen.moved(before, await self.stage.counters(), COUNTERS)
        await self._show()

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(agent.turn() for agent in self.agents))

    async def _show(self) -> None:
        served = {turn.response_id: turn.credential for turn in self.stage.sim.turns if turn.outcome == "completed"}
        lines = []
        for agent in self.agents:
            last = agent.results[-1] if agent.results else None
            credential = served.get(last.response_id, "?") if last else "?"
            lines.append(SessionLine(agent.name, agent.node.name, credential, len(agent.results), *agent.saw))
        self.screen.credentials(await self._pool(list(served.values())))
        self.screen.sessions(lines)

    async def _pool(self, served: list[str]) -> list[CredentialLine]:
        table = await self._health.table()
        pins = await self._pins()
        found = []
        for credential in CREDENTIALS:
            states = [row.state for row in _about(table, credential.name) if row.holds(table.now)]
            worst = max(states, key=lambda state: state.severity, default=HealthState.HEALTHY)
            name = credential.name
            found.append(CredentialLine(name, credential.boundary, worst.value, served.count(name), pins.count(name)))
        return found

    async def _pins(self) -> list[str]:
        pins = {}
        for agent in self.agents:
            name = agent.client.handshake_headers.get("x-session-id", "")
            agent.names = [*agent.names, name]
            for known in agent.names:
                session = await self._sessions.load(derive_sid("stage", known))
                if session is not None and session.pin is not None:
                    pins[agent.name] = session.pin.credential
        return list(pins.values())

    def _judge(self, seconds: float) -> bool:
        results = [result for agent in self.agents for result in agent.results]
        failed = [result for result in results if not result.ok]
        wrong = [result for result in results if result.terminal == "response.completed" and not result.digest_ok]
        moved = sum(turn.outcome in ("error", "failed", "lost") for turn in self.stage.sim.turns)
        kept = bool(results) and not failed and not wrong
        self.screen.verdict(
            kept,
            [
                f"turns answered              {len(results) - len(failed)} of {len(results)}",
                f"errors seen by a client     {len(failed)}",
                f"contexts lost or doubled    {len(wrong)}   (every answer is a function of the whole conversation)",
                f"attempts that failed above  {moved}   (moved within their turn, unseen)",
                f"seconds                     {seconds:.1f}",
            ],
        )
        for result in failed:
            self.screen.console.print(result.problems, result.error)
        return kept


def _about(table: Table, name: str) -> list[AuthHealth]:
    """What is held against a credential, or the limit group that bears its name, whatever its secret's generation."""
    wanted = (f"credential:{name}", f"group:{name}")
    return [row for subject, row in table.rows.items() if subject.split("@")[0] in wanted]


async def _main() -> int:
    screen = Screen(Console())
    hold = os.environ.get("HOLD", "") not in ("", "0")
    settings = {"turn": {"hold": "2s"}, "store": {"refresh": "250ms"}}
    async with Stage(CREDENTIALS, settings=settings, deltas=6) as stage:
        demo = Demo(stage, screen)
        try:
            kept = await demo.run()
        finally:
            await demo.close()
        if hold:
            await _hold(stage, screen)
    return 0 if kept else 1


async def _hold(stage: Stage, screen: Screen) -> None:
    stage.sim.faults.clear()
    stage.nodes[0].launch()
    await stage.ready(stage.nodes[0])
    node = stage.nodes[0]
    metrics = f"http://127.0.0.1:{node.operations_port}/metrics"
    screen.hold(node.base_url, stage.sim.control_url, metrics, CLIENT_KEY)
    await asyncio.Event().wait()


def main() -> int:
    """Run the demonstration; the exit status is its verdict."""
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_main())
    return 0


if __name__ == "__main__":
    sys.exit(main())
