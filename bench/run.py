"""The benchmark: every relay once per round, in alternating order, and the medians of the ratios within a round.

`python -m bench.run` takes some minutes, `--quick` less than one. The figure is the on-CPU time of the process under
test from the scheduler's statistics; wall-clock throughput on two shared cores says more about the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    Measure("stepped", "CPU/frame", "us", _per_frame, {"seconds": 1.0}, {"seconds": 2.0}),
    Measure("burst", "CPU/frame", "us", _per_frame, {"seconds": 1.0}, {"seconds": 2.0}),
    Measure("turn", "CPU/turn", "us", _per_turn, {"seconds": 1.0}, {"seconds": 2.0}),
    Measure("latency", "frame p50", "us", _p50("frame_us"), {"seconds": 0.7}, {"seconds": 1.5}),
    Measure("full", "CPU/turn", "us", _per_turn, {"turns": 4}, {"turns": 6}),
    Measure("churn", "CPU/turn", "us", _per_turn, {"seconds": 0.7}, {"seconds": 1.5}),
)

TARGETS = {
    ("stepped", HAPROXY): 1.4,
    ("stepped", PLAIN): 0.65,
    ("burst", HAPROXY): 3.0,
    ("burst", PLAIN): 0.12,
    ("turn", HAPROXY): 4.0,
    ("latency", HAPROXY): 1.15,
}
"""The broker's figure as a multiple of the other's: at most this."""


def main() -> int:
    """Measure, print a table, write JSON. 1 where a target is missed and --strict was given."""
    arguments = _arguments()
    measures = [m for m in MEASURES if m.mode in arguments.modes]
    with Stand(encrypt=arguments.encrypt) as stand:
        relays = _start(stand, arguments.relays)
        rows = _rounds(stand, relays, measures, arguments.rounds, quick=arguments.quick)
    report = _report(rows, measures, [relay.name for relay in relays], arguments)
    _say(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    missed = [c for c in report["comparisons"] if c["met"] is False]
    return 1 if missed and arguments.strict else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds of stepped and burst")
    parser.add_argument("--rounds", type=int, help="default 7, quick 3")
    parser.add_argument("--modes", type=lambda text: text.split(","), help="of " + ",".join(m.mode for m in MEASURES))
    parser.add_argument(
        "--relays",
        type=lambda text: text.split(","),
        default=["bare", HAPROXY, PLAIN, PLAIN_UV, BROKER],
        help="of bare,haproxy,haproxy-http,aiohttp,aiohttp+uvloop,broker",
    )
    parser.add_argument("--encrypt", action="store_true", help="the broker encrypts transcripts, too")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--strict", action="store_true", help="exit status 1 where a target is missed")
    arguments = parser.parse_args()
    arguments.modes = arguments.modes or (["stepped", "burst"] if arguments.quick else [m.mode for m in MEASURES])
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 7)
    return arguments


def _start(stand: Stand, names: Sequence[str]) -> list[Relay]:
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
            _say(f"SKIPPED: {name}. This machine has no {missing}")
            continue
        if relay.command:
            relay.start(stand.folder)
        relays.append(relay)
    return relays


def _rounds(
    stand: Stand, relays: Sequence[Relay], measures: Sequence[Measure], rounds: int, *, quick: bool
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for measure in measures:
            # whoever runs last has a warmer or a busier machine; so everybody does in turn
            for relay in relays if number % 2 == 0 else relays[::-1]:
                result = stand.run(relay, measure.mode, **(measure.quick if quick else measure.full))
                rows.append({"round": number, "relay": relay.name, **result})
        _progress(f"round {number + 1} of {rounds}")
    return rows


def _report(
    rows: Sequence[dict[str, Any]], measures: Sequence[Measure], names: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    figures, comparisons = [], []
    for measure in measures:
        values = {
            name: [measure.of(row) for row in rows if row["relay"] == name and row["mode"] == measure.mode]
            for name in names
        }
        for name in names:
            mine = [row for row in rows if row["relay"] == name and row["mode"] == measure.mode]
            figures.append(_figure(measure, name, values[name], mine))
        if BROKER in names:
            comparisons += [
                _comparison(measure, name, values[BROKER], values[name])
                for name in names
                if name not in (BROKER, "bare")
            ]
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "load_average": os.getloadavg(),
        "rounds": arguments.rounds,
        "encrypted": arguments.encrypt,
        "figures": figures,
        "comparisons": comparisons,
        "rows": list(rows),
    }


def _figure(measure: Measure, name: str, values: Sequence[float], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds, frames = sum(row["seconds"] for row in rows), sum(row["frames"] for row in rows)
    return {
        "mode": measure.mode,
        "relay": name,
        "figure": measure.figure,
        "unit": measure.unit,
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "frames_per_second": frames / seconds,
        "load_busy": sum(row["own_cpu_s"] for row in rows) / seconds,
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


def table(report: dict[str, Any]) -> str:
    """What was measured, for people."""
    lines = [
        f"{'mode':9}{'relay':16}{'figure':11}{'median':>9}  {'low-high':17}{'frames/s':>10}{'load':>6}{'relay':>6}"
    ]
    for f in report["figures"]:
        spread = f"{f['low']:.2f}-{f['high']:.2f}"
        lines.append(
            f"{f['mode']:9}{f['relay']:16}{f['figure']:11}{f['median']:9.2f}  {spread:17}"
            f"{f['frames_per_second']:10,.0f}{f['load_busy']:6.0%}{f['relay_busy']:6.0%}"
        )
    lines += ["", f"{'mode':9}{'broker / ':16}{'figure':11}{'ratio':>9}  {'low-high':17}{'target':>10}"]
    for c in report["comparisons"]:
        spread = f"{c['low']:.2f}-{c['high']:.2f}"
        verdict = (
            "" if c["target"] is None else f"{'<= ' + format(c['target'], 'g'):>10}  {'met' if c['met'] else 'MISSED'}"
        )
        lines.append(f"{c['mode']:9}{c['against']:16}{c['figure']:11}{c['ratio']:9.2f}  {spread:17}{verdict}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _progress(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
