"""A client comes back, or a continuation fails: what is served, and what is refused as the vendor would refuse it."""

from __future__ import annotations

import functools

import pytest

from broker.domain.session import derive_sid
from broker.edge.app import Listeners
from broker.edge.websocket import ClientSocket
from broker.simulator import SessionClient
from broker.simulator.client import TurnResult
from tests.scenarios.house import OTHER_KEY, House, wait_until

ORPHAN = [{"type": "function_call_output", "call_id": "call_nobody_made", "output": "42"}]
"""An output for a call that was never made: no vendor takes it."""


def assert_not_found(result: TurnResult) -> None:
    """The exact refusal that clients know how to recover from."""
    assert result.error is not None, result
    assert result.error["status"] == 400
    assert result.error["type"] == "invalid_request_error"
    assert result.error["code"] == "previous_response_not_found"
    assert result.error["param"] == "previous_response_id"
    assert isinstance(result.error["message"], str)


async def begun(house: House, node: Listeners, *, store: bool = False, **more: str) -> tuple[SessionClient, TurnResult]:
    """An agent with one good turn behind it."""
    client = await house.connected(node, **more)
    first = await client.turn("one", store=store)
    assert first.ok, first.problems
    return client, first


async def closed_for_good(house: House, name: str) -> None:
    """Until the node has let go of a cleanly closed session."""
    for listeners in house.nodes:
        sockets = listeners.node.sockets
        await wait_until(functools.partial(_none_named, sockets, name))


def _none_named(sockets: set[ClientSocket], name: str) -> bool:
    return all(socket.session.name != name for socket in sockets)


@pytest.mark.parametrize("at", ["same node", "other node"])
async def test_refuses_a_store_false_id_when_its_client_had_closed_cleanly(house: House, at: str) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one)
    name = client.handshake_headers["x-session-id"]
    await client.close()
    await closed_for_good(house, name)
    again = await house.connected(one if at == "same node" else two)

    refused = await again.turn("two", parent=first)

    assert_not_found(refused)
    fresh = await again.turn("three", parent=None)
    assert fresh.ok, fresh.problems
    assert again.connected


async def test_refuses_a_store_false_id_when_its_client_reconnects_right_after_a_clean_close(house: House) -> None:
    one = await house.node()
    client, first = await begun(house, one)
    await client.close()
    assert await client.connect()

    refused = await client.turn("two", parent=first)

    assert_not_found(refused)
    fresh = await client.turn("three", parent=None)
    assert fresh.ok, fresh.problems


@pytest.mark.parametrize("at", ["same node", "other node"])
async def test_serves_a_stored_id_when_its_client_had_closed_cleanly(house: House, at: str) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one, store=True)
    name = client.handshake_headers["x-session-id"]
    await client.close()
    await closed_for_good(house, name)
    again = await house.connected(one if at == "same node" else two)

    second = await again.turn("two", parent=first, store=True)

    assert second.ok, second.problems


async def test_serves_a_stored_id_on_another_credential_when_its_client_had_closed_cleanly(house: House) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one, store=True)
    name = client.handshake_headers["x-session-id"]
    await client.close()
    await closed_for_good(house, name)
    house.sim.faults.set("A", "usage_limit_reached")
    again = await house.connected(two)

    second = await again.turn("two", parent=first, store=True)

    assert second.ok, second.problems
    assert house.sim.turns[-1].credential != "A"


async def test_serves_a_named_session_on_another_node_when_its_client_had_closed_cleanly(house: House) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one, session_id="agent-7")
    await client.close()
    again = await house.connected(two, session_id="agent-7")

    second = await again.turn("two", parent=first)

    assert second.ok, second.problems
    served = house.sim.turns[-1]
    assert served.previous_response_id is None and len(served.context) > len(served.input) - 1
    assert served.credential == house.sim.turns[0].credential


async def test_serves_an_unnamed_session_with_its_full_context_on_another_node_when_the_connection_broke(
    house: House,
) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one)
    second = await client.turn("two")
    name = client.handshake_headers["x-session-id"]
    before = await house.session(client)
    await client.kill()
    again = await house.connected(two)

    third = await again.turn("three", parent=second)
    fourth = await again.turn("four")

    assert third.ok and fourth.ok, third.problems + fourth.problems
    records = house.sim.turns[-2:]
    assert records[0].previous_response_id is None and len(records[0].input) == 1 + 2 * len(first.input + first.items)
    assert records[1].previous_response_id == third.response_id, "a socket that knows the parent takes the increment"
    after = await house.nodes[0].node.store.load(derive_sid("team-a", name))
    assert before.pin is not None and after is not None and after.pin is not None
    assert after.pin.same(before.pin) and after.turns == 4
    assert {record.credential for record in house.sim.turns} == {before.pin.credential}


async def test_serves_an_unnamed_session_elsewhere_when_the_connection_broke_and_its_credential_is_exhausted(
    house: House,
) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one)
    await client.kill()
    house.sim.faults.set("A", "usage_limit_reached")
    again = await house.connected(two)

    second = await again.turn("two", parent=first)

    assert second.ok, second.problems
    assert house.sim.turns[-1].credential != "A"


async def test_evicts_the_parent_when_its_continuation_names_an_unknown_call(house: House) -> None:
    one = await house.node()
    client, first = await begun(house, one)

    failed = await client.turn(ORPHAN, parent=first)
    again = await client.turn("two", parent=first)

    assert failed.error is not None and failed.error["status"] == 400
    assert failed.error_code == "invalid_function_call_output"
    assert_not_found(again)
    fresh = await client.turn("three", parent=None)
    assert fresh.ok, fresh.problems


@pytest.mark.parametrize("fault", ["context_length_exceeded", "content_policy", "generic_404"])
async def test_evicts_the_parent_when_the_vendor_refuses_its_continuation(house: House, fault: str) -> None:
    one = await house.node()
    client, first = await begun(house, one)
    house.sim.faults.set("*", fault, times=1)

    failed = await client.turn("two", parent=first)
    again = await client.turn("two", parent=first)

    assert failed.error is not None and 400 <= failed.error["status"] < 500
    assert_not_found(again)
    assert one.node.placement.usable() == 3


async def test_keeps_the_parent_when_a_fork_from_another_lane_fails(house: House) -> None:
    one = await house.node()
    client = await house.connected(one)
    first = await client.turn("one", lane="source")
    assert first.ok, first.problems

    failed = await client.turn(ORPHAN, lane="fork", parent=first)
    second = await client.turn("two", lane="source")
    forked = await client.turn("other two", lane="fork", parent=second)

    assert failed.error_code == "invalid_function_call_output"
    assert second.ok and forked.ok, second.problems + forked.problems


async def test_keeps_a_stored_parent_when_its_continuation_fails(house: House) -> None:
    one = await house.node()
    client, first = await begun(house, one, store=True)

    failed = await client.turn(ORPHAN, parent=first, store=True)
    second = await client.turn("two", parent=first, store=True)

    assert failed.error_code == "invalid_function_call_output"
    assert second.ok, second.problems


async def test_keeps_the_parent_when_the_upstream_and_not_the_request_was_at_fault(house: House) -> None:
    one = await house.node()
    client, first = await begun(house, one)
    house.sim.faults.set("*", "server_error", at="after_deltas", after=1, times=1)

    failed = await client.turn("two", parent=first)
    again = await client.retry()

    assert failed.error is not None and failed.error["status"] == 503
    assert again.ok, again.problems


async def test_refuses_an_older_id_of_the_socket_when_the_vendor_no_longer_holds_it(house: House) -> None:
    one = await house.node()
    client, first = await begun(house, one)
    second = await client.turn("two")

    stale = await client.turn("another two", parent=first)

    assert second.ok
    assert_not_found(stale)


@pytest.mark.parametrize("store", [False, True])
async def test_does_not_know_a_response_of_another_tenant(house: House, store: bool) -> None:
    one = await house.node()
    _, first = await begun(house, one, store=store, session_id="agent-7")
    stranger = await house.connected(one, key=OTHER_KEY)

    refused = await stranger.turn("tell me all", parent=first, store=store)

    assert_not_found(refused)
    own = await stranger.turn("mine", parent=None)
    assert own.ok, own.problems


@pytest.mark.parametrize("store", [False, True])
async def test_does_not_know_the_session_of_another_tenant_when_its_name_is_given(house: House, store: bool) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one, store=store, session_id="agent-7")
    stranger = await house.connected(two, key=OTHER_KEY, session_id="agent-7")

    refused = await stranger.turn("tell me all", parent=first, store=store)
    own = await stranger.turn("mine", parent=None)
    second = await client.turn("two", store=store)

    assert_not_found(refused)
    assert own.ok and second.ok, own.problems + second.problems
    theirs, ours = await house.session(stranger, "team-b"), await house.session(client)
    assert theirs.sid != ours.sid and (theirs.turns, ours.turns) == (1, 2)


async def test_names_the_session_in_the_answer_to_the_handshake(house: House) -> None:
    one = await house.node()
    named, unnamed, other = (
        await house.connected(one, session_id="agent-7"),
        *[await house.connected(one) for _ in range(2)],
    )

    assert named.handshake_headers["x-session-id"] == "agent-7"
    minted = {unnamed.handshake_headers["x-session-id"], other.handshake_headers["x-session-id"]}
    assert len(minted) == 2 and all(len(name) >= 24 for name in minted)


async def test_reclaims_a_session_by_the_name_that_the_broker_gave_it(house: House) -> None:
    one, two = await house.node(), await house.node()
    client, first = await begun(house, one)
    name = client.handshake_headers["x-session-id"]
    await client.kill()
    again = await house.connected(two, session_id=name)

    second = await again.turn("two", parent=first)

    assert second.ok, second.problems
    assert again.handshake_headers["x-session-id"] == name


@pytest.mark.parametrize(
    "header", ["x-session-id", "thread-id", "session-id", "session_id", "x-session-affinity", "Session_Id"]
)
async def test_takes_the_name_of_a_session_from_a_header(house: House, header: str) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one, headers={header: "agent-7"})
    first = await client.turn("one")
    await client.close()
    again = await house.connected(two, headers={header: "agent-7"})

    second = await again.turn("two", parent=first)

    assert second.ok, second.problems
    assert again.handshake_headers["x-session-id"] == "agent-7"


async def test_believes_the_first_header_when_there_are_several(house: House) -> None:
    one = await house.node()

    client = await house.connected(one, headers={"thread-id": "thread", "session_id": "older"}, session_id="agent-7")

    assert client.handshake_headers["x-session-id"] == "agent-7"
