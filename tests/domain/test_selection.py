"""Selection: which credential serves a turn, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import pytest

from broker.domain.credential import Credential
from broker.domain.health import (
    AuthHealth,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    limits_of,
    model_subject,
    pause_subject,
)
from broker.domain.limits import Limits
from broker.domain.selection import Choice, Explained, Loads, Strategy, Wish, allowed, explain, keep, select
from broker.domain.snapshot import HealthSnapshot
from tests.domain.playbook import credential

S = HealthState
NOW = 1000.0
ONE, TWO, THREE = credential("one"), credential("two"), credential("three", "south")
POOL = [ONE, TWO, THREE]
FREE = Loads()
OUT = [S.COOLING, S.EXHAUSTED, S.REVOKED, S.PAUSED]


def rows(*each: AuthHealth) -> HealthSnapshot:
    return HealthSnapshot({row.subject: row for row in each})


def row(of: Credential, state: HealthState, until: float = NOW + 60, **fields: object) -> AuthHealth:
    return AuthHealth(credential_subject(of), state, until, **fields)  # type: ignore[arg-type]


def soft(of: Credential, until: float = NOW + 60) -> AuthHealth:
    return row(of, S.REVOKED, until, soft=True)


def choose(
    wish: Wish | None = None,
    *,
    pool: Sequence[Credential] = POOL,
    health: HealthSnapshot | None = None,
    loads: Loads = FREE,
    chance: int = 0,
    strategy: Strategy = Strategy.LEAST_LOADED,
) -> Choice:
    return select(pool, health or HealthSnapshot(), loads, wish or Wish("m"), now=NOW, chance=chance, strategy=strategy)


def name(choice: Choice) -> str | None:
    return choice.credential.name if choice.credential else None


def taken(count: int = 60, **asked: object) -> set[str | None]:
    """Who is ever taken, by chance."""
    return {name(choose(chance=chance, **asked)) for chance in range(count)}  # type: ignore[arg-type]


def reasons(choice: Choice) -> dict[str, str]:
    return {each.credential.name: each.passed_over for each in choice.candidates}


SHARES = [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (5.0, 3.0, 2.0), (10.0, 0.5)]


def weighed(weights: Sequence[float]) -> list[Credential]:
    return [credential(f"c{index}", weight=weight) for index, weight in enumerate(weights)]


every_strategy = pytest.mark.parametrize("strategy", list(Strategy))


# --- pin, health, boundary ---


@every_strategy
def test_takes_the_pin_however_busy_it_is(strategy: Strategy) -> None:
    for pinned in POOL:
        busy = Loads(in_flight={pinned.name: 50}, bound={pinned.name: 50})
        assert name(choose(Wish("m", pinned.name), loads=busy, strategy=strategy)) == pinned.name


@pytest.mark.parametrize("state", OUT)
def test_a_pin_never_outranks_a_block(state: HealthState) -> None:
    assert name(choose(Wish("m", "one"), health=rows(row(ONE, state)))) != "one"
    assert name(choose(Wish("m", "one"), health=rows(*(row(each, state) for each in POOL)))) is None


def test_a_doubted_pin_keeps_its_session() -> None:
    assert name(choose(Wish("m", "one"), health=rows(row(ONE, S.SUSPECT)))) == "one"
    nearly = HealthSnapshot(limits={limits_of(ONE): Limits(0.99, NOW + 60, NOW)})
    assert name(choose(Wish("m", "one"), health=nearly)) == "one"


def test_trusted_comes_before_doubted_without_a_pin() -> None:
    assert taken(health=rows(row(ONE, S.SUSPECT), row(THREE, S.SUSPECT))) == {"two"}
    nearly = HealthSnapshot(limits={limits_of(each): Limits(0.99, NOW + 60, NOW) for each in (ONE, THREE)})
    assert taken(health=nearly) == {"two"}


def test_comes_in_the_order_of_rank() -> None:
    spared = AuthHealth(endpoint_subject(ONE), S.COOLING, NOW + 9)
    health = rows(row(TWO, S.SUSPECT), spared, soft(THREE))
    pool = [THREE, ONE, TWO]
    for expected in ("two", "one", "three"):
        assert taken(pool=pool, health=health) == {expected}
        pool = [each for each in pool if each.name != expected]


def test_a_spared_pin_gives_way_to_whoever_is_better_off() -> None:
    spared = rows(AuthHealth(endpoint_subject(ONE), S.COOLING, NOW + 9))
    assert name(choose(Wish("m", "one"), health=spared)) == "two"
    assert name(choose(Wish("m", "one"), health=spared, pool=[ONE])) == "one"


def test_the_boundary_is_a_wall() -> None:
    assert name(choose(Wish("m", "one", boundary="south"))) == "three"
    assert name(choose(Wish("m", "one", boundary="nowhere"))) is None


def test_who_leaves_the_pin_stays_within_its_boundary_where_he_can() -> None:
    gone = row(ONE, S.COOLING)
    for chance in range(20):
        assert name(choose(Wish("m", "one"), health=rows(gone), chance=chance)) == "two"
        assert name(choose(Wish("m", "three"), health=rows(row(THREE, S.COOLING)), chance=chance)) in ("one", "two")
        assert name(choose(Wish("m", "one"), health=rows(gone, row(TWO, S.SUSPECT)), chance=chance)) == "three"


def test_what_was_tried_is_not_tried_again() -> None:
    assert name(choose(Wish("m", excluded=frozenset({ONE.key, TWO.key})))) == "three"
    assert name(choose(Wish("m", "one", excluded=frozenset({ONE.key, TWO.key})))) == "three"


def test_serves_only_the_models_it_names() -> None:
    picky = credential("picky", models=frozenset({"x"}), aliases={"y": "vendor-y"})
    found = [name(choose(Wish(model), pool=[picky])) for model in ("x", "y", "m", "")]
    assert found == ["picky", "picky", None, "picky"]


@pytest.mark.parametrize("worse", [S.HEALTHY, S.SUSPECT])
def test_who_is_avoided_comes_behind_everybody_who_is_usable(worse: HealthState) -> None:
    wish = Wish("m", "one", avoided="one")
    assert name(choose(wish, pool=[ONE, TWO], health=rows(row(TWO, worse)))) == "two"
    assert name(choose(wish, pool=[ONE, TWO], health=rows(soft(TWO)))) == "two"
    assert name(choose(wish, pool=[ONE, TWO], health=rows(row(TWO, S.COOLING)))) == "one"
    assert name(choose(wish, pool=[ONE])) == "one"


@every_strategy
def test_a_lower_tier_is_used_first_and_the_next_only_when_it_is_gone(strategy: Strategy) -> None:
    first, second = credential("first", priority=0), credential("second", priority=1, weight=9.0)
    busy, pool = Loads(in_flight={"first": 99}), [second, first]
    assert taken(pool=pool, loads=busy, strategy=strategy) == {"first"}
    assert taken(pool=pool, health=rows(row(first, S.COOLING)), strategy=strategy) == {"second"}
    assert name(choose(Wish("m", "second"), pool=pool, strategy=strategy)) == "second"


def test_an_empty_pool_serves_nobody() -> None:
    assert choose(pool=[]) == Choice(None, [])


# --- only one, one transport, one affinity ---


def test_only_the_one_that_is_named_serves() -> None:
    assert taken(wish=Wish("m", only="two")) == {"two"}
    assert taken(wish=Wish("m", "one", only="two")) == {"two"}
    assert name(choose(Wish("m", only="gone"))) is None
    assert name(choose(Wish("m", only="two"), health=rows(row(TWO, S.COOLING)))) is None
    assert name(choose(Wish("m", boundary="south", only="two"))) is None
    assert reasons(choose(Wish("m", only="two"))) == {"one": "boundary", "two": "", "three": "boundary"}


def test_only_who_speaks_the_transport_serves() -> None:
    pool = [ONE, credential("http", transports=("http",)), credential("both", transports=("websocket", "http"))]
    assert taken(pool=pool) == {"one", "http", "both"}
    assert taken(pool=pool, wish=Wish("m", "one", transport="http")) == {"http", "both"}
    assert taken(pool=pool, wish=Wish("m", transport="websocket")) == {"one", "both"}
    choice = choose(Wish("m", transport="http"), pool=[ONE, TWO])
    assert (choice.credential, reasons(choice)) == (None, {"one": "transport", "two": "transport"})


def test_who_cannot_serve_for_its_transport_does_not_count_against_soft_evidence() -> None:
    """Two of three who could serve are out by it, so it is doubt and no more."""
    pool = [ONE, TWO, THREE, *(credential(f"h{each}", transports=("http",)) for each in range(3))]
    wish = Wish("m", "one", transport="websocket")
    assert name(choose(wish, pool=pool, health=rows(soft(ONE), soft(TWO)))) == "one"
    assert name(choose(Wish("m", "one"), pool=pool, health=rows(soft(ONE), soft(TWO)))) not in ("one", "two")


def affine(word: str, **asked: object) -> str | None:
    return name(choose(Wish("m", affinity=word, session=f"s{word}"), **asked))  # type: ignore[arg-type]


@every_strategy
def test_who_asks_with_the_same_word_comes_to_the_same_credential(strategy: Strategy) -> None:
    pool = weighed((1.0, 2.0, 1.0))
    for word in map(str, range(40)):
        served = {
            name(
                choose(
                    Wish("m", affinity=word, session=f"{chance}"),
                    pool=pool[chance % 3 :] + pool[: chance % 3],
                    loads=Loads(in_flight={f"c{chance % 3}": 50}, bound={"c1": chance}),
                    chance=chance,
                    strategy=strategy,
                )
            )
            for chance in range(12)
        }
        assert len(served) == 1


@pytest.mark.parametrize("weights", SHARES)
def test_words_are_spread_by_weight(weights: Sequence[float]) -> None:
    pool = weighed(weights)
    served = Counter(affine(f"w{each}", pool=pool) for each in range(3000))
    for each in pool:
        assert served[each.name] / 3000 == pytest.approx(each.weight / sum(weights), abs=0.03)


def test_only_the_words_that_must_move_move_when_one_joins_or_is_out() -> None:
    pool = weighed((1.0, 1.0, 2.0))
    words = [f"w{each}" for each in range(600)]
    before = {word: affine(word, pool=pool) for word in words}
    joined = {word: affine(word, pool=[credential("new"), *pool]) for word in words}
    assert {word for word in words if joined[word] != before[word]} == {w for w in words if joined[w] == "new"}
    out = {word: affine(word, pool=pool, health=rows(row(pool[2], S.COOLING))) for word in words}
    assert {word for word in words if out[word] != before[word]} == {w for w in words if before[w] == "c2"}


def test_nothing_of_an_affinity_outranks_health_a_pin_or_a_tier() -> None:
    word = next(each for each in map(str, range(99)) if affine(each) == "one")
    for worse in (row(ONE, S.COOLING), row(ONE, S.SUSPECT), soft(ONE)):
        assert affine(word, health=rows(worse)) in ("two", "three")
    assert affine(word, health=rows(AuthHealth(endpoint_subject(ONE), S.COOLING, NOW + 9))) in ("two", "three")
    assert affine(word, loads=Loads(own={"one": 1}, caps={"one": 1})) == "one", "without a cap of its own"
    capped = credential("one", max_in_flight=1)
    assert affine(word, pool=[capped, TWO, THREE], loads=Loads(own={"one": 1})) in ("two", "three")
    assert name(choose(Wish("m", "two", affinity=word))) == "two"
    assert affine(word, pool=[credential("one", priority=1), TWO, THREE]) in ("two", "three")
    assert name(choose(Wish("m", affinity=word, excluded=frozenset({ONE.key})))) in ("two", "three")


def test_explains_an_affinity() -> None:
    wish = Wish("m", affinity="w")
    assert [each.why for each in explain(choose(wish), wish, Strategy.LEAST_LOADED)] == ["affinity", "behind", "behind"]


# --- soft evidence ---


@pytest.mark.parametrize("resting", [False, True])
def test_soft_evidence_never_leaves_nobody(resting: bool) -> None:
    rng = Random(3)
    for size in range(1, 6):
        pool = [credential(f"c{index}") for index in range(size)]
        for _ in range(80):
            doubted = [each for each in pool if rng.random() < 0.6]
            rest = {each.name: NOW + 2 for each in doubted if resting and rng.random() < 0.7}
            hard = [each for each in pool if each not in doubted and rng.random() < 0.5]
            health = rows(*map(soft, doubted), *(row(each, S.EXHAUSTED) for each in hard))
            choice = choose(pool=pool, health=health, loads=Loads(resting=rest), chance=rng.randrange(99))
            # who rests does so for a moment, and turns wait for it
            assert (choice.credential is not None) == (len(hard) + len(rest) < size), (doubted, rest, hard)


def test_soft_evidence_never_leaves_nobody_when_others_were_tried() -> None:
    wish = Wish("m", excluded=frozenset({TWO.key}))
    assert name(choose(wish, pool=[ONE, TWO], health=rows(soft(ONE)))) == "one"


def test_who_is_out_on_soft_evidence_comes_last_and_rests_between() -> None:
    pool = [ONE, TWO, THREE]
    assert taken(pool=pool, health=rows(soft(ONE))) == {"two", "three"}
    busy = Wish("m", excluded=frozenset({TWO.key, THREE.key}))
    assert name(choose(busy, pool=pool, health=rows(soft(ONE)))) == "one"
    choice = choose(pool=pool, health=rows(soft(ONE)), loads=Loads(resting={"one": NOW + 1}))
    assert reasons(choice) == {"one": "revoked", "two": "", "three": ""}
    over = choose(pool=pool, health=rows(soft(ONE)), loads=Loads(resting={"one": NOW}))
    assert reasons(over)["one"] == ""


def test_soft_evidence_against_more_than_half_is_doubt_and_no_more() -> None:
    health = rows(soft(ONE), soft(TWO))
    resting = Loads(resting={"one": NOW + 2, "two": NOW + 2})
    assert taken(health=health) == {"three"}
    assert name(choose(Wish("m", "one"), health=health)) == "one"
    assert name(choose(Wish("m", "one"), health=health, loads=resting)) == "three"
    four = [*POOL, credential("four")]
    assert name(choose(Wish("m", "one"), pool=four, health=health)) not in ("one", "two")
    # who cannot serve such a turn at all does not count
    picky = credential("picky", models=frozenset({"x"}))
    assert name(choose(Wish("m", "one"), pool=[*POOL, picky], health=health)) == "one"
    assert name(choose(Wish("m", "one", "north"), pool=four, health=health)) == "one"


# --- half-open, and who comes back ---


def test_who_was_interrupted_elsewhere_need_not_wait_for_its_part_of_one_that_comes_back() -> None:
    health = rows(row(TWO, S.HEALTHY, 0.0, returned=NOW, pace=1.0))
    used_up = Loads(started={credential_subject(TWO): 1})
    pool = [ONE, TWO]
    assert name(choose(Wish("m", "one"), pool=pool, health=health, loads=used_up)) == "one"
    assert name(choose(Wish("m", "one", avoided="one"), pool=pool, health=health, loads=used_up)) == "two"


def test_who_holds_the_licence_tries_it_first_with_a_session_that_has_no_pin() -> None:
    ran_out = row(ONE, S.EXHAUSTED, NOW - 1)
    licensed = Loads(licensed={ran_out.subject})
    assert reasons(choose(health=rows(ran_out)))["one"] == "half_open"
    assert taken(health=rows(ran_out)) == {"two", "three"}
    assert taken(health=rows(ran_out), loads=licensed) == {"one"}
    assert name(choose(Wish("m", "two"), health=rows(ran_out), loads=licensed)) == "two"
    assert name(choose(Wish("m", "one"), health=rows(ran_out), loads=licensed)) == "one"
    assert name(choose(Wish("m", "one"), health=rows(ran_out))) == "two"
    capped = credential("one", max_in_flight=1)
    busy = Loads(licensed={ran_out.subject}, own={"one": 1})
    assert name(choose(pool=[capped], health=rows(ran_out), loads=busy)) is None


def test_one_whose_block_still_holds_is_tried_only_when_nobody_else_is_left() -> None:
    held = row(ONE, S.EXHAUSTED)
    licensed = Loads(licensed={held.subject})
    assert taken(health=rows(held), loads=licensed) == {"two", "three"}
    assert taken(pool=[ONE, TWO], health=rows(held, soft(TWO)), loads=licensed) == {"two"}
    assert name(choose(Wish("m", "one"), pool=[ONE, TWO], health=rows(held), loads=licensed)) == "two"
    assert taken(pool=[ONE, TWO], health=rows(held, row(TWO, S.COOLING)), loads=licensed) == {"one"}


def test_a_licence_is_for_the_row_that_decides() -> None:
    spent = AuthHealth(group_subject(ONE), S.EXHAUSTED, NOW + 50)
    health = rows(row(ONE, S.REVOKED, NOW - 1), spent)
    assert name(choose(pool=[ONE], health=health, loads=Loads(licensed={credential_subject(ONE)}))) is None
    # with nobody left, one that is blocked by our own time may be tried before it
    assert name(choose(pool=[ONE], health=health, loads=Loads(licensed={spent.subject}))) == "one"


def test_nobody_tries_a_credential_whose_endpoint_is_paused() -> None:
    paused = AuthHealth(endpoint_subject(ONE), S.PAUSED)
    ran_out = row(ONE, S.COOLING, NOW - 1)
    health = rows(paused, ran_out)
    assert name(choose(pool=[ONE], health=health, loads=Loads(licensed={ran_out.subject}))) is None


@pytest.mark.parametrize(
    ("passed", "started", "ramping"),
    [
        (0.0, 0, False),
        (0.0, 1, True),
        (0.5, 1, False),
        (0.5, 2, True),
        (1.5, 7, False),
        (1.5, 8, True),
        (5.0, 9999, False),
    ],
)
def test_load_comes_back_slowly(passed: float, started: int, ramping: bool) -> None:
    back = row(ONE, S.HEALTHY, 0.0, returned=NOW - passed, pace=0.5)
    loads = Loads(started={back.subject: started})
    choice = choose(pool=[ONE], health=rows(back), loads=loads)
    assert reasons(choice) == {"one": "ramping" if ramping else ""}
    assert keep(ONE, rows(back), loads, Wish("m", "one"), now=NOW) is not ramping


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 64])
def test_all_nodes_together_start_one_two_four_eight(nodes: int) -> None:
    for pace in (0.1, 0.5, 1.0):
        for step in range(12):
            # a hair later, for the quotient may fall just short
            shares = [allowed(step * pace + 1e-9, pace, (index, nodes)) for index in range(nodes)]
            assert sum(shares) == 2**step
            assert max(shares) - min(shares) <= 1
    assert sum(allowed(-5.0, 1.0, (index, nodes)) for index in range(nodes)) == 1
    assert sum(allowed(1e9, 0.1, (index, nodes)) for index in range(nodes)) == 2**30


# --- caps and loads ---


def test_respects_the_cap_and_what_this_node_holds_of_it() -> None:
    capped = credential("capped", max_in_flight=2)
    for running, caps, expected in (
        (1, {}, "capped"),
        (2, {}, None),
        (1, {"capped": 1}, None),
        (2, {"capped": 3}, "capped"),
    ):
        loads = Loads(own={"capped": running}, caps=caps)
        assert name(choose(pool=[capped], loads=loads)) == expected
        assert keep(capped, HealthSnapshot(), loads, Wish("m", "capped"), now=NOW) is (expected is not None)
    assert name(choose(Wish("m", "capped"), pool=[capped, TWO], loads=Loads(own={"capped": 2}))) == "two"
    assert name(choose(pool=[capped], loads=Loads(in_flight={"capped": 9}))) == "capped", "others' turns are not ours"


@pytest.mark.parametrize("kind", ["in_flight", "bound"])
def test_spreads_load_by_weight(kind: str) -> None:
    heavy, light = credential("heavy", weight=3.0), credential("light", weight=1.0)
    served: Counter[str] = Counter()
    for chance in range(400):
        loads = Loads(in_flight=served) if kind == "in_flight" else Loads(bound=served)
        served[str(name(choose(pool=[light, heavy], loads=loads, chance=chance)))] += 1
    assert abs(served["heavy"] - 300) <= 1


# --- strategies ---


@pytest.mark.parametrize("weights", SHARES)
@pytest.mark.parametrize("strategy", [s for s in Strategy if s is not Strategy.FILL_FIRST])
def test_keeps_the_weights_in_the_long_run(strategy: Strategy, weights: Sequence[float]) -> None:
    pool, served, count = weighed(weights), Counter[str](), 3000
    for turn in range(count):
        loads = Loads(bound=served)
        served[
            str(name(choose(Wish("m", session=f"s{turn}"), pool=pool, loads=loads, chance=turn, strategy=strategy)))
        ] += 1
    for each in pool:
        assert served[each.name] / count == pytest.approx(each.weight / sum(weights), abs=0.03)


@pytest.mark.parametrize("weights", SHARES)
def test_takes_turns_evenly_over_any_stretch(weights: Sequence[float]) -> None:
    pool = weighed(weights)
    order = [name(choose(pool=pool, chance=turn, strategy=Strategy.ROUND_ROBIN)) for turn in range(600)]
    for length in (20, 100):
        for start in range(0, 500, 7):
            for each in pool:
                found = order[start : start + length].count(each.name)
                assert abs(found - length * each.weight / sum(weights)) <= 3


def test_fills_the_first_until_it_is_full_or_out() -> None:
    pool = [credential("a", max_in_flight=1, weight=0.1), credential("b", weight=9.0), credential("c")]
    fill = Strategy.FILL_FIRST
    assert taken(pool=pool, loads=Loads(in_flight={"a": 99}), strategy=fill) == {"a"}
    assert taken(pool=pool, loads=Loads(own={"a": 1}), strategy=fill) == {"b"}
    assert taken(pool=pool, health=rows(row(pool[0], S.COOLING), row(pool[1], S.REVOKED)), strategy=fill) == {"c"}


def test_draws_by_weight_whatever_the_load() -> None:
    pool, busy = weighed((1.0, 1.0)), Loads(in_flight={"c0": 1000})
    drawn = [name(choose(pool=pool, loads=busy, chance=chance, strategy=Strategy.WEIGHTED)) for chance in range(400)]
    assert 150 < drawn.count("c0") < 250
    assert taken(pool=pool, loads=busy) == {"c1"}


def test_the_less_loaded_of_two_never_is_the_most_loaded() -> None:
    pool = weighed((1.0, 1.0, 1.0, 1.0))
    loads = Loads(in_flight={"c0": 3, "c1": 2, "c2": 1})
    drawn = Counter(name(choose(pool=pool, loads=loads, chance=chance)) for chance in range(600))
    # two are drawn, so nodes that know the same do not all run to the same one
    assert set(drawn) == {"c1", "c2", "c3"} and drawn["c3"] > drawn["c2"] > drawn["c1"] > 50


@pytest.mark.parametrize("weights", SHARES[:3])
@pytest.mark.parametrize("every", [1, 3, 6, 12, 20])
def test_three_nodes_even_out_sixty_sessions(every: int, weights: Sequence[float]) -> None:
    pool = weighed(weights)
    for seed in range(40):
        rng = Random(seed)
        own = [Counter[str]() for _ in range(3)]
        others = [Counter[str]() for _ in range(3)]
        for session in range(60):
            if session % every == 0:
                others = [sum((own[o] for o in range(3) if o != node), Counter[str]()) for node in range(3)]
            node = rng.randrange(3)
            loads = Loads(bound=others[node] + own[node])
            own[node][str(name(choose(pool=pool, loads=loads, chance=rng.getrandbits(64))))] += 1
        total = sum(own, Counter[str]())
        for each in pool:
            off = abs(total[each.name] - 60 * each.weight / sum(weights))
            # 10 % of all sessions; two sessions where heartbeats are as frequent as placements
            assert off <= (2 if every <= 3 else 6)


def stable(pool: Sequence[Credential], **asked: object) -> dict[int, str | None]:
    return {
        session: name(choose(Wish("m", session=f"s{session}"), pool=pool, strategy=Strategy.STABLE_HASH, **asked))  # type: ignore[arg-type]
        for session in range(600)
    }


@pytest.mark.parametrize("weights", SHARES)
def test_only_what_must_move_moves_when_one_joins_or_leaves(weights: Sequence[float]) -> None:
    pool = weighed(weights)
    before, joined = stable(pool), credential("new", weight=1.5)
    after = stable([joined, *pool])
    moved = {session for session in before if after[session] != before[session]}
    assert moved == {session for session in after if after[session] == "new"}
    assert len(moved) / 600 == pytest.approx(1.5 / (sum(weights) + 1.5), abs=0.06)
    for gone in pool:
        left = stable([each for each in pool if each is not gone])
        assert {s for s in before if left[s] != before[s]} == {s for s in before if before[s] == gone.name}
        # out for a while is the same as gone, and everybody comes home afterwards
        assert stable(pool, health=rows(row(gone, S.COOLING))) == left


def test_the_same_session_goes_the_same_way_whatever_the_order_and_the_load() -> None:
    assert stable(POOL) == stable(POOL[::-1], loads=Loads(in_flight={"one": 50}), chance=7)


@every_strategy
def test_pins_stay_when_one_joins_or_another_leaves(strategy: Strategy) -> None:
    pool = weighed((1.0, 2.0, 1.0))
    for pinned in pool:
        for others in ([credential("new", weight=9.0), *pool], [pinned]):
            for chance in range(20):
                loads, wish = Loads(bound={pinned.name: 99}), Wish("m", pinned.name, session=f"s{chance}")
                assert name(choose(wish, pool=others, loads=loads, chance=chance, strategy=strategy)) == pinned.name
                assert keep(pinned, HealthSnapshot(), loads, wish, now=NOW)


# --- any pool, any health ---


def anything(rng: Random) -> tuple[list[Credential], HealthSnapshot, Loads, Wish]:
    pool = [
        credential(
            each,
            rng.choice(["north", "south"]),
            priority=rng.randrange(2),
            weight=rng.choice([0.5, 1.0, 4.0]),
            max_in_flight=rng.choice([0, 0, 2]),
            models=frozenset(rng.choice([(), (), ("m",), ("other",)])),
            transports=rng.choice([("websocket",), ("websocket", "http"), ("websocket", "http"), ("http",)]),
        )
        for each in "abcd"[: rng.randint(1, 4)]
    ]
    health = HealthSnapshot()
    for each in pool:
        kinds: list[Callable[[Credential], str]] = [credential_subject, pause_subject, group_subject, endpoint_subject]
        for subject in (*(kind(each) for kind in kinds), model_subject(each, "m")):
            if rng.random() < 0.15:
                health.rows[subject] = AuthHealth(
                    subject,
                    rng.choice(list(S)),
                    until=rng.choice([0.0, NOW - 50, NOW + 50]),
                    soft=rng.random() < 0.5,
                    returned=rng.choice([0.0, NOW - 1.5]),
                    pace=1.0,
                )
        if rng.random() < 0.1:
            health.limits[limits_of(each)] = Limits(0.99, NOW + 9, NOW)
    names = [each.name for each in pool]
    wish = Wish(
        "m",
        rng.choice([None, *names, *names, *names]),
        boundary=rng.choice([None, None, "north"]),
        excluded=frozenset(rng.sample([each.key for each in pool], rng.choice((0, 0, 1)))),
        avoided=rng.choice([None, None, None, rng.choice(names)]),
        session=f"{rng.random()}",
        only=rng.choice([None, None, None, rng.choice(names)]),
        transport=rng.choice(["", "", "websocket", "http"]),
        affinity=rng.choice(["", f"{rng.random()}"]),
        pinned=rng.random() < 0.7,
    )
    loads = Loads(
        in_flight={each: rng.randrange(9) for each in names},
        bound={each: rng.randrange(9) for each in names},
        own={each: rng.randrange(4) for each in names},
        caps={each: rng.randrange(4) for each in names if rng.random() < 0.3},
        licensed={subject for subject in health.rows if rng.random() < 0.3},
        started={subject: rng.randrange(5) for subject in health.rows},
        resting={each: NOW + rng.choice((-1, 1)) for each in names if rng.random() < 0.3},
        share=rng.choice([(0, 1), (1, 3)]),
    )
    return pool, health, loads, wish


@every_strategy
def test_a_pin_that_may_be_kept_is_the_one_that_would_be_chosen(strategy: Strategy) -> None:
    rng, kept, lost, asked = Random(7), 0, 0, 0
    for _ in range(2000):
        pool, health, loads, wish = anything(rng)
        pinned = next((each for each in pool if each.name == wish.preferred), None)
        if pinned is None:
            continue
        choice = choose(wish, pool=pool, health=health, loads=loads, chance=rng.randrange(99), strategy=strategy)
        if keep(pinned, health, loads, wish, now=NOW):
            kept += 1
            asked += bool(wish.only and wish.transport and wish.affinity)
            assert choice.credential is pinned
        elif choice.credential is not pinned:
            lost += 1
        else:
            # what only a look at all can tell: spared, out on soft evidence, avoided, or licensed
            verdict = health.verdict(pinned, "m", NOW)
            assert wish.avoided == pinned.name or verdict.rank in (2, 3, None)
    assert kept > 250 and lost > 250 and asked > 5


@every_strategy
def test_takes_only_who_may_serve_and_says_why_of_everybody(strategy: Strategy) -> None:
    rng, nobody = Random(8), 0
    for _ in range(1500):
        pool, health, loads, wish = anything(rng)
        choice = choose(wish, pool=pool, health=health, loads=loads, chance=rng.randrange(99), strategy=strategy)
        assert sorted(each.credential.name for each in choice.candidates) == sorted(each.name for each in pool)
        free = [each for each in choice.candidates if not each.passed_over]
        assert (choice.credential is None) == (not free)
        for each in choice.candidates:
            of, verdict = each.credential, health.verdict(each.credential, "m", NOW)
            may = of.serves("m") and wish.boundary in (None, of.boundary) and of.key not in wish.excluded
            may = may and wish.only in (None, of.name) and wish.transport in ("", *of.transports)
            may = may and not (of.max_in_flight and loads.own[of.name] >= loads.caps.get(of.name, of.max_in_flight))
            licensed = verdict.row is not None and verdict.row.subject in loads.licensed
            assert each.passed_over or (may and (verdict.usable or licensed))
        told = explain(choice, wish, strategy)
        assert [each.credential for each in told] == [each.credential.name for each in choice.candidates]
        assert all(each.why for each in told)
        assert [each.credential for each in told if each.taken] == ([name(choice)] if choice.credential else [])
        nobody += choice.credential is None
    assert 100 < nobody < 1400


def test_explains_why_each_was_passed_over() -> None:
    pool = [
        credential("fine"),
        credential("behind"),
        credential("doubted"),
        credential("spared"),
        credential("soft"),
        credential("picky", models=frozenset({"x"})),
        credential("abroad", "south"),
        credential("tried"),
        credential("spent"),
        credential("dead"),
        credential("ran out"),
        credential("back"),
        credential("full", max_in_flight=1),
    ]
    of = {each.name: each for each in pool}
    health = rows(
        row(of["spent"], S.EXHAUSTED),
        row(of["dead"], S.REVOKED, 0.0),
        row(of["ran out"], S.COOLING, NOW),
        row(of["back"], S.HEALTHY, 0.0, returned=NOW, pace=1.0),
        row(of["doubted"], S.SUSPECT),
        soft(of["soft"]),
        AuthHealth(endpoint_subject(of["spared"]), S.COOLING, NOW + 9),
    )
    wish = Wish("m", boundary="north", excluded=frozenset({of["tried"].key}))
    loads = Loads(own={"full": 1}, bound={"behind": 3}, started={credential_subject(of["back"]): 1})
    told = {
        each.credential: each
        for each in explain(choose(wish, pool=pool, health=health, loads=loads), wish, Strategy.LEAST_LOADED)
    }
    assert {each.credential: each.why for each in told.values()} == {
        "fine": "least_loaded",
        "behind": "behind",
        "doubted": "doubted",
        "spared": "spared",
        "soft": "soft_evidence",
        "picky": "model",
        "abroad": "boundary",
        "tried": "tried",
        "spent": "exhausted",
        "dead": "revoked",
        "ran out": "half_open",
        "back": "ramping",
        "full": "busy",
    }
    assert told["spent"] == Explained("spent", False, "exhausted", "exhausted", NOW + 60, 0.0)
    assert (told["dead"].until, told["behind"].load, told["fine"].taken, told["fine"].state) == (
        None,
        3.0,
        True,
        "healthy",
    )


def test_explains_a_pin_a_trial_and_who_is_avoided() -> None:
    def why(choice: Choice, wish: Wish) -> list[str]:
        return [each.why for each in explain(choice, wish, Strategy.WEIGHTED)]

    pinned, avoided = Wish("m", "one"), Wish("m", "one", avoided="one")
    assert why(choose(pinned, pool=[ONE, TWO]), pinned) == ["pinned", "behind"]
    assert why(choose(avoided, pool=[ONE, TWO]), avoided) == ["weighted", "avoided"]
    ran_out = row(ONE, S.COOLING, NOW - 1)
    trial = choose(pool=[ONE, TWO], health=rows(ran_out), loads=Loads(licensed={ran_out.subject}))
    assert why(trial, Wish("m")) == ["tried", "behind"]
