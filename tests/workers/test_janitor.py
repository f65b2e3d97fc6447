"""The janitor on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from broker.store.connection import Connection
from broker.store.nodes import NodeStore
from tests import engines
from tests.scenarios.house import wait_until
from workers.__main__ import run_until
from workers.janitor import Janitor


@pytest.fixture
def server() -> Iterator[engines.Server]:
    with engines.server("valkey9") as started:
        yield started


async def test_forgets_a_node_that_fell_silent_and_keeps_one_that_beats(server: engines.Server) -> None:
    connection = Connection(server.url)
    nodes, stopping = NodeStore(connection), asyncio.Event()
    await nodes.beat("dead", {"sockets": 3})
    worker = asyncio.create_task(run_until(stopping, [Janitor(nodes, every=0.05, silent_for=0.5)]))
    names: set[str] = {"dead"}

    async def look() -> None:
        while names != {"alive"}:
            await nodes.beat("alive", {"sockets": 1})
            names.clear()
            names.update(await nodes.nodes())
            await asyncio.sleep(0.05)

    await asyncio.wait_for(look(), 5.0)
    stopping.set()
    await asyncio.wait_for(worker, 5.0)
    await connection.close()


async def test_waits_for_a_store_that_is_away_and_goes_on_afterwards(
    server: engines.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    connection = Connection(server.url, timeout=0.3, connect_timeout=0.2)
    nodes, stopping = NodeStore(connection), asyncio.Event()
    server.kill()
    worker = asyncio.create_task(run_until(stopping, [Janitor(nodes, every=0.05, silent_for=0.5)]))
    await wait_until(lambda: "duty waits for the store" in caplog.text)
    server.start()
    await wait_until(lambda: "duty goes on" in caplog.text, within=15.0)
    assert caplog.text.count("duty waits for the store") == 1
    stopping.set()
    await asyncio.wait_for(worker, 5.0)
    await connection.close()
