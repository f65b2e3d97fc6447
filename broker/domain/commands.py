"""Commands: what a turn wants done. Imperative; performed in order by a driver that has no opinions.

Every command that asks for something is answered by one event; its docstring says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from broker.domain.continuation import Mode, Parent
from broker.domain.credential import Credential
from broker.domain.errors import ErrorReply
from broker.domain.failure import Failure, Phase
from broker.domain.selection import Wish
from broker.domain.session import Pin


class Outcome(Enum):
    """How a turn ended."""

    COMPLETED = "completed"
    REQUEST_FAULT = "request_fault"
    NOT_FOUND = "previous_response_not_found"
    EXHAUSTED = "exhausted"
    UNSERVED = "unserved"
    INTERRUPTED = "interrupted"
    STORE_AWAY = "store_away"
    CLIENT_LEFT = "client_left"


@dataclass(frozen=True, slots=True)
class Resolve:
    """Find out about a response. Answer: Resolved, ParentGone or StoreLost."""

    response_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Select a credential. Answer: Placed or NonePlaced."""

    wish: Wish


@dataclass(frozen=True, slots=True)
class MovePin:
    """Compare-and-set the session's pin. Answer: PinMoved, PinStale or PinUnwritten."""

    expected: Pin
    to: Pin


@dataclass(frozen=True, slots=True)
class Open:
    """See to a socket of this credential. Answer: Opened or Failed."""

    credential: Credential


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Make one frame of the whole conversation for this credential, dropping all reasoning if `strip`.

    Answer: Rebuilt, ChainLost, ChainBound or StoreLost."""

    credential: Credential
    parent: Parent | None
    strip: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Send a frame up; `cause` says why a replay is one. Answer: what comes back, or Failed."""

    frame: bytes
    mode: Mode
    cause: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Feed HoldElapsed when announcements have been held back long enough."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Hand these events to the client, in this order."""

    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Write the turn into the transcript. Answer: Committed."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Blame:
    """Report a failure to health; `confirmed` if nothing speaks for the request being at fault.

    `again`: the same failure was reported before, without being confirmed.
    """

    credential: Credential
    failure: Failure
    confirmed: bool
    again: bool = False


@dataclass(frozen=True, slots=True)
class Absolve:
    """The credential has served: whatever was held against it before is disproved."""

    credential: Credential


@dataclass(frozen=True, slots=True)
class Abandon:
    """The attempt is over: forget its output, and that its socket holds the parent."""


@dataclass(frozen=True, slots=True)
class FailOver:
    """Count a move to another credential, its cause and how far the turn had come."""

    failure: Failure
    phase: Phase


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the client that the turn is over: by an error of ours, after what was held, or the vendor's own words."""

    reply: ErrorReply | None
    verbatim: bytes | None = None
    held: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
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
    | Absolve
    | Abandon
    | FailOver
    | Tell
    | End
)
