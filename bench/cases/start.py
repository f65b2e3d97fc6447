"""How long a node takes from its exec until /readyz answers 200."""

from __future__ import annotations

from bench.finding import Finding, median_of
from bench.stand import Stand

STARTS = 7
TARGET_SECONDS = 0.7


def start(_: int) -> list[Finding]:
    """Seconds, of a program whose bytecode is there already."""
    with Stand() as stand:
        took = [_start(stand, number) for number in range(STARTS + 1)]
    return [median_of("start", "from exec to ready", "s", took[1:], TARGET_SECONDS)]


def _start(stand: Stand, number: int) -> float:
    relay = stand.broker(f"broker-{number}")
    relay.start(stand.folder)
    relay.stop()
    return relay.start_seconds
