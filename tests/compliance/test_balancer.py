"""The balancer: connections take turns, bytes arrive whole and in order, and an end is passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.balancer import Balancer
from tests.compliance.stage import two_nodes
from tests.compliance.target import Target
from tests.scenarios.house import KEY, House, wait_until

WITHIN = 5.0


@asynccontextmanager
async def echoes(count: int) -> AsyncIterator[Balancer]:
    """Servers that say their number and then whatever they hear, until they hear no more."""
    servers = []
    for number in range(count):

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int = number) -> None:
            writer.write(b"%d" % number)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(serve, "127.0.0.1", 0))
    balancer = Balancer([server.sockets[0].getsockname()[1] for server in servers])
    await balancer.start()
    try:
        yield balancer
    finally:
        await balancer.stop()
        for server in servers:
            server.close()


async def asked(balancer: Balancer, data: bytes = b"") -> bytes:
    async with asyncio.timeout(WITHIN):
        reader, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
        sending = asyncio.create_task(_send(writer, data))
        heard = await reader.read(-1)
        await sending
        writer.close()
        return heard


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    writer.write_eof()
    await writer.drain()


async def test_gives_consecutive_connections_to_different_targets() -> None:
    async with echoes(3) as balancer:
        assert [await asked(balancer) for _ in range(6)] == [b"0", b"1", b"2"] * 2


async def test_passes_on_all_bytes_in_both_directions() -> None:
    data = bytes(range(256)) * 8192
    async with echoes(1) as balancer:
        assert await asked(balancer, data) == b"0" + data


async def test_spreads_the_turns_of_one_client_over_both_nodes(house: House, broker: Target) -> None:
    for number in range(4):
        async with broker.socket() as socket:
            await socket.completed(f"number {number}")
    assert [node.node.opened for node in house.nodes] == [2, 2]


async def test_passes_on_that_a_client_is_gone(house: House) -> None:
    async with two_nodes(house) as balancer:
        reader, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        head = f"GET /v1/responses HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{upgrade}{key}\r\n"
        writer.write(head.encode())
        assert b" 101 " in await reader.readuntil(b"\r\n")
        await wait_until(lambda: sum(len(node.node.sockets) for node in house.nodes) == 1)
        writer.transport.abort()
        await wait_until(lambda: not any(node.node.sockets for node in house.nodes))
