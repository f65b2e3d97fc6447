"""The benchmark: what relaying costs beside other relays, and what else has a target.

`python -m bench.run` takes some minutes, `--quick` less than one. The figure is the on-CPU time of the process under
test from the scheduler's statistics; wall-clock throughput on two shared cores says more about the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import peers
from bench.cases.collector import collector
from bench.cases.failover import failover
from bench.cases.first import first
from bench.cases.idle import idle
from bench.cases.processes import processes
from bench.cases.start import start
from bench.cases.store import store
from bench.finding import Finding
from bench.ratios import BROKER, HAPROXY, MEASURES, PLAIN, PLAIN_UV, figures_of, measure_all
from bench.ratios import start as start_relays
from bench.stand import Missing, Stand

CASES: dict[str, Callable[[int], list[Finding]]] = {
    "first": first,
    "failover": failover,
    "processes": processes,
    "start": start,
    "store": store,
    "idle": idle,
    "collector": collector,
}
"""What is not a ratio of relays; each has a stand of its own, so that nothing else talks to its store."""

MODES = (*(measure.mode for measure in MEASURES), *CASES)


def main() -> int:
    """Measure, print a table, write JSON. 1 where a target is missed and --strict was given."""
    arguments = _arguments()
    report = _measure(arguments)
    _say(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    rows = report["comparisons"] + report["findings"] + report["peers"].get("figures", [])
    missed = [row for row in rows if row.get("met") is False]
    return 1 if missed and arguments.strict else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds of stepped and burst")
    parser.add_argument("--rounds", type=int, help="default 7, quick 3")
    parser.add_argument("--modes", type=lambda text: text.split(","), help="of " + ",".join(MODES))
    parser.add_argument(
        "--relays",
        type=lambda text: text.split(","),
        default=["bare", HAPROXY, PLAIN, PLAIN_UV, BROKER],
        help="of bare,haproxy,haproxy-http,aiohttp,aiohttp+uvloop,broker",
    )
    parser.add_argument("--encrypt", action="store_true", help="the broker encrypts transcripts, too")
    parser.add_argument("--peers", action="store_true", help="LiteLLM's proxy as well; installs it into bench/.peers")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--strict", action="store_true", help="exit status 1 where a target is missed")
    arguments = parser.parse_args()
    arguments.modes = arguments.modes or (["stepped", "burst"] if arguments.quick else list(MODES))
    if unknown := set(arguments.modes) - set(MODES):
        parser.error(f"unknown modes: {','.join(sorted(unknown))}; there are {','.join(MODES)}")
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 7)
    return arguments


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows, figures, comparisons = _ratios(arguments)
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "load_average": os.getloadavg(),
        "rounds": arguments.rounds,
        "encrypted": arguments.encrypt,
        "figures": figures,
        "comparisons": comparisons,
        "findings": [finding.as_json() for finding in _findings(arguments)],
        "peers": _peers(arguments) if arguments.peers else {},
        "rows": rows,
    }


def _ratios(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], ...]:
    measures = [measure for measure in MEASURES if measure.mode in arguments.modes]
    if not measures:
        return [], [], []
    with Stand(encrypt=arguments.encrypt) as stand:
        relays = start_relays(stand, arguments.relays, _say)
        rows = measure_all(stand, relays, measures, arguments.rounds, quick=arguments.quick, progress=_progress)
    return rows, *figures_of(rows, measures, [relay.name for relay in relays])


def _peers(arguments: argparse.Namespace) -> dict[str, Any]:
    with Stand() as stand:
        return peers.measure(stand, arguments.rounds, quick=arguments.quick)


def _findings(arguments: argparse.Namespace) -> list[Finding]:
    found: list[Finding] = []
    for name, case in CASES.items():
        if name not in arguments.modes:
            continue
        began = time.monotonic()
        try:
            found += case(arguments.rounds)
        except Missing as missing:
            _say(f"SKIPPED: {name}. This machine has no {missing}")
        _progress(f"{name}: {time.monotonic() - began:.0f} s")
    return found


# --- for people -------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """What was measured, for people."""
    parts = (_figures(report["figures"]), _comparisons(report["comparisons"]), _targets(report["findings"]))
    texts = ["\n".join(part) for part in parts if len(part) > 1]
    return "\n\n".join([*texts, peers.table(report["peers"])] if report["peers"] else texts)


def _figures(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'mode':9}{'relay':16}{'figure':11}{'median':>9}  {'low-high':17}{'frames/s':>10}{'load':>6}{'relay':>6}"
    ]
    for f in rows:
        spread = f"{f['low']:.2f}-{f['high']:.2f}"
        lines.append(
            f"{f['mode']:9}{f['relay']:16}{f['figure']:11}{f['median']:9.2f}  {spread:17}"
            f"{f['frames_per_second']:10,.0f}{f['load_busy']:6.0%}{f['relay_busy']:6.0%}"
            f"{'  frames/s: the load is the limit' if f['load_is_the_limit'] else ''}"
        )
    return lines


def _comparisons(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{'mode':9}{'broker / ':16}{'figure':11}{'ratio':>9}  {'low-high':17}{'target':>10}"]
    for c in rows:
        spread = f"{c['low']:.2f}-{c['high']:.2f}"
        lines.append(
            f"{c['mode']:9}{c['against']:16}{c['figure']:11}{c['ratio']:9.2f}  {spread:17}{_verdict(c)}".rstrip()
        )
    return lines


def _targets(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{'mode':11}{'figure':34}{'':6}{'value':>10}  {'low-high':19}{'rounds':>6}{'target':>12}"]
    for f in rows:
        spread = f"{f['low']:.2f}-{f['high']:.2f}"
        lines.append(
            f"{f['mode']:11}{f['figure']:34}{f['unit']:6}{f['value']:10.2f}  {spread:19}{f['rounds']:6}"
            f"  {_verdict(f)}".rstrip()
        )
    return lines


def _verdict(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return ""
    return f"{'<= ' + format(row['target'], 'g'):>10}  {'met' if row['met'] else 'MISSED'}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _progress(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
