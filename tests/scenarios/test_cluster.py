"""Edges and workers as real processes: what one learned, all know; and nothing stays blocked, whoever dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from broker.simulator import Fault, SessionClient, SimCredential
from broker.stage import NodeProcess, Stage, StageProcess
from tests.scenarios.house import wait_until
from tests.workers.receiver import receiving

pytestmark = pytest.mark.timeout(120)

RECOVERS_WITHIN = 30.0


@asynccontextmanager
async def cluster(*names: str, workers: int = 2, nodes: int = 3, **settings: Any) -> AsyncIterator[Stage]:
    """Edges, workers, a vendor whose credentials are `names`, one store."""
    credentials = [SimCredential(name, f"sk-stage-{name}", "acme") for name in names]
    each = {"probe": {"kind": "response", "model": "sim-1"}}
    async with Stage(credentials, nodes=nodes, workers=workers, settings=settings, each=each) as stage:
        yield stage


async def told_by(process: StageProcess, path: str, **query: str) -> Any:
    """What a process says to operators."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{process.operations_port}{path}", params=query) as answer,
    ):
        return await answer.json()


async def passed_over(node: NodeProcess, name: str) -> str:
    """Why that node would not place a new session on a credential; empty if nothing is in the way."""
    candidates = (await told_by(node, "/explain", model="sim-1"))["candidates"]
    why: str = next(c["why"] for c in candidates if c["credential"] == name)
    return "" if why in ("least_loaded", "behind", "doubted") else why


async def until(true: Callable[[], Any], within: float) -> float:
    """Wait until a coroutine function says yes; the answer is how many seconds that took."""
    began = time.monotonic()
    while not await true():
        assert time.monotonic() - began < within, f"did not come true within {within} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def opened(stage: Stage, node: NodeProcess) -> SessionClient:
    client = stage.client(node, timeout=30.0)
    assert await client.connect(), client.handshake_status
    return client


def asked(stage: Stage, name: str, since: float) -> list[float]:
    """When the vendor was sent something to answer under that credential: turns and probes."""
    return sorted(t.started for t in stage.sim.turns if t.credential == name and t.started >= since)


async def test_a_quota_that_one_edge_saw_end_is_left_alone_by_all_and_tried_once_at_its_reset() -> None:
    async with cluster("A", "B", "C") as stage:
        clients = [await opened(stage, node) for node in stage.nodes for _ in range(3)]
        for turn in await asyncio.gather(*(client.turn("one") for client in clients)):
            assert turn.ok, turn.error
        reset = time.time() + 6.0
        stage.sim.faults.set("A", "usage_limit_reached", resets_at=int(reset) + 1, until=int(reset) + 1)
        reset = float(int(reset) + 1)
        hit = await first_hit(stage, clients)
        assert hit
        known = time.time() + 1.0

        async def busy() -> None:
            while time.time() < reset + 1.5:
                turns = await asyncio.gather(*(client.turn("more") for client in clients))
                assert all(turn.ok for turn in turns), [turn.error for turn in turns if not turn.ok]
                await asyncio.sleep(0.05)

        await busy()

        while_out = [at for at in asked(stage, "A", known) if at < reset]
        assert while_out == [], "from a second on nobody sends it anything"
        tries = [at for at in asked(stage, "A", reset) if at < reset + 0.5]
        assert len(tries) == 1, tries
        await until(lambda: free_everywhere(stage, "A"), within=10.0)
        for client in clients:
            await client.kill()


async def free_everywhere(stage: Stage, name: str) -> bool:
    return not any([await passed_over(node, name) for node in stage.nodes if node.running])


async def first_hit(stage: Stage, clients: list[SessionClient]) -> bool:
    """Sessions go on until one of them has met the end of A's quota."""
    for client in clients:
        turn = await client.turn("two")
        assert turn.ok, turn.error
        if any(t.credential == "A" and t.outcome == "error" for t in stage.sim.turns):
            return True
    return False


async def test_another_worker_takes_over_when_the_one_that_led_was_killed() -> None:
    async with cluster("A", "B", nodes=1) as stage:
        client = await opened(stage, stage.nodes[0])
        assert (await client.turn("one")).ok
        leader = await leading(stage)
        leader.kill()
        died = time.monotonic()
        # the only one that can probe now is the other: B serves all there is, so no turn needs A
        reset = float(int(time.time()) + 3)
        stage.sim.faults.set("A", "usage_limit_reached", resets_at=int(reset), until=reset)
        while await passed_over(stage.nodes[0], "A") == "":
            assert (await (await opened(stage, stage.nodes[0])).turn("two")).ok

        await until(lambda: free_everywhere(stage, "A"), within=RECOVERS_WITHIN)

        (probe,) = [t for t in stage.sim.turns if t.credential == "A" and t.started >= reset]
        assert (probe.transport, probe.outcome) == ("json", "completed")
        assert await leading(stage) is not leader
        assert time.monotonic() - died < RECOVERS_WITHIN
        await client.kill()


async def leading(stage: Stage) -> StageProcess:
    """The worker that does what only one may do."""
    deadline = time.monotonic() + RECOVERS_WITHIN
    while time.monotonic() < deadline:
        for worker in stage.workers:
            if worker.running and "janitor" in str((await told_by(worker, "/readyz")).get("leads", "")):
                return worker
        await asyncio.sleep(0.05)
    raise AssertionError("nobody leads")


async def test_an_operator_hears_of_a_revoked_key_within_seconds_and_once() -> None:
    async with receiving() as receiver:
        hook = {"name": "ops", "url": receiver.url().reveal(), "states": ["revoked"]}
        async with cluster("A", "B", webhooks=[hook]) as stage:
            client = await opened(stage, stage.nodes[0])
            assert (await client.turn("one")).ok
            name = stage.sim.turns[-1].credential
            stage.sim.faults.set(name, "token_revoked")

            assert (await client.turn("two")).ok
            revoked = time.monotonic()
            await wait_until(lambda: receiver.posts, within=5.0)

            assert time.monotonic() - revoked < 3.0
            told = receiver.posts[0].json
            assert f"{name} is revoked" in told["text"] and "sk-stage" not in str(told)
            # the other worker has its looks, too
            looked = time.monotonic() + 2.0
            await wait_until(lambda: time.monotonic() > looked)
            assert len(receiver.posts) == 1
            await client.kill()


async def test_a_credential_is_tried_again_when_the_node_that_tried_it_was_killed() -> None:
    async with cluster("A", workers=0) as stage:
        first, *others = [await opened(stage, node) for node in stage.nodes]
        reset = float(int(time.time()) + 2)
        stage.sim.faults.set("A", "usage_limit_reached", resets_at=int(reset), until=reset)
        assert not (await first.turn("one")).ok
        stage.sim.faults.add("A", Fault(do="silence"), times=1)
        await wait_until(lambda: time.time() > reset, within=5.0)
        trying = asyncio.create_task(first.turn("two"))
        await wait_until(lambda: len([t for t in stage.sim.turns if t.outcome == "active"]) == 1)

        stage.nodes[0].kill()
        killed = time.monotonic()
        served = None
        while served is None or not served.ok:
            served = await others[0].turn("one")
            assert time.monotonic() - killed < RECOVERS_WITHIN, served.error

        assert len(asked(stage, "A", reset)) == 2, "the one that was lost, and the next"
        trying.cancel()
        for client in (first, *others):
            await client.kill()


async def test_everything_goes_on_after_the_store_was_away_for_ten_seconds() -> None:
    async with cluster("A", "B") as stage:
        clients = [await opened(stage, node) for node in stage.nodes]
        for turn in await asyncio.gather(*(client.turn("one") for client in clients)):
            assert turn.ok
        reset = float(int(time.time()) + 5)
        stage.sim.faults.set("A", "usage_limit_reached", resets_at=int(reset), until=reset)
        for turn in await asyncio.gather(*(client.turn("two") for client in clients)):
            assert turn.ok, "whoever was at A is at B now"
        while await free_everywhere(stage, "A"):
            await (await opened(stage, stage.nodes[0])).turn("one")
        await asyncio.to_thread(stage.server.stop)
        away = time.monotonic()
        while time.monotonic() < away + 10.0:
            for turn in await asyncio.gather(*(client.turn("meanwhile") for client in clients)):
                assert turn.ok, turn.error
            await asyncio.sleep(0.2)
        await asyncio.to_thread(stage.server.start)
        back = time.monotonic()

        await until(lambda: free_everywhere(stage, "A"), within=RECOVERS_WITHIN)
        for turn in await asyncio.gather(*(client.turn("after") for client in clients)):
            assert turn.ok and not turn.problems, (turn.error, turn.problems)
        await until(lambda: leads(stage), within=RECOVERS_WITHIN)
        assert time.monotonic() - back < RECOVERS_WITHIN
        for client in clients:
            await client.kill()


async def leads(stage: Stage) -> bool:
    return bool(await leading(stage))
