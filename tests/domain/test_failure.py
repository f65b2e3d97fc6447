"""The failure table against design.md 3, written out again."""

from __future__ import annotations

import pytest

from broker.domain.failure import TABLE, Action, Effect, Failure, FailureKind, Phase

# kind, before send, sent, shown, effect: as in the design; FOREIGN is the tenth kind, which protocol.md 6.3 adds
DESIGN = """
REQUEST_FAULT       surface   surface   surface  NONE
UNSUPPORTED         failover  failover  surface  EXCLUDE_MODEL
AUTH_REJECTED       failover  failover  surface  REVOKE
QUOTA_EXHAUSTED     failover  failover  surface  EXHAUST
RATE_LIMITED        failover  failover  surface  COOL
OVERLOADED          failover  failover  surface  COOL_ENDPOINT
TRANSPORT_LOST      failover  failover  surface  SUSPECT_BY_STREAK
CONNECTION_EXPIRED  replay    replay    surface  NONE
CONTINUATION_LOST   replay    replay    surface  NONE
CIPHERTEXT_FOREIGN  surface   replay    surface  NONE
"""
ROWS = [line.split() for line in DESIGN.split("\n") if line]
CELLS = [(kind, phase, action) for kind, *actions, _ in ROWS for phase, action in zip(Phase, actions, strict=True)]


@pytest.mark.parametrize(("kind", "phase", "action"), CELLS)
def test_does_what_the_design_says(kind: str, phase: Phase, action: str) -> None:
    assert TABLE[FailureKind[kind]].action(phase) is Action[action.upper()]


@pytest.mark.parametrize(("kind", "effect"), [(row[0], row[-1]) for row in ROWS])
def test_harms_health_as_the_design_says(kind: str, effect: str) -> None:
    assert TABLE[FailureKind[kind]].effect is Effect[effect]


def test_has_a_row_for_every_kind() -> None:
    assert set(TABLE) == set(FailureKind) == {FailureKind[row[0]] for row in ROWS}


def test_never_moves_a_turn_after_something_was_shown() -> None:
    assert {row.shown for row in TABLE.values()} == {Action.SURFACE}


def test_only_refusals_that_a_request_can_provoke_are_mutual() -> None:
    assert {kind for kind, row in TABLE.items() if row.mutual} == {FailureKind.UNSUPPORTED, FailureKind.AUTH_REJECTED}


@pytest.mark.parametrize(
    ("kind", "names_key", "independent", "witnesses"),
    [
        (FailureKind.UNSUPPORTED, False, False, 2),
        (FailureKind.AUTH_REJECTED, False, False, 2),
        (FailureKind.AUTH_REJECTED, True, False, 3),
        (FailureKind.AUTH_REJECTED, True, True, 0),
        (FailureKind.UNSUPPORTED, False, True, 0),
        (FailureKind.QUOTA_EXHAUSTED, True, False, 0),
        (FailureKind.REQUEST_FAULT, False, False, 0),
    ],
)
def test_says_how_many_must_agree(kind: FailureKind, names_key: bool, independent: bool, witnesses: int) -> None:
    assert Failure(kind, names_key=names_key, independent=independent).witnesses == witnesses


def test_only_a_lost_transport_may_have_executed() -> None:
    assert {kind for kind, row in TABLE.items() if row.executed} == {FailureKind.TRANSPORT_LOST}


def test_words_about_a_key_are_never_passed_on() -> None:
    passed_on = {kind for kind, row in TABLE.items() if row.verbatim}
    assert passed_on == {FailureKind.REQUEST_FAULT, FailureKind.UNSUPPORTED, FailureKind.CIPHERTEXT_FOREIGN}


def test_fingerprint_is_kind_status_and_code() -> None:
    one = Failure(FailureKind.AUTH_REJECTED, 401, "x", "t", until=1.0, raw=b"{}")
    assert one.fingerprint == Failure(FailureKind.AUTH_REJECTED, 401, "x").fingerprint
    assert one.row is TABLE[FailureKind.AUTH_REJECTED]
    others = [
        Failure(FailureKind.UNSUPPORTED, 401, "x"),
        Failure(FailureKind.AUTH_REJECTED, 403, "x"),
        Failure(FailureKind.AUTH_REJECTED, 401, "y"),
    ]
    assert all(other.fingerprint != one.fingerprint for other in others)
