"""How fast all nodes know what one node learned, and how gently a credential is taken back that many wait for.

`python -m bench.health [--rounds N] [--sessions N]`; real Valkey, real sockets, the simulated vendor; about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter

from broker.domain.credential import Credential, Secret
from broker.domain.failure import Failure, FailureKind
from broker.edge.node import Node, StoreSettings
from broker.embedded import EmbeddedServer
from broker.simulator import SessionClient, SimCredential
from broker.stage import Stage


def percentile(values: list[float], part: float) -> float:
    """The value below which that part of the values lies."""
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def propagation(url: str, *, hints: bool, rounds: int) -> list[float]:
    """Seconds from a refusal at one node until two others would place nobody on that credential any more."""
    pool = [Credential(f"c{i}-{hints}", "https://vendor.invalid/v1", Secret(f"sk-{i}")) for i in range(rounds)]
    nodes = [
        Node(f"node-{i}", tenants=[], credentials=pool, store=StoreSettings(url, hints=hints, refresh=1.0))
        for i in range(3)
    ]
    for node in nodes:
        await node.start()
    await asyncio.sleep(0.5)
    first, *others = [node.health for node in nodes]
    refused = Failure(FailureKind.QUOTA_EXHAUSTED, status=429, code="insufficient_quota")
    took: list[float] = []
    for credential in pool:
        began = time.perf_counter()
        first.blame(credential, refused, "m", confirmed=False, evidence=credential.name, began=first.now())
        while any(board.snapshot.verdict(credential, "m", board.now()).usable for board in others):
            await asyncio.sleep(0.0005)
        took.append(time.perf_counter() - began)
        # not in step with the refreshes
        await asyncio.sleep(0.0137)
    for node in nodes:
        await node.stop()
    return took


async def reset(sessions: int) -> None:
    """Many sessions of one credential come back in the very moment in which its quota does."""
    async with Stage([SimCredential("A", "sk-stage-a", "acme")], nodes=3, workers=2) as stage:
        agents = [stage.client(stage.nodes[i % 3], timeout=30.0) for i in range(sessions)]
        for start in range(0, sessions, 50):
            await asyncio.gather(*(agent.connect() for agent in agents[start : start + 50]))
            await asyncio.gather(*(agent.turn("one") for agent in agents[start : start + 50]))
        at = float(int(time.time()) + OUT_FOR)
        stage.sim.faults.set("A", "usage_limit_reached", resets_at=int(at), until=at)
        told = await asyncio.gather(*(agent.turn("two") for agent in agents))
        refused = [turn for turn in stage.sim.turns if turn.outcome == "error"]
        print(
            f"{sum(not turn.ok for turn in told)} of {sessions} turns were told the reset; the vendor refused {len(refused)}"
        )
        await asyncio.sleep(max(at - time.time(), 0.0))
        turns = await asyncio.gather(*(agent.turn("three [[slow:20]]") for agent in agents))
        _say_reset(stage, turns, at)
        for agent in agents:
            await agent.kill()


OUT_FOR = 33
"""Seconds for which the credential is out: from half a minute on, load may double each second, not faster."""


def _say_reset(stage: Stage, turns: list, at: float) -> None:  # type: ignore[type-arg]
    counted: Counter[int] = Counter()
    for turn in stage.sim.turns:
        if turn.started >= at - 0.05:
            counted[max(int(turn.started - at), 0)] += 1
    probes = [h for h in stage.sim.handshakes if h.time >= at and h.path != "/v1/responses"]
    print(
        f"{sum(turn.ok for turn in turns)} of {len(turns)} served; {sum(not turn.digest_ok for turn in turns)} contexts wrong"
    )
    print("requests upstream by second after the reset: " + ", ".join(f"{n}" for _, n in sorted(counted.items())))
    early = [turn for turn in stage.sim.turns if at - 0.05 <= turn.started < at + 0.2]
    print(f"of these within 0.2 s: {len(early)}")
    if probes:
        print(f"and {len(probes)} probes by workers")


async def _main(rounds: int, sessions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(folder)
        server.start()
        try:
            for hints in (True, False):
                took = await propagation(server.url, hints=hints, rounds=rounds)
                print(
                    f"known to all nodes, hints {'on' if hints else 'off'}: p50 {percentile(took, 0.5) * 1e3:.1f} ms, "
                    f"p99 {percentile(took, 0.99) * 1e3:.1f} ms, most {max(took) * 1e3:.1f} ms ({rounds} rounds)"
                )
        finally:
            server.stop()
    await reset(sessions)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="refusals to measure, with hints and without")
    parser.add_argument("--sessions", type=int, default=500, help="sessions that wait for one reset")
    options = parser.parse_args()
    asyncio.run(_main(options.rounds, options.sessions))


if __name__ == "__main__":
    main()
