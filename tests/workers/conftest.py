"""One real server for the tests of the workers, empty at the beginning of each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from broker.store.connection import Connection
from tests import engines


@pytest.fixture(scope="session")
def running() -> Iterator[engines.Server]:
    with engines.server("valkey9") as started:
        yield started


@pytest.fixture
def server(running: engines.Server) -> Iterator[engines.Server]:
    running.execute("FLUSHALL")
    yield running
    running.resume()
    if not running.running:
        running.start()


@pytest.fixture
async def connection(server: engines.Server) -> AsyncIterator[Connection]:
    made = Connection(server.url, timeout=0.5, connect_timeout=0.2)
    yield made
    await made.close()
