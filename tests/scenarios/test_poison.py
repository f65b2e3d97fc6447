"""A request that every credential refuses is the request's own fault: it must not walk through the pool."""

from __future__ import annotations

import asyncio

import pytest

from broker.domain.credential import Credential
from broker.edge.app import Listeners
from broker.simulator import SessionClient
from tests.scenarios.house import House, counted, held_against

POISON = "poison-5f2c"


def usable_everywhere(house: House, model: str = "sim-1") -> list[str]:
    """The credentials that every node would place a turn of this model on."""

    def usable(listeners: Listeners, credential: Credential) -> bool:
        health = listeners.node.health
        return health.snapshot.verdict(credential, model, health.now()).usable

    return [c.name for c in house.credentials() if all(usable(node, c) for node in house.nodes)]


async def refreshed(house: House) -> None:
    for listeners in house.nodes:
        await listeners.node.health.refresh()


async def neighbours(house: House, *nodes: Listeners) -> list[SessionClient]:
    """Other sessions with a turn behind them."""
    clients = [await house.connected(node) for node in nodes]
    for client in clients:
        assert (await client.turn("one")).ok
    return clients


AS_ERROR = ["invalid_api_key", "unauthorized_generic", "forbidden_generic", "account_deactivated", "org_disabled_400"]
AS_FAILED = ["invalid_api_key", "account_deactivated"]
"""A `response.failed` has no status, so only a code can tell there what it is."""

NAMES_THE_KEY = frozenset({"invalid_api_key", "account_deactivated", "org_disabled_400"})


def witnesses(refusal: str) -> int:
    """How many credentials have to refuse alike: one more where the vendor names the key."""
    return 3 if refusal in NAMES_THE_KEY else 2


@pytest.mark.parametrize(
    ("refusal", "deed"),
    [*((refusal, "error") for refusal in AS_ERROR), *((refusal, "failed") for refusal in AS_FAILED)],
)
async def test_a_poisonous_request_disables_nothing(house: House, refusal: str, deed: str) -> None:
    one, two = await house.node(), await house.node()
    others = await neighbours(house, one, two)
    client = await house.connected(one)
    house.sim.faults.set("*", refusal, when=POISON, do=deed)

    poisoned, *undisturbed = await asyncio.gather(
        client.turn(f"take this: {POISON}"), *(other.turn("two [[deltas:8]] [[slow:5]]") for other in others)
    )
    await refreshed(house)

    assert poisoned.error is not None and 400 <= poisoned.error["status"] < 500, poisoned.error
    assert poisoned.error["code"] and poisoned.error["type"]
    assert sum(turn.outcome != "completed" for turn in house.sim.turns) == witnesses(refusal)
    assert usable_everywhere(house) == ["A", "B", "C"]
    assert counted(one, "broker_turns_total", outcome="request_fault") == 1
    after = [await other.turn("three") for other in (*others, client)]
    assert all(turn.ok for turn in (*undisturbed, *after)), [turn.problems for turn in (*undisturbed, *after)]


@pytest.mark.parametrize("refusal", ["invalid_api_key", "forbidden_generic"])
async def test_a_poisonous_request_disables_nothing_when_it_is_sent_again_and_again(house: House, refusal: str) -> None:
    one, two = await house.node(), await house.node()
    (other,) = await neighbours(house, two)
    house.sim.faults.set("*", refusal, when=POISON)
    attackers = [await house.connected(node) for node in (one, two)]

    for _ in range(5):
        poisoned = await asyncio.gather(*(attacker.turn(POISON, parent=None) for attacker in attackers))
        assert all(turn.error is not None and 400 <= turn.error["status"] < 500 for turn in poisoned)
        await refreshed(house)
        assert usable_everywhere(house) == ["A", "B", "C"]

    after = await other.turn("two")
    assert after.ok, after.problems
    assert len([turn for turn in house.sim.turns if turn.outcome == "error"]) == 10 * witnesses(refusal)
    assert [turn.credential for turn in house.sim.turns if turn.outcome == "completed"] == ["A", "A"]


async def test_a_poisonous_increment_leaves_its_session_to_others(house: House) -> None:
    one = await house.node()
    client = await house.connected(one, session_id="agent-7")
    first = await client.turn("one")
    house.sim.faults.set("*", "invalid_api_key", when=POISON)

    poisoned = await client.turn(POISON)
    whole = await client.turn("two", parent=first, incremental=False)
    onward = await client.turn("three")

    assert poisoned.error is not None and 400 <= poisoned.error["status"] < 500
    assert whole.ok and onward.ok, whole.problems + onward.problems


async def test_a_model_that_nobody_has_is_the_requests_own_fault(house: House) -> None:
    one, two = await house.node(), await house.node()
    others = await neighbours(house, one, two)
    client = await house.connected(one, model="gpt-of-the-day")
    house.sim.faults.set("*", "model_not_found", model="gpt-of-the-day")

    refused = await client.turn("one")
    await refreshed(house)

    assert refused.error is not None and refused.error["status"] == 404
    assert refused.error["code"] == "model_not_found"
    assert sum(turn.outcome == "error" for turn in house.sim.turns) == 2
    assert usable_everywhere(house) == ["A", "B", "C"]
    assert usable_everywhere(house, "gpt-of-the-day") == ["A", "B", "C"], "nobody has ever served it"
    after = [await other.turn("two") for other in others]
    assert all(turn.ok for turn in after), [turn.problems for turn in after]
    good = await client.turn("one", model="sim-1")
    assert good.ok, good.problems


async def test_a_model_that_only_one_credential_has_is_served_there(house: House) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one)
    for name in ("A", "C"):
        house.sim.faults.set(name, "model_not_found", model="sim-2")

    first = await client.turn("one", model="sim-2")
    second = await client.turn("two", model="sim-2")
    await refreshed(house)

    assert first.ok and second.ok, (first.error, second.error)
    assert [turn.credential for turn in house.sim.turns] == ["A", "B", "B"]
    assert usable_everywhere(house) == ["A", "B", "C"]
    assert usable_everywhere(house, "sim-2") == ["B", "C"], "what somebody else has served, the first one has not"
    assert not two.node.health.snapshot.verdict(house.credentials()[0], "sim-2", two.node.health.now()).usable


async def test_a_refused_upgrade_is_the_credentials_own_doing(house: House) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one)
    house.sim.faults.set("*", "invalid_api_key", at="handshake", do="refuse")

    refused = await client.turn(f"whatever is asked, {POISON} or not")
    await refreshed(house)

    assert refused.error is not None and refused.error["status"] == 503, refused.error
    assert refused.error["code"] == "no_credential_available"
    assert house.sim.turns == [] and len(house.sim.handshakes) == 3
    assert usable_everywhere(house) == []
    for listeners in (one, two):
        assert held_against(listeners) == {f"credential:{name}": "revoked" for name in "ABC"}
    assert counted(one, "broker_turns_total", outcome="unserved") == 1


async def test_a_key_that_alone_is_refused_is_out_for_all_nodes(house: House) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one)
    house.sim.faults.set("A", "invalid_api_key")

    turn = await client.turn("one")
    await refreshed(house)

    assert turn.ok, turn.problems
    assert usable_everywhere(house) == ["B", "C"]
    elsewhere = await house.connected(two)
    assert (await elsewhere.turn("one")).ok
    assert len(house.sent_to("A")) == 1
