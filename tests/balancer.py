"""A balancer of TCP connections that notes what clients ask: each goes to the next of its targets that takes it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence

MOST = 256
"""Connections at a time; what comes beyond is closed at once."""

CONNECT_WITHIN = 2.0
_CHUNK = 64 * 1024
_REQUEST = re.compile(rb"(GET|POST|DELETE|PATCH|PUT|HEAD|OPTIONS) ([^ ?\r\n]+)[^ \r\n]* HTTP/1\.1\r\n")
_UPGRADE = re.compile(rb"(?i)\r\nupgrade: *websocket\r\n")

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class Balancer:
    """Listens on a port of its own, to be read from `port`.

    `asked` has the requests of all clients in the order in which they came, such as "POST /v1/responses", and of those
    that became a WebSocket "WS /v1/responses". A request begins where a client begins to write: none of them pipelines.
    `open` counts the connections of each target, until its clients have been told of their end.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.open: Counter[int] = Counter()
        self._targets = list(targets)
        self._connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Balancer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Listen no more, and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= MOST:
            writer.transport.abort()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            port, inner_reader, inner_writer = await self._next()
            self.open[port] += 1
            task.add_done_callback(lambda _: self.open.subtract([port]))
            await self._join(reader, writer, inner_reader, inner_writer)
            writer.close()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()

    async def _join(self, reader: Reader, writer: Writer, inner_reader: Reader, inner_writer: Writer) -> None:
        up = asyncio.create_task(self._send_up(reader, inner_writer))
        down = asyncio.create_task(self._pour(inner_reader, writer))
        ways = (up, down)
        try:
            # a target's end is the end; a client that has no more to say may still hear
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
            await down
        except (OSError, asyncio.CancelledError):
            inner_writer.transport.abort()  # one side has reset its connection: so is the other
            raise
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            inner_writer.close()

    async def _next(self) -> tuple[int, Reader, Writer]:
        """The target whose turn it is, or the next one that is alive, with a connection to it."""
        for _ in self._targets:
            port = self._targets[self._connections % len(self._targets)]
            self._connections += 1
            try:
                async with asyncio.timeout(CONNECT_WITHIN):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK)
                return port, reader, writer
            except OSError:
                continue
        raise ConnectionRefusedError("no target takes connections")

    async def _send_up(self, reader: Reader, inner_writer: Writer) -> None:
        await self._pour(reader, inner_writer, noted=True)
        inner_writer.write_eof()
        await inner_writer.drain()

    async def _pour(self, source: Reader, sink: Writer, noted: bool = False) -> None:
        """All that comes, at the pace of who takes it."""
        while data := await source.read(_CHUNK):
            noted = noted and self._note(data)
            sink.write(data)
            await sink.drain()

    def _note(self, data: bytes) -> bool:
        """Note the request that begins here, if one does; False where what follows is frames."""
        if (begun := _REQUEST.match(data)) is None:
            return True
        upgrades = _UPGRADE.search(data) is not None
        method = "WS" if upgrades else begun[1].decode()
        self.asked.append(f"{method} {begun[2].decode()}")
        return not upgrades
