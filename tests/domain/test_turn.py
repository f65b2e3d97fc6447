"""The turn, told as conversations: what happens (`>>`) and what the machine wants done (`<<`)."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from broker.domain import commands, errors, events
from broker.domain.blame import blame
from broker.domain.commands import (
    Abandon,
    Absolve,
    Blame,
    Commit,
    End,
    FailOver,
    Hold,
    MovePin,
    Open,
    Outcome,
    Place,
    Rebuild,
    Relay,
    Resolve,
    Retract,
    Send,
    Tell,
)
from broker.domain.continuation import Mode, Parent
from broker.domain.credential import Credential
from broker.domain.events import (
    Announced,
    Began,
    ChainBound,
    ChainLost,
    ClientLeft,
    Committed,
    Completed,
    Event,
    Failed,
    HoldElapsed,
    NonePlaced,
    Opened,
    OutputBegan,
    OwnerUnknown,
    ParentGone,
    PinMoved,
    PinStale,
    PinUnwritten,
    Placed,
    Rebuilt,
    Resolved,
    StoreLost,
    Succeeded,
)
from broker.domain.failure import Failure, FailureKind, Phase
from broker.domain.health import HealthState
from broker.domain.selection import Wish
from broker.domain.session import Pin, Session
from broker.domain.turn import MAX_PIN_RACES, MAX_REPLAYS, TRANSITIONS, OutOfTurn, Policy, State, Turn
from tests.domain import playbook
from tests.domain.playbook import A2, FRAME, A, B, C, D, Playbook, failure, parent, pin, play, session, turn

K = FailureKind

CREATED, PROGRESS, DELTA, MORE, DONE = b"created", b"progress", b"delta", b"more", b"completed"

AUTH = failure(K.AUTH_REJECTED, "invalid_api_key", status=401, names_key=True)
SCOPE = failure(K.AUTH_REJECTED, "", status=403)
NO_MODEL = failure(K.UNSUPPORTED, "model_not_found", status=404, raw=b'{"type":"response.failed","no":"model"}')
QUOTA = failure(K.QUOTA_EXHAUSTED, "insufficient_quota", status=429)
RATE = failure(K.RATE_LIMITED, "rate_limit_exceeded", status=429, retry_after=7.0)
BUSY = failure(K.OVERLOADED, "server_is_overloaded", status=503)
LOST = failure(K.TRANSPORT_LOST, "close_1006")
EXPIRED = failure(K.CONNECTION_EXPIRED, "websocket_connection_limit_reached", status=400)
PRNF = failure(K.CONTINUATION_LOST, "previous_response_not_found", status=400, raw=b'{"type":"error","status":400}')
FOREIGN = failure(K.CIPHERTEXT_FOREIGN, "invalid_encrypted_content", raw=b'{"type":"response.failed","f":1}')
FAULT = failure(K.REQUEST_FAULT, "invalid_value", status=400, raw=b'{"type":"error","status":400,"w":1.0}')
NOT_FOUND = Tell(errors.previous_response_not_found("resp_0"))


def handshake(found: Failure) -> Failure:
    return Failure(found.kind, found.status, found.code, names_key=found.names_key, independent=True)


def wish(
    preferred: Credential | None = None,
    *,
    boundary: str | None = None,
    tried: tuple[Credential, ...] = (),
    avoided: Credential | None = None,
    pinned: bool | None = None,
    only: str | None = None,
    transport: str = "",
    affinity: str = "",
) -> Place:
    """Who is preferred is the session's pin, unless `pinned` says otherwise."""

    def name(of: Credential | None) -> str | None:
        return of.name if of is not None else None

    keys = frozenset(each.key for each in tried)
    by_pin = preferred is not None if pinned is None else pinned
    return Place(
        Wish("m", name(preferred), boundary, keys, name(avoided), "sid", only, transport, affinity, pinned=by_pin)
    )


def placed(on: Credential, nonce: str = "n2") -> Placed:
    return Placed(on, nonce)


def tried(who: Credential, found: Failure) -> tuple[Credential, ...]:
    """Who is out of the turn after a first failure: who limited its rate may serve it a moment later."""
    return () if found.kind is K.RATE_LIMITED else (who,)


def void(who: Credential, found: Failure) -> Blame:
    """What is counted, and held against nobody."""
    return Blame(who, found, False, void=True)


def again(who: Credential, found: Failure) -> Blame:
    """What was reported before is now confirmed."""
    return Blame(who, found, True, again=True)


def send(
    frame: bytes = FRAME, mode: Mode = Mode.INCREMENTAL, cause: str = "socket_changed", *, again: bool = False
) -> Send:
    return Send(frame, mode, cause, again)


def resolved(past: Parent, of: Turn) -> Resolved:
    return Resolved(past, of.session)


def opening(one: Turn, on: Credential = A) -> Playbook:
    """A turn without a past, up to the socket."""
    return play(one) >> Began() << Place >> placed(on) << Open(on)


def sent(one: Turn, on: Credential = A) -> Playbook:
    """A turn without a past, sent and not yet answered."""
    return opening(one, on) >> Opened(False) << Send


def continued(one: Turn, past: Parent, on: Credential = A) -> Playbook:
    """A turn with a past, up to the socket."""
    talk = play(one) >> Began() << Resolve("resp_0") >> resolved(past, one) << Place
    return talk >> placed(on) << Open(on)


def incremented(one: Turn, past: Parent, on: Credential = A) -> Playbook:
    """A turn sent as an increment to the socket that holds its parent."""
    return continued(one, past, on) >> Opened(True) << send()


# --- the plain way ---


def test_a_plain_turn() -> None:
    one = turn()
    assert (
        play(one)
        >> Began()
        << wish()
        >> placed(A)
        << Open(A)
        >> Opened(False)
        << send()
        >> Announced(CREATED)
        << Hold()
        >> Announced(PROGRESS)
        >> OutputBegan(DELTA)
        << Absolve(A)
        << Relay((CREATED, PROGRESS, DELTA))
        >> OutputBegan(MORE)
        << Relay((MORE,))
        >> Completed(DONE)
        << Commit(DONE)
        >> Committed(pin(A), False)
        << Relay((DONE,))
        << End(Outcome.COMPLETED)
    )
    assert (one.state, one.outcome, one.session.pin) == (State.ENDED, Outcome.COMPLETED, pin(A))
    assert (one.session.boundaries, one.session.turns) == (frozenset({"north"}), 1)


def test_nothing_of_a_turn_without_output_is_relayed_before_it_is_written() -> None:
    assert (
        sent(turn())
        >> Announced(CREATED)
        << Hold()
        >> Completed(DONE)
        << Absolve(A)
        << Commit(DONE)
        >> Committed(None, False)
        << Relay((CREATED, DONE))
        << End(Outcome.COMPLETED)
    )


def test_a_response_that_only_completes() -> None:
    talk = sent(turn()) >> Completed(DONE) << Absolve(A) << Commit(DONE) >> Committed(None, False) << Relay((DONE,))
    assert talk << End(Outcome.COMPLETED)


def test_announcements_after_the_first_output_pass_through() -> None:
    talk = sent(turn()) >> OutputBegan(DELTA) << Absolve(A) << Relay((DELTA,))
    assert talk >> Announced(PROGRESS) << Relay((PROGRESS,))
    assert talk.turn.state is State.SHOWING


def test_an_increment_goes_to_the_socket_that_holds_its_parent() -> None:
    assert incremented(turn(of=session(pinned=pin(A)), previous="resp_0"), parent())


def test_an_increment_goes_to_the_credential_that_stored_its_parent() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    assert continued(one, parent(store=True)) >> Opened(False) << send()


def test_a_turn_is_rebuilt_where_its_parent_is_not() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = continued(one, parent()) >> Opened(False) << Rebuild(A, parent(), False)
    assert talk >> Rebuilt(b"whole") << send(b"whole", Mode.REPLAY)


def test_a_turn_is_rebuilt_when_increments_are_disabled() -> None:
    one = turn(of=session(pinned=pin(A), incremental_disabled=True), previous="resp_0")
    talk = continued(one, parent()) >> Opened(False) << Rebuild >> Rebuilt(b"whole")
    assert talk << send(b"whole", Mode.REPLAY, "pin_reset")


def test_a_turn_is_not_rebuilt_for_a_socket_that_holds_its_parent_although_increments_are_disabled() -> None:
    one = turn(of=session(pinned=pin(A), incremental_disabled=True), previous="resp_0")
    assert continued(one, parent()) >> Opened(True) << Send


def test_a_turn_adopts_the_session_its_parent_belongs_to() -> None:
    theirs = session(pinned=pin(B, 4))
    one = turn(previous="resp_0")
    assert play(one) >> Began() << Resolve("resp_0") >> Resolved(parent(B), theirs) << wish(B)
    assert one.session is theirs


def test_own_input_with_ciphertext_is_rebuilt_when_the_session_has_crossed_a_boundary() -> None:
    one = turn(of=session(pinned=pin(A), boundaries=["south"]), items=b'[{"encrypted_content":"x"}]')
    talk = opening(one) >> Opened(False) << Rebuild(A, None, False) >> Rebuilt(b"less")
    assert talk << send(b"less", Mode.REPLAY)


def test_a_successor_that_the_upstream_began_is_shown_at_once() -> None:
    one = turn()
    assert (
        play(one)
        >> Succeeded(A, parent(), CREATED)
        << Relay((CREATED,))
        >> OutputBegan(DELTA)
        << Absolve(A)
        << Relay((DELTA,))
        >> Completed(DONE)
        << Commit(DONE)
        >> Committed(None, False)
        << Relay((DONE,))
        << End(Outcome.COMPLETED)
    )


def test_a_successor_that_breaks_off_is_interrupted() -> None:
    talk = (
        play(turn()) >> Succeeded(A, parent(), CREATED) << Relay >> Failed(LOST) << Abandon() << Blame(A, LOST, False)
    )
    assert talk << Tell(errors.interrupted()) << End(Outcome.INTERRUPTED)


def test_a_wish_names_the_session() -> None:
    one = turn(of=session(sid="mine"))
    talk = play(one) >> Began() << Place
    assert talk.last(Place) == Place(Wish("m", session="mine", pinned=False))


def test_a_wish_names_the_session_that_the_parent_belongs_to() -> None:
    talk = play(turn(of=session(sid="mine"), previous="resp_0")) >> Began() << Resolve
    talk >> Resolved(parent(), session(sid="theirs")) << Place
    assert talk.last(Place) == Place(Wish("m", preferred="a", session="theirs", pinned=False))


def test_a_turn_that_tries_a_credential_goes_like_any_other() -> None:
    talk = play(turn()) >> Began() << wish() >> Placed(A, "n2", "a licence") << Open(A) >> Opened(False) << send()
    assert talk >> OutputBegan(DELTA) << Absolve(A) << Relay((DELTA,))


# --- what a request asks of a credential ---


def test_a_wish_names_the_transport_and_the_affinity_at_every_placement() -> None:
    talk = play(turn(transport="http", affinity="key")) >> Began() << wish(transport="http", affinity="key")
    talk >> placed(A) << Open(A) >> Opened(False) << Send >> Failed(QUOTA) << Abandon() << Blame
    assert talk << wish(A, tried=(A,), transport="http", affinity="key")


def test_a_turn_for_which_nobody_speaks_the_transport_is_told_that_the_endpoint_is_not_offered() -> None:
    for reasons in ({"transport"}, {"model", "transport"}):
        talk = play(turn(transport="http")) >> Began() << Place >> NonePlaced(frozenset(reasons))
        assert talk << Tell(errors.not_offered()) << End(Outcome.REQUEST_FAULT)
    talk = play(turn(transport="http")) >> Began() << Place >> NonePlaced(frozenset({"transport", "busy"})) << Tell
    assert talk << End(Outcome.EXHAUSTED)


def test_the_owner_of_what_a_turn_names_is_asked_for_before_it_is_placed() -> None:
    one = turn(needs=("conv_1",), binding="a conversation")
    talk = play(one) >> Began() << Resolve(None, ("conv_1",)) >> Resolved(None, one.session, "south", "b")
    assert talk << wish(boundary="south", only="b")


def test_the_owner_is_asked_for_together_with_the_parent() -> None:
    one = turn(previous="resp_0", needs=("cmp:1",), binding="a compaction item")
    talk = play(one) >> Began() << Resolve("resp_0", ("cmp:1",)) >> Resolved(parent(B), session(pinned=pin(A)), "south")
    assert talk << wish(A, boundary="south")


def test_what_has_an_owner_that_nobody_knows_is_not_found_and_nothing_is_sent() -> None:
    one = turn(needs=("conv_1",), binding="a conversation")
    talk = play(one) >> Began() << Resolve >> OwnerUnknown("conv_1")
    assert talk << Tell(errors.not_found("conv_1")) << End(Outcome.NOT_FOUND)
    assert (one.outcome, one.session.pin) == (Outcome.NOT_FOUND, None)


def test_a_turn_that_only_one_can_serve_stays_with_it_whatever_fails() -> None:
    one = turn(needs=("conv_1",), binding="a conversation")
    talk = play(one) >> Began() << Resolve >> Resolved(None, one.session, "south", "b") << Place >> placed(B) << Open(B)
    talk >> Opened(False) << send() >> Failed(QUOTA) << Abandon() << Blame
    assert talk << wish(B, boundary="south", tried=(B,), only="b")


def test_a_chain_that_is_bound_elsewhere_than_what_the_turn_names_is_lost() -> None:
    one = turn(previous="resp_0", needs=("cmp:1",), binding="a compaction item")
    talk = play(one) >> Began() << Resolve >> Resolved(parent(A), session(), "south") << Place >> placed(B) << Open(B)
    talk >> Opened(False) << Rebuild >> ChainBound("north")
    assert talk << NOT_FOUND << End(Outcome.NOT_FOUND)


# --- what never left ---

UNSENT = failure(K.TRANSPORT_LOST, "ClientConnectorError", independent=True, unsent=True)


def test_what_never_left_counts_as_a_failure_before_the_send() -> None:
    talk = sent(turn()) >> Failed(UNSENT) << Abandon() << Blame(A, UNSENT, True) << wish(A, tried=(A,)) >> placed(B)
    assert talk << FailOver(UNSENT, Phase.BEFORE_SEND) << Open(B)


def test_what_never_left_is_no_placement_however_often() -> None:
    talk = sent(turn(policy=Policy(placements=1)))
    for following in (B, C, D):
        talk >> Failed(UNSENT) << Abandon() << Blame << Place >> placed(following) << FailOver << Open(following)
        talk >> Opened(False) << Send
    assert talk >> OutputBegan(DELTA) << Absolve(D) << Relay


def test_a_turn_of_a_conversation_that_never_left_is_sent_again() -> None:
    talk = sent(turn(binding="a conversation")) >> Failed(UNSENT) << Abandon() << Blame
    (
        talk
        << wish(A, boundary="north", tried=(A,))
        >> placed(A2)
        << FailOver
        << Open(A2)
        >> Opened(False)
        << send(cause="transport_lost")
    )
    assert talk >> Failed(LOST) << Abandon() << Blame << Tell(errors.outcome_unknown()) << End(Outcome.UNSERVED)


def test_a_turn_of_a_conversation_that_never_left_is_not_told_to_be_unknown() -> None:
    talk = sent(turn(binding="a conversation")) >> Failed(UNSENT) << Abandon() << Blame << Place
    talk >> NonePlaced(frozenset({"tried"})) << Place >> NonePlaced(frozenset({"tried"}))
    assert talk << Tell(errors.unserved(UNSENT)) << End(Outcome.UNSERVED)


# --- proof ---


def test_output_absolves_once_however_much_follows() -> None:
    talk = sent(turn()) >> OutputBegan(DELTA) << Absolve(A) << Relay >> OutputBegan(MORE) << Relay((MORE,))
    assert talk >> Completed(DONE) << Commit(DONE) >> Committed(None, False) << Relay << End


def test_announcements_absolve_nobody_when_they_are_shown() -> None:
    talk = sent(turn()) >> Announced(CREATED) << Hold() >> HoldElapsed() << Relay((CREATED,))
    talk >> Announced(PROGRESS) << Relay((PROGRESS,))
    assert talk >> OutputBegan(DELTA) << Absolve(A) << Relay((DELTA,))


def test_a_completion_absolves_when_only_announcements_were_shown() -> None:
    talk = sent(turn()) >> Announced(CREATED) << Hold() >> HoldElapsed() << Relay
    assert talk >> Completed(DONE) << Absolve(A) << Commit(DONE)


def test_a_credential_is_absolved_although_the_client_leaves_before_the_end() -> None:
    talk = sent(turn()) >> OutputBegan(DELTA) << Absolve(A) << Relay
    assert talk >> ClientLeft() << Abandon() << End(Outcome.CLIENT_LEFT)


def test_only_who_serves_is_absolved() -> None:
    talk = moved(sent(turn()), QUOTA) >> OutputBegan(DELTA) << Absolve(B) << Relay >> Completed(DONE) << Commit
    assert talk
    assert [said for said in talk.said if isinstance(said, Absolve)] == [Absolve(B)]


# --- holding back ---


def test_holds_announcements_no_longer_than_allowed() -> None:
    talk = sent(turn()) >> Announced(CREATED) << Hold() >> HoldElapsed() << Relay((CREATED,))
    assert talk >> Failed(LOST) << Abandon() << Blame << Tell(errors.interrupted()) << End(Outcome.INTERRUPTED)


def test_holds_no_more_announcements_than_allowed() -> None:
    talk = sent(turn(policy=Policy(held=2))) >> Announced(b"1") << Hold() >> Announced(b"2")
    assert talk >> Announced(b"3") << Relay((b"1", b"2", b"3"))
    assert talk.turn.phase is Phase.SHOWN


def test_a_hold_that_elapses_with_nothing_held_changes_nothing() -> None:
    talk = sent(turn()) >> HoldElapsed()
    assert talk
    assert talk.turn.phase is Phase.SENT


# --- failover ---

MOVES = [AUTH, NO_MODEL, QUOTA, RATE, BUSY, LOST]


@pytest.mark.parametrize("found", MOVES, ids=lambda found: found.kind.value)
def test_moves_to_another_credential_before_anything_was_sent(found: Failure) -> None:
    found = handshake(found)
    talk = opening(turn()) >> Failed(found) << Abandon() << Blame(A, found, True) << wish(A, tried=tried(A, found))
    assert talk >> placed(B) << FailOver(found, Phase.BEFORE_SEND) << Open(B) >> Opened(False) << Send


@pytest.mark.parametrize("found", MOVES, ids=lambda found: found.kind.value)
def test_moves_to_another_credential_after_sending(found: Failure) -> None:
    talk = sent(turn()) >> Failed(found) << Abandon() << Blame(A, found, False) << wish(A, tried=tried(A, found))
    assert talk >> placed(B) << FailOver(found, Phase.SENT) << Open(B)
    assert talk >> Opened(False) << send(cause=found.kind.value, again=found.row.executed)


@pytest.mark.parametrize("found", [QUOTA, RATE, BUSY, LOST], ids=lambda found: found.kind.value)
def test_moves_after_output_that_nobody_has_seen(found: Failure) -> None:
    talk = sent(turn(whole=True)) >> Announced(b"created at a") >> OutputBegan(DELTA) << Absolve(A)
    talk >> Failed(found) << Abandon() << Blame << Place >> placed(B) << FailOver(found, Phase.SENT) << Open(B)
    talk >> Opened(False) << send(cause=found.kind.value, again=True)
    assert talk >> Completed(DONE) << Absolve(B) << Commit(DONE)


def test_says_nothing_before_the_end_to_who_takes_the_whole() -> None:
    talk = sent(turn(whole=True)) >> Announced(b"created") >> OutputBegan(DELTA) << Absolve(A)
    talk >> OutputBegan(DELTA) >> Completed(DONE) << Commit(DONE)
    assert talk >> Committed(None, False) << Relay((DONE,)) << End(Outcome.COMPLETED)


def test_what_is_passed_on_leaves_its_session_as_it_is() -> None:
    owner = session(pinned=pin(A, 3))
    talk = play(turn(of=session(sid="own"), previous="resp_0", conversing=False)) >> Began() << Resolve("resp_0")
    talk >> Resolved(parent(), owner) << Place >> placed(B) << Open(B)
    assert owner.pin == pin(A, 3) and talk.turn.session is not owner


@pytest.mark.parametrize("found", [QUOTA, RATE, BUSY, LOST], ids=lambda found: found.kind.value)
def test_moves_after_created_and_shows_nothing_of_the_first_attempt(found: Failure) -> None:
    talk = sent(turn()) >> Announced(b"created at a") << Hold() >> Failed(found) << Abandon() << Blame << Place
    talk >> placed(B) << FailOver << Open(B) >> Opened(False) << Send
    talk >> Announced(b"created at b") << Hold() >> OutputBegan(DELTA) << Absolve(B)
    assert talk << Relay((b"created at b", DELTA))


@pytest.mark.parametrize("found", [AUTH, QUOTA, RATE, BUSY, LOST, EXPIRED, PRNF], ids=lambda found: found.kind.value)
def test_is_interrupted_after_something_was_shown(found: Failure) -> None:
    talk = incremented(turn(of=session(pinned=pin(A)), previous="resp_0"), parent()) >> OutputBegan(DELTA)
    talk << Absolve(A) << Relay >> Failed(found) << Abandon() << Blame
    if found is AUTH:
        talk << again(A, AUTH)
    assert talk << Tell(errors.interrupted()) << End(Outcome.INTERRUPTED)


@pytest.mark.parametrize("found", [FAULT, NO_MODEL, FOREIGN], ids=lambda found: found.kind.value)
def test_passes_the_vendors_words_on_after_something_was_shown(found: Failure) -> None:
    talk = sent(turn()) >> OutputBegan(DELTA) << Absolve << Relay >> Failed(found) << Abandon() << Blame
    assert talk << Tell(None, found.raw) << End(Outcome.REQUEST_FAULT)


def test_the_pin_moves_with_the_turn_by_compare_and_set() -> None:
    one = turn(of=session(pinned=pin(A)))
    talk = sent(one) >> Failed(QUOTA) << Abandon() << Blame << wish(A, tried=(A,))
    assert (
        talk
        >> placed(B)
        << FailOver
        << MovePin(pin(A), Pin("b", 2, "n2", "quota_exhausted"))
        >> PinMoved(pin(B, 2, "n2"))
        << Open(B)
    )
    assert (one.session.pin, one.session.incremental_disabled) == (pin(B, 2, "n2"), True)


def test_a_pin_moves_off_a_sick_credential_before_any_failure() -> None:
    talk = play(turn(of=session(pinned=pin(A)))) >> Began() << wish(A) >> placed(B)
    assert talk << MovePin(pin(A), Pin("b", 2, "n2", "health"))


def test_a_session_avoids_who_broke_off_its_last_turn_until_one_ends_well() -> None:
    one = turn(of=session(pinned=pin(A)))
    talk = sent(one) >> OutputBegan(DELTA) << Absolve << Relay >> Failed(LOST) << Abandon() << Blame << Tell
    assert talk << End(Outcome.INTERRUPTED)
    again = turn(of=one.session)
    talk = play(again) >> Began() << wish(A, avoided=A) >> placed(B)
    talk << MovePin(pin(A), Pin("b", 2, "n2", "interrupted")) >> PinMoved(pin(B, 2)) << Open(B) >> Opened(False) << Send
    assert talk >> Completed(DONE) << Absolve(B) << Commit >> Committed(None, False) << Relay << End
    assert play(turn(of=one.session)) >> Began() << wish(B)


def test_an_increment_becomes_a_replay_on_another_credential() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = incremented(one, parent()) >> Failed(QUOTA) << Abandon() << Blame << wish(A, tried=(A,)) >> placed(B)
    talk << FailOver << MovePin >> PinMoved(pin(B, 2)) << Open(B) >> Opened(False) << Rebuild(B, parent(), False)
    assert talk >> Rebuilt(b"whole") << send(b"whole", Mode.REPLAY, "quota_exhausted")


def test_tells_of_exhaustion_with_the_earliest_reset_when_one_after_the_other_is_empty() -> None:
    talk = sent(turn())
    for number, (spent, following) in enumerate(((A, B), (B, C))):
        tried = (A, B)[: number + 1]
        talk >> Failed(QUOTA) << Abandon() << Blame(spent, QUOTA, False) << wish(spent, tried=tried)
        talk >> placed(following) << FailOver << Open(following) >> Opened(False) << Send
    talk >> Failed(QUOTA) << Abandon() << Blame(C, QUOTA, False) << wish(C, tried=(A, B, C))
    assert talk >> NonePlaced(frozenset({"tried"}), 60.0) << Tell << End(Outcome.EXHAUSTED)
    told = talk.last(Tell)
    assert isinstance(told, Tell)
    assert told.reply is not None
    assert (told.reply.status, told.reply.code, told.reply.extra["resets_at"]) == (429, "usage_limit_reached", 60)


# --- nobody is there ---


def nobody(*reasons: str, after: Failure | None = None, resets_at: float | None = None) -> errors.ErrorReply:
    """What a client is told when selection finds nobody, for these reasons."""
    one = turn()
    talk = play(one) >> Began() << Place
    if after is not None:
        talk >> placed(A) << Open(A) >> Opened(False) << Send >> Failed(after) << Abandon() << Blame << Place
    talk >> NonePlaced(frozenset(reasons), resets_at)
    told = talk.last(Tell)
    assert isinstance(told, Tell)
    assert told.reply is not None
    return told.reply


def test_tells_that_all_are_exhausted() -> None:
    assert nobody("exhausted", "model") == errors.all_exhausted(None, 0.0)
    assert nobody("exhausted", "revoked", resets_at=90.0).extra["resets_at"] == 90


def test_tells_that_no_credential_serves_the_model() -> None:
    assert nobody("model") == nobody() == errors.no_credential("m")


def test_tells_that_all_are_at_their_cap() -> None:
    assert nobody("busy", "model").code == "broker_limit_reached"


def test_tells_that_none_is_accepted() -> None:
    assert nobody("revoked").code == "no_credential_available"


@pytest.mark.parametrize(
    ("after", "code"),
    [(RATE, "rate_limit_exceeded"), (BUSY, "server_is_overloaded"), (QUOTA, "usage_limit_reached")],
)
def test_tells_what_the_last_one_said(after: Failure, code: str) -> None:
    assert nobody("tried", after=after).code == code


@pytest.mark.parametrize("reasons", [("exhausted", each) for each in ("busy", "cooling", "half_open", "ramping")])
def test_does_not_tell_of_exhaustion_while_somebody_may_serve_in_a_moment(reasons: tuple[str, ...]) -> None:
    assert nobody(*reasons, resets_at=86400.0).code != "usage_limit_reached"


@pytest.mark.parametrize("after", [RATE, BUSY], ids=lambda found: found.kind.value)
def test_does_not_tell_of_exhaustion_when_somebody_may_serve_in_a_moment(after: Failure) -> None:
    assert nobody("exhausted", "tried", after=after, resets_at=86400.0).code == nobody("tried", after=after).code


@pytest.mark.parametrize("reason", ["cooling", "half_open", "ramping"])
def test_tells_of_a_moment_when_all_only_cool_or_come_back(reason: str) -> None:
    assert nobody(reason, "model", resets_at=90.0) == errors.all_cooling(90.0, 0.0)
    assert nobody(reason, "busy") == errors.all_cooling(None, 0.0)


@pytest.mark.parametrize("reason", ["busy", "cooling", "half_open", "ramping"])
def test_tells_what_the_last_one_said_while_another_may_serve_in_a_moment(reason: str) -> None:
    assert nobody("exhausted", reason, after=QUOTA, resets_at=86400.0).code == "rate_limit_exceeded"


def test_tells_the_span_to_a_reset_by_the_clock_of_the_reset() -> None:
    one = turn()
    talk = (play(one).at(5.0) >> Began() << Place).at(6.0)
    talk >> NonePlaced(frozenset({"exhausted"}), 1_800_000_060.0, 1_800_000_000.0)
    told = talk.last(Tell)
    assert isinstance(told, Tell)
    assert told.reply is not None
    assert told.reply.extra == {"resets_at": 1_800_000_060, "resets_in_seconds": 60}


# --- the race for the pin ---


def test_who_loses_the_race_adopts_the_winners_pin() -> None:
    one = turn(of=session(pinned=pin(A)))
    talk = play(one) >> Began() << wish(A) >> placed(B) << MovePin
    assert talk >> PinStale(pin(C, 5, "theirs"), True) << wish(C) >> placed(C) << Open(C)
    assert (one.session.pin, one.session.incremental_disabled) == (pin(C, 5, "theirs"), True)


def test_races_no_more_often_than_it_may_and_then_serves_all_the_same() -> None:
    one = turn(of=session(pinned=pin(A)))
    talk = play(one) >> Began() << wish(A)
    for race in range(MAX_PIN_RACES):
        talk >> placed(B) << MovePin >> PinStale(pin(C, race + 2, "theirs"), True) << wish(C)
    assert talk >> placed(B) << Open(B)
    assert one.session.pin == pin(C, MAX_PIN_RACES + 1, "theirs")


def test_goes_on_when_the_store_cannot_move_the_pin() -> None:
    one = turn(of=session(pinned=pin(A)))
    assert play(one) >> Began() << wish(A) >> placed(B) << MovePin >> PinUnwritten() << Open(B)
    assert one.session.pin == pin(A)


def test_a_wish_of_this_node_needs_no_race() -> None:
    one = turn(of=session(pinned=pin(A, 0)))
    assert play(one) >> Began() << wish(A) >> placed(B) << Open(B)
    assert one.session.pin == Pin("b", 0, "n2", "health")


# --- poison ---


def blames(talk: Playbook) -> list[Blame]:
    """Every failure that was reported, in order."""
    return [said for said in talk.said if isinstance(said, Blame)]


def moved(talk: Playbook, found: Failure, to: Credential = B) -> Playbook:
    """The attempt fails, and the turn is sent again elsewhere."""
    return (
        talk
        >> Failed(found)
        << Abandon()
        << Blame
        << Place
        >> placed(to)
        << FailOver
        << Open(to)
        >> Opened(False)
        << Send
    )


def test_two_alike_refusals_end_the_turn_and_confirm_nothing() -> None:
    talk = moved(sent(turn()), SCOPE) >> Failed(SCOPE) << Abandon() << Retract(A) << void(B, SCOPE)
    assert talk << Tell(errors.refused(SCOPE)) << End(Outcome.REQUEST_FAULT)
    assert [said.void for said in blames(talk)] == [False, True]
    assert not any(said.confirmed for said in blames(talk))
    first = blames(talk)[0]
    report = blame(
        first.failure, first.credential, "m", confirmed=False, streak=0, evidence="", began=0, now=0, chance=0
    )
    assert report is not None
    assert report.state is HealthState.SUSPECT


def test_a_code_that_names_the_key_needs_a_third_witness() -> None:
    """Two keys of one organisation may well be revoked together; three that fail alike are the request's doing."""
    talk = moved(moved(sent(turn()), AUTH), AUTH, C) >> Failed(AUTH) << Abandon() << Retract(A) << Retract(B)
    assert talk << void(C, AUTH) << Tell(errors.refused(AUTH)) << End(Outcome.REQUEST_FAULT)
    assert not any(said.confirmed for said in blames(talk))


def test_two_keys_that_were_revoked_together_are_confirmed_by_a_third() -> None:
    talk = moved(moved(sent(turn()), AUTH), AUTH, C) >> OutputBegan(DELTA)
    assert talk << Absolve(C) << again(A, AUTH) << again(B, AUTH) << Relay((DELTA,))


def test_two_who_agree_are_enough_when_nobody_else_is_left() -> None:
    talk = moved(sent(turn()), AUTH) >> Failed(AUTH) << Abandon() << Blame(B, AUTH, False) << Place
    talk >> NonePlaced(frozenset({"tried"})) << Retract(A) << Retract(B)
    assert talk << Tell(errors.refused(AUTH)) << End(Outcome.REQUEST_FAULT)


@pytest.mark.parametrize("last", [RATE, handshake(AUTH)], ids=["rate_limited", "refused handshake"])
def test_two_who_agree_are_not_confirmed_by_another_failure_at_the_end(last: Failure) -> None:
    talk = sent(turn())
    for following in (B, C):
        talk >> Failed(AUTH) << Abandon() << Blame << Place >> placed(following) << FailOver << Open(following)
        if not last.independent or following is B:
            talk >> Opened(False) << Send
    talk >> Failed(last) << Abandon() << Blame << Place >> NonePlaced(frozenset({"tried"})) << ... << End
    assert not [said for said in blames(talk) if said.failure == AUTH and said.confirmed]


def test_a_model_that_two_refuse_alike_is_the_vendors_to_explain() -> None:
    talk = moved(sent(turn()), NO_MODEL) >> Failed(NO_MODEL) << Abandon() << Retract(A) << void(B, NO_MODEL)
    assert talk << Tell(None, NO_MODEL.raw) << End(Outcome.REQUEST_FAULT)


def test_two_refusals_that_differ_are_not_the_requests_doing() -> None:
    other = failure(K.AUTH_REJECTED, "account_suspended", status=403, names_key=True)
    assert moved(sent(turn()), AUTH) >> Failed(other) << Abandon() << Blame(B, other, False) << wish(B, tried=(A, B))


def test_a_handshake_that_is_refused_twice_is_no_poison() -> None:
    refused = handshake(AUTH)
    talk = opening(turn()) >> Failed(refused) << Abandon() << Blame(A, refused, True) << Place >> placed(B) << FailOver
    talk << Open(B) >> Failed(refused) << Abandon() << Blame(B, refused, True) << wish(B, tried=(A, B))
    assert talk >> placed(C) << FailOver << Open(C)


@pytest.mark.parametrize("found", [SCOPE, NO_MODEL], ids=lambda found: found.kind.value)
def test_a_refused_handshake_is_no_witness_against_a_request(found: Failure) -> None:
    refused = handshake(found)
    talk = opening(turn()) >> Failed(refused) << Abandon() << Blame(A, refused, True) << Place >> placed(B) << FailOver
    talk << Open(B) >> Opened(False) << Send >> Failed(found) << Abandon() << Blame(B, found, False)
    assert talk << wish(B, tried=(A, B))


@pytest.mark.parametrize("found", [AUTH, NO_MODEL], ids=lambda found: found.kind.value)
def test_a_success_elsewhere_confirms_that_the_credential_was_at_fault(found: Failure) -> None:
    talk = moved(sent(turn()), found) >> OutputBegan(DELTA) << Absolve(B) << again(A, found) << Relay((DELTA,))
    assert talk >> Completed(DONE) << Commit(DONE)


def test_a_completion_without_output_confirms_too() -> None:
    assert moved(sent(turn()), AUTH) >> Completed(DONE) << Absolve(B) << again(A, AUTH) << Commit(DONE)


def test_an_announcement_confirms_nothing() -> None:
    talk = moved(sent(turn()), SCOPE) >> Announced(CREATED) << Hold()
    talk >> Failed(SCOPE) << Abandon() << Retract(A) << void(B, SCOPE) << Tell(errors.refused(SCOPE))
    assert talk << End(Outcome.REQUEST_FAULT)


def test_a_code_that_names_the_key_is_enough_when_nobody_contradicts() -> None:
    talk = sent(turn()) >> Failed(AUTH) << Abandon() << Blame(A, AUTH, False) << Place
    assert talk >> NonePlaced(frozenset({"tried"})) << again(A, AUTH) << Tell << End(Outcome.UNSERVED)


def test_a_model_that_nobody_else_could_be_asked_for_confirms_nothing() -> None:
    talk = sent(turn()) >> Failed(NO_MODEL) << Abandon() << Blame(A, NO_MODEL, False) << Place
    assert talk >> NonePlaced(frozenset({"tried"})) << Tell(None, NO_MODEL.raw) << End(Outcome.REQUEST_FAULT)


def test_an_endpoint_that_refuses_the_upgrade_is_not_the_clients_fault() -> None:
    refused = Failure(K.UNSUPPORTED, 404, independent=True)
    talk = opening(turn()) >> Failed(refused) << Abandon() << Blame(A, refused, True) << Place
    assert talk >> NonePlaced(frozenset({"tried"})) << Tell << End(Outcome.UNSERVED)


def test_a_request_fault_is_passed_on_with_what_was_held() -> None:
    one = turn(of=session(pinned=pin(A)))
    talk = sent(one) >> Announced(CREATED) << Hold() >> Failed(FAULT) << Abandon() << Blame(A, FAULT, False)
    assert talk << Tell(None, FAULT.raw, (CREATED,)) << End(Outcome.REQUEST_FAULT)
    assert one.session.pin == pin(A)


def test_every_doubt_of_a_poisonous_request_is_retracted() -> None:
    """Three refused it, two of them alike: what the other one said was the request's doing, too."""
    talk = moved(moved(sent(turn()), AUTH), SCOPE, C) >> Failed(SCOPE) << Abandon() << Retract(A) << Retract(B)
    assert talk << void(C, SCOPE) << Tell(errors.refused(SCOPE)) << End(Outcome.REQUEST_FAULT)


def test_a_poison_that_four_credentials_refuse_leaves_no_doubt() -> None:
    talk = moved(moved(moved(sent(turn()), AUTH), NO_MODEL, C), SCOPE, D) >> Failed(SCOPE) << Abandon()
    talk << Retract(A) << Retract(B) << Retract(C) << void(D, SCOPE) << Tell(errors.refused(SCOPE))
    assert talk << End(Outcome.REQUEST_FAULT)
    assert [said.void for said in blames(talk)] == [False, False, True, True]
    assert not any(said.confirmed for said in blames(talk))


def test_a_third_witness_is_asked_although_doubt_was_cast_on_two_already() -> None:
    talk = moved(moved(moved(sent(turn()), NO_MODEL), AUTH, C), AUTH, D) >> Failed(AUTH) << Abandon()
    assert talk << Retract(A) << Retract(B) << Retract(C) << void(D, AUTH) << Tell(errors.refused(AUTH)) << End
    assert blames(talk)[2:] == [void(C, AUTH), void(D, AUTH)]


@pytest.mark.parametrize("stated", [QUOTA, RATE, BUSY], ids=lambda found: found.kind.value)
def test_what_a_vendor_stated_is_not_retracted_with_the_poison(stated: Failure) -> None:
    talk = moved(moved(sent(turn()), stated), SCOPE, C) >> Failed(SCOPE) << Abandon() << Retract(B) << void(C, SCOPE)
    assert talk << Tell << End(Outcome.REQUEST_FAULT)


def test_a_refused_handshake_is_not_retracted_with_the_poison() -> None:
    refused = handshake(AUTH)
    talk = opening(turn()) >> Failed(refused) << Abandon() << Blame(A, refused, True) << Place >> placed(B) << FailOver
    talk = moved(talk << Open(B) >> Opened(False) << Send, SCOPE, C) >> Failed(SCOPE) << Abandon() << Retract(B)
    assert talk << void(C, SCOPE) << Tell << End(Outcome.REQUEST_FAULT)


# --- how much one turn may say against others ---


def test_keys_that_are_named_are_no_end_of_a_turn_however_many_they_are() -> None:
    talk = sent(turn(policy=Policy(placements=2)))
    codes = ("invalid_api_key", "token_revoked", "account_deactivated")
    for code, following in zip(codes, (B, C, D), strict=True):
        talk >> Failed(failure(K.AUTH_REJECTED, code, status=401, names_key=True)) << Abandon() << Blame << Place
        talk >> placed(following) << FailOver << Open(following) >> Opened(False) << Send
    assert talk >> OutputBegan(DELTA) << Absolve(D) << Blame << Blame << Blame << Relay


def test_one_turn_casts_doubt_on_two_credentials_at_most() -> None:
    talk = moved(moved(sent(turn()), SCOPE), NO_MODEL, C) >> Failed(LOST) << Abandon() << void(C, LOST)
    assert talk << wish(C, tried=(A, B, C)) >> placed(D) << FailOver << Open(D)
    assert blames(talk)[:2] == [Blame(A, SCOPE, False), Blame(B, NO_MODEL, False)]


def test_three_transports_lost_cast_doubt_on_two() -> None:
    talk = moved(moved(sent(turn()), LOST), LOST, C) >> Failed(LOST) << Abandon() << void(C, LOST)
    assert talk << Tell(errors.unserved(LOST)) << End(Outcome.UNSERVED)
    assert blames(talk)[:2] == [Blame(A, LOST, False), Blame(B, LOST, False)]


def test_one_turn_casts_doubt_on_a_credential_once() -> None:
    talk = sent(turn()) >> Failed(LOST) << Abandon() << Blame(A, LOST, False) << Place
    talk >> NonePlaced(frozenset({"tried"})) << wish(A) >> placed(A) << Open(A) >> Opened(False) << Send
    assert talk >> Failed(LOST) << Abandon() << void(A, LOST) << wish(A, tried=(A,))


@pytest.mark.parametrize("stated", [QUOTA, RATE, BUSY], ids=lambda found: found.kind.value)
def test_what_a_vendor_states_is_no_doubt_and_always_counts(stated: Failure) -> None:
    talk = moved(moved(sent(turn()), SCOPE), AUTH, C)
    assert talk >> Failed(stated) << Abandon() << Blame(C, stated, False) << Place
    first = moved(moved(sent(turn()), stated), SCOPE, C)
    assert first >> Failed(AUTH) << Abandon() << Blame(C, AUTH, False) << Place


@pytest.mark.parametrize("found", [AUTH, NO_MODEL, LOST], ids=lambda found: found.kind.value)
def test_a_refused_handshake_always_counts(found: Failure) -> None:
    refused = handshake(found)
    talk = moved(sent(turn()), SCOPE) >> Failed(AUTH) << Abandon() << Blame << Place >> placed(C) << FailOver << Open(C)
    assert talk >> Failed(refused) << Abandon() << Blame(C, refused, True) << wish(C, tried=(A, B, C))


@pytest.mark.parametrize("found", [AUTH, NO_MODEL, LOST], ids=lambda found: found.kind.value)
def test_a_refused_handshake_leaves_room_for_two_doubts(found: Failure) -> None:
    refused = handshake(found)
    talk = opening(turn()) >> Failed(refused) << Abandon() << Blame << Place >> placed(B) << FailOver << Open(B)
    talk = moved(talk >> Opened(False) << Send, SCOPE, C)
    assert talk >> Failed(LOST) << Abandon() << Blame(C, LOST, False) << Place


def test_a_success_confirms_what_was_void_before() -> None:
    talk = moved(moved(moved(sent(turn()), SCOPE), AUTH, C), NO_MODEL, D)
    assert blames(talk)[2] == void(C, NO_MODEL)
    talk >> OutputBegan(DELTA) << Absolve(D) << again(A, SCOPE) << again(B, AUTH) << again(C, NO_MODEL)
    assert talk << Relay((DELTA,))


def test_what_a_success_has_confirmed_is_not_confirmed_again() -> None:
    talk = moved(sent(turn()), AUTH) >> OutputBegan(DELTA) << Absolve(B) << again(A, AUTH) << Relay((DELTA,))
    talk >> Failed(LOST) << Abandon() << Blame(B, LOST, False)
    assert talk << Tell(errors.interrupted()) << End(Outcome.INTERRUPTED)


# --- a limit of rate ---


def limited_once() -> Playbook:
    """A turn on its way to A for the second time, after A limited its rate."""
    talk = sent(turn()) >> Failed(RATE) << Abandon() << Blame(A, RATE, False) << wish(A)
    return talk >> placed(A) << Open(A) >> Opened(False) << send(cause="rate_limited")


def test_a_turn_comes_back_to_who_limited_its_rate_and_that_is_no_failover() -> None:
    talk = limited_once() >> OutputBegan(DELTA) << Absolve(A) << Relay((DELTA,)) >> Completed(DONE) << Commit(DONE)
    assert talk
    assert not any(isinstance(said, FailOver | MovePin) for said in talk.said)


def test_a_turn_comes_back_to_who_limited_its_rate_at_the_door() -> None:
    refused = handshake(RATE)
    talk = opening(turn()) >> Failed(refused) << Abandon() << Blame(A, refused, True) << wish(A) >> placed(A) << Open(A)
    assert talk >> Failed(refused) << Abandon() << Blame(A, refused, True) << wish(A, tried=(A,))


def test_a_turn_comes_back_to_who_limited_its_rate_only_once() -> None:
    talk = limited_once() >> Failed(RATE) << Abandon() << Blame(A, RATE, False) << wish(A, tried=(A,))
    assert talk >> NonePlaced(frozenset({"cooling"}), 60.0) << Tell(errors.unserved(RATE)) << End(Outcome.UNSERVED)


def test_a_turn_comes_back_once_to_each_who_limited_its_rate() -> None:
    talk = moved(sent(turn()), RATE) >> Failed(RATE) << Abandon() << Blame(B, RATE, False) << wish(B) >> placed(A)
    talk << FailOver(RATE, Phase.SENT) << Open(A) >> Opened(False) << Send >> Failed(RATE) << Abandon() << Blame
    talk << wish(A, tried=(A,)) >> placed(B) << FailOver << Open(B) >> Opened(False) << Send
    assert talk >> Failed(RATE) << Abandon() << Blame << wish(B, tried=(A, B))


@pytest.mark.parametrize("found", [AUTH, QUOTA, BUSY, LOST], ids=lambda found: found.kind.value)
def test_who_limited_the_rate_and_fails_otherwise_is_left(found: Failure) -> None:
    assert limited_once() >> Failed(found) << Abandon() << Blame(A, found, False) << wish(A, tried=(A,))


def test_a_turn_that_waited_for_a_limit_in_vain_is_told_of_it() -> None:
    talk = sent(turn()) >> Failed(RATE) << Abandon() << Blame << Place
    assert talk >> NonePlaced(frozenset({"cooling"})) << Tell(errors.unserved(RATE)) << End(Outcome.UNSERVED)


# --- continuation ---


def test_a_continuation_that_we_lost_is_replayed() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = incremented(one, parent()) >> Failed(PRNF) << Abandon() << Blame(A, PRNF, False) << wish(A)
    talk >> placed(A) << Open(A) >> Opened(True) << Rebuild(A, parent(), False) >> Rebuilt(b"whole")
    assert talk << send(b"whole", Mode.REPLAY, "continuation_lost")
    assert one.session.incremental_disabled


def as_fault(found: Failure) -> Failure:
    return Failure(K.REQUEST_FAULT, found.status, found.code, found.type, raw=found.raw)


@pytest.mark.parametrize(
    "past", [parent(live=False, store=True), parent(kept=False), parent(rooted=False), parent(seen=False)]
)
def test_a_continuation_that_the_client_lost_is_passed_on(past: Parent) -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = incremented(one, past) >> Failed(PRNF) << Abandon() << Blame(A, as_fault(PRNF), False)
    assert talk << Tell(None, PRNF.raw) << End(Outcome.REQUEST_FAULT)
    assert not one.session.incremental_disabled


def test_a_continuation_lost_in_a_replay_is_the_requests_fault() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = continued(one, parent()) >> Opened(False) << Rebuild >> Rebuilt(b"whole") << Send
    talk >> Failed(PRNF) << Abandon() << Blame(A, as_fault(PRNF), False)
    assert talk << Tell(None, PRNF.raw) << End(Outcome.REQUEST_FAULT)


def test_an_unknown_root_goes_out_as_it_came() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    assert continued(one, parent(seen=False)) >> Opened(False) << send()


def test_an_expired_socket_is_replaced_unseen() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = (
        incremented(one, parent()) >> Announced(CREATED) << Hold() >> Failed(EXPIRED) << Abandon() << Blame << wish(A)
    )
    talk >> placed(A) << Open(A) >> Opened(False) << Rebuild >> Rebuilt(b"whole")
    assert talk << send(b"whole", Mode.REPLAY, "connection_expired")


def test_an_expired_socket_is_replaced_only_so_often() -> None:
    talk = opening(turn())
    for _ in range(MAX_REPLAYS):
        talk >> Failed(EXPIRED) << Abandon() << Blame << wish(A) >> placed(A) << Open(A)
    talk >> Failed(EXPIRED) << Abandon() << Blame << wish(A, tried=(A,))
    assert talk >> NonePlaced(frozenset({"tried"})) << Tell(errors.unserved(EXPIRED)) << End(Outcome.UNSERVED)


def test_a_credential_whose_sockets_end_again_and_again_is_left_for_another() -> None:
    talk = opening(turn())
    for _ in range(MAX_REPLAYS):
        talk >> Failed(EXPIRED) << Abandon() << Blame << wish(A) >> placed(A) << Open(A)
    talk >> Failed(EXPIRED) << Abandon() << Blame << wish(A, tried=(A,)) >> placed(B)
    assert talk << FailOver(EXPIRED, Phase.BEFORE_SEND) << Open(B)


def test_foreign_ciphertext_is_left_out_once() -> None:
    talk = sent(turn()) >> Failed(FOREIGN) << Abandon() << Blame(A, FOREIGN, False) << wish(A)
    talk >> placed(A) << Open(A) >> Opened(False) << Rebuild(A, None, True) >> Rebuilt(b"less")
    talk << send(b"less", Mode.REPLAY, "ciphertext_foreign") >> Failed(FOREIGN) << Abandon() << Blame
    assert talk << Tell(None, FOREIGN.raw) << End(Outcome.REQUEST_FAULT)


def test_foreign_ciphertext_is_left_out_of_a_turn_whose_parent_is_stored_here() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    past = parent(store=True)
    talk = continued(one, past) >> Opened(False) << send() >> Failed(FOREIGN) << Abandon() << Blame << wish(A)
    assert talk >> placed(A) << Open(A) >> Opened(False) << Rebuild(A, past, True)


@pytest.mark.parametrize("past", [parent(seen=False), parent(kept=False)])
def test_foreign_ciphertext_of_a_chain_that_cannot_be_rebuilt_is_passed_on(past: Parent) -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = incremented(one, past) >> Failed(FOREIGN) << Abandon() << Blame
    assert talk << Tell(None, FOREIGN.raw) << End(Outcome.REQUEST_FAULT)


def test_ciphertext_cannot_be_foreign_where_there_is_one_boundary() -> None:
    talk = sent(turn(policy=Policy(boundaries=1))) >> Failed(FOREIGN) << Abandon() << Blame
    assert talk << Tell(None, FOREIGN.raw) << End(Outcome.REQUEST_FAULT)


def test_a_lost_chain_is_told_exactly_before_anything_is_sent() -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    talk = continued(one, parent()) >> Opened(False) << Rebuild >> ChainLost() << NOT_FOUND << End(Outcome.NOT_FOUND)
    assert talk
    assert not any(isinstance(said, Send) for said in talk.said)


def test_a_parent_the_client_gave_up_is_told_exactly() -> None:
    talk = play(turn(previous="resp_0")) >> Began() << Resolve("resp_0") >> ParentGone()
    assert talk << NOT_FOUND << End(Outcome.NOT_FOUND)


def test_a_bound_chain_goes_home_to_its_boundary() -> None:
    one = turn(of=session(pinned=pin(B)), previous="resp_0")
    talk = continued(one, parent(A), B) >> Opened(False) << Rebuild >> ChainBound() << wish(B, boundary="north")
    talk >> placed(A) << MovePin >> PinMoved(pin(A, 2)) << Open(A) >> Opened(False) << Rebuild >> Rebuilt(b"whole")
    assert talk << send(b"whole", Mode.REPLAY, "pin_reset")


def test_a_chain_that_is_bound_even_at_home_is_lost() -> None:
    one = turn(of=session(pinned=pin(B)), previous="resp_0")
    talk = continued(one, parent(A), B) >> Opened(False) << Rebuild >> ChainBound() << Place >> placed(A) << MovePin
    talk >> PinMoved(pin(A, 2)) << Open(A) >> Opened(False) << Rebuild >> ChainBound()
    assert talk << NOT_FOUND << End(Outcome.NOT_FOUND)


def test_own_input_bound_elsewhere_is_tried_in_the_other_boundaries_of_the_session() -> None:
    """A session that has served in two boundaries: the compaction item is the other's, and that one can serve it."""
    items = b'[{"type":"compaction","encrypted_content":"x"}]'
    one = turn(of=session(pinned=pin(A), boundaries=["north", "south"]), items=items, binding="a compaction item")
    talk = opening(one) >> Opened(False) << Rebuild >> ChainBound("south") << Place
    again = talk.last(Place)
    assert isinstance(again, Place)
    assert again.wish.boundary == "south"


@pytest.mark.parametrize("lost_in", ["resolving", "rebuilding"])
def test_what_only_the_store_knows_is_not_guessed(lost_in: str) -> None:
    one = turn(of=session(pinned=pin(A)), previous="resp_0")
    if lost_in == "resolving":
        talk = play(one) >> Began() << Resolve
    else:
        talk = continued(one, parent()) >> Opened(False) << Rebuild
    assert talk >> StoreLost() << Tell(errors.store_away()) << End(Outcome.STORE_AWAY)


# --- how far a turn can move ---


@pytest.mark.parametrize(
    ("past", "boundary"),
    [
        (parent(B), None),
        (parent(B, kept=False), "south"),
        (parent(B, rooted=False), "south"),
        (parent(seen=False), None),
    ],
)
def test_a_turn_stays_in_the_boundary_of_what_it_needs(past: Parent, boundary: str | None) -> None:
    one = turn(previous="resp_0")
    keeper = None if past.meta is None else B
    assert play(one) >> Began() << Resolve >> resolved(past, one) << wish(keeper, boundary=boundary, pinned=False)


def test_what_binds_a_turn_lives_where_its_session_does() -> None:
    assert play(turn(of=session(boundaries=["south"]), binding="a file id")) >> Began() << wish(boundary="south")
    assert play(turn(binding="a file id")) >> Began() << wish()


def test_an_unknown_root_never_leaves_the_boundary_it_was_tried_in() -> None:
    one = turn(previous="resp_0")
    talk = continued(one, parent(seen=False)) >> Opened(False) << Send >> Failed(QUOTA) << Abandon() << Blame
    assert talk << wish(A, boundary="north", tried=(A,))


def test_a_turn_that_may_stand_in_a_conversation_already_is_not_sent_again() -> None:
    talk = sent(turn(binding="a conversation")) >> Failed(LOST) << Abandon() << Blame
    assert talk << Tell(errors.outcome_unknown()) << End(Outcome.UNSERVED)


@pytest.mark.parametrize("found", [QUOTA, RATE], ids=lambda found: found.kind.value)
def test_a_turn_of_a_conversation_is_sent_again_when_it_has_not_run(found: Failure) -> None:
    talk = sent(turn(binding="a conversation")) >> Failed(found) << Abandon() << Blame
    assert talk << wish(A, boundary="north", tried=tried(A, found))


def test_a_turn_of_a_conversation_is_sent_when_the_socket_was_lost_before() -> None:
    talk = opening(turn(binding="a conversation")) >> Failed(LOST) << Abandon() << Blame
    assert talk << wish(A, boundary="north", tried=(A,))


# --- lost transports, and bounds ---


def test_a_lost_transport_is_retried_once_on_the_same_credential_when_nobody_else_is_there() -> None:
    alone = NonePlaced(frozenset({"tried"}))
    talk = sent(turn()) >> Failed(LOST) << Abandon() << Blame << wish(A, tried=(A,)) >> alone << wish(A)
    talk >> placed(A) << ... << Open(A) >> Opened(False) << Send
    talk >> Failed(LOST) << Abandon() << Blame << wish(A, tried=(A,)) >> alone
    assert talk << Tell(errors.unserved(LOST)) << End(Outcome.UNSERVED)


def test_a_retry_on_the_same_credential_is_not_counted_as_a_move() -> None:
    talk = sent(turn()) >> Failed(LOST) << Abandon() << Blame << Place >> NonePlaced(frozenset({"tried"})) << Place
    assert talk >> placed(A) << Open(A)


@pytest.mark.parametrize("found", [BUSY, LOST], ids=lambda found: found.kind.value)
def test_places_a_turn_only_so_often_when_it_may_have_cost_something(found: Failure) -> None:
    talk = moved(moved(sent(turn()), found), found, C) >> Failed(found) << Abandon() << Blame
    assert talk << Tell(errors.unserved(found)) << End(Outcome.UNSERVED)


@pytest.mark.parametrize("found", [QUOTA, RATE], ids=lambda found: found.kind.value)
def test_a_refusal_that_proves_that_nothing_ran_costs_no_placement(found: Failure) -> None:
    talk = sent(turn(policy=Policy(placements=1)))
    for following in (B, C, A2):
        moved(talk, found, following)
    assert talk


def test_a_turn_is_not_moved_after_its_deadline() -> None:
    talk = sent(turn(policy=Policy(placing=10.0))).at(10.0) >> Failed(BUSY) << Abandon() << Blame << Place
    talk = (talk >> placed(B) << FailOver << Open(B) >> Opened(False) << Send).at(20.1)
    assert talk >> Failed(BUSY) << Abandon() << Blame << Tell(errors.unserved(BUSY)) << End(Outcome.UNSERVED)


def test_the_deadline_counts_from_when_the_lane_was_free() -> None:
    talk = (play(turn(policy=Policy(placing=10.0))).at(1000.0) >> Began() << Place >> placed(A) << Open(A)).at(1009.0)
    assert talk >> Failed(handshake(BUSY)) << Abandon() << Blame << Place


def test_an_empty_credential_after_the_deadline_is_told_as_a_limit() -> None:
    talk = sent(turn()).at(31.0) >> Failed(QUOTA) << Abandon() << Blame << Place
    talk = (talk >> placed(B) << FailOver << Open(B) >> Opened(False) << Send).at(61.1) >> Failed(QUOTA)
    talk = talk << Abandon() << Blame
    assert talk << Tell(errors.unserved(failure(K.RATE_LIMITED))) << End(Outcome.EXHAUSTED)


# --- the client leaves ---

STAGES: dict[str, tuple[Event, ...]] = {
    "new": (),
    "resolving": (Began(),),
    "placing": (Began(), Resolved(parent(), session(pinned=pin(A)))),
    "pinning": (Began(), Resolved(parent(), session(pinned=pin(A))), Placed(B, "n")),
    "opening": (Began(), Resolved(parent(), session()), Placed(A, "n")),
    "rebuilding": (Began(), Resolved(parent(), session()), Placed(A, "n"), Opened(False)),
    "waiting": (Began(), Resolved(parent(), session()), Placed(A, "n"), Opened(True)),
    "showing": (Began(), Resolved(parent(), session()), Placed(A, "n"), Opened(True), OutputBegan(DELTA)),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_turn_whose_client_leaves_is_abandoned(stage: str) -> None:
    one = turn(previous="resp_0")
    for event in STAGES[stage]:
        one.handle(event)
    assert one.state.value == stage
    assert play(one) >> ClientLeft() << Abandon() << End(Outcome.CLIENT_LEFT) >> ClientLeft()


def test_a_turn_that_is_being_written_is_written_although_the_client_leaves() -> None:
    talk = sent(turn()) >> Completed(DONE) << Absolve(A) << Commit(DONE) >> ClientLeft() >> Committed(None, False)
    assert talk << Relay((DONE,)) << End(Outcome.COMPLETED)


def test_a_commit_adopts_the_pin_that_the_store_has() -> None:
    one = turn(of=session(pinned=pin(A), incremental_disabled=True))
    assert sent(one) >> Completed(DONE) << Absolve << Commit >> Committed(pin(C, 9), False) << Relay << End
    assert (one.session.pin, one.session.incremental_disabled) == (pin(C, 9), False)


def test_a_commit_that_waits_for_the_store_changes_no_pin() -> None:
    one = turn(of=session(pinned=pin(A), incremental_disabled=True))
    assert sent(one) >> Completed(DONE) << Absolve << Commit >> Committed(None, False) << Relay << End
    assert (one.session.pin, one.session.incremental_disabled) == (pin(A), True)


# --- the table itself ---

SAMPLES: dict[type, Event] = {
    type(each): each
    for each in (
        Began(),
        Succeeded(A, parent(), CREATED),
        Resolved(parent(), session()),
        ParentGone(),
        OwnerUnknown("conv_1"),
        StoreLost(),
        Placed(A, "n"),
        NonePlaced(frozenset()),
        PinMoved(pin(A)),
        PinStale(pin(A), False),
        PinUnwritten(),
        Opened(False),
        Rebuilt(b"{}"),
        ChainLost(),
        ChainBound(),
        Announced(b"{}"),
        OutputBegan(b"{}"),
        HoldElapsed(),
        Completed(b"{}"),
        Failed(LOST),
        Committed(None, False),
        ClientLeft(),
    )
}
UNTAKEN = [
    (state, kind) for state in State for kind in SAMPLES if kind is not ClientLeft and (state, kind) not in TRANSITIONS
]


@pytest.mark.parametrize(
    ("state", "kind"), UNTAKEN, ids=lambda each: each.value if isinstance(each, State) else each.__name__
)
def test_an_event_out_of_turn_is_the_drivers_fault(state: State, kind: type) -> None:
    one = turn()
    one.state = state
    with pytest.raises(OutOfTurn, match=kind.__name__):
        one.handle(SAMPLES[kind])
    assert one.state is state


def test_samples_hold_every_event() -> None:
    assert set(SAMPLES) == set(get_args(events.Event))
    assert {kind for _, kind in TRANSITIONS} == set(SAMPLES) - {ClientLeft}


def test_an_ended_turn_takes_nothing_but_the_clients_leaving() -> None:
    assert not [kind for state, kind in TRANSITIONS if state is State.ENDED]


def test_every_transition_is_told_in_a_conversation() -> None:
    """Runs the conversations of this file that need no argument, and compares what was said with the table."""
    spoken = playbook.SPOKEN
    spoken.clear()
    for name, tell in list(globals().items()):
        if name.startswith("test_") and "every_transition" not in name and not inspect.signature(tell).parameters:
            try:
                tell()
            except AssertionError:
                continue  # told elsewhere, under its own name
    told_with_arguments = {(State.RESOLVING, StoreLost), (State.REBUILDING, StoreLost), (State.SHOWING, Failed)}
    assert set(TRANSITIONS) - spoken - told_with_arguments == set()


def test_every_command_is_wanted_by_somebody() -> None:
    wanted = {value for value in vars(inspect.getmodule(Turn)).values() if value in get_args(commands.Command)}
    assert wanted == set(get_args(commands.Command))


def test_a_session_is_the_same_object_for_all_its_turns() -> None:
    shared: Session = session(pinned=pin(A))
    one, two = turn(of=shared), turn(of=shared)
    sent(one) >> Failed(QUOTA) << Abandon() << Blame << Place >> placed(B) << FailOver << MovePin >> PinMoved(pin(B, 2))
    assert play(two) >> Began() << wish(B)
