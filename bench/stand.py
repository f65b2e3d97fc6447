"""The stand: the relays under test, each pinned to one core, and the load generator on the other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.embedded import EmbeddedServer, ends_with_parent

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = HERE / ".build"

CLIENT_KEY = "sbk_a-key-of-the-benchmark-and-of-nothing-else"
SECRETS = {f"BENCH_SECRET_{number}": f"sk-bench-{number}" for number in range(16)}
READY_WITHIN = 30.0

LOAD_CORE = 0
RELAY_CORE = 1


class Missing(Exception):
    """Something that a measurement needs is not on this machine; the text says what to install."""


class LoadFailed(Exception):
    """The load generator found frames that were lost, doubled, out of order or changed, or a relay that stalls."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build_load() -> Path:
    """The load generator, compiled if its source is newer."""
    source, binary = HERE / "load.c", BUILD / "load"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Missing("a C compiler: apt-get install gcc libc6-dev")
    BUILD.mkdir(exist_ok=True)
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(binary), str(source)], check=True)
    return binary


def cores() -> tuple[int, int]:
    """The cores of the load and of the relay. On one core they share it, which costs both alike."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[LOAD_CORE % len(usable)], usable[RELAY_CORE % len(usable)]


def _on_core(core: int) -> Callable[[], None]:
    die = ends_with_parent(signal.SIGKILL)

    def prepare() -> None:
        if die is not None:
            die()
        os.sched_setaffinity(0, {core})

    return prepare


@dataclass
class Relay:
    """One relay under test. `pids` are measured; `also` (the store) is counted beside them."""

    name: str
    port: int
    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    ready_port: int = 0
    ready_path: str = ""
    ready_within: float = READY_WITHIN
    listeners: int = 1
    core: int = RELAY_CORE
    also: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    start_seconds: float = 0.0

    @property
    def pids(self) -> list[int]:
        """The process and its children, if it runs."""
        return _family(self.process.pid) if self.process is not None else []

    def start(self, folder: Path) -> None:
        """Start it and wait until it serves."""
        self.log = folder / f"{self.name}.log"
        began = time.monotonic()
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env={**os.environ, **self.environ},
                preexec_fn=_on_core(self.core),
            )
        while not self._serves():
            if self.process.poll() is not None or time.monotonic() > began + self.ready_within:
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.005)
        self.start_seconds = time.monotonic() - began

    def _serves(self) -> bool:
        if self.listeners > 1 and _listeners(self.port) < self.listeners:
            return False
        try:
            with socket.create_connection(("127.0.0.1", self.ready_port or self.port), 1.0) as probe:
                if not self.ready_path:
                    return True
                probe.sendall(f"GET {self.ready_path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                return probe.recv(64).split(b" ")[1:2] == [b"200"]
        except OSError:
            return False

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not heard."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        self.process = None


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                found.extend(_family(int(child)))
    return found


def _listeners(port: int) -> int:
    """How many sockets listen on a port: a connection that succeeds tells of one of several processes only."""
    wanted = f":{port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[1].endswith(wanted) and row[3] == "0A" for row in rows)


class Stand:
    """A folder, a store and the relays. Use as a context manager: all of it ends with it."""

    def __init__(self, *, encrypt: bool = False) -> None:
        self.load = build_load()
        self.upstream_port = free_port()
        self.load_core, self.relay_core = cores()
        self.relays: list[Relay] = []
        self._encrypt = encrypt
        self._folder = tempfile.TemporaryDirectory(prefix="broker-bench-")
        self.folder = Path(self._folder.name)
        self.server = EmbeddedServer(self.folder / "data")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._max_clients = min(10000, (hard - 200) // 2)  # two sockets each

    def __enter__(self) -> Stand:
        try:
            self.server.start()
            if self.server.pid is not None:
                os.sched_setaffinity(self.server.pid, {self.load_core})
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self.relays:
            relay.stop()
        self.server.stop()
        self._folder.cleanup()

    # --- the relays ---

    def bare(self) -> Relay:
        """No relay: clients talk to the upstream itself. Shows what the load generator can do."""
        return Relay("bare", self.upstream_port, ())

    def haproxy(self, mode: str = "tcp") -> Relay:
        """HAProxy, one thread; `mode` tcp passes bytes, http passes the upgrade and then tunnels."""
        binary = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            raise Missing("HAProxy: apt-get install haproxy")
        port = free_port()
        config = self.folder / f"haproxy-{mode}.cfg"
        config.write_text(
            f"global\n  nbthread 1\n  maxconn {self._max_clients}\n"
            f"defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            f"  timeout tunnel 1h\n"
            f"frontend clients\n  bind 127.0.0.1:{port} backlog 4096\n  default_backend upstream\n"
            f"backend upstream\n  server one 127.0.0.1:{self.upstream_port}\n"
        )
        name = "haproxy" if mode == "tcp" else f"haproxy-{mode}"
        return self._add(Relay(name, port, (binary, "-db", "-f", str(config)), core=self.relay_core))

    def plain(self, *, uvloop: bool, module: Sequence[str] = ()) -> Relay:
        """The relay that one would write first. `module` runs it, where that is not Python alone."""
        port = free_port()
        command = [sys.executable, "-m", *module, "bench.relay", str(port), str(self.upstream_port)]
        name = "aiohttp+uvloop" if uvloop else "aiohttp"
        return self._add(Relay(name, port, command + ["--uvloop"] * uvloop, core=self.relay_core))

    def broker(
        self,
        name: str = "broker",
        *,
        processes: int = 1,
        credentials: int = 1,
        wrapper: Sequence[str] = (),
        module: Sequence[str] = (),
        **settings: Any,
    ) -> Relay:
        """The broker in full dress: client keys, the hold, transcripts, commits to a real server, metrics.

        `wrapper` goes before the interpreter (valgrind), `module` before the broker's own (something that runs it).
        """
        port, operations = free_port(), free_port()
        config = self.folder / f"{name}.yaml"
        config.write_text(
            json.dumps(self._config(name, port, operations, list(SECRETS)[:credentials], settings), indent=2)
        )
        command = [*wrapper, sys.executable, "-m", *module, "broker", "serve", "--config", str(config)]
        command += ["--processes", str(processes)] if processes > 1 else []
        return self._add(
            Relay(
                name,
                port,
                command,
                {**SECRETS, "BENCH_TRANSCRIPT_KEY": "00" * 32},
                ready_port=operations,
                ready_path="/readyz",
                listeners=processes,
                core=self.relay_core,
                also=(self.server.pid,) if self.server.pid is not None else (),
            )
        )

    def _config(
        self, name: str, port: int, operations: int, secrets: Sequence[str], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "node": name,
            "listen": f"127.0.0.1:{port}",
            "operations_listen": f"127.0.0.1:{operations}",
            "redis_url": self.server.url,
            "tenants": [{"name": "bench", "keys": [f"sha256:{hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}"]}],
            "credentials": [self._credential(number, secret) for number, secret in enumerate(secrets)],
            "limits": {"max_sockets": 10000},
            "log": {"level": "error", "format": "json"},
            **({"session": {"encryption_key_env": "BENCH_TRANSCRIPT_KEY"}} if self._encrypt else {}),
            **settings,
        }

    def _credential(self, number: int, secret: str) -> dict[str, Any]:
        return {
            "name": f"key-{number}",
            "vendor": "custom",
            "base_url": f"http://127.0.0.1:{self.upstream_port}/v1",
            "secret_env": secret,
            "boundary": "bench",
        }

    def _add(self, relay: Relay) -> Relay:
        self.relays.append(relay)
        return relay

    # --- the load ---

    def command(self, relay: Relay, mode: str, **options: Any) -> list[str]:
        """The load generator's command line against one relay."""
        given: dict[str, Any] = {
            "mode": mode,
            "core": self.load_core,
            "upstream-port": self.upstream_port,
            "relay-port": relay.port,
            "key": CLIENT_KEY,
            "pids": ",".join(map(str, relay.pids)) or "0",
            "also": ",".join(map(str, relay.also)) or "0",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        return [str(self.load), *(str(part) for name, value in given.items() for part in (f"--{name}", value))]

    def run(self, relay: Relay, mode: str, **options: Any) -> dict[str, Any]:
        """One measured phase. Raises `LoadFailed` where a single byte was not as it should be."""
        done = subprocess.run(
            self.command(relay, mode, **options),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=ends_with_parent(),
        )
        if done.returncode != 0:
            raise LoadFailed(f"{relay.name}, {mode}: {done.stderr.strip()[-2000:]}\n{done.stdout.strip()[-1000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
