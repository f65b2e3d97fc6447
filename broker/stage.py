"""A stage for demonstrations and soaks: an embedded server, a simulated vendor, and real node and worker processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from broker.embedded import EmbeddedServer, ends_with_parent
from broker.simulator import HttpClient, SessionClient, SimCredential, Simulator

CLIENT_KEY = "sbk_a-key-of-the-stage-and-of-nothing-else"
READY_WITHIN = 20.0


@dataclass
class StageProcess:
    """One process of the broker on the stage: what `broker COMMAND --config` runs."""

    command: str
    name: str
    config: Path
    operations_port: int
    environ: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def launch(self) -> None:
        """Start the process; `Stage.ready` waits for it."""
        self.process = _spawn([self.command, "--config", str(self.config)], self.environ, self.log)

    def kill(self) -> None:
        """SIGKILL: what was in its memory is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(5)


@dataclass
class NodeProcess(StageProcess):
    """One node; `counted` is what its counters last said, `past` what those of its killed forerunners did."""

    port: int = 0
    counted: dict[str, float] = field(default_factory=dict)
    past: dict[str, float] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        """Where its clients connect to."""
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """SIGKILL: what was in its memory is gone."""
        super().kill()
        for key, value in self.counted.items():
            self.past[key] = self.past.get(key, 0.0) + value
        self.counted = {}


def _spawn(arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "broker", *arguments],
            stdout=out,
            stderr=out,
            env={**os.environ, **environ},
            preexec_fn=ends_with_parent(signal.SIGKILL),
        )


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stage:
    """Everything a demonstration needs, in a folder of its own that goes with it. Use as an async context manager.

    `settings` are those of the configuration, `each` those of every credential in it, `own` those of one by its name.
    """

    def __init__(
        self,
        credentials: Sequence[SimCredential],
        *,
        nodes: int = 2,
        workers: int = 1,
        settings: Mapping[str, Any] | None = None,
        each: Mapping[str, Any] | None = None,
        own: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        self.credentials = list(credentials)
        self.sim = Simulator(self.credentials, **options)
        self.nodes: list[NodeProcess] = []
        self.workers: list[StageProcess] = []
        self._count, self._workers = nodes, workers
        self._settings, self._each, self._own = dict(settings or {}), dict(each or {}), dict(own or {})
        self._folder = tempfile.TemporaryDirectory(prefix="session-broker-")
        self.folder = Path(self._folder.name)
        self.server = EmbeddedServer(str(self.folder / "data"))

    async def __aenter__(self) -> Stage:
        self.server.start()
        await self.sim.start()
        environ = {f"STAGE_SECRET_{c.name}": c.secret for c in self.credentials}
        for index in range(self._count):
            self.nodes.append(self._node(f"node-{index + 1}", environ))
        for index in range(self._workers):
            self.workers.append(self._worker(f"worker-{index + 1}", environ))
        for process in (*self.nodes, *self.workers):
            process.launch()
        await asyncio.gather(*map(self.ready, (*self.nodes, *self.workers)))
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [each.process for each in (*self.nodes, *self.workers) if each.process is not None and each.running]
        for process in running:
            process.terminate()
        for process in running:
            await asyncio.to_thread(_end, process)
        await self.sim.stop()
        self.server.stop()
        self._folder.cleanup()

    def _node(self, name: str, environ: Mapping[str, str]) -> NodeProcess:
        port, operations_port = free_port(), free_port()
        config = self.folder / f"{name}.yaml"
        config.write_text(json.dumps(self._config(name, port, operations_port), indent=2))
        log = self.folder / f"{name}.log"
        return NodeProcess("serve", name, config, operations_port, environ, log, port=port)

    def _worker(self, name: str, environ: Mapping[str, str]) -> StageProcess:
        operations_port = free_port()
        config = self.folder / f"{name}.yaml"
        settings = self._config(name, free_port(), free_port())
        settings["worker"] = {"operations_listen": f"127.0.0.1:{operations_port}"}
        config.write_text(json.dumps(settings, indent=2))
        return StageProcess("worker", name, config, operations_port, environ, self.folder / f"{name}.log")

    def _config(self, name: str, port: int, operations_port: int) -> dict[str, Any]:
        return {
            "node": name,
            "listen": f"127.0.0.1:{port}",
            "operations_listen": f"127.0.0.1:{operations_port}",
            "redis_url": self.server.url,
            "tenants": [{"name": "stage", "keys": [f"sha256:{hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}"]}],
            "credentials": [
                {
                    "name": c.name,
                    "vendor": "custom",
                    "base_url": self.sim.base_url,
                    "secret_env": f"STAGE_SECRET_{c.name}",
                    "boundary": c.boundary,
                    "limit_group": c.name,
                    **self._each,
                    **self._own.get(c.name, {}),
                }
                for c in self.credentials
            ],
            "log": {"level": "info", "format": "json"},
            **self._settings,
        }

    async def ready(self, node: StageProcess) -> None:
        """Wait until a process says that it is ready; bounded."""
        deadline = time.monotonic() + READY_WITHIN
        async with aiohttp.ClientSession() as http:
            while time.monotonic() < deadline:
                if not node.running:
                    break
                try:
                    async with http.get(f"http://127.0.0.1:{node.operations_port}/readyz") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.02)
        raise RuntimeError(f"{node.name} did not get ready:\n{node.log.read_text()[-2000:]}")

    def client(self, node: NodeProcess, **more: Any) -> SessionClient:
        """An agent that checks every answer, not yet connected."""
        return SessionClient(node.base_url, CLIENT_KEY, **more)

    def http_client(self, node: NodeProcess, **more: Any) -> HttpClient:
        """The same over HTTP."""
        return HttpClient(node.base_url, CLIENT_KEY, **more)

    async def counters(self) -> dict[str, float]:
        """The counters of all nodes, summed, as `name{label=value,...}`; of a killed node what was last read."""
        total: dict[str, float] = {}
        async with aiohttp.ClientSession() as http:
            for node in self.nodes:
                if node.running:
                    async with http.get(f"http://127.0.0.1:{node.operations_port}/metrics") as response:
                        node.counted = _samples(await response.text())
                for key, value in (*node.past.items(), *node.counted.items()):
                    total[key] = total.get(key, 0.0) + value
        return total


def _samples(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
