"""A balancer of TCP connections: each goes to the next of its targets in turn, whatever is spoken on it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

MOST = 256
"""Connections at a time; what comes beyond is closed at once."""

CONNECT_WITHIN = 2.0
_CHUNK = 64 * 1024


class Balancer:
    """Listens on a port of its own, to be read from `port`; `given` counts the connections of each target."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = 0
        self.given = dict.fromkeys(ports, 0)
        self._ports = list(ports)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MOST:
            writer.transport.abort()
            return
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        try:
            await self._join(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()
        else:
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self._ports[sum(self.given.values()) % len(self._ports)]
        self.given[port] += 1
        async with asyncio.timeout(CONNECT_WITHIN):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK)
        ways = [asyncio.create_task(_pour(reader, inner_writer)), asyncio.create_task(_pour(inner_reader, writer))]
        try:
            await asyncio.gather(*ways)
        except (OSError, asyncio.CancelledError):
            inner_writer.transport.abort()  # one side has reset its connection: so is the other
            raise
        finally:
            for way in ways:
                way.cancel()
            inner_writer.close()


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """All that comes, at the pace of who takes it; an end is passed on as one."""
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    sink.write_eof()
    await sink.drain()
