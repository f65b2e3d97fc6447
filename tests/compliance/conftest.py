"""The targets of the suite: the simulated vendor itself, and two nodes of the broker behind a balancer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests import engines
from tests.compliance.stage import BOUNDARIES, VENDOR_KEY, two_nodes
from tests.compliance.target import WITHIN, Target
from tests.scenarios.house import KEY, House


@pytest.fixture(scope="session")
def redis_server() -> Iterator[engines.Server]:
    with engines.server("valkey9") as server:
        yield server


@pytest.fixture
async def house(redis_server: engines.Server, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    """Three credentials of one organisation, at a vendor that speaks both WebSocket and HTTP."""
    redis_server.execute("FLUSHALL")
    house = House(redis_server.url, BOUNDARIES)
    house.passage = not request.config.getoption("--ordinary")
    yield await house.start()
    await house.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    # a connection for each request: one after the other they come to different nodes
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(WITHIN)) as session:
        yield session


@pytest.fixture
async def simulator(house: House, http: aiohttp.ClientSession) -> Target:
    """The vendor itself: what fails there, is a fault of the test."""
    return Target(house.sim.base_url, VENDOR_KEY, http)


@pytest.fixture
async def broker(house: House, http: aiohttp.ClientSession) -> AsyncIterator[Target]:
    """Two nodes behind a balancer."""
    async with two_nodes(house) as balancer:
        yield Target(f"http://127.0.0.1:{balancer.port}/v1", KEY, http)


@pytest.fixture
async def broker_over_http(house: House, http: aiohttp.ClientSession) -> AsyncIterator[Target]:
    """The same, with a vendor that they reach over HTTP only: what a socket remembers, they have to know themselves."""
    async with two_nodes(house, "http") as balancer:
        yield Target(f"http://127.0.0.1:{balancer.port}/v1", KEY, http)


@pytest.fixture(params=["simulator", "broker", "broker_over_http"])
def target(request: pytest.FixtureRequest) -> Target:
    """Each of them."""
    found: Target = request.getfixturevalue(request.param)
    return found
