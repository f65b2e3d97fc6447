"""The pin of a session moves by compare-and-set."""

from __future__ import annotations

import asyncio

import pytest

from broker.domain.session import Pin
from broker.store.sessions import Moved, SessionStore, Stale
from tests.store.turns import SID, TENANT, pin, turn


async def move(store: SessionStore, expected: Pin | None, to: Pin) -> Moved | Stale:
    return await store.move_pin(SID, "name", TENANT, expected, to)


async def test_binds_an_unbound_session(store: SessionStore) -> None:
    assert await move(store, None, pin(nonce="a")) == Moved(pin(1, "a"))
    session = await store.load(SID)
    assert session is not None
    assert (session.name, session.tenant, session.pin) == ("name", TENANT, pin(1, "a"))
    assert not session.incremental_disabled


async def test_a_wish_matches_only_an_unbound_session(store: SessionStore) -> None:
    await move(store, pin(0, "wish"), pin(nonce="a"))
    assert await move(store, pin(0, "a"), pin(nonce="b")) == Stale(pin(1, "a"), False)
    assert await move(store, None, pin(nonce="b")) == Stale(pin(1, "a"), False)


async def test_replacing_a_pin_disables_increments(store: SessionStore) -> None:
    await move(store, None, pin(nonce="a"))
    assert await move(store, pin(1, "a"), pin(nonce="b", credential="beta")) == Moved(pin(2, "b", "beta"))
    session = await store.load(SID)
    assert session is not None and session.incremental_disabled


async def test_a_late_report_cannot_undo_a_newer_pin(store: SessionStore) -> None:
    await move(store, None, pin(nonce="a"))
    await move(store, pin(1, "a"), pin(nonce="two", credential="beta"))
    late = await move(store, pin(1, "a"), pin(nonce="one", credential="gamma"))
    assert late == Stale(pin(2, "two", "beta"), True)
    session = await store.load(SID)
    assert session is not None and session.pin == pin(2, "two", "beta")


async def test_the_first_of_two_wins_whichever_it_is(store: SessionStore) -> None:
    await move(store, None, pin(nonce="a"))
    assert await move(store, pin(1, "a"), pin(nonce="one", credential="gamma")) == Moved(pin(2, "one", "gamma"))
    assert await move(store, pin(1, "a"), pin(nonce="two", credential="beta")) == Stale(pin(2, "one", "gamma"), True)


async def test_an_equal_epoch_with_another_nonce_is_stale(store: SessionStore) -> None:
    await move(store, None, pin(nonce="a"))
    assert await move(store, pin(1, "other side"), pin(nonce="b")) == Stale(pin(1, "a"), False)


async def test_an_equal_nonce_with_another_epoch_is_stale(store: SessionStore) -> None:
    await move(store, None, pin(nonce="a"))
    assert await move(store, pin(2, "a"), pin(nonce="b")) == Stale(pin(1, "a"), False)


async def test_a_pin_of_a_forgotten_session_is_stale(store: SessionStore) -> None:
    assert await move(store, pin(3, "a"), pin(nonce="b")) == Stale(None, False)
    assert await store.load(SID) is None


async def test_a_repeated_move_is_answered_again_and_moves_nothing(store: SessionStore) -> None:
    await move(store, None, pin(nonce="a"))
    for _ in range(2):
        assert await move(store, pin(1, "a"), pin(nonce="b")) == Moved(pin(2, "b"))


async def test_a_pin_needs_a_nonce_of_its_own(store: SessionStore) -> None:
    with pytest.raises(ValueError):
        await move(store, pin(1, "a"), pin(nonce="a", credential="beta"))


async def test_one_winner_per_epoch_among_many(store: SessionStore) -> None:
    at: Pin | None = None
    for epoch in range(1, 6):
        wishes = [pin(nonce=f"{epoch}.{i}", credential=f"c{i}") for i in range(50)]
        answers = await asyncio.gather(*(move(store, at, wish) for wish in wishes))
        winners = [answer.pin for answer in answers if isinstance(answer, Moved)]
        assert len(winners) == 1 and winners[0].epoch == epoch
        assert all(answer.pin == winners[0] for answer in answers)
        at = winners[0]


async def test_one_winner_per_epoch_between_commits(store: SessionStore) -> None:
    first = (await store.commit(turn("t0"))).pin
    moves = (move(store, first, pin(nonce=f"m{i}", credential=f"c{i}")) for i in range(50))
    commits = (store.commit(turn(f"t{i}", "t0", under=first)) for i in range(1, 51))
    answers = await asyncio.gather(*(each for pair in zip(moves, commits, strict=True) for each in pair))
    assert sum(isinstance(answer, Moved) for answer in answers) == 1
    session = await store.load(SID)
    assert session is not None and session.pin is not None
    assert (session.pin.epoch, session.turns, session.incremental_disabled) == (2, 51, True)
