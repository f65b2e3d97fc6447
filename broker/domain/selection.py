"""Selection: which credential serves a turn. One pure function, one choke point."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from itertools import groupby

import msgspec

from broker.domain.credential import Credential
from broker.domain.snapshot import HealthSnapshot, Verdict


class Strategy(StrEnum):
    """In which order equals are taken: equal in health, boundary and tier."""

    LEAST_LOADED = "least_loaded"
    """The less loaded of two drawn by weight: nearly as even as the least loaded of all, and nodes that know of each
    other's load a second late do not all run to the same one."""
    WEIGHTED = "weighted"
    """Drawn by weight, whatever the load."""
    ROUND_ROBIN = "round_robin"
    """In turns, by weight."""
    FILL_FIRST = "fill_first"
    """As configured: the next only when those before it are at their cap or out."""
    STABLE_HASH = "stable_hash"
    """By the session: one that comes or goes moves only the sessions that must move."""


class Wish(msgspec.Struct, frozen=True):
    """What a turn asks of a credential.

    `preferred` is the pin (or, with `pinned` False, who keeps the response that the turn continues): a preference that
    never outranks health. `boundary`, where given, is the only one that can serve the turn, `only` the only credential,
    `transport` what its endpoint must speak. `excluded` are the keys of the credentials that this turn has already
    tried (one with another secret is untried), `avoided` is the name of one that comes behind everybody else who is
    usable. `session` is what `STABLE_HASH` goes by. `affinity`, where given, takes the place of any strategy: who asks
    with the same word comes to the same credential among equals.
    """

    model: str
    preferred: str | None = None
    boundary: str | None = None
    excluded: AbstractSet[str] = frozenset()
    avoided: str | None = None
    session: str = ""
    only: str | None = None
    transport: str = ""
    affinity: str = ""
    pinned: bool = True


_NOBODY: AbstractSet[str] = frozenset()


class Loads(msgspec.Struct):
    """What runs where, by credential, and what this node may start.

    `in_flight` and `bound` (sessions pinned to it) are of all nodes. `caps` says how many turns this node may have in
    flight, where there is a cap, of which it has `own`. `licensed` are the subjects of rows that this node may try.
    `started` counts this node's turns by the row by which a credential came back; `resting` says until when one that is
    out on soft evidence rests since it was last used; `share` is (index, count) of this node among the live ones.
    """

    in_flight: Mapping[str, int] = {}
    bound: Mapping[str, int] = {}
    own: Mapping[str, int] = {}
    caps: Mapping[str, int] = {}
    licensed: AbstractSet[str] = _NOBODY
    started: Mapping[str, int] = {}
    resting: Mapping[str, float] = {}
    share: tuple[int, int] = (0, 1)


class Candidate(msgspec.Struct, frozen=True):
    """One credential as selection saw it, and why it was passed over (empty: it was not)."""

    credential: Credential
    verdict: Verdict
    load: float
    passed_over: str = ""


class Choice(msgspec.Struct, frozen=True):
    """The credential taken, if any, and every candidate in the order of preference."""

    credential: Credential | None
    candidates: Sequence[Candidate] = ()


def select(
    pool: Sequence[Credential],
    health: HealthSnapshot,
    loads: Loads,
    wish: Wish,
    *,
    now: float,
    chance: int = 0,
    strategy: Strategy = Strategy.LEAST_LOADED,
) -> Choice:
    """Choose a credential for one turn, and say of every one why it was passed over.

    Order: usable, then one that must be tried, then trusted before doubted before spared before out on soft evidence
    (see `Verdict.rank`), then the pin, then the pin's boundary (who moves within it keeps its reasoning), then the
    lower priority tier, then as `strategy` says. `chance` is any integer (for ROUND_ROBIN one more each time). A
    doubted pin keeps its session, for doubt is no evidence and moving costs the prompt cache; a spared one gives way to
    whoever is better off. Soft evidence never takes out anybody: who is out by it comes last, and now and then
    (`Loads.resting`); where more than half of those who could serve are, it counts as doubt and no more.
    """
    candidates = [_look(credential, health, loads, wish, now) for credential in pool]
    calm = _without_panic(candidates)
    home = next((credential.boundary for credential in pool if credential.name == wish.preferred), None)

    def standing(candidate: Candidate) -> tuple[bool, bool, bool, int, bool, bool, int]:
        return _standing(candidate, wish, home, loads)

    arrange = _by_affinity if wish.affinity else _STRATEGIES[strategy]
    ordered: list[Candidate] = []
    for _, equals in groupby(sorted(calm, key=standing), key=standing):
        group = list(equals)
        ordered += group if len(group) == 1 else arrange(group, wish, chance)
    taken = ordered[0].credential if ordered and not ordered[0].passed_over else None
    return Choice(taken, ordered)


def keep(pinned: Credential, health: HealthSnapshot, loads: Loads, wish: Wish, *, now: float) -> bool:
    """Whether `select` would take the pin: asked first, as the answer is nearly always yes and costs no look at others.

    `pinned` is the credential that `wish.preferred` names. Nobody stands before a pin that is usable, neither spared
    nor avoided; so this is no rule of its own, but the head of the order of `select`.
    """
    name = pinned.name
    if name == wish.avoided or pinned.key in wish.excluded or _unable(pinned, wish):
        return False
    if _busy(pinned, loads):
        return False
    if health.clear:
        return True
    verdict = health.verdict(pinned, wish.model, now)
    return verdict.rank in (0, 1) and (wish.avoided is not None or not _ramping(verdict, loads, now))


def _look(credential: Credential, health: HealthSnapshot, loads: Loads, wish: Wish, now: float) -> Candidate:
    verdict = health.verdict(credential, wish.model, now)
    name = credential.name
    load = (loads.in_flight.get(name, 0) + loads.bound.get(name, 0)) / credential.weight
    why = _why_not(credential, verdict, loads, wish, now)
    if not why and not verdict.usable:
        # by licence; where the block still holds, only when nobody else is left
        verdict = Verdict(1 if verdict.half_open else _LAST, verdict.row, half_open=True)
    return Candidate(credential, verdict, load, why)


_LAST = 4


def _why_not(credential: Credential, verdict: Verdict, loads: Loads, wish: Wish, now: float) -> str:
    if unable := _unable(credential, wish):
        return unable
    if credential.key in wish.excluded:
        return "tried"
    if verdict.row is not None and not verdict.usable:
        if verdict.row.subject not in loads.licensed:
            return "half_open" if verdict.half_open else verdict.row.state.value
    elif verdict.rank == 3 and verdict.row is not None and now < loads.resting.get(credential.name, 0.0):
        return verdict.row.state.value
    elif wish.avoided is None and _ramping(verdict, loads, now):
        # whoever must get away from where it was interrupted does not wait for its part
        return "ramping"
    return "busy" if _busy(credential, loads) else ""


def _unable(credential: Credential, wish: Wish) -> str:
    """Why this one could not serve such a turn however well it is; empty if it could."""
    if not credential.serves(wish.model):
        return "model"
    if wish.transport and wish.transport not in credential.transports:
        return "transport"
    if wish.boundary is not None and credential.boundary != wish.boundary:
        return "boundary"
    return "boundary" if wish.only is not None and credential.name != wish.only else ""


def _busy(credential: Credential, loads: Loads) -> bool:
    name = credential.name
    return credential.max_in_flight > 0 and loads.own.get(name, 0) >= loads.caps.get(name, credential.max_in_flight)


def _ramping(verdict: Verdict, loads: Loads, now: float) -> bool:
    """Whether one that came back has its part for now: it may start twice as many turns each `pace` seconds."""
    row = verdict.ramp
    if row is None:
        return False
    return loads.started.get(row.subject, 0) >= allowed(now - row.returned, row.pace, loads.share)


def allowed(since: float, pace: float, share: tuple[int, int]) -> int:
    """How many turns one node may have started `since` seconds after a return: its part of 1, 2, 4, 8 and so on."""
    index, nodes = share
    total = int(2.0 ** min(max(since, 0.0) / pace, 30.0))
    return total // nodes + (index < total % nodes)


def _without_panic(candidates: list[Candidate]) -> list[Candidate]:
    """Where soft evidence would take out more than half of those who could serve, it counts as doubt and no more."""
    able = [c for c in candidates if c.passed_over not in UNABLE]
    out = [c for c in able if c.verdict.rank == 3]
    if 2 * len(out) <= len(able):
        return candidates
    return [
        Candidate(c.credential, Verdict(1, c.verdict.row, ramp=c.verdict.ramp), c.load, c.passed_over)
        if c.verdict.rank == 3
        else c
        for c in candidates
    ]


UNABLE = frozenset({"model", "transport", "boundary"})
"""Why one was passed over who could not serve such a turn, however well it is."""


def _standing(
    candidate: Candidate, wish: Wish, home: str | None, loads: Loads
) -> tuple[bool, bool, bool, int, bool, bool, int]:
    pinned = candidate.credential.name == wish.preferred
    rank = candidate.verdict.rank or 0
    to_be_tried = candidate.verdict.half_open and rank < _LAST and wish.preferred is None
    return (
        bool(candidate.passed_over),
        candidate.credential.name == wish.avoided,
        not to_be_tried,
        0 if pinned and rank == 1 else rank,
        not pinned,
        home is not None and candidate.credential.boundary != home,
        candidate.credential.priority,
    )


# --- the strategies: an order among equals ---


def _least_loaded(group: list[Candidate], wish: Wish, chance: int) -> list[Candidate]:
    drawn = _weighted(group, wish, chance)
    return sorted(drawn[:2], key=_load) + sorted(drawn[2:], key=_load)


def _weighted(group: list[Candidate], wish: Wish, chance: int) -> list[Candidate]:
    return sorted(group, key=lambda c: _race(f"{chance}", c.credential))


def _stable_hash(group: list[Candidate], wish: Wish, chance: int) -> list[Candidate]:
    return sorted(group, key=lambda c: _race(wish.session, c.credential))


def _by_affinity(group: list[Candidate], wish: Wish, chance: int) -> list[Candidate]:
    return sorted(group, key=lambda c: _race(wish.affinity, c.credential))


def _fill_first(group: list[Candidate], wish: Wish, chance: int) -> list[Candidate]:
    return group


def _round_robin(group: list[Candidate], wish: Wish, chance: int) -> list[Candidate]:
    total = sum(c.credential.weight for c in group)
    point, at = (chance * _GOLDEN) % 1.0 * total, 0
    for at, candidate in enumerate(group):  # noqa: B007 - where it stops is what is asked
        point -= candidate.credential.weight
        if point < 0:
            break
    return group[at:] + group[:at]


_GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples fall evenly, so weights are kept over any stretch of turns."""


def _load(candidate: Candidate) -> float:
    return candidate.load


def _race(key: str, credential: Credential) -> float:
    """A time drawn by weight: who is first is the one chosen (rendezvous hashing, by weight)."""
    drawn = hashlib.blake2b(f"{key}\0{credential.name}".encode(), digest_size=8).digest()
    return -math.log((int.from_bytes(drawn) + 1) / 2.0**64) / credential.weight


_STRATEGIES: dict[Strategy, Callable[[list[Candidate], Wish, int], list[Candidate]]] = {
    Strategy.LEAST_LOADED: _least_loaded,
    Strategy.WEIGHTED: _weighted,
    Strategy.ROUND_ROBIN: _round_robin,
    Strategy.FILL_FIRST: _fill_first,
    Strategy.STABLE_HASH: _stable_hash,
}


# --- why ---


class Explained(msgspec.Struct, frozen=True):
    """One candidate in words: what it is, whether it was taken, and why, or why not."""

    credential: str
    taken: bool
    why: str
    state: str
    until: float | None
    load: float


def explain(choice: Choice, wish: Wish, strategy: Strategy) -> list[Explained]:
    """Every candidate in the order of preference, with the reason why it was or was not taken."""
    told = []
    for place, candidate in enumerate(choice.candidates):
        row, name = candidate.verdict.row, candidate.credential.name
        taken = place == 0 and choice.credential is not None
        told.append(
            Explained(
                credential=name,
                taken=taken,
                why=candidate.passed_over or _why(candidate, wish, strategy, taken),
                state=row.state.value if row is not None else "healthy",
                until=row.until if row is not None and row.until else None,
                load=candidate.load,
            )
        )
    return told


def _why(candidate: Candidate, wish: Wish, strategy: Strategy, taken: bool) -> str:
    if taken:
        if candidate.credential.name == wish.preferred:
            return "pinned"
        return "tried" if candidate.verdict.half_open else "affinity" if wish.affinity else strategy.value
    if candidate.credential.name == wish.avoided:
        return "avoided"
    return _STANDING[candidate.verdict.rank or 0]


_STANDING = ("behind", "doubted", "spared", "soft_evidence", "blocked")
