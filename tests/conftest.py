"""One option for all tests: whether the nodes of the scenarios take the ordinary path alone."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ordinary", action="store_true", help="run the scenarios with every frame on the ordinary path (no passage)"
    )
