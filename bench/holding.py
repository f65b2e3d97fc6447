"""A load that holds its sessions and does what it is told, so that one can look at the relay in between."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import IO, Any

from bench.stand import LoadFailed, Relay, Stand
from broker.embedded import ends_with_parent

PATIENCE = 60.0
"""Seconds that one order may take; then the load is killed, so that nobody waits for its answer for ever."""


class Holding:
    """A load whose sessions are connected and have had one turn. Use as a context manager.

    Every method returns when what it asks for is done, and raises `LoadFailed` if it did not go well.
    """

    def __init__(self, stand: Stand, relay: Relay, *, mode: str = "idle", **options: Any) -> None:
        self._name = f"{relay.name}, {mode}"
        self._process = subprocess.Popen(
            stand.command(relay, mode, hold=1, **options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=ends_with_parent(),
        )

    def __enter__(self) -> Holding:
        try:
            self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._leave()
        finally:
            self._end()

    def turns(self, first: int, count: int, times: int) -> None:
        """`count` sessions from `first` on have a turn each, `times` times over."""
        self._order(f"turns {first} {count} {times}")

    def work(self, some: int, coming: int, seconds: float) -> dict[str, Any]:
        """The first `some` sessions work, and the first `coming` of them come and go; the others wait."""
        return self._order(f"work {some} {coming} {seconds}")

    def ask(self, session: int) -> None:
        """Send one request; it has arrived at the upstream, which says nothing yet."""
        self._order(f"ask {session}")

    def answer(self, session: int) -> None:
        """The upstream answers what was asked, and the client has all of it."""
        self._order(f"answer {session}")

    def _order(self, line: str) -> dict[str, Any]:
        pipe = _opened(self._process.stdin)
        try:
            pipe.write(line + "\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._failed() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        killer = threading.Timer(PATIENCE, self._process.kill)
        killer.start()
        try:
            line = _opened(self._process.stdout).readline()
        finally:
            killer.cancel()
        if not line or "errors" in line:  # the report that a load makes at its end, so this one has given up
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _leave(self) -> None:
        out, complaints = self._process.communicate(timeout=PATIENCE)
        if self._process.returncode != 0:
            raise LoadFailed(f"{self._name}: {complaints.strip()[-2000:]}\n{out.strip()[-1000:]}")

    def _failed(self) -> LoadFailed:
        _, complaints = self._process.communicate(timeout=PATIENCE)
        return LoadFailed(f"{self._name}: {complaints.strip()[-2000:]}")

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def _opened(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
