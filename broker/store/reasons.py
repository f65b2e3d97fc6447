"""Why the store could not be asked: one short word for whatever went wrong, safe for logs and labels."""

from __future__ import annotations

import asyncio

from redis import exceptions as errors


class StoreUnavailable(Exception):
    """The store cannot be asked, or does not answer. Whether a write was done is unknown.

    `reason` is a short token, safe for logs and labels; it never holds a key, a value or an address.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


REFUSED = "refused"
"""The reason where a server understood a command and would not do it; the next time it will be the same."""

DEMOTED = frozenset({"readonly", "masterdown", "moved"})
"""Answers of a server that is no longer the one to talk to: its sockets are given up, not reused."""

_CODES = {
    "NOSCRIPT": "noscript",
    "READONLY": "readonly",
    "LOADING": "loading",
    "OOM": "oom",
    "MASTERDOWN": "masterdown",
    "CLUSTERDOWN": "clusterdown",
    "TRYAGAIN": "tryagain",
    "MOVED": "moved",
    "ASK": "moved",
    "NOPERM": "noperm",
    "NOAUTH": "auth",
    "WRONGPASS": "auth",
    "MISCONF": "misconf",
    "NOREPLICAS": "noreplicas",
    "BUSY": "busy",
}


class Refusal(Exception):
    """An error that the server answered; `reason` is its word, and nothing else of it is kept."""

    def __init__(self, text: str) -> None:
        self.reason = _word(text)
        super().__init__(self.reason)


def _word(text: str) -> str:
    if text.startswith("ERR max number of clients"):
        return "connection"
    return _CODES.get(text.split(" ", 1)[0], REFUSED)


# the first row that fits wins: Authentication is a ConnectionError; the rest is what the library makes of an answer
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (errors.NoScriptError, "noscript"),
    (errors.ReadOnlyError, "readonly"),
    (errors.BusyLoadingError, "loading"),
    (errors.OutOfMemoryError, "oom"),
    (errors.MasterDownError, "masterdown"),
    (errors.ClusterDownError, "clusterdown"),
    (errors.TryAgainError, "tryagain"),
    (errors.AskError, "moved"),
    (errors.NoPermissionError, "noperm"),
    (errors.AuthenticationError, "auth"),
    (errors.TimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (errors.InvalidResponse, "protocol"),
    (errors.ConnectionError, "connection"),
    (OSError, "connection"),
)

FOREIGN = (errors.RedisError, OSError, asyncio.TimeoutError, AttributeError, TypeError)
"""What escapes the client library; the last two when a connection goes away at a bad moment."""


def reason_of(error: BaseException) -> str:
    """The word for whatever the client library raised."""
    if isinstance(error, Refusal | StoreUnavailable):
        return error.reason
    for kind, token in _KINDS:
        if isinstance(error, kind):
            return token
    return _word(str(error)) if isinstance(error, errors.ResponseError) else "client"
