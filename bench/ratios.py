"""The relays side by side: each once per round, in alternating order, and the medians of the ratios in a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.stand import Missing, Relay, Stand

HAPROXY, PLAIN, PLAIN_UV, BROKER = "haproxy", "aiohttp", "aiohttp+uvloop", "broker"


@dataclass(frozen=True)
class Measure:
    """One mode, and the figure that is read from it."""

    mode: str
    figure: str
    unit: str
    of: Callable[[dict[str, Any]], float]
    quick: dict[str, Any]
    full: dict[str, Any]


def _per_frame(result: dict[str, Any]) -> float:
    return float(result["cpu_ns"]) / 1e3 / float(result["frames"] or 1)


def _per_turn(result: dict[str, Any]) -> float:
    return float(result["cpu_ns"]) / 1e3 / float(result["turns"] or 1)


def _p50(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda result: float(result[name]["p50"])


MEASURES = (
    Measure("stepped", "CPU/frame", "us", _per_frame, {"seconds": 1.0}, {"seconds": 1.7}),
    Measure("burst", "CPU/frame", "us", _per_frame, {"seconds": 1.0}, {"seconds": 1.7}),
    Measure("turn", "CPU/turn", "us", _per_turn, {"seconds": 1.0}, {"seconds": 1.7}),
    Measure("latency", "frame p50", "us", _p50("frame_us"), {"seconds": 0.7}, {"seconds": 1.5}),
    Measure("full", "CPU/turn", "us", _per_turn, {"turns": 4}, {"turns": 6}),
    Measure("churn", "CPU/turn", "us", _per_turn, {"seconds": 0.7}, {"seconds": 1.5}),
)

LOAD_IS_THE_LIMIT = 0.9
"""Share of its core; from there on frames/s are what the load can do."""

TARGETS = {
    ("stepped", HAPROXY): 1.4,
    ("stepped", PLAIN): 0.65,
    ("burst", HAPROXY): 3.0,
    ("burst", PLAIN): 0.12,
    ("turn", HAPROXY): 4.0,
    ("latency", HAPROXY): 1.15,
}
"""The broker's figure as a multiple of the other's: at most this."""


def start(stand: Stand, names: Sequence[str], say: Callable[[str], None]) -> list[Relay]:
    """The relays of these names that this machine can run; what it cannot is said."""
    make: dict[str, Callable[[], Relay]] = {
        "bare": stand.bare,
        HAPROXY: stand.haproxy,
        "haproxy-http": lambda: stand.haproxy("http"),
        PLAIN: lambda: stand.plain(uvloop=False),
        PLAIN_UV: lambda: stand.plain(uvloop=True),
        BROKER: stand.broker,
    }
    relays = []
    for name in names:
        try:
            relay = make[name]()
        except Missing as missing:
            say(f"SKIPPED: {name}. This machine has no {missing}")
            continue
        if relay.command:
            relay.start(stand.folder)
        relays.append(relay)
    return relays


def measure_all(
    stand: Stand,
    relays: Sequence[Relay],
    measures: Sequence[Measure],
    rounds: int,
    *,
    quick: bool,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """What the load says about every relay, mode and round."""
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for measure in measures:
            # whoever runs last has a warmer or a busier machine; so everybody does in turn
            for relay in relays if number % 2 == 0 else relays[::-1]:
                result = stand.run(relay, measure.mode, **(measure.quick if quick else measure.full))
                rows.append({"round": number, "relay": relay.name, **result})
        progress(f"round {number + 1} of {rounds}")
    return rows


def figures_of(
    rows: Sequence[dict[str, Any]], measures: Sequence[Measure], names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each relay's figures, and how the broker's compare with each."""
    figures, comparisons = [], []
    for measure in measures:
        own = {name: [row for row in rows if row["relay"] == name and row["mode"] == measure.mode] for name in names}
        values = {name: [measure.of(row) for row in own[name]] for name in names}
        figures += [_figure(measure, name, values[name], own[name]) for name in names]
        others = [name for name in names if name not in (BROKER, "bare")] if BROKER in names else []
        comparisons += [_comparison(measure, name, values[BROKER], values[name]) for name in others]
    return figures, comparisons


def _figure(measure: Measure, name: str, values: Sequence[float], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds, frames = sum(row["seconds"] for row in rows), sum(row["frames"] for row in rows)
    load_busy = sum(row["own_cpu_s"] for row in rows) / seconds
    return {
        "mode": measure.mode,
        "relay": name,
        "figure": measure.figure,
        "unit": measure.unit,
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "frames_per_second": frames / seconds,
        "load_busy": load_busy,
        "load_is_the_limit": name != "bare" and load_busy > LOAD_IS_THE_LIMIT,
        "relay_busy": sum(row["cpu_ns"] for row in rows) / 1e9 / seconds,
        "store_us_per_turn": sum(row["also_ns"] for row in rows) / 1e3 / max(1, sum(row["turns"] for row in rows)),
    }


def _comparison(measure: Measure, name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    target = TARGETS.get((measure.mode, name))
    ratio = statistics.median(ratios)
    return {
        "mode": measure.mode,
        "figure": measure.figure,
        "against": name,
        "ratio": ratio,
        "low": min(ratios),
        "high": max(ratios),
        "target": target,
        "met": None if target is None else ratio <= target,
    }
