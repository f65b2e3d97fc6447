"""The vendor over HTTP: responses as JSON or server-sent events, their compaction and their tokens, models."""

import secrets
import time
from typing import Any

from aiohttp import web

from broker.simulator.background import run_in_background
from broker.simulator.context import Context, input_items
from broker.simulator.credentials import SimCredential
from broker.simulator.handshake import VENDOR, body_of, door, error_response, json_response
from broker.simulator.http_wire import HttpWire
from broker.simulator.intake import Create, accept
from broker.simulator.output import compaction_item
from broker.simulator.refusal import Refusal, unknown_model, unknown_parameter
from broker.simulator.strike import Caller
from broker.simulator.turn import Turn
from broker.simulator.work import recorded

_WEBSOCKET_ONLY = ("stream_id", "generate")


@door
async def create_response(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/responses."""
    vendor = request.app[VENDOR]
    frame, raw = await body_of(request)
    create = Create(frame, raw)
    _check_http(request, credential, create)
    stream = frame.get("stream") is True
    caller = Caller(credential, "sse" if stream else "json", background=create.background)
    if create.background:
        return await run_in_background(request, caller, create)
    wire = HttpWire(request, stream)
    turn = Turn(vendor, caller, create, wire)
    await turn.run()
    if wire.refusal is not None and wire.response is None:
        return error_response(wire.refusal)
    return wire.response or json_response(turn.final or {})


def _check_http(request: web.Request, credential: SimCredential, create: Create) -> None:
    manner = request.app[VENDOR].manner_of(credential)
    for name in (*_WEBSOCKET_ONLY, *(("type",) if manner.closed_schema else ())):
        if name in create.frame:
            raise unknown_parameter(name)
    if create.background and (not create.stored or manner.stateless):
        raise Refusal(400, "invalid_value", "Background mode requires 'store' to be true.", param="background")


@door
async def compact(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/responses/compact: the window that replaces the given input."""
    frame, raw = await body_of(request)
    create, items = Create(frame, raw), input_items(frame.get("input"))
    async with recorded(request, Caller(credential, "json"), create, HttpWire(request, False), items):
        context = _read(request, credential, create)
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
    return json_response(compacted)


@door
async def count_tokens(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/responses/input_tokens."""
    frame, raw = await body_of(request)
    create, items = Create(frame, raw), input_items(frame.get("input"))
    async with recorded(request, Caller(credential, "json"), create, HttpWire(request, False), items):
        context = _read(request, credential, create)
    return json_response({"object": "response.input_tokens", "input_tokens": context.tokens})


def _read(request: web.Request, credential: SimCredential, create: Create) -> Context:
    """The context of a request that generates nothing, for which a conversation is read and not held."""
    intake = accept(request.app[VENDOR], credential, create, None)
    if intake.conversation is not None:
        intake.conversation.busy = False
    return intake.context


@door
async def list_models(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """GET /v1/models."""
    return json_response({"object": "list", "data": [_model(name) for name in _models(request, credential)]})


@door
async def get_model(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """GET /v1/models/{id}."""
    name = request.match_info["id"]
    if name not in _models(request, credential):
        raise unknown_model(name)
    return json_response(_model(name))


def _models(request: web.Request, credential: SimCredential) -> list[str]:
    return credential.models if credential.models is not None else list(request.app[VENDOR].options.models)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
