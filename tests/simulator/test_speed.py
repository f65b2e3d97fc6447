"""How many events one simulator sends, with its reader in the same process."""

import asyncio
import time
from typing import Any

import aiohttp

from broker.simulator import Simulator

SOCKETS = 8
DELTAS = 5_000
ENOUGH = 5_000  # events per second; a hundredth of what a quiet machine does is still more


async def read_all(raw: Any) -> int:
    """Count the frames of one answer without looking into them, but for the last."""
    await raw.create(f"hello [[deltas:{DELTAS}]]", store=False)
    count = 0
    while True:
        message = await raw.ws.receive()
        assert message.type is aiohttp.WSMsgType.TEXT
        count += 1
        if message.data.startswith('{"type":"response.completed"'):
            return count


async def test_events_leave_fast_enough(sim: Simulator, dial: Any) -> None:
    sockets = [await dial(sim) for _ in range(SOCKETS)]
    begun = time.perf_counter()
    counts = await asyncio.gather(*(read_all(raw) for raw in sockets))
    rate = sum(counts) / (time.perf_counter() - begun)
    print(f"{rate:,.0f} events/s")
    assert counts == [DELTAS + 10] * SOCKETS
    assert rate >= ENOUGH
