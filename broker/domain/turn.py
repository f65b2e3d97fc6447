"""The turn: a machine, events in and commands out. A turn's state changes here and nowhere else.

Rules that govern it:
- `TRANSITIONS` lists every event that a state takes; anything else is `OutOfTurn`, a fault of the driver.
- What to do about a failure is read from `failure.TABLE`; there is no opinion about failures here or in the driver.
- Nothing of a turn reaches the client before it is past moving: announcements are held until the first output, the
  terminal event until the commit is written.
- A turn ends exactly once, with an outcome; `ENDED` takes no event but the client's leaving.
- Events are past tense, commands imperative; every command that asks for something is answered by one event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from broker.domain import errors
from broker.domain.commands import (
    Abandon,
    Absolve,
    Blame,
    Command,
    Commit,
    End,
    FailOver,
    Hold,
    MovePin,
    Open,
    Outcome,
    Place,
    Rebuild,
    Relay,
    Resolve,
    Retract,
    Send,
    Tell,
)
from broker.domain.continuation import Mode, Parent, Reach, plan, reach
from broker.domain.credential import Credential
from broker.domain.errors import ErrorReply
from broker.domain.events import (
    Announced,
    Began,
    ChainBound,
    ChainLost,
    ClientLeft,
    Committed,
    Completed,
    Event,
    Failed,
    HoldElapsed,
    NonePlaced,
    Opened,
    OutputBegan,
    OwnerUnknown,
    ParentGone,
    PinMoved,
    PinStale,
    PinUnwritten,
    Placed,
    Rebuilt,
    Resolved,
    StoreLost,
    Succeeded,
)
from broker.domain.failure import Action, Effect, Failure, FailureKind, Phase
from broker.domain.selection import Wish
from broker.domain.session import Pin, Session
from broker.domain.wire import CONVERSATION


class State(StrEnum):
    """Where a turn stands."""

    NEW = "new"
    RESOLVING = "resolving"
    PLACING = "placing"
    PINNING = "pinning"
    OPENING = "opening"
    REBUILDING = "rebuilding"
    WAITING = "waiting"
    SHOWING = "showing"
    COMMITTING = "committing"
    ENDED = "ended"


class Request(msgspec.Struct, frozen=True):
    """One request: its raw bytes and the little that was read of them; `items` is its input as an array.

    `needs` are the things of a vendor's that it names and that have an owner, `transport` what an endpoint must speak
    to serve it, `affinity` the client's wish for the credential that served the same word before. `streamed` is False
    where nothing comes before the whole answer, `background` True where the vendor goes on without its client. With
    `whole` the client sees nothing before the end, so that the turn can move as long as it runs. What is not `recorded`
    is continued by nobody: nothing of it is written. What is not `conversing` leaves no trace in its session.
    """

    turn_id: str
    lane: str | None
    raw: bytes
    items: bytes
    model: str = ""
    previous_response_id: str | None = None
    store: bool = True
    binding: str | None = None
    needs: tuple[str, ...] = ()
    transport: str = ""
    affinity: str = ""
    streamed: bool = True
    background: bool = False
    whole: bool = False
    recorded: bool = True
    conversing: bool = True


@dataclass(slots=True)
class Policy:
    """Bounds of a turn; one for all turns of a node.

    `placements`: how often it may fail in one and the same way, after it was sent, before its client is told; a
    refusal that proves that nothing ran costs nothing, and every credential is tried at most once anyway. `placing`:
    seconds from its first failure in which it may be placed anew. `held`: events held back at most. `boundaries`: how
    many the pool has or has had, for what one of them encrypted outlives it; the node raises it when others come.
    """

    placements: int = 3
    placing: float = 30.0
    held: int = 16
    boundaries: int = 1


class OutOfTurn(Exception):
    """An event came that its state does not take: a fault of the driver."""


MAX_PIN_RACES = 3
MAX_REPLAYS = 2
"""How often one credential may be sent the same turn again for reasons that are not its fault."""

MAX_RETURNS = 1
"""How often one turn may come back to a credential that limited its rate."""

MAX_DOUBTED = 2
"""How many credentials one turn may cast doubt on, each of them once."""


@dataclass(slots=True)
class Turn:
    """One turn of one session. `handle` takes an event at a time and returns the commands it leads to, in order."""

    request: Request
    session: Session
    policy: Policy = field(default_factory=Policy)
    started: float = 0.0
    state: State = State.NEW
    phase: Phase = Phase.BEFORE_SEND
    outcome: Outcome | None = None
    parent: Parent | None = None
    credential: Credential | None = None
    mode: Mode = Mode.INCREMENTAL
    failures: list[tuple[Credential, Failure]] = field(default_factory=list)
    _excluded: frozenset[str] = frozenset()
    _spent: dict[FailureKind, int] = field(default_factory=dict)
    _races: int = 0
    _replays: dict[str, int] = field(default_factory=dict)
    _retried: bool = False
    _bound: bool = False
    _bound_to: str | None = None
    _only: str | None = None
    _forced: bool = False
    _strip: bool = False
    _moving: FailOver | None = None
    _failing_since: float | None = None
    _held: list[bytes] = field(default_factory=list)
    _unconfirmed: list[tuple[Credential, Failure]] = field(default_factory=list)
    _doubted: frozenset[str] = frozenset()
    _proved: bool = False
    _ran: bool = False

    def handle(self, event: Event, now: float = 0.0) -> list[Command]:
        """The commands an event leads to. `now` is any steady clock, in seconds; `started` is on the same."""
        transition = TRANSITIONS.get((self.state, type(event)))
        if transition is not None:
            return transition(self, event, now)
        if isinstance(event, ClientLeft):
            return self._left()
        raise OutOfTurn(f"{type(event).__name__} in state {self.state.value}")

    @property
    def boundary(self) -> str | None:
        """The only boundary that can serve this turn, if there is but one."""
        if self._bound_to is not None:
            return self._bound_to
        if not self._bound and reach(self.parent, self.request.binding) is Reach.ANYWHERE:
            return None
        if self.parent is not None and self.parent.meta is not None:
            return self.parent.meta.boundary
        return self._home

    @property
    def _home(self) -> str | None:
        # what binds a turn lives where its session does; a session without a past may begin anywhere
        return next(iter(self.session.boundaries), None) if len(self.session.boundaries) == 1 else self._pinned_home

    @property
    def _pinned_home(self) -> str | None:
        return self.credential.boundary if self.credential is not None else None

    # --- from the beginning to the placed credential ---

    def _began(self, event: Began, now: float) -> list[Command]:
        self.started = now
        if self.request.previous_response_id is None and not self.request.needs:
            return self._place()
        self.state = State.RESOLVING
        return [Resolve(self.request.previous_response_id, self.request.needs)]

    def _succeeded(self, event: Succeeded, now: float) -> list[Command]:
        # no frame of the client's began it, so there is nothing to send anew: it is past moving from the start
        self.started = now
        self.parent = event.parent
        self.credential = event.credential
        self._held.append(event.raw)
        return self._show()

    def _resolved(self, event: Resolved, now: float) -> list[Command]:
        self.parent = event.parent
        self.session = event.session if self.request.conversing else event.session.aside()
        if event.boundary is not None:
            self._bound, self._bound_to, self._only = True, event.boundary, event.only
        return self._place()

    def _owner_unknown(self, event: OwnerUnknown, now: float) -> list[Command]:
        return self._tell(Outcome.NOT_FOUND, errors.not_found(event.thing))

    def _parent_gone(self, event: ParentGone, now: float) -> list[Command]:
        named = self.request.previous_response_id
        reply = errors.foreign_context() if named is None else errors.previous_response_not_found(named)
        return self._tell(Outcome.NOT_FOUND, reply)

    def _store_lost(self, event: StoreLost, now: float) -> list[Command]:
        return self._tell(Outcome.STORE_AWAY, errors.store_away())

    def _place(self) -> list[Command]:
        self.state = State.PLACING
        pin, request, parent = self.session.pin, self.request, self.parent
        preferred = pin.credential if pin is not None else None
        if preferred is None and parent is not None and parent.meta is not None:
            preferred = parent.meta.credential  # its session is forgotten, but not who keeps the response
        wish = Wish(
            request.model,
            preferred,
            self.boundary,
            self._excluded,
            self.session.avoided,
            self.session.sid,
            self._only,
            request.transport,
            request.affinity,
            pin is not None,
        )
        return [Place(wish)]

    def _placed(self, event: Placed, now: float) -> list[Command]:
        self.credential = event.credential
        moving, self._moving = self._moving, None
        moved = moving is not None and self.failures[-1][0].name != event.credential.name
        return [*([moving] if moving is not None and moved else []), *self._bind(event)]

    def _bind(self, event: Placed) -> list[Command]:
        pin = self.session.pin
        if pin is not None and pin.credential == event.credential.name:
            return self._open()
        because = self._because(pin)
        if pin is None or pin.epoch == 0:
            # no store has seen a pin yet: the first commit writes it
            self.session.pin = Pin(event.credential.name, 0, event.nonce, because)
            return self._open()
        if self._races >= MAX_PIN_RACES:
            return self._open()
        self.state = State.PINNING
        return [MovePin(pin, Pin(event.credential.name, pin.epoch + 1, event.nonce, because))]

    def _because(self, pin: Pin | None) -> str:
        if self.failures:
            return self.failures[-1][1].kind.value
        if pin is None:
            return "placed"
        return "interrupted" if pin.credential == self.session.avoided else "health"

    def _pin_moved(self, event: PinMoved, now: float) -> list[Command]:
        self.session.adopt(event.pin, True)
        return self._open()

    def _pin_stale(self, event: PinStale, now: float) -> list[Command]:
        self._races += 1
        self.session.adopt(event.pin, event.incremental_disabled)
        return self._place()

    def _pin_unwritten(self, event: PinUnwritten, now: float) -> list[Command]:
        return self._open()

    def _open(self) -> list[Command]:
        assert self.credential is not None
        self.state = State.OPENING
        return [Open(self.credential)]

    # --- from the socket to the first event ---

    def _opened(self, event: Opened, now: float) -> list[Command]:
        assert self.credential is not None
        self.mode = plan(
            self.parent,
            credential=self.credential.name,
            socket_holds_parent=event.holds_parent,
            incremental_disabled=self.session.incremental_disabled,
            forced=self._forced or self._strip,
            foreign=self._strip or self._may_hold_foreign(self.credential.boundary),
            reuses_ids=self.session.reuses_ids or self.credential.manners.reuses_ids,
        )
        if self.mode is Mode.INCREMENTAL:
            return self._send(self.request.raw)
        self.state = State.REBUILDING
        return [Rebuild(self.credential, self.parent, self._strip)]

    def _may_hold_foreign(self, boundary: str) -> bool:
        return bool(self.session.boundaries - {boundary}) and b'"encrypted_content"' in self.request.items

    def _rebuilt(self, event: Rebuilt, now: float) -> list[Command]:
        return self._send(event.frame)

    def _chain_lost(self, event: ChainLost, now: float) -> list[Command]:
        return self._parent_gone(ParentGone(), now)

    def _chain_bound(self, event: ChainBound, now: float) -> list[Command]:
        if self._bound:
            return self._parent_gone(ParentGone(), now)
        self._bound, self._bound_to = True, event.boundary
        return self._place()

    def _send(self, frame: bytes) -> list[Command]:
        self.state = State.WAITING
        self.phase = Phase.SENT
        again, self._ran = self._ran, False
        return [Send(frame, self.mode, self._cause(), again)]

    def _cause(self) -> str:
        if self.failures:
            return self.failures[-1][1].kind.value
        return "pin_reset" if self.session.incremental_disabled else "socket_changed"

    # --- from the first event to the end ---

    def _announced(self, event: Announced, now: float) -> list[Command]:
        if self.request.whole:
            return []
        self._held.append(event.raw)
        if len(self._held) > self.policy.held:
            return self._show()
        return [Hold()] if len(self._held) == 1 else []

    def _output_began(self, event: OutputBegan, now: float) -> list[Command]:
        if self.request.whole:
            return self._prove()
        self._held.append(event.raw)
        return [*self._prove(), *self._show()]

    def _hold_elapsed(self, event: HoldElapsed, now: float) -> list[Command]:
        return self._show() if self._held else []

    def _show(self) -> list[Command]:
        self.state = State.SHOWING
        self.phase = Phase.SHOWN
        return [Relay(self._release())]

    def _shown_more(self, event: Announced | OutputBegan, now: float) -> list[Command]:
        # only output proves that the request was taken
        return [*(self._prove() if isinstance(event, OutputBegan) else ()), Relay((event.raw,))]

    def _completed(self, event: Completed, now: float) -> list[Command]:
        self.state = State.COMMITTING
        self._held.append(event.raw)
        return [*self._prove(), Commit(event.raw)]

    def _committed(self, event: Committed, now: float) -> list[Command]:
        assert self.credential is not None
        self.session.adopt(event.pin, event.incremental_disabled)
        self.session.served_within(self.credential.boundary)
        self.session.turns += 1
        self.session.avoided = None
        self.session.closed = False
        self.state = State.ENDED
        self.outcome = Outcome.COMPLETED
        return [Relay(self._release()), End(Outcome.COMPLETED)]

    def _release(self) -> tuple[bytes, ...]:
        frames = tuple(self._held)
        self._held.clear()
        return frames

    # --- when something goes wrong ---

    def _failed(self, event: Failed, now: float) -> list[Command]:
        assert self.credential is not None
        if event.failure.unsent and self.phase is Phase.SENT:
            self.phase = Phase.BEFORE_SEND
        failure, poisonous = self._understand(event.failure)
        self.failures.append((self.credential, failure))
        self._ran = self._ran or (self.phase is Phase.SENT and (failure.row.executed or self._proved))
        commands: list[Command] = [Abandon(), *self._blame(failure, poisonous)]
        action = failure.row.action(self.phase)
        if poisonous or action is Action.SURFACE or self._would_repeat(failure) or self._out_of_bounds(failure, now):
            return commands + self._surface(failure, poisonous)
        if action is Action.REPLAY and self._may_replay():
            return commands + self._replay(failure)
        self._moving = FailOver(failure, self.phase)
        if not self._may_come_again(failure):
            self._excluded |= {self.credential.key}
        return commands + self._start_over()

    def _understand(self, failure: Failure) -> tuple[Failure, bool]:
        """The failure in the light of this turn, and whether the request itself is to blame."""
        if failure.kind is FailureKind.CONTINUATION_LOST and not self._lost_by_us():
            failure = _as_request_fault(failure)
        if failure.kind is FailureKind.CIPHERTEXT_FOREIGN and not self._may_strip():
            failure = _as_request_fault(failure)
        return failure, 0 < failure.witnesses <= self._alike(failure)

    def _alike(self, failure: Failure) -> int:
        """How many credentials have refused this request in the same way, the one at hand among them."""
        return self._witnesses(failure, also=self.credential)

    def _witnesses(self, failure: Failure, also: Credential | None = None) -> int:
        told = {c.name for c, f in self.failures if f.fingerprint == failure.fingerprint and not f.independent}
        return len(told | ({also.name} if also is not None else set()))

    def _lost_by_us(self) -> bool:
        parent = self.parent
        return self.mode is Mode.INCREMENTAL and parent is not None and parent.known and parent.live

    def _may_strip(self) -> bool:
        return self.policy.boundaries > 1 and not self._strip and (self.parent is None or self.parent.known)

    def _blame(self, failure: Failure, poisonous: bool) -> list[Command]:
        assert self.credential is not None
        if poisonous:
            # what this request has said about others was its own doing, too
            retracted = [Retract(c) for c, _ in self._unconfirmed if c.name != self.credential.name]
            self._unconfirmed.clear()
            return [*retracted, Blame(self.credential, failure, confirmed=False, void=True)]
        if failure.witnesses:
            self._unconfirmed.append((self.credential, failure))
        return [Blame(self.credential, failure, failure.independent, void=not self._may_say(failure))]

    def _may_say(self, failure: Failure) -> bool:
        """One turn casts doubt on few credentials, and on each of them once; what a vendor states is no doubt."""
        assert self.credential is not None
        if failure.independent or failure.row.effect not in _DOUBTS:
            return True
        if self.credential.name in self._doubted or len(self._doubted) >= MAX_DOUBTED:
            return False
        self._doubted |= {self.credential.name}
        return True

    def _prove(self) -> list[Command]:
        """The request is taken: nothing speaks against who takes it, and those who refused had reasons of their own."""
        if self._proved:
            return []
        assert self.credential is not None
        self._proved = True
        confirmed: list[Command] = [Blame(c, failure, True, again=True) for c, failure in self._unconfirmed]
        self._unconfirmed.clear()
        return [Absolve(self.credential), *confirmed]

    def _would_repeat(self, failure: Failure) -> bool:
        """A turn that may have run has then added to a conversation of the vendor's, and would stand there twice."""
        return failure.row.executed and self.phase is Phase.SENT and self.request.binding == CONVERSATION

    def _out_of_bounds(self, failure: Failure, now: float) -> bool:
        if self.phase is Phase.SENT and failure.kind not in _PROVEN_UNSERVED and not failure.names_key:
            self._spent[failure.kind] = self._spent.get(failure.kind, 0) + 1
        if self._failing_since is None:
            self._failing_since = now
        return (
            self._spent.get(failure.kind, 0) >= self.policy.placements
            or now - self._failing_since > self.policy.placing
        )

    def _may_come_again(self, failure: Failure) -> bool:
        """A limit of rate blocks by its row, and for a moment: with nobody else there the turn may wait for its end."""
        assert self.credential is not None
        name = self.credential.name
        limited = [c for c, f in self.failures if c.name == name and f.kind is FailureKind.RATE_LIMITED]
        return failure.kind is FailureKind.RATE_LIMITED and len(limited) <= MAX_RETURNS

    def _may_replay(self) -> bool:
        """A credential whose sockets end again and again, or that keeps losing what it held, is left for another."""
        assert self.credential is not None
        name = self.credential.name
        self._replays[name] = self._replays.get(name, 0) + 1
        return self._replays[name] <= MAX_REPLAYS

    def _replay(self, failure: Failure) -> list[Command]:
        if failure.kind is FailureKind.CONTINUATION_LOST:
            self._forced = True
            self.session.incremental_disabled = True
        self._strip = self._strip or failure.kind is FailureKind.CIPHERTEXT_FOREIGN
        return self._start_over()

    def _start_over(self) -> list[Command]:
        self._held.clear()
        self._proved = False
        self.phase = Phase.BEFORE_SEND
        return self._place()

    def _none_placed(self, event: NonePlaced, now: float) -> list[Command]:
        if retry := self._retry_lost():
            return retry
        kinds = {failure.kind for _, failure in self.failures}
        soon = kinds - _FOR_LONG
        exhausted = FailureKind.QUOTA_EXHAUSTED in kinds or "exhausted" in event.reasons
        if exhausted and not soon and not event.reasons & _MOMENTARY:
            return self._tell(Outcome.EXHAUSTED, errors.all_exhausted(event.resets_at, event.at))
        if self.failures:
            last = next((f for _, f in reversed(self.failures) if f.kind in soon), self.failures[-1][1])
            # with nobody left to ask, two who agree are as many as there can be
            return self._surface(last, last.witnesses > 0 and self._alike(last) > 1)
        if event.reasons & (_MOMENTARY - {"busy"}):
            return self._tell(Outcome.EXHAUSTED, errors.all_cooling(event.resets_at, event.at))
        if "busy" in event.reasons:
            reply = errors.overloaded("Every credential that could serve this request is at its in-flight cap.")
            return self._tell(Outcome.EXHAUSTED, reply)
        if event.reasons <= {"model"}:
            return self._tell(Outcome.REQUEST_FAULT, errors.no_credential(self.request.model))
        if event.reasons <= {"model", "transport"}:
            return self._tell(Outcome.REQUEST_FAULT, errors.not_offered())
        if "boundary" in event.reasons and self.request.previous_response_id is not None:
            # it could be served elsewhere, but only with the context that its client has
            return self._parent_gone(ParentGone(), now)
        return self._tell(Outcome.UNSERVED, errors.unserved(Failure(FailureKind.AUTH_REJECTED)))

    def _retry_lost(self) -> list[Command]:
        """Nobody else is there: a credential whose socket was merely lost can serve the turn on another socket."""
        lost = [c.key for c, failure in self.failures if failure.kind is FailureKind.TRANSPORT_LOST]
        if not lost or self._retried:
            return []
        self._retried = True
        self._excluded -= {lost[-1]}
        return self._place()

    def _surface(self, failure: Failure, poisonous: bool) -> list[Command]:
        blamed: list[Command] = [Retract(c) for c, _ in self._unconfirmed] if poisonous else []
        if not poisonous:
            # nobody contradicts: a code that names the key is enough, a model that nobody else serves is not
            blamed = [
                Blame(c, f, True, again=True)
                for c, f in self._unconfirmed
                if f.row.effect is Effect.REVOKE and f.names_key and self._witnesses(f) == 1
            ]
        self._unconfirmed.clear()
        if failure.row.verbatim and not failure.independent:
            raw = errors.verbatim(failure, self.request.lane)
            return blamed + self._tell(Outcome.REQUEST_FAULT, None, raw)
        if poisonous:
            return blamed + self._tell(Outcome.REQUEST_FAULT, errors.refused(failure))
        if failure.row.executed and self.request.binding == CONVERSATION and self.phase is not Phase.BEFORE_SEND:
            outcome = Outcome.INTERRUPTED if self.phase is Phase.SHOWN else Outcome.UNSERVED
            return blamed + self._tell(outcome, errors.outcome_unknown())
        if self.phase is Phase.SHOWN:
            if failure.row.sent is Action.FAILOVER and self.credential is not None:
                # the client will come again with the same turn: somebody else shall have it
                self.session.avoided = self.credential.name
            return blamed + self._tell(Outcome.INTERRUPTED, errors.interrupted())
        if failure.kind is FailureKind.CONTINUATION_LOST:
            return blamed + self._parent_gone(ParentGone(), 0.0)
        if failure.kind is FailureKind.QUOTA_EXHAUSTED:
            return blamed + self._tell(Outcome.EXHAUSTED, errors.unserved(_as_rate_limit(failure)))
        return blamed + self._tell(Outcome.UNSERVED, errors.unserved(failure))

    def _tell(self, outcome: Outcome, reply: ErrorReply | None, verbatim: bytes | None = None) -> list[Command]:
        self.state = State.ENDED
        self.outcome = outcome
        held = self._release() if verbatim is not None else ()
        self._held.clear()
        return [Tell(reply, verbatim, held), End(outcome)]

    def _left(self) -> list[Command]:
        if self.state in (State.ENDED, State.COMMITTING):
            # a turn that is being written is written; what was committed stays (write first, speak after)
            return []
        self.state = State.ENDED
        self.outcome = Outcome.CLIENT_LEFT
        return [Abandon(), End(Outcome.CLIENT_LEFT)]


_PROVEN_UNSERVED = frozenset(
    {
        FailureKind.QUOTA_EXHAUSTED,
        FailureKind.RATE_LIMITED,
        FailureKind.CONNECTION_EXPIRED,
        FailureKind.CONTINUATION_LOST,
        FailureKind.CIPHERTEXT_FOREIGN,
    }
)
"""Refusals that prove that nothing ran: trying again costs nobody anything, and no credential is tried for ever."""


_DOUBTS = frozenset({Effect.REVOKE, Effect.EXCLUDE_MODEL, Effect.SUSPECT_BY_STREAK})
"""Effects of what may as well be the request's own doing."""

_MOMENTARY = frozenset({"busy", "cooling", "half_open", "ramping"})
"""Why a credential was passed over that may well serve a moment later."""

_FOR_LONG = frozenset({FailureKind.QUOTA_EXHAUSTED, FailureKind.AUTH_REJECTED, FailureKind.UNSUPPORTED})
"""Failures that do not pass in a moment: with nothing else in the way, a client need not come back soon."""


def _as_request_fault(failure: Failure) -> Failure:
    return Failure(FailureKind.REQUEST_FAULT, failure.status, failure.code, failure.type, raw=failure.raw)


def _as_rate_limit(failure: Failure) -> Failure:
    return Failure(FailureKind.RATE_LIMITED, retry_after=failure.retry_after)


S = State
TRANSITIONS: dict[tuple[State, type], Callable[..., list[Command]]] = {
    (S.NEW, Began): Turn._began,
    (S.NEW, Succeeded): Turn._succeeded,
    (S.RESOLVING, Resolved): Turn._resolved,
    (S.RESOLVING, ParentGone): Turn._parent_gone,
    (S.RESOLVING, OwnerUnknown): Turn._owner_unknown,
    (S.RESOLVING, StoreLost): Turn._store_lost,
    (S.PLACING, Placed): Turn._placed,
    (S.PLACING, NonePlaced): Turn._none_placed,
    (S.PINNING, PinMoved): Turn._pin_moved,
    (S.PINNING, PinStale): Turn._pin_stale,
    (S.PINNING, PinUnwritten): Turn._pin_unwritten,
    (S.OPENING, Opened): Turn._opened,
    (S.OPENING, Failed): Turn._failed,
    (S.REBUILDING, Rebuilt): Turn._rebuilt,
    (S.REBUILDING, ChainLost): Turn._chain_lost,
    (S.REBUILDING, ChainBound): Turn._chain_bound,
    (S.REBUILDING, StoreLost): Turn._store_lost,
    (S.WAITING, Announced): Turn._announced,
    (S.WAITING, OutputBegan): Turn._output_began,
    (S.WAITING, HoldElapsed): Turn._hold_elapsed,
    (S.WAITING, Completed): Turn._completed,
    (S.WAITING, Failed): Turn._failed,
    (S.SHOWING, Announced): Turn._shown_more,
    (S.SHOWING, OutputBegan): Turn._shown_more,
    (S.SHOWING, Completed): Turn._completed,
    (S.SHOWING, Failed): Turn._failed,
    (S.COMMITTING, Committed): Turn._committed,
}
