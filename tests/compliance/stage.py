"""Nodes behind a balancer, and whether they take requests over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from broker.domain.credential import Credential
from broker.edge.app import Listeners
from tests.compliance.balancer import Balancer
from tests.compliance.target import Target
from tests.scenarios.house import House

VENDOR_KEY = "sk-sim-A"
BOUNDARIES = {"A": "org-a", "B": "org-a", "C": "org-a"}


def pool(house: House, *transports: str) -> list[Credential]:
    """The credentials of the house; over both transports unless told otherwise."""
    spoken = transports or ("websocket", "http")
    return [replace(credential, transports=spoken) for credential in house.credentials()]


@asynccontextmanager
async def two_nodes(house: House, *transports: str) -> AsyncIterator[Balancer]:
    """Two nodes behind a balancer that gives them connections in turn."""
    nodes: list[Listeners] = [await house.node(credentials=pool(house, *transports)) for _ in range(2)]
    balancer = Balancer([node.client_port for node in nodes])
    await balancer.start()
    try:
        yield balancer
    finally:
        await balancer.stop()


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
