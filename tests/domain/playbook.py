"""Conversations with the turn machine: `assert play(turn) >> event << command << command >> event ...`.

`>>` feeds an event and insists that every command of the one before was expected; `<<` expects the next command, as a
value or as a class where its content is not the point; `...` passes over what is said before it. `assert` insists that
nothing was left over.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import EllipsisType

from broker.domain.commands import Command
from broker.domain.continuation import Parent
from broker.domain.credential import Credential, Secret
from broker.domain.events import Event
from broker.domain.failure import Failure, FailureKind
from broker.domain.session import Pin, Session
from broker.domain.transcript import TurnMeta
from broker.domain.turn import Policy, Request, State, Turn

SPOKEN: set[tuple[State, type]] = set()
"""Every (state, event) that a conversation has come through."""


def credential(name: str, boundary: str = "north", **fields: object) -> Credential:
    return Credential(name, f"https://{name}.example/v1", Secret(f"sk-{name}"), boundary=boundary, **fields)  # type: ignore[arg-type]


A = credential("a")
A2 = credential("a2")
B = credential("b", "south")
C = credential("c", "west")
D = credential("d", "west")


def pin(holder: Credential, epoch: int = 1, nonce: str = "n", because: str = "placed") -> Pin:
    return Pin(holder.name, epoch, nonce, because)


def session(
    *,
    pinned: Pin | None = None,
    incremental_disabled: bool = False,
    boundaries: Iterable[str] = (),
    sid: str = "sid",
) -> Session:
    return Session(sid, "name", "tenant", pinned, incremental_disabled, frozenset(boundaries))


def parent(
    holder: Credential = A,
    *,
    seen: bool = True,
    store: bool = False,
    kept: bool = True,
    rooted: bool = True,
    live: bool = True,
) -> Parent:
    meta = TurnMeta("t0", None, "resp_0", holder.name, holder.boundary, store, kept, rooted)
    return Parent("resp_0", meta if seen else None, live)


FRAME = b'{"type":"response.create"}'


def turn(
    *,
    of: Session | None = None,
    previous: str | None = None,
    binding: str | None = None,
    items: bytes = b"[]",
    needs: tuple[str, ...] = (),
    transport: str = "",
    affinity: str = "",
    recorded: bool = True,
    whole: bool = False,
    conversing: bool = True,
    policy: Policy | None = None,
    machine: type[Turn] = Turn,
) -> Turn:
    request = Request(
        "t1",
        None,
        FRAME,
        items,
        "m",
        previous,
        binding=binding,
        needs=needs,
        transport=transport,
        affinity=affinity,
        recorded=recorded,
        whole=whole,
        conversing=conversing,
    )
    return machine(request, of if of is not None else session(), policy or Policy(boundaries=3))


def failure(kind: FailureKind, code: str = "", **fields: object) -> Failure:
    return Failure(kind, code=code or kind.value, **fields)  # type: ignore[arg-type]


class Unexpected(AssertionError):
    """The machine did not say what the conversation expects; the message is the whole conversation."""


class Playbook:
    """One conversation with one turn."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.now = 0.0
        self.said: list[Command] = []
        self._open: list[Command] = []
        self._passing = False
        self._log: list[str] = []

    def __rshift__(self, event: Event) -> Playbook:
        self._all_expected()
        self._log.append(f">> {event}")
        SPOKEN.add((self.turn.state, type(event)))
        self._open = self.turn.handle(event, self.now)
        self.said += self._open
        return self

    def __lshift__(self, command: Command | type | EllipsisType) -> Playbook:
        self._log.append(f"<< {command}")
        if command is ...:
            self._passing = True
            return self
        while self._passing and self._open and not _is(self._open[0], command):
            self._open.pop(0)
        self._passing = False
        if not self._open:
            raise Unexpected("\n".join([*self._log, "!! but nothing more was said"]))
        said = self._open.pop(0)
        if not _is(said, command):
            raise Unexpected("\n".join([*self._log, f"!! but it said {said}"]))
        return self

    def __bool__(self) -> bool:
        self._all_expected()
        return True

    def at(self, now: float) -> Playbook:
        """What follows happens at `now`, seconds of the steady clock."""
        self.now = now
        return self

    def last(self, kind: type) -> Command:
        """The newest command of a class, for a look at what it holds."""
        return next(command for command in reversed(self.said) if type(command) is kind)

    def _all_expected(self) -> None:
        if self._open:
            raise Unexpected("\n".join([*self._log, *(f"!! unexpected: {command}" for command in self._open)]))


def _is(said: Command, expected: object) -> bool:
    return type(said) is expected if isinstance(expected, type) else said == expected


def play(turn: Turn) -> Playbook:
    return Playbook(turn)
