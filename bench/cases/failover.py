"""What a failover adds to its turn: a session of 1 MiB whose key runs out of quota, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.finding import Finding, median_of
from bench.stand import Stand

WARM_TURNS = 16
WARM_INPUT = 1 << 16
"""Together the transcript of 1 MiB; every failover sends all of it."""

INPUT = 1000
EVERY = 4
"""Every fourth turn is refused once, so that there are ordinary turns of the same size beside those that move."""

FAILOVERS = 12
TARGET_MS = 30.0


def failover(rounds: int) -> list[Finding]:
    """The median turn that moved less the median turn that did not, in ms."""
    found = [_round() for _ in range(rounds)]
    moved, stayed = _medians_ms(found, "moved_us"), _medians_ms(found, "turn_us")
    added = [one - other for one, other in zip(moved, stayed, strict=True)]
    return [
        median_of("failover", "added to a turn of 1 MiB", "ms", added, TARGET_MS),
        median_of("failover", "the turn that moves", "ms", moved),
        median_of("failover", "a turn that stays", "ms", stayed),
    ]


def _round() -> dict[str, Any]:
    """In a new store: a key that is out of quota stays so, and the store tells everybody."""
    with Stand() as stand:
        relay = stand.broker(credentials=FAILOVERS + 2)
        relay.start(stand.folder)
        result = stand.run(
            relay,
            "failover",
            warm=WARM_TURNS,
            input=WARM_INPUT,
            then_input=INPUT,
            refuse_every=EVERY,
            turns=FAILOVERS * EVERY,
        )
    if result["moved_us"]["n"] < FAILOVERS:
        raise RuntimeError(f"only {result['moved_us']['n']} of {FAILOVERS} turns were refused and moved")
    return result


def _medians_ms(results: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [result[name]["p50"] / 1e3 for result in results]
