"""Counts the instructions that a turn takes, under valgrind: a figure that a busy machine does not change."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.holding import Holding
from bench.stand import Missing, Relay, Stand

SESSIONS = 16
WARM = 2
PARTS = 3
PATIENCE = 60.0
READY_WITHIN = 120.0
"""Seconds; everything is some ten times slower under valgrind."""

_TOTAL = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Count:
    """One mode: every session has `turns` turns in every part, and `per_turn` units are counted in each."""

    mode: str
    unit: str
    turns: int
    per_turn: int


COUNTS = (
    Count("stepped", "frame", 3, 204),
    Count("burst", "frame", 5, 204),
    Count("turn", "turn", 10, 1),
)
"""So many turns that a part has some hundred million instructions: what the node's clocks do vanishes in that."""


def count() -> dict[str, float]:
    """Instructions by mode, for a frame or a turn: the least of some parts, as what comes on top is not the turns'."""
    found = {}
    with Stand() as stand:
        counter = _Counter(stand)
        counter.start()
        for each in COUNTS:
            units = SESSIONS * each.turns * each.per_turn
            found[each.mode] = min(_parts(stand, counter, each)) / units
    return found


def _parts(stand: Stand, counter: _Counter, each: Count) -> Sequence[int]:
    with Holding(stand, counter.relay, mode=each.mode, sessions=SESSIONS) as load:
        load.turns(0, SESSIONS, WARM)  # the interpreter and the caches of the broker learn
        return [counter.during(lambda: load.turns(0, SESSIONS, each.turns)) for _ in range(PARTS)]


class _Counter:
    """A broker under callgrind, which is told from outside when to count."""

    def __init__(self, stand: Stand) -> None:
        tools = [shutil.which(name) for name in ("valgrind", "callgrind_control")]
        if None in tools:
            raise Missing("valgrind: apt-get install valgrind")
        self._folder = stand.folder
        self._dumps = 0
        wrapper = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",  # the start would take a minute otherwise, and is nobody's concern
            f"--callgrind-out-file={self._folder / 'callgrind'}",
            f"--log-file={self._folder / 'valgrind.log'}",
        ]
        self.relay: Relay = stand.broker("counted", wrapper=wrapper)
        self.relay.ready_within = READY_WITHIN
        # the order of sets and the clashes of dictionaries shall be the same every time
        self.relay.environ = {**self.relay.environ, "PYTHONHASHSEED": "0"}

    def start(self) -> None:
        """Start it, and begin to follow it."""
        self.relay.start(self._folder)
        self._tell("-i", "on")

    def during(self, action: Callable[[], object]) -> int:
        """The instructions of this process while something is done."""
        self._tell("-z")
        action()
        self._tell("-d")
        self._dumps += 1
        totals = _TOTAL.findall((self._folder / f"callgrind.{self._dumps}").read_text())
        return int(totals[-1])

    def _tell(self, *words: str) -> None:
        pid = str(self.relay.pids[0])
        try:
            subprocess.run(["callgrind_control", *words, pid], check=True, capture_output=True, timeout=PATIENCE)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise Missing(f"valgrind that can be told what to do: {error}") from error
