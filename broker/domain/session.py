"""A session: a client's conversation, which outlives sockets, nodes and credentials."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec


class Pin(msgspec.Struct, frozen=True):
    """The credential a session is bound to.

    `(epoch, nonce)` is compared for equality at every change: in a partition two sides can hand out the same epoch,
    but never the same 128-bit nonce. Epoch 0 is a wish of this node that no store has seen yet.
    """

    credential: str
    epoch: int
    nonce: str
    because: str

    def same(self, other: Pin | None) -> bool:
        """Whether both are one and the same pin, not merely the same credential."""
        return other is not None and (self.epoch, self.nonce) == (other.epoch, other.nonce)


@dataclass(slots=True, weakref_slot=True)
class Session:
    """This node's copy of a session; its hash in Redis is the truth.

    `sid` is derived, see `derive_sid`; `name` is what the client calls it. `boundaries` are those whose credentials
    have served a turn of it: where there is more than one, reasoning ciphertext may be foreign. `avoided` broke off its
    last turn after output was shown; until a turn ends well, anybody else is better. `reuses_ids`: a vendor has given
    two of its responses one id, so what is stored there under an id is not what the session means by it.
    """

    sid: str
    name: str
    tenant: str
    pin: Pin | None = None
    incremental_disabled: bool = False
    boundaries: frozenset[str] = frozenset()
    turns: int = 0
    closed: bool = False
    avoided: str | None = None
    reuses_ids: bool = False

    def aside(self) -> Session:
        """A session like it, of which nothing is written, so that what is done with it changes nothing."""
        pin = msgspec.structs.replace(self.pin, epoch=0) if self.pin is not None else None
        return replace(self, pin=pin)

    def served_within(self, *boundaries: str) -> None:
        """Credentials of these boundaries have served a turn of it."""
        if not self.boundaries.issuperset(boundaries):
            self.boundaries = _shared(self.boundaries.union(boundaries))

    def adopt(self, pin: Pin | None, incremental_disabled: bool) -> None:
        """Take over what the store answered: the truth, or the winner of a race."""
        if pin is not None:
            self.pin = pin
            self.incremental_disabled = incremental_disabled


@lru_cache(maxsize=1024)
def _shared(boundaries: frozenset[str]) -> frozenset[str]:
    """One set for all sessions that have been in the same places: there are many sessions and few places."""
    return boundaries


def derive_sid(tenant: str, name: str) -> str:
    """The key of a session: 128 bits of a digest over tenant and name.

    A name guessed by another tenant leads to another key, so a foreign session is just unknown; and no text of a
    client ever stands in a key.
    """
    return hashlib.sha256(b"sid\0" + tenant.encode() + b"\0" + name.encode()).hexdigest()[:32]


def derive_rid(tenant: str, response_id: str) -> str:
    """The key of a response in the tenant-wide index, by the same rule."""
    return hashlib.sha256(b"rid\0" + tenant.encode() + b"\0" + response_id.encode()).hexdigest()[:32]
