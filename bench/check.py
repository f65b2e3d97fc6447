"""Whether the broker has become dearer: instructions against a baseline and ceilings, CPU against the plain relay.

`python -m bench.check` takes two minutes and exits with 1 where something is too dear; `--write` makes a new
baseline.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import statistics
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.instructions import COUNTS, count
from bench.ratios import MEASURES
from bench.stand import HERE, ROOT, Missing, Stand
from broker.domain import frames

BASELINE = HERE / "baseline.json"
ALLOWED = 0.05
"""More instructions than the baseline by this share are a failure, fewer are a reason for a new baseline."""

CEILINGS = {"stepped": 9_000.0, "burst": 4_500.0}
"""Instructions of a frame."""

RATIOS = {"stepped": 1.0, "burst": 0.25, "turn": 5.0}
"""CPU as a multiple of the plain relay's (aiohttp and uvloop); wide, as a shared machine's time is measured."""

ROUNDS = 3
SECONDS = 1.0


@dataclass(frozen=True)
class Verdict:
    """One comparison; `note` is for somebody who could do something although nothing is wrong."""

    what: str
    value: float
    limit: float
    note: str = ""

    @property
    def fine(self) -> bool:
        """Whether the value keeps to its limit."""
        return self.value <= self.limit


def main() -> int:
    """Measure, compare, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"make {BASELINE.name} of what is counted now")
    arguments = parser.parse_args()
    found = _instructions()
    if arguments.write:
        return _write(found)
    verdicts = [*_against_baseline(found), *_against_ceilings(found), *_against_plain()]
    for verdict in verdicts:
        _say(_line(verdict))
    return 0 if all(verdict.fine for verdict in verdicts) else 1


def _instructions() -> dict[str, float]:
    try:
        return count()
    except Missing as missing:
        _shout(f"NOTHING IS COUNTED. This machine has no {missing}. Only the plain relay is compared with.")
        return {}


def _write(found: Mapping[str, float]) -> int:
    if not found:
        return 1
    baseline = {"instructions": {mode: round(value, 1) for mode, value in found.items()}, "environment": environment()}
    BASELINE.write_text(json.dumps(baseline, indent=1) + "\n")
    _say(f"written: {BASELINE.relative_to(ROOT)}: {baseline['instructions']}")
    return 0


# --- comparisons ------------------------------------------------------------------------------------------------------


def _against_baseline(found: Mapping[str, float]) -> Iterator[Verdict]:
    if not found:
        return
    if not BASELINE.exists():
        _shout(f"NO BASELINE: make one with python -m bench.check --write. Counted: {dict(found)}")
        return
    baseline = json.loads(BASELINE.read_text())
    if other := _differences(baseline["environment"], environment()):
        _shout(f"NOT COMPARED WITH THE BASELINE, which was made with another environment: {'; '.join(other)}")
        return
    for mode, value in found.items():
        usual = baseline["instructions"][mode]
        better = value < usual * (1 - ALLOWED)
        note = "BETTER than the baseline by more than 5 %: commit a new one (--write)" if better else ""
        yield Verdict(f"{_named(mode)}, baseline {usual:,.0f}", value, usual * (1 + ALLOWED), note)


def _against_ceilings(found: Mapping[str, float]) -> Iterator[Verdict]:
    for mode, ceiling in CEILINGS.items():
        if mode in found:
            yield Verdict(f"{_named(mode)}, ceiling", found[mode], ceiling)


def _against_plain() -> Iterator[Verdict]:
    """Ratios within a round, as in the benchmark."""
    ratios: dict[str, list[float]] = {mode: [] for mode in RATIOS}
    with Stand() as stand:
        relays = [stand.plain(uvloop=True), stand.broker()]
        for relay in relays:
            relay.start(stand.folder)
        for number in range(ROUNDS):
            for measure in MEASURES:
                if measure.mode in ratios:
                    order = relays if number % 2 == 0 else relays[::-1]
                    cost = {relay.name: measure.of(stand.run(relay, measure.mode, seconds=SECONDS)) for relay in order}
                    ratios[measure.mode].append(cost[relays[1].name] / cost[relays[0].name])
    for mode, values in ratios.items():
        yield Verdict(f"{mode}: CPU / that of the plain relay", statistics.median(values), RATIOS[mode])


def _named(mode: str) -> str:
    return f"{mode}: instructions/{next(each.unit for each in COUNTS if each.mode == mode)}"


# --- what a count depends on ------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """The interpreter, the packages and the machine: with others the same code runs other instructions."""
    return {
        "python": platform.python_version(),
        "build": _build(),
        "libc": " ".join(platform.libc_ver()),
        "frames": "compiled" if frames.COMPILED else "in Python, as no C compiler was there",
        "machine": f"{platform.machine()}{' avx2' if _has_avx2() else ''}",
        "packages": {name: metadata.version(name) for name in _packages()},
    }


def _build() -> str:
    """How the interpreter was compiled, without the folders that this names."""
    said = f"{sys.version} {sysconfig.get_config_var('CONFIG_ARGS')} {sysconfig.get_config_var('CFLAGS')}"
    return hashlib.sha256(re.sub(r"\S*/\S*", "", said).encode()).hexdigest()[:16]


def _has_avx2() -> bool:
    """The C library chooses its copying by this, under valgrind, too."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and " avx2 " in cpu.read_text()


def _packages() -> list[str]:
    """What the broker runs with, as far as it is installed here."""
    named = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    return [name for name in named if _installed(name)]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    flat_then, flat_now = _flat(then), _flat(now)
    names = sorted(flat_then.keys() | flat_now.keys())
    return [
        f"{name} {flat_then.get(name, 'none')} then, {flat_now.get(name, 'none')} now"
        for name in names
        if flat_then.get(name) != flat_now.get(name)
    ]


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    return {**{k: str(v) for k, v in environment.items() if k != "packages"}, **environment["packages"]}


# --- for people -------------------------------------------------------------------------------------------------------


def _line(verdict: Verdict) -> str:
    precision = ",.2f" if verdict.limit < 100 else ",.0f"
    state = "ok" if verdict.fine else "TOO DEAR"
    figures = f"{verdict.value:>12{precision}}  <= {verdict.limit:>12{precision}}"
    return f"{verdict.what:52}{figures}  {state}  {verdict.note}".rstrip()


def _shout(text: str) -> None:
    _say(f"!!! {text} !!!")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
