"""Commands: what a turn wants done. Imperative; performed in order by a driver that has no opinions.

Every command that asks for something is answered by one event; its docstring says which.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from broker.domain.continuation import Mode, Parent
from broker.domain.credential import Credential
from broker.domain.errors import ErrorReply
from broker.domain.failure import Failure, Phase
from broker.domain.selection import Wish
from broker.domain.session import Pin


class Outcome(StrEnum):
    """How a turn ended."""

    COMPLETED = "completed"
    REQUEST_FAULT = "request_fault"
    NOT_FOUND = "previous_response_not_found"
    EXHAUSTED = "exhausted"
    UNSERVED = "unserved"
    INTERRUPTED = "interrupted"
    STORE_AWAY = "store_away"
    CLIENT_LEFT = "client_left"


class Resolve(msgspec.Struct, frozen=True):
    """Find out about the response a turn continues, and who owns what it names. Answer: Resolved, ParentGone,
    OwnerUnknown or StoreLost."""

    response_id: str | None
    needs: tuple[str, ...] = ()


class Place(msgspec.Struct, frozen=True):
    """Select a credential. Answer: Placed or NonePlaced."""

    wish: Wish


class MovePin(msgspec.Struct, frozen=True):
    """Compare-and-set the session's pin. Answer: PinMoved, PinStale or PinUnwritten."""

    expected: Pin
    to: Pin


class Open(msgspec.Struct, frozen=True):
    """See to a socket of this credential. Answer: Opened or Failed."""

    credential: Credential


class Rebuild(msgspec.Struct, frozen=True):
    """Make one frame of the whole conversation for this credential, dropping all reasoning if `strip`.

    Answer: Rebuilt, ChainLost, ChainBound or StoreLost."""

    credential: Credential
    parent: Parent | None
    strip: bool


class Send(msgspec.Struct, frozen=True):
    """Send a frame up; `cause` says why a replay is one. Answer: what comes back, or Failed.

    `again`: this turn was sent before and may have run, so that it may be billed twice.
    """

    frame: bytes
    mode: Mode
    cause: str
    again: bool = False


class Hold(msgspec.Struct, frozen=True):
    """Feed HoldElapsed when announcements have been held back long enough."""


class Relay(msgspec.Struct, frozen=True):
    """Hand these events to the client, in this order."""

    frames: tuple[bytes, ...]


class Commit(msgspec.Struct, frozen=True):
    """Write the turn into the transcript. Answer: Committed."""

    raw: bytes


class Blame(msgspec.Struct, frozen=True):
    """Report a failure to health; `confirmed` if nothing speaks for the request being at fault.

    `again`: the same failure was reported before, without being confirmed. `void`: it is counted, and held against
    nobody, for the request itself may have caused it.
    """

    credential: Credential
    failure: Failure
    confirmed: bool
    again: bool = False
    void: bool = False


class Retract(msgspec.Struct, frozen=True):
    """This turn's doubt about a credential was the request's own doing."""

    credential: Credential


class Absolve(msgspec.Struct, frozen=True):
    """The credential serves: whatever was held against it when it was chosen is disproved."""

    credential: Credential


class Abandon(msgspec.Struct, frozen=True):
    """The attempt is over: forget its output, and that its socket holds the parent."""


class FailOver(msgspec.Struct, frozen=True):
    """Count a move to another credential, its cause and how far the turn had come."""

    failure: Failure
    phase: Phase


class Tell(msgspec.Struct, frozen=True):
    """Tell the client that the turn is over: by an error of ours, after what was held, or the vendor's own words."""

    reply: ErrorReply | None
    verbatim: bytes | None = None
    held: tuple[bytes, ...] = ()


class End(msgspec.Struct, frozen=True):
    """The turn is over."""

    outcome: Outcome


Command = (
    Resolve
    | Place
    | MovePin
    | Open
    | Rebuild
    | Send
    | Hold
    | Relay
    | Commit
    | Blame
    | Retract
    | Absolve
    | Abandon
    | FailOver
    | Tell
    | End
)
