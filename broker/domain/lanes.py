"""Lanes: which creates of one client socket run, wait or are refused (protocol.md 2.3, 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from broker.domain.wire import STREAM_ID, BadFrame

T = TypeVar("T")

MAX_IN_FLIGHT = 16
MAX_NAMES = 32


class LanesFull(Exception):
    """More creates wait on this socket than the broker is set to keep."""


@dataclass(slots=True)
class _Lane(Generic[T]):
    running: T | None = None
    waiting: list[T] = field(default_factory=list)


@dataclass(slots=True)
class Lanes(Generic[T]):
    """The lanes of one socket. FIFO and never overlapping within a lane; at most `MAX_IN_FLIGHT` over all lanes.

    What cannot run yet waits (at most `max_waiting`); the default lane (None) has no name and does not count as one.
    """

    max_waiting: int = 64
    _lanes: dict[str | None, _Lane[T]] = field(default_factory=dict)
    _order: list[str | None] = field(default_factory=list)
    _running: int = 0

    def admit(self, name: str | None, turn: T) -> bool:
        """Take in a create: True if it runs at once, False if it waits. Raises `BadFrame` or `LanesFull`."""
        self._check(name)
        lane = self._lanes.get(name) or _Lane()
        free = lane.running is None and not lane.waiting and self._running < MAX_IN_FLIGHT
        if not free and len(self._order) >= self.max_waiting:
            raise LanesFull
        self._lanes[name] = lane
        if free:
            self._start(lane, turn)
            return True
        lane.waiting.append(turn)
        self._order.append(name)
        return False

    def finished(self, name: str | None) -> list[T]:
        """The lane's turn has ended; returns the creates that may run now, oldest first."""
        lane = self._lanes[name]
        if lane.running is not None:
            lane.running = None
            self._running -= 1
        return self._admit_waiting() if self._order else []

    def adopt(self, name: str | None, turn: T) -> None:
        """A turn that the upstream began by itself takes the place of the one that has just ended on this lane."""
        lane = self._lanes.setdefault(name, _Lane())
        if lane.running is None:
            self._start(lane, turn)
        else:
            lane.running = turn

    def running(self, name: str | None) -> T | None:
        """The turn that runs on a lane."""
        lane = self._lanes.get(name)
        return lane.running if lane else None

    def all_running(self) -> list[T]:
        """Every turn in flight on this socket."""
        return [lane.running for lane in self._lanes.values() if lane.running is not None]

    def abandon(self) -> list[T]:
        """The socket is gone: nothing waits any more; returns what had waited."""
        waiting = [turn for lane in self._lanes.values() for turn in lane.waiting]
        self._order.clear()
        for lane in self._lanes.values():
            lane.waiting.clear()
        return waiting

    def _check(self, name: str | None) -> None:
        if name is None or name in self._lanes:
            return
        if not STREAM_ID.fullmatch(name):
            raise BadFrame(
                "invalid_stream_id", "stream_id must be 1 to 256 characters of A-Z a-z 0-9 _ . -", "stream_id"
            )
        if sum(known is not None for known in self._lanes) >= MAX_NAMES:
            raise BadFrame(
                "websocket_stream_limit_reached",
                f"This connection has already used {MAX_NAMES} stream_ids. Reuse one, or open another connection.",
                "stream_id",
            )

    def _start(self, lane: _Lane[T], turn: T) -> None:
        lane.running = turn
        self._running += 1

    def _admit_waiting(self) -> list[T]:
        started: list[T] = []
        blocked: list[str | None] = []
        for at, name in enumerate(self._order):
            if self._running >= MAX_IN_FLIGHT:
                blocked += self._order[at:]
                break
            lane = self._lanes[name]
            if lane.running is None:
                turn = lane.waiting.pop(0)
                self._start(lane, turn)
                started.append(turn)
            else:
                blocked.append(name)
        self._order = blocked
        return started
