"""Whether a frame costs more where two processes share a port: both of them and the one have the same core."""

from __future__ import annotations

from bench.finding import Finding, median_of
from bench.stand import Stand

SECONDS = 1.0
TARGET = 1.1


def processes(rounds: int) -> list[Finding]:
    """CPU per frame of two processes, as a multiple of that of one."""
    ratios, alone, shared = [], [], []
    with Stand() as stand:
        one, two = stand.broker("one"), stand.broker("two", processes=2)
        for relay in (one, two):
            relay.start(stand.folder)
        for number in range(rounds):
            relays = (one, two) if number % 2 == 0 else (two, one)
            results = {relay.name: stand.run(relay, "stepped", seconds=SECONDS) for relay in relays}
            costs = {name: result["cpu_ns"] / 1e3 / result["frames"] for name, result in results.items()}
            alone.append(costs["one"])
            shared.append(costs["two"])
            ratios.append(costs["two"] / costs["one"])
    return [
        median_of("processes", "CPU/frame, two / one", "ratio", ratios, TARGET),
        median_of("processes", "CPU/frame, two", "us", shared),
        median_of("processes", "CPU/frame, one", "us", alone),
    ]
