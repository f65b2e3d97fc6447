"""More than one credential fails, up to all of them."""

from __future__ import annotations

import asyncio
import time

import pytest

from broker.simulator import Fault, TurnResult, presets
from tests.scenarios.house import House, conversation, counted, held_against, own_endpoints, wait_until

NO_TIME = "insufficient_quota"
"""A quota fault whose vendor names no time."""


def tells_of_exhaustion(result: TurnResult) -> bool:
    return (
        result.terminal == "error"
        and result.problems == []
        and result.error is not None
        and result.error["status"] == 429
        and result.error["code"] == result.error["type"] == "usage_limit_reached"
    )


async def test_goes_on_to_the_third_credential_when_the_second_fails_too(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "usage_limit_reached")
    house.sim.faults.set("B", "token_revoked", at="after_created")

    second = await client.turn("two [[slow:40]][[deltas:8]]")

    assert second.ok and second.events.count("response.created") == 1, (second.problems, second.error)
    assert [turn.credential for turn in house.sim.turns] == ["A", "A", "B", "C"]
    for served in house.sim.turns[-2:]:
        assert served.input == conversation(second) == list(served.context)
    session = await house.session(client)
    assert session.pin is not None and (session.pin.epoch, session.pin.credential) == (3, "C")
    assert not session.incremental_disabled
    assert held_against(node) == {"group:A": "exhausted", "credential:B": "revoked"}
    assert counted(node, "broker_failovers_total", reason="quota_exhausted") == 1
    assert counted(node, "broker_failovers_total", reason="auth_rejected") == 1
    third = await client.turn("three")
    assert third.ok and house.sim.turns[-1].previous_response_id == second.response_id


async def test_keeps_increments_disabled_while_one_credential_after_the_other_fails(house: House) -> None:
    node = await house.node(credentials=own_endpoints(house.credentials()))
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "usage_limit_reached")
    for name, epoch in (("B", 2), ("C", 3)):
        house.sim.faults.set(name, "usage_limit_reached", at="after_deltas", after=1, times=1)
        broken = await client.turn("two")
        assert broken.error_code == "upstream_interrupted"
        between = await house.session(client)
        assert between.pin is not None and (between.pin.epoch, between.pin.credential) == (epoch, name)
        assert between.incremental_disabled


async def test_says_once_that_all_are_exhausted_and_until_when(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one")
    assert first.ok
    now = time.time()
    house.sim.faults.set("A", "usage_limit_reached", resets_in=3600)
    house.sim.faults.set("B", "usage_limit_reached", resets_in=None, resets_at=int(now) + 600)
    house.sim.faults.set("C", NO_TIME)

    second = await client.turn("two")

    assert tells_of_exhaustion(second), (second.error, second.problems)
    assert second.error is not None and second.error["resets_at"] == int(now) + 600
    assert second.events == ["error"] and client.notices == []
    assert [turn.credential for turn in house.sim.turns] == ["A", "A", "B", "C"]
    again = await client.retry()
    assert tells_of_exhaustion(again) and again.error is not None
    assert again.error["resets_at"] == int(now) + 600
    assert len(house.sim.turns) == 4, "nobody is asked who is known to be exhausted"
    assert client.connected and client.close_code is None
    assert counted(node, "broker_turns_total", outcome="exhausted") == 2
    assert (await house.session(client)).incremental_disabled


async def test_says_how_many_seconds_are_left_until_the_reset(house: House) -> None:
    client = await house.connected(await house.node())
    house.sim.faults.set("*", "usage_limit_reached", resets_in=600)
    result = await client.turn("one")
    assert tells_of_exhaustion(result) and result.error is not None
    assert 590 <= result.error["resets_in_seconds"] <= 601


async def test_names_no_time_when_no_vendor_named_one(house: House) -> None:
    client = await house.connected(await house.node())
    house.sim.faults.set("*", NO_TIME)
    for _ in range(2):
        result = await client.turn("one")
        assert tells_of_exhaustion(result) and result.error is not None
        assert not {"resets_at", "resets_in_seconds"} & result.error.keys()
    assert len(house.sim.turns) == 3


async def test_names_the_time_at_which_a_credential_is_free_of_all_its_blocks(house: House) -> None:
    (one, *_) = house.credentials()
    node = await house.node(credentials=[one])
    throttled, exhausted, asking = [await house.connected(node) for _ in range(3)]
    for word, fault in (("throttled", "rate_limit_exceeded"), ("exhausted", "usage_limit_reached")):
        house.sim.faults.add("A", fault, at="after_deltas", after=3, when=word)
    await asyncio.gather(
        throttled.turn("throttled [[slow:20]][[deltas:9]]"), exhausted.turn("exhausted [[slow:20]][[deltas:9]]")
    )
    assert held_against(node) == {"group:A:sim-1": "cooling", "group:A": "exhausted"}

    result = await asking.turn("one")

    assert tells_of_exhaustion(result) and result.error is not None
    assert result.error["resets_at"] > time.time() + 3500, "in two seconds it is not throttled, but still exhausted"


async def test_serves_at_the_very_time_that_it_named(house: House) -> None:
    (one, *_) = house.credentials()
    client = await house.connected(await house.node(credentials=[one]))
    house.sim.faults.set("A", "usage_limit_reached", resets_in=1, times=1)
    refused = await client.turn("one")
    assert tells_of_exhaustion(refused) and refused.error is not None
    named = refused.error["resets_at"]
    await wait_until(lambda: time.time() >= named)
    again = await client.retry()
    assert again.ok, again.error


async def test_goes_on_with_the_whole_context_when_a_credential_has_recovered(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "usage_limit_reached", resets_in=3600)
    house.sim.faults.set("B", "usage_limit_reached", resets_in=1, times=1)
    house.sim.faults.set("C", NO_TIME)
    assert tells_of_exhaustion(await client.turn("two"))
    assert node.node.placement.usable() == 0

    await wait_until(lambda: node.node.placement.usable() == 1)
    again = await client.retry()

    assert again.ok, again.error
    served = house.sim.turns[-1]
    assert served.credential == "B" and served.input == conversation(again) == list(served.context)
    assert not (await house.session(client)).incremental_disabled
    on_trial = {"group:A": "exhausted", "group:B": "suspect", "group:C": "exhausted"}
    await wait_until(lambda: held_against(node) == on_trial, within=1.0)
    third = await client.turn("three")
    assert third.ok and house.sim.turns[-1].socket == served.socket
    assert house.sim.turns[-1].previous_response_id == again.response_id


async def test_goes_on_to_the_third_credential_when_two_keys_are_revoked_at_once(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    for name in ("A", "B"):
        house.sim.faults.set(name, "token_revoked")
    second = await client.turn("two")
    assert second.ok, second.error
    assert house.sim.turns[-1].credential == "C"
    assert held_against(node) == {"credential:A": "revoked", "credential:B": "revoked"}


async def test_serves_on_another_socket_of_the_only_credential_when_one_was_lost(house: House) -> None:
    (one, *_) = house.credentials()
    node = await house.node(credentials=[one])
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", Fault(do="reset"), times=1)
    second = await client.turn("two")
    assert second.ok, second.error
    lost, served = house.sim.turns[-2:]
    assert lost.socket != served.socket and served.input == conversation(second)
    session = await house.session(client)
    assert session.pin is not None and session.pin.epoch == 1 and not session.incremental_disabled


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        (presets["server_is_overloaded"], "server_is_overloaded", 503),
        (presets["rate_limit_exceeded"], "rate_limit_exceeded", 429),
        (presets["invalid_api_key"].but(at="handshake", do="refuse"), "no_credential_available", 503),
        (presets["usage_limit_reached"].but(at="handshake", do="refuse"), "usage_limit_reached", 429),
        (Fault(do="reset"), "upstream_unavailable", 503),
        (Fault(at="handshake", do="reset"), "upstream_unavailable", 503),
    ],
    ids=["overload", "rate", "keys-at-the-door", "quota-at-the-door", "reset", "reset-at-the-door"],
)
async def test_says_the_true_cause_once_when_no_credential_can_serve(
    house: House, fault: Fault, code: str, status: int
) -> None:
    node = await house.node()
    client = await house.connected(node)
    house.sim.faults.set("*", fault)

    result = await client.turn("one")

    assert result.events == ["error"] and result.problems == [] and result.error is not None
    assert (result.error["status"], result.error["code"]) == (status, code)
    # a limit of rate is waited for once; else no credential is sent it twice
    assert len(house.sim.turns) <= (6 if code == "rate_limit_exceeded" else 3)
    # a lost handshake may be repeated: once by the turn, and once each time by aiohttp
    assert len(house.sim.handshakes) <= 12
    assert client.connected and counted(node, "broker_turns_total") == 1
