"""One figure, what it should be at most, and the values that it is the median of."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """`target` is the most that `value` may be; None where the figure only stands beside another."""

    mode: str
    figure: str
    unit: str
    value: float
    low: float
    high: float
    rounds: int
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met, None where there is none."""
        return None if self.target is None else self.value <= self.target

    def as_json(self) -> dict[str, Any]:
        """All of it, and the verdict."""
        return {**asdict(self), "met": self.met}


def median_of(mode: str, figure: str, unit: str, values: Sequence[float], target: float | None = None) -> Finding:
    """The median of what the rounds found."""
    return Finding(mode, figure, unit, statistics.median(values), min(values), max(values), len(values), target)


def worst_of(mode: str, figure: str, unit: str, values: Sequence[float], target: float | None = None) -> Finding:
    """The largest of what the rounds found: for what shall never happen, a median is no comfort."""
    return Finding(mode, figure, unit, max(values), min(values), max(values), len(values), target)
