"""Small servers for what a healthy Redis will not do: lose an answer, grumble, or never come to an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


class Cutter:
    """Stands before a server and, while `lose` is above 0, cuts the connection instead of handing an answer on."""

    def __init__(self, target: str) -> None:
        self.lose = 0
        self._target = target

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        up_reader, up_writer = await asyncio.open_unix_connection(self._target)
        forth = asyncio.create_task(self._forward(reader, up_writer))
        try:
            while answer := await up_reader.read(1 << 20):
                if self.lose > 0:
                    self.lose -= 1
                    break
                writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            forth.cancel()
            up_writer.close()
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            writer.write(data)
            await writer.drain()
        writer.close()


class Grumbler:
    """Answers `answer` to every command but PING, and tells what it was asked.

    A command about the key `late` is answered when `may_answer` is set.
    """

    def __init__(self, answer: bytes, *, late: bytes = b"") -> None:
        self.answer = answer
        self.late = late
        self.may_answer = asyncio.Event()
        self.asked: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while head := await reader.readline():
                words = []
                for _ in range(int(head[1:])):
                    length = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(length + 2))[:-2])
                if words[0] == b"PING":  # what the client library asks of every new socket
                    writer.write(b"+PONG\r\n")
                    continue
                self.asked.append(words[0])
                if self.late and words[1] == self.late:
                    await self.may_answer.wait()
                writer.write(self.answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class Dripper:
    """Answers whatever it is asked with a few bytes a second of something that never ends."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            await reader.read(1 << 20)
            writer.write(b"$100000000\r\n")
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(handler: Handler, folder: Path) -> AsyncIterator[str]:
    """The URL under which `handler` serves; what it still serves ends with the context."""
    path = str(folder / "wire")
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(handler(reader, writer)))

    server = await asyncio.start_unix_server(accept, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
