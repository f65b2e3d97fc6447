"""Drives a turn: performs the machine's commands, feeds it what happens, and has no opinions.

The one thing it does by itself is to pass plain output straight from the link to the client while the machine says that
the turn is showing; everything else goes through the machine, in the order in which it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from broker.domain import commands as c
from broker.domain import events as e
from broker.domain import transcript, wire
from broker.domain.classify import classify_event
from broker.domain.continuation import Mode, Parent
from broker.domain.failure import Failure, FailureKind, Phase
from broker.domain.memory import SocketMemory
from broker.domain.session import Session
from broker.domain.transcript import Commit, Immovable, TurnMeta
from broker.domain.turn import Request, State, Turn
from broker.domain.wire import EventKind
from broker.edge.attempt import Attempt
from broker.edge.links import Links
from broker.edge.wiring import Wiring
from broker.store.connection import StoreUnavailable
from broker.store.journal import JournalFull, Queued
from broker.store.sessions import ChainBroken, Stale
from broker.upstream.connection import Link, LinkClosed, LinkLost, Refused
from broker.upstream.passage import Gate, Sink

log = logging.getLogger(__name__)

BACKLOG = 64
"""Events that may wait for a turn before its link is held up."""

_PLAIN = frozenset({EventKind.OUTPUT, EventKind.ITEM, EventKind.ANNOUNCEMENT, EventKind.ASIDE})
_ENDINGS = frozenset({EventKind.TERMINAL, EventKind.FAILURE})
_COSTLY = frozenset({c.Open, c.Send})
_RUNNING = frozenset({State.WAITING, State.SHOWING})


class Client(Protocol):
    """What a turn needs of the client it serves, whichever way that client is connected."""

    wiring: Wiring
    links: Links
    memory: SocketMemory
    sink: Sink | None

    @property
    def keeps_transcript(self) -> bool:
        """Whether this client's turns may be recorded."""

    @property
    def sending(self) -> bool:
        """Whether the client is behind with reading."""

    async def send(self, raw: bytes) -> None:
        """One event to the client."""

    async def send_all(self, frames: tuple[bytes, ...]) -> None:
        """Several events to the client."""

    def join(self, session: Session) -> None:
        """The client has found back to a session."""

    async def aside(self, link: Link, raw: bytes, lane: str | None) -> None:
        """An event that belongs to no running turn."""

    def note_steer(self, raw: bytes, lane: str | None) -> None:
        """An answer to a steer."""

    def take_steers(self, lane: str | None, target: str | None) -> list[bytes]:
        """The accepted steers of the response `target` that the next response on a lane answers."""

    def drop_steers(self, lane: str | None) -> None:
        """The response they were for has failed; they went with it."""


class TurnDriver:
    """One turn on its way, between one client and whichever link serves it."""

    def __init__(self, client: Client, request: Request, session: Session) -> None:
        self.client = client
        self.request = request
        self.turn = Turn(request, session, client.wiring.policy)
        self.attempt: Attempt | None = None
        self._wiring = client.wiring
        self._items = request.items
        self._arrived: deque[tuple[bytes, EventKind] | e.Event] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = False
        self._held_since: float | None = None
        self._hold_timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    @property
    def response_id(self) -> str:
        """The id of the response that answers this turn; empty as long as it has none."""
        return self.attempt.response_id if self.attempt is not None else ""

    @property
    def link(self) -> Link | None:
        """The link the turn runs on."""
        return self.attempt.link if self.attempt is not None else None

    # --- what comes in ---

    async def receive(self, raw: bytes, kind: EventKind) -> None:
        """An event from the link. Plain output of a showing turn goes to the client from here, nothing overtakes."""
        if self.attempt is not None:
            self.attempt.heard = self._loop.time()
        if self._idle and kind in _PLAIN and self.turn.showing and not self._arrived:
            await self._pass(raw, kind)
            return
        self._feed((raw, kind))
        if len(self._arrived) > BACKLOG:
            self._room.clear()
            await self._room.wait()

    def gate(self) -> Sink | Gate:
        """Plain output may pass while the turn shows and nothing waits to be dealt with."""
        sink = self.client.sink
        if sink is None:
            return Gate.ALL
        if not self._idle or self._arrived or self.attempt is None:
            return Gate.WAIT
        return sink if self.turn.state is State.SHOWING else Gate.ONE

    def passed(self) -> None:
        """Output has reached the client. A pong or half a frame is no sign that the upstream is at work; but while the
        client was behind, nothing was read, and nothing could be heard."""
        if self.attempt is not None:
            self.attempt.heard = self._loop.time()

    def note_item(self, raw: bytes) -> None:
        """An item that has passed."""
        if self.attempt is not None:
            self.attempt.note_item(raw)

    def lost(self, failure: Failure) -> None:
        """The link is gone."""
        self._feed(e.Failed(failure))

    def expired(self) -> None:
        """The vendor will end the link. What already shows may still finish; what does not is sent anew."""
        if self.turn.phase is Phase.SENT:
            self._feed(e.Failed(Failure(FailureKind.CONNECTION_EXPIRED)))

    def leave(self) -> None:
        """The client's socket is gone."""
        self._feed(e.ClientLeft())

    def ride(self, link: Link, response_id: str) -> None:
        """Take over a response that the upstream has begun on `link` by itself."""
        self._engage(Attempt(link.credential))
        self._attach(link)
        assert self.attempt is not None
        self.attempt.response_id = response_id
        self.attempt.pin = self.turn.session.pin
        self._watch(self._wiring.bounds.silence)

    def _feed(self, item: tuple[bytes, EventKind] | e.Event) -> None:
        self._arrived.append(item)
        self._wake.set()

    # --- the loop ---

    async def run(self, first: e.Event) -> None:
        """Take the turn from its first event to its end."""
        words = self.client.take_steers(self.request.lane, self.request.previous_response_id)
        self._items = _with_words(self.request.items, words)
        try:
            await self._handle(first)
            while self.turn.state is not State.ENDED:
                await self._handle(await self._next())
        except BaseException:
            # what its link may still bring for this turn shall not be taken for the next one's
            if self.link is not None:
                self.link.retired = True
            raise
        finally:
            link = self._detach()
            for timer in (self._hold_timer, self._silence_timer):
                if timer is not None:
                    timer.cancel()
            await self._hand_back(link)

    async def _next(self) -> e.Event:
        while True:
            while not self._arrived:
                self._wake.clear()
                self._idle = True
                if (link := self.link) is not None:
                    link.proceed()
                await self._wake.wait()
            self._idle = False
            item = self._arrived.popleft()
            if len(self._arrived) <= BACKLOG:
                self._room.set()
            if not isinstance(item, tuple):
                if self._due(item):
                    return item
            elif item[1] is EventKind.ASIDE:
                await self._pass(*item)
            elif (event := self._understand(*item)) is not None:
                return event

    def take_over(self, frames: list[tuple[bytes, EventKind]]) -> None:
        """Events that came before the ones the link will bring."""
        for frame in frames:
            self._feed(frame)

    async def _pass(self, raw: bytes, kind: EventKind) -> None:
        if kind is EventKind.ASIDE:
            self.client.note_steer(raw, self.request.lane)
        elif kind is EventKind.ITEM and self.attempt is not None:
            self.attempt.note_item(raw)
        await self.client.send(raw)
        self.passed()

    def _due(self, event: e.Event) -> bool:
        # a timer or a lost link can come behind the event that made it pointless
        if isinstance(event, e.HoldElapsed):
            return self.turn.state is State.WAITING
        return self.turn.state in _RUNNING or isinstance(event, e.ClientLeft)

    def _understand(self, raw: bytes, kind: EventKind) -> e.Event | None:
        try:
            return None if self._is_echo(raw, kind) else self._event_of(raw, kind)
        except wire.Garbage:
            return e.Failed(Failure(FailureKind.TRANSPORT_LOST, code="garbage"))

    def _is_echo(self, raw: bytes, kind: EventKind) -> bool:
        """Whether this is the second ending of the turn before: some vendors end a response twice (protocol.md 3.3)."""
        link = self.link
        if link is None or kind not in _ENDINGS or wire.event_type(raw) == "error":
            return False
        response_id, ended = wire.response_of(raw)[0], link.ended.get(self.request.lane)
        if self.response_id:
            return response_id != self.response_id and response_id == ended
        if ended == "":
            # that one ended by an error that named no response; the echo that may follow is this
            del link.ended[self.request.lane]
            return kind is EventKind.FAILURE
        return ended is not None and response_id == ended

    def _event_of(self, raw: bytes, kind: EventKind) -> e.Event:
        if kind is EventKind.FAILURE:
            return e.Failed(classify_event(raw, now=self._wiring.health.now()))
        if kind is EventKind.TERMINAL:
            wire.response_of(raw)
            return e.Completed(raw)
        if kind is EventKind.ITEM and self.attempt is not None:
            self.attempt.note_item(raw)
        if kind is EventKind.ANNOUNCEMENT:
            if self.attempt is not None and wire.event_type(raw) == "response.created":
                self.attempt.response_id = wire.response_of(raw)[0]
            return e.Announced(raw)
        return e.OutputBegan(raw)

    async def _handle(self, event: e.Event) -> None:
        todo = deque(self.turn.handle(event, self._loop.time()))
        while todo:
            command = todo.popleft()
            if type(command) in _COSTLY and any(isinstance(item, e.ClientLeft) for item in self._arrived):
                # nobody waits for it any more, so it is neither opened nor sent
                todo = deque(self.turn.handle(e.ClientLeft(), self._loop.time()))
                continue
            answer = await _PERFORM[type(command)](self, command)
            if answer is not None:
                todo.extend(self.turn.handle(answer, self._loop.time()))

    # --- commands that ask ---

    async def _resolve(self, command: c.Resolve) -> e.Event:
        try:
            found = await self._wiring.sessions.resolve(self.client.memory, self.turn.session, command.response_id)
        except StoreUnavailable as error:
            self._wiring.metrics.store_errors.labels(error.reason).inc()
            return e.StoreLost()
        if found is None:
            return e.ParentGone()
        self.client.join(found[1])
        return e.Resolved(*found)

    async def _place(self, command: c.Place) -> e.Event:
        self._detach()
        placed = self._wiring.health.place(command.wish)
        if isinstance(placed, e.Placed):
            self._engage(Attempt(placed.credential, self._wiring.health.ailing(placed.credential, self.request.model)))
        return placed

    def _engage(self, attempt: Attempt) -> None:
        """From its placement on, a turn counts as in flight on its credential."""
        self.attempt = attempt
        self._wiring.health.in_flight[attempt.credential.name] += 1

    async def _move_pin(self, command: c.MovePin) -> e.Event:
        session, metrics = self.turn.session, self._wiring.metrics
        metrics.round_trips.labels("move_pin").inc()
        try:
            result = await self._wiring.store.move_pin(
                session.sid, session.name, session.tenant, command.expected, command.to
            )
        except StoreUnavailable as error:
            metrics.store_errors.labels(error.reason).inc()
            return e.PinUnwritten()
        if isinstance(result, Stale):
            metrics.pin_races.inc()
            return e.PinUnwritten() if result.pin is None else e.PinStale(result.pin, result.incremental_disabled)
        metrics.pin_resets.labels(command.to.because).inc()
        self._log("pin moved", reason=command.to.because)
        return e.PinMoved(result.pin)

    async def _open(self, command: c.Open) -> e.Event:
        assert self.attempt is not None
        self.attempt.pin = self.turn.session.pin
        try:
            link = await self.client.links.open(command.credential)
        except Refused as refused:
            return e.Failed(refused.failure)
        self._attach(link)
        return e.Opened(link.holds(self.request.previous_response_id or ""))

    def _attach(self, link: Link) -> None:
        assert self.attempt is not None
        self.attempt.link = link
        self.attempt.heard = self._loop.time()
        link.attach(self.request.lane, self)

    async def _rebuild(self, command: c.Rebuild) -> e.Event:
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
            self._wiring.metrics.store_errors.labels(error.reason).inc()
            return e.StoreLost()
        if rebuilt.dropped:
            self._wiring.metrics.boundary_drops.inc(rebuilt.dropped)
            self._log("reasoning left behind", count=rebuilt.dropped)
        frame = wire.rewrite(self.request.raw, input=rebuilt.input, drop_previous=True)
        self._wiring.metrics.replay_bytes.observe(len(frame))
        return e.Rebuilt(frame)

    async def _chain(self, session: Session, parent: Parent | None) -> list[transcript.StoredTurn]:
        if parent is None:
            return []
        if parent.meta is None or not parent.known:
            raise ChainBroken("not_kept")
        self._wiring.metrics.round_trips.labels("chain").inc()
        return await self._wiring.journal.chain(session.sid, parent.meta.turn_id)

    async def _origins(self, session: Session, boundary: str, strip: bool) -> dict[str, str] | None:
        if strip:
            return {}
        if session.boundaries <= {boundary}:
            return None
        self._wiring.metrics.round_trips.labels("origins").inc()
        return await self._wiring.journal.origins(session.sid)

    async def _send(self, command: c.Send) -> e.Event | None:
        attempt = self.attempt
        assert attempt is not None and attempt.link is not None
        model, metrics = attempt.credential.upstream_model(self.request.model), self._wiring.metrics
        frame = command.frame if model == self.request.model else wire.rewrite(command.frame, model=model)
        metrics.sends.labels(attempt.credential.name, command.mode.value).inc()
        if command.mode is Mode.REPLAY:
            metrics.replays.labels(command.cause).inc()
            self._log("replay", reason=command.cause, bytes=len(frame))
        try:
            if attempt.link.retired:
                raise LinkClosed
            await attempt.link.send(frame)
        except LinkClosed:
            return e.Failed(Failure(FailureKind.CONNECTION_EXPIRED, code="closed_before_send"))
        except LinkLost:
            return e.Failed(Failure(FailureKind.TRANSPORT_LOST, code="lost_in_send"))
        attempt.heard = self._loop.time()
        self._watch(self._wiring.bounds.first_event)
        return None

    async def _commit(self, command: c.Commit) -> e.Event:
        attempt = self.attempt
        assert attempt is not None and attempt.link is not None
        commit = attempt.commit(self.turn, self._items, command.raw, keep=self.client.keeps_transcript)
        response_id = commit.meta.response_id
        attempt.link.mint(response_id, self.request.lane)
        attempt.link.ended[self.request.lane] = response_id
        meta, answer = await self._write(commit)
        self.client.memory.note(response_id, meta, self.turn.session, self.request.lane)
        return answer

    async def _write(self, commit: Commit) -> tuple[TurnMeta, e.Committed]:
        began, metrics, meta = self._loop.time(), self._wiring.metrics, commit.meta
        metrics.round_trips.labels("commit").inc()
        try:
            result = await self._wiring.journal.commit(commit)
        except JournalFull:
            metrics.commits.labels("lost").inc()
            self._log("turn not kept", reason="journal_full")
            return replace(meta, kept=False), e.Committed(None, False)
        metrics.commit_seconds.observe(self._loop.time() - began)
        if isinstance(result, Queued):
            metrics.commits.labels("queued").inc()
            return meta, e.Committed(None, False)
        metrics.commits.labels(result.status).inc()
        return replace(meta, kept=result.kept), e.Committed(result.pin, result.incremental_disabled)

    # --- commands that tell ---

    async def _hold(self, command: c.Hold) -> None:
        self._held_since = self._loop.time()
        self._hold_timer = self._loop.call_later(self._wiring.bounds.hold, self._feed_if, self.attempt, e.HoldElapsed())

    async def _relay(self, command: c.Relay) -> None:
        self._released()
        await self.client.send_all(command.frames)
        self.passed()

    async def _tell(self, command: c.Tell) -> None:
        self._released()
        last = command.verbatim
        if last is None and command.reply is not None:
            last = command.reply.event(self.request.lane)
        await self.client.send_all((*command.held, last) if last is not None else command.held)

    async def _blame(self, command: c.Blame) -> None:
        if not command.again:
            self._wiring.metrics.failures.labels(command.credential.name, command.failure.kind.value).inc()
        self._wiring.health.blame(
            command.credential,
            command.failure,
            self.request.model,
            confirmed=command.confirmed,
            evidence=self.request.turn_id,
        )

    async def _absolve(self, command: c.Absolve) -> None:
        if self.attempt is not None:
            self._wiring.health.absolve(command.credential, self.attempt.held_against)

    async def _abandon(self, command: c.Abandon) -> None:
        ended = self.response_id
        self.client.drop_steers(self.request.lane)
        link = self._detach()
        if link is not None:
            link.ended[self.request.lane] = ended
            if self.request.previous_response_id is not None:
                link.forget(self.request.previous_response_id, self.request.lane)
            last = self.turn.failures[-1][1] if self.turn.failures else None
            if last is None or not last.row.verbatim:
                # whatever else may still come on this lane shall not be taken for the next turn's
                link.retired = True
            self.client.links.settle()
        # what the abandoned attempt has still sent belongs to no attempt; the client's leaving does
        self._arrived = deque(item for item in self._arrived if isinstance(item, e.ClientLeft))
        self._room.set()

    async def _fail_over(self, command: c.FailOver) -> None:
        reason, phase = command.failure.kind.value, command.phase.value
        self._wiring.metrics.failovers.labels(reason, phase).inc()
        if command.phase is Phase.SENT and command.failure.row.executed:
            self._wiring.metrics.repeats.inc()
        self._log("failover", reason=reason, phase=phase, code=command.failure.code)

    async def _end(self, command: c.End) -> None:
        metrics = self._wiring.metrics
        metrics.turns.labels(command.outcome.value).inc()
        metrics.turn_seconds.observe(self._loop.time() - self._started)
        if command.outcome is c.Outcome.REQUEST_FAULT and self.turn.parent is not None:
            self.client.memory.evict(self.turn.parent, self.request.lane)
        self._log("turn ended", outcome=command.outcome.value)

    # --- time ---

    def _watch(self, after: float) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        self._silence_timer = self._loop.call_later(after, self._check_silence, self.attempt)

    def _check_silence(self, attempt: Attempt | None) -> None:
        """One timer for a turn, not one for an event: it looks when the upstream was last heard."""
        if attempt is None or attempt is not self.attempt or self.turn.state not in _RUNNING:
            return
        bounds = self._wiring.bounds
        allowed = bounds.silence if attempt.response_id or self.turn.showing else bounds.first_event
        left = allowed - (self._loop.time() - attempt.heard)
        if left <= 0 and not self.client.sending:
            self._feed(e.Failed(Failure(FailureKind.TRANSPORT_LOST, code="silent")))
        else:
            self._watch(max(0.05, left))

    def _feed_if(self, attempt: Attempt | None, event: e.Event) -> None:
        if attempt is self.attempt:
            self._feed(event)

    def _released(self) -> None:
        if self._held_since is not None:
            self._wiring.metrics.hold_seconds.observe(self._loop.time() - self._held_since)
            self._held_since = None

    # --- leaving ---

    def _detach(self) -> Link | None:
        """Leave the link, if the turn is on one; the answer is that link."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return None
        self._wiring.health.in_flight[attempt.credential.name] -= 1
        if attempt.link is None:
            return None
        attempt.link.detach(self.request.lane, self)
        self.client.links.settle()
        return attempt.link

    async def _hand_back(self, link: Link | None) -> None:
        """Events behind the turn's end belong to whoever comes next on this lane: a steered response's successor."""
        rest = [item for item in self._arrived if isinstance(item, tuple)]
        self._arrived.clear()
        self._room.set()
        while link is not None and rest:
            await self.client.aside(link, rest.pop(0)[0], self.request.lane)
            if (successor := link.listener(self.request.lane)) is not None:
                # at once, before the link can bring what comes behind
                successor.take_over(rest)
                break

    def _log(self, message: str, **fields: Any) -> None:
        credential = self.turn.credential
        log.info(
            message,
            extra={
                "session": self.turn.session.sid,
                "turn": self.request.turn_id,
                "credential": credential.name if credential is not None else None,
                "lane": self.request.lane,
                **fields,
            },
        )


def _with_words(items: bytes, words: list[bytes]) -> bytes:
    """A turn's own items, and behind them the steers that were accepted for it before it began."""
    return b"[" + b",".join(part for part in (items.strip()[1:-1], *words) if part.strip()) + b"]" if words else items


_PERFORM: dict[type, Callable[[TurnDriver, Any], Awaitable[e.Event | None]]] = {
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
    c.Absolve: TurnDriver._absolve,
    c.Abandon: TurnDriver._abandon,
    c.FailOver: TurnDriver._fail_over,
    c.Tell: TurnDriver._tell,
    c.End: TurnDriver._end,
}
