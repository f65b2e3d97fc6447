"""An agent over HTTP that keeps its own transcript and checks every answer against it, streamed or in one piece."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from broker.simulator.agent import Agent
from broker.simulator.observed import TurnResult

_POLL = 0.02
_RUNNING = frozenset({"queued", "in_progress"})


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a plain request; header names in lower case, the body as JSON or as text."""

    status: int
    headers: dict[str, str]
    body: Any


class HttpClient(Agent):
    """One agent whose turns are requests of their own; see Agent for its manners.

    Turns of different lanes may run at once; a lane is the client's own name for a line of turns and is not sent.
    `streamed` False asks for JSON, whose items are then observed as if they had been events. The status and headers
    of an answer stand in its TurnResult, those of the newest one also in `handshake_status` and `handshake_headers`.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        session_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        model: str = "sim-1",
        streamed: bool = True,
    ) -> None:
        super().__init__(key, session_id=session_id, headers=headers, timeout=timeout, model=model)
        self.streamed = streamed
        self.handshake_status: int | None = None
        self.handshake_headers: dict[str, str] = {}
        self._base = base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._open: set[aiohttp.ClientResponse] = set()

    # -- the connections ---------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is anything to send a turn over; a turn connects by itself."""
        return self._session is not None and not self._session.closed

    async def connect(self) -> bool:
        """End all connections and be ready for new ones; the transcript stays."""
        await self.close()
        limits = aiohttp.ClientTimeout(total=None, connect=self.timeout, sock_read=self.timeout)
        self._session = aiohttp.ClientSession(timeout=limits)
        return True

    async def close(self) -> None:
        """End all connections; turns under way end without an answer."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def kill(self) -> None:
        """End all connections of turns under way with RST."""
        for response in self._open:
            connection = response.connection
            raw = connection.transport.get_extra_info("socket") if connection and connection.transport else None
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            response.close()
        await self.close()

    async def call(self, method: str, path: str, body: Any = None, *, params: Mapping[str, str] | None = None) -> Reply:
        """Any other request, such as `GET /responses/{id}`; raises what aiohttp raises."""
        session = await self._ready()
        data = orjson.dumps(body) if body is not None else None
        headers = self._named() | ({"Content-Type": "application/json"} if data is not None else {})
        async with session.request(method, self._base + path, data=data, headers=headers, params=params) as response:
            raw = await response.read()
            return Reply(response.status, _lower(response), _parsed(raw))

    # -- turns -------------------------------------------------------------------------------------------------

    def frame_of(self, result: TurnResult) -> dict[str, Any]:
        """The body that asks for a turn."""
        return {**self.request_of(result), **({"stream": True} if self.streamed else {})}

    async def _perform(self, result: TurnResult) -> None:
        try:
            session = await self._ready()
            headers = self._named() | {"Content-Type": "application/json"}
            body = orjson.dumps(self.frame_of(result))
            async with session.post(self._base + "/responses", data=body, headers=headers) as response:
                self._open.add(response)
                try:
                    await self._hear(result, response)
                finally:
                    self._open.discard(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            result.give_up(f"the connection was lost ({failure!r})", time.monotonic())
        result.give_up("the answer ended before its end", time.monotonic())

    async def _ready(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            await self.connect()
        assert self._session is not None
        return self._session

    def _named(self) -> dict[str, str]:
        return self._headers | ({"x-session-id": self.session_id} if self.session_id else {})

    async def _hear(self, result: TurnResult, response: aiohttp.ClientResponse) -> None:
        result.status, result.headers = response.status, _lower(response)
        self.handshake_status, self.handshake_headers = result.status, result.headers
        if response.content_type == "text/event-stream":
            async for name, event in events_of(response):
                self._observe(result, name, event)
            return
        body = _parsed(await response.read())
        if self.streamed and response.status < 400 and not self._in_background(result):
            result.problems.append(f"asked for a stream, got {response.content_type}")
        if response.status >= 400 or not isinstance(body, dict):
            result.observe(_refused(response.status, body), time.monotonic())
            return
        for event in _as_events(await self._finished(body)):
            result.observe(event, time.monotonic())

    def _in_background(self, result: TurnResult) -> bool:
        return result.settings.get("background") is True

    def _observe(self, result: TurnResult, name: str | None, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if name is not None and name != kind:
            result.problems.append(f"an event named {name} of type {kind}")
        if kind == "error":
            if "error" in event:
                result.problems.append("an error in the form of a WebSocket")
            told = {key: event.get(key) for key in ("code", "message", "param")}
            event = {"type": "error", "error": event.get("error") or told} | _numbered(event)
        if kind == "[DONE]":
            self.notices.append(event)
        else:
            result.observe(event, time.monotonic())

    async def _finished(self, response: dict[str, Any]) -> dict[str, Any]:
        """The response once it has ended; asks for one in the background until then, at most for the timeout."""
        end = time.monotonic() + self.timeout
        while response.get("status") in _RUNNING and time.monotonic() < end:
            await asyncio.sleep(_POLL)
            reply = await self.call("GET", f"/responses/{response['id']}")
            response = reply.body if reply.status == 200 else response
        return response


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str | None, dict[str, Any]]]:
    """The server-sent events of an answer, with the name that each was given; comments are passed over."""
    name: str | None = None
    data: list[bytes] = []
    async for line in _lines(response):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode()
        elif field == b"data":
            data.append(value)
        elif not line and data:
            yield name, _event(b"\n".join(data))
            name, data = None, []


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest: list[bytes] = []
    async for chunk in response.content.iter_any():
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield b"".join((*rest, line)).rstrip(b"\r")
            rest = []
        rest.append(last)


def _event(data: bytes) -> dict[str, Any]:
    if data == b"[DONE]":
        return {"type": "[DONE]"}
    event = _parsed(data)
    return event if isinstance(event, dict) else {"type": "not JSON", "message": str(event)[:200]}


def _as_events(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A whole response as the events that would have told of it."""
    events: list[dict[str, Any]] = [{"type": "response.created", "response": response}]
    for item in response.get("output") or []:
        parts = item.get("content") if item.get("type") == "message" else None
        events += [{"type": "response.output_text.delta", "delta": part.get("text", "")} for part in parts or []]
        events.append({"type": "response.output_item.done", "item": item})
    events.append({"type": f"response.{response.get('status')}", "response": response})
    for number, event in enumerate(events):
        yield event | {"sequence_number": number}


def _refused(status: int, body: Any) -> dict[str, Any]:
    error = body.get("error") if isinstance(body, dict) else None
    told = error if isinstance(error, dict) else {"code": None, "message": str(body)[:200]}
    return {"type": "error", "status": status, "error": told}


def _numbered(event: dict[str, Any]) -> dict[str, Any]:
    return {"sequence_number": event["sequence_number"]} if event.get("sequence_number") is not None else {}


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw.decode(errors="replace")


def _lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
