"""The WebSocket codec: one client socket, its lanes, its turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable

import orjson
from aiohttp import WSMsgType, web

from broker.domain import errors, events, wire
from broker.domain.commands import Outcome
from broker.domain.errors import ErrorReply
from broker.domain.frames import text_header
from broker.domain.headers import up, without_turn_state
from broker.domain.lanes import Lanes, LanesFull
from broker.domain.memory import SocketMemory
from broker.domain.presentation import PRESENTATION, kind_of
from broker.domain.session import Session
from broker.domain.turn import Request, State
from broker.domain.wire import BadFrame, ClientFrame
from broker.edge.access import Tenant
from broker.edge.downstream import Downstream
from broker.edge.driver import TurnDriver, broken
from broker.edge.links import AnyLink, Links
from broker.edge.outlet import Outlet
from broker.edge.wiring import Wiring
from broker.tap import Tap
from broker.upstream.link import LinkClosed
from broker.upstream.passage import Write

WAITING_FRAMES = 2
"""How many frames of the largest size may wait on one socket."""

UNREAD = 1024 * 1024
"""Bytes that may wait for a client that asks for one refusal after the other."""

MAX_STEERS = 32
"""Steers of one lane that may wait for the vendor's answer (protocol.md 2.4)."""

_CLEAN = frozenset({None, 0, 1000, 1001, 1005})
"""Close codes by which a client says that it is done; 0 and 1005 are closes without a code."""

SUCCESSOR_WITHIN = 2.0
"""Seconds for which a lane is kept free for the successor of a steered response."""


class ClientSocket(Downstream):
    """One client socket: takes its frames, starts turns as their lanes allow, and writes what they relay."""

    __slots__ = (
        "_gathered",
        "_quiet",
        "_running",
        "_steers",
        "_tap",
        "_transport",
        "_waiting_bytes",
        "_ws",
        "direct",
        "lanes",
        "memory",
    )

    def __init__(
        self,
        wiring: Wiring,
        ws: web.WebSocketResponse,
        tenant: Tenant,
        session: Session,
        *,
        explicit: bool,
        request: web.Request,
        tap: Tap | None,
    ) -> None:
        assert request.transport is not None
        super().__init__(wiring, tenant, session, PRESENTATION[kind_of(request.headers)], explicit=explicit)
        self.memory = SocketMemory()
        self.lanes: Lanes[TurnDriver] = Lanes(max_waiting=wiring.bounds.lane_queue)
        self.links = Links(wiring.dialer, up(request.headers, websocket=True), self, chance=wiring.chance.random)
        self._ws = ws
        self._transport = request.transport
        self._waiting_bytes = 0
        self._running = 0
        self._quiet: asyncio.Event | None = None
        self._steers: dict[str | None, _Steers] = {}
        self._tap = tap
        self._gathered: list[bytes | memoryview] | None = None
        outlet = Outlet(self._transport, request.writer, self.fall_behind) if tap is None else None
        self.direct: Write = self._transport.write if outlet is None else outlet.write
        if tap is not None:
            tap.on_behind = self.fall_behind
            tap.begin(self.take)

    def join(self, session: Session) -> None:
        """The client has found back to a session; what it begins next belongs there, unless it has named another."""
        if not self.explicit:
            self.session = session

    # --- to the client ---

    def send(self, frames: Iterable[bytes]) -> None:
        """Events to the client, in one write. To a client that has left, nothing is sent."""
        if not self._ws.closed and not self._transport.is_closing():
            self.write(b"".join([part for raw in frames for part in (text_header(len(raw)), raw)]))

    def write(self, data: bytes | memoryview) -> None:
        """Whole frames to the client, as the bytes they are."""
        if self._gathered is None:
            self.direct(data)
        else:
            self._gathered.append(data)

    def gather(self) -> None:
        """What is written from now on leaves in one write, with `flush`."""
        if self._gathered is None:
            self._gathered = []

    def flush(self) -> None:
        """Write what was gathered, if anything was."""
        gathered, self._gathered = self._gathered, None
        if gathered and not self._transport.is_closing():
            if self._tap is None:
                self.direct(b"".join(gathered))
            else:
                self._transport.writelines(gathered)

    def keep_alive(self, lane: str | None) -> None:
        """Some clients give up where no message comes, however well the socket is."""
        if self.presentation is not None and (frame := self.presentation.keep_alive) is not None:
            self.send((frame,))

    def refuse(self, reply: ErrorReply, lane: str | None = None) -> None:
        """An error that belongs to no turn; the socket stays."""
        self._answer(reply.event(lane))

    def _answer(self, raw: bytes) -> None:
        """What a frame of the client leads to at once; a client that reads none of what it asks for is cut off."""
        if self._transport.get_write_buffer_size() > UNREAD:
            self.abort()
        else:
            self.send((raw,))

    async def close(self, code: int, reason: str) -> None:
        """Close the client's socket, with a reason."""
        self.wiring.metrics.closes.inc(str(code))
        self.left = True
        self.links.hold()
        await self._ws.close(code=code, message=reason.encode())

    def abort(self) -> None:
        """Cut off a client that takes nothing any more."""
        self.left = True
        self._transport.abort()

    # --- from the client ---

    async def serve(self) -> None:
        """Stay until the client leaves, then let go of everything, bounded in time."""
        clean = False
        try:
            while True:
                message = await self._ws.receive()
                if message.type is WSMsgType.TEXT:
                    self.take(message.data)
                elif message.type is WSMsgType.BINARY:
                    self.refuse(errors.bad_request("invalid_frame", "Send text frames that hold one JSON object."))
                else:
                    # 1011 and the like say that the client lost its patience or its network, not its interest
                    clean = message.type is WSMsgType.CLOSE and message.data in _CLEAN
                    break
                if self._tap is not None:
                    self._tap.taken()
        finally:
            await self._leave(clean)

    async def _leave(self, clean: bool) -> None:
        self.left = True
        self.lanes.abandon()
        for driver in self.lanes.all_running():
            driver.leave()
        if self._running:
            # a commit under way is finished; everything else ends with the client
            self._quiet = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.wiring.bounds.leave):
                    await self._quiet.wait()
        await self.links.close()
        if self._transport.get_write_buffer_size():
            # one that does not even read its own goodbye keeps no memory for ever
            asyncio.get_running_loop().call_later(self.wiring.bounds.leave, self._transport.abort)
        self.direct = self._transport.write  # not ourselves: what is gone shall not go round in circles
        if clean and not self.explicit:
            await self.wiring.sessions.close_cleanly(self.memory.sessions())

    def take(self, raw: bytes) -> None:
        """One text frame of the client."""
        if self.left:
            return
        lane = None
        try:
            frame, raw = wire.read_client_frame(raw)
            lane = frame.stream_id
            if frame.type == "response.create":
                self._create(frame, raw)
            elif frame.type == "response.steer":
                self._steer(frame, raw)
            elif frame.type != "response.processed":
                message = (
                    f"Unknown event type {frame.type[:64]!r}; this broker takes response.create and response.steer."
                )
                raise BadFrame("unsupported_event_type", message, "type")
        except BadFrame as bad:
            known = lane if bad.code != "invalid_stream_id" else None
            self.refuse(errors.bad_request(bad.code, bad.message, bad.param), known)
        except LanesFull:
            message = f"More than {self.lanes.max_waiting} requests wait on this connection."
            self.refuse(errors.overloaded(message), lane)

    def _create(self, frame: ClientFrame, raw: bytes) -> None:
        binding = wire.binds(raw, frame)
        if frame.client_metadata != wire.NULL:
            raw = without_turn_state(raw)
        request = Request(
            turn_id=new_turn_id(),
            lane=frame.stream_id,
            raw=raw,
            items=wire.input_items(bytes(frame.input)),
            model=frame.model or "",
            previous_response_id=frame.previous_response_id,
            store=frame.store is not False,
            binding=binding,
            needs=wire.owned(frame, binding) if binding is not None else (),
        )
        if self._waiting_bytes + len(raw) > WAITING_FRAMES * self.wiring.bounds.max_frame:
            raise LanesFull
        driver = TurnDriver(self, request, self.session)
        if self.lanes.admit(frame.stream_id, driver):
            self._begin(driver, events.Began())
        else:
            self._waiting_bytes += len(raw)

    def _begin(self, driver: TurnDriver, first: events.Event) -> None:
        self._running += 1
        driver.begin(first)

    def broke(self, driver: TurnDriver, error: Exception) -> None:
        """A fault of ours: the client gets an honest end, the socket and the other lanes go on."""
        self.refuse(broken(driver, error), driver.request.lane)

    def ended(self, driver: TurnDriver) -> None:
        """A turn is over: whatever waits on its lane may begin."""
        self._running -= 1
        if self._quiet is not None and not self._running:
            self._quiet.set()
        lane = driver.request.lane
        steers = self._steers.get(lane)
        if steers is not None and steers.accepted and driver.turn.outcome is Outcome.COMPLETED:
            # the upstream goes on by itself; what waits on this lane comes after that
            asyncio.get_running_loop().call_later(SUCCESSOR_WITHIN, self._release, lane, driver)
        else:
            self._release(lane, driver)

    def _release(self, lane: str | None, driver: TurnDriver) -> None:
        """Let the next creates run, if this turn was the last on its lane."""
        if self.lanes.running(lane) is not driver:
            return
        for waiting in self.lanes.finished(lane):
            self._waiting_bytes -= len(waiting.request.raw)
            waiting.turn.session = self.session
            self._running += 1
            if self.left:
                waiting.leave()
            else:
                # not from here: turns that end at once would stand on each other's shoulders
                asyncio.get_running_loop().call_soon(waiting.begin, events.Began())

    # --- steering ---

    def _steer(self, frame: ClientFrame, raw: bytes) -> None:
        target = frame.previous_response_id or ""
        running = next((d for d in self.lanes.all_running() if d.response_id and d.response_id == target), None)
        link = running.link if running is not None else None
        if running is None or link is None:
            if self.memory.recall(target) is not None:
                self._answer(_steer_failed(frame, "response_already_completed", "This response has ended."))
            else:
                self._answer(_steer_failed(frame, "response_not_found", "No response with this id is active."))
            return
        if not link.steers:
            self._answer(_steer_failed(frame, "steering_not_supported", "This response comes over HTTP."))
            return
        steers = self._steers.setdefault(running.request.lane, _Steers())
        if len(steers.sent) >= MAX_STEERS or link.clogged:
            self._answer(_steer_failed(frame, "too_many_pending_steers", f"At most {MAX_STEERS} steers may wait."))
            return
        try:
            link.send(raw, running.request.lane)
        except LinkClosed:
            self.drop_steers(running.request.lane)
            self._answer(_steer_failed(frame, "response_not_found", "No response with this id is active."))
            return
        steers.sent.append((target, wire.input_items(bytes(frame.input)).strip()[1:-1]))

    def aside(self, link: AnyLink, raw: bytes, lane: str | None) -> None:
        """An event that belongs to no running turn: a steer's answer, its successor, or the echo of one that ended."""
        kind, steers = wire.event_type(raw), self._steers.get(lane)
        if kind == "response.created" and steers is not None and steers.accepted:
            self._succeed(link, raw, lane)
        elif kind.startswith("response.steer."):
            self.note_steer(raw, lane)
            self.send((raw,))

    def note_steer(self, raw: bytes, lane: str | None) -> None:
        """Follow which steers the upstream has taken: their words become part of the conversation."""
        steers, kind = self._steers.setdefault(lane, _Steers()), wire.event_type(raw)
        if steers.sent and kind in ("response.steer.accepted", "response.steer.failed"):
            steer = steers.sent.pop(0)
            if kind == "response.steer.accepted":
                steers.accepted.append(steer)
        running = self.lanes.running(lane)
        if kind == "response.steer.pending" and running is not None and running.turn.state is State.ENDED:
            self._release(lane, running)  # it waits for what only the client can send

    def take_steers(self, lane: str | None, target: str | None) -> list[bytes]:
        """The accepted steers of the response `target`, which the next response on this lane answers."""
        steers = self._steers.get(lane)
        if steers is None:
            return []
        accepted, steers.accepted = steers.accepted, []
        return [words for of, words in accepted if of == target]

    def drop_steers(self, lane: str | None) -> None:
        """The response they were for has failed; they went with it."""
        self._steers.pop(lane, None)

    def _succeed(self, link: AnyLink, raw: bytes, lane: str | None) -> None:
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
        self._begin(driver, events.Succeeded(link.credential, parent, raw))


class _Steers:
    """The steers of one lane, each with the response it is for: sent and not yet answered, and accepted."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.accepted: list[tuple[str, bytes]] = []


def _steer_failed(frame: ClientFrame, code: str, message: str) -> bytes:
    error = {"type": "invalid_request_error", "code": code, "message": message}
    target = orjson.dumps(frame.previous_response_id or "")
    steer = wire.join({"previous_response_id": target, "input": bytes(frame.input)})
    return wire.join({"type": b'"response.steer.failed"', "error": orjson.dumps(error), "steer": steer})


def new_turn_id() -> str:
    """128 bits that sort by time: 48 bits of milliseconds, 80 bits of chance."""
    return f"{int(time.time() * 1000):012x}{os.urandom(10).hex()}"
