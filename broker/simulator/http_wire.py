"""Ways out over HTTP: the events of a response, or the chunks of a chat, as a stream or held back for one JSON body."""

import asyncio

import orjson
from aiohttp import web

from broker.simulator.faults import Fault
from broker.simulator.handshake import reset
from broker.simulator.refusal import Refusal
from broker.simulator.strike import Gone


class HttpWire:
    """A turn's way out over HTTP; as JSON nothing leaves before the turn has ended."""

    def __init__(self, request: web.Request, stream: bool) -> None:
        self.refusal: Refusal | None = None
        self.response: web.StreamResponse | None = None
        self._request = request
        self._stream = stream
        self._out: list[bytes] = []

    def put(self, kind: str, payload: bytes) -> None:
        if self._stream:
            self._out.append(as_event(kind, payload))

    async def flush(self) -> None:
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        try:
            if self.response is None:
                self.response = await open_stream(self._request)
            await self.response.write(data)
        except ConnectionError:
            raise Gone from None

    def refuse(self, refusal: Refusal, lane: str | None, sequence: int | None = None) -> None:
        """An HTTP error while nothing has been sent; afterwards the flat error event of the stream."""
        if self.response is None:
            self.refusal = self.refusal or refusal
        else:
            self.put("error", flat_error(refusal, sequence))

    async def hang(self) -> None:
        await asyncio.Event().wait()  # cancelled when the client leaves or the vendor stops

    async def cut(self, fault: Fault) -> None:
        if fault.do == "garbage" and fault.variant != "half":
            self._out.append(as_event("response.created", b"this is not JSON {"))
            await self.flush()
            return
        transport = self._request.transport
        if fault.do == "close" and transport is not None:
            transport.close()
        else:
            if fault.do == "garbage" and self.response is not None:
                await self.response.write(b'event: response.output_text.delta\ndata: {"type":"resp')
            reset(transport)
        raise Gone


class ChatWire(HttpWire):
    """The way out of a chat: chunks have no names, and an error in their midst is wrapped as at the door."""

    def put(self, kind: str, payload: bytes) -> None:
        if self._stream:
            self._out.append(b"data: %b\n\n" % payload)

    def refuse(self, refusal: Refusal, lane: str | None, sequence: int | None = None) -> None:
        if self.response is None:
            self.refusal = self.refusal or refusal
        else:
            body = refusal.body if refusal.body is not None else {"error": refusal.error()}
            self.put("error", body.encode() if isinstance(body, str) else orjson.dumps(body))


def as_event(kind: str, payload: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), payload)


def flat_error(refusal: Refusal, sequence: int | None) -> bytes:
    """The error event of a stream of responses."""
    flat = {"type": "error", "code": refusal.code, "message": refusal.message, "param": refusal.param}
    return orjson.dumps(flat | {"sequence_number": sequence})


async def open_stream(request: web.Request) -> web.StreamResponse:
    """The head of a stream of server-sent events, sent; raises ConnectionError."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response
