"""Embeddings: a vector that follows from its input, as numbers or in base64."""

import base64
import hashlib
import struct
from typing import Any

import orjson
from aiohttp import web

from broker.simulator.credentials import SimCredential
from broker.simulator.handshake import VENDOR, body_of, door, json_response
from broker.simulator.http_wire import HttpWire
from broker.simulator.intake import Create, check_model
from broker.simulator.refusal import Refusal
from broker.simulator.strike import Caller
from broker.simulator.work import recorded

_DIMENSIONS = 8
_MOST_DIMENSIONS = 4096


@door
async def create_embeddings(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/embeddings."""
    frame, raw = await body_of(request)
    create = Create(frame, raw)
    async with recorded(request, Caller(credential, "json"), create, HttpWire(request, False), []):
        check_model(credential, create.model, request.app[VENDOR].manner_of(credential))
        inputs = _inputs(frame.get("input"))
        wanted = frame.get("dimensions")
        dimensions = min(wanted, _MOST_DIMENSIONS) if isinstance(wanted, int) and wanted > 0 else _DIMENSIONS
        data = [
            {"object": "embedding", "index": at, "embedding": _shown(_vector(one, dimensions), frame)}
            for at, one in enumerate(inputs)
        ]
    tokens = sum(len(orjson.dumps(one)) // 4 + 1 for one in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": create.model, "usage": usage})


def _inputs(value: object) -> list[Any]:
    """A text, texts, one list of tokens, or several."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        return [value] if isinstance(value[0], int) else value
    raise Refusal(400, "invalid_type", "Invalid type for 'input': expected a string or an array.", param="input")


def _vector(one: Any, dimensions: int) -> list[float]:
    """Numbers between -1 and 1 that a 32-bit float holds exactly."""
    stream = hashlib.shake_256(orjson.dumps(one)).digest(2 * dimensions)
    return [number / 32768 for number in struct.unpack(f"<{dimensions}h", stream)]


def _shown(vector: list[float], frame: dict[str, Any]) -> list[float] | str:
    if frame.get("encoding_format") != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
