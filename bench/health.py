"""How fast all nodes know what one node learned, and how gently a credential is taken back that many wait for.

`python -m bench.health [--rounds N] [--sessions N]`; real Valkey, real sockets, the simulated vendor; about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter

from broker.domain.credential import Credential, Secret
from broker.domain.failure import Failure, FailureKind
from broker.edge.node import Node, StoreSettings
from broker.embedded import EmbeddedServer
from broker.simulator import SimCredential, TurnResult
from broker.stage import Stage


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
        while any(board.snapshot.verdict(credential, "m", board.now()).usable for board in others):  # noqa: ASYNC110
            await asyncio.sleep(0.0005)  # a way to be told would be part of what is measured
        took.append(time.perf_counter() - began)
        # not in step with the refreshes
        await asyncio.sleep(0.0137)
    for node in nodes:
        await node.stop()
    return took


async def reset(sessions: int) -> None:
    """Many sessions of one credential come back in the very moment in which its quota does."""
    async with Stage([SimCredential("A", "sk-stage-a", "acme")], nodes=3, workers=2, each={"probe": PROBE}) as stage:
        agents = [stage.client(stage.nodes[i % 3], timeout=30.0) for i in range(sessions)]
        for start in range(0, sessions, 50):
            await asyncio.gather(*(agent.connect() for agent in agents[start : start + 50]))
            await asyncio.gather(*(agent.turn("one") for agent in agents[start : start + 50]))
        at = float(int(time.time()) + OUT_FOR)
        stage.sim.faults.set("A", "usage_limit_reached", resets_at=int(at), until=at)
        told = await asyncio.gather(*(agent.turn("two") for agent in agents))
        say(f"{sum(not turn.ok for turn in told)} of {sessions} turns were told the reset, {OUT_FOR} s ahead")
        await asyncio.sleep(max(at - time.time(), 0.0))
        _say_reset(stage, await asyncio.gather(*(agent.turn("three [[slow:20]]") for agent in agents)), at)
        for agent in agents:
            await agent.kill()


PROBE = {"kind": "response", "model": "sim-1"}

OUT_FOR = 33
"""Seconds for which the credential is out: from half a minute on, load may double each second, not faster."""


def _say_reset(stage: Stage, turns: list[TurnResult], at: float) -> None:
    asked = [turn.started - at for turn in stage.sim.turns if turn.started >= at - 0.05]
    by_second = Counter(max(int(since), 0) for since in asked)
    wrong = sum(not turn.digest_ok for turn in turns)
    say(f"{sum(turn.ok for turn in turns)} of {len(turns)} were served, {wrong} with a wrong context")
    say(f"requests upstream in the first 0.2 s: {sum(since < 0.2 for since in asked)} (workers' probes among them)")
    say(f"and by second: {', '.join(str(by_second[second]) for second in range(max(by_second) + 1))}")


def say(line: str) -> None:
    """One line of the result."""
    sys.stdout.write(line + "\n")


async def _main(rounds: int, sessions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(folder)
        server.start()
        try:
            for hints in (True, False):
                took = sorted(await propagation(server.url, hints=hints, rounds=rounds))
                shown = [f"{name} {took[int((rounds - 1) * part)] * 1e3:.1f} ms" for name, part in PERCENTILES]
                say(f"known to all nodes, hints {'on' if hints else 'off'}: {', '.join(shown)} ({rounds} rounds)")
        finally:
            server.stop()
    await reset(sessions)


PERCENTILES = (("p50", 0.5), ("p99", 0.99), ("most", 1.0))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="refusals to measure, with hints and without")
    parser.add_argument("--sessions", type=int, default=500, help="sessions that wait for one reset")
    options = parser.parse_args()
    asyncio.run(_main(options.rounds, options.sessions))


if __name__ == "__main__":
    main()
