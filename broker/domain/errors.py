"""What a client is told when a turn cannot be served: typed, with a numeric status, and safe to show.

Words of a vendor that concern the request go to the client as they are. Words that concern a credential do not: they
may name an account or a piece of a key, and the client could do nothing about them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from broker.domain.failure import NOT_OFFERED, Failure, FailureKind
from broker.domain.headers import without_account
from broker.domain.wire import Garbage, error_event, event_type, with_lane, with_status


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error as a client sees it; every codec renders the same one.

    `retry_after` (seconds) says when to come again, `again` False that coming again by itself does harm, or no good:
    SDKs repeat every 5xx and 429 otherwise.
    """

    status: int
    code: str
    message: str
    type: str
    param: str | None = None
    retry_after: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    again: bool = True

    def event(self, stream_id: str | None = None) -> bytes:
        """As an `error` event of a WebSocket."""
        headers = {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        if not self.again:
            headers["x-should-retry"] = "false"
        return error_event(
            self.status,
            self.code,
            self.message,
            type=self.type,
            param=self.param,
            stream_id=stream_id,
            headers=headers,
            extra=self.extra,
        )

    def body(self) -> dict[str, Any]:
        """As the body of an HTTP response."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code, **self.extra}
        return {"error": error}


SOON = 60.0
"""Seconds for which an SDK waits before it comes again; what ends later it should not wait for."""


def bad_request(code: str, message: str, param: str | None = None, status: int = 400) -> ErrorReply:
    """The request is at fault."""
    return ErrorReply(status, code, message, "invalid_request_error", param)


def previous_response_not_found(response_id: str) -> ErrorReply:
    """The exact refusal that clients know how to recover from: they send the full context again."""
    return bad_request(
        "previous_response_not_found", f"Previous response with id '{response_id}' not found.", "previous_response_id"
    )


def not_found(thing: str) -> ErrorReply:
    """Something of a vendor's that nobody here has seen, or that is another tenant's."""
    return ErrorReply(404, "not_found", f"'{thing}' was not found.", "invalid_request_error")


def foreign_context() -> ErrorReply:
    """The input itself holds what only another organisation can read, and nobody of that can serve it."""
    return bad_request(
        "invalid_encrypted_content",
        "The input holds encrypted content that no credential of this broker can read. Leave it out, and send the "
        "context that it stands for.",
        "input",
    )


def not_offered() -> ErrorReply:
    """Nobody in the pool speaks what this endpoint needs."""
    return ErrorReply(
        501,
        "endpoint_not_offered",
        "No credential of this broker offers this endpoint.",
        "invalid_request_error",
        again=False,
    )


def all_exhausted(resets_at: float | None, now: float) -> ErrorReply:
    """No credential is left. `resets_at` only if a vendor named it; an invented time would be a lie."""
    extra: dict[str, Any] = {}
    if resets_at is not None:
        extra = {"resets_at": math.ceil(resets_at), "resets_in_seconds": max(0, math.ceil(resets_at - now))}
    return ErrorReply(
        429,
        "usage_limit_reached",
        "Every credential that could serve this request has reached its limit. Try again after the reset.",
        "usage_limit_reached",
        retry_after=None if resets_at is None else max(1.0, resets_at - now),
        extra=extra,
        again=resets_at is not None and resets_at - now <= SOON,
    )


def all_cooling(resets_at: float | None, now: float) -> ErrorReply:
    """Every credential is throttled for a moment; no quota is at its end."""
    return ErrorReply(
        429,
        "rate_limit_exceeded",
        "Every credential that could serve this request is being throttled. Try again in a moment.",
        "rate_limit_error",
        retry_after=1.0 if resets_at is None else max(1.0, resets_at - now),
    )


def no_credential(model: str) -> ErrorReply:
    """No credential of the pool may serve this model at all."""
    return bad_request("model_not_found", f"No credential of this broker serves the model '{model}'.", "model", 404)


def store_away() -> ErrorReply:
    """What only the store knows cannot be known now; nothing is guessed."""
    return ErrorReply(
        503,
        "session_store_unavailable",
        "The session's context cannot be read at the moment. Nothing was sent or lost; try again.",
        "server_error",
        retry_after=2.0,
    )


def overloaded(message: str) -> ErrorReply:
    """A limit of the broker itself."""
    return ErrorReply(429, "broker_limit_reached", message, "rate_limit_error", retry_after=1.0)


def interrupted() -> ErrorReply:
    """The turn broke off after output was shown; nothing of it was kept."""
    return ErrorReply(
        503,
        "upstream_interrupted",
        "The upstream broke off after output had begun. Nothing of this turn was kept: "
        "sending the same request again is safe and will be served with the full context.",
        "server_error",
        retry_after=1.0,
    )


def broken(error: Exception, what: str) -> ErrorReply:
    """A fault of the broker itself in `what` it was doing; the log says more."""
    message = f"The broker failed ({type(error).__name__}); nothing of this {what} was kept."
    return ErrorReply(500, "broker_error", message, "server_error")


def outcome_unknown() -> ErrorReply:
    """A turn of a vendor's own conversation was lost on the way: it may stand there already, and only that can tell."""
    return ErrorReply(
        502,
        "outcome_unknown",
        "The upstream was lost while this turn may have been running. It may already stand in the conversation: "
        "look there before sending it again.",
        "server_error",
        again=False,
    )


_UNSERVED: dict[FailureKind, tuple[int, str, str, str]] = {
    FailureKind.RATE_LIMITED: (429, "rate_limit_exceeded", "rate_limit_error", "The upstream limits the request rate."),
    FailureKind.OVERLOADED: (503, "server_is_overloaded", "service_unavailable_error", "The upstream is overloaded."),
    FailureKind.TRANSPORT_LOST: (503, "upstream_unavailable", "server_error", "The upstream could not be reached."),
    FailureKind.CONNECTION_EXPIRED: (503, "upstream_unavailable", "server_error", "The upstream closed its socket."),
    FailureKind.UNSUPPORTED: (503, "upstream_unavailable", "server_error", "No upstream offers what was asked."),
    FailureKind.AUTH_REJECTED: (503, "no_credential_available", "server_error", "No credential is accepted upstream."),
}


def unserved(failure: Failure) -> ErrorReply:
    """A turn of which nothing was shown, and which nobody else can serve: the true cause in our own words."""
    if failure.code == NOT_OFFERED:
        return not_offered()
    status, code, type, message = _UNSERVED.get(failure.kind, _UNSERVED[FailureKind.UNSUPPORTED])
    return ErrorReply(
        status,
        code,
        f"{message} Nothing of this turn was kept; try again.",
        type,
        retry_after=failure.retry_after or 1.0,
    )


def refused(failure: Failure) -> ErrorReply:
    """Two credentials refused one request alike, so the request is at fault; the vendor's words stay here."""
    status = failure.status if 400 <= failure.status < 500 else 403
    return ErrorReply(
        status,
        failure.code or "request_refused",
        "The upstream refuses this request with every credential that was tried.",
        failure.type or "invalid_request_error",
    )


def verbatim(failure: Failure, stream_id: str | None) -> bytes:
    """The vendor's own event about the request; given a numeric status where the vendor left it out.

    Where it brought none, or one that cannot be cut (it may be nested too deeply), the same in our own words.
    """
    if failure.raw is not None:
        with suppress(Garbage):
            return _as_told(failure.raw, failure.status, stream_id)
    status = failure.status if 400 <= failure.status < 500 else 400
    reply = bad_request(failure.code or "invalid_request", "The upstream refused the request.", status=status)
    return reply.event(stream_id)


def _as_told(raw: bytes, status: int, stream_id: str | None) -> bytes:
    raw = without_account(raw)
    if event_type(raw) == "error":
        raw = with_status(raw, status)
    # a vendor may leave the lane out where it could not attribute its error; here it could be
    return raw if stream_id is None else with_lane(raw, stream_id)
