"""The HTTP codec: one request, one turn; answered by server-sent events, or at once and whole."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Iterable
from typing import Any

import orjson
from aiohttp import ClientConnectionError, web

from broker.domain import errors, events, headers, sse, wire
from broker.domain.endpoints import DONE, Endpoint
from broker.domain.errors import ErrorReply
from broker.domain.failure import Failure, FailureKind
from broker.domain.memory import SocketMemory
from broker.domain.presentation import Presentation
from broker.domain.session import Session
from broker.domain.turn import Request
from broker.edge.access import Tenant
from broker.edge.downstream import Downstream
from broker.edge.driver import TurnDriver, broken
from broker.edge.links import AnyLink, Links
from broker.edge.outlet import Outlet
from broker.edge.wiring import Wiring
from broker.store.connection import StoreUnavailable

STOP_WITHIN = 4.0
"""Seconds for which a node that stops waits for the answers under way."""

_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClientRequest(Downstream):
    """One request of a client: runs its turn, and puts what that relays into an answer.

    Nothing is answered before the turn has something to show, so whatever fails before that has a status of its own.
    """

    __slots__ = (
        "_chunked",
        "_done",
        "_driver",
        "_gathered",
        "_head",
        "_http",
        "_last",
        "_news",
        "_out",
        "_outlet",
        "_outputs",
        "_over",
        "_streamed",
        "_turn_id",
        "endpoint",
        "memory",
    )

    def __init__(
        self,
        wiring: Wiring,
        http: web.Request,
        tenant: Tenant,
        session: Session,
        endpoint: Endpoint,
        *,
        presentation: Presentation | None,
        explicit: bool,
        streamed: bool,
    ) -> None:
        super().__init__(wiring, tenant, session, presentation, explicit=explicit)
        self.endpoint = endpoint
        self.memory = SocketMemory()
        up = headers.up(http.headers, websocket=False)
        chance = wiring.chance.random
        self.links = Links(wiring.dialer, up, self, chance=chance, endpoint=endpoint, frames=False)
        self._http = http
        self._streamed = streamed
        self._driver: TurnDriver | None = None
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._done = asyncio.Event()
        self._head: dict[str, str] | None = None
        self._last = b""
        self._turn_id = ""
        self._outputs = b"[]"
        self._out: list[bytes] = []
        self._gathered = False
        self._outlet: Outlet | None = None
        self._chunked = True

    def join(self, session: Session) -> None:
        """The client has found back to a session."""
        self.session = session

    # --- one turn ---

    async def serve(self, request: Request) -> web.StreamResponse:
        """The answer to a request, when it is over; everything is let go of then, bounded in time."""
        self._turn_id = request.turn_id
        self._driver = TurnDriver(self, request, self.session)
        try:
            self._driver.begin(events.Began())
            await self._news.wait()
            if self._out:
                return await self._stream()
            await self._over.wait()
            return await self._handed_over(await self._whole())
        finally:
            self._done.set()
            await self._let_go()

    async def _let_go(self) -> None:
        self.left = True
        if self._driver is not None and not self._over.is_set():
            self._driver.leave()
            # a commit under way is finished; everything else ends with the client
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.wiring.bounds.leave):
                    await self._over.wait()
        self.wiring.dialer.see_off(self.links.close())
        self._driver = self._outlet = None  # what is gone shall not go round in circles

    def ended(self, driver: TurnDriver) -> None:
        """The turn is over."""
        self._over.set()
        self._news.set()

    def broke(self, driver: TurnDriver, error: Exception) -> None:
        """A fault of ours: the client gets an honest end."""
        self.send((broken(driver, error).event(),))

    # --- what the turn relays ---

    def send(self, frames: Iterable[bytes]) -> None:
        """Events to the client. To a client that has left, nothing is sent."""
        if self.left:
            return
        for raw in frames:
            self._last = raw
            if self._streamed and (self._out or self._outlet or not _is_error(raw)):
                self._write(self._rendered(raw))
        attempt = self._driver.attempt if self._driver is not None else None
        if attempt is not None and self._head is None:
            self._head = headers.down(attempt.head)
        if not self._streamed and attempt is not None:
            self._outputs = attempt.outputs()  # there is but one time: nothing is relayed before the end
        if self._out and not self._news.is_set():
            self._news.set()

    def _rendered(self, raw: bytes) -> bytes:
        if not self.endpoint.conversing:
            if raw == DONE:
                return sse.bare(b"[DONE]")
            return sse.bare(orjson.dumps({"error": _error_of(raw)}) if _is_error(raw) else raw)
        kind = wire.event_type(raw)
        return sse.named(kind, raw if kind != "error" else _flat(raw))

    def keep_alive(self, lane: str | None) -> None:
        """Neither who stands in between closes a stream that is quiet for a while, nor a client that counts events."""
        if self._outlet is None:
            return
        frame = self.presentation.keep_alive if self.presentation is not None else None
        self._write(sse.COMMENT if frame is None else sse.named(wire.event_type(frame), frame))

    # --- to the client, as a stream ---

    async def _stream(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={**self._headers(), **_STREAM})
        try:
            writer = await response.prepare(self._http)
            transport = self._http.transport
            if writer is None or transport is None:
                return response
            self._chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
            writer.send_headers()
            # from here on it is seen whether the client is behind, and one that takes nothing is cut off
            self._outlet = Outlet(transport, writer, self.fall_behind)
            self._flush()
            await self._over.wait()
            await response.write_eof()
        except (ClientConnectionError, ConnectionError):
            self.left = True
        return response

    def _taken(self) -> bytes:
        taken, self._out = b"".join(self._out), []
        return taken

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._gathered:
            self._flush()

    def _flush(self) -> None:
        outlet, transport = self._outlet, self._http.transport
        if outlet is None or not self._out or transport is None or transport.is_closing():
            return
        data = self._taken()
        outlet.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    # --- to the client, whole ---

    async def _whole(self) -> web.Response:
        """The answer in one piece."""
        if self.left or not self._last:
            # it has left before there was all that there is to say
            return web.Response(status=499)
        if _is_error(self._last):
            return answer_to(self._last, self._headers())
        try:
            body = wire.whole_response(self._last, self._outputs) if self.endpoint.conversing else self._last
        except wire.Garbage:
            return refusal(errors.unserved(Failure(FailureKind.TRANSPORT_LOST, code="garbage")), self._headers())
        await self._note_owner(body)
        return web.Response(body=body, content_type="application/json", headers=self._headers())

    async def _handed_over(self, response: web.Response) -> web.Response:
        """Written while this node still looks after the client: one that takes nothing is cut off."""
        self.behind_since = time.monotonic()
        with contextlib.suppress(ClientConnectionError, ConnectionError):
            await response.prepare(self._http)
            await response.write_eof()
        self.behind_since = None
        return response

    async def _note_owner(self, body: bytes) -> None:
        """What was made lives with the credential that made it: known before the client can name it."""
        credential = self._driver.turn.credential if self._driver is not None else None
        if credential is None or self.endpoint.conversing or not self.endpoint.owns:
            return  # the owner of a response is written with its turn
        made = wire.made(body)
        with contextlib.suppress(StoreUnavailable):
            await self.wiring.sessions.note_owners(self.tenant.name, made, credential)

    def _headers(self) -> dict[str, str]:
        told = {"x-request-id": self._turn_id, **(self._head or {})}
        return {**told, "x-session-id": self.session.name} if self.endpoint.conversing else told

    # --- a host to its links ---

    def direct(self, data: bytes | memoryview) -> None:
        """Frames of a WebSocket never pass as they are."""
        raise AssertionError("a frame has passed to a client that speaks HTTP")

    def write(self, data: bytes | memoryview) -> None:
        """A run of plain events, as the bytes that a stream has; the turn shows, so the answer has begun."""
        if not self.left:
            self._write(bytes(data))

    def gather(self) -> None:
        """What is sent from now on leaves in one write, with `flush`."""
        self._gathered = True

    def flush(self) -> None:
        """Write what was gathered, if anything was."""
        self._gathered = False
        self._flush()

    def aside(self, link: AnyLink, raw: bytes, lane: str | None) -> None:
        """An event that belongs to no turn."""

    def note_steer(self, raw: bytes, lane: str | None) -> None:
        """There is no steering over HTTP."""

    def take_steers(self, lane: str | None, target: str | None) -> list[bytes]:
        """There is no steering over HTTP."""
        return []

    def drop_steers(self, lane: str | None) -> None:
        """There is no steering over HTTP."""

    # --- seen from its node ---

    def check(self) -> None:
        """Whether the client is still there: nothing is read of it, so nothing tells."""
        if self._http.transport is None or self._http.transport.is_closing():
            self.abort()

    async def close(self, code: int, reason: str) -> None:
        """The node stops: the turn may come to its end, for a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self.wiring.bounds.leave, STOP_WITHIN)):
                await self._done.wait()
                return
        self.abort()

    def abort(self) -> None:
        """Cut off a client that takes nothing any more, or that is gone."""
        left, self.left = self.left, True
        if not left and not self._over.is_set() and self._driver is not None:
            self._driver.leave()
        if self._http.transport is not None:
            self._http.transport.abort()


def answer_to(raw: bytes, more: dict[str, str] | None = None) -> web.Response:
    """An `error` event as an answer over HTTP: its status, its words, and when to come again."""
    event = orjson.loads(raw)
    status, headers_told = event.get("status"), event.get("headers")
    told = (
        {n.lower(): v for n, v in headers_told.items() if isinstance(v, str)} if isinstance(headers_told, dict) else {}
    )
    again = {name: told[name] for name in ("retry-after", "retry-after-ms") if _SECONDS.fullmatch(told.get(name, ""))}
    if "retry-after" in again:
        again["retry-after"] = str(max(1, math.ceil(float(again["retry-after"]))))
    if told.get("x-should-retry") in ("true", "false"):
        again["x-should-retry"] = told["x-should-retry"]
    return web.Response(
        body=orjson.dumps({"error": _error_of(raw)}),
        status=status if isinstance(status, int) and 400 <= status < 600 else 500,
        content_type="application/json",
        headers={**(more or {}), **headers.down(told), **again},
    )


def refusal(reply: ErrorReply, more: dict[str, str] | None = None) -> web.Response:
    """An error of ours as an answer over HTTP."""
    return answer_to(reply.event(), more)


_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")


def _is_error(raw: bytes) -> bool:
    # the type may stand behind another field
    return wire.begins_as_error(raw) or (b'"error"' in raw[:64] and wire.event_type(raw) == "error")


_NOT_TOLD = frozenset(
    {
        *("headers", "sequence_number", "status"),
        *("organization", "organization_id", "project_id", "account_id", "plan_type"),
    }
)
"""What is no word of an error over HTTP, or names the account behind a credential."""


def _error_of(raw: bytes) -> dict[str, Any]:
    """The words of an `error` event, in whichever of its shapes it came (protocol.md 6.1)."""
    event = orjson.loads(raw)
    inner = event.get("error") if isinstance(event.get("error"), dict) else event
    return {"message": "", "type": "server_error", "param": None, "code": None} | {
        name: value for name, value in inner.items() if name not in _NOT_TOLD
    }


def _flat(raw: bytes) -> bytes:
    """An error in the midst of a stream, in the form that it has over HTTP (protocol.md 6.1)."""
    error, number = _error_of(raw), orjson.loads(raw).get("sequence_number")
    return orjson.dumps({**error, "type": "error", "sequence_number": number})
