"""One WebSocket: lanes in and events out, steering, the age limit, and what befalls the connection as a whole."""

import asyncio
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from aiohttp import WSMsgType, web

from broker.simulator.credentials import SimCredential
from broker.simulator.faults import Fault
from broker.simulator.handshake import VENDOR, TurnedAway, admit, reset
from broker.simulator.intake import Create
from broker.simulator.memory import ConnectionMemory
from broker.simulator.refusal import Refusal, too_old, unknown_parameter
from broker.simulator.steering import steer
from broker.simulator.strike import Caller, Gone
from broker.simulator.turn import Turn
from broker.simulator.vendor import Vendor

_LANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}\Z")
_TEXT, _BINARY = 0x81, 0x82
_HTTP_ONLY = ("stream", "stream_options", "background")
_CLOSE_WAIT = 2.0
_BUFFER_LIMIT = 1 << 20
_BUFFER_POLL = 0.002


@dataclass(slots=True)
class Lane:
    """Creates of one lane wait here for the one before them."""

    queue: deque[Create] = field(default_factory=deque)
    busy: bool = False


async def open_socket(request: web.Request) -> web.StreamResponse:
    """Serve an upgrade until the connection ends."""
    try:
        credential, fault = await admit(request, "websocket")
    except TurnedAway as away:
        return away.response
    socket = UpstreamSocket(request.app[VENDOR], credential, request)
    return await socket.run(fault)


class UpstreamSocket:
    """The state of one connection; frames leave as bytes on the transport, many in one write."""

    def __init__(self, vendor: Vendor, credential: SimCredential, request: web.Request) -> None:
        self.credential = credential
        self.number = vendor.next_socket()
        self.memory = ConnectionMemory()
        self.active: dict[str | None, Turn] = {}
        self.finished: deque[str] = deque(maxlen=256)
        self.vendor = vendor
        self._manner = vendor.manner_of(credential)
        self._model: str | None = None
        self._request = request
        self._ws: web.WebSocketResponse[Literal[False]] = web.WebSocketResponse(
            decode_text=False, compress=False, max_msg_size=0, timeout=_CLOSE_WAIT
        )
        self._out: list[bytes] = []
        self._lanes: dict[str | None, Lane] = {}
        self._ready: deque[tuple[str | None, Lane]] = deque()
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()
        self._closing: asyncio.Task[bool] | None = None
        self._expired = False
        self._mute = False

    async def run(self, fault: Fault | None) -> web.StreamResponse:
        """Prepare the upgrade, serve frames, clean up."""
        try:
            await self._ws.prepare(self._request)
        except ConnectionError:
            return self._ws  # the caller went away in the middle of its handshake
        sockets, name = self.vendor.recorder.sockets, self.credential.name
        sockets[name] += 1
        self.vendor.live[self.number] = self
        expiry = self._expire_later()
        try:
            if fault is not None:
                await self.suffer(fault)
            self.check_idle()
            await self._receive()
        finally:
            if expiry is not None:
                expiry.cancel()
            sockets[name] -= 1
            del self.vendor.live[self.number]
            self._gone.set()
            for task in self._tasks:
                task.cancel()
        if self._closing is not None:
            await self._closing
        return self._ws

    # -- frames in ---------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            message = await self._ws.receive()
            if message.type is WSMsgType.TEXT:
                self._take(message.data)
            elif message.type is WSMsgType.BINARY:
                self._protest(Refusal(400, "invalid_json", "Only text frames are accepted."))
            else:
                return

    def _take(self, raw: bytes) -> None:
        limit = self._manner.frame_limit
        if limit is not None and len(raw) > limit:
            self._dismiss(Refusal(413, "payload_too_large", f"A frame may have {limit} bytes."), 1009)
            return
        try:
            frame = orjson.loads(raw)
        except orjson.JSONDecodeError:
            frame = None
        if not isinstance(frame, dict):
            self._protest(Refusal(400, "invalid_json", "The frame is not a JSON object."))
        elif self._mute:
            return
        elif frame.get("type") == "response.create":
            self._take_create(frame, raw)
        elif frame.get("type") == "response.steer" and self._manner.steers:
            self._say(steer(self, frame))
        else:
            message = f"Unsupported event type: {frame.get('type')!r}."
            self._protest(Refusal(400, "unsupported_event_type", message, param="type"))

    def _take_create(self, frame: dict[str, Any], raw: bytes) -> None:
        name = frame.get("stream_id")
        foreign = next((field for field in self._foreign_fields() if field in frame), None)
        if foreign is not None:
            self._protest(unknown_parameter(foreign))
        elif self._manner.one_model and self._model not in (None, frame.get("model")):
            message = f"This connection is bound to the model '{self._model}'."
            self._dismiss(Refusal(400, "model_mismatch", message, param="model"), 1008)
        elif "stream_id" in frame and not (isinstance(name, str) and _LANE_NAME.match(name)):
            message = "Invalid 'stream_id': expected 1 to 256 characters of A-Z, a-z, 0-9, '_', '.', '-'."
            self._protest(Refusal(400, "invalid_stream_id", message, param="stream_id"))
        elif name not in self._lanes and len(self._lanes.keys() - {None}) >= self._names_allowed(name):
            message = f"At most {self.vendor.options.lane_names} distinct stream ids per connection."
            self._protest(Refusal(400, "websocket_stream_limit_reached", message, param="stream_id"), name)
        elif self._expired:
            self._protest(too_old(), name)
        else:
            self._model = frame.get("model")
            self._queue(Create(frame, raw, name))

    def _foreign_fields(self) -> tuple[str, ...]:
        """What a create must not hold at this vendor."""
        return (() if self._manner.lanes else ("stream_id",)) + (_HTTP_ONLY if self._manner.strict else ())

    def _names_allowed(self, name: str | None) -> float:
        return float("inf") if name is None else self.vendor.options.lane_names

    # -- turns -------------------------------------------------------------------------------------------------

    def _queue(self, create: Create) -> None:
        lane = self._lanes.setdefault(create.lane, Lane())
        lane.queue.append(create)
        if not lane.busy:
            lane.busy = True
            self._ready.append((create.lane, lane))
            self._start_ready()

    def _start_ready(self) -> None:
        while self._ready and self._in_flight < self.vendor.options.in_flight:
            name, lane = self._ready.popleft()
            self._in_flight += 1
            self._start(self._work(name, lane))

    async def _work(self, name: str | None, lane: Lane) -> None:
        caller = Caller(self.credential, "websocket", self.number, self.memory)
        turn: Turn | None = Turn(self.vendor, caller, lane.queue.popleft(), self)
        while turn is not None:
            self.active[name] = turn
            await turn.run()
            if turn.response_id is not None:
                self.finished.append(turn.response_id)
            turn = turn.successor()
        del self.active[name]
        self._in_flight -= 1
        lane.busy = bool(lane.queue)
        if lane.queue:
            self._ready.append((name, lane))
        self._start_ready()
        if not self.active and self._expired:
            await self._announce_age()
        self.check_idle()

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- frames out --------------------------------------------------------------------------------------------

    def put(self, kind: str, payload: bytes) -> None:
        self._frame(_TEXT, payload)

    async def flush(self) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing() or self._ws.closed:
            raise Gone
        if self._out:
            transport.write(b"".join(self._out))
            self._out.clear()
        while transport.get_write_buffer_size() > _BUFFER_LIMIT:
            if transport.is_closing():
                raise Gone
            await asyncio.sleep(_BUFFER_POLL)

    def refuse(self, refusal: Refusal, lane: str | None, sequence: int | None = None) -> None:
        if isinstance(refusal.body, str):
            self._frame(_TEXT, refusal.body.encode())
        else:
            self.put("error", orjson.dumps(refusal.frame(lane, sequence)))

    async def hang(self) -> None:
        await self._gone.wait()

    async def cut(self, fault: Fault) -> None:
        """Reset, close or garble; only plain garbage leaves the connection alive."""
        if fault.do == "garbage" and fault.variant != "half":
            opcode = _BINARY if fault.variant == "binary" else _TEXT
            self._frame(opcode, b"this is not JSON {")
            await self.flush()
            return
        if fault.do == "close":
            self._close(fault.close_code, fault.message)
            raise Gone
        if fault.do == "garbage" and self._request.transport is not None:
            self._request.transport.write(bytes((_TEXT, 126)) + (4096).to_bytes(2, "big") + b'{"type":"response.o')
        reset(self._request.transport)
        raise Gone

    def _frame(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            header = bytes((opcode, size))
        elif size < 65536:
            header = bytes((opcode, 126)) + size.to_bytes(2, "big")
        else:
            header = bytes((opcode, 127)) + size.to_bytes(8, "big")
        self._out.append(header + payload)

    def _say(self, event: dict[str, Any]) -> None:
        self.put(event["type"], orjson.dumps(event))
        self._start(self._flush_quietly())

    def _protest(self, refusal: Refusal, lane: str | None = None) -> None:
        self.refuse(refusal, lane)
        self._start(self._flush_quietly())

    def _dismiss(self, refusal: Refusal, code: int) -> None:
        """End the connection after an error that says why."""
        self._mute = True
        self.refuse(refusal, None)
        self._start(self._part(code, refusal.message))

    async def _part(self, code: int, reason: str) -> None:
        await self._flush_quietly()
        self._close(code, reason)

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except Gone:
            return

    def _close(self, code: int, reason: str) -> None:
        if self._closing is None:
            message = reason.encode()[:120]
            self._closing = asyncio.get_running_loop().create_task(self._ws.close(code=code, message=message))

    # -- the connection as a whole -----------------------------------------------------------------------------

    def check_idle(self) -> None:
        """Let a fault that waits for an idle connection act."""
        if self.active or self._ready or self._gone.is_set() or self._closing is not None:
            return
        fault = self.vendor.faults.take(self.credential.name, "idle")
        if fault is not None:
            self._start(self.suffer(fault))

    async def suffer(self, fault: Fault) -> None:
        """Let a fault act on the connection outside any turn."""
        if fault.do == "drop_continuation":
            self.memory.forget()
        elif fault.do == "silence":
            self._mute = True
        elif fault.do in ("reset", "close", "garbage"):
            try:
                await self.cut(fault)
            except Gone:
                return
        else:
            self._protest(fault.refusal())

    def _expire_later(self) -> asyncio.TimerHandle | None:
        given = self.vendor.options.age_limit
        limit = given if given is not None else self._manner.age_limit
        return None if limit is None else asyncio.get_running_loop().call_later(limit, self._expire)

    def _expire(self) -> None:
        self._expired = True
        if not self.active or self.vendor.options.age_interrupts:
            self._start(self._announce_age())

    async def _announce_age(self) -> None:
        self.refuse(too_old(), None)
        await self._flush_quietly()
        self._close(1001, "connection age limit")
