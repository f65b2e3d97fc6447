"""Clients over HTTP that leave, that read slowly, and nodes that stop under them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace

import orjson
import pytest
from aiohttp import web

from broker.domain.credential import Credential, Secret
from broker.edge.app import Listeners
from broker.edge.outlet import Outlet
from broker.edge.request import ClientRequest
from broker.edge.wiring import Bounds
from broker.simulator import Fault
from broker.upstream.exchange import Exchanges
from tests.circles import uncollected
from tests.scenarios.house import KEY, House, by, counted, everything_in, wait_until
from tests.scenarios.test_collection import OURS
from tests.serving import serving

Build = Callable[..., Awaitable[House]]

UPWARDS = pytest.mark.parametrize("transports", [("websocket",), ("websocket", "http")], ids=["by-socket", "by-http"])
ALL_OURS = (*OURS, ClientRequest, Exchanges, Outlet)
SLOW = "[[deltas:400]] [[slow:20]]"


class Raw:
    """A client over HTTP by the byte: it reads when the test says so, and little at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.read = bytearray()

    def ask(self, text: str, *, name: str = "s", path: str = "responses", **more: object) -> None:
        body = orjson.dumps({"model": "sim-1", "input": text, "store": False, "stream": True, **more})
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {KEY}\r\nx-session-id: {name}\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def until(self, words: bytes, within: float = 5.0) -> None:
        at = 0
        async with asyncio.timeout(within):
            while self.read.find(words, at) < 0:
                at = max(0, len(self.read) - len(words))
                piece = await self.reader.read(1 << 16)
                assert piece, self.read[-1000:]
                self.read += piece

    async def rest(self, within: float = 10.0) -> bytearray:
        """All that comes until the other side closes."""
        async with asyncio.timeout(within):
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(1 << 16):
                    self.read += piece
        return self.read


@contextlib.asynccontextmanager
async def raw(node: Listeners, buffer: int | None = None) -> AsyncIterator[Raw]:
    """A connection, whose kernel takes few bytes by itself where `buffer` is given."""
    wire = socket.socket()
    if buffer is not None:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    wire.setblocking(False)
    await asyncio.get_running_loop().sock_connect(wire, ("127.0.0.1", node.client_port))
    reader, writer = await asyncio.open_connection(sock=wire, limit=1 << 15)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def house_of(build: Build, transports: tuple[str, ...], leave: float = 3.0) -> tuple[House, Listeners]:
    house = await build()
    settings = Bounds(hold=0.2, first_event=5.0, silence=5.0, leave=leave)
    return house, await house.node(credentials=by(house.credentials(), *transports), bounds=settings)


# --- leaving ---


@UPWARDS
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("moment", ["at-once", "after-created", "in-mid-stream"])
async def test_ends_the_turn_upstream_when_its_client_leaves(
    build: Build, transports: tuple[str, ...], stream: bool, moment: str
) -> None:
    house, node = await house_of(build, transports)
    if moment != "in-mid-stream":
        at = "before_created" if moment == "at-once" else "after_created"
        house.sim.faults.set("*", Fault(at=at, do="silence"))
    with uncollected(*ALL_OURS) as left:
        async with raw(node) as client:
            client.ask(SLOW, stream=stream)
            await wait_until(lambda: house.sim.turns and house.sim.turns[-1].outcome == "active")
            if stream and moment == "in-mid-stream":
                await client.until(b"output_text.delta")
        gone = time.monotonic()
        await wait_until(lambda: house.sim.turns[-1].outcome == "lost", within=1.5)
        await wait_until(lambda: not node.node.clients and node.node.dialer.open_links == 0, within=2.0)
        assert time.monotonic() - gone < 2.0
        await wait_until(lambda: not node.node.busy and not left(), within=1.0)

    assert len(house.sim.turns) == 1, "nobody else is asked for somebody who has left"
    assert counted(node, "broker_upstream_failures_total") == 0
    assert not [key for key in await everything_in(house.url) if b":turns" in key]
    house.sim.faults.clear()
    again = house.caller(node, session_id="s")
    assert (await again.turn("two", store=False)).ok


@UPWARDS
async def test_leaves_no_circles_behind_requests_that_end_in_every_way(
    build: Build, transports: tuple[str, ...]
) -> None:
    house, node = await house_of(build, transports)
    caller = house.caller(node, session_id="s")
    assert (await caller.turn("before", store=False)).ok
    with uncollected(*ALL_OURS) as left:
        for stream in (True, False):
            assert (await caller.turn("one", store=False, stream=stream)).ok
            house.sim.faults.set("*", "context_length_exceeded")
            assert (await caller.turn("two", store=False, stream=stream)).status == 400
            house.sim.faults.clear()
            house.sim.faults.set("A", Fault(do="reset"))
            assert (await caller.turn("three", store=False, stream=stream)).ok
            house.sim.faults.set("*", Fault(at="after_deltas", after=1, do="reset"))
            assert not (await caller.turn("four", store=False, stream=stream)).ok
            house.sim.faults.clear()
            assert (await caller.turn("four", store=False, stream=stream)).ok
            refused = await caller.turn("five", parent=None, store=False, stream=stream, previous_response_id="resp_0")
            assert refused.error_code == "previous_response_not_found"
        await wait_until(lambda: not node.node.clients and node.node.dialer.open_links == 0)
        await wait_until(lambda: not left())


@UPWARDS
async def test_serves_the_next_request_on_a_connection_that_is_kept(build: Build, transports: tuple[str, ...]) -> None:
    _, node = await house_of(build, transports)
    async with raw(node) as client:
        for number in range(3):
            client.read.clear()
            client.ask(f"turn {number}")
            await client.until(b"0\r\n\r\n")
            assert client.read.count(b"event: response.completed") == 1
            assert b"200 OK" in client.read
    await wait_until(lambda: not node.node.clients)


# --- reading slowly ---


class Firehose:
    """A vendor that sends one long answer as fast as it is taken, by either transport, and counts."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.sent = 0
        self.url = ""

    def credential(self, transport: str = "http") -> Credential:
        models = frozenset({"sim-1"})
        return Credential("M", self.url, Secret("sk-m"), limit_group="M", models=models, transports=(transport,))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self._narrow(request)
        told = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await told.prepare(request)
        for kind, event in self.events():
            await told.write(b"event: %b\ndata: %b\n\n" % (kind.encode(), event))
            self.sent += len(event)
        return told

    async def converse(self, request: web.Request) -> web.WebSocketResponse:
        self._narrow(request)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.receive()
        for _, event in self.events():
            await ws.send_str(event.decode())
            self.sent += len(event)
        await ws.receive()
        return ws

    def _narrow(self, request: web.Request) -> None:
        """Let the kernel hold little on the way: what waits shall wait here."""
        assert request.transport is not None
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)

    def events(self) -> Iterator[tuple[str, bytes]]:
        item = {"id": "msg_m", "type": "message", "role": "assistant", "status": "completed", "content": []}
        delta: tuple[str, dict[str, object]] = ("output_text.delta", {"delta": "x" * 16_000})
        said: list[tuple[str, dict[str, object]]] = [
            ("created", {"response": {"id": "resp_m", "output": []}}),
            *[delta] * self.pieces,
            ("output_item.done", {"item": item, "output_index": 0}),
            ("completed", {"response": {"id": "resp_m", "status": "completed", "output": [item]}}),
        ]
        for number, (kind, more) in enumerate(said):
            kind = f"response.{kind}"
            yield kind, orjson.dumps({"type": kind, "sequence_number": number, **more})


@contextlib.asynccontextmanager
async def firehose(pieces: int) -> AsyncIterator[Firehose]:
    vendor = Firehose(pieces)
    async with serving(web.post("/v1/responses", vendor.answer), web.get("/v1/responses", vendor.converse)) as address:
        vendor.url = address + "/v1"
        yield vendor


async def stands_still(vendor: Firehose) -> int:
    """What was sent when nothing more was for a while."""
    seen, since, deadline = -1, time.monotonic(), time.monotonic() + 10.0
    while time.monotonic() - since < 0.3:
        assert time.monotonic() < deadline, "it never stops"
        if vendor.sent != seen:
            seen, since = vendor.sent, time.monotonic()
        await asyncio.sleep(0.02)
    return seen


@pytest.mark.parametrize("transport", ["websocket", "http"])
async def test_holds_up_the_vendor_of_a_client_that_does_not_read_and_nobody_else(build: Build, transport: str) -> None:
    house = await build()
    async with firehose(2000) as vendor:
        node = await house.node(credentials=[replace(vendor.credential(transport), priority=-1), *house.credentials()])
        async with raw(node, buffer=16_384) as client:
            client.ask("much")
            await client.until(b"response.created")
            held = await stands_still(vendor)
            assert held < 16_000 * 2000 / 2, "what a client does not take waits at the vendor"
            other = house.caller(node)
            begun = time.monotonic()
            assert (await other.turn("quick", model="sim-2")).ok
            assert time.monotonic() - begun < 2.0
            # it is neither thought dead nor forgotten: it gets the rest
            await client.until(b"event: response.completed", within=20.0)
            assert client.read.count(b"event: response.output_text.delta") == 2000


@pytest.mark.parametrize("transport", ["websocket", "http"])
async def test_cuts_off_a_client_that_reads_nothing_any_more(build: Build, transport: str) -> None:
    house = await build()
    async with firehose(2000) as vendor:
        bounds = Bounds(hold=0.2, first_event=5.0, silence=5.0, leave=3.0, send_timeout=0.5)
        node = await house.node(credentials=[vendor.credential(transport)], bounds=bounds)
        with uncollected(*ALL_OURS) as left:
            async with raw(node, buffer=16_384) as client:
                client.ask("much")
                await client.until(b"response.created")
                await wait_until(lambda: not node.node.clients, within=5.0)
            await wait_until(lambda: not left(), within=2.0)
        assert counted(node, "broker_upstream_failures_total") == 0, "the vendor is not to blame"


# --- the node stops ---


@UPWARDS
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_lets_a_request_come_to_its_end_when_the_node_stops(
    build: Build, transports: tuple[str, ...], stream: bool
) -> None:
    house, node = await house_of(build, transports)
    caller = house.caller(node, session_id="s")
    asked = asyncio.create_task(caller.turn("[[deltas:30]] [[slow:20]]", store=False, stream=stream))
    await wait_until(lambda: house.sim.turns)
    await asyncio.wait_for(node.stop(), 6.0)
    house.nodes.remove(node)
    turn = await asked
    assert turn.ok, (turn.status, turn.error, turn.problems)
    other = await house.node(credentials=by(house.credentials(), *transports))
    caller.move(other)
    assert (await caller.turn("two", store=False)).ok, "it was written"


@UPWARDS
async def test_stops_in_time_although_a_request_would_go_on(build: Build, transports: tuple[str, ...]) -> None:
    house, node = await house_of(build, transports, leave=0.3)
    async with raw(node) as client:
        client.ask(SLOW)
        await client.until(b"output_text.delta")
        begun = time.monotonic()
        await asyncio.wait_for(node.stop(), 6.0)
        assert time.monotonic() - begun < 4.0
        house.nodes.remove(node)
        said = await client.rest()
    assert not said.endswith(b"0\r\n\r\n") or b"event: error" in said, "a stream that is cut off must not look whole"
    assert b"response.completed" not in said
    await wait_until(lambda: house.sim.turns[-1].outcome == "lost", within=2.0)
