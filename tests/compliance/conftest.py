"""Two targets for the suite: the simulated vendor itself, and two nodes of the broker behind a balancer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import pytest

from broker.domain.credential import Credential
from broker.edge.app import Listeners
from tests import engines
from tests.compliance.balancer import Balancer
from tests.compliance.target import WITHIN, Target
from tests.scenarios.house import KEY, House

VENDOR_KEY = "sk-sim-A"
BOUNDARIES = {"A": "org-a", "B": "org-a", "C": "org-a"}


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


def pool(house: House) -> list[Credential]:
    """The credentials of the house, over both transports."""
    return [replace(credential, transports=("websocket", "http")) for credential in house.credentials()]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    # a connection for each request: one after the other they come to different nodes
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(WITHIN)) as session:
        yield session


@asynccontextmanager
async def two_nodes(house: House) -> AsyncIterator[Balancer]:
    """Two nodes behind a balancer that gives them connections in turn."""
    nodes: list[Listeners] = [await house.node(credentials=pool(house)) for _ in range(2)]
    balancer = Balancer([node.client_port for node in nodes])
    await balancer.start()
    try:
        yield balancer
    finally:
        await balancer.stop()


@pytest.fixture
async def simulator(house: House, http: aiohttp.ClientSession) -> Target:
    """The vendor itself: what fails there, is a fault of the test."""
    return Target(house.sim.base_url, VENDOR_KEY, http)


@pytest.fixture
async def broker(house: House, http: aiohttp.ClientSession) -> AsyncIterator[Target]:
    """Two nodes behind a balancer."""
    async with two_nodes(house) as balancer:
        yield Target(f"http://127.0.0.1:{balancer.port}/v1", KEY, http)


@pytest.fixture(params=["simulator", "broker"])
def target(request: pytest.FixtureRequest) -> Target:
    """Each of the two."""
    found: Target = request.getfixturevalue(request.param)
    return found


@dataclass
class Probed:
    """What the broker said to a request over HTTP; None before it was asked."""

    serves: bool | None = None

    async def require(self, target: Target) -> None:
        """Skip the test where a POST is answered by a call for a WebSocket; any other fault is for the test to find."""
        if self.serves is None:
            body = {"model": "sim-1", "input": "hello"}
            async with target.http.post(target.base_url + "/responses", headers=target.headers, json=body) as answer:
                self.serves = not (answer.status == 405 and b'"websocket_required"' in await answer.read())
        if not self.serves:
            pytest.skip("the broker takes no requests over HTTP: POST /v1/responses answers 405 websocket_required")


@pytest.fixture(scope="session")
def probed() -> Probed:
    """One answer for the whole run."""
    return Probed()


@pytest.fixture
async def over_http(probed: Probed, target: Target) -> Target:
    """The target, if it takes requests over HTTP; where it says that it takes none, the test is skipped and says so."""
    if target.key == VENDOR_KEY:
        return target
    await probed.require(target)
    return target
