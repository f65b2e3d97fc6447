"""The corpus: every row of protocol.md 6.3, every shape of 6.1, and the order of trust of 6.4."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import orjson
import pytest

from broker.domain import errors
from broker.domain.classify import (
    KEY_CODES,
    MAX_MESSAGE,
    classify,
    classify_answer,
    classify_close,
    classify_event,
    classify_handshake,
    read_refusal,
)
from broker.domain.failure import NOT_OFFERED, Failure, FailureKind
from broker.domain.wire import EventKind, event_kind

K = FailureKind
NOW = 1_800_000_000.0


def frame(status: int | None = None, code: str | None = None, message: str = "", type: str | None = None) -> Failure:
    """An `error` event as it comes on a live socket."""
    document: dict[str, Any] = {"type": "error", "error": {"type": type, "code": code, "message": message}}
    if status is not None:
        document["status"] = status
    return classify_event(orjson.dumps(document), now=NOW)


def failed(code: str | None, message: str = "") -> Failure:
    """A `response.failed` event."""
    response = {"id": "resp_1", "status": "failed", "error": {"code": code, "message": message}}
    return classify_event(orjson.dumps({"type": "response.failed", "response": response}), now=NOW)


def handshake(status: int, document: object = None, headers: dict[str, str] | None = None) -> Failure:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return classify_handshake(status, headers or {}, body, now=NOW)


IRE = "invalid_request_error"
KEYS = [
    ("invalid api key", frame(401, "invalid_api_key", "Incorrect API key provided: sk-*", IRE)),
    ("incorrect key without code", frame(401, None, "Incorrect API key provided", IRE)),
    ("token expired", frame(401, "token_expired")),
    ("token invalidated", frame(401, "token_invalidated")),
    ("token revoked, in capitals", frame(401, "TOKEN_REVOKED")),
    ("app session terminated", frame(401, "app_session_terminated")),
    ("account session expired", frame(401, "account_session_expired")),
    ("account auth invalidated", frame(401, "account_auth_invalidated")),
    ("session has ended", frame(401, None, "Your session has ended. Please log in again.", IRE)),
    ("account deactivated", frame(403, "account_deactivated")),
    ("account suspended", frame(403, "account_suspended")),
    ("account deleted", frame(401, "account_deleted")),
    ("organization disabled, as a 400", frame(400, None, "This organization has been disabled.", IRE)),
    ("workspace deactivated, by code", frame(402, "deactivated_workspace")),
    ("workspace deactivated, in detail", handshake(402, {"detail": {"code": "deactivated_workspace"}})),
    ("workspace deactivated, by text", frame(403, None, "This workspace has been deactivated.")),
    ("xai bad credentials", frame(403, "bad-credentials", "The access token could not be validated")),
    ("xai wrong key, as a 400", frame(400, None, "Incorrect API key provided: xa***", IRE)),
    ("usage not included", frame(429, "usage_not_included")),
    ("refresh token reused", frame(401, "refresh_token_reused")),
    ("invalid grant", frame(400, "invalid_grant")),
    ("live socket, code without status", frame(None, "invalid_api_key")),
    ("live socket, type without status", frame(None, None, "no", "authentication_error")),
    ("response.failed with a key code", failed("invalid_api_key")),
    ("refused upgrade", handshake(401, {"error": {"message": "no", "type": IRE, "code": None}})),
    ("refused upgrade, bare detail", handshake(401, {"detail": "Unauthorized"})),
    ("refused upgrade, no body", handshake(401, b"")),
    ("refused upgrade, 403 with a body", handshake(403, {"error": {"message": "no permission"}})),
]


@pytest.mark.parametrize("found", [pytest.param(f, id=name) for name, f in KEYS])
def test_rejects_the_key_when_the_evidence_names_it(found: Failure) -> None:
    assert (found.kind, found.names_key) == (K.AUTH_REJECTED, True)


@pytest.mark.parametrize("code", sorted(KEY_CODES))
def test_rejects_the_key_by_every_code_that_names_it_whatever_the_status(code: str) -> None:
    assert {frame(status, code).kind for status in (None, 400, 401, 403, 429, 500)} == {K.AUTH_REJECTED}


ROWS: list[tuple[str, Failure, FailureKind]] = [
    ("401 invalid authentication", frame(401, None, "Invalid Authentication", IRE), K.AUTH_REJECTED),
    ("401 no member", frame(401, None, "You must be a member of an organization to use the API"), K.AUTH_REJECTED),
    ("401 address", frame(401, "ip_not_authorized", "Your IP is not authorized."), K.AUTH_REJECTED),
    ("403 resource blocked", frame(403, None, "resource temporarily blocked"), K.AUTH_REJECTED),
    ("403 permission type", frame(403, None, "no", "permission_error"), K.AUTH_REJECTED),
    ("identity verification", frame(400, None, "Identity verification is required", IRE), K.UNSUPPORTED),
    ("country", frame(403, "unsupported_country_region_territory", "no", "request_forbidden"), K.UNSUPPORTED),
    ("403 challenge page", handshake(403, b"<!DOCTYPE html><title>Just a moment...</title>"), K.OVERLOADED),
    (
        "codex model on a plan",
        frame(400, IRE, "The 'x' model is not supported when using Codex with a ChatGPT account.", IRE),
        K.UNSUPPORTED,
    ),
    ("service tier", frame(400, None, "Invalid service_tier argument: not allowed", IRE), K.UNSUPPORTED),
    ("model not found", frame(404, "model_not_found", "", IRE), K.UNSUPPORTED),
    ("model not found, 400", frame(400, "model_not_found", "", IRE), K.UNSUPPORTED),
    ("model not available", frame(400, "model_not_available"), K.UNSUPPORTED),
    ("azure deployment", frame(404, "DeploymentNotFound"), K.UNSUPPORTED),
    ("data residency", frame(400, "data_residency_mismatch"), K.UNSUPPORTED),
    ("cyber policy", frame(400, "cyber_policy"), K.REQUEST_FAULT),
    ("402 payment", frame(402), K.QUOTA_EXHAUSTED),
    ("billing not active", frame(429, "billing_not_active"), K.QUOTA_EXHAUSTED),
    ("credit balance", frame(429, "credit_balance_exhausted", "", "insufficient_quota"), K.QUOTA_EXHAUSTED),
    ("organization spend", frame(429, "organization_spend_limit_exceeded"), K.QUOTA_EXHAUSTED),
    ("project spend", frame(429, "project_spend_limit_exceeded"), K.QUOTA_EXHAUSTED),
    ("organization usage", frame(429, "organization_usage_limit_exceeded"), K.QUOTA_EXHAUSTED),
    ("hard limit", frame(429, "billing_hard_limit_reached"), K.QUOTA_EXHAUSTED),
    ("insufficient quota", frame(429, "insufficient_quota", "", "insufficient_quota"), K.QUOTA_EXHAUSTED),
    ("insufficient quota, type only", frame(429, None, "", "insufficient_quota"), K.QUOTA_EXHAUSTED),
    ("quota exceeded", frame(429, "quota_exceeded"), K.QUOTA_EXHAUSTED),
    ("usage limit, type only", frame(429, None, "The usage limit", "usage_limit_reached"), K.QUOTA_EXHAUSTED),
    ("xai free usage", frame(429, "subscription:free-usage-exhausted"), K.QUOTA_EXHAUSTED),
    ("rate limit", frame(429, "rate_limit_exceeded", "", "tokens"), K.RATE_LIMITED),
    ("rate limit by requests", frame(429, None, "", "requests"), K.RATE_LIMITED),
    ("slow down, of the rate", frame(429, "slow_down", "", "rate_limit_error"), K.RATE_LIMITED),
    ("bare 429", frame(429), K.RATE_LIMITED),
    ("rate limit in response.failed", failed("rate_limit_exceeded", "Please try again in 1.2s."), K.RATE_LIMITED),
    ("too large for the minute", frame(429, None, "Request too large: 9 tokens per min"), K.UNSUPPORTED),
    (
        "too large for the minute, as OpenAI says it",
        frame(
            429, "rate_limit_exceeded", "Request too large for m in organization o on tokens per min (TPM)", "tokens"
        ),
        K.UNSUPPORTED,
    ),
    ("continuation", frame(400, "previous_response_not_found", "", IRE), K.CONTINUATION_LOST),
    ("continuation without type", frame(400, "previous_response_not_found"), K.CONTINUATION_LOST),
    ("continuation by text", frame(400, IRE, "Invalid `previous_response_id`: resp_1", IRE), K.CONTINUATION_LOST),
    ("continuation at xai", frame(None, None, "Response with id=resp_1 not found"), K.CONTINUATION_LOST),
    ("continuation as a 404", frame(404, None, "Previous response with id 'r' not found."), K.CONTINUATION_LOST),
    (
        "item not persisted",
        frame(404, None, "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false.", IRE),
        K.REQUEST_FAULT,
    ),
    ("ciphertext", frame(400, "invalid_encrypted_content", "", IRE), K.CIPHERTEXT_FOREIGN),
    (
        "ciphertext by organization, code null",
        frame(400, None, "Encrypted content organization_id did not match the target organization", IRE),
        K.CIPHERTEXT_FOREIGN,
    ),
    (
        "ciphertext not parsed, code null",
        frame(400, None, "The encrypted content gAAAA could not be decrypted or parsed.", IRE),
        K.CIPHERTEXT_FOREIGN,
    ),
    ("no tool output", frame(400, None, "No tool output found for function call call_1.", IRE), K.REQUEST_FAULT),
    ("bad tool output", frame(400, "invalid_function_call_output"), K.REQUEST_FAULT),
    ("context length", frame(400, "context_length_exceeded", "", IRE), K.REQUEST_FAULT),
    ("context length in response.failed", failed("context_length_exceeded"), K.REQUEST_FAULT),
    ("string too long", frame(400, "string_above_max_length"), K.REQUEST_FAULT),
    ("message too big", frame(413, "message_too_big"), K.REQUEST_FAULT),
    ("invalid prompt", failed("invalid_prompt"), K.REQUEST_FAULT),
    ("bio policy", failed("bio_policy"), K.REQUEST_FAULT),
    ("misalignment", failed("misalignment_policy_violation"), K.REQUEST_FAULT),
    ("content filter", frame(400, "content_filter"), K.REQUEST_FAULT),
    ("content policy", frame(400, "content_policy_violation"), K.REQUEST_FAULT),
    ("moderation", frame(400, "moderation_blocked"), K.REQUEST_FAULT),
    ("image", failed("invalid_image_url"), K.REQUEST_FAULT),
    ("image file", failed("image_file_not_found"), K.REQUEST_FAULT),
    ("image download", failed("failed_to_download_image"), K.REQUEST_FAULT),
    ("invalid value", frame(400, "invalid_value", "", IRE), K.REQUEST_FAULT),
    ("unsupported value", frame(400, "unsupported_value", "", IRE), K.REQUEST_FAULT),
    ("unknown parameter", frame(422, "unknown_parameter", "", IRE), K.REQUEST_FAULT),
    ("other bad request", frame(400, None, "something else", IRE), K.REQUEST_FAULT),
    ("other bad request without status", frame(None, None, "something else", IRE), K.REQUEST_FAULT),
    ("stream id", frame(400, "invalid_stream_id"), K.REQUEST_FAULT),
    ("event type", frame(400, "unsupported_event_type"), K.REQUEST_FAULT),
    ("bad json", frame(400, "invalid_json"), K.REQUEST_FAULT),
    ("stream limit", frame(400, "websocket_stream_limit_reached"), K.REQUEST_FAULT),
    ("connection limit", frame(400, "websocket_connection_limit_reached"), K.CONNECTION_EXPIRED),
    ("generic 404", frame(404, None, "not found"), K.REQUEST_FAULT),
    ("upgrade unknown", handshake(404, b"not found"), K.UNSUPPORTED),
    ("upgrade not allowed", handshake(405, {}), K.UNSUPPORTED),
    ("upgrade refused", handshake(426, {}), K.UNSUPPORTED),
    ("408", frame(408), K.OVERLOADED),
    ("499", frame(499), K.OVERLOADED),
    ("504", frame(504), K.OVERLOADED),
    ("conversation locked", frame(409, "conversation_locked"), K.REQUEST_FAULT),
    ("413", frame(413), K.REQUEST_FAULT),
    ("500", frame(500, "server_error", "", "server_error"), K.OVERLOADED),
    ("500 code null", frame(500, None, "", "server_error"), K.OVERLOADED),
    ("overload", frame(503, "server_is_overloaded", "", "service_unavailable_error"), K.OVERLOADED),
    ("overload without status", frame(None, "server_is_overloaded", "", "service_unavailable_error"), K.OVERLOADED),
    ("overload in response.failed", failed("server_is_overloaded"), K.OVERLOADED),
    ("slow down", failed("slow_down"), K.OVERLOADED),
    ("overloaded error", frame(529, "overloaded_error"), K.OVERLOADED),
    ("capacity as a 400", frame(400, IRE, "Selected model is at capacity. Try another.", IRE), K.OVERLOADED),
    *((f"gateway {status}", handshake(status, b"<html>"), K.OVERLOADED) for status in (502, 503, 520, 522, 524)),
    *((f"close {code}", classify_close(code), K.TRANSPORT_LOST) for code in (1000, 1001, 1006, 1011, 1012, 1013, None)),
    ("close 1009", classify_close(1009), K.REQUEST_FAULT),
    ("close 4402", classify_close(4402), K.QUOTA_EXHAUSTED),
]


@pytest.mark.parametrize(("found", "kind"), [pytest.param(f, kind, id=name) for name, f, kind in ROWS])
def test_understands_a_refusal(found: Failure, kind: FailureKind) -> None:
    assert (found.kind, found.names_key) == (kind, False)


@pytest.mark.parametrize("status", [400, 404, 409, 418, 422, 451])
def test_blames_the_request_when_a_4xx_is_unheard_of(status: int) -> None:
    assert frame(status, "never_seen", "whatever").kind is K.REQUEST_FAULT


@pytest.mark.parametrize("status", [None, 0, 200, 500, 599])
def test_blames_no_key_when_anything_else_is_unheard_of(status: int | None) -> None:
    assert frame(status, "never_seen", "whatever").kind is K.OVERLOADED


def test_trusts_the_code_over_the_type_over_the_status() -> None:
    assert frame(401, "rate_limit_exceeded", "", "authentication_error").kind is K.RATE_LIMITED
    assert frame(401, None, "Selected model is at capacity", "insufficient_quota").kind is K.QUOTA_EXHAUSTED
    assert frame(401, None, "", "server_error").kind is K.OVERLOADED


ERROR = {"type": "usage_limit_reached", "code": "usage_limit_reached", "message": "m", "resets_at": NOW + 60}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("nested", {"type": "error", "status": 429, "error": ERROR}),
    ("nested, status_code", {"type": "error", "status_code": 429, "error": ERROR}),
    ("stream error", {"type": "error", "sequence_number": 2, "error": {**ERROR, "headers": {}}}),
    ("flat", {"type": "error", "status": 429, **{k: v for k, v in ERROR.items() if k != "type"}}),
    ("flat, error_type", {"type": "error", "error_type": "usage_limit_reached", "resets_at": NOW + 60, "code": None}),
    ("wrapped in body", {"type": "error", "status": 429, "body": {"error": ERROR}}),
    ("wrapped in response", {"type": "response.failed", "response": {"status": "failed", "error": ERROR}}),
    ("detail", {"detail": ERROR, "status": 429}),
]


@pytest.mark.parametrize("document", [pytest.param(d, id=name) for name, d in SHAPES])
def test_reads_every_shape_alike(document: dict[str, Any]) -> None:
    found = classify_event(orjson.dumps(document), now=NOW)
    assert (found.kind, found.status, found.until) == (K.QUOTA_EXHAUSTED, 429, NOW + 60)
    assert found.raw == orjson.dumps(document)


def test_reads_headers_of_every_level_whatever_their_case() -> None:
    document = {"headers": {"Retry-After": 7}, "error": {"code": "x", "headers": {"X-One": "1"}}}
    refusal = read_refusal(document, 429, {"X-TWO": "2"})
    assert refusal.headers == {"retry-after": "7", "x-one": "1", "x-two": "2"}


@pytest.mark.parametrize("document", [None, [], "error", 7, {}, {"error": None}, {"error": "no", "detail": None}])
def test_survives_a_document_that_is_no_refusal(document: object) -> None:
    assert classify(read_refusal(document, 400), now=NOW).kind is K.REQUEST_FAULT
    assert classify(read_refusal(document), now=NOW).kind is K.OVERLOADED


@pytest.mark.parametrize("status", ["429", True, None, [], 4.5])
def test_ignores_a_status_that_is_no_number(status: object) -> None:
    assert read_refusal({"status": status}, 418).status == 418


def test_takes_status_code_when_status_is_null() -> None:
    assert read_refusal({"status": None, "status_code": 429}).status == 429


def test_implies_the_status_where_the_vendor_left_it_out() -> None:
    implied = {code: frame(None, code).status for code in ("rate_limit_exceeded", "insufficient_quota")}
    assert implied == {"rate_limit_exceeded": 429, "insufficient_quota": 429}
    assert frame(None, "server_is_overloaded").status == 503
    assert frame(None, "invalid_api_key").status == 401
    assert frame(None, "invalid_prompt").status == 400


def test_takes_garbage_for_a_lost_transport() -> None:
    assert classify_event(b"\xff{", now=NOW) == Failure(K.TRANSPORT_LOST, code="garbage")


@pytest.mark.parametrize("found", [handshake(401, {}), handshake(404, {}), handshake(503, {}), handshake(403, b"<a>")])
def test_a_refused_handshake_is_independent_of_any_request(found: Failure) -> None:
    assert found.independent
    assert not frame(401, "invalid_api_key").independent


@pytest.mark.parametrize(("code", "orderly"), [(1000, True), (1001, True), (1012, True), (1006, False), (1011, False)])
def test_an_orderly_close_is_no_sign_of_trouble(code: int, orderly: bool) -> None:
    assert classify_close(code).orderly is orderly


# --- answers over HTTP: the request was part of the evidence ---


def answer(status: int, body: object = b"", headers: dict[str, str] | None = None) -> Failure:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return classify_answer(status, headers or {}, raw, now=NOW)


def error(code: str | None = None, message: str = "m", type: str | None = IRE, **more: object) -> dict[str, Any]:
    return {"error": {"type": type, "code": code, "message": message, "param": None, **more}}


PAGE = b"<!DOCTYPE html><title>Just a moment...</title>"
ANSWERS: list[tuple[str, Failure, FailureKind]] = [
    ("401 that names the key", answer(401, error("invalid_api_key", "Incorrect API key provided")), K.AUTH_REJECTED),
    ("bare 401", answer(401), K.AUTH_REJECTED),
    ("401 with a bare detail", answer(401, {"detail": "Unauthorized"}), K.AUTH_REJECTED),
    ("401 page", answer(401, PAGE), K.AUTH_REJECTED),
    ("403 page", answer(403, PAGE), K.OVERLOADED),
    ("bare 403", answer(403), K.OVERLOADED),
    ("403 of a scope", answer(403, error(None, "no permission")), K.AUTH_REJECTED),
    ("402", answer(402, {}), K.QUOTA_EXHAUSTED),
    ("404 of a model", answer(404, error("model_not_found")), K.UNSUPPORTED),
    ("404 of the request", answer(404, error(None, "Item with id 'rs_1' not found.")), K.REQUEST_FAULT),
    ("404 of a conversation", answer(404, error("conversation_not_found")), K.REQUEST_FAULT),
    ("404 of a continuation", answer(404, error("previous_response_not_found")), K.CONTINUATION_LOST),
    ("400 of a continuation", answer(400, error("previous_response_not_found")), K.CONTINUATION_LOST),
    ("400", answer(400, error("invalid_value")), K.REQUEST_FAULT),
    ("bare 400", answer(400), K.REQUEST_FAULT),
    ("413 page", answer(413, PAGE), K.REQUEST_FAULT),
    ("422", answer(422, {"detail": [{"loc": ["body"], "msg": "field required"}]}), K.REQUEST_FAULT),
    ("429", answer(429, error("rate_limit_exceeded", type="tokens")), K.RATE_LIMITED),
    ("bare 429", answer(429), K.RATE_LIMITED),
    ("429 of a quota", answer(429, error("insufficient_quota", type="insufficient_quota")), K.QUOTA_EXHAUSTED),
    ("500 page", answer(500, PAGE), K.OVERLOADED),
    ("500", answer(500, error(None, type="server_error")), K.OVERLOADED),
    ("502 page", answer(502, PAGE), K.OVERLOADED),
    ("503", answer(503, error("server_is_overloaded", type="service_unavailable_error")), K.OVERLOADED),
    ("504", answer(504), K.OVERLOADED),
    ("529", answer(529, error("overloaded_error", type="overloaded_error")), K.OVERLOADED),
    ("ciphertext", answer(400, error("invalid_encrypted_content")), K.CIPHERTEXT_FOREIGN),
]
ABSENT = [
    ("404 of a framework", answer(404, {"detail": "Not Found"})),
    ("404 with a text", answer(404, {"status": 404, "error": "Not Found", "path": "/v1/x"})),
    ("404 page", answer(404, PAGE)),
    ("bare 404", answer(404)),
    ("405", answer(405, {"detail": "Method Not Allowed"})),
    ("501 page", answer(501, PAGE)),
    ("301", answer(301, PAGE, {"location": "https://elsewhere.example/"})),
    ("307 with an error", answer(307, error("invalid_value"))),
]


@pytest.mark.parametrize(("found", "kind"), [pytest.param(f, kind, id=name) for name, f, kind in ANSWERS])
def test_understands_an_answer_in_which_the_request_was_part_of_the_evidence(found: Failure, kind: FailureKind) -> None:
    assert (found.kind, found.independent) == (kind, False)


@pytest.mark.parametrize("found", [pytest.param(f, id=name) for name, f in ABSENT])
def test_what_no_words_of_a_vendor_explain_is_the_endpoints(found: Failure) -> None:
    assert (found.kind, found.code, found.independent, found.raw) == (K.UNSUPPORTED, NOT_OFFERED, True, None)
    assert errors.unserved(found) == errors.not_offered()


def test_an_answer_holds_a_refusal_against_the_key_only_where_it_names_it() -> None:
    named = [answer(401, error("invalid_api_key")), answer(403, error("account_deactivated"))]
    named.append(answer(401, error(None, "Incorrect API key provided: x", None)))
    unnamed = [answer(401), answer(401, {"detail": "Unauthorized"}), answer(401, PAGE), answer(403, error())]
    assert [found.names_key for found in named + unnamed] == [True] * 3 + [False] * 4


HEADERS = {"Retry-After": "7", "X-Request-Id": "req_1", "Set-Cookie": "a=b", "X-RateLimit-Limit-Requests": "1"}


def test_an_answer_is_told_as_an_event_of_a_websocket() -> None:
    found = answer(429, error("rate_limit_exceeded", "slow", "tokens", odd={"n": 1.5}), HEADERS)
    assert found.retry_after == 7.0
    assert found.raw is not None
    assert event_kind(found.raw) is EventKind.FAILURE
    assert orjson.loads(found.raw) == {
        "type": "error",
        "status": 429,
        **error("rate_limit_exceeded", "slow", "tokens", odd={"n": 1.5}),
        "headers": {"retry-after": "7", "x-request-id": "req_1"},
    }


@pytest.mark.parametrize("body", [{"detail": "no"}, {"message": "no"}, {"error": "no"}, {"detail": {"message": "no"}}])
def test_every_shape_of_an_answer_becomes_an_error_with_all_its_fields(body: dict[str, Any]) -> None:
    found = answer(400, body)
    assert found.raw is not None
    told = orjson.loads(found.raw)
    assert told["status"] == 400
    assert set(told["error"]) == {"type", "code", "message", "param"}
    assert (told["error"]["message"], told["error"]["type"]) == ("no", IRE)


@pytest.mark.parametrize("body", [b"", PAGE, b"[]", b"7", b"null", b"\xff", b"{}"])
def test_an_answer_without_words_gets_ours(body: bytes) -> None:
    found = answer(400, body)
    assert found.raw is not None
    told = orjson.loads(found.raw)
    assert told == {"type": "error", "status": 400, **error(None, "The upstream refused the request.")}


def test_the_status_of_the_event_is_that_of_the_answer() -> None:
    found = answer(400, {"status": 200, **error("invalid_value")})
    assert found.raw is not None
    assert orjson.loads(found.raw)["status"] == 400


def test_an_answer_that_cannot_be_written_again_is_told_with_its_code() -> None:
    deep = b"[" * 300 + b"]" * 300
    for found in (
        answer(400, b'{"error":{"code":"invalid_value","odd":%b}}' % deep),
        answer(400, error("invalid_value"), {"x-request-id": "\udcff"}),
    ):
        assert found.kind is K.REQUEST_FAULT
        assert found.raw is not None
        told = orjson.loads(found.raw)
        assert (told["status"], told["error"]["code"], told["error"]["type"]) == (400, "invalid_value", IRE)


# --- what a vendor repeats may be its client's, and long ---


@pytest.mark.parametrize(
    "words",
    ["encrypted content ", "request too large ", "response with id ", "previous response ", "try again in 9", "9"],
)
def test_a_long_message_costs_no_more_than_a_short_one(words: str) -> None:
    began = time.process_time()
    answer(400, error(None, words * (1 << 20)))
    assert time.process_time() - began < 0.5


def test_a_long_duration_costs_no_more_than_a_short_one() -> None:
    began = time.process_time()
    answer(429, error(), {"x-ratelimit-reset-requests": "9" * 8000, "x-ratelimit-reset-tokens": "9." * 4000})
    assert time.process_time() - began < 0.1


def test_words_are_found_within_the_part_of_a_message_that_is_searched() -> None:
    assert answer(400, error(None, "x" * (MAX_MESSAGE - 30) + "model is at capacity")).kind is K.OVERLOADED


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-ratelimit-reset-requests": "9" * 60 + "s"}, ""),
        ({"retry-after": "1e400"}, ""),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, ""),
        ({"retry-after-ms": "inf"}, ""),
        ({}, "try again in " + "9" * 400 + "s"),
    ],
)
def test_a_time_beyond_all_reason_is_none(headers: dict[str, str], message: str) -> None:
    found = answer(429, error(None, message), headers)
    assert (found.until, found.retry_after) == (None, None)
    assert errors.unserved(found).event()


# --- times, most trusted first (protocol.md 6.4); each line is one source, told as (until, retry_after) ---

TIMES: list[tuple[str, dict[str, Any], dict[str, str], str, tuple[float | None, float | None]]] = [
    ("resets_at", {"resets_at": NOW + 90}, {}, "", (NOW + 90, None)),
    ("resets_in_seconds", {"resets_in_seconds": 80}, {}, "", (NOW + 80, None)),
    ("retry-after-ms", {}, {"retry-after-ms": "7500"}, "", (None, 7.5)),
    ("retry-after", {}, {"retry-after": "6"}, "", (None, 6.0)),
    ("x-ratelimit", {}, {"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, "", (None, 360.0)),
    ("text", {}, {}, "Please try again in 1.2s.", (None, 1.2)),
]


@pytest.mark.parametrize("first", range(len(TIMES)), ids=[entry[0] for entry in TIMES])
def test_trusts_the_best_source_of_a_reset_time(first: int) -> None:
    fields: dict[str, Any] = {}
    headers: dict[str, str] = {}
    text = ""
    for _, its_fields, its_headers, its_text, _ in TIMES[first:]:
        fields |= its_fields
        headers |= its_headers
        text += its_text
    found = classify(read_refusal({"error": {**fields, "message": text}}, 429, headers), now=NOW)
    assert (found.until, found.retry_after) == TIMES[first][-1]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("try again in 20ms", 0.02),
        ("Try again in 20 milliseconds", 0.02),
        ("try again in 3 seconds", 3.0),
        ("try again in 2 minutes", 120.0),
        ("try again later", None),
    ],
)
def test_reads_a_wait_out_of_the_text(text: str, span: float | None) -> None:
    assert frame(429, "rate_limit_exceeded", text).retry_after == span


@pytest.mark.parametrize(
    ("value", "span"),
    [("0", 0.0), ("-5", None), ("soon", None), ("", None), ("nan", None), (formatdate(NOW + 30, usegmt=True), 30.0)],
)
def test_reads_retry_after(value: str, span: float | None) -> None:
    assert classify(read_refusal({}, 429, {"retry-after": value}), now=NOW).retry_after == span


def test_takes_a_date_that_has_passed_for_no_wait() -> None:
    past = formatdate(NOW - 30, usegmt=True)
    assert classify(read_refusal({}, 429, {"Retry-After": past}), now=NOW).retry_after == 0.0


@pytest.mark.parametrize("value", ["-1", "0", "", "never"])
def test_ignores_rate_limit_headers_that_say_nothing(value: str) -> None:
    headers = {"x-ratelimit-reset-requests": value, "x-ratelimit-reset-tokens": value}
    assert classify(read_refusal({}, 429, headers), now=NOW).retry_after is None


@pytest.mark.parametrize("value", [True, -1, "x", None, NOW * 1000, [], float("1e300")])
def test_ignores_a_reset_that_is_no_time(value: object) -> None:
    found = classify(read_refusal({"error": {"resets_at": value, "resets_in_seconds": value}}, 429), now=NOW)
    assert (found.until, found.retry_after) == (None, None)
