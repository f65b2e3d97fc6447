"""The waiting room: turns that nobody can serve now, but probably in a moment."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from broker.domain.events import NonePlaced, Placed
from broker.domain.selection import Wish

LOOK_EVERY = 0.05
"""Seconds between two looks while somebody waits; what changes is looked at at once."""

Answered = Callable[[Placed | NonePlaced], None]


@dataclass(slots=True, eq=False)
class Ticket:
    """One turn that waits. `leave` it when its client has gone."""

    wish: Wish
    then: Answered
    until: float
    room: WaitingRoom

    def leave(self) -> None:
        """Wait no longer; nothing is called any more."""
        self.room.forget(self)


class WaitingRoom:
    """Turns wait here in the order in which they came, at most `patience` seconds, at most `most` of them.

    `place` is asked for each: None means that it must go on waiting. Who has waited too long gets `refuse`'s answer.
    """

    def __init__(
        self,
        place: Callable[[Wish], Placed | NonePlaced | None],
        refuse: Callable[[Wish], NonePlaced],
        *,
        patience: float,
        most: int,
    ) -> None:
        self._place = place
        self._refuse = refuse
        self._patience = patience
        self._most = most
        self._tickets: dict[int, Ticket] = {}
        self._kinds: Counter[tuple[object, ...]] = Counter()
        self._next: asyncio.Handle | None = None
        self._soon = False

    def __len__(self) -> int:
        return len(self._tickets)

    def queues(self, wish: Wish) -> bool:
        """Whether others wait for the same already, so that one more comes behind them."""
        return _kind(wish) in self._kinds

    def enter(self, wish: Wish, then: Answered) -> Ticket | None:
        """Wait; None if too many do."""
        if len(self._tickets) >= self._most:
            return None
        ticket = Ticket(wish, then, asyncio.get_running_loop().time() + self._patience, self)
        self._tickets[id(ticket)] = ticket
        self._kinds[_kind(wish)] += 1
        if self._next is None:
            self._next = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """It waits no longer."""
        self._drop(ticket)

    def _drop(self, ticket: Ticket) -> bool:
        if self._tickets.pop(id(ticket), None) is None:
            return False
        kind = _kind(ticket.wish)
        self._kinds[kind] -= 1
        if not self._kinds[kind]:
            del self._kinds[kind]
        return True

    def wake(self) -> None:
        """Something has changed: look at all of them in this tick of the loop."""
        if self._tickets and not self._soon:
            self._soon = True
            if self._next is not None:
                self._next.cancel()
            self._next = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._soon, self._next = False, None
        try:
            self._place_who_can_be()
        finally:
            # whatever happens, nobody waits without an end
            if self._tickets and self._next is None:
                self._next = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)

    def _place_who_can_be(self) -> None:
        loop = asyncio.get_running_loop()
        stuck: set[tuple[object, ...]] = set()
        for ticket in list(self._tickets.values()):
            # where one cannot be placed, those who ask for the same cannot either
            if len(stuck) == len(self._kinds) and loop.time() < ticket.until:
                break  # nobody else can be placed, and who came later may wait longer
            kind = _kind(ticket.wish)
            answer = self._place(ticket.wish) if kind not in stuck else None
            if answer is None:
                stuck.add(kind)
                if loop.time() < ticket.until:
                    continue
                answer = self._refuse(ticket.wish)
            if self._drop(ticket):
                ticket.then(answer)


def _kind(wish: Wish) -> tuple[object, ...]:
    return wish.model, wish.boundary, wish.excluded, wish.only, wish.transport
