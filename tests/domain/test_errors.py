"""What a client is told: typed, with a numeric status, and no word about a credential."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.domain import errors
from broker.domain.errors import ErrorReply
from broker.domain.failure import Failure, FailureKind
from tests.domain.playbook import failure

K = FailureKind
REPLIES = [
    errors.bad_request("invalid_json", "m"),
    errors.previous_response_not_found("resp_1"),
    errors.not_found("conv_1"),
    errors.not_offered(),
    errors.all_cooling(None, 0.0),
    errors.outcome_unknown(),
    errors.all_exhausted(None, 0.0),
    errors.all_exhausted(1060.0, 1000.0),
    errors.no_credential("m"),
    errors.store_away(),
    errors.overloaded("m"),
    errors.interrupted(),
    errors.refused(failure(K.AUTH_REJECTED, status=401)),
    *(errors.unserved(failure(kind)) for kind in errors._UNSERVED),
]


def error_of(raw: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(raw)["error"]
    return error


@pytest.mark.parametrize("reply", REPLIES, ids=[reply.code for reply in REPLIES])
def test_every_reply_is_typed_and_the_same_in_both_codecs(reply: ErrorReply) -> None:
    event = json.loads(reply.event("s"))
    assert (event["type"], event["status"], event["stream_id"]) == ("error", reply.status, "s")
    assert 400 <= reply.status < 600
    assert event["error"] == reply.body()["error"]
    assert all(isinstance(event["error"][key], str) for key in ("type", "code", "message"))
    assert "stream_id" not in json.loads(reply.event())


def test_previous_response_not_found_is_exact() -> None:
    assert json.loads(errors.previous_response_not_found("resp_1").event()) == {
        "type": "error",
        "status": 400,
        "error": {
            "type": "invalid_request_error",
            "code": "previous_response_not_found",
            "message": "Previous response with id 'resp_1' not found.",
            "param": "previous_response_id",
        },
    }


def test_exhaustion_tells_the_reset_only_if_a_vendor_named_it() -> None:
    told = errors.all_exhausted(1060.0, 1000.0)
    assert (told.status, told.code, told.type) == (429, "usage_limit_reached", "usage_limit_reached")
    assert told.extra == {"resets_at": 1060, "resets_in_seconds": 60}
    assert json.loads(told.event())["headers"] == {"retry-after": "60"}
    silent = errors.all_exhausted(None, 1000.0)
    assert (silent.extra, silent.retry_after) == ({}, None)
    assert json.loads(silent.event())["headers"] == {"x-should-retry": "false"}


def test_nobody_is_told_to_wait_for_a_reset_that_is_far_off() -> None:
    told = json.loads(errors.all_exhausted(1061.0, 1000.0).event())["headers"]
    assert told == {"retry-after": "61", "x-should-retry": "false"}


@pytest.mark.parametrize("reply", [errors.outcome_unknown(), errors.not_offered()], ids=lambda reply: reply.code)
def test_what_must_not_be_repeated_says_so(reply: errors.ErrorReply) -> None:
    assert json.loads(reply.event())["headers"]["x-should-retry"] == "false"


def test_a_reset_is_never_told_too_early() -> None:
    told = errors.all_exhausted(1060.9, 1000.0).extra
    assert told["resets_at"] >= 1060.9
    assert told["resets_in_seconds"] >= 60.9


def test_a_retry_is_never_told_to_come_at_once() -> None:
    soon = errors.unserved(failure(K.RATE_LIMITED, retry_after=0.02))
    assert json.loads(soon.event())["headers"] == {"retry-after": "1"}


def test_the_words_of_a_vendor_about_a_key_are_not_passed_on() -> None:
    raw = b'{"type":"error","error":{"message":"Incorrect API key sk-abc of org-7"}}'
    for kind in errors._UNSERVED:
        assert b"sk-abc" not in errors.unserved(failure(kind, raw=raw)).event()
    assert b"sk-abc" not in errors.refused(failure(K.AUTH_REJECTED, raw=raw)).event()


@pytest.mark.parametrize(("status", "told"), [(401, 401), (400, 400), (500, 403), (0, 403)])
def test_a_poisonous_request_is_refused_as_the_clients_fault(status: int, told: int) -> None:
    assert errors.refused(failure(K.AUTH_REJECTED, "x", status=status)).status == told


def test_the_vendors_own_words_keep_their_bytes() -> None:
    raw = b'{"type":"error", "status":400,"error":{"n":1.0}}'
    assert errors.verbatim(failure(K.REQUEST_FAULT, raw=raw, status=400), None) is raw
    failed = b'{"type":"response.failed","response":{}}'
    assert errors.verbatim(failure(K.REQUEST_FAULT, raw=failed), None) is failed


def test_an_error_without_status_gets_one() -> None:
    raw = b'{"type":"error","error":{"n":1.0}}'
    assert errors.verbatim(failure(K.REQUEST_FAULT, raw=raw, status=404), None) == raw[:-1] + b',"status":404}'


def test_a_refusal_without_words_is_put_into_ours() -> None:
    told = json.loads(errors.verbatim(Failure(K.REQUEST_FAULT, 413, "message_too_big"), "s"))
    assert (told["stream_id"], told["error"]["code"]) == ("s", "message_too_big")
