"""Selection: which credential serves a turn, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.credential import Credential
from broker.domain.health import (
    AuthHealth,
    HealthSnapshot,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    model_subject,
)
from broker.domain.selection import Choice, Wish, keep, select
from tests.domain.playbook import credential

S = HealthState
NOW = 1000.0
ONE, TWO, THREE = credential("one"), credential("two"), credential("three", "south")
POOL = [ONE, TWO, THREE]


def health(**states: HealthState) -> HealthSnapshot:
    rows = {name: AuthHealth(f"credential:{name}", state, NOW + 60) for name, state in states.items()}
    return HealthSnapshot({each.subject: each for each in rows.values()})


def choose(
    wish: Wish | None = None,
    *,
    pool: Sequence[Credential] = POOL,
    rows: HealthSnapshot | None = None,
    in_flight: Mapping[str, int] | None = None,
    chance: float = 0.0,
) -> Choice:
    return select(pool, rows or HealthSnapshot(), in_flight or {}, wish or Wish("m"), now=NOW, chance=chance)


def name(choice: Choice) -> str | None:
    return choice.credential.name if choice.credential else None


def test_takes_the_pin() -> None:
    for pinned in POOL:
        busy = {pinned.name: 50}
        assert name(choose(Wish("m", pinned.name), in_flight=busy)) == pinned.name


@pytest.mark.parametrize("state", [S.COOLING, S.EXHAUSTED, S.REVOKED, S.PAUSED])
def test_a_pin_never_outranks_a_block(state: HealthState) -> None:
    assert name(choose(Wish("m", "one"), rows=health(one=state))) != "one"
    everybody = health(one=state, two=state, three=state)
    assert name(choose(Wish("m", "one"), rows=everybody)) is None


def test_a_doubted_pin_keeps_its_session() -> None:
    assert name(choose(Wish("m", "one"), rows=health(one=S.SUSPECT))) == "one"


def test_trusted_comes_before_doubted_without_a_pin() -> None:
    for chance in (0.0, 0.4, 0.9):
        assert name(choose(rows=health(one=S.SUSPECT, three=S.SUSPECT), chance=chance)) == "two"


def test_a_spared_pin_gives_way_to_whoever_is_better_off() -> None:
    rows = HealthSnapshot({f"endpoint:{ONE.base_url}": AuthHealth(f"endpoint:{ONE.base_url}", S.COOLING, NOW + 9)})
    assert name(choose(Wish("m", "one"), rows=rows)) == "two"
    assert name(choose(Wish("m", "one"), rows=rows, pool=[ONE])) == "one"


def test_the_boundary_is_a_wall() -> None:
    assert name(choose(Wish("m", "one", boundary="south"))) == "three"
    assert name(choose(Wish("m", "one", boundary="nowhere"))) is None


def test_who_leaves_the_pin_stays_within_its_boundary_where_he_can() -> None:
    for chance in (0.0, 0.4, 0.9):
        assert name(choose(Wish("m", "one"), rows=health(one=S.COOLING), chance=chance)) == "two"
        assert name(choose(Wish("m", "three"), rows=health(three=S.COOLING), chance=chance)) in ("one", "two")
        assert name(choose(Wish("m", "one"), rows=health(one=S.COOLING, two=S.SUSPECT), chance=chance)) == "three"


def test_what_was_tried_is_not_tried_again() -> None:
    assert name(choose(Wish("m", "one", excluded=frozenset({"one", "two"})))) == "three"


def test_respects_the_cap_of_a_credential() -> None:
    capped = credential("capped", max_in_flight=2)
    assert name(choose(pool=[capped], in_flight={"capped": 1})) == "capped"
    assert name(choose(pool=[capped], in_flight={"capped": 2})) is None
    assert name(choose(Wish("m", "capped"), pool=[capped, TWO], in_flight={"capped": 2})) == "two"


def test_spreads_load_by_weight() -> None:
    heavy, light = credential("heavy", weight=3.0), credential("light", weight=1.0)
    served = {"heavy": 0, "light": 0}
    for _ in range(400):
        taken = name(choose(pool=[light, heavy], in_flight=served))
        assert taken is not None
        served[taken] += 1
    assert served == {"heavy": 300, "light": 100}


def test_a_lower_tier_is_used_first_and_the_next_only_when_it_is_gone() -> None:
    first, second = credential("first", priority=0), credential("second", priority=1)
    assert name(choose(pool=[second, first], in_flight={"first": 99})) == "first"
    assert name(choose(pool=[second, first], rows=health(first=S.COOLING))) == "second"
    assert name(choose(Wish("m", "second"), pool=[second, first])) == "second"


def test_chance_breaks_ties_evenly() -> None:
    taken = [name(choose(chance=index / 300)) for index in range(300)]
    assert [taken.count(each.name) for each in POOL] == [100, 100, 100]


def test_serves_only_the_models_it_names() -> None:
    picky = credential("picky", models=frozenset({"x"}), aliases={"y": "vendor-y"})
    assert [name(choose(Wish(model), pool=[picky])) for model in ("x", "y", "m", "")] == [
        "picky",
        "picky",
        None,
        "picky",
    ]


@pytest.mark.parametrize("worse", [S.HEALTHY, S.SUSPECT])
def test_who_is_avoided_comes_behind_everybody_who_is_usable(worse: HealthState) -> None:
    wish = Wish("m", "one", avoided="one")
    assert name(choose(wish, pool=[ONE, TWO], rows=health(two=worse))) == "two"
    assert name(choose(wish, pool=[ONE, TWO], rows=health(two=S.COOLING))) == "one"
    assert name(choose(wish, pool=[ONE])) == "one"


def test_an_empty_pool_serves_nobody() -> None:
    assert choose(pool=[]) == Choice(None, [])


def test_explains_why_each_was_passed_over() -> None:
    pool = [
        credential("fine"),
        credential("picky", models=frozenset({"x"})),
        credential("abroad", "south"),
        credential("tried"),
        credential("spent"),
        credential("dead"),
        credential("full", max_in_flight=1),
    ]
    wish = Wish("m", boundary="north", excluded=frozenset({"tried"}))
    rows = health(spent=S.EXHAUSTED, dead=S.REVOKED)
    choice = choose(wish, pool=pool, rows=rows, in_flight={"full": 1})
    assert {each.credential.name: each.passed_over for each in choice.candidates} == {
        "fine": "",
        "picky": "model",
        "abroad": "boundary",
        "tried": "tried",
        "spent": "exhausted",
        "dead": "revoked",
        "full": "busy",
    }
    assert choice.candidates[0].credential.name == "fine"


pools = st.lists(
    st.builds(
        lambda number, boundary, priority, weight, cap: credential(
            f"c{number}", boundary, priority=priority, weight=weight, max_in_flight=cap
        ),
        st.integers(0, 5),
        st.sampled_from(["north", "south"]),
        st.integers(0, 2),
        st.floats(0.1, 10),
        st.integers(0, 3),
    ),
    unique_by=lambda each: each.name,
)
names = st.sampled_from([f"c{number}" for number in range(6)])
wishes = st.builds(
    Wish, st.just("m"), st.none() | names, st.none() | st.sampled_from(["north", "south"]), st.frozensets(names)
)


@settings(derandomize=True, deadline=None, database=None, max_examples=80)
@given(
    pools,
    st.dictionaries(names, st.sampled_from(list(S))),
    st.dictionaries(names, st.integers(0, 4)),
    wishes,
    st.floats(0, 1, exclude_max=True),
)
def test_takes_only_who_may_serve_and_somebody_if_there_is_one(
    pool: list[Credential], states: dict[str, HealthState], running: dict[str, int], wish: Wish, chance: float
) -> None:
    rows = health(**states)
    choice = choose(wish, pool=pool, rows=rows, in_flight=running, chance=chance)
    able = [
        each
        for each in pool
        if wish.boundary in (None, each.boundary)
        and each.name not in wish.excluded
        and states.get(each.name, S.HEALTHY) in (S.HEALTHY, S.SUSPECT)
        and not (each.max_in_flight and running.get(each.name, 0) >= each.max_in_flight)
    ]
    assert (choice.credential in able) if able else choice.credential is None
    assert sorted(each.credential.name for each in choice.candidates) == sorted(each.name for each in pool)
    assert {each.credential.name for each in choice.candidates if not each.passed_over} == {e.name for e in able}
    if wish.preferred in {each.name for each in able}:
        assert name(choice) == wish.preferred


def test_a_pin_that_may_be_kept_is_the_one_that_would_be_chosen() -> None:
    rng = Random(7)
    kept = 0
    for _ in range(4000):
        pool = [
            credential(
                each,
                rng.choice(["north", "south"]),
                priority=rng.randrange(2),
                max_in_flight=rng.choice([0, 0, 2]),
                models=frozenset(rng.choice([(), (), ("m",), ("other",)])),
            )
            for each in "abcd"[: rng.randint(1, 4)]
        ]
        snapshot = HealthSnapshot()
        for each in pool:
            subjects = credential_subject(each), group_subject(each), model_subject(each, "m"), endpoint_subject(each)
            for subject in subjects:
                if rng.random() < 0.15:
                    state = rng.choice([state for state in HealthState if state is not HealthState.HEALTHY])
                    snapshot.put(AuthHealth(subject, state, until=rng.choice([0.0, 50.0, 150.0])))
        names = [each.name for each in pool]
        wish = Wish(
            "m",
            rng.choice(names),
            boundary=rng.choice([None, None, "north"]),
            excluded=frozenset(rng.sample(names, rng.randrange(2))),
            avoided=rng.choice([None, None, rng.choice(names)]),
        )
        running = {name: rng.randrange(4) for name in names}
        pinned = next(each for each in pool if each.name == wish.preferred)
        if keep(pinned, snapshot, running, wish, now=100.0):
            kept += 1
            assert select(pool, snapshot, running, wish, now=100.0, chance=rng.random()).credential is pinned
    assert kept > 500
