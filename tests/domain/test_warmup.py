"""A warm-up that the broker answers itself: two events as a vendor would have sent them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain import warmup, wire
from tests.domain.test_wire import ODD, frame_of, raw_fields

NOW = 1_800_000_000.9
FRAME = {"type": b'"response.create"', "generate": b"false"}

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=80)


def answered(**told: bytes) -> tuple[bytes, bytes]:
    return warmup.answer(wire.fields(frame_of({**FRAME, **told})), "resp_1", NOW)


def response_in(event: bytes) -> dict[str, bytes]:
    return raw_fields(raw_fields(event)["response"])


def parsed(event: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(event)
    return document


def test_is_announced_and_completed_in_order() -> None:
    created, completed = map(parsed, answered(model=b'"m"'))
    assert (created["type"], created["sequence_number"]) == ("response.created", 0)
    assert (completed["type"], completed["sequence_number"]) == ("response.completed", 1)
    began, ended = created["response"], completed["response"]
    assert (began["status"], began["completed_at"], began["usage"]) == ("in_progress", None, None)
    assert (ended["status"], ended["completed_at"]) == ("completed", 1_800_000_000)
    assert ended["usage"]["total_tokens"] == 0
    for response in (began, ended):
        assert (response["id"], response["object"], response["output"]) == ("resp_1", "response", [])
        assert (response["created_at"], response["model"], response["error"]) == (1_800_000_000, "m", None)


def test_the_broker_reads_it_like_a_vendors_own() -> None:
    created, completed = answered()
    assert wire.event_kind(created) is wire.EventKind.ANNOUNCEMENT
    assert wire.event_kind(completed) is wire.EventKind.TERMINAL
    assert wire.response_of(completed) == ("resp_1", b"[]")


def test_says_every_field_that_a_response_must_have() -> None:
    """The fields that Open Responses requires of a response (protocol.md 10.5)."""
    required = {
        *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model"),
        *("previous_response_id", "instructions", "output", "error", "tools", "tool_choice", "truncation"),
        *("parallel_tool_calls", "text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs"),
        *("temperature", "reasoning", "usage", "max_output_tokens", "max_tool_calls", "store", "background"),
        *("service_tier", "metadata", "safety_identifier", "prompt_cache_key"),
    }
    for event in answered():
        assert required <= set(parsed(event)["response"])


def test_says_what_holds_where_nothing_was_asked() -> None:
    silent, null = answered(), answered(**dict.fromkeys(warmup._ECHOED, b"null"))
    for event in (*silent, *null):
        response = parsed(event)["response"]
        assert (response["tools"], response["tool_choice"], response["store"]) == ([], "auto", True)
        assert (response["temperature"], response["top_p"], response["top_logprobs"]) == (1.0, 1.0, 0)
        assert {name: response[name] for name in warmup._ECHOED} == warmup._ECHOED


@fixed
@given(st.dictionaries(st.sampled_from(sorted(warmup._ECHOED)), st.sampled_from(ODD), max_size=8))
def test_says_what_was_asked_in_the_very_bytes(told: dict[str, bytes]) -> None:
    for event in answered(**told):
        response, plain = response_in(event), response_in(answered()[0])
        for name in warmup._ECHOED:
            # null is as good as absence
            asked = told.get(name, b"null")
            assert response[name] == (plain[name] if asked == b"null" else asked)


@fixed
@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name not in warmup._ECHOED), st.just(b"7"), max_size=4))
def test_says_nothing_else_of_what_was_asked(told: dict[str, bytes]) -> None:
    told = {name: value for name, value in told.items() if name not in FRAME}
    frame = frame_of({**FRAME, **told, "input": b'"secret"', "id": b'"theirs"', "status": b'"theirs"'})
    assert warmup.answer(wire.fields(frame), "resp_1", NOW) == answered()


# --- where the vendor tells only the beginning ---


def test_completes_what_was_only_announced_and_keeps_all_else() -> None:
    created = (
        b'{"type":"response.created","stream_id":"s","sequence_number":0,"odd": 1.0,'
        b'"response":{"id":"r","status":"in_progress","output":null,"temperature": 1.00,"x":{"a" : 1}}}'
    )
    assert warmup.completed_from(created) == (
        b'{"type":"response.completed","stream_id":"s","sequence_number":1,"odd":1.0,'
        b'"response":{"id":"r","status":"completed","output":[],"temperature":1.00,"x":{"a" : 1}}}'
    )


@pytest.mark.parametrize("response", [b"null", b"7", b'"x"', b"[]"])
def test_what_announces_no_response_is_garbage(response: bytes) -> None:
    with pytest.raises(wire.Garbage):
        warmup.completed_from(b'{"type":"response.created","response":%b}' % response)
    with pytest.raises(wire.Garbage):
        warmup.completed_from(b'{"type":"response.created"}')
