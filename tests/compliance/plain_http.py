"""HTTP as bytes on a socket: for what no client library would send, and to see whether a connection goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import orjson

WITHIN = 5.0
"""Seconds for one answer."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer; the names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error in it, which must have the vendor's form and may not be long (protocol.md 6.1.5)."""
        assert self.headers["content-type"].split(";")[0] == "application/json", self
        body = orjson.loads(self.body)
        assert list(body) == ["error"], self.body
        error: dict[str, Any] = body["error"]
        assert error.keys() >= {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str) and 0 < len(error["message"]) < 1000
        assert error["type"] and error["code"]
        return error


class Connection:
    """One connection; what is sent on it is up to the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> Self:
        self._writer.write(data)
        await self._writer.drain()
        return self

    async def answer(self, within: float = WITHIN) -> Answered:
        """The next answer, whole; raises `IncompleteReadError` where the connection ends before."""
        async with asyncio.timeout(within):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            return Answered(int(head[0].split(" ")[1]), headers, await self._body(headers))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", "0")))
        parts: list[bytes] = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(parts)

    async def ended(self, within: float = WITHIN) -> bool:
        """Whether the other side ends the connection in time, and says nothing more before."""
        try:
            async with asyncio.timeout(within):
                return await self._reader.read(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def abort(self) -> None:
        """End it with whatever is under way."""
        self._writer.transport.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A connection to a port of this machine; gone behind the block."""
    async with asyncio.timeout(WITHIN):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        connection.abort()


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    key: str | None = None,
    length: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request as bytes; `length` is a Content-Length that is not that of the body, an empty header is left out."""
    told = {"Host": "broker", "Content-Type": "application/json"}
    if key is not None:
        told["Authorization"] = f"Bearer {key}"
    if body is not None:
        told["Content-Length"] = str(len(body) if length is None else length)
    told |= headers or {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (body or b"")
