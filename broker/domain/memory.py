"""What a vendor's own socket would remember for a client, mirrored for one client socket.

The broker rescues what it lost itself, and only that: a response that the client gave up, by a continuation that failed
through its own fault, is gone here as it would be there (protocol.md 4.2, 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from broker.domain.continuation import Parent
from broker.domain.session import Session
from broker.domain.transcript import TurnMeta

REMEMBERED = 256


class Remembered(msgspec.Struct, frozen=True):
    """A response that was committed on this socket."""

    meta: TurnMeta
    session: Session
    lane: str | None


@dataclass(slots=True)
class SocketMemory:
    """The responses of one client socket, the newest of each lane, and those it has given up."""

    _responses: dict[str, Remembered] = field(default_factory=dict)
    _newest: dict[str | None, str] = field(default_factory=dict)
    _evicted: dict[str, None] = field(default_factory=dict)

    def note(self, response_id: str, meta: TurnMeta, session: Session, lane: str | None) -> None:
        """A turn was committed on this lane."""
        before = self._responses.get(response_id)
        if before is not None and before.meta.turn_id != meta.turn_id:
            session.reuses_ids = True
        if before is not None:
            del self._responses[response_id]  # the newest stands last
        self._responses[response_id] = Remembered(meta, session, lane)
        self._newest[lane] = response_id
        if self._evicted:
            self._evicted.pop(response_id, None)
        if len(self._responses) > REMEMBERED:
            del self._responses[next(iter(self._responses))]

    def recall(self, response_id: str) -> tuple[Parent, Session] | None:
        """A response of this socket, and whether the vendor's socket would still hold it."""
        found = self._responses.get(response_id)
        if found is None:
            return None
        live = found.meta.store or response_id in self._newest.values()
        return Parent(response_id, found.meta, live), found.session

    def newest(self, lane: str | None) -> tuple[Parent, Session] | None:
        """The last response of a lane."""
        return self.recall(self._newest[lane]) if lane in self._newest else None

    def evict(self, parent: Parent, lane: str | None) -> None:
        """A continuation of it failed through its own fault. A fork from another lane keeps it, so does `store`."""
        if parent.meta is None or parent.meta.store:
            return
        found = self._responses.get(parent.response_id)
        if found is not None and found.lane != lane:
            return
        self._evicted[parent.response_id] = None
        if len(self._evicted) > REMEMBERED:
            del self._evicted[next(iter(self._evicted))]

    def evicted(self, response_id: str) -> bool:
        """Whether the client itself has lost this response."""
        return response_id in self._evicted

    def sessions(self) -> list[tuple[Session, str]]:
        """The sessions whose turns were committed here, each once, with the last of those turns."""
        last = {found.session.sid: (found.session, found.meta.turn_id) for found in self._responses.values()}
        return list(last.values())
