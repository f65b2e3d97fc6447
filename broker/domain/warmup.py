"""A warm-up that the broker answers itself, where the vendor's way in has no word for one.

A warm-up (`generate: false`) makes an id that the next turn continues, and no output. Its input goes into the
transcript like any other's, so the turn that continues it carries it along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from broker.domain import wire

_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": "",
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "metadata": {},
}
"""What a response says of its request, with what holds where that says nothing."""

_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def answer(fields: Mapping[str, msgspec.Raw], response_id: str, now: float) -> tuple[bytes, bytes]:
    """The two events of a warm-up: `response.created` and `response.completed`, for a create's top-level fields."""
    rest: dict[str, Any] = {
        "background": False,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }
    parts: dict[str, bytes] = {
        "id": orjson.dumps(response_id),
        "object": b'"response"',
        "created_at": b"%d" % int(now),
        **{name: orjson.dumps(value) for name, value in rest.items()},
        **{name: _said(fields.get(name, wire.NULL), value) for name, value in _ECHOED.items()},
    }
    running = {**parts, "status": b'"in_progress"', "completed_at": b"null", "usage": b"null"}
    ended = {**parts, "status": b'"completed"', "completed_at": b"%d" % int(now), "usage": orjson.dumps(_USAGE)}
    return _event("response.created", 0, running), _event("response.completed", 1, ended)


def _said(raw: msgspec.Raw, otherwise: object) -> bytes:
    # null is as good as absence: a response says what holds then
    return orjson.dumps(otherwise) if raw == wire.NULL else bytes(raw)


def _event(kind: str, sequence: int, response: Mapping[str, bytes]) -> bytes:
    number = b"%d" % sequence
    return wire.join({"type": orjson.dumps(kind), "sequence_number": number, "response": wire.join(response)})


def completed_from(created: bytes) -> bytes:
    """The end of a warm-up of which the vendor only tells the beginning (protocol.md 2.2). Raises `Garbage`."""
    event = wire.event_fields(created)
    response = wire.event_fields(bytes(event.get("response", wire.NULL)))
    ended = {**response, "status": b'"completed"', "output": b"[]"}
    return wire.join({**event, "type": b'"response.completed"', "sequence_number": b"1", "response": wire.join(ended)})
