"""Reads a vendor's refusal and says which kind of failure it is.

Precedence: explicit code, then known texts where the type says nothing, then the type, then the HTTP status
(protocol.md 6.1). Codes first, because `invalid_request_error` covers everything and one text hides an overload.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from broker.domain.failure import NOT_OFFERED, Failure, FailureKind
from broker.domain.limits import from_headers

K = FailureKind

_CODES: dict[str, FailureKind] = {
    **dict.fromkeys(
        (
            "context_length_exceeded",
            "string_above_max_length",
            "message_too_big",
            "payload_too_large",
            "invalid_prompt",
            "bio_policy",
            "cyber_policy",
            "misalignment_policy_violation",
            "content_filter",
            "content_policy_violation",
            "moderation_blocked",
            "invalid_value",
            "invalid_type",
            "unsupported_value",
            "unsupported_parameter",
            "unknown_parameter",
            "missing_required_parameter",
            "invalid_stream_id",
            "unsupported_event_type",
            "invalid_json",
            "invalid_function_call_output",
            "websocket_stream_limit_reached",
            "conversation_locked",
            "conversation_not_found",
            "failed_to_download_image",
            "vector_store_timeout",
        ),
        K.REQUEST_FAULT,
    ),
    **dict.fromkeys(
        (
            "model_not_found",
            "model_not_available",
            "deploymentnotfound",
            "data_residency_mismatch",
            "unsupported_country_region_territory",
        ),
        K.UNSUPPORTED,
    ),
    **dict.fromkeys(
        (
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "billing_hard_limit_reached",
            "billing_not_active",
            "insufficient_quota",
            "quota_exceeded",
            "usage_limit_reached",
            "subscription:free-usage-exhausted",
        ),
        K.QUOTA_EXHAUSTED,
    ),
    "rate_limit_exceeded": K.RATE_LIMITED,
    **dict.fromkeys(
        ("server_is_overloaded", "overloaded_error", "slow_down", "server_error", "internal_error"), K.OVERLOADED
    ),
    "websocket_connection_limit_reached": K.CONNECTION_EXPIRED,
    "previous_response_not_found": K.CONTINUATION_LOST,
    "invalid_encrypted_content": K.CIPHERTEXT_FOREIGN,
}

KEY_CODES = frozenset(
    {
        "invalid_api_key",
        "incorrect_api_key",
        "bad-credentials",
        "unauthorized_client",
        "token_expired",
        "token_invalid",
        "token_invalidated",
        "token_revoked",
        "app_session_terminated",
        "account_session_expired",
        "account_auth_invalidated",
        "account_deactivated",
        "account_suspended",
        "account_deleted",
        "deactivated_workspace",
        "usage_not_included",
        "invalid_grant",
        "invalid_client",
        "invalid_refresh_token",
        "refresh_token_expired",
        "refresh_token_reused",
        "refresh_token_invalidated",
        "refresh_token_revoked",
    }
)
"""Codes that name the key: whatever was asked, it is the credential that cannot serve."""

_TEXTS: tuple[tuple[re.Pattern[str], FailureKind, bool], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, names_key)
    for pattern, kind, names_key in (
        (r"model is at capacity", K.OVERLOADED, False),
        (r"usage limit has been reached|exceeded your current quota|credit balance is", K.QUOTA_EXHAUSTED, False),
        (r"organization has been disabled|workspace has been deactivated", K.AUTH_REJECTED, True),
        (r"incorrect api key|session has ended|log in again", K.AUTH_REJECTED, True),
        (r"identity verification is required|organization must be verified", K.UNSUPPORTED, False),
        (r"not supported when using codex with|invalid service_tier argument", K.UNSUPPORTED, False),
        (r"encrypted content.*(organization|could not be|decrypt)", K.CIPHERTEXT_FOREIGN, False),
        (
            r"response with id=?.*not found|invalid `?previous_response_id|previous response.*not found",
            K.CONTINUATION_LOST,
            False,
        ),
    )
)

_TOO_LARGE = re.compile(r"request too large.*tokens per min", re.IGNORECASE | re.DOTALL)

_TYPES: dict[str, FailureKind] = {
    "authentication_error": K.AUTH_REJECTED,
    "permission_error": K.AUTH_REJECTED,
    "insufficient_quota": K.QUOTA_EXHAUSTED,
    "usage_limit_reached": K.QUOTA_EXHAUSTED,
    "rate_limit_error": K.RATE_LIMITED,
    "rate_limit_exceeded": K.RATE_LIMITED,
    "requests": K.RATE_LIMITED,
    "tokens": K.RATE_LIMITED,
    "server_error": K.OVERLOADED,
    "service_unavailable_error": K.OVERLOADED,
    "overloaded_error": K.OVERLOADED,
}

_STATUSES: dict[int, FailureKind] = {
    401: K.AUTH_REJECTED,
    402: K.QUOTA_EXHAUSTED,
    403: K.AUTH_REJECTED,
    408: K.OVERLOADED,
    429: K.RATE_LIMITED,
    499: K.OVERLOADED,
}

_IMPLIED_STATUS = {
    K.RATE_LIMITED: 429,
    K.QUOTA_EXHAUSTED: 429,
    K.OVERLOADED: 503,
    K.AUTH_REJECTED: 401,
}

_ORDERLY_CLOSES = frozenset({1000, 1001, 1012})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A vendor's refusal, read out of whichever of its shapes it came in (protocol.md 6.1)."""

    status: int
    code: str
    type: str
    message: str
    fields: Mapping[str, Any]
    headers: Mapping[str, str]


MAX_MESSAGE = 2048
"""Characters of a message that are searched: a vendor may repeat in it whatever the request said."""


def read_refusal(document: object, status: int = 0, headers: Mapping[str, str] | None = None) -> Refusal:
    """The refusal in a parsed body or event: nested, flat, wrapped in `body` or `response`, or a bare `detail`."""
    outer = document if isinstance(document, dict) else {}
    inner = _error_of(outer)
    wanted = outer.get("status_code", status) if outer.get("status") is None else outer["status"]
    found = {str(k).lower(): str(v) for k, v in (headers or {}).items()}
    for source in (outer.get("headers"), inner.get("headers")):
        if isinstance(source, dict):
            found.update({str(k).lower(): str(v) for k, v in source.items()})
    return Refusal(
        status=wanted if isinstance(wanted, int) and not isinstance(wanted, bool) else status,
        code=_word(inner.get("code")),
        type=_word(inner.get("type", inner.get("error_type"))),
        message=inner["message"][:MAX_MESSAGE] if isinstance(inner.get("message"), str) else "",
        fields=inner,
        headers=found,
    )


def _error_of(outer: Mapping[str, Any]) -> Mapping[str, Any]:
    for holder in (outer, outer.get("response"), outer.get("body")):
        if isinstance(holder, dict) and isinstance(holder.get("error"), dict):
            error: Mapping[str, Any] = holder["error"]
            return error
    if isinstance(detail := outer.get("detail"), dict):
        return detail
    for words in (detail, outer.get("error")):
        if isinstance(words, str):
            return {"message": words, "code": outer.get("code")}
    flat = {key: outer[key] for key in ("code", "message", "param", "error_type") if key in outer}
    return {**flat, **{key: value for key, value in outer.items() if key.startswith("resets_")}}


def _word(value: object) -> str:
    return value.lower() if isinstance(value, str) else ""


def classify(refusal: Refusal, *, now: float) -> Failure:
    """The failure that a refusal is, with the times the vendor named (protocol.md 6.4)."""
    kind, names_key = _kind(refusal)
    until, retry_after = _times(refusal, now)
    return Failure(
        kind,
        status=refusal.status or _IMPLIED_STATUS.get(kind, 500 if refusal.type == "server_error" else 400),
        code=refusal.code,
        type=refusal.type,
        until=until,
        retry_after=retry_after,
        names_key=names_key,
        limits=from_headers(refusal.headers, now) if refusal.headers else None,
    )


def _kind(refusal: Refusal) -> tuple[FailureKind, bool]:
    if refusal.code in KEY_CODES:
        return K.AUTH_REJECTED, True
    if refusal.code == "slow_down" and refusal.type == "rate_limit_error":
        return K.RATE_LIMITED, False
    if _TOO_LARGE.search(refusal.message):
        # it says `rate_limit_exceeded`, but waiting would not help
        return K.UNSUPPORTED, False
    if refusal.code in _CODES:
        return _CODES[refusal.code], False
    if refusal.code.startswith(("invalid_image", "image_")):
        return K.REQUEST_FAULT, False
    if refusal.type not in _TYPES:
        for pattern, kind, names_key in _TEXTS:
            if pattern.search(refusal.message):
                return kind, names_key
    if refusal.type in _TYPES:
        return _TYPES[refusal.type], refusal.type == "authentication_error"
    if refusal.type == "invalid_request_error" and not refusal.status:
        return K.REQUEST_FAULT, False
    return _by_status(refusal.status), False


def _by_status(status: int) -> FailureKind:
    if status in _STATUSES:
        return _STATUSES[status]
    # what nobody has heard of is the request's when the vendor says 4xx, and the vendor's otherwise: no key is blamed
    return K.REQUEST_FAULT if 400 <= status < 500 else K.OVERLOADED


def classify_event(raw: bytes, *, now: float) -> Failure:
    """The failure in an `error` or `response.failed` event."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return Failure(K.TRANSPORT_LOST, code="garbage")
    return replace(classify(read_refusal(document), now=now), raw=raw)


def classify_handshake(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Failure:
    """The failure in a refused upgrade. No request was part of it, so it speaks of the credential or the endpoint."""
    document = document_of(body)
    refusal = read_refusal(document, status, headers)
    if document is None and status == 403:
        # a challenge page of a CDN is about the way there, never about the key
        return replace(classify(replace(refusal, status=503), now=now), status=403, independent=True)
    failure = replace(classify(refusal, now=now), independent=True)
    if failure.kind is K.AUTH_REJECTED:
        return replace(failure, names_key=True)
    if failure.kind is K.REQUEST_FAULT and status == 431:
        return replace(failure, kind=K.UNSUPPORTED, orderly=True)  # the client's headers went along
    if failure.kind is K.REQUEST_FAULT:
        # 400, 404, 405, 426: this endpoint does not offer what we asked of it
        return replace(failure, kind=K.UNSUPPORTED)
    return failure


def classify_answer(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Failure:
    """The failure in an HTTP answer to a request; `raw` is an `error` event of it, as a WebSocket would bring.

    The request was part of the evidence. What no vendor's own words explain is the endpoint's: pages of a proxy, paths
    that are not there, redirects, which are never followed.
    """
    document = document_of(body)
    refusal = read_refusal(document, status, headers)
    if document is None and status == 403:
        return replace(classify(replace(refusal, status=503), now=now), status=403)
    if 300 <= status < 400 or (status in (404, 405, 501) and not isinstance((document or {}).get("error"), dict)):
        return Failure(K.UNSUPPORTED, status=status, code=NOT_OFFERED, independent=True)
    return replace(classify(refusal, now=now), raw=_as_event(refusal, status))


def document_of(body: bytes) -> dict[str, Any] | None:
    """The JSON object that a body is; None if it is none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


_WORDS = {"type": "invalid_request_error", "code": None, "message": "The upstream refused the request.", "param": None}
_TOLD_ON = ("retry-after", "retry-after-ms", "x-request-id", "x-should-retry")


def _as_event(refusal: Refusal, status: int) -> bytes:
    told = {name: refusal.headers[name] for name in _TOLD_ON if name in refusal.headers}
    event = {"type": "error", "status": status, "error": _WORDS | dict(refusal.fields)}
    try:
        return orjson.dumps(event | ({"headers": told} if told else {}))
    except TypeError:
        # nested more deeply than can be written, or a header whose bytes are no text
        return orjson.dumps(event | {"error": _WORDS | {"code": refusal.code or None}})


def classify_close(code: int | None, reason: str = "") -> Failure:
    """The failure in a socket that ended without a terminal event."""
    if code == 1009:
        return Failure(K.REQUEST_FAULT, status=413, code="message_too_big", type="invalid_request_error")
    if code == 1007:
        return Failure(K.REQUEST_FAULT, status=400, code="invalid_utf8", type="invalid_request_error")
    if code == 4402:
        return Failure(K.QUOTA_EXHAUSTED, status=429, code="credit_balance_exhausted", type="insufficient_quota")
    return Failure(K.TRANSPORT_LOST, code=f"close_{code or 1006}", orderly=code in _ORDERLY_CLOSES)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TRY_AGAIN = re.compile(r"try again in ((?:\d+(?:\.\d+)? ?(?:ms|h|m|s)[a-z]*[ ,]*)+)", re.IGNORECASE)
_SPAN = re.compile(r"(\d+(?:\.\d+)?) ?(ms|milli|h|m|s)", re.IGNORECASE)


def _times(refusal: Refusal, now: float) -> tuple[float | None, float | None]:
    fields, headers = refusal.fields, refusal.headers
    if (at := _number(fields.get("resets_at"))) is not None:
        return at, None
    if (span := _number(fields.get("resets_in_seconds"))) is not None:
        return now + span, None
    if (span := _number(headers.get("retry-after-ms"))) is not None:
        return None, span / 1000
    if (span := _retry_after(headers.get("retry-after"), now)) is not None:
        return None, span
    resets = [_go_duration(headers.get(f"x-ratelimit-reset-{what}", "")) for what in ("requests", "tokens")]
    if known := [span for span in resets if span and _number(span) is not None]:
        return None, max(known)
    if found := _TRY_AGAIN.search(refusal.message):
        spans = _SPAN.findall(found.group(1).lower())
        return None, _number(sum(float(number) * _UNITS["ms" if unit == "milli" else unit] for number, unit in spans))
    return None, None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < 1e11 else None


def _retry_after(value: str | None, now: float) -> float | None:
    if value is None or (number := _number(value)) is not None:
        return None if value is None else number
    try:
        return _number(max(0.0, parsedate_to_datetime(value).timestamp() - now))
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _go_duration(text: str) -> float:
    """Seconds of a duration in Go's manner (`6m0s`, `12ms`); 0 where it is none."""
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text[:MAX_DURATION]))


MAX_DURATION = 64
"""Characters of a duration that are read: digits without a unit would be searched again from each of them."""
