"""The longest stop of the loop by garbage collection while 2,000 sessions stay, some work, and others come and go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import pauses
from bench.finding import Finding, worst_of
from bench.holding import Holding
from bench.stand import Relay, Stand

SESSIONS = 2000
WORKING = 64
COMING = 32
SECONDS = 3.0
QUIET = 2.5
"""Seconds in which nothing runs: a node that puts its great collections off until then makes them now."""

PHASES = 2
MOST_ROUNDS = 2
"""A round takes a quarter of a minute, and its figure is a maximum: more rounds find the same collection again."""

TARGET_MS = 20.0


@dataclass(frozen=True)
class _Round:
    longest_ms: float
    longest_at_work_ms: float
    collections: int
    slowest_turn_ms: float


def collector(rounds: int) -> list[Finding]:
    """The longest pause in ms, and the slowest turn of a working session as its client saw it."""
    with Stand() as stand:
        found = [_round(stand, number) for number in range(min(rounds, MOST_ROUNDS))]
        plain = _measure(stand, _plain(stand), stand.folder / "plain.pauses")
    return [
        worst_of("collector", "longest pause", "ms", [one.longest_ms for one in found], TARGET_MS),
        worst_of("collector", "longest pause, aiohttp+uvloop", "ms", [plain.longest_ms]),
        worst_of("collector", "longest pause while some work", "ms", [one.longest_at_work_ms for one in found]),
        worst_of("collector", "collections of a round", "", [float(one.collections) for one in found]),
        worst_of("collector", "slowest turn", "ms", [one.slowest_turn_ms for one in found]),
        worst_of("collector", "slowest turn, aiohttp+uvloop", "ms", [plain.slowest_turn_ms]),
    ]


def _round(stand: Stand, number: int) -> _Round:
    file = stand.folder / f"broker-{number}.pauses"
    return _measure(stand, stand.broker(f"broker-{number}", module=("bench.pauses", str(file))), file)


def _plain(stand: Stand) -> Relay:
    return stand.plain(uvloop=True, module=("bench.pauses", str(stand.folder / "plain.pauses")))


def _measure(stand: Stand, relay: Relay, file: Path) -> _Round:
    relay.start(stand.folder)
    took: list[list[float]] = []
    turns: list[float] = []
    try:
        # looked at before they leave: that an empty node collects is nobody's concern, nor is what a start collects
        with Holding(stand, relay, sessions=SESSIONS) as load:
            for _ in range(PHASES):
                took.append(_during(file, lambda: turns.append(load.work(WORKING, COMING, SECONDS)["turn_us"]["max"])))
                took.append(_during(file, lambda: time.sleep(QUIET)))
    finally:
        relay.stop()
    everything = [ms for part in took for ms in part]
    at_work = [ms for part in took[::2] for ms in part]
    return _Round(max(everything, default=0.0), max(at_work, default=0.0), len(everything), max(turns) / 1e3)


def _during(file: Path, action: Callable[[], object]) -> list[float]:
    before = len(pauses.read(file))
    action()
    return [ms for _, ms in pauses.read(file)[before:]]
