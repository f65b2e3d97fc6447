"""Options for all tests: the ordinary path alone, how long the random histories are, which foreign clients run."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_is_not_looked_at_again() -> Iterator[None]:
    """Thousands of collected tests make every full collection stop the loop for a second, and time-outs with it."""
    yield
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ordinary", action="store_true", help="run the scenarios with every frame on the ordinary path (no passage)"
    )
    parser.addoption("--clients", action="store_true", help="also run clients whose installation is hundreds of MB")
    parser.addoption("--sequences", type=int, default=2000, help="how many random histories the health table is put to")
