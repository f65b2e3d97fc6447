"""An agent over a WebSocket that keeps its own transcript and checks every answer against it."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from broker.simulator.agent import HEAD, Agent, tool_outputs
from broker.simulator.context import Item, input_items
from broker.simulator.observed import TurnResult

__all__ = ["HEAD", "SessionClient", "TurnResult", "tool_outputs"]


class _Pending:
    """A turn that waits for its events."""

    def __init__(self, result: TurnResult) -> None:
        self.result = result
        self.done = asyncio.Event()
        self.last_event = time.monotonic()
        self.steers: list[Item] = []
        self.accepted = False
        self.successor: _Pending | None = None


class SessionClient(Agent):
    """One agent with one socket at a time; see Agent for its manners."""

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        session_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        model: str = "sim-1",
    ) -> None:
        super().__init__(key, session_id=session_id, headers=headers, timeout=timeout, model=model)
        self.handshake_status: int | None = None
        self.handshake_headers: dict[str, str] = {}  # of the response, names in lower case
        self.close_code: int | None = None
        self._url = base_url.rstrip("/") + "/responses"
        self._session: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse[Any] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._pending: dict[str | None, _Pending] = {}

    # -- the connection ----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the socket is there as far as anybody has noticed."""
        return self._ws is not None and not self._ws.closed and self._reader is not None and not self._reader.done()

    async def connect(self) -> bool:
        """Open a new socket, ending an old one; the transcript stays. False if refused, see `handshake_status`."""
        await self._drop()
        headers = self._headers | ({"x-session-id": self.session_id} if self.session_id else {})
        self._session = aiohttp.ClientSession(trace_configs=[self._trace()])
        self.close_code = None
        self.handshake_status, self.handshake_headers = None, {}
        try:
            async with asyncio.timeout(self.timeout):
                self._ws = await self._session.ws_connect(
                    self._url, headers=headers, max_msg_size=0, compress=0, decode_text=False, autoping=True
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            self.notices.append({"type": "connect failed", "message": repr(failure)})
        if self._ws is None:
            await self._drop()
            return False
        self._reader = asyncio.get_running_loop().create_task(self._read(self._ws))
        return True

    async def close(self) -> None:
        """Close cleanly, with code 1000."""
        if self._ws is not None:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(self.timeout):
                    await self._ws.close(code=1000)
        await self._drop()

    async def kill(self) -> None:
        """End the TCP connection with RST, without a close frame."""
        # With no time to linger, the plain close of the transport below is a reset.
        if self._ws is not None:
            raw = self._ws.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._drop()

    async def _drop(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        self._ws = None
        self._abandon("the client ended the connection")

    def _trace(self) -> aiohttp.TraceConfig:
        """Notes the response to the handshake, which aiohttp shows nowhere else."""

        async def note(_session: object, _context: object, seen: aiohttp.TraceRequestEndParams) -> None:
            self.handshake_status = seen.response.status
            self.handshake_headers = {name.lower(): value for name, value in seen.response.headers.items()}

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(note)
        return trace

    # -- turns -------------------------------------------------------------------------------------------------

    async def steer(self, text: str, *, lane: str | None = None) -> None:
        """Send user input for the turn that is being answered on this lane.

        That turn returns when it has been succeeded; the successor stands in its `successor`.
        """
        pending = self._pending.get(lane)
        if pending is None:
            raise ValueError("there is no turn to steer")
        pending.steers += input_items(text)
        target = pending.result.response_id
        await self._send({"type": "response.steer", "previous_response_id": target, "input": text})

    def frame_of(self, result: TurnResult) -> dict[str, Any]:
        """The create that asks for a turn."""
        frame: dict[str, Any] = {"type": "response.create"}
        if result.lane is not None:
            frame["stream_id"] = result.lane
        return frame | self.request_of(result)

    async def _perform(self, result: TurnResult) -> None:
        pending = self._pending[result.lane] = _Pending(result)
        if await self._send(self.frame_of(result)):
            await self._wait(pending)
        else:
            result.give_up("not connected", time.monotonic())
        while pending.successor is not None:
            pending = pending.successor
            await self._wait(pending)
        self._pending.pop(result.lane, None)

    async def _wait(self, pending: _Pending) -> None:
        while not pending.done.is_set():
            left = pending.last_event + self.timeout - time.monotonic()
            if left <= 0:
                pending.result.give_up(f"no event for {self.timeout} s", time.monotonic())
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pending.done.wait(), left)

    async def _send(self, frame: dict[str, Any]) -> bool:
        if self._ws is None or self._ws.closed:
            return False
        try:
            async with asyncio.timeout(self.timeout):
                await self._ws.send_str(orjson.dumps(frame).decode())
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            self.notices.append({"type": "send failed", "message": repr(failure)})
            await self._drop()
            return False
        return True

    # -- events ------------------------------------------------------------------------------------------------

    async def _read(self, ws: "aiohttp.ClientWebSocketResponse[Any]") -> None:
        reason = "the connection was lost"
        try:
            while True:
                message = await ws.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    self.close_code = ws.close_code
                    reason = f"the connection was lost ({message.type.name} {ws.close_code})"
                    return
                self._dispatch(message.data)
        except (aiohttp.ClientError, OSError) as failure:
            reason = f"the connection was lost ({failure!r})"
        finally:
            self._abandon(reason)

    def _dispatch(self, data: bytes) -> None:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            event = {"type": "not JSON", "message": data[:200].decode(errors="replace")}
        pending = self._owner(event)
        if pending is not None:
            pending.last_event = time.monotonic()
            pending.accepted = pending.accepted or event.get("type") == "response.steer.accepted"
            if pending.result.observe(event, pending.last_event):
                self._succeed(pending)
                pending.done.set()
            return
        self.notices.append(event)
        # An event for a turn that has ended is that turn's problem; an error may concern the connection alone.
        last = self.results.get(event.get("stream_id"))
        if last is not None and event.get("type") != "error":
            last.observe(event, time.monotonic())

    def _succeed(self, pending: _Pending) -> None:
        """After a steered turn, wait for the response that the vendor starts by itself."""
        steered = pending.result
        if not pending.accepted or not steered.ok or steered.calls:
            return
        following = TurnResult(steered.lane, steered, pending.steers, True, steered.settings)
        following.started = time.monotonic()
        steered.successor = following
        self.results[steered.lane] = following
        pending.successor = self._pending[steered.lane] = _Pending(following)

    def _owner(self, event: dict[str, Any]) -> _Pending | None:
        lane = event.get("stream_id")
        if lane is None and None not in self._pending and event.get("type") == "error" and len(self._pending) == 1:
            return next(iter(self._pending.values()))
        return self._pending.get(lane)

    def _abandon(self, reason: str) -> None:
        for pending in self._pending.values():
            pending.result.give_up(reason, time.monotonic())
            pending.done.set()
