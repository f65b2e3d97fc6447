"""The way to a client whose socket nobody taps: it is asked after each write whether the client is behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from aiohttp import ClientConnectionError
from aiohttp.abc import AbstractStreamWriter

BEHIND = 64 * 1024
"""Bytes that may wait for a client before its upstream is paused; the high-water mark of transports."""


class Outlet:
    """Writes to a client's transport, and says by `on_behind` when it falls behind with reading, and catches up."""

    __slots__ = ("_catching_up", "_on_behind", "_transport", "_writer")

    def __init__(
        self, transport: asyncio.Transport, writer: AbstractStreamWriter, on_behind: Callable[[bool], None]
    ) -> None:
        self._transport = transport
        self._writer = writer
        self._on_behind = on_behind
        self._catching_up: asyncio.Task[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        """These bytes, as they are."""
        self._transport.write(data)
        if self._catching_up is None and self._transport.get_write_buffer_size() > BEHIND:
            self._on_behind(True)
            self._catching_up = asyncio.create_task(self._catch_up(), name="client-behind")

    async def _catch_up(self) -> None:
        try:
            with contextlib.suppress(ClientConnectionError, ConnectionError):
                await self._writer.drain()
        finally:
            self._catching_up = None
            self._on_behind(False)
