"""Drives a turn: performs the machine's commands, feeds it what happens, and has no opinions.

Everything happens in the callback that brought it, in the order in which it came: a turn has no task of its own. A
command that must wait (a dial, the store) leaves the turn at work until its answer is there; what comes meanwhile
waits. The one thing that does not go through the machine is plain output while it says that the turn is showing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from enum import Enum, auto
from typing import Any, Protocol

from msgspec.structs import replace

from broker.domain import commands as c
from broker.domain import errors, transcript, wire
from broker.domain import events as e
from broker.domain.classify import classify_event
from broker.domain.continuation import Mode, Parent
from broker.domain.errors import ErrorReply
from broker.domain.failure import Failure, FailureKind, Phase
from broker.domain.headers import without_account
from broker.domain.limits import from_event, from_headers
from broker.domain.memory import SocketMemory
from broker.domain.presentation import Presentation
from broker.domain.session import Session
from broker.domain.transcript import Immovable
from broker.domain.turn import Request, State, Turn
from broker.domain.wire import EventKind
from broker.edge.attempt import Attempt
from broker.edge.links import AnyLink, Links
from broker.edge.sessions import Unknown
from broker.edge.waiting import Ticket
from broker.edge.wiring import Wiring
from broker.store.connection import StoreUnavailable
from broker.store.journal import JournalFull, Landed, Queued
from broker.store.owners import Owner
from broker.store.sessions import ChainBroken, Stale
from broker.upstream.dialer import Refused
from broker.upstream.link import LinkClosed

log = logging.getLogger(__name__)

BACKLOG = 64
"""Events that may wait for a turn before its link is held up."""

ALIVE_EVERY = 5.0
"""Seconds of passing output after which the link's heartbeat is told that the peer lives."""

_PLAIN = frozenset({EventKind.OUTPUT, EventKind.ITEM, EventKind.ANNOUNCEMENT, EventKind.ASIDE})
_ENDINGS = frozenset({EventKind.TERMINAL, EventKind.FAILURE})
_COSTLY = frozenset({c.Open, c.Send})
_RUNNING = frozenset({State.WAITING, State.SHOWING})
_OF_EVERY_TURN = frozenset({"response.created", "response.in_progress", "response.queued"})
_OF_A_RESPONSE = b'{"type":"response.'


class Client(Protocol):
    """What a turn needs of the client it serves, whichever way that client is connected."""

    wiring: Wiring
    links: Links
    memory: SocketMemory

    presentation: Presentation | None
    """Which events this client may see; None where they are not those of the Responses API."""

    @property
    def keeps_transcript(self) -> bool:
        """Whether this client's turns may be recorded."""

    @property
    def behind(self) -> bool:
        """Whether the client is behind with reading."""

    def send(self, frames: Iterable[bytes]) -> None:
        """Events to the client. To a client that has left, nothing is sent."""

    def keep_alive(self, lane: str | None) -> None:
        """A turn of the client has been silent for a while, and goes on."""

    def join(self, session: Session) -> None:
        """The client has found back to a session."""

    def aside(self, link: AnyLink, raw: bytes, lane: str | None) -> None:
        """An event that belongs to no running turn."""

    def note_steer(self, raw: bytes, lane: str | None) -> None:
        """An answer to a steer."""

    def take_steers(self, lane: str | None, target: str | None) -> list[bytes]:
        """The accepted steers of the response `target` that the next response on a lane answers."""

    def drop_steers(self, lane: str | None) -> None:
        """The response they were for has failed; they went with it."""

    def ended(self, driver: TurnDriver) -> None:
        """The turn is over."""

    def broke(self, driver: TurnDriver, error: Exception) -> None:
        """The turn is over by a fault of ours; the client has not been told yet."""


class _Later(Enum):
    """A command's answer that is still to come, by `TurnDriver._answered`."""

    LATER = auto()


LATER = _Later.LATER

Answer = e.Event | _Later | None


class TurnDriver:
    """One turn on its way, between one client and whichever link serves it."""

    __slots__ = (
        "_alive_at",
        "_arrived",
        "_at_work",
        "_began",
        "_held_since",
        "_items",
        "_loop",
        "_moved",
        "_over",
        "_placed_at",
        "_quiet_since",
        "_tasks",
        "_ticket",
        "_todo",
        "_wiring",
        "attempt",
        "client",
        "full",
        "request",
        "turn",
    )

    def __init__(self, client: Client, request: Request, session: Session) -> None:
        self.client = client
        self.request = request
        self.turn = Turn(request, session, client.wiring.policy)
        self.attempt: Attempt | None = None
        self.full = False
        self._wiring = client.wiring
        self._items = request.items
        self._arrived: deque[tuple[bytes, EventKind] | e.Event] = deque()
        self._todo: deque[c.Command] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work = False
        self._over = False
        self._moved = False
        self._held_since: float | None = None
        self._ticket: Ticket | None = None
        self._placed_at: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()
        self._began = self._alive_at = self._quiet_since = self._loop.time()

    @property
    def response_id(self) -> str:
        """The id of the response that answers this turn; empty as long as it has none."""
        return self.attempt.response_id if self.attempt is not None else ""

    @property
    def link(self) -> AnyLink | None:
        """The link the turn runs on."""
        return self.attempt.link if self.attempt is not None else None

    # --- what comes in ---

    def begin(self, first: e.Event) -> None:
        """Take the turn from its first event on; the client is told when it is over."""
        if self._over:
            return  # its client left before it had begun
        words = self.client.take_steers(self.request.lane, self.request.previous_response_id)
        if words:
            self._items = _with_words(self.request.items, words)
        self._wiring.pulse.enter(self)
        self._feed(first)

    def receive(self, raw: bytes, kind: EventKind) -> None:
        """An event from the link. Plain output of a showing turn goes to the client from here, nothing overtakes."""
        self._moved = True
        if self._at_work:
            self._feed((raw, kind))
            return
        try:
            if kind is EventKind.ASIDE or (kind in _PLAIN and self.turn.state is State.SHOWING):
                self._pass(raw, kind)
                return
            event = self._event_of(raw, kind)
        except wire.Garbage:
            event = e.Failed(_GARBAGE)
        if event is not None:
            self._work(event)

    def note_item(self, raw: bytes) -> bool:
        """An item that is about to pass; False if it cannot be read."""
        try:
            if self.attempt is not None:
                self.attempt.note_item(raw)
        except wire.Garbage:
            return False
        return True

    def answered(self, headers: Mapping[str, str]) -> None:
        """The head of the vendor's answer: what it says of limits, and what the client may see of it."""
        if (attempt := self.attempt) is None:
            return
        attempt.head = headers
        health = self._wiring.health
        if (limits := from_headers(headers, health.now())) is not None:
            health.note_limits(attempt.credential, limits, attempt.held_against)

    def lost(self, failure: Failure) -> None:
        """The link is gone, or the turn's own request has failed."""
        self._feed(e.Failed(failure))

    def expired(self) -> None:
        """The vendor will end the link. What already shows may still finish; what does not is sent anew."""
        if self.turn.phase is Phase.SENT:
            self._feed(e.Failed(Failure(FailureKind.CONNECTION_EXPIRED)))

    def leave(self) -> None:
        """The client's socket is gone."""
        if (ticket := self._ticket) is not None:
            # it waits for a credential, and nobody waits for it any more
            self._ticket = None
            ticket.leave()
            self._answered(e.ClientLeft())
        else:
            self._feed(e.ClientLeft())

    def ride(self, link: AnyLink, response_id: str) -> None:
        """Take over a response that the upstream has begun on `link` by itself."""
        self._engage(Attempt(link.credential))
        self._attach(link)
        assert self.attempt is not None
        self.attempt.response_id = response_id
        self.attempt.pin = self.turn.session.pin

    def take_over(self, events: list[tuple[bytes, EventKind] | e.Failed]) -> None:
        """Events that came before the ones the link will bring."""
        for event in events:
            self._feed(event)

    def _feed(self, item: tuple[bytes, EventKind] | e.Event) -> None:
        self._arrived.append(item)
        if self._at_work:
            self.full = len(self._arrived) > BACKLOG
        else:
            self._work(self._next())

    # --- at work ---

    def _work(self, event: e.Event | None) -> None:
        """Deal with an event and with all that has come since, until that is done or an answer is still to come."""
        self._at_work = True
        turn = self.turn
        try:
            while event is not None:
                self._todo.extend(turn.handle(event, self._loop.time()))
                if not self._perform():
                    # what comes meanwhile waits its turn
                    if (attempt := self.attempt) is not None and attempt.link is not None:
                        attempt.link.shut()
                    return
                event = self._next() if self._arrived else None
        except Exception as error:  # noqa: BLE001 - a fault of ours ends this turn, and nothing else
            self._finish(error)
            return
        self._rest()

    def _perform(self) -> bool:
        """Perform what is to be done; False if an answer is still to come."""
        todo = self._todo
        while todo:
            command = todo.popleft()
            kind = type(command)
            if self._arrived and kind in _COSTLY and any(isinstance(item, e.ClientLeft) for item in self._arrived):
                # nobody waits for it any more, so it is neither opened nor sent
                todo.clear()
                todo.extend(self.turn.handle(e.ClientLeft(), self._loop.time()))
                continue
            answer = _PERFORM[kind](self, command)
            if answer is None:
                continue
            if answer is LATER:
                return False
            todo.extend(self.turn.handle(answer, self._loop.time()))
        return True

    def _next(self) -> e.Event | None:
        """The next event for the machine; None if nothing is here, or the turn is over."""
        while self._arrived and self.turn.state is not State.ENDED:
            item = self._arrived.popleft()
            if not isinstance(item, tuple):
                if self._due(item):
                    return item
            elif item[1] is EventKind.ASIDE:
                self._pass(*item)
            elif (event := self._understand(*item)) is not None:
                return event
        return None

    def _rest(self) -> None:
        state = self.turn.state
        if state is State.ENDED:
            self._finish(None)
            return
        self._at_work = False
        attempt = self.attempt
        link = attempt.link if attempt is not None else None
        if link is not None and state is State.SHOWING:
            link.open(self)
        if self.full:
            self.full = False
            if link is not None:
                link.proceed()

    def _answered(self, event: e.Event) -> None:
        """The answer that was still to come."""
        if not self._over:
            self._work(event)

    def _ask(self, question: Coroutine[Any, Any, e.Event]) -> _Later:
        """Let a task find the answer."""
        task = self._loop.create_task(self._find(question), name=f"turn:{self.request.turn_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return LATER

    async def _find(self, question: Coroutine[Any, Any, e.Event]) -> None:
        try:
            answer = await question
        except asyncio.CancelledError:
            # nobody waits for the answer any more
            self._finish(None)
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours ends this turn, and nothing else
            self._finish(error)
        else:
            self._answered(answer)

    def _finish(self, error: Exception | None) -> None:
        """The turn is over, by its own end or by a fault of ours; exactly once."""
        if self._over:
            return
        self._over = self._at_work = True
        self._wiring.pulse.leave(self)
        link = self.link
        if link is not None:
            # what its link may still bring comes behind what is here already
            link.held = True
            if error is not None:
                # and shall not be taken for the next turn's
                link.retired = True
        self._detach()
        try:
            if self._arrived:
                self._hand_back(link)
        finally:
            if error is not None:
                self.client.broke(self, error)
            self.client.ended(self)
            if link is not None:
                link.held = False
                link.proceed()

    def _hand_back(self, link: AnyLink | None) -> None:
        """Events behind the turn's end belong to whoever comes next on this lane: a steered response's successor."""
        rest = deque(item for item in self._arrived if isinstance(item, tuple | e.Failed))
        self._arrived.clear()
        self.full = False
        while link is not None and rest:
            item = rest.popleft()
            if not isinstance(item, tuple):
                continue  # the link is gone, and nobody is on it
            try:
                self.client.aside(link, item[0], self.request.lane)
            except wire.Garbage:
                link.retired = True
            if (successor := link.listener(self.request.lane)) is not None:
                successor.take_over(list(rest))
                break
        if link is not None and link.retired:
            self.client.links.settle()

    def _pass(self, raw: bytes, kind: EventKind) -> None:
        if kind is EventKind.ASIDE:
            self.client.note_steer(raw, self.request.lane)
        elif kind is EventKind.ITEM and self.attempt is not None:
            self.attempt.note_item(raw)
        elif kind is EventKind.ANNOUNCEMENT:
            shown = self._announced(raw)
            if shown is None:
                return
            raw = shown
        elif not self._shows(raw):
            return
        self.client.send((raw,))

    def _due(self, event: e.Event) -> bool:
        # a lost link can come behind the event that made it pointless
        if isinstance(event, e.HoldElapsed):
            return self.turn.state is State.WAITING
        return self.turn.state in _AWAITING or isinstance(event, e.ClientLeft)

    # --- what the upstream says ---

    def _understand(self, raw: bytes, kind: EventKind) -> e.Event | None:
        try:
            return self._event_of(raw, kind)
        except wire.Garbage:
            return e.Failed(_GARBAGE)

    def _event_of(self, raw: bytes, kind: EventKind) -> e.Event | None:
        attempt = self.attempt
        if kind in _ENDINGS:
            return self._ending_of(raw, kind)
        if kind is EventKind.ANNOUNCEMENT:
            shown = self._announced(raw)
            return e.Announced(shown) if shown is not None else None
        if not self._shows(raw):
            return None
        if attempt is not None and kind is EventKind.ITEM:
            attempt.note_item(raw)
        return e.OutputBegan(raw)

    def _announced(self, raw: bytes) -> bytes | None:
        """What an announcement says to us; the answer is what the client may see of it."""
        kind, attempt = wire.event_type(raw), self.attempt
        if kind in _OF_EVERY_TURN:
            if attempt is not None and kind == "response.created":
                attempt.response_id = wire.response_of(raw)[0]
                if self.request.background:
                    # its client may leave and ask for it later
                    self._wiring.sessions.note_owner(self.turn.session.tenant, attempt.response_id, attempt.credential)
            return raw if self.turn.mode is Mode.INCREMENTAL else self._continuing(raw)
        if attempt is not None and kind == "codex.rate_limits":
            health = self._wiring.health
            if (limits := from_event(raw, health.now())) is not None:
                health.note_limits(attempt.credential, limits, attempt.held_against)
        presentation = self.client.presentation
        if presentation is not None and not presentation.shows(kind):
            return None
        return without_account(raw)

    def _shows(self, raw: bytes) -> bool:
        """Whether the client may see this output; what begins with `response.` is for everybody."""
        presentation = self.client.presentation
        return presentation is None or raw.startswith(_OF_A_RESPONSE) or presentation.shows(wire.event_type(raw))

    def _ending_of(self, raw: bytes, kind: EventKind) -> e.Event | None:
        if kind is EventKind.FAILURE and wire.event_type(raw) == "error":
            return e.Failed(classify_event(raw, now=self._wiring.health.now()))
        response = wire.response_of(raw)
        if self._is_echo(response[0], kind):
            return None
        if kind is EventKind.FAILURE:
            return e.Failed(classify_event(raw, now=self._wiring.health.now()))
        if self.attempt is not None:
            self.attempt.response = response
        return e.Completed(raw if self.turn.mode is Mode.INCREMENTAL else self._continuing(raw))

    def _continuing(self, raw: bytes) -> bytes:
        """An event that names its response, as the client has asked for it, although the vendor was sent the whole."""
        previous = self.request.previous_response_id
        return raw if previous is None else wire.continuing(raw, previous)

    def _is_echo(self, response_id: str, kind: EventKind) -> bool:
        """Whether this is the second ending of the turn before: some vendors end a response twice (protocol.md 3.3)."""
        link = self.link
        if link is None:
            return False
        lane = self.attempt.lane if self.attempt is not None else None
        ended = link.ended.get(lane)
        if ended is None:
            return False
        if self.response_id:
            return response_id != self.response_id and response_id == ended
        if ended == "":
            # that one ended by an error that named no response; the echo that may follow is this
            del link.ended[lane]
            return kind is EventKind.FAILURE
        return response_id == ended

    # --- commands that ask ---

    def _resolve(self, command: c.Resolve) -> Answer:
        memory, response_id = self.client.memory, command.response_id
        found = None
        if response_id is not None:
            if memory.evicted(response_id):
                return e.ParentGone()
            found = memory.recall(response_id)
        if found is None or command.needs:
            return self._ask(self._look_up(command, found))
        self.client.join(found[1])
        return e.Resolved(*found)

    async def _look_up(self, command: c.Resolve, found: tuple[Parent, Session] | None) -> e.Event:
        """What of it is not `found` yet."""
        sessions, session = self._wiring.sessions, self.turn.session
        try:
            if command.response_id is not None and found is None:
                found = await sessions.look_up(session, command.response_id)
                if found is None:
                    return e.ParentGone()
            owner = await self._owner(session, command.needs) if command.needs else None
        except StoreUnavailable as error:
            self._wiring.metrics.store_errors.inc(error.reason)
            return e.StoreLost()
        except Unknown as unknown:
            return e.OwnerUnknown(unknown.thing)
        parent, session = found if found is not None else (None, session)
        self.client.join(session)
        if owner is None:
            return e.Resolved(parent, session)
        # a conversation is in one project, what was compacted is read by its whole organisation
        only = owner.credential if self.request.binding == wire.CONVERSATION else None
        return e.Resolved(parent, session, owner.boundary, only)

    async def _owner(self, session: Session, needs: tuple[str, ...]) -> Owner | None:
        try:
            return await self._wiring.sessions.owner(session.tenant, needs)
        except StoreUnavailable:
            if self.request.binding == wire.CONVERSATION:
                raise
            return None  # what was compacted is most probably of the session's own organisation

    def _place(self, command: c.Place) -> Answer:
        self._detach()
        placement = self._wiring.placement
        placed = placement.place(command.wish)
        if placed is None:
            self._ticket = placement.wait(command.wish, self._placed_later)
            if self._ticket is not None:
                return LATER
            placed = placement.refuse(command.wish)
        return self._seated(placed)

    def _placed_later(self, placed: e.Placed | e.NonePlaced) -> None:
        self._ticket = None
        self._answered(self._seated(placed))

    def _seated(self, placed: e.Placed | e.NonePlaced) -> e.Event:
        if isinstance(placed, e.Placed):
            held_against = self._wiring.health.ailing(placed.credential, self.request.model)
            self._engage(Attempt(placed.credential, held_against, placed.trial))
        return placed

    def _engage(self, attempt: Attempt) -> None:
        """From its placement on, a turn counts as in flight on its credential."""
        self.attempt = attempt
        self._placed_at[attempt.credential.name] = self._wiring.health.now()
        self._wiring.placement.engage(attempt.credential)

    def _move_pin(self, command: c.MovePin) -> Answer:
        return self._ask(self._compare_and_set(command))

    async def _compare_and_set(self, command: c.MovePin) -> e.Event:
        session, metrics = self.turn.session, self._wiring.metrics
        metrics.round_trips.inc("move_pin")
        try:
            result = await self._wiring.store.move_pin(
                session.sid, session.name, session.tenant, command.expected, command.to
            )
        except StoreUnavailable as error:
            metrics.store_errors.inc(error.reason)
            return e.PinUnwritten()
        if isinstance(result, Stale):
            metrics.pin_races.inc()
            return e.PinUnwritten() if result.pin is None else e.PinStale(result.pin, result.incremental_disabled)
        metrics.pin_resets.inc(command.to.because)
        self._log("pin moved", reason=command.to.because)
        return e.PinMoved(result.pin)

    def _open(self, command: c.Open) -> Answer:
        assert self.attempt is not None
        self.attempt.pin = self.turn.session.pin
        link = self.client.links.ready(command.credential, self.request)
        if link is None:
            return self._ask(self._dial(command))
        return self._opened(link)

    async def _dial(self, command: c.Open) -> e.Event:
        try:
            link = await self.client.links.dial(command.credential, self.request)
        except Refused as refused:
            return e.Failed(refused.failure)
        if link.limits is not None:
            self._wiring.health.note_limits(command.credential, link.limits)
        return self._opened(link)

    def _opened(self, link: AnyLink) -> e.Event:
        self._attach(link)
        return e.Opened(link.holds(self.request.previous_response_id or ""))

    def _attach(self, link: AnyLink) -> None:
        assert self.attempt is not None
        self.attempt.link, self.attempt.lane = link, link.lane_of(self.request.lane)
        self.attempt.heard = self._loop.time()
        link.attach(self.request.lane, self)

    def _rebuild(self, command: c.Rebuild) -> Answer:
        return self._ask(self._rebuild_frame(command))

    async def _rebuild_frame(self, command: c.Rebuild) -> e.Event:
        session, boundary = self.turn.session, command.credential.boundary
        try:
            chain = await self._chain(session, command.parent)
            origins = await self._origins(session, boundary, command.strip)
            rebuilt = transcript.rebuild(chain, self._items, boundary=boundary, origins=origins)
        except ChainBroken as broken:
            self._log("chain broken", reason=broken.reason)
            return e.ChainLost()
        except Immovable as bound:
            return e.ChainBound(bound.boundary)
        except StoreUnavailable as error:
            self._wiring.metrics.store_errors.inc(error.reason)
            return e.StoreLost()
        if rebuilt.dropped:
            self._wiring.metrics.boundary_drops.inc(by=rebuilt.dropped)
            self._log("reasoning left behind", count=rebuilt.dropped)
        frame = wire.rewrite(self.request.raw, input=rebuilt.input, drop_previous=True)
        self._wiring.metrics.replay_bytes.observe(len(frame))
        return e.Rebuilt(frame)

    async def _chain(self, session: Session, parent: Parent | None) -> list[transcript.StoredTurn]:
        if parent is None:
            return []
        if parent.meta is None or not parent.known:
            raise ChainBroken("not_kept")
        self._wiring.metrics.round_trips.inc("chain")
        return await self._wiring.journal.chain(session.sid, parent.meta.turn_id)

    async def _origins(self, session: Session, boundary: str, strip: bool) -> dict[str, str] | None:
        if strip:
            return {}
        if session.boundaries <= {boundary}:
            return None
        self._wiring.metrics.round_trips.inc("origins")
        return await self._wiring.journal.origins(session.sid)

    def _send(self, command: c.Send) -> Answer:
        attempt = self.attempt
        assert attempt is not None and attempt.link is not None
        model, metrics = attempt.credential.upstream_model(self.request.model), self._wiring.metrics
        frame = command.frame if model == self.request.model else wire.rewrite(command.frame, model=model)
        metrics.sends.inc(attempt.credential.name, command.mode.value)
        if command.again:
            metrics.repeats.inc()
        if command.mode is Mode.REPLAY:
            metrics.replays.inc(command.cause)
            self._log("replay", reason=command.cause, bytes=len(frame))
        try:
            if attempt.link.retired:
                raise LinkClosed
            attempt.link.send(frame, self.request.lane)
        except LinkClosed:
            return e.Failed(Failure(FailureKind.CONNECTION_EXPIRED, code="closed_before_send"))
        attempt.heard = self._loop.time()
        return None

    def _commit(self, command: c.Commit) -> Answer:
        attempt = self.attempt
        assert attempt is not None and attempt.link is not None
        for thing in attempt.compactions():
            self._wiring.sessions.note_owner(self.turn.session.tenant, thing, attempt.credential)
        if not self.request.recorded:
            return e.Committed(None, False)
        commit = attempt.commit(self.turn, self._items, keep=self.client.keeps_transcript)
        response_id = commit.meta.response_id
        attempt.link.mint(response_id, self.request.lane)
        attempt.link.ended[attempt.lane] = response_id
        self._wiring.metrics.round_trips.inc("commit")
        began = self._loop.time()
        self._wiring.journal.submit(commit, lambda landed: self._committed(commit, landed, began))
        return LATER

    def _committed(self, commit: transcript.Commit, landed: Landed, began: float) -> None:
        metrics, meta = self._wiring.metrics, commit.meta
        answer = e.Committed(None, False)
        if isinstance(landed, Exception) and not isinstance(landed, JournalFull):
            self._finish(landed)
            return
        if isinstance(landed, JournalFull):
            metrics.commits.inc("lost")
            self._log("turn not kept", reason="journal_full")
            meta = replace(meta, kept=False)
        else:
            metrics.commit_seconds.observe(self._loop.time() - began)
            if isinstance(landed, Queued):
                metrics.commits.inc("queued")
            else:
                metrics.commits.inc(landed.status)
                answer = e.Committed(landed.pin, landed.incremental_disabled)
                if landed.kept is not meta.kept:
                    meta = replace(meta, kept=landed.kept)
        self.client.memory.note(meta.response_id, meta, self.turn.session, self.request.lane)
        self._answered(answer)

    # --- commands that tell ---

    def _hold(self, command: c.Hold) -> None:
        self._held_since = self._loop.time()

    def _relay(self, command: c.Relay) -> None:
        self._released()
        self.client.send(command.frames)

    def _tell(self, command: c.Tell) -> None:
        self._released()
        last = command.verbatim
        if last is None and command.reply is not None:
            last = command.reply.event(self.request.lane)
        self.client.send((*command.held, last) if last is not None else command.held)

    def _blame(self, command: c.Blame) -> None:
        if not command.again:
            self._wiring.metrics.failures.inc(command.credential.name, command.failure.kind.value)
            if command.failure.limits is not None:
                self._wiring.health.note_limits(command.credential, command.failure.limits)
        if not command.void:
            self._wiring.health.blame(
                command.credential,
                command.failure,
                self.request.model,
                confirmed=command.confirmed,
                evidence=self.request.turn_id,
                began=self._placed_at.get(command.credential.name, 0.0),
            )

    def _retract(self, command: c.Retract) -> None:
        self._wiring.health.retract(command.credential, self.request.turn_id)

    def _absolve(self, command: c.Absolve) -> None:
        attempt, lane = self.attempt, self.request.lane
        if attempt is not None and (attempt.link is None or attempt.link.stores(lane)):
            # what was answered here says nothing of who was not asked
            self._wiring.health.absolve(command.credential, attempt.held_against, self.request.turn_id)

    def _abandon(self, command: c.Abandon) -> None:
        ended = self.response_id
        self.client.drop_steers(self.request.lane)
        self._held_since = None
        link = self._detach()
        if link is not None:
            link.ended[link.lane_of(self.request.lane)] = ended
            if self.request.previous_response_id is not None:
                link.forget(self.request.previous_response_id, self.request.lane)
            last = self.turn.failures[-1][1] if self.turn.failures else None
            if last is None or not last.row.verbatim:
                # whatever else may still come on this lane shall not be taken for the next turn's
                link.retired = True
            self.client.links.settle()
        # what the abandoned attempt has still sent belongs to no attempt; the client's leaving does
        self._arrived = deque(item for item in self._arrived if isinstance(item, e.ClientLeft))
        self.full = False

    def _fail_over(self, command: c.FailOver) -> None:
        reason, phase = command.failure.kind.value, command.phase.value
        self._wiring.metrics.failovers.inc(reason, phase)
        self._log("failover", reason=reason, phase=phase, code=command.failure.code)

    def _end(self, command: c.End) -> None:
        metrics, outcome = self._wiring.metrics, command.outcome
        metrics.turns.inc(outcome.value)
        metrics.turn_seconds.observe(self._loop.time() - self._began)
        if self.turn.session.avoided is not None:
            self._wiring.sessions.interrupted(self.turn.session)
        if outcome is c.Outcome.REQUEST_FAULT and self.turn.parent is not None:
            self.client.memory.evict(self.turn.parent, self.request.lane)
        # that a turn went well is counted, and not worth a line
        self._log(
            "turn ended", logging.DEBUG if outcome is c.Outcome.COMPLETED else logging.INFO, outcome=outcome.value
        )

    # --- time ---

    def tick(self, now: float) -> None:
        """Time passes: announcements are not held for ever, and an upstream is not waited for for ever."""
        if self._held_since is not None and now - self._held_since >= self._wiring.bounds.hold:
            self._feed(e.HoldElapsed())
        attempt, passed = self.attempt, False
        link = attempt.link if attempt is not None else None
        if link is not None:
            passed, self._moved = link.passed() or self._moved, False
        if passed:
            self._quiet_since = now
        elif now - self._quiet_since > self._wiring.bounds.quiet:
            self._quiet_since = now
            self.client.keep_alive(self.request.lane)
        if attempt is None or attempt.link is None or self.turn.state not in _RUNNING:
            return
        if self.client.behind:
            # nothing is read for it, so nothing could be heard
            attempt.heard = now
            attempt.link.keep_alive()
        elif passed:
            attempt.heard = now
            if now - self._alive_at > ALIVE_EVERY:
                self._alive_at = now
                attempt.link.keep_alive()
        elif now - attempt.heard > self._patience(attempt):
            self._feed(e.Failed(Failure(FailureKind.TRANSPORT_LOST, code="silent")))

    def _patience(self, attempt: Attempt) -> float:
        bounds = self._wiring.bounds
        if not self.request.streamed or (attempt.link is not None and attempt.link.commented):
            return bounds.answer  # nothing but its whole is to come, or the vendor says that it is at work
        begun = attempt.response_id or self.turn.state is State.SHOWING
        return bounds.silence if begun else bounds.first_event

    def _released(self) -> None:
        if self._held_since is not None:
            self._wiring.metrics.hold_seconds.observe(self._loop.time() - self._held_since)
            self._held_since = None

    # --- leaving ---

    def _detach(self) -> AnyLink | None:
        """Leave the link, if the turn is on one; the answer is that link."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return None
        self._wiring.placement.release(attempt.credential, attempt.trial)
        if attempt.link is None:
            return None
        attempt.link.detach(self.request.lane, self)
        if attempt.link.retired:
            self.client.links.settle()
        return attempt.link

    def _log(self, message: str, level: int = logging.INFO, **fields: Any) -> None:
        if not log.isEnabledFor(level):
            return
        credential = self.turn.credential
        log.log(
            level,
            message,
            extra={
                "session": self.turn.session.sid,
                "turn": self.request.turn_id,
                "credential": credential.name if credential is not None else None,
                "lane": self.request.lane,
                **fields,
            },
        )


_AWAITING = frozenset({State.NEW, *_RUNNING})
_GARBAGE = Failure(FailureKind.TRANSPORT_LOST, code="garbage")


def broken(driver: TurnDriver, error: Exception) -> ErrorReply:
    """What a client is told of a fault of ours; it is logged and counted here."""
    session, turn = driver.turn.session.sid, driver.request.turn_id
    log.error("turn broke", exc_info=error, extra={"session": session, "turn": turn})
    driver.client.wiring.metrics.turns.inc("broken")
    return errors.broken(error, "turn")


def _with_words(items: bytes, words: list[bytes]) -> bytes:
    """A turn's own items, and behind them the steers that were accepted for it before it began."""
    return b"[" + b",".join(part for part in (items.strip()[1:-1], *words) if part.strip()) + b"]"


_PERFORM: dict[type, Callable[[TurnDriver, Any], Answer]] = {
    c.Resolve: TurnDriver._resolve,
    c.Place: TurnDriver._place,
    c.MovePin: TurnDriver._move_pin,
    c.Open: TurnDriver._open,
    c.Rebuild: TurnDriver._rebuild,
    c.Send: TurnDriver._send,
    c.Hold: TurnDriver._hold,
    c.Relay: TurnDriver._relay,
    c.Commit: TurnDriver._commit,
    c.Blame: TurnDriver._blame,
    c.Retract: TurnDriver._retract,
    c.Absolve: TurnDriver._absolve,
    c.Abandon: TurnDriver._abandon,
    c.FailOver: TurnDriver._fail_over,
    c.Tell: TurnDriver._tell,
    c.End: TurnDriver._end,
}
