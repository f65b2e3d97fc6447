"""Events: what has happened to a turn. Past tense; fed into the machine of `turn`, one at a time."""

from __future__ import annotations

import msgspec

from broker.domain.continuation import Parent
from broker.domain.credential import Credential
from broker.domain.failure import Failure
from broker.domain.session import Pin, Session


class Began(msgspec.Struct, frozen=True):
    """The turn's lane is free."""


class Succeeded(msgspec.Struct, frozen=True):
    """The upstream itself began this turn: the successor of a response that the client has steered."""

    credential: Credential
    parent: Parent
    raw: bytes


class Resolved(msgspec.Struct, frozen=True):
    """What is known of the response that the turn continues, and the session it belongs to.

    `boundary` is where something lives that the turn names, `only` the one credential that can reach it.
    """

    parent: Parent | None
    session: Session
    boundary: str | None = None
    only: str | None = None


class ParentGone(msgspec.Struct, frozen=True):
    """The client itself gave up the response it names: by a clean close, or by a turn that failed."""


class OwnerUnknown(msgspec.Struct, frozen=True):
    """The turn names something of a vendor's that nobody here knows, and that may be another tenant's."""

    thing: str


class StoreLost(msgspec.Struct, frozen=True):
    """The store did not answer, and only it knows."""


class Placed(msgspec.Struct, frozen=True):
    """Selection took a credential; `nonce` is 128 bits of chance for a new pin, empty where it is the pin's own.

    `trial` is the token of the licence where this turn is the one that tries a credential whose block has run out.
    """

    credential: Credential
    nonce: str
    trial: str = ""


class NonePlaced(msgspec.Struct, frozen=True):
    """Selection found nobody. `reasons` say why each was passed over; `resets_at` is a time a vendor named.

    Both times are the store's clock, in seconds.
    """

    reasons: frozenset[str]
    resets_at: float | None = None
    at: float = 0.0


class PinMoved(msgspec.Struct, frozen=True):
    """The store holds the new pin."""

    pin: Pin


class PinStale(msgspec.Struct, frozen=True):
    """Somebody else moved the pin first; this is the winner's."""

    pin: Pin
    incremental_disabled: bool


class PinUnwritten(msgspec.Struct, frozen=True):
    """The store is away; the turn goes on, the pin is settled by its commit."""


class Opened(msgspec.Struct, frozen=True):
    """A socket of the placed credential is there; `holds_parent` if the parent was minted on it."""

    holds_parent: bool


class Rebuilt(msgspec.Struct, frozen=True):
    """The conversation as one frame."""

    frame: bytes


class ChainLost(msgspec.Struct, frozen=True):
    """The transcript does not reach down to the beginning."""


class ChainBound(msgspec.Struct, frozen=True):
    """Something in the conversation cannot leave its boundary; which one, if that is known."""

    boundary: str | None = None


class Announced(msgspec.Struct, frozen=True):
    """An event that shows no output yet."""

    raw: bytes


class OutputBegan(msgspec.Struct, frozen=True):
    """The first event that shows output."""

    raw: bytes


class HoldElapsed(msgspec.Struct, frozen=True):
    """Announcements were held back as long as they may be."""


class Completed(msgspec.Struct, frozen=True):
    """The terminal event of a response that ended well."""

    raw: bytes


class Failed(msgspec.Struct, frozen=True):
    """Something went wrong on the way."""

    failure: Failure


class Committed(msgspec.Struct, frozen=True):
    """The turn is in the transcript, or in the journal on its way there; `pin` as the store has it, if it said so."""

    pin: Pin | None
    incremental_disabled: bool


class ClientLeft(msgspec.Struct, frozen=True):
    """The client's socket is gone."""


Event = (
    Began
    | Succeeded
    | Resolved
    | ParentGone
    | OwnerUnknown
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
