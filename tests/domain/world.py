"""A tiny world for one turn: credentials with tempers, sockets, a store, a clock, and a client that remembers.

`walk(seed, machine)` drives a machine through it, performs its commands as the driver does, and holds it to the
promises of design.md. A promise that is broken ends the walk with `Broken`, which carries the promise's name and the
conversation. All chance comes from the seed.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from random import Random

from msgspec import structs

from broker.domain.blame import blame
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
from broker.domain.continuation import Mode, Parent
from broker.domain.credential import Credential
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
)
from broker.domain.failure import Effect, Failure, FailureKind, Phase
from broker.domain.health import AuthHealth, HealthReport, HealthState, credential_subject, merge
from broker.domain.selection import Candidate, Choice, Loads, Wish, select
from broker.domain.session import Pin
from broker.domain.snapshot import HealthSnapshot
from broker.domain.turn import OutOfTurn, Policy, State, Turn
from broker.domain.wire import COMPACTION, CONVERSATION
from tests.domain.playbook import FRAME, credential, failure, parent, session, turn

K = FailureKind

PROMISES = {
    "ends once": "the turn ends exactly once, with the outcome it holds, and says nothing afterwards",
    "stays in turn": "no event that answers a command, or that a driver may feed, is out of turn",
    "one attempt shown": "the client sees events of one attempt alone: all of them, once, in order",
    "held back": "nothing is relayed before the first output, unless announcements were held too long or too many",
    "sent no more": "after anything was shown nothing is sent, opened or placed any more",
    "written first": "the terminal event is relayed after the commit, and the turn is committed at most once",
    "absolved by proof": "who serves is absolved once, at the first output or completion, and nobody before",
    "bounded": "the number of sends is bounded",
    "no amnesia": "what is sent is a rebuilt chain, or the client's own frame where its parent is, or needs none",
    "not twice": "a turn that may stand in a conversation of the vendor's already is not sent again",
    "placed well": "no credential is opened that is blocked, or out of reach, or has failed this turn already",
    "owners are asked": "a turn that names what has an owner is placed only when the owner is known",
    "kept to its owner": "what one credential, or one boundary, alone can reach goes to nobody else",
    "speaks its transport": "no credential is opened whose endpoint does not speak what the turn needs",
    "unsent is free": "what never left is no placement, has not run, and counts as a failure before the send",
    "faults harm nobody": "a fault of the request changes no health and moves no pin, and ends the turn",
    "poison confirms nothing": "a request that everybody refuses alike is told so, and confirms nothing",
    "confirmed by success": "who refused what another then serves is confirmed to be at fault, once",
    "moves are counted": "a failover is counted only where the turn moves to another credential",
    "few doubts": "doubt is cast on at most two credentials, once each",
    "what is stated counts": "what a vendor states, or says at the door, is never void",
    "poison leaves no doubt": "a request that enough credentials refuse alike leaves no doubt behind",
    "poison stops": "a request that enough credentials have refused alike is sent to nobody else",
    "pins by rule": "a pin's epoch changes only by what the store answered",
    "told truly": "exhaustion is told only if nobody can serve before a reset, and no time is invented",
    "completes": "a movable turn completes while any credential can serve it, within its bounds",
}

FAILOVER = {K.UNSUPPORTED, K.AUTH_REJECTED, K.QUOTA_EXHAUSTED, K.RATE_LIMITED, K.OVERLOADED, K.TRANSPORT_LOST}
MUTUAL = {K.UNSUPPORTED, K.AUTH_REJECTED}
RISKY = {K.UNSUPPORTED, K.AUTH_REJECTED, K.OVERLOADED, K.TRANSPORT_LOST}
"""Failures that count as placements that may have cost something."""

EPOCH = 1_800_000_000.0
PATIENCE = 10.0
"""Seconds that a turn may wait for a credential."""

DOUBTS = {Effect.REVOKE, Effect.EXCLUDE_MODEL, Effect.SUSPECT_BY_STREAK}


class Broken(AssertionError):
    """A promise was broken; the message tells which, and the conversation that led there."""

    def __init__(self, promise: str, how: str, log: list[str]) -> None:
        super().__init__("\n".join([f"{promise}: {PROMISES[promise]}", *log, f"!! {how}"]))
        self.promise = promise
        self.length = len(log)


FAULTS = {
    "key": failure(K.AUTH_REJECTED, "invalid_api_key", status=401, names_key=True),
    "permission": failure(K.AUTH_REJECTED, "", status=403),
    "model": failure(K.UNSUPPORTED, "model_not_found", status=404, raw=b'{"type":"response.failed"}'),
    "quota": failure(K.QUOTA_EXHAUSTED, "insufficient_quota", status=429),
    "quota until": failure(K.QUOTA_EXHAUSTED, "usage_limit_reached", status=429, until=EPOCH + 3600),
    "rate": failure(K.RATE_LIMITED, "rate_limit_exceeded", status=429, retry_after=5.0),
    "busy": failure(K.OVERLOADED, "server_is_overloaded", status=503),
    "lost": failure(K.TRANSPORT_LOST, "close_1006"),
    "closed": failure(K.TRANSPORT_LOST, "close_1001", orderly=True),
    "expired": failure(K.CONNECTION_EXPIRED, "websocket_connection_limit_reached", status=400),
}
UNSENT = [
    failure(K.TRANSPORT_LOST, "ClientConnectorError", independent=True, unsent=True),
    failure(K.AUTH_REJECTED, "invalid_api_key", status=401, names_key=True, independent=True, unsent=True),
    failure(K.OVERLOADED, "", status=503, independent=True, unsent=True),
]
"""Over HTTP a request may find out only when it is sent that it cannot leave."""
FAULT = failure(K.REQUEST_FAULT, "invalid_value", status=400, raw=b'{"type":"error","status":400}')
GENERIC_404 = failure(K.REQUEST_FAULT, "", status=404, raw=b'{"type":"error","status":404}')
PRNF = failure(K.CONTINUATION_LOST, "previous_response_not_found", status=400, raw=b'{"type":"error","status":400}')
FOREIGN = failure(K.CIPHERTEXT_FOREIGN, "invalid_encrypted_content", status=400, raw=b'{"type":"error","status":400}')


@dataclass
class Temper:
    """How a credential behaves: what strikes it, when (opening, sent, announced, shown), and how often."""

    fault: Failure | None = None
    when: str = "sent"
    times: int = 99
    foreign: bool = False
    """It cannot read ciphertext of this turn, unless it is left out."""

    def strikes(self, when: str) -> Failure | None:
        if self.fault is None or self.when != when or self.times == 0:
            return None
        self.times -= 1
        return replace(self.fault, independent=True, raw=None) if when == "opening" else self.fault


@dataclass
class World:
    """Everything around one turn."""

    rng: Random
    machine: type[Turn]
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = self.rng
        self.elapsed = 0.0
        self.cut_off = rng.random() < 0.08
        size = 4 if self.cut_off else rng.randint(1, 4)
        self.pool = [self._credential(name) for name in "abcd"[:size]]
        self.gloomy = rng.random() < 0.1
        self.tempers = {each.name: self._temper() for each in self.pool}
        self.health = HealthSnapshot()
        self.holds: set[str] = set()
        self.store_away = rng.random() < 0.1
        self.racing = rng.random() < 0.15
        self.hurried = rng.random() < 0.1
        self.leaving = rng.random() < 0.08
        self.patient = rng.random() < 0.7
        self.streak = rng.choice([1, 3])
        self.fault: Failure | None = None
        self.poison: Failure | None = None
        mood = rng.random()
        if mood < 0.1:
            self.fault = rng.choice([FAULT, GENERIC_404])
        elif mood < 0.2:
            self.poison = rng.choice([FAULTS["key"], FAULTS["permission"], FAULTS["model"]])
        self.poison_announces = rng.random() < 0.3
        self.loads = Loads(licensed=set(), started={})
        self._sicken()
        self.only: str | None = None
        self.home: str | None = None
        self.turn = self._make_turn()
        self.before = self.turn.session.pin
        self.stored_pin = self.before
        # what has happened
        self.attempt = 0
        self.emitted: list[bytes] = []
        self.seen: list[bytes] = []
        self.terminal: bytes | None = None
        self.sends = 0
        self.opened: Credential | None = None
        self.rebuilt: bytes | None = None
        self.stripped = False
        self.current: Credential | None = None
        self.failures: list[tuple[Credential, Failure, str]] = []
        self.failed_over: set[str] = set()
        self.pardoned = False
        self.asked_at = 0.0
        self.answered_at = 0.0
        self.held_against: list[AuthHealth] = []
        self.trying = ""
        self.seated: Credential | None = None
        self.confirmed: list[tuple[Credential, Failure]] = []
        self.absolved: list[int] = []
        self.doubted: list[str] = []
        self.named: set[int] = set()
        self.unspent: list[str] = []
        self.commits = 0
        self.committed = False
        self.overdue = False
        self.may_have_run = False
        self.resolved = False
        self.unknown = False
        self.told: Tell | None = None
        self.ends: list[Outcome] = []
        self.lost_chain = False
        self.left = False
        self.gone = False
        self.late = False

    def _credential(self, name: str) -> Credential:
        transports = self.rng.choice([("websocket", "http"), ("websocket", "http"), ("http",), ("websocket",)])
        return credential(name, self.rng.choice(["north", "north", "south"]), transports=transports)

    def _temper(self) -> Temper:
        rng = self.rng
        if self.gloomy:
            # nearly everybody refuses, each in a way of its own
            return Temper(FAULTS[rng.choice(["key", "permission", "model", "lost", "quota"])], "sent")
        if self.cut_off:
            # nearly nobody can be reached, which turns out when a request is to leave
            return Temper(UNSENT[0], "sent") if rng.random() < 0.75 else Temper()
        if rng.random() < 0.4:
            return Temper()
        if rng.random() < 0.1:
            return Temper(foreign=True)
        if rng.random() < 0.15:
            return Temper(rng.choice(UNSENT), "sent", rng.choice([1, 2, 99]))
        when = rng.choice(["opening", "sent", "sent", "announced", "announced", "shown"])
        return Temper(FAULTS[rng.choice([*FAULTS, "expired"])], when, rng.choice([1, 1, 2, 99, 99]))

    def _sicken(self) -> None:
        """Some credentials are known to be unwell before the turn begins."""
        for each in self.pool:
            if self.poison is None and self.rng.random() < 0.15:
                found = self.rng.choice([FAULTS["quota"], FAULTS["quota until"], FAULTS["rate"], FAULTS["key"]])
                since = self.now - self.rng.choice([0.0, 0.0, 4.0, 1200.0])
                self._harm(each, found, self.rng.random() < 0.5, evidence="before", at=since)
                if self.rng.random() < 0.2:
                    self._come_back(each)

    def _come_back(self, each: Credential) -> None:
        """Somebody else has just shown that it serves again, and it has had its share of turns for now."""
        for row in self.health.ailing(each, "m"):
            self._disprove(row)
            self.loads.started = {**self.loads.started, row.subject: 1}

    def _make_turn(self) -> Turn:
        rng = self.rng
        owner = rng.choice(self.pool)
        pinned = rng.choice([None, Pin(owner.name, 0, "n0", "placed"), Pin(owner.name, 1, "n1", "placed")])
        shape = rng.choice(["none", "none", "known", "known", "known", "stored", "unkept", "unknown", "dead"])
        self.past: Parent | None = {
            "none": None,
            "known": parent(owner),
            "stored": parent(owner, store=True),
            "unkept": parent(owner, kept=False),
            "unknown": parent(owner, seen=False),
            "dead": parent(owner, live=False, store=rng.random() < 0.5),
        }[shape]
        self.owner = owner
        self.chain_bound = shape == "known" and rng.random() < 0.15
        conversing = shape == "none" and rng.random() < (0.6 if self.cut_off else 0.15)
        binding = CONVERSATION if conversing else None
        needs = self._name_something() if binding is None and rng.random() < 0.15 else ()
        if needs:
            binding = CONVERSATION if self.only is not None else COMPACTION
        boundaries = {owner.boundary} if self.past is not None else set()
        of = session(pinned=pinned, incremental_disabled=rng.random() < 0.15, boundaries=boundaries)
        if shape in ("known", "unkept") and rng.random() < 0.7:
            self.holds.add(owner.name)
        items = b'[{"encrypted_content":"x"}]' if rng.random() < 0.1 else b"[]"
        self.policy = Policy(held=rng.choice([2, 16]), boundaries=len({each.boundary for each in self.pool}))
        previous = None if self.past is None else "resp_0"
        return turn(
            of=of,
            previous=previous,
            binding=binding,
            items=items,
            needs=needs,
            transport=rng.choice(["", "", "", "http"]),
            affinity=rng.choice(["", "", "key"]),
            recorded=rng.random() < 0.9,
            whole=rng.random() < 0.2,
            policy=self.policy,
            machine=self.machine,
        )

    def _name_something(self) -> tuple[str, ...]:
        """The turn names a conversation, or a compaction item; its owner may have left the pool."""
        owner = credential("gone", "west") if self.rng.random() < 0.1 else self.rng.choice(self.pool)
        if self.past is not None and not self.past.known:
            # what only its boundary can continue names nothing of another
            owner = self.owner
        self.home = owner.boundary
        if self.rng.random() < 0.5:
            self.only = owner.name
            return ("conv_1",)
        return ("cmp:1",)

    # --- the clocks: one that is steady, and the store's ---

    @property
    def steady(self) -> float:
        return 5.0 + self.elapsed

    @property
    def now(self) -> float:
        return EPOCH + self.elapsed

    # --- the loop ---

    def run(self) -> Outcome:
        waiting: deque[Event] = deque([Began()])
        for _ in range(400):
            if self.turn.state is State.ENDED:
                break
            if self.leaving and self.rng.random() < 0.1:
                self.left = True
                waiting.appendleft(ClientLeft())
                self.leaving = False
            event = waiting.popleft() if waiting else self._upstream()
            for command in self._feed(event):
                answer = self._perform(command)
                if answer is not None:
                    waiting.append(answer)
        self._at_the_end()
        return self.ends[0]

    def _feed(self, event: Event) -> list[Command]:
        self.log.append(f">> {event}")
        self.elapsed += self.rng.choice([0.01, 0.01, 0.1]) + (40.0 if self.hurried and self.rng.random() < 0.1 else 0)
        before = self.turn.session.pin
        if isinstance(event, Failed) and self.steady - self.turn.started > self.policy.placing:
            self.late = True
        try:
            commands = self.turn.handle(event, self.steady)
        except (OutOfTurn, AssertionError, KeyError) as error:
            raise self._broken("stays in turn", repr(error)) from error
        self._check_pin(event, before)
        return commands

    def _check_pin(self, event: Event, before: Pin | None) -> None:
        after = self.turn.session.pin
        if after == before:
            return
        wished = (before is None or before.epoch == 0) and after is not None and after.epoch == 0
        answered = isinstance(event, PinMoved | PinStale | Committed) and after == event.pin
        self._hold_to("pins by rule", answered or (wished and isinstance(event, Placed)), f"{before} became {after}")

    def _perform(self, command: Command) -> Event | None:
        self.log.append(f"<< {command}")
        if self.ends and not isinstance(command, End):
            raise self._broken("ends once", f"{command} after the end")
        answer: Event | None = getattr(self, f"_{type(command).__name__.lower()}")(command)
        return answer

    def _hold_to(self, promise: str, kept: bool, how: str) -> None:
        if not kept:
            raise self._broken(promise, how)

    def _broken(self, promise: str, how: str) -> Broken:
        setting = [f"   {each.name}: {each.boundary}, {self.tempers[each.name]}" for each in self.pool]
        facts = f"   {self.past}, holds={self.holds}, fault={self.fault}, poison={self.poison}"
        return Broken(promise, how, [*setting, facts, *self.log])

    # --- commands that ask ---

    def _resolve(self, command: Resolve) -> Event:
        if self.store_away and self.rng.random() < 0.3:
            self.lost_chain = True
            return StoreLost()
        if self.past is not None and not self.past.live and self.rng.random() < 0.5:
            self.gone = True
            return ParentGone()
        asked = (command.response_id is None) == (self.past is None) and command.needs == self.turn.request.needs
        self._hold_to("owners are asked", asked, f"{command} of a turn that needs {self.turn.request.needs}")
        if command.needs and self.rng.random() < 0.1:
            self.unknown = True
            return OwnerUnknown(command.needs[0])
        self.resolved = True
        return Resolved(self.past, self.turn.session, self.home, self.only)

    def _place(self, command: Place) -> Event:
        self._nothing_shown(command)
        self._hold_to("owners are asked", self.resolved or self.home is None, "it is placed and nobody was asked")
        self.asked_at = self.now
        choice = self._select(command.wish)
        self.answered_at = self.now
        if choice.credential is not None:
            return self._seat(choice)
        if not self.pardoned:
            # nobody else is there: a socket that was merely lost may be tried once more
            self.pardoned = True
            self.failed_over -= {who.name for who, found, _ in self.failures if found.kind is K.TRANSPORT_LOST}
        reach = [each for each in self.pool if self._in_reach(each)]
        self.named = {
            end(row.until) for row in self.health.rows.values() if row.told for end in (math.floor, math.ceil)
        }
        self.unspent = [each.name for each in reach if not self._spent(each)]
        reasons = frozenset(_why_not(each) for each in choice.candidates)
        return NonePlaced(reasons, self.health.earliest_reset(reach, "m", self.now), self.now)

    def _select(self, wish: Wish) -> Choice:
        """As the node does: who may serve in a moment is waited for, if this world is patient."""
        until = self.now + PATIENCE
        while True:
            chance = self.rng.getrandbits(32)
            choice = select(self.pool, self.health, self.loads, wish, now=self.now, chance=chance)
            ends = [end for each in choice.candidates if (end := self._promises(each)) <= until]
            if choice.credential is not None or not self.patient or not ends:
                return choice
            self.elapsed += max(min(ends) - self.now, 0.01)

    def _promises(self, candidate: Candidate) -> float:
        """When it may serve; a licence to try it comes with the wish for one."""
        row = candidate.verdict.row
        if candidate.passed_over == "ramping":
            return self.now
        if candidate.passed_over == "half_open" and row is not None:
            self.loads.licensed = {*self.loads.licensed, row.subject}
            return self.now
        blocked = row is not None and not candidate.verdict.usable and candidate.passed_over == row.state.value
        return row.until or math.inf if row is not None and blocked else math.inf

    def _seat(self, choice: Choice) -> Placed:
        taken = choice.candidates[0]
        self.seated = taken.credential
        self.held_against = self.health.ailing(taken.credential, "m")
        row = taken.verdict.row
        self.trying = row.subject if row is not None and taken.verdict.half_open else ""
        self.loads.licensed = self.loads.licensed - {self.trying}
        return Placed(taken.credential, f"n{self.rng.random()}", self.trying)

    def _spent(self, each: Credential) -> bool:
        """Whether it cannot serve before a reset, or not at all."""
        row = self.health.verdict(each, "m", self.now).row
        hard = row is not None and row.state in (HealthState.EXHAUSTED, HealthState.REVOKED, HealthState.PAUSED)
        mine = {found.kind for who, found, _ in self.failures if who is each}
        return hard or bool(mine & {K.QUOTA_EXHAUSTED, K.AUTH_REJECTED, K.UNSUPPORTED})

    def _movepin(self, command: MovePin) -> Event:
        self._hold_to("pins by rule", command.to.epoch == command.expected.epoch + 1, "an epoch was left out")
        harmless = not any(found.kind is K.REQUEST_FAULT for _, found, _ in self.failures)
        self._hold_to("faults harm nobody", harmless, "a pin moves after a request fault")
        if self.store_away:
            return PinUnwritten()
        if self.racing and self.rng.random() < 0.7:
            assert self.stored_pin is not None
            winner = self.rng.choice(self.pool)
            self.stored_pin = Pin(winner.name, self.stored_pin.epoch + 1, f"w{self.rng.random()}", "elsewhere")
            return PinStale(self.stored_pin, True)
        self.stored_pin = command.to
        return PinMoved(command.to)

    def _open(self, command: Open) -> Event:
        self._nothing_shown(command)
        self._placed_well(command.credential)
        self.current = command.credential
        self.attempt += 1
        self.emitted, self.rebuilt, self.stripped = [], None, False
        self.overdue = False
        if found := self.tempers[command.credential.name].strikes("opening"):
            return self._fail(found, "opening")
        return Opened(command.credential.name in self.holds)

    def _placed_well(self, taken: Credential) -> None:
        # nobody hears of anything between its placement and now, but blocks run out
        verdict = self.health.verdict(taken, "m", self.answered_at)
        licensed = verdict.row is not None and verdict.half_open and verdict.row.subject == self.trying
        self._hold_to("placed well", verdict.usable or licensed, f"{taken.name} is blocked")
        transport = self.turn.request.transport
        self._hold_to("speaks its transport", transport in ("", *taken.transports), f"{taken.name} lacks {transport}")
        self._hold_to("kept to its owner", self._owns(taken), f"{taken.name} is placed, of {self.only} in {self.home}")
        if taken.name in self.failed_over:
            raise self._broken("placed well", f"{taken.name} has failed already")
        past = self.past
        if past is not None and past.meta is not None and not past.known:
            self._hold_to("placed well", taken.boundary == past.meta.boundary, f"{taken.name} is out of reach")

    def _owns(self, each: Credential) -> bool:
        """Whether what the turn names can be reached from there."""
        return self.home in (None, each.boundary) and self.only in (None, each.name)

    def _rebuild(self, command: Rebuild) -> Event:
        self._hold_to("no amnesia", command.credential is self.current, "rebuilt for another credential")
        if self.store_away and self.rng.random() < 0.2:
            self.lost_chain = True
            return StoreLost()
        if self.past is not None and not self.past.known:
            self.lost_chain = True
            return ChainLost()
        if self.chain_bound and command.credential.boundary != self.owner.boundary:
            return ChainBound()
        self.stripped = command.strip
        self.rebuilt = b"rebuilt for attempt %d" % self.attempt
        return Rebuilt(self.rebuilt)

    def _send(self, command: Send) -> Event | None:
        self._nothing_shown(command)
        self.sends += 1
        limit = 4 * len(self.pool) + 4
        self._hold_to("bounded", self.sends <= limit, f"{self.sends} sends to {len(self.pool)} credentials")
        self._hold_to("not twice", not self._stands_there(), "it is sent again")
        for found, count in self._alike():
            self._hold_to("poison stops", count < found.witnesses, f"{count} have refused it alike")
        assert self.current is not None
        if command.mode is Mode.REPLAY:
            self._hold_to("no amnesia", command.frame == self.rebuilt is not None, "a replay of something else")
            return None
        past, name = self.past, self.current.name
        stored = past is not None and past.meta is not None and past.meta.store and past.meta.credential == name
        resolvable = past is None or past.meta is None or name in self.holds or stored
        self._hold_to("no amnesia", command.frame is FRAME, "an increment that is not the client's own frame")
        self._hold_to("no amnesia", resolvable, f"an increment to {name}, which does not hold its parent")
        return None

    def _stands_there(self) -> bool:
        """Whether the turn may stand in a conversation of the vendor's already."""
        return self.may_have_run and self.turn.request.binding == CONVERSATION

    def _commit(self, command: Commit) -> Event:
        self.commits += 1
        self._hold_to("written first", self.commits == 1, "committed twice")
        self._hold_to("written first", command.raw == self.terminal, "something else was committed")
        self._hold_to("absolved by proof", self.absolved[-1:] == [self.attempt], f"absolved in {self.absolved}")
        refused = [(who, found) for who, found, when in self.failures if found.kind in MUTUAL and when != "opening"]
        self._hold_to("confirmed by success", self.confirmed == refused, f"{self.confirmed} are confirmed")
        self.committed = True
        if self.store_away or not self.turn.request.recorded:
            return Committed(None, False)
        pin = self.turn.session.pin
        return Committed(structs.replace(pin, epoch=1) if pin is not None and pin.epoch == 0 else pin, False)

    # --- commands that tell ---

    def _hold(self, command: Hold) -> None:
        pass

    def _relay(self, command: Relay) -> None:
        for frame in command.frames:
            self._show(frame)

    def _show(self, frame: bytes) -> None:
        self.seen.append(frame)
        if frame == self.terminal:
            self._hold_to("written first", self.committed, "the terminal event is relayed before the commit")
        due = self.emitted[-1:] if self.turn.request.whole else self.emitted[: len(self.seen)]
        self._hold_to("one attempt shown", self.seen == due, f"shown {self.seen} of {self.emitted}")
        if b"output" in frame:
            self._hold_to("absolved by proof", self.absolved[-1:] == [self.attempt], f"absolved in {self.absolved}")
        output = any(b"output" in each or each == self.terminal for each in self.emitted)
        early = not output and not self.overdue and len(self.emitted) <= self.policy.held
        self._hold_to("held back", not early or self.told is not None, f"{frame!r} was relayed too early")

    def _harm(
        self, who: Credential, found: Failure, confirmed: bool, *, evidence: str = "t", at: float | None = None
    ) -> None:
        at = self.now if at is None else at
        streak = self.streak
        report = blame(
            found, who, "m", confirmed=confirmed, streak=streak, evidence=evidence, began=at, now=at, chance=0.5
        )
        if report is not None:
            self._merge(report, at)

    def _merge(self, report: HealthReport, at: float) -> None:
        self.health.put(merge(self.health.rows.get(report.subject), report, at))

    def _disprove(self, row: AuthHealth) -> None:
        report = HealthReport(
            row.subject, HealthState.HEALTHY, because="served", evidence="served", version=row.version
        )
        self._merge(report, self.now)

    def _blame(self, command: Blame) -> None:
        self._poisoned(command)
        self._doubts(command)
        if command.again:
            self.confirmed.append((command.credential, command.failure))
        if command.void:
            return
        before = dict(self.health.rows)
        self._harm(command.credential, command.failure, command.confirmed)
        fault = self.fault is not None and self.failures and self.failures[-1][1] is self.fault
        unlost = self.failures and self.failures[-1][1].kind in (K.CONTINUATION_LOST, K.CIPHERTEXT_FOREIGN)
        if (fault or unlost) and self.failures[-1][0] is command.credential and not self._blamed_before(command):
            self._hold_to("faults harm nobody", self.health.rows == before, "health has changed")

    def _doubts(self, command: Blame) -> None:
        """Keeps count of what this turn says that nobody confirms; it is no doubt if the vendor states it."""
        doubtful = command.failure.row.effect in DOUBTS and not command.failure.independent
        self._hold_to("what is stated counts", doubtful or not command.void, f"{command.failure.kind} is void")
        if not doubtful or command.void or command.again:
            return
        self.doubted.append(command.credential.name)
        few = len(self.doubted) == len(set(self.doubted)) <= 2
        self._hold_to("few doubts", few, f"doubt is cast on {self.doubted}")

    def _retract(self, command: Retract) -> None:
        subject = credential_subject(command.credential)
        self._merge(
            HealthReport(subject, HealthState.HEALTHY, because="retracted", evidence="t", retracts=True), self.now
        )

    def _blamed_before(self, command: Blame) -> bool:
        """Whether it is an earlier failure of the same credential that is only confirmed now."""
        earlier = [found for who, found, _ in self.failures[:-1] if who is command.credential]
        return command.confirmed and command.failure in earlier

    def _poisoned(self, command: Blame) -> None:
        others = [each for each in self.pool if each.name != command.credential.name]
        if self.poison is None or command.failure.independent or not others:
            return
        reachable = any(self.health.verdict(each, "m", self.now).usable and self._in_reach(each) for each in others)
        if reachable and not self.seen and not self.late and not self._struck_otherwise():
            kept = not command.confirmed
            self._hold_to("poison confirms nothing", kept, f"{command.credential.name} is held to be at fault")

    def _struck_otherwise(self) -> bool:
        return any(found.fingerprint != self.poison.fingerprint for _, found, _ in self.failures if self.poison)

    def _absolve(self, command: Absolve) -> None:
        proof = any(b"output" in each or each == self.terminal for each in self.emitted)
        self._hold_to("absolved by proof", proof, "absolved before there was proof")
        self._hold_to("absolved by proof", self.attempt not in self.absolved, "absolved twice")
        self._hold_to("absolved by proof", command.credential is self.current, "somebody else is absolved")
        self.absolved.append(self.attempt)
        for row in self.held_against:
            if (known := self.health.rows.get(row.subject)) is not None and known.version == row.version:
                self._disprove(row)

    def _abandon(self, command: Abandon) -> None:
        if self.current is not None:
            self.holds.discard(self.current.name)

    def _failover(self, command: FailOver) -> None:
        self._nothing_shown(command)
        assert self.seated is not None
        phase = Phase.BEFORE_SEND if self.failures[-1][2] == "opening" else Phase.SENT
        self._hold_to("unsent is free", command.phase is phase, f"counted as {command.phase}")
        moves = self.seated.name != self.failures[-1][0].name
        self._hold_to("moves are counted", moves, f"{self.seated.name} is where it was")

    def _tell(self, command: Tell) -> None:
        self._hold_to("ends once", self.told is None, "told twice")
        self.told = command
        self._hold_to("ends once", (command.reply is None) != (command.verbatim is None), "told two things, or nothing")
        self._hold_to("written first", self.commits == 0, "told of a failure after the commit")
        for frame in command.held:
            self._show(frame)
        if command.reply is not None and command.reply.code == "outcome_unknown":
            left = any(when != "opening" for _, _, when in self.failures)
            self._hold_to("unsent is free", left, "told that it may have run, and it never left")
        if command.reply is not None and command.reply.code == "usage_limit_reached":
            self._exhaustion(command)

    def _exhaustion(self, command: Tell) -> None:
        assert command.reply is not None
        resets = command.reply.extra.get("resets_at")
        if resets is not None:
            self._hold_to("told truly", resets in self.named, f"nobody named {resets}")
            span = command.reply.extra["resets_in_seconds"]
            self._hold_to("told truly", abs(span - (resets - self.answered_at)) < 2, f"{span} seconds to {resets}")
        self._hold_to("told truly", not self.unspent, f"{self.unspent} are not exhausted")

    def _end(self, command: End) -> None:
        self.ends.append(command.outcome)
        self._hold_to("ends once", len(self.ends) == 1, "ended twice")
        agreed = self.turn.outcome is command.outcome and self.turn.state is State.ENDED
        self._hold_to("ends once", agreed, f"{command.outcome} is not {self.turn.outcome}")

    def _nothing_shown(self, command: Command) -> None:
        self._hold_to("sent no more", not self.seen, f"{type(command).__name__} after something was shown")
        faulty = [found for _, found, _ in self.failures if found.kind is K.REQUEST_FAULT]
        self._hold_to("faults harm nobody", not faulty, f"{type(command).__name__} after a request fault")

    # --- what comes from upstream ---

    def _upstream(self) -> Event:
        assert self.turn.state in (State.WAITING, State.SHOWING), self.log
        assert self.current is not None
        temper = self.tempers[self.current.name]
        if self.poison is not None:
            return self._poisonous(self.poison)
        if not self.emitted and (found := self._refusal(temper)):
            return self._fail(found, "sent")
        if len(self.emitted) < 5 and self.rng.random() < (0.7 if not self.emitted else 0.3) and not self._has_output():
            return Announced(self._emit(b"announcement"))
        if self.emitted and not self._has_output():
            if found := temper.strikes("announced"):
                return self._fail(found, "announced")
            if self.turn.state is State.WAITING and self.rng.random() < 0.1:
                self.overdue = True
                return HoldElapsed()
        if self._has_output():
            if self.fault is not None and self.rng.random() < 0.3:
                return self._fail(self.fault, "shown")
            if found := temper.strikes("shown"):
                return self._fail(found, "shown")
        if self.rng.random() < 0.5:
            return OutputBegan(self._emit(b"output"))
        self.terminal = self._emit(b"completed")
        return Completed(self.terminal)

    def _poisonous(self, found: Failure) -> Event:
        """Everybody refuses this request alike; some announce a response before they do."""
        if self.poison_announces and (not self.emitted or self.rng.random() < 0.5):
            return Announced(self._emit(b"announcement"))
        return self._fail(found, "shown" if self.turn.state is State.SHOWING else "sent")

    def _refusal(self, temper: Temper) -> Failure | None:
        """What the vendor says before it says anything else."""
        assert self.current is not None
        if self.fault is not None:
            return self.fault if self.rng.random() < 0.7 else None
        if temper.foreign and not self.stripped:
            return FOREIGN
        past = self.past
        if self.rebuilt is None and past is not None:
            unknown = past.meta is None and self.current.name != self.owner.name
            vanished = past.meta is not None and self.rng.random() < 0.15
            if unknown or not past.live or vanished:
                return PRNF
        return temper.strikes("sent")

    def _has_output(self) -> bool:
        return any(b"output" in frame for frame in self.emitted) or self.turn.state is State.SHOWING

    def _emit(self, what: bytes) -> bytes:
        frame = b"%d/%d %b" % (self.attempt, len(self.emitted), what)
        self.emitted.append(frame)
        return frame

    def _fail(self, found: Failure, when: str) -> Failed:
        assert self.current is not None
        if found.unsent:
            when = "opening"  # as good as a socket that was never there
        self.failures.append((self.current, found, when))
        if found.kind in FAILOVER and when != "shown" and not self._may_return(self.current, found):
            self.failed_over.add(self.current.name)
        if found.kind is K.TRANSPORT_LOST and when in ("sent", "announced"):
            self.may_have_run = True
        return Failed(found)

    def _may_return(self, who: Credential, found: Failure) -> bool:
        """Who limits its rate may be asked again, once: until then its row says when."""
        limits = [each for each, other, _ in self.failures if each is who and other.kind is K.RATE_LIMITED]
        return found.kind is K.RATE_LIMITED and len(limits) == 1

    # --- when it is over ---

    def _at_the_end(self) -> None:
        self._hold_to("ends once", len(self.ends) == 1, f"ended {len(self.ends)} times, in state {self.turn.state}")
        outcome = self.ends[0]
        self._no_doubt_is_left()
        if outcome is Outcome.COMPLETED:
            self._hold_to("written first", self.commits == 1, "completed without a commit")
            due = self.emitted[-1:] if self.turn.request.whole else self.emitted
            self._hold_to("one attempt shown", self.seen == due, f"shown {self.seen} of {self.emitted}")
            return
        self._hold_to("written first", self.commits == 0, "committed, and yet not completed")
        self._hold_to("ends once", (self.told is None) == (outcome is Outcome.CLIENT_LEFT), "the client was not told")
        if outcome is Outcome.INTERRUPTED:
            self._hold_to("one attempt shown", bool(self.seen), "interrupted before anything was shown")
        if excuse := self._excuse():
            self.log.append(f"   excused: {excuse}")
            return
        able = [each.name for each in self.pool if self._could_serve(each)]
        self._hold_to("completes", not able, f"{outcome.value}, though {able} could have served it")

    def _no_doubt_is_left(self) -> None:
        """Doubt that no request caused may stay: of a socket that was lost, and of what was said at the door."""
        if not any(count >= found.witnesses for found, count in self._alike()) or self.seen:
            return
        others = {
            credential_subject(who)
            for who, found, when in self.failures
            if found.kind is K.TRANSPORT_LOST or when == "opening"
        }
        rows = self.health.rows.values()
        left = [row.subject for row in rows if row.state is HealthState.SUSPECT and row.evidence == "t"]
        self._hold_to("poison leaves no doubt", set(left) <= others, f"{left} are doubted")

    def _excuse(self) -> str:
        """Why a turn need not have been served."""
        kinds = [found.kind for _, found, _ in self.failures]
        if self.left or self.gone or self.lost_chain or self.unknown:
            return "the client left, or gave its parent up, or names what nobody knows, or the store is away"
        if self.seen and self.told is not None and not self.told.held:
            return "something was shown"
        if K.REQUEST_FAULT in kinds:
            return "the request is at fault"
        if K.CONTINUATION_LOST in kinds and (self.past is None or not (self.past.known and self.past.live)):
            return "the client lost its continuation"
        if K.CIPHERTEXT_FOREIGN in kinds and self.policy.boundaries < 2:
            return "ciphertext cannot be foreign where there is one boundary"
        if any(count >= found.witnesses for found, count in self._alike()):
            return "too many refused the request alike"
        if self.late or not self._movable():
            return "too late, or immovable"
        counts = Counter(found.kind for _, found, when in self.failures if when != "opening" and found.kind in RISKY)
        if any(count >= self.policy.placements for count in counts.values()):
            return "too many failures that may have cost something"
        return ""

    def _alike(self) -> list[tuple[Failure, int]]:
        """The refusals that a request can provoke, each with how many credentials said it of the request itself."""
        said = [(found, who.name) for who, found, when in self.failures if found.kind in MUTUAL and when != "opening"]
        return [
            (found, len({name for other, name in said if other.fingerprint == found.fingerprint})) for found, _ in said
        ]

    def _movable(self) -> bool:
        return not self._stands_there() and (self.past is None or self.past.known)

    def _in_reach(self, each: Credential) -> bool:
        boundary, transport = self.turn.boundary, self.turn.request.transport
        return boundary in (None, each.boundary) and transport in ("", *each.transports) and self._owns(each)

    def _could_serve(self, each: Credential) -> bool:
        """Whether this credential, asked now, would serve the turn: it is well, and nothing ever strikes it."""
        temper = self.tempers[each.name]
        if self.poison is not None or self.fault is not None or each.name in self.failed_over:
            return False
        if not self._in_reach(each):
            return False
        if temper.fault is not None and not (temper.fault.kind is K.RATE_LIMITED and temper.times == 0):
            return False
        if temper.foreign and self.policy.boundaries < 2:
            return False
        if self.chain_bound and each.boundary != self.owner.boundary:
            return False
        return self._was_ready(each)

    def _was_ready(self, each: Credential) -> bool:
        """Whether a turn could be placed on it when it was last asked for, or within its patience."""
        at = self.asked_at or self.now
        verdict = self.health.verdict(each, "m", at)
        row = verdict.row
        if self.patient and row is not None and not verdict.usable:
            return verdict.half_open or 0.0 < row.until <= at + PATIENCE
        return verdict.usable and verdict.ramp is None


def _why_not(candidate: Candidate) -> str:
    """As the node does: why a credential is out although it was tried in this turn is written in its row."""
    row = candidate.verdict.row
    tried = candidate.passed_over == "tried" and row is not None and not candidate.verdict.usable
    return row.state.value if tried and row is not None else candidate.passed_over


def walk(seed: int, machine: type[Turn] = Turn) -> World:
    """One walk; raises `Broken`."""
    world = World(Random(seed), machine)
    world.run()
    return world
