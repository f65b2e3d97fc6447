"""A real server for the scenarios, and houses on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests import engines
from tests.scenarios.house import House


@pytest.fixture(scope="session")
def redis_server() -> Iterator[engines.Server]:
    with engines.server("valkey9") as server:
        yield server


@pytest.fixture
async def build(
    redis_server: engines.Server, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[..., Awaitable[House]]]:
    """Make houses; they are torn down behind the test."""
    redis_server.execute("FLUSHALL")
    houses: list[House] = []

    async def make(boundaries: dict[str, str] | None = None, **options: Any) -> House:
        default = {"A": "org-a", "B": "org-a", "C": "org-a"}
        house = House(redis_server.url, boundaries or default, **options)
        house.passage = not request.config.getoption("--ordinary")
        houses.append(house)
        return await house.start()

    yield make
    for house in houses:
        await house.stop()


@pytest.fixture
async def house(build: Callable[..., Awaitable[House]]) -> House:
    """Three credentials of one organisation, each with a quota of its own."""
    return await build()
