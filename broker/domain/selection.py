"""Selection: which credential serves a turn. One pure function, one choke point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from broker.domain.credential import Credential
from broker.domain.health import HealthSnapshot, Verdict


class Wish(msgspec.Struct, frozen=True):
    """What a turn asks of a credential.

    `preferred` is the pin: a preference that never outranks health. `boundary`, where given, is the only one that
    can serve the turn. `excluded` are the credentials that this turn has already tried, `avoided` is one that comes
    behind everybody else who is usable.
    """

    model: str
    preferred: str | None = None
    boundary: str | None = None
    excluded: AbstractSet[str] = frozenset()
    avoided: str | None = None


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
    in_flight: Mapping[str, int],
    wish: Wish,
    *,
    now: float,
    chance: float,
) -> Choice:
    """Choose a credential for one turn, and say of every one why it was passed over.

    Order: usable, then trusted before doubted before spared (see `Verdict.rank`), then the pin, then the pin's boundary
    (who moves within it keeps its reasoning), then the lower priority tier, then the least load by weight; `chance` in
    [0, 1) breaks ties. A doubted pin keeps its session, for
    doubt is no evidence and moving costs the prompt cache; a spared one gives way to whoever is better off.
    """
    candidates = [_look(credential, health, in_flight, wish, now) for credential in pool]
    offset = int(chance * len(pool)) if pool else 0
    home = next((credential.boundary for credential in pool if credential.name == wish.preferred), None)
    ranked = sorted(
        enumerate(candidates),
        key=lambda entry: _order(entry[1], wish, home, (entry[0] - offset) % len(pool)),
    )
    ordered = [candidate for _, candidate in ranked]
    taken = next((c.credential for c in ordered if not c.passed_over), None)
    return Choice(taken, ordered)


def keep(pinned: Credential, health: HealthSnapshot, in_flight: Mapping[str, int], wish: Wish, *, now: float) -> bool:
    """Whether `select` would take the pin: asked first, as the answer is nearly always yes and costs no look at others.

    `pinned` is the credential that `wish.preferred` names. Nobody stands before a pin that is usable, neither spared
    nor avoided; so this is no rule of its own, but the head of the order of `select`.
    """
    name = pinned.name
    if name == wish.avoided or name in wish.excluded or not pinned.serves(wish.model):
        return False
    if wish.boundary is not None and pinned.boundary != wish.boundary:
        return False
    if pinned.max_in_flight and in_flight.get(name, 0) >= pinned.max_in_flight:
        return False
    return health.clear or health.verdict(pinned, wish.model, now).rank in (0, 1)


def _look(
    credential: Credential, health: HealthSnapshot, in_flight: Mapping[str, int], wish: Wish, now: float
) -> Candidate:
    verdict = health.verdict(credential, wish.model, now)
    running = in_flight.get(credential.name, 0)
    return Candidate(credential, verdict, running / credential.weight, _why_not(credential, verdict, running, wish))


def _why_not(credential: Credential, verdict: Verdict, running: int, wish: Wish) -> str:
    if not credential.serves(wish.model):
        return "model"
    if wish.boundary is not None and credential.boundary != wish.boundary:
        return "boundary"
    if credential.name in wish.excluded:
        return "tried"
    if verdict.row is not None and not verdict.usable:
        return verdict.row.state.value
    if credential.max_in_flight and running >= credential.max_in_flight:
        return "busy"
    return ""


def _order(
    candidate: Candidate, wish: Wish, home: str | None, turn: int
) -> tuple[bool, bool, int, bool, bool, int, float, int]:
    pinned = candidate.credential.name == wish.preferred
    rank = candidate.verdict.rank or 0
    return (
        bool(candidate.passed_over),
        candidate.credential.name == wish.avoided,
        0 if pinned and rank == 1 else rank,
        not pinned,
        home is not None and candidate.credential.boundary != home,
        candidate.credential.priority,
        candidate.load,
        turn,
    )
