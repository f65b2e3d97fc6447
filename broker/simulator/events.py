"""The events of one response as bytes, numbered from 0, and the response object inside them."""

import time
from typing import Any, Protocol

import orjson

from broker.simulator.context import Item
from broker.simulator.intake import Create, Intake

_ECHOED: dict[str, Any] = {
    "background": False,
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "prompt_cache_key": None,
    "reasoning": {"effort": "medium", "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


class Outlet(Protocol):
    """Where the bytes of a response go."""

    def put(self, kind: str, payload: bytes) -> None:
        """Take one event; nothing leaves before a flush."""


class EventWriter:
    """Numbers the events of one response and names their lane."""

    def __init__(self, outlet: Outlet, lane: str | None) -> None:
        self.sequence = 0
        self._outlet = outlet
        self._lane = lane
        self._tail = b"}" if lane is None else b',"stream_id":' + orjson.dumps(lane) + b"}"

    def say(self, kind: str, **body: Any) -> None:
        event = {"type": kind, **body, "sequence_number": self.sequence}
        if self._lane is not None:
            event["stream_id"] = self._lane
        self.sequence += 1
        self._outlet.put(kind, orjson.dumps(event))

    def aside(self, kind: str, body: dict[str, Any]) -> None:
        """An event that is not part of the response's numbering."""
        event = {"type": kind, **body} | ({} if self._lane is None else {"stream_id": self._lane})
        self._outlet.put(kind, orjson.dumps(event))

    def delta_head(self, kind: str, **where: Any) -> bytes:
        """The part that all deltas of one item share, serialised once."""
        return orjson.dumps({"type": kind, **where})[:-1] + b',"delta":"'

    def delta(self, kind: str, head: bytes, text: bytes) -> None:
        """One delta; `text` is already escaped for JSON."""
        self._outlet.put(kind, b'%b%b","sequence_number":%d%b' % (head, text, self.sequence, self._tail))
        self.sequence += 1


def _filled(given: Any, otherwise: Any) -> Any:
    """A field as a response echoes it: what a partial group leaves out is the vendor's to say."""
    if given is None:
        return otherwise
    return {**otherwise, **given} if isinstance(given, dict) and isinstance(otherwise, dict) else given


def _in_full(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": True, **tool}


def escaped(text: str) -> bytes:
    """Text as the inside of a JSON string."""
    return orjson.dumps(text)[1:-1]


class ResponseDraft:
    """The response object while it comes into being; echoes the request's fields or the vendor's defaults."""

    def __init__(self, response_id: str, create: Create, intake: Intake | None, parent_id: str | None) -> None:
        frame = create.frame
        echoed = {name: _filled(frame.get(name), value) for name, value in _ECHOED.items()}
        echoed["tools"] = [_in_full(tool) for tool in echoed["tools"]] if isinstance(echoed["tools"], list) else []
        conversation = intake.conversation if intake else None
        self._fields: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": create.model,
            "previous_response_id": parent_id,
            "output": [],
            "usage": None,
            **echoed,
            **({"conversation": {"id": conversation.id}} if conversation else {}),
        }

    def now(self) -> dict[str, Any]:
        """The object as it stands."""
        return self._fields

    def stand(self, status: str) -> None:
        self._fields["status"] = status

    def ended(self, status: str, output: list[Item], usage: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        """The object of the terminal event."""
        completed_at = int(time.time()) if status == "completed" else None
        self._fields |= {"status": status, "completed_at": completed_at, "output": output, "usage": usage, **more}
        return self._fields


def usage_of(input_tokens: int, cached: int, output_tokens: int, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output_tokens + reasoning_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": input_tokens + output_tokens + reasoning_tokens,
    }
