"""A vendor of bare sockets that writes what it is told, cut as it is told, and a client that keeps every byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from broker.domain.credential import Credential, Secret
from broker.domain.session import derive_sid
from broker.edge.app import Listeners
from broker.edge.node import Node, StoreSettings
from broker.edge.wiring import Bounds
from broker.upstream.dialer import DialSettings
from tests.scenarios.house import KEY, TENANTS
from tests.upstream.frames import CLOSE, PING, PONG, TEXT, Frame, messages, read

WITHIN = 10.0
MAX_FRAME = 1 << 20
ENDS = re.compile(rb'^\s*\{\s*"type"\s*:\s*"(response\.(completed|incomplete|done|failed)|error)"')
_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def loop_turn(times: int = 3) -> None:
    """Let everything that is ready run, so that what was written arrives by itself."""
    for _ in range(times):
        await asyncio.sleep(0)


@dataclass
class Plan:
    """What the vendor writes once it has got `creates` requests of this name.

    `end` sends FIN behind it, as soon as so many pings are answered.
    """

    chunks: Sequence[bytes]
    end: int | None = None
    creates: int = 1
    written: bool = False
    pongs: list[bytes] = field(default_factory=list)
    sent: int = 0

    def answered(self, pings: int) -> bool:
        """Whether all is written, and so many pings have their answers."""
        return self.written and len(self.pongs) >= pings


class Upstream:
    """The vendor. A request's `input` names the plan by which it is answered."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        self.seen: list[bytes] = []
        """The requests as they came."""
        self.port = 0
        self.early = b""
        """Bytes that come in one piece with the answer to the handshake."""
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving, timeout=5.0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer.write(_accepted(head) + self.early)
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left, waiting, plan = bytearray(), defaultdict[str, int](int), Plan(())
        writing: asyncio.Task[None] | None = None
        try:
            while data := await reader.read(1 << 16):
                left += data
                frames, rest = read(left)
                left[:] = rest
                for frame in frames:
                    if frame.opcode == PONG:
                        plan.pongs.append(frame.payload)
                    elif frame.opcode == PING:
                        writer.write(Frame(frame.payload, PONG).encode())
                    elif frame.opcode == TEXT:
                        self.seen.append(frame.payload)
                        name = orjson.loads(frame.payload)["input"]
                        plan = self.plans[name]
                        waiting[name] += 1
                        if waiting[name] == plan.creates:
                            waiting[name] = 0
                            writing = asyncio.create_task(self._write(plan, writer))
                    elif frame.opcode == CLOSE:
                        return
        finally:
            if writing is not None:
                writing.cancel()

    async def _write(self, plan: Plan, writer: asyncio.StreamWriter) -> None:
        plan.pongs.clear()
        try:
            for chunk in plan.chunks:
                writer.write(chunk)
                plan.sent += len(chunk)
                await loop_turn()
                await writer.drain()
            if plan.end is not None:
                async with asyncio.timeout(WITHIN):
                    while len(plan.pongs) < plan.end:
                        await loop_turn()
                writer.write_eof()
        except ConnectionError:
            pass
        plan.written = True


def _accepted(head: bytes) -> bytes:
    found = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
    assert found is not None
    accept = base64.b64encode(hashlib.sha1(found[1] + _ACCEPT, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class RawClient:
    """A client socket of which every byte is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.raw = bytearray()
        self.frames: list[Frame] = []
        self._reader = reader
        self._writer = writer
        self._left = b""

    @classmethod
    async def connect(cls, port: int, session: str, *, receive: int = 0) -> RawClient:
        sock = socket.socket()
        sock.setblocking(False)
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=receive or 1 << 16)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            "GET /v1/responses HTTP/1.1",
            "Host: broker",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            f"Authorization: Bearer {KEY}",
            f"x-session-id: {session}",
        )
        writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head, head
        return cls(reader, writer)

    def create(self, name: str, lane: str | None = None) -> None:
        frame = {"type": "response.create", "model": "sim-1", "store": False, "input": name}
        self.send(Frame(orjson.dumps(frame if lane is None else frame | {"stream_id": lane}), mask=b"\0\0\0\0"))

    def send(self, frame: Frame) -> None:
        self.send_raw(frame.encode())

    @property
    def over(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._writer.is_closing()

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def sent(self) -> None:
        """Returns when the broker has taken nearly all that was sent, or has cut the socket."""
        with suppress(ConnectionError):
            await self._writer.drain()

    async def more(self) -> list[Frame]:
        """The next frames; none when the other side has ended."""
        while True:
            data = await self._reader.read(1 << 16)
            self.raw += data
            found, self._left = read(self._left + data)
            self.frames += found
            if found or not data:
                return found

    async def raw_bytes(self) -> bytes:
        """What there is to read, as it is."""
        return await self._reader.read(1 << 20)

    async def until_ended(self, turns: int = 1) -> list[bytes]:
        """The text messages up to the given number of endings, and what else came before a ping was answered."""
        texts: list[bytes] = []
        async with asyncio.timeout(WITHIN):
            while sum(ENDS.match(text) is not None for text in texts) < turns:
                frames = await self.more()
                if not frames:
                    return [*texts, b"(the socket ended)"]
                texts += messages(frames)
        return texts + await self.settled()

    async def settled(self) -> list[bytes]:
        """What comes before the broker answers a ping."""
        word, texts, answered = os.urandom(8), list[bytes](), False
        self.send(Frame(word, PING, mask=b"\0\0\0\0"))
        async with asyncio.timeout(WITHIN):
            while not answered:
                frames = await self.more()
                if not frames:
                    return [*texts, b"(the socket ended)"]
                answered = any(frame.opcode == PONG and frame.payload == word for frame in frames)
                texts += messages(frames)
        return texts

    async def leave(self) -> bytes:
        """Close; the answer is what the broker's close says."""
        self.send(Frame((1000).to_bytes(2, "big"), CLOSE, mask=b"\0\0\0\0"))
        async with asyncio.timeout(WITHIN):
            while await self.more():
                pass
        await self.abort()
        return b"|".join(frame.payload for frame in self.frames if frame.opcode == CLOSE)

    async def abort(self) -> None:
        self._writer.transport.abort()
        await loop_turn()


class Bench:
    """One vendor, and a node for each path in front of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.upstream = Upstream()
        self.nodes: dict[str, Listeners] = {}

    async def start(self, **bounds: Any) -> Self:
        await self.upstream.start()
        for path, passage in (("fast", True), ("ordinary", False)):
            self.nodes[path] = await self._node(path, passage, bounds)
        return self

    async def _node(self, path: str, passage: bool, bounds: dict[str, Any]) -> Listeners:
        times = {"hold": 5.0, "first_event": 10.0, "silence": 10.0, "leave": 2.0, **bounds}
        node = Node(
            path,
            tenants=TENANTS[:1],
            credentials=[Credential("A", f"http://127.0.0.1:{self.upstream.port}", Secret("sk-A"), boundary="org-a")],
            store=StoreSettings(self.url, refresh=1.0),
            bounds=Bounds(**times, tap=passage),
            dial=DialSettings(connect=2.0, max_frame=MAX_FRAME, heartbeat=60.0),
        )
        listeners = Listeners(node)
        await listeners.start(("127.0.0.1", 0), ("127.0.0.1", 0))
        return listeners

    async def stop(self) -> None:
        for listeners in self.nodes.values():
            await listeners.stop()
        await self.upstream.stop()

    async def client(self, path: str, session: str, **more: Any) -> RawClient:
        return await RawClient.connect(self.nodes[path].client_port, session, **more)

    async def kept(self, path: str, session: str, response_id: str) -> tuple[bytes, bytes] | None:
        """The items of a committed turn: what went in, what came out."""
        store, sid = self.nodes[path].node.store, derive_sid("team-a", session)
        meta = await store.find(sid, response_id)
        if meta is None:
            return None
        items = (await store.chain(sid, meta.turn_id))[-1].items
        return items.inputs, items.outputs


@asynccontextmanager
async def bench(url: str, **bounds: Any) -> AsyncIterator[Bench]:
    built = Bench(url)
    try:
        yield await built.start(**bounds)
    finally:
        await built.stop()
