"""A credential runs out of quota in mid-session."""

from __future__ import annotations

from tests.scenarios.house import House, conversation, counted, held_against, wait_until


async def test_moves_an_increment_to_another_credential_within_the_turn_when_quota_runs_out(house: House) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one)
    first = await client.turn("one")
    assert first.ok, first.problems
    before = await house.session(client)
    assert before.pin is not None
    pinned = before.pin.credential
    house.sim.faults.set(pinned, "usage_limit_reached", at="before_created")

    second = await client.turn("two")

    assert second.ok, second.problems
    served = house.sim.turns[-1]
    assert served.credential != pinned
    assert served.previous_response_id is None and "previous_response_id" not in served.frame_keys
    assert [item.get("content") for item in served.input if item.get("role") == "user"] != []
    assert served.context_digest is not None and second.digest_ok
    after = await house.session(client)
    assert after.pin is not None
    assert after.pin.epoch == before.pin.epoch + 1 and after.pin.credential == served.credential
    assert not after.incremental_disabled
    assert counted(one, "broker_failovers_total", reason="quota_exhausted", phase="sent") == 1
    assert counted(one, "broker_pin_resets_total", reason="quota_exhausted") == 1
    assert counted(one, "broker_replays_total", cause="quota_exhausted") == 1
    assert counted(one, "broker_turns_total", outcome="completed") == 2
    await two.node.health.refresh()
    assert not two.node.health.snapshot.verdict(house.credentials()[0], "sim-1", two.node.health.now()).usable


async def test_sends_the_whole_conversation_exactly_once_when_quota_runs_out(house: House) -> None:
    one = await house.node()
    client = await house.connected(one)
    assert (await client.turn("one [[call:read]][[call:list]]")).ok
    assert (await client.tool_turn()).ok
    assert (await client.turn('\u00fcber \U0001f9f6 "quoted" \\u0041 1.0 \n')).ok
    sent = house.sim.turns
    assert [turn.credential for turn in sent] == ["A"] * 3
    assert [turn.previous_response_id for turn in sent] == [None, *(turn.response_id for turn in sent[:-1])]
    house.sim.faults.set("A", "insufficient_quota")

    last = await client.turn("four", extra={"metadata": {"x": "y"}, "tools": [], "temperature": 0.7})

    assert last.ok and last.digest_ok, (last.problems, last.error)
    refused, served = house.sim.turns[-2:]
    assert (refused.credential, refused.outcome, served.credential) == ("A", "error", "B")
    assert len(served.input) == 12, "per turn its input, a thought and what was said or called"
    for given, known in zip(served.input, conversation(last), strict=True):
        assert given == known
    unchanged = {name: value for name, value in refused.fields.items() if name != "previous_response_id"}
    assert served.fields == unchanged and refused.previous_response_id is not None
    assert counted(one, "broker_dispatches_total", credential="A", mode="incremental") == 4
    assert counted(one, "broker_dispatches_total", credential="B", mode="replay") == 1
    assert counted(one, "broker_dispatches_total") == len(house.sim.turns) == 5


async def test_moves_a_session_before_sending_when_another_session_has_exhausted_its_pin(house: House) -> None:
    one, two = await house.node(), await house.node()
    here, there = await house.connected(one), await house.connected(two)
    first = await here.turn("one")
    assert first.ok and (await there.turn("one")).ok
    house.sim.faults.set("A", "credit_balance_exhausted")
    assert (await there.turn("two")).ok
    await wait_until(lambda: held_against(one) == {"group:A": "exhausted"}, within=1.0)
    house.sim.forget()

    second = await here.turn("two")

    assert second.ok, second.problems
    (served,) = house.sim.turns
    assert served.credential == "B" and served.input == conversation(second)
    assert counted(one, "broker_failovers_total") == 0
    assert counted(one, "broker_pin_resets_total", reason="health") == 1
    assert counted(one, "broker_replays_total", cause="pin_reset") == 1
    session = await house.session(here)
    assert session.pin is not None and (session.pin.epoch, session.pin.credential) == (2, "B")
