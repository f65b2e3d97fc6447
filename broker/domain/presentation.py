"""Presentation: which client is shown what. One table, by the kind of client, as far as its headers tell it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec


class ClientKind(StrEnum):
    """Who speaks, as far as it makes a difference."""

    CODEX = "codex"
    OPENCODE = "opencode"
    SDK = "sdk"
    PLAIN = "plain"


class Presentation(msgspec.Struct, frozen=True):
    """What a kind of client is shown.

    `vendor_events`: also events that are none of the Responses API. `metadata`: also `response.metadata`.
    `keep_alive`: the frame that keeps its patience on a WebSocket while a turn is silent; None if pings do. A stream
    over HTTP is kept open by a comment, which every client leaves out. `resends`: over HTTP it sends its whole context
    with every request and continues none, so a transcript would hold everything many times, for nothing.
    """

    vendor_events: bool = False
    metadata: bool = False
    keep_alive: bytes | None = None
    resends: bool = False

    def shows(self, event_type: str) -> bool:
        """Whether this client may see events of a type."""
        if event_type in METADATA:
            return self.metadata
        if event_type.startswith("response.") or event_type == "error":
            return True
        return self.vendor_events and event_type not in HIDDEN


METADATA = frozenset({"response.metadata", "codex.response.metadata"})
"""No events of the specification, whatever the first is called (protocol.md 3.6): a strict client refuses them."""

HIDDEN = frozenset({"codex.rate_limits"})
"""What nobody is shown: how much one member of the pool is used says nothing about the pool (protocol.md 7.5)."""

PRESENTATION: Mapping[ClientKind, Presentation] = {
    # it waits for messages, not for pings, and leaves out what it does not know (protocol.md 9.1.12)
    ClientKind.CODEX: Presentation(
        vendor_events=True, metadata=True, keep_alive=b'{"type":"codex.keepalive"}', resends=True
    ),
    ClientKind.OPENCODE: Presentation(resends=True),
    ClientKind.SDK: Presentation(),
    # a suite that checks every event fails at one it has never heard of (protocol.md 10.5)
    ClientKind.PLAIN: Presentation(),
}

_BY_NAME: tuple[tuple[ClientKind, re.Pattern[str]], ...] = (
    (ClientKind.CODEX, re.compile(r"codex(?![a-z])", re.IGNORECASE)),
    (ClientKind.OPENCODE, re.compile(r"opencode(?![a-z])", re.IGNORECASE)),
    (ClientKind.SDK, re.compile(r"(Async)?(OpenAI|AzureOpenAI)/|Agents/", re.IGNORECASE)),
)
"""How the name of a client begins, in `originator` or `User-Agent`."""

_BY_HEADERS = ((ClientKind.CODEX, "x-codex-"), (ClientKind.SDK, "x-stainless-"))
"""What only one kind of client sends: names can be chosen anew by whoever embeds it."""


def kind_of(headers: Mapping[str, str]) -> ClientKind:
    """Which kind of client sends these headers. Its own word goes first (`originator`), then its program's, for SDKs
    are what other clients are made of."""
    told = {name.lower(): value for name, value in headers.items()}
    for name in (told.get("originator", ""), told.get("user-agent", "")):
        for kind, begins in _BY_NAME:
            if begins.match(name.strip()):
                return kind
    marked = (kind for kind, begins in _BY_HEADERS if any(name.startswith(begins) for name in told))
    return next(marked, ClientKind.PLAIN)
