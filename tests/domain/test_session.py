"""Sessions: pins, adoption and derived keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.domain.session import Pin, derive_rid, derive_sid
from tests.domain.playbook import A, B, pin, session


def test_a_pin_is_the_same_only_by_epoch_and_nonce() -> None:
    one = pin(A, 3, "x")
    assert one.same(Pin("another", 3, "x", "why"))
    assert not one.same(pin(A, 4, "x"))
    assert not one.same(pin(A, 3, "y"))
    assert not one.same(None)


def test_adopts_the_truth_of_the_store() -> None:
    copy = session(pinned=pin(A), incremental_disabled=False)
    copy.adopt(pin(B, 2), True)
    assert (copy.pin, copy.incremental_disabled) == (pin(B, 2), True)
    copy.adopt(None, False)
    assert (copy.pin, copy.incremental_disabled) == (pin(B, 2), True)


@pytest.mark.parametrize("make", [derive_sid, derive_rid])
def test_a_key_is_bound_to_the_tenant_and_shows_no_text(make: Callable[[str, str], str]) -> None:
    assert make("t", "name") == make("t", "name")
    assert len({make("t", "name"), make("u", "name"), make("t", "name2"), make("", "tname")}) == 4
    assert len(make("t", "x" * 9999)) == 32
    assert set(make("t", "{evil}:*")) <= set("0123456789abcdef")


def test_sessions_and_responses_never_share_a_key() -> None:
    assert derive_sid("t", "x") != derive_rid("t", "x")
