"""What relaying over HTTP costs: a plain relay, HAProxy, and the broker between all kinds of clients and vendors.

`python -m bench.http [--quick]`. As in the benchmark of frames, the figure is on-CPU time of the process under test,
and what compares are the ratios within a round (bench/README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.http_load import DELTAS, HTTP, WEBSOCKET, Load, Result, Script
from bench.stand import Missing, Relay, Stand, free_port

PLAIN, PLAIN_UV, PIECES, HAPROXY = "aiohttp", "aiohttp+uvloop", "aiohttp-pieces", "haproxy-http"
BROKER, UNSTORED = "broker", "broker-unstored"
BY_SOCKET, TO_SOCKET = "broker-ws-vendor", "broker-ws-client"

BRIEF = 2
"""Deltas of a turn that is measured for what a turn costs by itself: it has few events."""


@dataclass(frozen=True)
class Mode:
    """`units`: what one of them is a share of."""

    name: str
    figure: str
    units: str
    deltas: int
    sessions: int
    stepped: bool = False


MODES = (
    Mode("stepped", "CPU/event", "events", DELTAS, 32, stepped=True),
    Mode("burst", "CPU/event", "events", DELTAS, 32),
    Mode("turn", "CPU/turn", "turns", BRIEF - 1, 16),
    Mode("latency", "first event", "first", BRIEF - 1, 1),
)

TARGETS = {("stepped", PLAIN): 1.3, ("burst", PLAIN): 0.5, ("turn", PLAIN): 3.0}
"""The broker's figure, HTTP on both sides, as a multiple of the other's: at most this."""


@dataclass(frozen=True)
class Way:
    """A relay, and who stands on its two sides. `verbatim`: a request's body comes to the vendor as it was sent."""

    name: str
    relay: Relay
    client: str = HTTP
    vendor: str = HTTP
    verbatim: bool = True
    stored: bool = True
    modes: tuple[str, ...] = tuple(mode.name for mode in MODES)


class HttpStand(Stand):
    """The stand, with relays that speak HTTP. `transports` are those of the next broker's vendor."""

    transports: tuple[str, ...] = ("http", "websocket")

    def __enter__(self) -> HttpStand:
        super().__enter__()
        return self

    def _credential(self, number: int, secret: str) -> dict[str, Any]:
        return {**super()._credential(number, secret), "transports": self.transports}

    def plain_http(self, name: str, *options: str) -> Relay:
        """The relay that one would write first."""
        port = free_port()
        command = [sys.executable, "-m", "bench.http_relay", str(port), str(self.upstream_port), *options]
        return self._add(Relay(name, port, command, core=self.relay_core))

    def haproxy_http(self) -> Relay:
        """HAProxy, which writes each chunk at once; it would wait for more of an answer otherwise."""
        relay = self.haproxy("http")
        config = Path(relay.command[-1])
        config.write_text(config.read_text().replace("mode http", "mode http\n  option http-no-delay"))
        return relay

    def broker_over(self, name: str, *transports: str) -> Relay:
        """The broker, with a vendor that speaks these."""
        self.transports = transports
        return self.broker(name)


def main() -> int:
    """Measure, print a table, write JSON. 1 where a target is missed and --strict was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 short rounds")
    parser.add_argument("--rounds", type=int, help="default 7, quick 3")
    parser.add_argument("--modes", help="comma-separated, default all")
    parser.add_argument("--ways", help="comma-separated, default all")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--strict", action="store_true", help="exit status 1 where a target is not met")
    arguments = parser.parse_args()
    modes = [mode for mode in MODES if not arguments.modes or mode.name in arguments.modes.split(",")]
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    names = arguments.ways.split(",") if arguments.ways else None
    with HttpStand() as stand:
        os.sched_setaffinity(0, {stand.load_core})
        ways = [way for way in _ways(stand) if names is None or way.name in names]
        for relay in {way.relay.name: way.relay for way in ways}.values():
            if relay.command:
                relay.start(stand.folder)
        rows = _measure(stand, ways, modes, rounds, 0.5 if arguments.quick else 1.5)
    report = {"figures": _figures(rows, ways, modes), "rounds": rows}
    sys.stdout.write(_table(report["figures"]) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 1 if arguments.strict and any(row["met"] is False for row in report["figures"]) else 0


def _ways(stand: HttpStand) -> list[Way]:
    try:
        haproxy = [Way(HAPROXY, stand.haproxy_http())]
    except Missing as missing:
        sys.stderr.write(f"SKIPPED: {HAPROXY}. This machine has no {missing}\n")
        haproxy = []
    by_http = stand.broker_over("broker", "http", "websocket")
    by_socket = stand.broker_over("broker-socket", "websocket")
    return [
        Way("bare", stand.bare(), modes=("latency",)),
        *haproxy,
        Way(PLAIN, stand.plain_http("aiohttp")),
        Way(PLAIN_UV, stand.plain_http("aiohttp-uvloop", "--uvloop")),
        Way(PIECES, stand.plain_http("aiohttp-pieces", "--pieces"), modes=("burst",)),
        Way(BROKER, by_http),
        Way(UNSTORED, by_http, stored=False, modes=("turn", "latency")),
        Way(BY_SOCKET, by_socket, vendor=WEBSOCKET, verbatim=False),
        Way(TO_SOCKET, by_http, client=WEBSOCKET, verbatim=False),
    ]


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(
    stand: HttpStand, ways: Sequence[Way], modes: Sequence[Mode], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    rows = []
    for number in range(rounds):
        for mode in modes:
            script = Script(mode.deltas, stepped=mode.stepped)
            able = [way for way in ways if mode.name in way.modes]
            for way in able if number % 2 == 0 else able[::-1]:
                values = _values(mode, _run(stand, way, mode, script, seconds))
                rows.append({"round": number, "mode": mode.name, "way": way.name, **values})
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return rows


def _run(stand: HttpStand, way: Way, mode: Mode, script: Script, seconds: float) -> Result:
    with Load(
        stand.upstream_port,
        way.relay.port,
        way.relay.pids,
        script,
        sessions=mode.sessions,
        client=way.client,
        vendor=way.vendor,
        verbatim=way.verbatim,
        stored=way.stored,
    ) as load:
        load.run(turns=2 * mode.sessions)  # connections are there, and both sides warm
        return load.run(seconds=seconds)


def _values(mode: Mode, result: Result) -> dict[str, float]:
    """Microseconds."""
    if mode.units == "first":
        cuts = statistics.quantiles(result.first, n=100)
        return {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6}
    units = result.events if mode.units == "events" else result.turns
    return {"value": result.cpu / units * 1e6, "per_second": units / result.seconds}


# --- comparing --------------------------------------------------------------------------------------------------------


def _figures(rows: Sequence[dict[str, Any]], ways: Sequence[Way], modes: Sequence[Mode]) -> list[dict[str, Any]]:
    """Each way's figure, and as a multiple of the plain relay's; for latency what it adds to no relay at all."""
    found = []
    for mode in modes:
        keys = ("p50", "p99") if mode.units == "first" else ("value",)
        for key in keys:
            of = {
                way.name: [row[key] for row in rows if (row["mode"], row["way"]) == (mode.name, way.name)]
                for way in ways
            }
            found += [_figure(mode, key, way.name, of) for way in ways if of[way.name]]
    return found


def _figure(mode: Mode, key: str, name: str, of: dict[str, list[float]]) -> dict[str, Any]:
    figure, values, plain = mode.figure, of[name], of.get(PLAIN) or []
    if mode.units == "first":
        figure = f"{mode.figure}, {key}"
        bare = of.get("bare") or [0.0] * len(values)
        values = values if name == "bare" else [mine - none for mine, none in zip(values, bare, strict=True)]
    ratios = (
        [mine / other for mine, other in zip(values, plain, strict=True)] if plain and mode.units != "first" else []
    )
    ratio = statistics.median(ratios) if ratios else None
    target = TARGETS.get((mode.name, PLAIN)) if name == BROKER else None
    return {
        "mode": mode.name,
        "figure": figure,
        "way": name,
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "ratio": ratio,
        "ratio_low": min(ratios, default=None),
        "ratio_high": max(ratios, default=None),
        "target": target,
        "met": None if target is None or ratio is None else ratio <= target,
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'mode':9}{'way':19}{'figure':18}{'median us':>10}  {'low-high':18}"
        f"{'/ aiohttp':>10}  {'low-high':12}{'target':>8}"
    ]
    for row in rows:
        spread = f"{row['low']:.1f}-{row['high']:.1f}"
        told = f"{row['mode']:9}{row['way']:19}{row['figure']:18}{row['median']:10.1f}  {spread:18}"
        if row["ratio"] is not None:
            told += f"{row['ratio']:10.2f}  {row['ratio_low']:.2f}-{row['ratio_high']:.2f}   "
        if row["met"] is not None:
            told += f"<= {row['target']:g}  {'met' if row['met'] else 'MISSED'}"
        lines.append(told.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
