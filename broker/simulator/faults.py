"""Faults: what can go wrong with a credential, when, how often, and the table of the usual ones."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from broker.simulator.refusal import Refusal

EVERY_CREDENTIAL = "*"
POINTS = frozenset({"handshake", "before_created", "after_created", "after_deltas", "idle"})
DEEDS = frozenset(
    {"refuse", "error", "failed", "double", "silence", "reset", "close", "garbage", "drop_continuation"},
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `at` is the point, `do` the deed, the rest says with which words and how often.

    `times` counts down, None lasts until cleared. `when` must occur in the raw create, so that one request can be
    poisonous on every credential. `after` is the number of deltas for `after_deltas`. `body` replaces the whole
    frame or HTTP body. `until` (epoch seconds) ends the fault by itself, so that a quota is used up until a time and
    free after it. `variant` of garbage: text (default), binary, or half (half a frame, then a reset).
    """

    at: str = "before_created"
    do: str = "error"
    status: int | None = 500
    code: str | None = "server_error"
    error_type: str = "server_error"
    message: str = "The server had an error while processing your request."
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    resets_at: float | None = None  # epoch seconds
    resets_in: float | None = None  # seconds
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the error object
    omit_status: bool = False
    body: str | dict[str, Any] | None = None
    times: int | None = None
    until: float | None = None
    after: int = 0
    probability: float = 1.0
    when: str | None = None
    model: str | None = None
    variant: str = "text"
    close_code: int = 1011

    def __post_init__(self) -> None:
        if self.at not in POINTS or self.do not in DEEDS:
            raise ValueError(f"no such fault: at={self.at!r} do={self.do!r}")
        if isinstance(self.until, bool) or not isinstance(self.until, int | float | None):
            raise ValueError(f"no such time: until={self.until!r}")

    def but(self, **changes: Any) -> "Fault":
        """The same fault with some fields changed; of two ways to tell a reset, the one that is given alone holds."""
        if {"resets_at", "resets_in"} & changes.keys():
            changes = {"resets_at": None, "resets_in": None} | changes
        return replace(self, **changes)

    def refusal(self) -> Refusal:
        """The error of this fault; the WebSocket frame lacks the status if the fault says so."""
        resets = {"resets_at": self.resets_at, "resets_in_seconds": self.resets_in}
        return Refusal(
            None if self.omit_status else self.status,
            self.code,
            self.message,
            error_type=self.error_type,
            param=self.param,
            extra={name: value for name, value in resets.items() if value is not None} | self.extra,
            headers=self.headers,
            body=self.body,
        )

    def response_error(self) -> dict[str, Any]:
        """The error inside a `response.failed`, which knows neither type nor status."""
        return {"code": self.code or self.error_type, "message": self.message}


@dataclass(slots=True)
class Armed:
    """A fault that waits for its moment; `fired` counts how often that came."""

    credential: str
    fault: Fault
    left: int | None
    fired: int = 0

    def meets(self, point: str, raw: bytes, model: str | None, deltas: int) -> bool:
        fault = self.fault
        return (
            fault.at == point
            and self.left != 0
            and (fault.until is None or time.time() < fault.until)
            and (fault.when is None or fault.when.encode() in raw)
            and (fault.model is None or fault.model == model)
            and (point != "after_deltas" or deltas >= fault.after)
        )


class FaultBoard:
    """The armed faults of every credential; the name "*" means all of them."""

    def __init__(self, seed: int = 0) -> None:
        self._armed: dict[str, list[Armed]] = {}
        self._random = random.Random(seed)
        self._listeners: list[Callable[[], None]] = []

    def set(self, credential: str, fault: Fault | str, **changes: Any) -> Armed:
        """Arm a fault (or a preset by name) in place of all earlier ones of this credential."""
        self._armed.pop(credential, None)
        return self.add(credential, fault, **changes)

    def add(self, credential: str, fault: Fault | str, **changes: Any) -> Armed:
        """Arm a fault beside the earlier ones; the oldest that fits acts first."""
        chosen = presets[fault] if isinstance(fault, str) else fault
        chosen = chosen.but(**changes) if changes else chosen
        armed = Armed(credential, chosen, chosen.times)
        self._armed.setdefault(credential, []).append(armed)
        for listener in self._listeners:
            listener()
        return armed

    def clear(self, credential: str | None = None) -> None:
        """Disarm one credential (or "*" itself), or everything."""
        if credential is None:
            self._armed.clear()
        else:
            self._armed.pop(credential, None)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call the listener after every newly armed fault."""
        self._listeners.append(listener)

    @property
    def armed(self) -> list[Armed]:
        return [armed for faults in self._armed.values() for armed in faults]

    def __bool__(self) -> bool:
        return bool(self._armed)

    def take(
        self, credential: str, point: str, *, raw: bytes = b"", model: str | None = None, deltas: int = 0
    ) -> Fault | None:
        """The fault that acts on this credential at this point now; counts it down."""
        if not self._armed:
            return None
        candidates = self._armed.get(credential, []) + self._armed.get(EVERY_CREDENTIAL, [])
        for armed in candidates:
            if armed.meets(point, raw, model, deltas) and self._chance(armed.fault.probability):
                armed.fired += 1
                armed.left = None if armed.left is None else armed.left - 1
                return armed.fault
        return None

    def _chance(self, probability: float) -> bool:
        return probability >= 1.0 or self._random.random() < probability


_HTML = "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Enable JavaScript</body></html>"


def _request(status: int, code: str | None, message: str, **more: Any) -> Fault:
    return Fault(status=status, code=code, error_type="invalid_request_error", message=message, **more)


def _quota(error_type: str, code: str | None, message: str, **more: Any) -> Fault:
    return Fault(status=429, code=code, error_type=error_type, message=message, **more)


presets: dict[str, Fault] = {
    "usage_limit_reached": _quota(
        "usage_limit_reached", None, "The usage limit has been reached", resets_in=3600, extra={"plan_type": "pro"}
    ),
    "insufficient_quota": _quota(
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "credit_balance_exhausted": _quota(
        "insufficient_quota", "credit_balance_exhausted", "Your credit balance is exhausted."
    ),
    "rate_limit_exceeded": _quota(
        "tokens",
        "rate_limit_exceeded",
        "Rate limit reached for sim-1 on tokens per min (TPM). Please try again in 1.2s.",
        headers={"retry-after": "2", "retry-after-ms": "1200"},
    ),
    "slow_down": _quota("rate_limit_error", "slow_down", "Too many requests in a short time. Slow down."),
    "invalid_api_key": _request(401, "invalid_api_key", "Incorrect API key provided."),
    "token_invalidated": _request(401, "token_invalidated", "Your authentication token has been invalidated."),
    "token_revoked": _request(401, "token_revoked", "Encountered invalidated oauth token for user."),
    "account_deactivated": _request(401, "account_deactivated", "Your account has been deactivated."),
    "unauthorized_generic": _request(401, None, "Unauthorized"),
    "forbidden_generic": _request(403, None, "You do not have permission to access this resource."),
    "org_disabled_400": _request(400, None, "This organization has been disabled."),
    "server_is_overloaded": Fault(
        status=503,
        code="server_is_overloaded",
        error_type="service_unavailable_error",
        message="Our servers are currently overloaded. Please try again later.",
        headers={"x-retry-metadata": "NO_MORE_RETRY"},
    ),
    "capacity_400": _request(
        400, "invalid_request_error", "Selected model is at capacity. Please try a different model."
    ),
    "server_error": Fault(),
    "service_unavailable": Fault(
        status=503, code=None, error_type="service_unavailable_error", message="Service unavailable."
    ),
    "cloudflare_html": Fault(
        status=403, do="refuse", at="handshake", message="Forbidden", headers={"cf-ray": "0-SIM"}, body=_HTML
    ),
    "model_not_found": _request(
        404, "model_not_found", "The model `sim-1` does not exist or you do not have access to it.", param="model"
    ),
    "generic_404": _request(404, None, "Not Found"),
    "context_length_exceeded": _request(
        400, "context_length_exceeded", "Your input exceeds the context window of this model.", param="input"
    ),
    "content_policy": _request(400, "invalid_prompt", "Invalid prompt: your prompt was flagged by our usage policy."),
    "previous_response_not_found": _request(
        400,
        "previous_response_not_found",
        "Previous response with id 'resp_0' not found.",
        param="previous_response_id",
    ),
    "websocket_connection_limit_reached": _request(
        400, "websocket_connection_limit_reached", "Responses websocket connection limit reached."
    ),
}
