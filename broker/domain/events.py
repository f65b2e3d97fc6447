"""Events: what has happened to a turn. Past tense; fed into the machine of `turn`, one at a time."""

from __future__ import annotations

from dataclasses import dataclass

from broker.domain.continuation import Parent
from broker.domain.credential import Credential
from broker.domain.failure import Failure
from broker.domain.session import Pin, Session


@dataclass(frozen=True, slots=True)
class Began:
    """The turn's lane is free."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The upstream itself began this turn: the successor of a response that the client has steered."""

    credential: Credential
    parent: Parent
    raw: bytes


@dataclass(frozen=True, slots=True)
class Resolved:
    """What is known of the response that the turn continues, and the session it belongs to."""

    parent: Parent
    session: Session


@dataclass(frozen=True, slots=True)
class ParentGone:
    """The client itself gave up the response it names: by a clean close, or by a turn that failed."""


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The store did not answer, and only it knows."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Selection took a credential; `nonce` is 128 bits of chance for a pin that may be needed."""

    credential: Credential
    nonce: str


@dataclass(frozen=True, slots=True)
class NonePlaced:
    """Selection found nobody. `reasons` say why each was passed over; `resets_at` is a time a vendor named.

    Both times are the store's clock, in seconds.
    """

    reasons: frozenset[str]
    resets_at: float | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class PinMoved:
    """The store holds the new pin."""

    pin: Pin


@dataclass(frozen=True, slots=True)
class PinStale:
    """Somebody else moved the pin first; this is the winner's."""

    pin: Pin
    incremental_disabled: bool


@dataclass(frozen=True, slots=True)
class PinUnwritten:
    """The store is away; the turn goes on, the pin is settled by its commit."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket of the placed credential is there; `holds_parent` if the parent was minted on it."""

    holds_parent: bool


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The conversation as one frame."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class ChainLost:
    """The transcript does not reach down to the beginning."""


@dataclass(frozen=True, slots=True)
class ChainBound:
    """Something in the conversation cannot leave its boundary; which one, if that is known."""

    boundary: str | None = None


@dataclass(frozen=True, slots=True)
class Announced:
    """An event that shows no output yet."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class OutputBegan:
    """The first event that shows output."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class HoldElapsed:
    """Announcements were held back as long as they may be."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The terminal event of a response that ended well."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """Something went wrong on the way."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Committed:
    """The turn is in the transcript, or in the journal on its way there; `pin` as the store has it, if it said so."""

    pin: Pin | None
    incremental_disabled: bool


@dataclass(frozen=True, slots=True)
class ClientLeft:
    """The client's socket is gone."""


Event = (
    Began
    | Succeeded
    | Resolved
    | ParentGone
    | StoreLost
    | Placed
    | NonePlaced
    | PinMoved
    | PinStale
    | PinUnwritten
    | Opened
    | Rebuilt
    | ChainLost
    | ChainBound
    | Announced
    | OutputBegan
    | HoldElapsed
    | Completed
    | Failed
    | Committed
    | ClientLeft
)
