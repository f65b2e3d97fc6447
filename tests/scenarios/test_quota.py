"""A credential runs out of quota in mid-session."""

from __future__ import annotations

from tests.scenarios.house import House, counted


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
