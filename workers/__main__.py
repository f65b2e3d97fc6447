"""Runs all duties in one process, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence

import uvloop

from broker.config import Config, ResolvedSecrets
from broker.domain.credential import Secret
from broker.store.connection import Connection
from broker.store.nodes import NodeStore
from workers.duties import Duty, run_duty
from workers.janitor import Janitor

log = logging.getLogger(__name__)


def run(config: Config, secrets: ResolvedSecrets, redis_url: Secret) -> None:
    """Run the duties until SIGTERM or SIGINT; blocks."""
    uvloop.run(_run(config, redis_url))


async def _run(config: Config, redis_url: Secret) -> None:
    store = config.store
    connection = Connection(redis_url.reveal(), timeout=store.timeout, connect_timeout=store.connect_timeout)
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    log.info("ready", extra={"node": config.node})
    await run_until(stopping, [Janitor(NodeStore(connection))])
    await connection.close()


async def run_until(stopping: asyncio.Event, duties: Sequence[Duty]) -> None:
    """Run these duties until `stopping` is set. A duty that breaks takes the worker with it, to be started anew."""
    tasks = [asyncio.create_task(run_duty(duty), name=f"duty:{duty.name}") for duty in duties]
    told = asyncio.create_task(stopping.wait(), name="stopping")
    try:
        done, _ = await asyncio.wait([*tasks, told], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*tasks, told):
            task.cancel()
        await asyncio.wait([*tasks, told], timeout=5.0)
    for task in done - {told}:
        task.result()
