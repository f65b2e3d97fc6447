"""What operators read of a worker, over its real listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.config import load, resolve_secrets
from broker.config.pool import pool
from broker.domain.health import HealthReport, HealthState, credential_subject
from broker.simulator import SimCredential, Simulator
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.health import HealthStore
from tests import engines
from tests.scenarios.house import wait_until
from workers.__main__ import Worker

CONFIG = """
node: here
redis_url: {url}
tenants: [{{name: team, keys: ["sha256:{digest}"]}}]
credentials: [{{name: red, vendor: custom, base_url: "{base_url}", secret_env: RED_KEY}}]
worker: {{operations_listen: "127.0.0.1:0", lease: 1s}}
store: {{timeout: 300ms, connect_timeout: 200ms}}
"""


class Reader:
    """A worker in this process, read from outside."""

    def __init__(self, worker: Worker, http: aiohttp.ClientSession) -> None:
        self.worker = worker
        self._http = http

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.worker.listener.port}/{path}"

    async def detail(self) -> tuple[int, dict[str, Any]]:
        async with self._http.get(self._url("readyz")) as answer:
            return answer.status, await answer.json()

    async def metrics(self) -> dict[tuple[str, ...], float]:
        """The samples by name and values of labels."""
        async with self._http.get(self._url("metrics")) as answer:
            families = text_string_to_metric_families(await answer.text())
            samples = [sample for family in families for sample in family.samples]
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}

    async def livez(self) -> dict[str, Any]:
        async with self._http.get(self._url("livez")) as answer:
            found: dict[str, Any] = await answer.json()
            return found


@pytest.fixture
async def reader(server: engines.Server, tmp_path: Path) -> AsyncIterator[Reader]:
    async with a_worker(server, tmp_path) as made:
        yield made


@asynccontextmanager
async def a_worker(
    server: engines.Server, folder: Path, base_url: str = "http://127.0.0.1:1/v1"
) -> AsyncIterator[Reader]:
    file = folder / "broker.yaml"
    file.write_text(CONFIG.format(url=server.url, digest="ab" * 32, base_url=base_url))
    config = load(file)
    secrets = resolve_secrets(config, {"RED_KEY": "sk-red"})
    assert secrets.redis_url is not None
    worker = Worker(config, pool(config, secrets), secrets.redis_url)
    running = asyncio.create_task(worker.run("127.0.0.1", 0))
    await wait_until(lambda: worker.listener.port)
    async with aiohttp.ClientSession() as http:
        yield Reader(worker, http)
    worker.stopping.set()
    await asyncio.wait_for(running, 6.0)


async def until_led(reader: Reader) -> None:
    await wait_until(lambda: reader.worker.outlook.leads())


async def test_readiness_tells_the_store_the_duties_and_what_it_leads(reader: Reader) -> None:
    await until_led(reader)
    status, detail = await reader.detail()
    assert status == 200 and detail["status"] == "ready" and detail["store"] == "ok" and not detail["degraded"]
    assert detail["node"].startswith("here-worker-") and (await reader.livez())["status"] == "alive"
    assert detail["leads"] == ["janitor"]
    duties = detail["duties"]
    assert duties["janitor"]["alone"] and duties["janitor"]["leading"] and not duties["heartbeat"]["alone"]
    assert all(0 <= duty["age"] < 5 for duty in duties.values())


async def test_a_store_that_is_away_makes_a_worker_degraded_and_its_duties_old(
    reader: Reader, server: engines.Server
) -> None:
    await until_led(reader)
    server.pause()
    await wait_until(lambda: not reader.worker.outlook.leads())
    status, detail = await reader.detail()
    assert status == 200 and detail["store"] == "away" and detail["degraded"] and detail["leads"] == []
    assert (await reader.livez())["status"] == "alive"
    old = (await reader.metrics())["broker_duty_age_seconds", "heartbeat"]
    server.resume()
    assert old > 0.5
    await until_led(reader)
    await wait_until(lambda: reader.worker.progress[0].age < 0.5)


async def test_a_worker_that_ends_is_not_ready(server: engines.Server, tmp_path: Path) -> None:
    async with a_worker(server, tmp_path) as reader:
        await until_led(reader)
        server.pause()  # it has something to wait for
        reader.worker.stopping.set()
        status, detail = await reader.detail()
        assert status == 503 and detail["status"] == "stopping"
        server.resume()


async def test_metrics_tell_the_steps_and_who_leads(reader: Reader) -> None:
    await until_led(reader)
    await wait_until(lambda: reader.worker.progress[0].age < 0.5)
    metrics = await reader.metrics()
    assert metrics["broker_duty_leader", "janitor"] == metrics["broker_duty_leader", "heartbeat"] == 1
    assert metrics["broker_duty_steps_total", "heartbeat", "idle"] >= 1
    assert 0 <= metrics["broker_duty_age_seconds", "heartbeat"] < 2
    assert metrics["process_start_time_seconds",] > 0


async def test_only_the_one_that_leads_shows_the_cluster(reader: Reader, connection: Connection) -> None:
    await until_led(reader)
    shown = await reader.metrics()
    async with asyncio.timeout(5):
        while ("broker_cluster_nodes", "worker") not in shown:
            shown = await reader.metrics()
    assert shown["broker_cluster_credential_state", "red", "healthy"] == 1
    await connection.ask(command("SET", keys.lease("duty:janitor"), "another", "PX", 60_000))
    await wait_until(lambda: not reader.worker.outlook.leads())
    metrics = await reader.metrics()
    assert metrics["broker_duty_leader", "janitor"] == 0
    assert not [name for name, *_ in metrics if name.startswith("broker_cluster_")]


async def test_a_worker_beats_as_one_and_says_what_it_leads(reader: Reader) -> None:
    await until_led(reader)
    async with asyncio.timeout(5):
        while (beat := (await reader.worker.nodes.nodes()).get(reader.worker.name)) is None or not beat.load["leads"]:
            pass
    assert beat.role == "worker" and beat.load == {"leads": ["janitor"]}


async def test_what_is_blocked_is_probed_and_counted(
    server: engines.Server, tmp_path: Path, connection: Connection
) -> None:
    simulator = Simulator([SimCredential("red", "sk-red", "org")])
    await simulator.start()
    async with a_worker(server, tmp_path, simulator.base_url) as reader:
        (red,) = reader.worker.credentials
        subject, table = credential_subject(red), HealthStore(connection)
        await table.report(HealthReport(subject, HealthState.REVOKED, lasting=0.05, because="test"))
        async with asyncio.timeout(5):
            while (await table.table()).rows[subject].state is HealthState.REVOKED:
                pass
        async with asyncio.timeout(5):
            while (await reader.metrics()).get(("broker_probes_total", "red", "served")) != 1:
                pass
        assert [handshake.credential for handshake in simulator.handshakes] == ["red"]
    await simulator.stop()
