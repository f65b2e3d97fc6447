"""Workers as real processes: killed, told to end, and stopped in their tracks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.store.connection import Connection, command
from broker.store.nodes import NodeStore
from tests import engines
from tests.scenarios.house import wait_until

ROOT = Path(__file__).parents[2]
LEASE = 2.0
SECRET = "sk-of-a-worker-and-nobody-else"

ACTING = """
import asyncio, sys
from broker.metrics import WorkerMetrics
from broker.store.connection import Connection, command
from broker.store.leases import LeaseStore
from workers.__main__ import make_progress, run_until

class Acts:
    name, every, alone = "act", 0.001, True
    def __init__(self, connection, name):
        self.connection, self.me = connection, name
    async def step(self):
        for _ in range(1000):
            await self.connection.ask(command("RPUSH", "acts", self.me))
            await asyncio.sleep(0.02)
        return ""

async def main(url, name):
    connection = Connection(url)
    duties = [Acts(connection, name)]
    progress = make_progress(duties, LeaseStore(connection), name, WorkerMetrics(), ttl=1.0)
    await run_until(asyncio.Event(), progress)

asyncio.run(main(*sys.argv[1:]))
"""
"""A worker whose only duty writes its name down again and again."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One `broker worker`."""

    def __init__(self, running: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.running = running
        self.port = port
        self.log = log

    def read(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=1.0) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def detail(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read("readyz") or "{}")
        return found

    @property
    def leads(self) -> bool:
        return "janitor" in self.detail().get("leads", [])

    async def ready(self) -> Process:
        await wait_until(lambda: self.running.returncode is not None or self.detail(), within=20.0)
        assert self.running.returncode is None, self.log.read_text()
        return self


Start = Callable[[], Awaitable[Process]]


@pytest.fixture
async def start(server: engines.Server, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a `broker worker`, ready when this returns; all are killed behind the test."""
    started: list[asyncio.subprocess.Process] = []
    numbers = itertools.count(1)

    async def begin() -> Process:
        name, port = f"host-{next(numbers)}", free_port()
        config = {
            "node": name,
            "redis_url": server.url,
            "tenants": [{"name": "team", "keys": [f"sha256:{'ab' * 32}"]}],
            "credentials": [{"name": "red", "vendor": "openai", "secret_env": "RED_KEY"}],
            "worker": {"operations_listen": f"127.0.0.1:{port}", "lease": LEASE},
            "log": {"format": "json"},
        }
        file, log = tmp_path / f"{name}.yaml", tmp_path / f"{name}.log"
        file.write_text(yaml.safe_dump(config))
        with log.open("wb") as output:
            running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "broker", "worker", "--config", str(file)),
                cwd=ROOT,
                env={**os.environ, "RED_KEY": SECRET},
                stdout=output,
                stderr=output,
            )
        started.append(running)
        return await Process(running, port, log).ready()

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait_for(process.wait(), 5.0)


async def both(start: Start) -> tuple[Process, Process]:
    """Two workers: the one that leads, and the other."""
    one, two = await asyncio.gather(start(), start())
    await wait_until(lambda: one.leads or two.leads)
    leader, other = (one, two) if one.leads else (two, one)
    assert leader.leads and not other.leads
    return leader, other


async def test_another_worker_takes_over_within_the_lease_when_the_leader_is_killed(
    start: Start, connection: Connection
) -> None:
    leader, other = await both(start)
    killed = time.monotonic()
    leader.running.kill()
    await wait_until(lambda: other.leads)
    assert time.monotonic() - killed < LEASE + 0.5
    metrics = other.read("metrics")
    assert 'broker_duty_leader{duty="janitor"} 1.0' in metrics and SECRET not in metrics
    # the leader shows the whole cluster, as soon as it has looked
    await wait_until(lambda: 'broker_cluster_nodes{role="worker"}' in other.read("metrics"))
    beats = await NodeStore(connection).nodes()
    assert {beat.role for beat in beats.values()} == {"worker"} and len(beats) == 2
    assert SECRET not in other.log.read_text() + leader.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_another_worker_takes_over_at_once_when_the_leader_is_told_to_end(
    start: Start, connection: Connection, number: signal.Signals
) -> None:
    leader, other = await both(start)
    told = time.monotonic()
    leader.running.send_signal(number)
    await wait_until(lambda: other.leads)
    assert time.monotonic() - told < 1.5
    assert await asyncio.wait_for(leader.running.wait(), 5.0) == 0
    names = set(await NodeStore(connection).nodes())
    assert names == {other.detail()["node"]}


async def test_a_signal_to_read_the_configuration_anew_ends_no_worker(start: Start) -> None:
    worker = await start()
    worker.running.send_signal(signal.SIGHUP)
    await wait_until(lambda: worker.leads)
    assert worker.running.returncode is None


async def test_ends_in_time_when_the_store_does_not_answer(start: Start, server: engines.Server) -> None:
    worker = await start()
    await wait_until(lambda: worker.leads)
    server.pause()
    worker.running.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.running.wait(), 5.0) == 0


async def test_a_worker_that_cannot_listen_says_so(start: Start, tmp_path: Path) -> None:
    worker = await start()
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker", "worker", "--config", str(tmp_path / "host-1.yaml")),
        cwd=ROOT,
        env={**os.environ, "RED_KEY": SECRET},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(running.communicate(), 20.0)
    assert running.returncode == 1
    assert f"127.0.0.1:{worker.port}: cannot listen" in said.decode() and "Traceback" not in said.decode()


async def acts(connection: Connection) -> list[str]:
    (names,) = await connection.ask(command("LRANGE", "acts", 0, -1))
    return [name.decode() for name in names]


async def until_acts(connection: Connection, name: str, more: int) -> None:
    """Wait until that worker has just acted, `more` times more than now."""
    known = (await acts(connection)).count(name)
    async with asyncio.timeout(10.0):
        while (await acts(connection)).count(name) < known + more:
            pass


async def test_a_leader_that_was_stopped_in_its_tracks_does_not_act_when_it_goes_on(
    server: engines.Server, connection: Connection
) -> None:
    async def begin(name: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, "-c", ACTING, server.url, name, cwd=ROOT)

    one = await begin("one")
    two: asyncio.subprocess.Process | None = None
    try:
        await until_acts(connection, "one", 1)
        two = await begin("two")
        # behind an act, for nothing can hold back what is being written at that very moment
        await until_acts(connection, "one", 5)
        one.send_signal(signal.SIGSTOP)
        await until_acts(connection, "two", 1)
        one.send_signal(signal.SIGCONT)
        await until_acts(connection, "two", 30)
        assert [name for name, _ in itertools.groupby(await acts(connection))] == ["one", "two"]
        # it is still there, and waits for its turn
        two.kill()
        await until_acts(connection, "one", 1)
    finally:
        for process in (one, two):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
