"""Placement: which credential a turn goes to, what runs where, and how long a turn waits where nobody is free."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from broker.domain.credential import Credential
from broker.domain.events import NonePlaced, Placed
from broker.domain.health import BLOCKING, AuthHealth, HealthState
from broker.domain.probing import due
from broker.domain.selection import (
    UNABLE,
    Candidate,
    Choice,
    Explained,
    Loads,
    Strategy,
    Wish,
    explain,
    keep,
    select,
)
from broker.domain.snapshot import Verdict
from broker.edge.allotment import Allotment
from broker.edge.health import HealthBoard
from broker.edge.licences import Licences
from broker.edge.waiting import Answered, Ticket, WaitingRoom
from broker.metrics import Metrics
from broker.store.health import HealthStore
from broker.store.nodes import NodeBeat

TRIAL_EVERY = 5.0
"""Seconds between two trials of a credential that is blocked until a time that we set ourselves, when nobody else is
left; and after which a block that has run out is tried by this node, if no worker has done so."""

REST = 2.0
"""Seconds for which one that is out on soft evidence rests when a turn of this node was placed on it."""

LIVE_WITHIN = 5.0
"""Seconds after its last heartbeat in which a node's load still counts."""


_NEVER = UNABLE | {"tried"}
"""Why one was passed over who will not serve this turn, however long it waits."""


@dataclass(frozen=True, slots=True)
class Placing:
    """How turns are placed: the strategy among equals, seconds a turn may wait for a credential, how many may wait."""

    strategy: Strategy = Strategy.LEAST_LOADED
    wait: float = 10.0
    waiting: int = 4096


class Placement:
    """Places turns by this node's snapshot of health; no turn waits for the store without need.

    A turn that nobody can serve now, but probably in a moment, may `wait`: for the end of a short block, for the one
    request that tries a credential whose block has run out, for its part of one that comes back slowly, for a slot
    where there is a cap.
    """

    def __init__(
        self,
        pool: Sequence[Credential],
        board: HealthBoard,
        store: HealthStore,
        metrics: Metrics,
        *,
        node: str,
        chance: random.Random,
        placing: Placing | None = None,
        bound: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.placing = placing or Placing()
        self.in_flight: Counter[str] = Counter()
        self._board = board
        self._node = node
        self._metrics = metrics
        self._chance = chance
        self._bound = bound
        self._turn = 0
        self._placed_new = 0
        self._started: dict[str, int] = {}
        self._resting: dict[str, float] = {}
        self._total: Counter[str] = Counter()
        self._sessions: Counter[str] = Counter()
        self.waiting = WaitingRoom(
            self._place_waiting, self.refuse, patience=self.placing.wait, most=self.placing.waiting
        )
        self.licences = Licences(store, metrics, self.waiting.wake)
        self.allotment = Allotment(node, store, metrics, self.in_flight, self.waiting.wake)
        self.loads = Loads(
            self._total,
            self._sessions,
            self.in_flight,
            self.allotment.caps,
            self.licences.free,
            self._started,
            self._resting,
        )
        self.pool: Sequence[Credential] = ()
        self._by_name: dict[str, Credential] = {}
        self.adopt(pool)
        board.listen(self._row_changed, self._refreshed)

    def start(self) -> None:
        """Keep licences and slots alive."""
        self.licences.start()
        self.allotment.start(lambda: self._by_name)

    async def stop(self) -> None:
        """Give back licences and slots, bounded."""
        await self.licences.stop()
        await self.allotment.stop()

    def adopt(self, pool: Sequence[Credential]) -> None:
        """Place turns on these credentials from now on; turns that run are not touched."""
        self.pool = tuple(pool)
        self._by_name = {credential.name: credential for credential in pool}
        self.waiting.wake()

    def place(self, wish: Wish) -> Placed | NonePlaced | None:
        """Choose a credential for a turn; answers from memory. None: nobody now, but it is worth to `wait`."""
        pinned = self._by_name.get(wish.preferred) if wish.preferred is not None else None
        if pinned is not None and keep(pinned, self._board.snapshot, self.loads, wish, now=self._board.now()):
            if not self._has_room(pinned):
                return None
            if not self._board.snapshot.clear:
                self._count_start(self._board.snapshot.verdict(pinned, wish.model, self._board.now()))
            return self._seat(pinned, wish, "")
        if self.waiting.queues(wish):
            return None
        return self._place_waiting(wish)

    def wait(self, wish: Wish, then: Answered) -> Ticket | None:
        """Call `then` with the answer as soon as there is one, within `placing.wait`; None if too many wait."""
        self._metrics.waits.inc()
        return self.waiting.enter(wish, then)

    def explain(self, wish: Wish) -> list[Explained]:
        """Who would serve such a turn now, and of every other one why not."""
        return explain(self._choose(wish), wish, self.placing.strategy)

    def usable(self) -> int:
        """How many credentials could serve some turn right now."""
        now = self._board.now()
        verdicts = (self._board.snapshot.verdict(credential, "", now) for credential in self.pool)
        return sum(verdict.usable or verdict.half_open for verdict in verdicts)

    def named(self, name: str) -> Credential | None:
        """The credential of this name, if there is one."""
        return self._by_name.get(name)

    def engage(self, credential: Credential) -> None:
        """From its placement on, a turn counts as in flight on its credential."""
        self.in_flight[credential.name] += 1
        self._total[credential.name] += 1

    def release(self, credential: Credential, trial: str) -> None:
        """The turn is no longer on it; `trial` as it was placed."""
        self.in_flight[credential.name] -= 1
        self._total[credential.name] -= 1
        if trial:
            self.licences.over(trial)
        self.waiting.wake()

    # --- choosing ---

    def _choose(self, wish: Wish) -> Choice:
        self._turn += 1
        strategy = self.placing.strategy
        chance = self._turn if strategy is Strategy.ROUND_ROBIN else self._chance.getrandbits(64)
        return select(
            self.pool, self._board.snapshot, self.loads, wish, now=self._board.now(), chance=chance, strategy=strategy
        )

    def _place_waiting(self, wish: Wish) -> Placed | NonePlaced | None:
        choice = self._choose(wish)
        if (taken := choice.credential) is not None:
            if not self._has_room(taken):
                return None
            verdict = choice.candidates[0].verdict
            self._count_start(verdict)
            if verdict.row is not None and verdict.row.soft and verdict.row.state in BLOCKING:
                self._resting[taken.name] = self._board.now() + REST
            tried = verdict.row.subject if verdict.half_open and verdict.row is not None else ""
            return self._seat(taken, wish, self.licences.use(tried) if tried else "")
        return None if self._hopeful(choice.candidates) else self._none(choice.candidates, wish)

    def _count_start(self, verdict: Verdict) -> None:
        if verdict.ramp is not None:
            subject = verdict.ramp.subject
            self._started[subject] = self._started.get(subject, 0) + 1

    def _seat(self, credential: Credential, wish: Wish, trial: str) -> Placed:
        name = credential.name
        if name == wish.preferred and wish.pinned:
            return Placed(credential, "", trial)
        self._placed_new += 1
        self._sessions[name] += 1
        if wish.preferred is not None:
            self._sessions[wish.preferred] -= 1
        return Placed(credential, f"{self._chance.getrandbits(128):032x}", trial)

    def _has_room(self, credential: Credential) -> bool:
        return not credential.max_in_flight or self.allotment.has_room(credential, len(self.waiting))

    def _hopeful(self, candidates: Sequence[Candidate]) -> bool:
        """Whether one of them will probably serve in a moment; asks for the licence of who may be tried."""
        now = self._board.now()
        # all of them, for where the licence of one is refused that of the next is asked for
        promising = [self._promises(candidate, now) for candidate in candidates]
        return any(promising)

    def _promises(self, candidate: Candidate, now: float) -> bool:
        why, row = candidate.passed_over, candidate.verdict.row
        if why in ("busy", "ramping"):
            return True
        if row is None or why in _NEVER or row.state is HealthState.PAUSED:
            return False
        if why == "half_open":
            self._want(row)
            return True
        if row.until and row.until - now <= self.placing.wait:
            return True
        if row.soft:
            return True  # it rests for a moment, and is then used again
        if row.told or now - row.since < TRIAL_EVERY:
            return False
        # with nobody left, an end that we set ourselves is looked at earlier: a mistake that took the whole pool out is
        # over soon after its cause. Where somebody else is at it, what comes of it is worth to wait for
        self._want(row)
        return True

    def _want(self, row: AuthHealth) -> None:
        """As many licences as turns wait: others may have use for the rest."""
        if self.licences.on_hand <= len(self.waiting):
            self.licences.wanted(row)

    def refuse(self, wish: Wish) -> NonePlaced:
        """The answer to a turn that cannot wait, or has waited too long."""
        return self._none(self._choose(wish).candidates, wish)

    def _none(self, candidates: Sequence[Candidate], wish: Wish) -> NonePlaced:
        # why a credential is out although it was tried in this turn is written in its row; one that was not passed over
        # had no slot left
        reasons = {
            c.verdict.row.state.value
            if c.passed_over == "tried" and c.verdict.row and not c.verdict.usable
            else c.passed_over or "busy"
            for c in candidates
        }
        able = [c.credential for c in candidates if c.passed_over not in UNABLE]
        now = self._board.now()
        return NonePlaced(frozenset(reasons), self._board.snapshot.earliest_reset(able, wish.model, now), now)

    # --- what the board and the other nodes say ---

    def _row_changed(self, before: AuthHealth | None, row: AuthHealth) -> None:
        """A row is as it is now, here or anywhere."""
        if before is None or before.returned != row.returned:
            self._started.pop(row.subject, None)
        if row.state not in BLOCKING:
            # the answer is there, whoever has found it
            self.licences.done(row.subject)
        elif row.holds(self._board.now()):
            self.licences.spare(row.subject)
        self.waiting.wake()

    def _refreshed(self, before: Mapping[str, AuthHealth], beats: Mapping[str, NodeBeat]) -> None:
        """The whole table was taken over, and what all nodes run."""
        self._count(beats)
        if before != self._board.snapshot.rows:
            self._settled(before)
            self.waiting.wake()
        self._volunteer()
        self.show()

    def _settled(self, before: Mapping[str, AuthHealth]) -> None:
        now = self._board.now()
        for subject in list(self._started):
            row, known = self._board.snapshot.rows.get(subject), before.get(subject)
            if row is None or known is None or row.returned != known.returned:
                del self._started[subject]
        for subject in list(self.licences.free):
            row = self._board.snapshot.rows.get(subject)
            if row is None or row.state not in BLOCKING or (row != before.get(subject) and row.holds(now)):
                self.licences.done(subject)

    def _count(self, beats: Mapping[str, NodeBeat]) -> None:
        """What all nodes run together, and which part of what comes back slowly is this node's."""
        live = {n: b for n, b in beats.items() if b.age < LIVE_WITHIN and b.role == "edge"}
        others: Counter[str] = Counter()
        sessions = Counter(self._bound())
        for name, beat in live.items():
            if name != self._node:
                others.update(_counts(beat.load.get("in_flight")))
                sessions.update(_counts(beat.load.get("bound")))
        self._total.clear()
        self._total.update(others)
        self._total.update(self.in_flight)
        self._sessions.clear()
        self._sessions.update(sessions)
        names = sorted({*live, self._node})
        self.loads.share = self.allotment.share = (names.index(self._node), len(names))

    def _volunteer(self) -> None:
        """A block that ran out some time ago, and that no worker has looked into, is tried by a turn of this
        node, where new ones come here at all."""
        placed, self._placed_new = self._placed_new, 0
        if not placed:
            return
        now = self._board.now()
        for probe in due(self._board.snapshot.rows, self.pool, now):
            if probe.row.half_open(now) and now - probe.row.until > TRIAL_EVERY:
                self.licences.wanted(probe.row)

    def show(self) -> None:
        """Bring the gauges of health up to date."""
        now = self._board.now()
        for credential in self.pool:
            verdict = self._board.snapshot.verdict(credential, "", now)
            for state in HealthState:
                blocked = not verdict.usable and verdict.row is not None and verdict.row.state is state
                self._metrics.health_state.labels(credential.name, state.value).set(blocked)


def _counts(told: object) -> dict[str, int]:
    """What another node says of its load, as far as it makes sense."""
    return {str(k): v for k, v in told.items() if isinstance(v, int)} if isinstance(told, dict) else {}
