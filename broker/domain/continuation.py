"""How a turn leans on the past: as the client's increment, or rebuilt from the transcript; and how far it can move."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from broker.domain.transcript import TurnMeta


class Mode(StrEnum):
    """INCREMENTAL sends the client's frame as it is; REPLAY sends the whole conversation rebuilt."""

    INCREMENTAL = "incremental"
    REPLAY = "replay"


class Reach(StrEnum):
    """How far a turn can move: to any credential, or only within one boundary."""

    ANYWHERE = "anywhere"
    BOUNDARY = "boundary"


class Parent(msgspec.Struct, frozen=True):
    """The response a turn continues, as this node knows it.

    `meta` None means nobody here has ever seen it: an unknown root, which only its owner can resolve. `live` says
    that a vendor's own socket would still hold it; if the vendor then does not find it, the loss is not the client's.
    """

    response_id: str
    meta: TurnMeta | None
    live: bool = True

    @property
    def known(self) -> bool:
        """Whether the transcript reaches down to where this conversation began."""
        return self.meta is not None and self.meta.kept and self.meta.rooted


def reach(parent: Parent | None, binding: str | None) -> Reach:
    """How far a turn can move; `binding` names what in its own frame lives in one owner's project."""
    if binding is not None or (parent is not None and not parent.known):
        return Reach.BOUNDARY
    return Reach.ANYWHERE


def plan(
    parent: Parent | None,
    *,
    credential: str,
    socket_holds_parent: bool,
    incremental_disabled: bool,
    forced: bool = False,
    foreign: bool = False,
    reuses_ids: bool = False,
) -> Mode:
    """How to send a turn to `credential`.

    An increment goes out only where its parent is known to be: in the memory of the very socket, or stored by this
    credential (`store=true`). A bare increment anywhere else would be silent amnesia. An unknown root is the
    vendor's to resolve, so it goes out as it came. `forced` asks for a replay once more (a continuation was lost),
    `foreign` says that the client's own input may hold another boundary's ciphertext, `reuses_ids` that the vendor
    gives ids out again, so that what it has stored under one may be something else.
    """
    if parent is None:
        return Mode.REPLAY if foreign else Mode.INCREMENTAL
    if parent.meta is None:
        return Mode.INCREMENTAL
    if parent.known and (forced or (incremental_disabled and not socket_holds_parent)):
        return Mode.REPLAY
    stored_here = parent.meta.store and parent.meta.credential == credential and not reuses_ids
    return Mode.INCREMENTAL if socket_holds_parent or stored_here else Mode.REPLAY
