"""What the broker adds to the time to the first frame of output, for one session that is alone."""

from __future__ import annotations

from bench.finding import Finding, median_of
from bench.stand import Stand

SECONDS = 1.0
TARGETS_MS = {"p50": 1.0, "p99": 5.0}


def first(rounds: int) -> list[Finding]:
    """The broker's p50 and p99 less those of the upstream alone, in ms."""
    with Stand() as stand:
        bare, broker = stand.bare(), stand.broker()
        broker.start(stand.folder)
        results = []
        for number in range(rounds):
            relays = (bare, broker) if number % 2 == 0 else (broker, bare)
            results.append({relay.name: stand.run(relay, "probe", seconds=SECONDS)["first_us"] for relay in relays})
    return [
        median_of(
            "first",
            f"added to the first frame, {quantile}",
            "ms",
            [(result["broker"][quantile] - result["bare"][quantile]) / 1e3 for result in results],
            target,
        )
        for quantile, target in TARGETS_MS.items()
    ]
