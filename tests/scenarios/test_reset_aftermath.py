"""After a pin reset: what the client goes on sending is served, and increments come back with the first success."""

from __future__ import annotations

import asyncio

from broker.simulator import Fault, TurnResult
from broker.simulator.record import TurnRecord
from tests.scenarios.house import House, conversation, counted, held_against, wait_until


def goes_out_as_an_increment(served: TurnRecord, result: TurnResult) -> bool:
    parent = result.parent
    assert parent is not None
    return (
        served.previous_response_id == parent.response_id
        and served.input == result.input
        and list(served.context) == conversation(result)
    )


def goes_out_whole(served: TurnRecord, result: TurnResult) -> bool:
    whole = conversation(result)
    return "previous_response_id" not in served.frame_keys and served.input == whole == list(served.context)


async def test_goes_on_with_increments_on_the_new_socket_once_a_turn_has_succeeded(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "insufficient_quota")

    turns = [await client.turn(text) for text in ("two", "three", "four")]

    assert all(turn.ok for turn in turns), [(turn.problems, turn.error) for turn in turns]
    moved, *following = house.sim.turns[-3:]
    assert goes_out_whole(moved, turns[0])
    for served, turn in zip(following, turns[1:], strict=True):
        assert (served.credential, served.socket) == ("B", moved.socket)
        assert goes_out_as_an_increment(served, turn)
    assert counted(node, "broker_replays_total") == 1
    assert counted(node, "broker_dispatches_total", credential="B", mode="incremental") == 2


async def test_serves_an_id_of_the_old_credential_when_the_replayed_turn_failed_too(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one")
    assert first.ok
    house.sim.faults.set("A", "insufficient_quota")
    house.sim.faults.set("B", Fault(at="after_deltas", do="reset", after=1), times=1)
    broken = await client.turn("two")
    assert broken.error_code == "upstream_interrupted"
    between = await house.session(client)
    assert between.pin is not None and (between.pin.epoch, between.pin.credential) == (2, "B")
    assert between.incremental_disabled

    again = await client.retry()

    assert again.ok, (again.problems, again.error)
    assert again.parent is first, "it still names what the old credential minted"
    served = house.sim.turns[-1]
    assert served.credential == "C" and goes_out_whole(served, again)
    after = await house.session(client)
    assert after.pin is not None and (after.pin.epoch, after.pin.because) == (3, "interrupted")
    assert not after.incremental_disabled
    following = await client.turn("three")
    assert following.ok and house.sim.turns[-1].socket == served.socket
    assert goes_out_as_an_increment(house.sim.turns[-1], following)


async def test_keeps_increments_disabled_until_the_replayed_turn_is_committed(house: House) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one, session_id="between")
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "insufficient_quota")

    turn = asyncio.create_task(client.turn("two [[slow:60]][[deltas:10]]"))
    await wait_until(lambda: house.sent_to("B"))

    between = await house.session(client)
    assert between.incremental_disabled and between.pin is not None
    assert (between.pin.epoch, between.pin.credential, between.pin.because) == (2, "B", "quota_exhausted")
    elsewhere = await two.node.sessions.claim("team-a", "between")
    assert elsewhere.incremental_disabled, "every node knows"
    second = await turn
    assert second.ok, second.problems
    assert not (await house.session(client)).incremental_disabled


async def test_replays_each_lane_once_when_the_pin_was_reset(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    for lane in ("x", "y", None):
        assert (await client.turn(f"one on {lane}", lane=lane)).ok
    house.sim.faults.set("A", "insufficient_quota")
    assert (await client.turn("two", lane="x")).ok
    new = house.sim.turns[-1]
    assert new.credential == "B"

    for lane in ("y", None):
        turn = await client.turn("two", lane=lane)
        assert turn.ok, (lane, turn.problems, turn.error)
        assert goes_out_whole(house.sim.turns[-1], turn)
    for lane in ("x", "y", None):
        turn = await client.turn("three", lane=lane)
        assert turn.ok, (lane, turn.problems, turn.error)
        assert goes_out_as_an_increment(house.sim.turns[-1], turn)
        assert (house.sim.turns[-1].credential, house.sim.turns[-1].socket) == ("B", new.socket)
    assert counted(node, "broker_pin_resets_total") == 1
    assert counted(node, "broker_replays_total") == 3


async def test_moves_all_lanes_with_one_reset_when_quota_runs_out_under_all_of_them(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    lanes = [f"lane-{number}" for number in range(6)]
    assert all(turn.ok for turn in await asyncio.gather(*(client.turn("one", lane=lane) for lane in lanes)))
    house.sim.faults.set("A", "usage_limit_reached", at="after_created")

    moved = await asyncio.gather(*(client.turn("two [[slow:2]]", lane=lane) for lane in lanes))
    following = await asyncio.gather(*(client.turn("three", lane=lane) for lane in lanes))

    assert [(turn.problems, turn.error) for turn in (*moved, *following) if not turn.ok] == []
    session = await house.session(client)
    assert session.pin is not None and (session.pin.epoch, session.pin.credential) == (2, "B")
    assert not session.incremental_disabled
    assert len({turn.socket for turn in house.sent_to("B")}) == 1
    assert counted(node, "broker_pin_resets_total") == 1
    for served in house.sim.turns[-len(lanes) :]:
        assert served.previous_response_id is not None


async def test_replays_within_the_credential_when_the_vendor_drops_an_idle_socket(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    await house.sim.end_sockets("A")
    await wait_until(lambda: node.node.dialer.open_links == 0)

    second = await client.turn("two")
    third = await client.turn("three")

    assert second.ok and third.ok, (second.problems, third.problems)
    replayed, following = house.sim.turns[-2:]
    assert replayed.credential == "A" and goes_out_whole(replayed, second)
    assert following.socket == replayed.socket and goes_out_as_an_increment(following, third)
    session = await house.session(client)
    assert session.pin is not None and (session.pin.epoch, session.pin.credential) == (1, "A")
    assert counted(node, "broker_replays_total", cause="socket_changed") == 1
    assert counted(node, "broker_failovers_total") == 0 and held_against(node) == {}


async def test_replays_once_when_the_vendor_has_lost_the_continuation(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    socket = house.sim.turns[-1].socket
    house.sim.faults.set("A", Fault(do="drop_continuation"), times=1)

    second = await client.turn("two")
    third = await client.turn("three")

    assert second.ok and third.ok, (second.error, third.error)
    lost, replayed, following = house.sim.turns[-3:]
    assert (lost.outcome, lost.error_code, lost.socket) == ("error", "previous_response_not_found", socket)
    assert replayed.credential == "A" and goes_out_whole(replayed, second)
    assert goes_out_as_an_increment(following, third)
    session = await house.session(client)
    assert session.pin is not None and (session.pin.epoch, session.pin.credential) == (1, "A")
    assert not session.incremental_disabled and held_against(node) == {}
    assert counted(node, "broker_replays_total", cause="continuation_lost") == 1
