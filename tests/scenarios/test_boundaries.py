"""What may cross from one organisation to another, what may not, and what a client is told then."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.edge.app import Listeners
from broker.simulator import SessionClient
from broker.simulator.client import TurnResult
from broker.simulator.context import Item
from tests.scenarios.house import PRIVATE_KEY, House, by, counted, everything_in, wait_until

ORGANISATIONS = {"A": "org-a", "A2": "org-a", "B": "org-b"}
Build = Callable[..., Awaitable[House]]


@pytest.fixture
async def house(build: Build) -> House:
    """Two credentials of one organisation and one of another; sessions begin at A."""
    return await build(ORGANISATIONS)


def kinds(items: list[Item] | tuple[Item, ...]) -> list[str]:
    return [str(item.get("type", "message")) for item in items]


def exhaust(house: House, *credentials: str, resets_in: int = 3600) -> None:
    for credential in credentials:
        house.sim.faults.set(credential, "usage_limit_reached", resets_in=resets_in)


def dropped(node: Listeners) -> float:
    return counted(node, "broker_boundary_dropped_items_total")


async def conversation(client: SessionClient) -> None:
    """Two turns with reasoning, one of them with two calls that were answered."""
    for turn in (await client.turn("look [[call:read]] [[call:list]]"), await client.tool_turn()):
        assert turn.ok, turn.problems
        assert turn.reasoning_items


def assert_exhausted(result: TurnResult, before: float) -> None:
    """429 with the reset that the vendor named, one hour from when it was asked."""
    assert result.error is not None, result.terminal
    assert (result.error["status"], result.error["code"]) == (429, "usage_limit_reached")
    assert before + 3590 <= result.error["resets_at"] <= time.time() + 3610


def assert_not_found(result: TurnResult) -> None:
    assert result.error is not None, result.terminal
    assert (result.error["status"], result.error["code"]) == (400, "previous_response_not_found")
    assert result.error["param"] == "previous_response_id"


# --- reasoning ---


async def test_leaves_reasoning_behind_and_keeps_calls_paired_when_a_session_crosses_a_boundary(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    await conversation(client)
    exhaust(house, "A", "A2")

    third = await client.turn("three")
    fourth = await client.turn("four")

    assert third.ok and fourth.ok, third.problems + fourth.problems
    crossed, increment = house.sim.turns[-2:]
    assert crossed.credential == increment.credential == "B"
    tools = ["function_call", "function_call", "function_call_output", "function_call_output"]
    assert kinds(crossed.input) == ["message", *tools, "message", "message"]
    calls = [item["call_id"] for item in crossed.input if item.get("type") == "function_call"]
    assert calls == [item["call_id"] for item in crossed.input if item.get("type") == "function_call_output"]
    assert dropped(node) == 2
    assert [turn.outcome for turn in house.sent_to("B")] == ["completed", "completed"], "not even tried with it"
    assert increment.previous_response_id == third.response_id


async def test_crosses_a_boundary_between_a_call_and_its_output(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    assert (await client.turn("look [[call:read]]")).ok
    exhaust(house, "A", "A2")

    answered = await client.tool_turn()

    assert answered.ok, answered.problems
    assert kinds(house.sim.turns[-1].input) == ["message", "function_call", "function_call_output"]
    assert dropped(node) == 1


async def test_keeps_reasoning_when_a_session_moves_inside_its_boundary(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    await conversation(client)
    exhaust(house, "A")

    third = await client.turn("three")

    assert third.ok, third.problems
    served = house.sim.turns[-1]
    assert served.credential == "A2"
    assert kinds(served.input).count("reasoning") == 2 and dropped(node) == 0


async def test_takes_up_its_old_reasoning_when_a_session_comes_back_over_the_boundary(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    await conversation(client)
    exhaust(house, "A", "A2", resets_in=1)
    assert (await client.turn("at B")).ok
    house.sim.faults.clear()
    exhaust(house, "B")
    await wait_until(lambda: node.node.placement.usable() == 3)

    back = await client.turn("back at A")
    further = await client.turn("further")

    assert back.ok and further.ok, back.problems + further.problems
    served = house.sim.turns[-2]
    assert served.credential in ("A", "A2")
    assert kinds(served.input).count("reasoning") == 2, "of three, what B has thought stays behind"
    assert dropped(node) == 3


@pytest.mark.parametrize("socket", ["same socket", "fresh socket"])
async def test_strips_foreign_reasoning_from_a_full_context_that_the_client_sends_itself(
    house: House, socket: str
) -> None:
    node = await house.node()
    client = await house.connected(node)
    await conversation(client)
    exhaust(house, "A", "A2")
    if socket == "fresh socket":
        await client.close()
        assert await client.connect()

    full = await client.turn("three", incremental=False)
    again = await client.turn("four", incremental=False)
    increment = await client.turn("five")

    for turn in (full, again, increment):
        assert turn.ok, turn.problems
    served = [turn for turn in house.sim.turns if turn.outcome == "completed"][-3:]
    assert {turn.credential for turn in served} == {"B"}
    assert kinds(served[0].input).count("reasoning") == 0
    assert dropped(node) >= 2


async def test_keeps_its_own_and_strips_foreign_reasoning_from_a_full_context_after_a_move(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    await conversation(client)
    exhaust(house, "A", "A2")
    assert (await client.turn("three")).ok

    mixed = await client.turn("four", incremental=False)

    assert mixed.ok, mixed.problems
    assert kinds(house.sim.turns[-1].input).count("reasoning") == 1
    assert house.sim.turns[-1].number == house.sim.turns[-2].number + 1, "it is known before it is sent what is foreign"


# --- what is bound to its boundary ---


async def bound_by(house: House, what: str) -> tuple[list[Item] | str, dict[str, Any]]:
    """Input and further fields of a turn that only org-a can serve. Its conversation was not made here, which only a
    tenant may name that has the pool for itself."""
    if what == "a conversation":
        return "hello", {"conversation": house.sim.create_conversation("org-a")}
    part = {"file": {"type": "input_file", "file_id": "file-1"}, "text": {"type": "input_text", "text": "hello"}}
    if what == "a file id":
        return [{"type": "message", "role": "user", "content": [part["text"], part["file"]]}], {}
    if what == "a vector store":
        return "hello", {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}
    if what == "a container":
        return "hello", {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}
    assert what == "a stored prompt"
    return "hello", {"prompt": {"id": "pmpt_1"}}


BINDING = ["a conversation", "a file id", "a vector store", "a container", "a stored prompt"]


@pytest.mark.parametrize("what", BINDING)
async def test_serves_what_is_bound_inside_its_boundary(house: House, what: str) -> None:
    node = await house.node(alone=True)
    client = await house.connected(node)
    text, extra = await bound_by(house, what)
    exhaust(house, "A")

    turn = await client.turn(text, extra=extra)

    assert turn.ok, turn.problems
    assert [turn.credential for turn in house.sim.turns] == ["A", "A2"]


@pytest.mark.parametrize("what", BINDING)
async def test_says_when_a_bound_turn_can_be_served_again_instead_of_crossing_its_boundary(
    house: House, what: str
) -> None:
    node = await house.node(alone=True)
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    text, extra = await bound_by(house, what)
    exhaust(house, "A", "A2")
    before = time.time()

    refused = await client.turn(text, parent=None, extra=extra)
    other = await client.turn("unbound", parent=None)

    assert_exhausted(refused, before)
    assert [turn.credential for turn in house.sim.turns[1:]] == ["A", "A2", "B"]
    assert other.ok, other.problems


async def test_an_item_reference_stays_in_its_boundary(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    first = await client.turn("one", store=True)
    message = next(item for item in first.items if item["type"] == "message")
    reference = [{"type": "item_reference", "id": message["id"]}, {"role": "user", "content": "and?"}]
    exhaust(house, "A")

    inside = await client.turn(reference, parent=None)
    exhaust(house, "A2")
    before = time.time()
    refused = await client.turn(reference, parent=None)

    assert inside.terminal == "response.completed", inside.error
    assert house.sim.turns[-2].credential == "A2"
    assert_exhausted(refused, before)
    assert all(turn.credential != "B" for turn in house.sim.turns)


async def test_a_response_that_the_broker_has_never_seen_stays_in_the_boundary_of_its_session(house: House) -> None:
    node = await house.node(alone=True)
    direct = SessionClient(house.sim.base_url, "sk-sim-A")
    house.clients.append(direct)
    assert await direct.connect()
    root = await direct.turn("said to the vendor itself", store=True)
    client = await house.connected(node)

    continued = await client.turn("two", parent=root, store=True)
    further = await client.turn("three", store=True)
    exhaust(house, "A")
    inside = await client.turn("four", store=True)
    exhaust(house, "A2")
    refused = await client.turn("five", store=True)

    assert continued.ok and further.ok, continued.problems + further.problems
    # another key of the same organisation cannot be handed what nobody here knows: no amnesia, but the exact code
    assert_not_found(inside)
    assert_not_found(refused)
    assert all(turn.credential != "B" for turn in house.sim.turns)


async def compacted(house: House, node: Listeners) -> SessionClient:
    """A session whose newest response holds a compaction item."""
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    rule = {"context_management": [{"type": "compaction", "compact_threshold": 1}]}
    second = await client.turn("two", extra=rule)
    assert second.ok, second.problems
    assert "compaction" in kinds(second.items)
    return client


async def test_a_compacted_session_moves_inside_its_boundary(house: House) -> None:
    node = await house.node()
    client = await compacted(house, node)
    exhaust(house, "A")

    third = await client.turn("three")
    fourth = await client.turn("four", incremental=False)

    assert third.ok and fourth.ok, third.problems + fourth.problems
    assert {turn.credential for turn in house.sim.turns[-2:]} == {"A2"}


async def test_a_compacted_session_waits_for_its_boundary_and_goes_on_there(house: House) -> None:
    node = await house.node()
    client = await compacted(house, node)
    exhaust(house, "A", "A2", resets_in=2)

    refused = await client.turn("three")
    house.sim.faults.clear()
    await wait_until(lambda: node.node.placement.usable() == 3)
    third = await client.retry()

    assert refused.error is not None
    assert (refused.error["status"], refused.error["code"]) == (429, "usage_limit_reached")
    assert third.ok, third.problems
    assert all(turn.credential != "B" for turn in house.sim.turns)
    assert house.sim.turns[-1].credential in ("A", "A2")


async def test_a_compacted_context_that_the_client_sends_itself_does_not_cross_the_boundary(house: House) -> None:
    node = await house.node()
    client = await compacted(house, node)
    exhaust(house, "A", "A2")
    before = time.time()

    refused = await client.turn("three", incremental=False)

    assert_exhausted(refused, before)
    assert all(turn.credential != "B" for turn in house.sim.turns)


async def test_does_not_repeat_a_conversation_turn_that_may_have_run(house: House) -> None:
    node = await house.node(credentials=by(house.credentials(), "websocket", "http"))
    client = await house.connected(node)
    async with house.caller(node).ask("conversations", {}) as made:
        conversation = (await made.json())["id"]
    house.sim.faults.set("*", "server_error", at="after_created", do="reset", times=1)

    lost = await client.turn("hello", extra={"conversation": conversation})

    assert lost.error is not None, "sent, and nobody knows whether it ran: repeated it might stand there twice"
    assert (lost.error["status"], lost.error["code"]) == (502, "outcome_unknown")
    assert len(house.sim.turns) == 1


async def test_refuses_a_conversation_that_nobody_has_made_here_where_tenants_share_the_pool(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)

    refused = await client.turn("hello", extra={"conversation": house.sim.create_conversation("org-a")})

    assert refused.error is not None, "the vendor knows our credentials and not our tenants: it would be served"
    assert (refused.error["status"], refused.error["code"]) == (404, "not_found")
    assert house.sim.turns == []


# --- a tenant of whose turns nothing is kept ---


async def private(house: House, node: Listeners, **more: Any) -> tuple[SessionClient, TurnResult]:
    client = await house.connected(node, key=PRIVATE_KEY, **more)
    first = await client.turn("my secret is xylophone-4711")
    second = await client.turn("and my word is marimba-0815 [[pad:4000]]")
    assert first.ok and second.ok, first.problems + second.problems
    return client, second


async def test_keeps_no_word_of_a_private_tenant(house: House) -> None:
    node = await house.node()
    _, second = await private(house, node)
    thought = second.reasoning_items[0]["encrypted_content"]

    stored = await everything_in(house.url)

    assert any(b":turns" in key for key in stored), "the turns are known, by their ids alone"
    for key, value in stored.items():
        for word in ("xylophone", "4711", "marimba", "0815", "lorem", "input_text", thought[:40]):
            assert word.encode() not in key + value, (key, word)
        assert len(value) < 3000, "not even packed: there is no room for an answer of 4000 bytes"


async def test_keeps_a_private_session_with_its_credential_while_that_can_serve(house: House) -> None:
    one = await house.node()
    client, _ = await private(house, one)
    other = await house.connected(one)
    assert (await other.turn("busy")).ok
    house.sim.faults.set("A", "server_error", times=1)

    # a refusal that may pass: others may move, this one has nothing to move with
    refused = await client.turn("three")
    fresh = await client.turn("from the start", parent=None)

    assert_not_found(refused)
    assert fresh.ok, fresh.problems
    assert {turn.credential for turn in house.sim.turns if turn.previous_response_id} == {"A"}


async def test_tells_a_private_client_to_send_everything_when_its_session_must_move(house: House) -> None:
    node = await house.node()
    client, _ = await private(house, node)
    exhaust(house, "A")

    refused = await client.turn("three")
    whole = await client.turn("three", incremental=False)
    onward = await client.turn("four")

    assert_not_found(refused)
    assert [turn.credential for turn in house.sim.turns] == ["A", "A", "A", "A2", "A2"], "refused before it was sent"
    assert whole.ok and onward.ok, whole.problems + onward.problems


async def test_tells_a_private_client_to_send_everything_when_its_connection_broke(house: House) -> None:
    one, two = await house.node(), await house.node()
    client, second = await private(house, one, session_id="quiet")
    await client.kill()
    again = await house.connected(two, key=PRIVATE_KEY, session_id="quiet")
    sent = len(house.sim.turns)

    refused = await again.turn("three", parent=second)

    assert_not_found(refused)
    assert len(house.sim.turns) == sent


async def test_serves_a_private_client_from_what_the_vendor_has_stored(house: House) -> None:
    one, two = await house.node(), await house.node()
    client = await house.connected(one, key=PRIVATE_KEY)
    first = await client.turn("one", store=True)
    await client.kill()
    again = await house.connected(two, key=PRIVATE_KEY)

    second = await again.turn("two", parent=first, store=True)

    assert second.ok, second.problems
    assert house.sim.turns[-1].previous_response_id == first.response_id


async def test_says_when_a_private_session_can_go_on_when_its_organisation_is_exhausted(house: House) -> None:
    node = await house.node()
    client, _ = await private(house, node)
    exhaust(house, "A", "A2")
    before = time.time()
    other = await house.connected(node)
    assert (await other.turn("moves to B")).ok

    refused = await client.turn("three")

    assert_exhausted(refused, before)
    assert [turn.credential for turn in house.sim.turns] == ["A", "A", "A", "A2", "B"]
