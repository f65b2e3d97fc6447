"""A simulator as a process of its own: its vendor and its control interface on one port, until cancelled."""

import asyncio
from collections.abc import Sequence

from broker.simulator.credentials import SimCredential, SimOptions
from broker.simulator.upstream import Simulator


async def serve(host: str, port: int, credentials: Sequence[SimCredential], options: SimOptions | None = None) -> None:
    """Run a simulator until cancelled; prints nothing."""
    simulator = Simulator(credentials, options)
    await simulator.start(host, port)
    try:
        await asyncio.Event().wait()
    finally:
        await simulator.stop()
