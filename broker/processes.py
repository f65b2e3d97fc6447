"""Several processes of one node: started, restarted, told to stop, and outlived by nothing."""

from __future__ import annotations

import contextlib
import logging
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.embedded import ends_with_parent

logger = logging.getLogger(__name__)

RESTARTS_PER_MINUTE = 5
# Seconds from the first signal to SIGKILL. A node ends its turns well before; this is for one that hangs.
GRACE = 600.0
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True)
class _Child:
    index: int
    process: subprocess.Popen[bytes] | None = None
    restarts: list[float] = field(default_factory=list)
    due: float = 0.0  # when it is to be started

    @property
    def running(self) -> bool:
        return self.process is not None


class Supervisor:
    """Keeps `count` children of one command running until a signal ends them, or one of them dies too often.

    `command(index)` is a child's argument list; `errand` is written to its standard input, which then closes: the way
    for what must not stand in an argument list. Every child gets the signals of the supervisor, and on Linux SIGTERM
    when the supervisor dies. `run()` belongs to the main thread.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        count: int,
        *,
        errand: bytes = b"",
        environ: Mapping[str, str] | None = None,
        backoff: float = 0.2,
        grace: float = GRACE,
    ) -> None:
        self._command = command
        self._children = [_Child(index) for index in range(count)]
        self._errand = errand
        self._environ = dict(environ) if environ is not None else None
        self._backoff = backoff
        self._grace = grace
        self._signals: list[signal.Signals] = []
        self._status = 0
        self._kill_at: float | None = None

    def run(self) -> int:
        """Run until all children are gone. 0 after a signal, 1 when a child died too often."""
        with _woken_by_signals(self._signals.append) as wake:
            try:
                while self._step():
                    _wait(wake, self._patience())
            finally:
                self._kill_all()
        return self._status

    def _step(self) -> bool:
        """One look at signals, children and the clock; False when there is nothing left to look after."""
        self._forward()
        for child in self._children:
            self._reap(child)
        now = time.monotonic()
        if self._kill_at is not None and now > self._kill_at:
            logger.error("children that did not end in time are killed")
            self._kill_all()
        for child in self._children:
            if self._kill_at is None and not child.running and now >= child.due:
                self._start(child)
        return self._kill_at is None or any(child.running for child in self._children)

    def _forward(self) -> None:
        while self._signals:
            sent = self._signals.pop(0)
            if sent is not signal.SIGHUP:
                self._stop()
            self._send(sent)

    def _stop(self) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace

    def _send(self, sent: signal.Signals) -> None:
        for child in self._children:
            if child.process is not None:
                child.process.send_signal(sent)

    def _start(self, child: _Child) -> None:
        child.process = subprocess.Popen(
            self._command(child.index),
            stdin=subprocess.PIPE,
            env=self._environ,
            # A terminal sends its Ctrl-C to a whole group; the children get it from here, once.
            start_new_session=True,
            preexec_fn=ends_with_parent(),
        )
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.process.stdin as pipe:
            pipe.write(self._errand)

    def _reap(self, child: _Child) -> None:
        if child.process is None or child.process.poll() is None:
            return
        process, child.process = child.process, None
        self._forget_gauges(process.pid)
        if self._kill_at is not None:
            return
        now = time.monotonic()
        child.restarts = [moment for moment in child.restarts if now - moment < 60.0]
        if len(child.restarts) >= RESTARTS_PER_MINUTE:
            self._give_up(child, process.returncode)
            return
        child.restarts.append(now)
        child.due = now + self._backoff * 2 ** (len(child.restarts) - 1)
        logger.error(
            "process %d ended and is started again",
            child.index,
            extra={"status": process.returncode, "attempt": len(child.restarts)},
        )

    def _give_up(self, child: _Child, status: int) -> None:
        logger.critical("process %d keeps ending, so the node stops", child.index, extra={"status": status})
        self._status = 1
        self._stop()
        self._send(signal.SIGTERM)

    def _forget_gauges(self, pid: int) -> None:
        """Drop the live gauges of a dead process, as the metrics library asks for."""
        folder = (self._environ or {}).get("PROMETHEUS_MULTIPROC_DIR")
        for file in Path(folder).glob(f"gauge_live*_{pid}.db") if folder else ():
            file.unlink(missing_ok=True)

    def _patience(self) -> float:
        """Seconds until something is due. A child's end wakes it earlier."""
        now = time.monotonic()
        due = [child.due for child in self._children if not child.running] if self._kill_at is None else [self._kill_at]
        return max(0.0, min((moment - now for moment in due), default=60.0))

    def _kill_all(self) -> None:
        for child in self._children:
            if child.process is not None:
                child.process.kill()
                child.process.wait()


@contextlib.contextmanager
def metrics_folder() -> Iterator[Path]:
    """A fresh folder in which several processes share their metrics; gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="broker-metrics-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _woken_by_signals(note: Callable[[signal.Signals], None]) -> Iterator[socket.socket]:
    """Signals go to `note` and make the socket readable, a child's end only the latter; all is put back at the end."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda sent, _: note(signal.Signals(sent))) for number in _FORWARDED} | {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None)
    }
    woke = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woke)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _wait(wake: socket.socket, seconds: float) -> None:
    select.select([wake], [], [], seconds)
    with contextlib.suppress(BlockingIOError):
        wake.recv(4096)
