"""The checks themselves: what the specification allows passes, and each kind of deviation is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest

from tests.compliance.cases import response_with
from tests.compliance.schemas import EVENTS, Mismatch, ResponseResource, checked, checked_event
from tests.compliance.target import in_order

SAID = {"type": "output_text", "text": "hello", "annotations": []}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [SAID],
}
CALL: dict[str, Any] = {
    "id": "fc_1",
    "type": "function_call",
    "call_id": "call_1",
    "name": "f",
    "arguments": "{}",
    "status": "completed",
}
AT = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
ENVELOPE: dict[str, Any] = {"type": "error", "status": 400, "error": {"code": "invalid_json", "message": "No JSON."}}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "sequence_number": 0, **fields}


def response(**changes: Any) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(response_with([MESSAGE]))
    return read | changes


def rejected(raw: dict[str, Any], transport: Any = "websocket") -> bool:
    try:
        checked_event(orjson.dumps(raw), transport)
    except Mismatch:
        return True
    return False


def test_knows_the_24_events_of_the_specification() -> None:
    assert len({kind.__struct_config__.tag for kind in EVENTS}) == 24


@pytest.mark.parametrize("field", [field.name for field in msgspec.structs.fields(ResponseResource)])
def test_misses_each_field_of_a_response_when_it_is_not_there(field: str) -> None:
    whole = response()
    checked(orjson.dumps(whole), ResponseResource)
    assert not rejected(event("response.completed", response=whole))
    del whole[field]
    with pytest.raises(Mismatch, match=field):
        checked(orjson.dumps(whole), ResponseResource)
    assert rejected(event("response.completed", response=whole))


GOOD: dict[str, dict[str, Any]] = {
    "an unknown key": event("response.created", response=response(colour="blue"), colour="blue"),
    "a delta": event("response.output_text.delta", **AT, delta="he", logprobs=[]),
    "a call": event("response.output_item.done", output_index=0, item=CALL),
    "no item": event("response.output_item.added", output_index=0, item=None),
    "a lane": event("response.output_text.delta", **AT, delta="he", stream_id="lane"),
    "numbers without a fraction": event("response.created", response=response(top_p=1, temperature=0)),
    "an envelope": ENVELOPE,
    "an envelope with more": {**ENVELOPE, "error": {**ENVELOPE["error"], "param": None, "type": "x", "headers": {}}},
    "an error in the stream": event("error", error={"type": "x", "code": None, "message": "x", "param": None}),
}
BAD: dict[str, dict[str, Any]] = {
    "an event of the vendor": {"type": "codex.rate_limits", "plan_type": "x"},
    "a kept alive socket": {"type": "codex.keepalive"},
    "a steer that nobody sent": event("response.steer.accepted", steer={"id": "s", "previous_response_id": "r"}),
    "no type": {"sequence_number": 0},
    "no number": {"type": "response.created", "response": response()},
    "a number as text": {"type": "response.created", "sequence_number": "0", "response": response()},
    "a delta without its place": event("response.output_text.delta", item_id="msg_1", delta="he"),
    "a delta without text": event("response.output_text.delta", **AT, delta=None),
    "an item of unknown type": event("response.output_item.done", output_index=0, item={"type": "x", "id": "x"}),
    "a call without an id": event("response.output_item.done", output_index=0, item={**CALL, "id": None}),
    "a message without a status": event("response.output_item.done", output_index=0, item={**MESSAGE, "status": None}),
    "a phase of nothing": event("response.output_item.done", output_index=0, item={**MESSAGE, "phase": None}),
    "a text part without annotations": event(
        "response.content_part.done", **AT, part={"type": "output_text", "text": "hello"}
    ),
    "an envelope without a status": {"type": "error", "error": ENVELOPE["error"]},
    "an envelope without a code": {**ENVELOPE, "error": {"code": None, "message": "x"}},
    "a flat error": event("error", code="x", message="x", param=None),
}


@pytest.mark.parametrize("raw", GOOD.values(), ids=list(GOOD))
def test_takes_what_is_allowed(raw: dict[str, Any]) -> None:
    assert not rejected(raw)


@pytest.mark.parametrize("raw", BAD.values(), ids=list(BAD))
def test_finds_what_is_not_allowed(raw: dict[str, Any]) -> None:
    assert rejected(raw)


def test_takes_a_flat_error_in_a_stream_over_http_only() -> None:
    assert not rejected(BAD["a flat error"], "http")
    assert rejected(ENVELOPE, "http")


def stream(**changes: Any) -> list[dict[str, Any]]:
    """The events of one answer."""
    events = [
        event("response.created", response=response(output=[])),
        event("response.output_item.added", output_index=0, item=MESSAGE),
        event("response.output_text.delta", **AT, delta="hel"),
        event("response.output_text.delta", **AT, delta="lo"),
        event("response.output_text.done", **AT, text="hello"),
        event("response.output_item.done", output_index=0, item=MESSAGE),
        event("response.completed", response=response()),
    ]
    return [{**each, "sequence_number": number} for number, each in enumerate(events)]


DISORDER: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "a number twice": lambda events: events[3].update(sequence_number=2),
    "numbers that do not begin with 0": lambda events: events[0].update(sequence_number=-1),
    "a beginning that is none": lambda events: events.__delitem__(0),
    "a missing end": lambda events: events.__delitem__(-1),
    "a lost delta": lambda events: events.__delitem__(3),
    "a lost item": lambda events: events.__delitem__(5),
    "another id at the end": lambda events: events[-1]["response"].update(id="resp_2"),
}


@pytest.mark.parametrize("spoil", DISORDER.values(), ids=list(DISORDER))
def test_finds_disorder_among_events(spoil: Callable[[list[dict[str, Any]]], None]) -> None:
    assert in_order(stream())
    spoilt = stream()
    spoil(spoilt)
    with pytest.raises(Mismatch):
        in_order(spoilt)
