"""Options for all tests: the ordinary path alone, and how long the random histories are."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ordinary", action="store_true", help="run the scenarios with every frame on the ordinary path (no passage)"
    )
    parser.addoption("--sequences", type=int, default=2000, help="how many random histories the health table is put to")
