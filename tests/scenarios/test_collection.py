"""A session that goes leaves nothing for the garbage collector: at 2,000 sessions a collection would stop them all."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from broker.domain.memory import SocketMemory
from broker.domain.session import Session
from broker.domain.turn import Turn
from broker.edge.driver import TurnDriver
from broker.edge.links import Links
from broker.edge.websocket import ClientSocket
from broker.tap import Tap
from broker.upstream.connection import Link
from broker.upstream.passage import Passage
from tests.scenarios.house import House, wait_until

OURS = (ClientSocket, Link, Links, Tap, Passage, TurnDriver, Turn, Session, SocketMemory)


@contextmanager
def uncollected() -> Iterator[Callable[[], Counter[str]]]:
    """Nothing is collected meanwhile; tells how many of our objects there are more than before."""
    gc.collect()
    gc.disable()
    before = _ours()
    try:
        yield lambda: _ours() - before
    finally:
        gc.enable()


def _ours() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, OURS))


async def leave_well(house: House, client: object) -> None:
    await client.close()  # type: ignore[attr-defined]


async def vanish(house: House, client: object) -> None:
    await client.kill()  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", [None, "insufficient_quota"])
@pytest.mark.parametrize("leave", [leave_well, vanish])
async def test_a_session_that_goes_leaves_no_circles(
    build: Callable[..., Awaitable[House]],
    leave: Callable[[House, object], Awaitable[None]],
    fault: str | None,
) -> None:
    house = await build()
    node = await house.node()
    with uncollected() as left:
        for number in range(3):
            client = await house.connected(node)
            assert (await client.turn("one")).ok
            if fault is not None:
                house.sim.faults.set(["A", "B", "C"][number], fault)
            assert (await client.turn("two [[deltas:5]]")).ok or number == 2
            await leave(house, client)
            house.clients.remove(client)
            del client
        await wait_until(lambda: not node.node.sockets and node.node.dialer.open_links == 0)
        await wait_until(lambda: not left())
