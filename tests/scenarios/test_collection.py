"""A session that goes leaves nothing for the garbage collector: at 2,000 sessions a collection would stop them all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from broker.domain.credential import Credential, Secret
from broker.domain.memory import SocketMemory
from broker.domain.session import Session
from broker.domain.turn import Turn
from broker.edge.driver import TurnDriver
from broker.edge.links import Links
from broker.edge.websocket import ClientSocket
from broker.tap import Tap
from broker.upstream.link import Link
from broker.upstream.passage import Passage
from tests.circles import uncollected
from tests.scenarios.house import House, plain, wait_until
from tests.serving import serving

OURS = (ClientSocket, Link, Links, Tap, Passage, TurnDriver, Turn, Session, SocketMemory)


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
    with uncollected(*OURS) as left:
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


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    """A vendor that answers every handshake with a 503."""

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "Service unavailable."}}, status=503)

    async with serving(web.get("/v1/responses", refuse)) as address:
        yield address + "/v1"


@pytest.mark.parametrize("refusal", ["connection", "handshake"])
async def test_a_session_that_goes_leaves_no_circles_when_its_dial_was_refused(
    build: Callable[..., Awaitable[House]], refusal: str
) -> None:
    house = await build()
    async with refusing() as url:
        address = url if refusal == "handshake" else "http://127.0.0.1:1/v1"
        node = await house.node(credentials=[Credential("M", address, Secret("sk-m"), limit_group="M", boundary="m")])
        with uncollected(*OURS) as left:
            for _ in range(3):
                async with plain(node) as socket:
                    await socket.create("one")
                    assert (await socket.until(1))[-1]["type"] == "error"
            await wait_until(lambda: not node.node.sockets)
            await wait_until(lambda: not left())
