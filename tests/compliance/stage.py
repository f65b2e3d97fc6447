"""Nodes behind a balancer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from broker.domain.credential import Credential
from broker.edge.app import Listeners
from tests.balancer import Balancer
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
