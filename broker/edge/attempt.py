"""One attempt of a turn: the link it runs on, and what it has brought forth so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.domain import transcript, wire
from broker.domain.credential import Credential
from broker.domain.health import AuthHealth
from broker.domain.session import Pin
from broker.domain.transcript import Commit, TurnItems, TurnMeta
from broker.domain.turn import Turn
from broker.edge.links import AnyLink


class Attempt:
    """A turn on one credential. When the turn is placed anew, everything here is forgotten with it.

    `held_against` is what was held against the credential at its placement, `trial` the token of the licence by which
    it is tried, where it is.
    `response` is what the terminal event says: the id of the response, and its output as far as it is listed there.
    `lane` is the lane as the link knows it, `head` the head of the vendor's answer, where the turn is a request of its
    own.
    """

    __slots__ = (
        "_items",
        "credential",
        "head",
        "heard",
        "held_against",
        "lane",
        "link",
        "pin",
        "response",
        "response_id",
        "trial",
    )

    def __init__(self, credential: Credential, held_against: Sequence[AuthHealth] = (), trial: str = "") -> None:
        self.credential = credential
        self.trial = trial
        self.pin: Pin | None = None
        self.held_against = held_against
        self.link: AnyLink | None = None
        self.lane: str | None = None
        self.head: Mapping[str, str] = {}
        self.response_id = ""
        self.response = ("", b"")
        self.heard = 0.0
        self._items: list[tuple[int, bytes]] = []

    def note_item(self, raw: bytes) -> None:
        """An output item is done (raises `wire.Garbage`)."""
        self._items.append(wire.done_item(raw))

    def commit(self, turn: Turn, inputs: bytes, *, keep: bool) -> Commit:
        """The turn as it goes into the transcript; without its items if they may not be kept."""
        meta = self._meta(turn, keep)
        session, pin = turn.session, self.pin
        return Commit(
            sid=session.sid,
            name=session.name,
            tenant=session.tenant,
            meta=meta,
            items=TurnItems(inputs, self.outputs()) if meta.kept else TurnItems(),
            epoch=pin.epoch if pin else 0,
            nonce=pin.nonce if pin else "",
            because=pin.because if pin else "",
            minted=transcript.minted([item for _, item in self._items]),
        )

    def _meta(self, turn: Turn, keep: bool) -> TurnMeta:
        parent, request = turn.parent, turn.request
        parent_meta = parent.meta if parent is not None else None
        return TurnMeta(
            turn_id=request.turn_id,
            parent=parent_meta.turn_id or None if parent_meta is not None else None,
            response_id=self.response[0] or self.response_id,
            credential=self.credential.name,
            boundary=self.credential.boundary,
            store=request.store and (self.link is None or self.link.stores(request.lane)),
            # what comes of a turn in the background only the vendor knows
            kept=keep and not request.background and (parent_meta is None or parent_meta.kept),
            rooted=request.binding != wire.CONVERSATION and (parent is None or parent.known),
        )

    def compactions(self) -> tuple[str, ...]:
        """The names of the compaction items among the output: only one organisation can read them."""
        if not self._items:
            return wire.compactions(self.outputs())
        for _, item in self._items:
            if b'"compaction' in item:
                return wire.compactions(self.outputs())
        return ()

    def outputs(self) -> bytes:
        """The output items as a JSON array."""
        if not self._items:
            # some vendors name the items only at the end
            listed = self.response[1]
            return listed if listed[:1] == b"[" else b"[]"
        if len(self._items) > 1:
            self._items.sort(key=_index)
        return b"[" + b",".join([item for _, item in self._items]) + b"]"


def _index(item: tuple[int, bytes]) -> int:
    return item[0]
