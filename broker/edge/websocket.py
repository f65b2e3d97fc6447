"""The WebSocket codec: one client socket, its lanes, its turns."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict

import orjson
from aiohttp import ClientConnectionError, WSMsgType, web

from broker.domain import errors, events, wire
from broker.domain.commands import Outcome
from broker.domain.errors import ErrorReply
from broker.domain.lanes import Lanes, LanesFull
from broker.domain.memory import SocketMemory
from broker.domain.session import Session
from broker.domain.turn import Request, State
from broker.domain.wire import BadFrame, ClientFrame
from broker.edge.access import Tenant
from broker.edge.driver import TurnDriver
from broker.edge.links import Links
from broker.edge.wiring import Wiring
from broker.upstream.connection import Link, LinkClosed, LinkLost
from broker.upstream.passage import Sink

log = logging.getLogger(__name__)

WAITING_FRAMES = 2
"""How many frames of the largest size may wait on one socket."""

BEHIND = 64 * 1024
"""Bytes that may wait for a client before its upstream is paused; the high-water mark of transports."""

_CLEAN = frozenset({None, 0, 1000, 1001, 1005})
"""Close codes by which a client says that it is done; 0 and 1005 are closes without a code."""

SUCCESSOR_WITHIN = 2.0
"""Seconds for which a lane is kept free for the successor of a steered response."""

FORWARDED = ("openai-beta",)
"""Handshake headers of the client that the vendor needs to see."""


class ClientSocket:
    """One client socket: reads frames, starts turns as their lanes allow, and writes what they relay."""

    def __init__(
        self,
        wiring: Wiring,
        ws: web.WebSocketResponse,
        tenant: Tenant,
        session: Session,
        *,
        explicit: bool,
        request: web.Request,
    ) -> None:
        self.wiring = wiring
        self.tenant = tenant
        self.session = session
        self.explicit = explicit
        self.memory = SocketMemory()
        self.lanes: Lanes[TurnDriver] = Lanes(max_waiting=wiring.bounds.lane_queue)
        forwarded = {name: request.headers[name] for name in FORWARDED if name in request.headers}
        self.links = Links(wiring.dialer, forwarded, self.aside, chance=wiring.chance.random)
        self.sending_since: float | None = None
        self._ws = ws
        self._transport = request.transport
        self.sink: Sink | None = RawWriter(self, request) if wiring.bounds.passage else None
        self._waiting_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._steers: dict[str | None, _Steers] = defaultdict(_Steers)

    @property
    def keeps_transcript(self) -> bool:
        """Whether this client's turns may be recorded."""
        return self.tenant.transcript and self.wiring.bounds.transcript

    @property
    def sending(self) -> bool:
        """Whether the client is behind with reading."""
        return self.sending_since is not None

    def join(self, session: Session) -> None:
        """The client has found back to a session; what it begins next belongs there, unless it has named another."""
        if not self.explicit:
            self.session = session

    # --- to the client ---

    async def send(self, raw: bytes) -> None:
        """One event to the client; waits while the client is behind. To a client that has left, nothing is sent."""
        if self._ws.closed:
            return
        first = self.begin_sending()
        try:
            await self._ws.send_frame(raw, WSMsgType.TEXT)
        except (ClientConnectionError, ConnectionError, RuntimeError):
            pass
        finally:
            self.end_sending(first)

    def begin_sending(self) -> bool:
        """Something waits for the client; True if nothing did before: the oldest wait is the one that counts."""
        if self.sending_since is not None:
            return False
        self.sending_since = time.monotonic()
        return True

    def end_sending(self, first: bool) -> None:
        """What waited is gone; `first` is what `begin_sending` said."""
        if first:
            self.sending_since = None

    async def send_all(self, frames: tuple[bytes, ...]) -> None:
        """Several events to the client, in one write where that can be."""
        sink = self.sink
        if sink is None or self._ws.closed:
            for raw in frames:
                await self.send(raw)
        elif not sink.write(b"".join([part for raw in frames for part in (_header(len(raw)), raw)])):
            await sink.drained()

    async def refuse(self, reply: ErrorReply, lane: str | None = None) -> None:
        """An error that belongs to no turn; the socket stays."""
        await self.send(reply.event(lane))

    async def close(self, code: int, reason: str) -> None:
        """Close the client's socket, with a reason."""
        self.wiring.metrics.closes.labels(str(code)).inc()
        await self._ws.close(code=code, message=reason.encode())

    def abort(self) -> None:
        """Cut off a client that takes nothing any more."""
        if self._transport is not None:
            self._transport.abort()

    # --- from the client ---

    async def serve(self) -> None:
        """Read until the client leaves, then let go of everything, bounded in time."""
        clean = False
        try:
            while True:
                message = await self._ws.receive()
                if message.type is WSMsgType.TEXT:
                    await self._take(message.data)
                elif message.type is WSMsgType.BINARY:
                    await self.refuse(
                        errors.bad_request("invalid_frame", "Send text frames that hold one JSON object.")
                    )
                else:
                    # 1011 and the like say that the client lost its patience or its network, not its interest
                    clean = message.type is WSMsgType.CLOSE and message.data in _CLEAN
                    break
        finally:
            await self._leave(clean)

    async def _leave(self, clean: bool) -> None:
        self.lanes.abandon()
        for driver in self.lanes.all_running():
            driver.leave()
        if self._tasks:
            # a commit under way is finished; everything else ends with the client
            await asyncio.wait(self._tasks, timeout=self.wiring.bounds.leave)
        await self.links.close()
        if clean and not self.explicit:
            await self.wiring.sessions.close_cleanly(self.memory.sessions())

    async def _take(self, raw: bytes) -> None:
        lane = None
        try:
            frame, raw = wire.read_client_frame(raw)
            lane = frame.stream_id
            if frame.type == "response.create":
                self._create(frame, raw)
            elif frame.type == "response.steer":
                await self._steer(frame, raw)
            elif frame.type != "response.processed":
                message = (
                    f"Unknown event type {frame.type[:64]!r}; this broker takes response.create and response.steer."
                )
                raise BadFrame("unsupported_event_type", message, "type")
        except BadFrame as bad:
            known = lane if bad.code != "invalid_stream_id" else None
            await self.refuse(errors.bad_request(bad.code, bad.message, bad.param), known)
        except LanesFull:
            message = f"More than {self.lanes.max_waiting} requests wait on this connection."
            await self.refuse(errors.overloaded(message), lane)

    def _create(self, frame: ClientFrame, raw: bytes) -> None:
        request = Request(
            turn_id=new_turn_id(),
            lane=frame.stream_id,
            raw=raw,
            items=wire.input_items(bytes(frame.input)),
            model=frame.model or "",
            previous_response_id=frame.previous_response_id,
            store=frame.store is not False,
            binding=wire.binds(raw, frame),
        )
        if self._waiting_bytes + len(raw) > WAITING_FRAMES * self.wiring.bounds.max_frame:
            raise LanesFull
        driver = TurnDriver(self, request, self.session)
        if self.lanes.admit(frame.stream_id, driver):
            self._start(driver, events.Began())
        else:
            self._waiting_bytes += len(raw)

    def _start(self, driver: TurnDriver, first: events.Event) -> None:
        task = asyncio.create_task(self._run(driver, first), name=f"turn:{driver.request.turn_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, driver: TurnDriver, first: events.Event) -> None:
        lane = driver.request.lane
        try:
            await driver.run(first)
        except Exception as error:
            # a fault of ours: the client gets an honest end, the socket and the other lanes go on
            log.exception("turn broke", extra={"session": driver.turn.session.sid, "turn": driver.request.turn_id})
            self.wiring.metrics.turns.labels("broken").inc()
            await self.refuse(
                ErrorReply(
                    500,
                    "broker_error",
                    f"The broker failed ({type(error).__name__}); nothing of this turn was kept.",
                    "server_error",
                ),
                lane,
            )
        finally:
            if self._steers[lane].accepted and driver.turn.outcome is Outcome.COMPLETED:
                # the upstream goes on by itself; what waits on this lane comes after that
                asyncio.get_running_loop().call_later(SUCCESSOR_WITHIN, self._release, lane, driver)
            else:
                self._release(lane, driver)

    def _release(self, lane: str | None, driver: TurnDriver) -> None:
        """Let the next creates run, if this turn was the last on its lane."""
        if self.lanes.running(lane) is not driver or self._ws.closed:
            return
        for waiting in self.lanes.finished(lane):
            self._waiting_bytes -= len(waiting.request.raw)
            waiting.turn.session = self.session
            self._start(waiting, events.Began())

    # --- steering ---

    async def _steer(self, frame: ClientFrame, raw: bytes) -> None:
        target = frame.previous_response_id or ""
        running = next((d for d in self.lanes.all_running() if d.response_id and d.response_id == target), None)
        if running is None or running.link is None:
            await self.send(_steer_failed(target, bytes(frame.input)))
            return
        words = wire.input_items(bytes(frame.input)).strip()[1:-1]
        self._steers[running.request.lane].sent.append((target, words))
        try:
            await running.link.send(raw)
        except (LinkClosed, LinkLost):
            self.drop_steers(running.request.lane)
            await self.send(_steer_failed(target, bytes(frame.input)))

    async def aside(self, link: Link, raw: bytes, lane: str | None) -> None:
        """An event that belongs to no running turn: a steer's answer, its successor, or the echo of one that ended."""
        kind = wire.event_type(raw)
        if kind == "response.created" and self._steers[lane].accepted:
            self._succeed(link, raw, lane)
        elif kind.startswith("response.steer."):
            self.note_steer(raw, lane)
            await self.send(raw)

    def note_steer(self, raw: bytes, lane: str | None) -> None:
        """Follow which steers the upstream has taken: their words become part of the conversation."""
        steers, kind = self._steers[lane], wire.event_type(raw)
        if steers.sent and kind in ("response.steer.accepted", "response.steer.failed"):
            steer = steers.sent.pop(0)
            if kind == "response.steer.accepted":
                steers.accepted.append(steer)
        running = self.lanes.running(lane)
        if kind == "response.steer.pending" and running is not None and running.turn.state is State.ENDED:
            self._release(lane, running)  # it waits for what only the client can send

    def take_steers(self, lane: str | None, target: str | None) -> list[bytes]:
        """The accepted steers of the response `target`, which the next response on this lane answers."""
        accepted, self._steers[lane].accepted = self._steers[lane].accepted, []
        return [words for of, words in accepted if of == target]

    def drop_steers(self, lane: str | None) -> None:
        """The response they were for has failed; they went with it."""
        self._steers.pop(lane, None)

    def _succeed(self, link: Link, raw: bytes, lane: str | None) -> None:
        newest, running = self.memory.newest(lane), self.lanes.running(lane)
        if newest is None or (running is not None and running.turn.state is not State.ENDED):
            return
        parent, session = newest
        request = Request(
            turn_id=new_turn_id(),
            lane=lane,
            raw=b"",
            items=b"[]",
            previous_response_id=parent.response_id,
            store=parent.meta is not None and parent.meta.store,
        )
        driver = TurnDriver(self, request, session)
        driver.ride(link, wire.response_of(raw)[0])
        self.lanes.adopt(lane, driver)
        self._start(driver, events.Succeeded(link.credential, parent, raw))


class RawWriter:
    """Writes frames to a client as the bytes they are, beside what `ClientSocket.send` writes frame by frame."""

    def __init__(self, socket: ClientSocket, request: web.Request) -> None:
        self._socket = socket
        self._transport = request.transport
        self._writer = request.writer
        self._first = False

    def write(self, data: bytes) -> bool:
        """Write whole frames; False if the client is behind."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return True
        transport.write(data)
        if transport.get_write_buffer_size() <= BEHIND:
            return True
        self._first = self._socket.begin_sending() or self._first
        return False

    async def drained(self) -> None:
        """Wait until the client has caught up, or is gone."""
        try:
            await self._writer.drain()
        except (ClientConnectionError, ConnectionError):
            pass
        finally:
            self._socket.end_sending(self._first)
            self._first = False


def _header(size: int) -> bytes:
    """The header of a whole, unmasked text frame (RFC 6455 5.2)."""
    if size < 126:
        return bytes((0x81, size))
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


class _Steers:
    """The steers of one lane, each with the response it is for: sent and not yet answered, and accepted."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.accepted: list[tuple[str, bytes]] = []


def _steer_failed(target: str, raw_input: bytes) -> bytes:
    error = {
        "type": "invalid_request_error",
        "code": "response_not_found",
        "message": "No response with this id is active.",
    }
    steer = wire.join({"previous_response_id": orjson.dumps(target), "input": raw_input})
    return wire.join({"type": b'"response.steer.failed"', "error": orjson.dumps(error), "steer": steer})


def new_turn_id() -> str:
    """128 bits that sort by time: 48 bits of milliseconds, 80 bits of chance."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"
