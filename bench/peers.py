"""The broker beside LiteLLM's proxy: the same turns over WebSocket, in rounds of alternating order."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.stand import CLIENT_KEY, HERE, SECRETS, Missing, Relay, Stand, free_port

PEERS = HERE / ".peers"
PINS = HERE / "peers.txt"
INSTALL_WITHIN = 900.0

BARE, BROKER, LITELLM = "bare", "broker-peer", "litellm"
SESSIONS = 16
"""As in the benchmark's mode turn."""

QUIET = 0.1
"""Waiting for the core for more of the time than this, somebody else had it: such a round tells no turn times."""

TARGETS = {"CPU/turn": 1 / 10, "added p50": 1 / 8, "memory": 1 / 4}
"""The broker's figure as a part of LiteLLM's: at most this."""

# LiteLLM 1.109.3 passes a TLS context for ws:// too, which websockets refuses: it reaches no plain upstream. Without
# TLS it has less to do, so this one argument is left out. Nothing else of it is changed.
LAUNCHER = """
import os

import websockets

os.environ.pop("DATABASE_URL", None)
connect = websockets.connect


def without_tls(uri, **given):
    return connect(uri, **({**given, "ssl": None} if uri.startswith("ws:") else given))


websockets.connect = without_tls

from litellm.proxy.proxy_cli import run_server

run_server()
"""

ENVIRON = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",  # reads no .env
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # fetches no prices
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


def main() -> int:
    """Measure, print a table, write JSON. 1 where a target is missed or not measured and --strict was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 short rounds")
    parser.add_argument("--rounds", type=int, help="default 7, quick 3")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--strict", action="store_true", help="exit status 1 where a target is not met")
    arguments = parser.parse_args()
    with Stand() as stand:
        report = measure(stand, arguments.rounds or (3 if arguments.quick else 7), quick=arguments.quick)
    sys.stdout.write(table(report) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 1 if arguments.strict and any(f["target"] and not f["met"] for f in report["figures"]) else 0


def measure(stand: Stand, rounds: int, quick: bool) -> dict[str, Any]:
    """Both relays on this stand, started and stopped here; `skipped` says why there is nothing to compare with."""
    try:
        theirs = litellm(stand)
    except Missing as missing:
        return {"skipped": f"{LITELLM}. This machine has no {missing}", "figures": [], "rows": []}
    ours = stand.broker(BROKER)
    try:
        ours.start(stand.folder)
        theirs.start(stand.folder)
        rows = _rounds(stand, (stand.bare(), ours, theirs), rounds, 0.7 if quick else 1.0)
        memory = {relay.name: _memory(relay.pids) for relay in (ours, theirs)}
        store = _memory(ours.also)
    finally:
        ours.stop()
        theirs.stop()
    return {
        "peer": _version(),
        "rounds": rounds,
        "sessions": SESSIONS,
        "start_seconds": {relay.name: relay.start_seconds for relay in (ours, theirs)},
        "memory": {**memory, "store": store},
        "quiet_rounds": sorted(_quiet(rows)),
        "figures": _figures(rows, memory, store),
        "rows": rows,
    }


# --- the peer ---


def litellm(stand: Stand) -> Relay:
    """LiteLLM's proxy: one worker of uvicorn on uvloop as its documentation recommends; no database, no callbacks."""
    python, port = install(), free_port()
    config, launcher = stand.folder / "litellm-config.yaml", stand.folder / "litellm-launcher.py"
    config.write_text(json.dumps(_config(stand.upstream_port)))
    launcher.write_text(LAUNCHER)
    command = [str(python), str(launcher), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    relay = Relay(
        LITELLM, port, [*command, "--num_workers", "1"], ENVIRON, ready_path="/health/readiness", core=stand.relay_core
    )
    stand.relays.append(relay)
    return relay


def _config(upstream_port: int) -> dict[str, Any]:
    return {
        "model_list": [
            {
                "model_name": "m",
                "litellm_params": {
                    "model": "openai/m",
                    "api_base": f"http://127.0.0.1:{upstream_port}/v1",
                    "api_key": next(iter(SECRETS.values())),
                },
            }
        ],
        "general_settings": {"master_key": CLIENT_KEY},
        "litellm_settings": {"request_timeout": 600, "set_verbose": False},
    }


def install() -> Path:
    """LiteLLM in an environment of its own, made anew when the pins change. Its interpreter."""
    python, stamp = PEERS / "bin" / "python", PEERS / ".stamp"
    wanted = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(PEERS, ignore_errors=True)
    sys.stderr.write("installing LiteLLM into bench/.peers, once: about 800 MB\n")
    _run(sys.executable, "-m", "venv", str(PEERS))
    (PEERS / ".gitignore").write_text("*\n")  # ruff heeds it, too
    # the pins are complete, and two of them are not what LiteLLM asks for (bench/peers.txt says why)
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    _run(str(python), "-m", "pip", "install", *quiet, "--no-deps", "--require-hashes", "-r", str(PINS))
    stamp.write_text(wanted)
    return python


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_WITHIN)
    except subprocess.TimeoutExpired:
        raise Missing("LiteLLM, and the package registry did not deliver it in time") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason was given"]
        raise Missing(f"LiteLLM, and it could not be installed from bench/peers.txt: {errors[-1]}")


def _version() -> str:
    return next(line.split(" ")[0] for line in PINS.read_text().splitlines() if line.startswith("litellm=="))


# --- the rounds ---


def _rounds(stand: Stand, relays: Sequence[Relay], rounds: int, seconds: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(-1, rounds):
        # whoever runs last has a warmer or a busier machine; so everybody does in turn
        for relay in relays if number % 2 == 0 else relays[::-1]:
            rows += [{"round": number, **row} for row in _visit(stand, relay, seconds)]
        sys.stderr.write(f"peers: round {number + 1} of {rounds}\n")
    return [row for row in rows if row["round"] >= 0]  # the first is for caches to fill


def _visit(stand: Stand, relay: Relay, seconds: float) -> list[dict[str, Any]]:
    # LiteLLM writes the JSON anew, both ways: its frames are compared part by part, everyone else's byte by byte
    options = {"seconds": seconds, **({"lenient": 1} if relay.name == LITELLM else {})}
    counts = (1,) if relay.name == BARE else (SESSIONS, 1)
    rows = []
    for count in counts:
        waited = _waited_ns(relay.pids)
        row = stand.run(relay, "turn", sessions=count, **options)
        rows.append({"relay": relay.name, **row, "waited": (_waited_ns(relay.pids) - waited) / 1e9 / row["seconds"]})
    return rows


def _waited_ns(pids: Sequence[int]) -> int:
    """For how long threads of these could have run, but somebody else had the core."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks)


def _memory(pids: Sequence[int]) -> dict[str, int]:
    """Resident bytes, and those of them that nobody shares."""
    total = {"rss": 0, "uss": 0}
    for pid in pids:
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
        kib = {line[0].rstrip(":"): int(line[1]) for line in lines}
        total["rss"] += kib["Rss"] * 1024
        total["uss"] += (kib["Private_Clean"] + kib["Private_Dirty"]) * 1024
    return total


# --- the figures ---


def _figures(
    rows: Sequence[dict[str, Any]], memory: dict[str, dict[str, int]], store: dict[str, int]
) -> list[dict[str, Any]]:
    def column(name: str, sessions: int, of: Callable[[dict[str, Any]], float]) -> list[float]:
        return [of(row) for row in rows if row["relay"] == name and row["sessions"] == sessions]

    def cpu(row: dict[str, Any]) -> float:
        return float(row["cpu_ns"]) / 1e3 / float(row["turns"])

    def cpu_and_store(row: dict[str, Any]) -> float:
        return float(row["cpu_ns"] + row["also_ns"]) / 1e3 / float(row["turns"])

    def turn(row: dict[str, Any]) -> float:
        return float(row["turn_us"]["p50"])

    def added(name: str) -> list[float]:
        pairs = zip(column(name, 1, turn), column(BARE, 1, turn), strict=True)
        return [mine - bare for number, (mine, bare) in enumerate(pairs) if number in quiet]

    def mib(*parts: dict[str, int]) -> list[float]:
        return [sum(part["rss"] for part in parts) / 2**20]

    theirs, quiet = column(LITELLM, SESSIONS, cpu), _quiet(rows)
    return [
        _figure("CPU/turn", "us", column(BROKER, SESSIONS, cpu), theirs),
        _figure("  and store", "us", column(BROKER, SESSIONS, cpu_and_store), theirs),
        _figure("added p50", "us", added(BROKER), added(LITELLM)),
        _figure("memory", "MiB", mib(memory[BROKER]), mib(memory[LITELLM])),
        _figure("  and store", "MiB", mib(memory[BROKER], store), mib(memory[LITELLM])),
    ]


def _quiet(rows: Sequence[dict[str, Any]]) -> set[int]:
    """The rounds whose turn times count: those with the core to themselves; none are left on a busy machine."""
    alone: dict[int, bool] = {}
    for row in rows:
        if row["sessions"] == 1:
            alone[row["round"]] = alone.get(row["round"], True) and row["waited"] <= QUIET
    return {number for number, calm in alone.items() if calm}


def _figure(name: str, unit: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Medians, and the median of the ratios within each round; none of it where no round counts."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    target = TARGETS.get(name)
    if not ratios:
        return {"figure": name, "unit": unit, "ratio": None, "target": target, "met": None}
    ratio = statistics.median(ratios)
    return {
        "figure": name,
        "unit": unit,
        "broker": statistics.median(ours),
        "litellm": statistics.median(theirs),
        "ratio": ratio,
        "low": min(ratios),
        "high": max(ratios),
        "target": target,
        "met": None if target is None else ratio <= target,
    }


def table(report: dict[str, Any]) -> str:
    """What was measured, for people."""
    if "skipped" in report:
        return f"SKIPPED: {report['skipped']}"
    calm = f"{len(report['quiet_rounds'])} of {report['rounds']} rounds that had the core to themselves"
    lines = [
        f"{report['peer']}: turn, {report['sessions']} sessions; added p50: one session, over bare, {calm}",
        f"{'figure':13}{'unit':>5}{'broker':>10}{'litellm':>10}{'ratio':>8}  {'low-high':15}{'target':>10}",
    ]
    return "\n".join([*lines, *map(_line, report["figures"])])


def _line(f: dict[str, Any]) -> str:
    begin = f"{f['figure']:13}{f['unit']:>5}"
    if f["ratio"] is None:
        return f"{begin}  NOT MEASURED: somebody else kept the core busy in every round"
    spread = f"{f['low']:.3f}-{f['high']:.3f}"
    line = f"{begin}{f['broker']:10.1f}{f['litellm']:10.1f}{f['ratio']:8.3f}  {spread:15}"
    if f["target"] is None:
        return line.rstrip()
    return f"{line}{'<= ' + format(f['target'], '.3g'):>10}  {'met' if f['met'] else 'MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
