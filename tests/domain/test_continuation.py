"""Continuation: the whole truth table of `plan`, and how far a turn can move."""

from __future__ import annotations

import itertools

import pytest

from broker.domain.continuation import Mode, Parent, Reach, plan, reach
from tests.domain.playbook import A, B, parent

BOTH = (False, True)


@pytest.mark.parametrize(("foreign", "mode"), [(False, Mode.INCREMENTAL), (True, Mode.REPLAY)])
def test_a_turn_without_a_past_is_sent_as_it_came_unless_it_holds_foreign_ciphertext(foreign: bool, mode: Mode) -> None:
    for holds, disabled, forced in itertools.product(BOTH, repeat=3):
        found = plan(
            None,
            credential="a",
            socket_holds_parent=holds,
            incremental_disabled=disabled,
            forced=forced,
            foreign=foreign,
        )
        assert found is mode


@pytest.mark.parametrize("flags", [*itertools.product(BOTH, repeat=4)])
def test_an_unknown_root_is_the_vendors_to_resolve(flags: tuple[bool, bool, bool, bool]) -> None:
    holds, disabled, forced, foreign = flags
    unseen = parent(seen=False)
    found = plan(
        unseen, credential="a", socket_holds_parent=holds, incremental_disabled=disabled, forced=forced, foreign=foreign
    )
    assert found is Mode.INCREMENTAL


@pytest.mark.parametrize(("kept", "store", "here", "holds", "disabled", "forced"), [*itertools.product(BOTH, repeat=6)])
def test_an_increment_goes_only_where_its_parent_is(
    kept: bool, store: bool, here: bool, holds: bool, disabled: bool, forced: bool
) -> None:
    seen = parent(A, store=store, kept=kept)
    name = A.name if here else B.name
    found = plan(seen, credential=name, socket_holds_parent=holds, incremental_disabled=disabled, forced=forced)
    must_replay = kept and (forced or (disabled and not holds))
    can_increment = holds or (store and here)
    assert found is (Mode.INCREMENTAL if can_increment and not must_replay else Mode.REPLAY)


def test_a_stored_parent_is_rebuilt_when_its_vendor_uses_ids_again() -> None:
    stored = parent(A, store=True)
    found = plan(stored, credential=A.name, socket_holds_parent=False, incremental_disabled=False, reuses_ids=True)
    assert found is Mode.REPLAY


@pytest.mark.parametrize(
    ("past", "binding", "where"),
    [
        (None, None, Reach.ANYWHERE),
        (None, "a file id", Reach.BOUNDARY),
        (parent(), None, Reach.ANYWHERE),
        (parent(), "a file id", Reach.BOUNDARY),
        (parent(store=True), None, Reach.ANYWHERE),
        (parent(seen=False), None, Reach.BOUNDARY),
        (parent(kept=False), None, Reach.BOUNDARY),
        (parent(rooted=False), None, Reach.BOUNDARY),
    ],
)
def test_reaches_as_far_as_everything_it_needs_is_known(past: Parent | None, binding: str | None, where: Reach) -> None:
    assert reach(past, binding) is where


@pytest.mark.parametrize(("seen", "kept", "rooted"), [*itertools.product(BOTH, repeat=3)])
def test_a_parent_is_known_when_it_was_seen_and_kept_down_to_its_root(seen: bool, kept: bool, rooted: bool) -> None:
    assert parent(seen=seen, kept=kept, rooted=rooted).known is (seen and kept and rooted)
