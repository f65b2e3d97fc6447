"""Headers: one table of what crosses the broker, in which direction, and what does not.

A header that no row names does not cross: it may say who the client is, or tell clients about one member of the pool.
The token by which a vendor routes the requests of one turn (`x-codex-turn-state`) belongs to one credential and crosses
in no form, as a header or within a frame (protocol.md 7.3, 9.1.6).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache

import msgspec

from broker.domain import wire


class Policy(StrEnum):
    """What happens to a header."""

    PASS = "pass"
    STRIP = "strip"


_PASS, _STRIP = Policy.PASS, Policy.STRIP


class Row(msgspec.Struct, frozen=True):
    """What happens to a header on a client's way up, with a WebSocket's handshake and with a request over HTTP, and on
    the way down with the answer to a request."""

    handshake: Policy
    request: Policy
    answer: Policy


UP = Row(_PASS, _PASS, _STRIP)
UP_BY_HTTP = Row(_STRIP, _PASS, _STRIP)
DOWN = Row(_STRIP, _STRIP, _PASS)
NEVER = Row(_STRIP, _STRIP, _STRIP)

TABLE: Mapping[str, Row] = {
    # what the client speaks, and about what: protocols, its conversation, its turn (protocol.md 1.1, 1.4)
    "openai-beta": UP,
    "originator": UP,
    "version": UP,
    "session-id": UP,
    "session_id": UP,
    "thread-id": UP,
    "conversation_id": UP,
    "x-client-request-id": UP,
    "x-openai-subagent": UP,
    "x-responsesapi-include-timing-metrics": UP,
    "x-grok-conv-id": UP,
    "traceparent": UP,
    "tracestate": UP,
    # one socket carries many requests, so there it would name none
    "idempotency-key": UP_BY_HTTP,
    # Codex adds headers about its window and its turn with nearly every release: those nobody has heard of go up
    "x-codex-*": UP,
    # but not those that name an installation, or the credential that served before
    "x-codex-installation-id": NEVER,
    "x-codex-turn-state": NEVER,
    # who the client is, and who pays (protocol.md 7.3); the credential says so anew
    "authorization": NEVER,
    "proxy-authorization": NEVER,
    "api-key": NEVER,
    "x-api-key": NEVER,
    "cookie": NEVER,
    "openai-organization": NEVER,
    "openai-project": NEVER,
    "chatgpt-account-id": NEVER,
    "x-openai-*": NEVER,
    "x-oai-*": NEVER,
    # between the client and the broker alone: its session, its program, its network, its connection
    "x-session-id": NEVER,
    "x-session-affinity": NEVER,
    "user-agent": NEVER,
    "x-stainless-*": NEVER,
    "forwarded": NEVER,
    "x-forwarded-*": NEVER,
    "x-real-ip": NEVER,
    "true-client-ip": NEVER,
    "via": NEVER,
    "cf-*": NEVER,
    "host": NEVER,
    "connection": NEVER,
    "keep-alive": NEVER,
    "proxy-*": NEVER,
    "te": NEVER,
    "trailer": NEVER,
    "transfer-encoding": NEVER,
    "upgrade": NEVER,
    "sec-websocket-*": NEVER,
    "accept": NEVER,
    "accept-encoding": NEVER,
    "content-*": NEVER,
    # what a vendor says about one answer (protocol.md 7.5)
    "x-request-id": DOWN,
    "openai-processing-ms": DOWN,
    "openai-version": DOWN,
    "openai-model": DOWN,
    "x-reasoning-included": DOWN,
    # what it says about one member of the pool, or about itself
    "set-cookie": NEVER,
    "x-ratelimit-*": NEVER,
    "retry-after": NEVER,
    "retry-after-ms": NEVER,
    "x-should-retry": NEVER,
    "x-models-etag": NEVER,
    "server": NEVER,
    "date": NEVER,
}
"""A name with `*` is the beginning of names; the row of a whole name comes before it."""

MAX_VALUE = 8 * 1024
"""Bytes of a value from which a header does not cross."""

_BEGINNINGS = tuple(name[:-1] for name in TABLE if name.endswith("*"))
_NAME = re.compile(r"[a-z0-9_.\-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@lru_cache(maxsize=1024)
def row_of(name: str) -> Row:
    """What happens to a header of this name."""
    name = name.lower()
    if (exact := TABLE.get(name)) is not None:
        return exact
    beginning = next((known for known in _BEGINNINGS if name.startswith(known)), None)
    return NEVER if beginning is None else TABLE[beginning + "*"]


def up(headers: Mapping[str, str], *, websocket: bool) -> dict[str, str]:
    """What of a client's headers goes up with a handshake (`websocket`) or a request, under names in lower case."""
    return _crossing(headers, (lambda row: row.handshake) if websocket else (lambda row: row.request))


def down(headers: Mapping[str, str]) -> dict[str, str]:
    """What of the head of a vendor's answer a client may see, under names in lower case.

    The type and the length of the body are left to whoever writes it, and when to come again to whoever speaks for the
    whole pool.
    """
    return _crossing(headers, lambda row: row.answer)


def _crossing(headers: Mapping[str, str], policy: Callable[[Row], Policy]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        if policy(row_of(name)) is Policy.PASS:
            # several fields of one name are one list (RFC 9110, 5.2)
            found[name] = f"{found[name]}, {value}" if name in found else value
    hop_by_hop = _named_by_connection(headers)
    return {name: value for name, value in found.items() if name not in hop_by_hop and _sound(name, value)}


def _named_by_connection(headers: Mapping[str, str]) -> set[str]:
    """Whatever `Connection` names ends at the next hop, too (RFC 9110, 7.6.1)."""
    told = (value for name, value in headers.items() if name.lower() == "connection")
    return {part.strip().lower() for value in told for part in value.split(",")}


def _sound(name: str, value: str) -> bool:
    """Whether this can be written as one line that ends where it should, and nobody would refuse for its length."""
    if _NAME.fullmatch(name) is None or _CONTROL.search(value) is not None:
        return False
    try:
        return len(value.encode()) <= MAX_VALUE
    except UnicodeEncodeError:
        return False  # bytes that are no UTF-8, as a server keeps them: they cannot be written again


# --- within frames ---------------------------------------------------------------------------------------------------

TURN_STATE = "x-codex-turn-state"

_SPELLINGS = (b"x-codex-turn-state", b"X-Codex-Turn-State")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


_REFUSALS = frozenset({"retry-after", "retry-after-ms", "x-should-retry"})


def without_turn_state(raw: bytes) -> bytes:
    """A create, or the body of a request, without the routing token in its `client_metadata`.

    All other values stay the bytes they are, and a frame without it comes back as the very object; the bytes are
    searched first, so that it costs no parse. Raises `BadFrame`.
    """
    if not _holds(raw):
        return raw
    try:
        return _pruned(raw, ("client_metadata",), _is_no_token)
    except _UNREADABLE:
        raise wire.BadFrame("invalid_json", "The frame could not be parsed as a JSON object.") from None


def without_account(raw: bytes) -> bytes:
    """A vendor's event whose maps of headers hold nothing but what may cross, and what says when to come again.

    By the same rules; what has headers, or holds the token, and cannot be read is not passed on. Raises `Garbage`.
    """
    if b'"headers"' not in raw and not _holds(raw):
        return raw
    try:
        for path in (("headers",), ("error", "headers"), ("response", "headers")):
            raw = _pruned(raw, path, _may_be_told)
    except _UNREADABLE:
        raise wire.Garbage("not a JSON object") from None
    return raw


def _holds(raw: bytes) -> bool:
    return any(spelling in raw for spelling in _SPELLINGS)


def _is_no_token(name: str) -> bool:
    return name.lower() != TURN_STATE


def _may_be_told(name: str) -> bool:
    return name.lower() in _REFUSALS or row_of(name).answer is Policy.PASS


def _pruned(raw: bytes, path: Sequence[str], keep: Callable[[str], bool]) -> bytes:
    """An object with only those names that are to `keep` in the object at `path` within it; the very bytes if that
    changes nothing."""
    held = wire.fields(raw)
    if not path:
        kept = {name: value for name, value in held.items() if keep(name)}
        return raw if len(kept) == len(held) else wire.join(kept)
    inner = bytes(held.get(path[0], b""))
    if inner[:1] != b"{":
        return raw
    rest = _pruned(inner, path[1:], keep)
    return raw if rest is inner else wire.join({**held, path[0]: rest})
