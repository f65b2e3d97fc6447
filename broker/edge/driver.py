"""Drives a turn: performs the machine's commands, feeds it what happens, and has no opinions.

The one thing it does by itself is to pass plain output straight from the link to the client while the machine says that
the turn is showing; everything else goes through the machine, in the order in which it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from broker.domain import commands as c
from broker.domain import events as e
from broker.domain import transcript, wire
from broker.domain.classify import classify_event
from broker.domain.continuation import Mode, Parent
from broker.domain.credential import Credential
from broker.domain.failure import Failure, FailureKind, Phase
from broker.domain.health import AuthHealth
from broker.domain.session import Session
from broker.domain.transcript import Commit, Immovable, TurnItems, TurnMeta
from broker.domain.turn import Request, State, Turn
from broker.domain.wire import EventKind
from broker.store.connection import StoreUnavailable
from broker.store.journal import JournalFull, Queued
from broker.store.sessions import ChainBroken, Stale
from broker.upstream.connection import Link, LinkClosed, Refused

if TYPE_CHECKING:
    from broker.edge.websocket import ClientSocket

log = logging.getLogger(__name__)

BACKLOG = 64
"""Events that may wait for a turn before its link is held up."""

_PLAIN = frozenset({EventKind.OUTPUT, EventKind.ITEM, EventKind.ANNOUNCEMENT, EventKind.ASIDE})


class TurnDriver:
    """One turn on its way, between one client socket and whichever link serves it."""

    def __init__(self, socket: ClientSocket, request: Request, session: Session) -> None:
        self.socket = socket
        self.node = socket.node
        self.request = request
        self.turn = Turn(request, session, self.node.policy)
        self.link: Link | None = None
        self.response_id = ""
        self._items = request.items
        self._credential: Credential | None = None
        self._ailing: list[AuthHealth] = []
        self._outputs: list[tuple[int, bytes]] = []
        self._arrived: deque[tuple[bytes, EventKind] | e.Event] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = False
        self._attempt = 0
        self._heard = 0.0
        self._held_since: float | None = None
        self._hold_timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._left_link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    # --- what comes in ---

    async def receive(self, raw: bytes, kind: EventKind) -> None:
        """An event from the link. Plain output of a showing turn goes to the client from here, nothing overtakes."""
        self._heard = self._loop.time()
        if kind is EventKind.ITEM:
            self._outputs.append(wire.done_item(raw))
        if self._idle and kind in _PLAIN and self.turn.showing and not self._arrived:
            await self._pass(raw, kind)
            return
        self._feed((raw, kind))
        if len(self._arrived) > BACKLOG:
            self._room.clear()
            await self._room.wait()

    def ride(self, link: Link, response_id: str) -> None:
        """Take over a response that the upstream has begun on `link` by itself."""
        self.link, self._credential, self.response_id = link, link.credential, response_id
        link.attach(self.request.lane, self)
        self.node.health.in_flight[link.credential.name] += 1
        self._heard = self._loop.time()
        self._watch(self._attempt, self.node.bounds.silence)

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

    def _feed(self, item: tuple[bytes, EventKind] | e.Event) -> None:
        self._arrived.append(item)
        self._wake.set()

    # --- the loop ---

    async def run(self, first: e.Event) -> None:
        """Take the turn from its first event to its end."""
        self._items = _with_words(self.request.items, self.socket.take_steers(self.request.lane))
        try:
            await self._handle(first)
            while self.turn.state is not State.ENDED:
                await self._handle(await self._next())
        finally:
            self._detach()
            self._cancel_timers()
            await self._hand_back()

    async def _next(self) -> e.Event:
        while True:
            while not self._arrived:
                self._wake.clear()
                self._idle = True
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
            else:
                return self._understand(*item)

    async def _pass(self, raw: bytes, kind: EventKind) -> None:
        if kind is EventKind.ASIDE:
            self.socket.note_steer(raw, self.request.lane)
        await self.socket.send(raw)

    def _due(self, event: e.Event) -> bool:
        # a timer or a lost link can come behind the event that made it pointless
        waiting = self.turn.state in (State.WAITING, State.SHOWING)
        if isinstance(event, e.HoldElapsed):
            return self.turn.state is State.WAITING
        return waiting or isinstance(event, e.ClientLeft)

    def _understand(self, raw: bytes, kind: EventKind) -> e.Event:
        if kind is EventKind.FAILURE:
            return e.Failed(classify_event(raw, now=self.node.health.now()))
        if kind is EventKind.TERMINAL:
            return e.Completed(raw)
        if kind is EventKind.ANNOUNCEMENT:
            if not self.response_id and wire.event_type(raw) == "response.created":
                self.response_id = wire.response_of(raw)[0]
            return e.Announced(raw)
        return e.OutputBegan(raw)

    async def _handle(self, event: e.Event) -> None:
        todo = deque(self.turn.handle(event, self._loop.time()))
        while todo:
            answer = await self._perform(todo.popleft())
            if answer is not None:
                todo.extend(self.turn.handle(answer, self._loop.time()))

    async def _perform(self, command: c.Command) -> e.Event | None:
        return await _PERFORM[type(command)](self, command)

    # --- commands that ask ---

    async def _resolve(self, command: c.Resolve) -> e.Event:
        try:
            found = await self.node.sessions.resolve(self.socket, self.turn.session, command.response_id)
        except StoreUnavailable:
            return e.StoreLost()
        return e.ParentGone() if found is None else e.Resolved(*found)

    async def _place(self, command: c.Place) -> e.Event:
        return self.node.health.place(command.wish)

    async def _move_pin(self, command: c.MovePin) -> e.Event:
        session = self.turn.session
        try:
            self.node.metrics.round_trips.labels("move_pin").inc()
            result = await self.node.store.move_pin(
                session.sid, session.name, session.tenant, command.expected, command.to
            )
        except StoreUnavailable as error:
            self.node.metrics.store_errors.labels(error.reason).inc()
            return e.PinUnwritten()
        if isinstance(result, Stale):
            self.node.metrics.pin_races.inc()
            return e.PinUnwritten() if result.pin is None else e.PinStale(result.pin, result.incremental_disabled)
        self.node.metrics.pin_resets.labels(command.to.because).inc()
        self._log("pin moved", reason=command.to.because)
        return e.PinMoved(result.pin)

    async def _open(self, command: c.Open) -> e.Event:
        self._credential = command.credential
        self._ailing = self.node.health.ailing(command.credential, self.request.model)
        self._attempt += 1
        try:
            self.link = await self.socket.links.open(command.credential)
        except Refused as refused:
            return e.Failed(refused.failure)
        self.link.attach(self.request.lane, self)
        self.node.health.in_flight[command.credential.name] += 1
        return e.Opened(self.link.holds(self.request.previous_response_id or ""))

    async def _rebuild(self, command: c.Rebuild) -> e.Event:
        session, boundary = self.turn.session, command.credential.boundary
        try:
            chain = await self._chain(command.parent)
            origins = await self._origins(session, boundary, command.strip)
            rebuilt = transcript.rebuild(chain, self._items, boundary=boundary, origins=origins)
        except ChainBroken as broken:
            self._log("chain broken", reason=broken.reason)
            return e.ChainLost()
        except Immovable:
            return e.ChainBound()
        except StoreUnavailable:
            return e.StoreLost()
        if rebuilt.dropped:
            self.node.metrics.boundary_drops.inc(rebuilt.dropped)
            self._log("reasoning left behind", count=rebuilt.dropped)
        frame = wire.rewrite(self.request.raw, input=rebuilt.input, drop_previous=True)
        self.node.metrics.replay_bytes.observe(len(frame))
        return e.Rebuilt(frame)

    async def _chain(self, parent: Parent | None) -> list[transcript.StoredTurn]:
        if parent is None:
            return []
        if parent.meta is None or not parent.known:
            raise ChainBroken("not_kept")
        self.node.metrics.round_trips.labels("chain").inc()
        return await self.node.journal.chain(self.turn.session.sid, parent.meta.turn_id)

    async def _origins(self, session: Session, boundary: str, strip: bool) -> dict[str, str] | None:
        if strip:
            return {}
        if session.boundaries <= {boundary}:
            return None
        self.node.metrics.round_trips.labels("origins").inc()
        return await self.node.journal.origins(session.sid)

    async def _send(self, command: c.Send) -> e.Event | None:
        assert self.link is not None and self._credential is not None
        model = self._credential.upstream_model(self.request.model)
        frame = command.frame if model == self.request.model else wire.rewrite(command.frame, model=model)
        self.node.metrics.sends.labels(self._credential.name, command.mode.value).inc()
        if command.mode is Mode.REPLAY:
            self.node.metrics.replays.labels(command.cause).inc()
            self._log("replay", reason=command.cause, bytes=len(frame))
        try:
            if self.link.retired:
                raise LinkClosed
            await self.link.send(frame)
        except LinkClosed:
            return e.Failed(Failure(FailureKind.CONNECTION_EXPIRED, code="closed_before_send"))
        self._heard = self._loop.time()
        self._watch(self._attempt, self.node.bounds.first_event)
        return None

    async def _commit(self, command: c.Commit) -> e.Event:
        assert self.link is not None and self._credential is not None
        response_id, meta = self._record(command.raw)
        session = self.turn.session
        pin = session.pin
        commit = Commit(
            sid=session.sid,
            name=session.name,
            tenant=session.tenant,
            meta=meta,
            items=TurnItems(self._items, self._produced(command.raw)) if meta.kept else TurnItems(),
            epoch=pin.epoch if pin else 0,
            nonce=pin.nonce if pin else "",
            because=pin.because if pin else "",
            minted=transcript.minted(item for _, item in self._outputs),
        )
        self.link.mint(response_id, self.request.lane)
        meta, answer = await self._write(commit)
        self.socket.memory.note(response_id, meta, session, self.request.lane)
        return answer

    async def _write(self, commit: Commit) -> tuple[TurnMeta, e.Committed]:
        began = self._loop.time()
        metrics = self.node.metrics
        metrics.round_trips.labels("commit").inc()
        meta = commit.meta
        try:
            result = await self.node.journal.commit(commit)
        except JournalFull:
            metrics.commits.labels("lost").inc()
            self._log("turn not kept", reason="journal_full")
            return _unkept(meta), e.Committed(None, False)
        metrics.commit_seconds.observe(self._loop.time() - began)
        if isinstance(result, Queued):
            metrics.commits.labels("queued").inc()
            return meta, e.Committed(None, False)
        metrics.commits.labels(result.status).inc()
        return (meta if result.kept else _unkept(meta)), e.Committed(result.pin, result.incremental_disabled)

    def _record(self, raw: bytes) -> tuple[str, TurnMeta]:
        assert self._credential is not None
        response_id = wire.response_of(raw)[0] or self.response_id
        parent = self.turn.parent
        parent_meta = parent.meta if parent is not None else None
        return response_id, TurnMeta(
            turn_id=self.request.turn_id,
            parent=parent_meta.turn_id if parent_meta is not None else None,
            response_id=response_id,
            credential=self._credential.name,
            boundary=self._credential.boundary,
            store=self.request.store,
            kept=self.socket.keeps_transcript and (parent_meta is None or parent_meta.kept),
            rooted=self.request.binding != "a conversation" and (parent is None or parent.known),
        )

    def _produced(self, raw: bytes) -> bytes:
        outputs = [item for _, item in sorted(self._outputs, key=lambda entry: entry[0])]
        if not outputs:
            # some vendors name the items only at the end
            listed = wire.response_of(raw)[1]
            return listed if listed[:1] == b"[" else b"[]"
        return b"[" + b",".join(outputs) + b"]"

    # --- commands that tell ---

    async def _hold(self, command: c.Hold) -> None:
        self._held_since = self._loop.time()
        hold = self.node.bounds.hold
        self._hold_timer = self._loop.call_later(hold, self._feed_if, self._attempt, e.HoldElapsed())

    async def _relay(self, command: c.Relay) -> None:
        self._released()
        for frame in command.frames:
            await self.socket.send(frame)

    async def _tell(self, command: c.Tell) -> None:
        self._released()
        for frame in command.held:
            await self.socket.send(frame)
        if command.verbatim is not None:
            await self.socket.send(command.verbatim)
        elif command.reply is not None:
            await self.socket.send(command.reply.event(self.request.lane))

    async def _blame(self, command: c.Blame) -> None:
        self.node.health.blame(
            command.credential,
            command.failure,
            self.request.model,
            confirmed=command.confirmed,
            evidence=self.request.turn_id,
        )

    async def _absolve(self, command: c.Absolve) -> None:
        self.node.health.absolve(command.credential, self._ailing)

    async def _abandon(self, command: c.Abandon) -> None:
        self._outputs.clear()
        self.response_id = ""
        self._attempt += 1
        if self.link is not None:
            if self.request.previous_response_id is not None:
                self.link.forget(self.request.previous_response_id, self.request.lane)
            last = self.turn.failures[-1][1] if self.turn.failures else None
            if last is None or not last.row.verbatim:
                # whatever else may still come on this lane shall not be taken for the next turn's
                self.link.retired = True
        self._detach()
        self._drop_stale()

    def _drop_stale(self) -> None:
        """What the abandoned attempt has still sent belongs to no attempt; the client's leaving does."""
        kept = [item for item in self._arrived if isinstance(item, e.ClientLeft)]
        self._arrived = deque(kept)
        self._room.set()

    async def _fail_over(self, command: c.FailOver) -> None:
        reason, phase = command.failure.kind.value, command.phase.value
        self.node.metrics.failovers.labels(reason, phase).inc()
        if command.phase is Phase.SENT and command.failure.row.executed:
            self.node.metrics.repeats.inc()
        self._log("failover", reason=reason, phase=phase, code=command.failure.code)

    async def _end(self, command: c.End) -> None:
        metrics = self.node.metrics
        metrics.turns.labels(command.outcome.value).inc()
        metrics.turn_seconds.observe(self._loop.time() - self._started)
        if command.outcome is c.Outcome.REQUEST_FAULT and self.turn.parent is not None:
            self.socket.memory.evict(self.turn.parent, self.request.lane)
        self._log("turn ended", outcome=command.outcome.value)

    # --- time ---

    def _watch(self, attempt: int, after: float) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        self._silence_timer = self._loop.call_later(after, self._check_silence, attempt)

    def _check_silence(self, attempt: int) -> None:
        """One timer for a turn, not one for an event: it looks when the upstream was last heard."""
        if attempt != self._attempt or self.turn.state not in (State.WAITING, State.SHOWING):
            return
        bounds = self.node.bounds
        allowed = bounds.silence if self.response_id or self.turn.showing else bounds.first_event
        left = allowed - (self._loop.time() - self._heard)
        if left <= 0 and not self.socket.sending:
            self._feed_if(attempt, e.Failed(Failure(FailureKind.TRANSPORT_LOST, code="silent")))
        else:
            self._watch(attempt, max(0.05, left))

    def _feed_if(self, attempt: int, event: e.Event) -> None:
        if attempt == self._attempt:
            self._feed(event)

    def _released(self) -> None:
        if self._held_since is not None:
            self.node.metrics.hold_seconds.observe(self._loop.time() - self._held_since)
            self._held_since = None

    def _cancel_timers(self) -> None:
        for timer in (self._hold_timer, self._silence_timer):
            if timer is not None:
                timer.cancel()

    # --- leaving ---

    def _detach(self) -> None:
        if self.link is not None and self._credential is not None:
            self.link.detach(self.request.lane, self)
            self.node.health.in_flight[self._credential.name] -= 1
            self.socket.links.settle()
        self._left_link, self.link = self.link, None

    async def _hand_back(self) -> None:
        """Events behind the turn's end belong to whoever comes next on this lane: a steered response's successor."""
        link, rest = self._left_link, [item for item in self._arrived if isinstance(item, tuple)]
        self._arrived.clear()
        self._room.set()
        if link is not None:
            for raw, _ in rest:
                await self.socket.aside(link, raw, self.request.lane)

    def _log(self, message: str, **fields: Any) -> None:
        log.info(
            message,
            extra={
                "session": self.turn.session.sid,
                "turn": self.request.turn_id,
                "credential": self._credential.name if self._credential else None,
                "lane": self.request.lane,
                **fields,
            },
        )


def _with_words(items: bytes, words: list[bytes]) -> bytes:
    """A turn's own items, and behind them the steers that were accepted for it before it began."""
    return b"[" + b",".join(part for part in (items.strip()[1:-1], *words) if part.strip()) + b"]" if words else items


def _unkept(meta: TurnMeta) -> TurnMeta:
    return TurnMeta(
        meta.turn_id, meta.parent, meta.response_id, meta.credential, meta.boundary, meta.store, False, meta.rooted
    )


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
