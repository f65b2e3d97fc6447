"""Random walks through a tiny world: what the machine promises, and that a broken promise would be noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random
from typing import ClassVar, get_args

import pytest
from msgspec import structs

from broker.domain import events
from broker.domain.commands import (
    Absolve,
    Blame,
    Command,
    Commit,
    End,
    MovePin,
    Open,
    Outcome,
    Place,
    Relay,
    Retract,
    Send,
    Tell,
)
from broker.domain.errors import ErrorReply
from broker.domain.events import (
    Announced,
    ClientLeft,
    Committed,
    Completed,
    Event,
    Failed,
    NonePlaced,
    Opened,
    OutputBegan,
    OwnerUnknown,
    Placed,
    Resolved,
)
from broker.domain.failure import Failure, FailureKind, Phase
from broker.domain.session import Pin
from broker.domain.turn import MAX_DOUBTED, TRANSITIONS, State, Turn
from broker.domain.wire import CONVERSATION
from tests.domain.playbook import A, B, C, D, failure, parent, pin, session, turn
from tests.domain.world import DOUBTS, FAULTS, PRNF, PROMISES, UNSENT, Broken, World, walk
from tests.domain.world import FAULT as REQUEST_FAULT

WALKS = 6000


def broken_by(machine: type[Turn], seed: int) -> Broken | None:
    try:
        walk(seed, machine)
    except Broken as broken:
        return broken
    return None


@cache
def findings() -> dict[int, Broken]:
    """The walks of the machine itself that broke a promise, by seed."""
    return {seed: found for seed in range(WALKS) if (found := broken_by(Turn, seed))}


@pytest.mark.parametrize("promise", PROMISES)
def test_the_machine_keeps_its_promise(promise: str) -> None:
    broken = [(found.length, seed, found) for seed, found in findings().items() if found.promise == promise]
    if broken:
        _, seed, shortest = min(broken, key=lambda entry: entry[:2])
        pytest.fail(f"{len(broken)} of {WALKS} walks; the shortest has seed {seed}\n{shortest}", pytrace=False)


def test_the_walks_come_through_every_outcome_and_every_transition() -> None:
    outcomes: Counter[Outcome] = Counter()
    seen: set[tuple[State, type]] = set()

    class Watched(Turn):
        __slots__ = ()

        def handle(self, event: Event, now: float = 0.0) -> list[Command]:
            seen.add((self.state, type(event)))
            return super().handle(event, now)

    met: Counter[str] = Counter()
    for seed in range(WALKS // 3):
        if seed not in findings():
            world = walk(seed, Watched)
            outcomes[world.ends[0]] += 1
            met.update(name for name, is_so in what_was_met(world).items() if is_so)
    assert set(outcomes) == set(Outcome)
    assert min(met[name] for name in what_was_met(world)) > 3, met
    assert outcomes[Outcome.COMPLETED] > WALKS // 12
    rest = {(state, kind.__name__) for state, kind in TRANSITIONS if (state, kind) not in seen}
    assert rest <= {(State.NEW, "Succeeded")}


def what_was_met(world: World) -> dict[str, bool]:
    """What a walk must come across now and then, or it proves nothing about it."""
    request, served = world.turn.request, world.ends == [Outcome.COMPLETED]
    unsent = any(found.unsent for _, found, _ in world.failures)
    lacking = any(request.transport not in ("", *each.transports) for each in world.pool)
    return {
        "served by its owner": served and world.only is not None and len(world.pool) > 1,
        "served in its boundary": served and world.home is not None and world.only is None,
        "an owner who has left": world.home is not None and world.home not in {each.boundary for each in world.pool},
        "nobody knows the owner": world.unknown,
        "moved because it never left": served and unsent,
        "a conversation moved because it never left": served and unsent and request.binding == CONVERSATION,
        "a conversation that may have run": world.may_have_run and request.binding == CONVERSATION,
        "others lack the transport": served and lacking,
        "nobody has the transport": not any(request.transport in ("", *each.transports) for each in world.pool),
        "served and not recorded": served and not request.recorded,
        "served by affinity": served and bool(request.affinity),
    }


# --- planted bugs: each is a machine with one fault, and the promise that must notice it ---


class Rewired(Turn):
    """A machine some of whose transitions are others: `rewired` is looked at before the table."""

    rewired: ClassVar[dict[tuple[State, type], Callable[..., list[Command]]]] = {}

    def handle(self, event: Event, now: float = 0.0) -> list[Command]:
        transition = self.rewired.get((self.state, type(event)))
        return transition(self, event, now) if transition else super().handle(event, now)


class RelaysBeforeOutput(Rewired):
    """Announcements are not held back."""

    def _announce(self, event: Announced, now: float) -> list[Command]:
        return [Relay((event.raw,))]

    rewired: ClassVar = {(State.WAITING, Announced): _announce}


class SkipsCommit(Rewired):
    """A turn ends without having been written."""

    def _complete(self, event: Completed, now: float) -> list[Command]:
        self.state, self.outcome = State.ENDED, Outcome.COMPLETED
        return [Relay((*self._release(), event.raw)), End(Outcome.COMPLETED)]

    rewired: ClassVar = {(State.WAITING, Completed): _complete, (State.SHOWING, Completed): _complete}


class RelaysBeforeCommit(Rewired):
    """The terminal event is out before it is written."""

    def _complete(self, event: Completed, now: float) -> list[Command]:
        self.state = State.COMMITTING
        return [Relay((*self._release(), event.raw)), Commit(event.raw)]

    rewired: ClassVar = {(State.WAITING, Completed): _complete, (State.SHOWING, Completed): _complete}


class CommitsTwice(Rewired):
    """A turn is written twice."""

    def _complete(self, event: Completed, now: float) -> list[Command]:
        return [*Turn._completed(self, event, now), Commit(event.raw)]

    rewired: ClassVar = {(State.SHOWING, Completed): _complete}


class MovesAfterShown(Rewired):
    """A turn is moved although its client has seen something of it."""

    def _fail(self, event: Failed, now: float) -> list[Command]:
        self.phase = Phase.SENT
        return Turn._failed(self, event, now)

    rewired: ClassVar = {(State.SHOWING, Failed): _fail}


class ForgetsWhomItTried(Turn):
    """A credential that has failed is placed again."""

    def _start_over(self) -> list[Command]:
        self._excluded = frozenset()
        return Turn._start_over(self)


class KeepsWhatWasHeld(Turn):
    """Announcements of an attempt that failed are shown with the next one's."""

    def _start_over(self) -> list[Command]:
        held = list(self._held)
        commands = Turn._start_over(self)
        self._held.extend(held)
        return commands


class ForgetsWhatWasHeld(Turn):
    """Only the last of the events that were held back is shown."""

    def _release(self) -> tuple[bytes, ...]:
        return Turn._release(self)[-1:]


class BlamesA404(Turn):
    """A generic 404 is held against the credential, and moves the turn."""

    def _understand(self, failure: Failure) -> tuple[Failure, bool]:
        if failure.status == 404 and failure.kind is FailureKind.REQUEST_FAULT:
            failure = replace(failure, kind=FailureKind.AUTH_REJECTED, names_key=True)
        return Turn._understand(self, failure)


class ConfirmsPoison(Turn):
    """The first refusal is believed."""

    def _blame(self, failure: Failure, poisonous: bool) -> list[Command]:
        assert self.credential is not None
        return [Blame(self.credential, failure, True)]


class WalksPoisonThroughThePool(Turn):
    """Two alike refusals do not end a turn."""

    def _understand(self, failure: Failure) -> tuple[Failure, bool]:
        return Turn._understand(self, failure)[0], False


class EndsTwice(Rewired):
    """A turn says twice that it is over."""

    def _commit(self, event: Committed, now: float) -> list[Command]:
        return [*Turn._committed(self, event, now), End(Outcome.COMPLETED)]

    rewired: ClassVar = {(State.COMMITTING, Committed): _commit}


class SendsIncrementsAnywhere(Rewired):
    """The client's increment goes to whatever socket is there."""

    def _open_up(self, event: Opened, now: float) -> list[Command]:
        return Turn._send(self, self.request.raw)

    rewired: ClassVar = {(State.OPENING, Opened): _open_up}


class ReplaysForEver(Turn):
    """A credential whose sockets end again and again is never left."""

    def _may_replay(self) -> bool:
        return True


class MovesPinsByItself(Turn):
    """A pin is moved without compare-and-set."""

    def _bind(self, event: Placed) -> list[Command]:
        pin = self.session.pin
        self.session.pin = Pin(event.credential.name, pin.epoch + 1 if pin else 1, event.nonce, "because")
        return self._open()


class SkipsEpochs(Turn):
    """A pin is moved by two."""

    def _bind(self, event: Placed) -> list[Command]:
        commands = Turn._bind(self, event)
        return [
            MovePin(c.expected, structs.replace(c.to, epoch=c.to.epoch + 1)) if type(c) is MovePin else c
            for c in commands
        ]


class LeavesTheBoundary(Turn):
    """A turn that lives in one boundary is placed in any."""

    @property
    def boundary(self) -> str | None:
        return None


class OpensWhomItLikes(Turn):
    """What selection says is not what is opened."""

    def _open(self) -> list[Command]:
        if self.failures:
            self.credential = self.failures[0][0]
        return Turn._open(self)


class InventsATime(Rewired):
    """A client is told a reset that no vendor named."""

    def _nobody(self, event: NonePlaced, now: float) -> list[Command]:
        return Turn._none_placed(self, structs.replace(event, resets_at=event.resets_at or event.at + 60), now)

    rewired: ClassVar = {(State.PLACING, NonePlaced): _nobody}


class GivesUp(Turn):
    """The first failure is told to the client."""

    def _out_of_bounds(self, failure: Failure, now: float) -> bool:
        return True


class EndsWhileWriting(Turn):
    """A client that leaves ends a turn that is being written."""

    def _left(self) -> list[Command]:
        if self.state is State.COMMITTING:
            self.state = State.WAITING
        return Turn._left(self)


class SaysNothing(Turn):
    """A turn ends and its client is not told."""

    def _tell(self, outcome: Outcome, reply: ErrorReply | None, verbatim: bytes | None = None) -> list[Command]:
        return [command for command in Turn._tell(self, outcome, reply, verbatim) if type(command) is not Tell]


class AbsolvesBeforeProof(Rewired):
    """An announcement is taken for proof."""

    def _announce(self, event: Announced, now: float) -> list[Command]:
        return [*self._prove(), *Turn._announced(self, event, now)]

    rewired: ClassVar = {(State.WAITING, Announced): _announce}


class AbsolvesAgainAndAgain(Turn):
    """Every piece of output absolves anew."""

    def _prove(self) -> list[Command]:
        self._proved = False
        return Turn._prove(self)


class AbsolvesAfterTheCommit(Turn):
    """Who serves is absolved only when all is written."""

    def _prove(self) -> list[Command]:
        return [command for command in Turn._prove(self) if type(command) is not Absolve]

    def _committed(self, event: Committed, now: float) -> list[Command]:
        assert self.credential is not None
        return [Absolve(self.credential), *Turn._committed(self, event, now)]


class AbsolvesAfterShowing(Rewired):
    """Output is shown before anybody hears that the credential serves."""

    def _output(self, event: OutputBegan, now: float) -> list[Command]:
        self._held.append(event.raw)
        return [*self._show(), *self._prove()]

    rewired: ClassVar = {(State.WAITING, OutputBegan): _output}


class AbsolvesNobody(Turn):
    """That a credential serves is kept to itself."""

    def _prove(self) -> list[Command]:
        return [command for command in Turn._prove(self) if type(command) is not Absolve]


class AbsolvesAnother(Turn):
    """The credential that failed first is absolved by who serves."""

    def _prove(self) -> list[Command]:
        first = self.failures[0][0] if self.failures else None
        return [Absolve(first) if first and type(c) is Absolve else c for c in Turn._prove(self)]


class ConfirmsNobody(Turn):
    """That others refused what is served now is kept to itself."""

    def _prove(self) -> list[Command]:
        return [command for command in Turn._prove(self) if type(command) is not Blame]


class CountsWhatStays(Rewired):
    """A turn that comes back to the same credential is counted as a failover."""

    def _count(self, event: Placed, now: float) -> list[Command]:
        moving, self._moving = self._moving, None
        return [*([moving] if moving is not None else []), *Turn._placed(self, event, now)]

    rewired: ClassVar = {(State.PLACING, Placed): _count}


class DoubtsEverybody(Turn):
    """There is no end to whom one turn speaks against."""

    def _may_say(self, failure: Failure) -> bool:
        assert self.credential is not None
        again = self.credential.name in self._doubted
        self._doubted |= {self.credential.name}
        return failure.row.effect not in DOUBTS or failure.independent or not again


class DoubtsOneTwice(Turn):
    """One turn speaks twice against the same credential."""

    def _may_say(self, failure: Failure) -> bool:
        assert self.credential is not None
        self._doubted -= {self.credential.name}
        return Turn._may_say(self, failure)


class VoidsWhatIsStated(Turn):
    """What a vendor states is taken for doubt."""

    def _may_say(self, failure: Failure) -> bool:
        assert self.credential is not None
        if self.credential.name in self._doubted or len(self._doubted) >= MAX_DOUBTED:
            return False
        return Turn._may_say(self, failure)


class VoidsWhatTheDoorSays(Turn):
    """A refused handshake is taken for what the request provoked."""

    def _may_say(self, failure: Failure) -> bool:
        return Turn._may_say(self, replace(failure, independent=False))


class RetractsNothing(Turn):
    """What a poisonous request said about others stays."""

    def _blame(self, failure: Failure, poisonous: bool) -> list[Command]:
        return [command for command in Turn._blame(self, failure, poisonous) if type(command) is not Retract]


class RetractsOnlyTheNewest(Turn):
    """Of what a poisonous request said about others only the last is taken back."""

    def _blame(self, failure: Failure, poisonous: bool) -> list[Command]:
        return Turn._blame(self, failure, poisonous)[-2 if poisonous else 0 :]


class HoldsPoisonAgainstTheLast(Turn):
    """The last of those who refuse a poisonous request is doubted."""

    def _blame(self, failure: Failure, poisonous: bool) -> list[Command]:
        commands = Turn._blame(self, failure, poisonous)
        may = poisonous and len(self._doubted) < MAX_DOUBTED
        return [structs.replace(c, void=False) if may and type(c) is Blame else c for c in commands]


class LeavesWhoLimitsItsRate(Turn):
    """A credential that limits its rate is out of the turn."""

    def _may_come_again(self, failure: Failure) -> bool:
        return False


class ComesBackForEver(Turn):
    """A credential that limits its rate is asked as often as it lets itself be asked."""

    def _may_come_again(self, failure: Failure) -> bool:
        return failure.kind is FailureKind.RATE_LIMITED


class ComesBackToAnybody(Turn):
    """A credential that fails in any way is placed once more."""

    def _may_come_again(self, failure: Failure) -> bool:
        return len([c for c, _ in self.failures if c is self.credential]) <= 1


class ForgetsWhoseItIs(Turn):
    """A turn that only one credential can serve is placed on any of its boundary."""

    def _place(self) -> list[Command]:
        return [_wishing(c, only=None) for c in Turn._place(self)]


class ForgetsTheOwner(Rewired):
    """What the store says about the owner is passed over."""

    def _resolve(self, event: Resolved, now: float) -> list[Command]:
        return Turn._resolved(self, structs.replace(event, boundary=None, only=None), now)

    rewired: ClassVar = {(State.RESOLVING, Resolved): _resolve}


class AsksNoOwner(Rewired):
    """A turn that continues nothing is placed at once, whatever it names."""

    def _begin(self, event: Event, now: float) -> list[Command]:
        self.started = now
        return Turn._began(self, events.Began(), now) if self.request.previous_response_id else self._place()

    rewired: ClassVar = {(State.NEW, events.Began): _begin}


class ServesWhatNobodyKnows(Rewired):
    """A thing whose owner is unknown is left to the vendors."""

    def _serve(self, event: OwnerUnknown, now: float) -> list[Command]:
        return self._place()

    rewired: ClassVar = {(State.RESOLVING, OwnerUnknown): _serve}


class ForgetsTheTransport(Turn):
    """A turn is placed on whoever is there, whatever its endpoint speaks."""

    def _place(self) -> list[Command]:
        return [_wishing(c, transport="") for c in Turn._place(self)]


class TakesUnsentForSent(Rewired):
    """What never left is taken for what may have run."""

    def _fail(self, event: Failed, now: float) -> list[Command]:
        return Turn._failed(self, Failed(replace(event.failure, unsent=False)), now)

    rewired: ClassVar = {(State.WAITING, Failed): _fail}


class CountsWhatNeverLeft(Turn):
    """A send that never left is a placement like any other."""

    def _out_of_bounds(self, failure: Failure, now: float) -> bool:
        if failure.unsent:
            self._spent[failure.kind] = self._spent.get(failure.kind, 0) + 1
        return Turn._out_of_bounds(self, failure, now)


class TakesTheNextForUnsent(Rewired):
    """After one send that never left, nothing counts as sent any more."""

    def _fail(self, event: Failed, now: float) -> list[Command]:
        before = any(failure.unsent for _, failure in self.failures)
        return Turn._failed(self, Failed(replace(event.failure, unsent=before or event.failure.unsent)), now)

    rewired: ClassVar = {(State.WAITING, Failed): _fail}


class RepeatsInAConversation(Turn):
    """A turn that may stand in a conversation of the vendor's is sent again."""

    def _would_repeat(self, failure: Failure) -> bool:
        return False


class NeverRepeatsInAConversation(Turn):
    """A turn of a conversation is not sent again although it never left."""

    def _would_repeat(self, failure: Failure) -> bool:
        return failure.row.executed and self.request.binding == CONVERSATION


def _wishing(command: Command, **changes: str | None) -> Command:
    return Place(structs.replace(command.wish, **changes)) if isinstance(command, Place) else command


PLANTED: dict[type[Turn], str] = {
    RelaysBeforeOutput: "held back",
    SkipsCommit: "written first",
    RelaysBeforeCommit: "written first",
    CommitsTwice: "written first",
    MovesAfterShown: "sent no more",
    ForgetsWhomItTried: "placed well",
    OpensWhomItLikes: "placed well",
    LeavesTheBoundary: "placed well",
    KeepsWhatWasHeld: "one attempt shown",
    ForgetsWhatWasHeld: "one attempt shown",
    BlamesA404: "faults harm nobody",
    ConfirmsPoison: "poison confirms nothing",
    WalksPoisonThroughThePool: "poison stops",
    EndsTwice: "ends once",
    SaysNothing: "ends once",
    EndsWhileWriting: "written first",
    SendsIncrementsAnywhere: "no amnesia",
    ReplaysForEver: "bounded",
    MovesPinsByItself: "pins by rule",
    SkipsEpochs: "pins by rule",
    InventsATime: "told truly",
    GivesUp: "completes",
    AbsolvesBeforeProof: "absolved by proof",
    AbsolvesAgainAndAgain: "absolved by proof",
    AbsolvesAfterTheCommit: "absolved by proof",
    AbsolvesAfterShowing: "absolved by proof",
    AbsolvesNobody: "absolved by proof",
    AbsolvesAnother: "absolved by proof",
    ConfirmsNobody: "confirmed by success",
    CountsWhatStays: "moves are counted",
    DoubtsEverybody: "few doubts",
    DoubtsOneTwice: "few doubts",
    VoidsWhatIsStated: "what is stated counts",
    VoidsWhatTheDoorSays: "what is stated counts",
    RetractsNothing: "poison leaves no doubt",
    RetractsOnlyTheNewest: "poison leaves no doubt",
    HoldsPoisonAgainstTheLast: "poison leaves no doubt",
    LeavesWhoLimitsItsRate: "completes",
    ComesBackForEver: "placed well",
    ComesBackToAnybody: "placed well",
    ForgetsWhoseItIs: "kept to its owner",
    ForgetsTheOwner: "kept to its owner",
    AsksNoOwner: "owners are asked",
    ServesWhatNobodyKnows: "owners are asked",
    ForgetsTheTransport: "speaks its transport",
    TakesUnsentForSent: "unsent is free",
    CountsWhatNeverLeft: "completes",
    TakesTheNextForUnsent: "unsent is free",
    RepeatsInAConversation: "not twice",
    NeverRepeatsInAConversation: "completes",
}
BUDGET = 3000


@pytest.mark.parametrize("machine", PLANTED, ids=lambda machine: machine.__name__)
def test_a_planted_bug_is_noticed(machine: type[Turn]) -> None:
    """Only walks in which the machine itself keeps every promise count, and the promise must be the one expected."""
    noticed: Counter[str] = Counter()
    for seed in range(BUDGET):
        if seed not in findings() and (broken := broken_by(machine, seed)):
            noticed[broken.promise] += 1
            if broken.promise == PLANTED[machine]:
                return
    pytest.fail(f"{machine.__name__} was not noticed within {BUDGET} walks, only {dict(noticed)}")


# --- events in any order that the table takes, whatever was asked ---


REASONS = ["tried", "exhausted", "busy", "model", "transport", "cooling", "half_open", "ramping"]


def any_event(kind: type, rng: Random, number: int) -> Event:
    raw = b"%d %b" % (number, kind.__name__.encode())
    faults = [*FAULTS.values(), *UNSENT, PRNF, REQUEST_FAULT, failure(FailureKind.CIPHERTEXT_FOREIGN)]
    who = rng.choice([A, B, C, D])
    made: dict[type, Callable[[], Event]] = {
        events.Succeeded: lambda: events.Succeeded(who, parent(), raw),
        Resolved: lambda: Resolved(
            parent(who, seen=rng.random() < 0.5),
            session(pinned=pin(A)),
            rng.choice([None, who.boundary]),
            rng.choice([None, who.name]),
        ),
        OwnerUnknown: lambda: OwnerUnknown("conv_1"),
        Placed: lambda: Placed(who, f"n{number}", rng.choice(["", "a licence"])),
        NonePlaced: lambda: NonePlaced(frozenset(rng.sample(REASONS, 2))),
        events.PinMoved: lambda: events.PinMoved(pin(who, number)),
        events.PinStale: lambda: events.PinStale(pin(who, number), rng.random() < 0.5),
        Opened: lambda: Opened(rng.random() < 0.5),
        events.Rebuilt: lambda: events.Rebuilt(raw),
        Announced: lambda: Announced(raw),
        events.OutputBegan: lambda: events.OutputBegan(raw),
        Completed: lambda: Completed(raw),
        Failed: lambda: Failed(
            replace(rng.choice(faults), independent=rng.random() < 0.3, unsent=rng.random() < 0.1),
        ),
        Committed: lambda: Committed(pin(who, number) if rng.random() < 0.5 else None, False),
    }
    if kind in made:
        return made[kind]()
    event: Event = kind()
    return event


@pytest.mark.parametrize("part", range(4))
def test_any_order_of_events_ends_once_with_an_outcome(part: int) -> None:
    for seed in range(part * 500, part * 500 + 500):
        rng = Random(seed)
        needs = rng.choice([(), (), ("conv_1",)])
        one = turn(of=session(pinned=pin(A)), previous=rng.choice([None, "resp_0"]), needs=needs)
        said: list[Command] = []
        for number in range(80):
            kinds = sorted((kind for state, kind in TRANSITIONS if state is one.state), key=lambda kind: kind.__name__)
            leaves = not kinds or rng.random() < 0.02
            said += one.handle(ClientLeft() if leaves else any_event(rng.choice(kinds), rng, number), float(number))
            if one.state is State.ENDED:
                break
        said += one.handle(ClientLeft())
        if one.state is State.COMMITTING:
            said += one.handle(Committed(None, False))
        check(one, said)


def is_doubt(found: Failure) -> bool:
    return found.row.effect in DOUBTS and not found.independent


def check(one: Turn, said: list[Command]) -> None:
    """What holds whatever happens."""
    kinds = [type(command) for command in said]
    assert (
        kinds.count(End) == 1 == len([command for command in said if command == End(one.outcome or Outcome.UNSERVED)])
    )
    assert kinds[-1] is End
    assert kinds.count(Commit) <= 1
    assert kinds.count(Tell) <= 1
    assert kinds.count(Absolve) <= 1
    doubts = [
        command.credential.name
        for command in said
        if isinstance(command, Blame) and not command.void and not command.again and is_doubt(command.failure)
    ]
    assert len(doubts) == len(set(doubts)) <= 2
    assert all(is_doubt(command.failure) for command in said if isinstance(command, Blame) and command.void)
    shown = kinds.index(Relay) if Relay in kinds else len(kinds)
    assert not {Send, Open, Place, MovePin} & set(kinds[shown:])
    frames = [frame for command in said if isinstance(command, Relay) for frame in command.frames]
    assert len(frames) == len(set(frames))
    if one.outcome is Outcome.COMPLETED:
        assert kinds.index(Commit) < len(kinds) - kinds[::-1].index(Relay) - 1
    elif Commit in kinds:
        raise AssertionError("committed, and yet not completed")


def test_every_event_can_be_made_up() -> None:
    for kind in get_args(events.Event):
        assert type(any_event(kind, Random(1), 1)) is kind
