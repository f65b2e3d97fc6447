"""The vendor over HTTP: responses as JSON or server-sent events, models, compaction, conversations."""

import asyncio
import secrets
import time
from typing import Any

import orjson
from aiohttp import web

from broker.simulator.context import Context, input_items
from broker.simulator.faults import Fault
from broker.simulator.handshake import VENDOR, TurnedAway, admit, error_response, reset
from broker.simulator.intake import Create
from broker.simulator.output import compaction_item
from broker.simulator.refusal import Refusal
from broker.simulator.turn import Caller, Gone, Turn

_WEBSOCKET_ONLY = ("stream_id", "generate")


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
            self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), payload))

    async def flush(self) -> None:
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        try:
            if self.response is None:
                self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
                await self.response.prepare(self._request)
            await self.response.write(data)
        except ConnectionError:
            raise Gone from None

    def refuse(self, refusal: Refusal, lane: str | None, sequence: int | None = None) -> None:
        """An HTTP error while nothing has been sent; afterwards the flat error event of the stream."""
        if self.response is None:
            self.refusal = self.refusal or refusal
            return
        flat = {"type": "error", "code": refusal.code, "message": refusal.message, "param": refusal.param}
        self.put("error", orjson.dumps(flat | {"sequence_number": sequence}))

    async def hang(self) -> None:
        await asyncio.Event().wait()  # cancelled when the client leaves or the vendor stops

    async def cut(self, fault: Fault) -> None:
        if fault.do == "garbage" and fault.variant != "half":
            self._out.append(b"event: response.created\ndata: this is not JSON {\n\n")
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


async def create_response(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses."""
    try:
        credential, _ = await admit(request, "http")
        raw = await request.read()
        frame = _body(raw)
        for name in _WEBSOCKET_ONLY:
            if name in frame:
                raise Refusal(400, "unknown_parameter", f"Unknown parameter: '{name}'.", param=name)
    except TurnedAway as away:
        return away.response
    except Refusal as refusal:
        return error_response(refusal)
    stream = frame.get("stream") is True
    wire = HttpWire(request, stream)
    turn = Turn(request.app[VENDOR], Caller(credential, "sse" if stream else "json"), Create(frame, raw), wire)
    await turn.run()
    return _outcome(turn, wire)


def _outcome(turn: Turn, wire: HttpWire) -> web.StreamResponse:
    if wire.refusal is not None and wire.response is None:
        return error_response(wire.refusal)
    if wire.response is not None:
        return wire.response
    return _json(turn.final or {})


async def list_models(request: web.Request) -> web.StreamResponse:
    """GET /v1/models."""
    try:
        credential, _ = await admit(request, "http")
    except TurnedAway as away:
        return away.response
    names = credential.models if credential.models is not None else request.app[VENDOR].options.models
    models = [{"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"} for name in names]
    return _json({"object": "list", "data": models})


async def compact(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses/compact: the window that replaces the given input."""
    try:
        credential, _ = await admit(request, "http")
        frame = _body(await request.read())
        if not isinstance(frame.get("model"), str):
            raise Refusal(400, "missing_required_parameter", "Missing required parameter: 'model'.", param="model")
        items = input_items(frame.get("input"))
        Context().check(items, credential.boundary)
    except TurnedAway as away:
        return away.response
    except Refusal as refusal:
        return error_response(refusal)
    context = Context().grown(items)
    usage = {
        "input_tokens": context.tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": context.tokens + 1,
    }
    compacted = {
        "id": "resp_" + secrets.token_hex(24),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [compaction_item(credential.boundary, context)],
        "usage": usage,
    }
    return _json(compacted)


async def create_conversation(request: web.Request) -> web.StreamResponse:
    """POST /v1/conversations."""
    try:
        credential, _ = await admit(request, "http")
        raw = await request.read()
        items = input_items(_body(raw).get("items")) if raw else []
    except TurnedAway as away:
        return away.response
    except Refusal as refusal:
        return error_response(refusal)
    created = request.app[VENDOR].store_of(credential.boundary).create_conversation(items)
    return _json({"id": created.id, "object": "conversation", "created_at": int(time.time()), "metadata": {}})


def _body(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "invalid_json", "The body is not a JSON object.")
    return body


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
