"""Input items that the vendor refuses or resolves: ciphertext, calls and outputs, references, compaction."""

from typing import Any

import pytest

from broker.simulator import Simulator, context_digest

CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
USER = {"role": "user", "content": "hello"}


def of_type(response: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in response["output"] if item["type"] == kind)
    return found


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([USER, OUTPUT], "No tool call found for function call output with call_id call_1."),
        ([OUTPUT, CALL], "No tool call found for function call output with call_id call_1."),
        ([USER, CALL], "No tool output found for function call call_1."),
        ([USER, CALL, {**OUTPUT, "type": "custom_tool_call_output"}], "No tool call found for function call output"),
        ([{**USER, "id": "msg_1"}, {**USER, "id": "msg_1"}], "Duplicate item found with id msg_1."),
    ],
)
async def test_broken_input_is_refused(sim: Simulator, raw: Any, items: list[Any], message: str) -> None:
    refused = await raw.refused(items)
    assert refused["status"] == 400 and refused["error"]["message"].startswith(message)
    assert refused["error"]["param"] == "input"


async def test_complete_tool_pair_is_accepted(sim: Simulator, raw: Any) -> None:
    await raw.completed([USER, CALL, OUTPUT])


async def test_call_marks_are_answered_with_function_calls(sim: Simulator, raw: Any) -> None:
    events = await raw.answer("do [[call:search]] and [[call:read]]", store=False)
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["reasoning", "function_call", "function_call"]
    calls = response["output"][1:]
    assert [call["name"] for call in calls] == ["search", "read"] and calls[0]["call_id"] != calls[1]["call_id"]
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    first = "".join(event["delta"] for event in deltas if event["output_index"] == 1)
    assert first == calls[0]["arguments"]
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "ok"} for call in calls]
    final = await raw.completed(outputs, previous_response_id=response["id"], store=False)
    assert final["output"][-1]["type"] == "message"


async def test_call_ids_follow_from_the_context(sim: Simulator, raw: Any, dial: Any) -> None:
    one = of_type(await raw.completed("do [[call:f]]"), "function_call")
    two = of_type(await (await dial(sim, "sk-sim-c")).completed("do [[call:f]]"), "function_call")
    other = of_type(await raw.completed("do it [[call:f]]"), "function_call")
    assert one["call_id"] == two["call_id"] != other["call_id"] and one["id"] != two["id"]


async def test_calls_of_one_name_have_ids_of_their_own(sim: Simulator, raw: Any) -> None:
    calls = (await raw.completed("do [[call:f]] and [[call:f]]"))["output"][1:]
    assert len({call["call_id"] for call in calls}) == 2


async def test_open_call_is_refused_in_the_next_turn(sim: Simulator, raw: Any) -> None:
    response = await raw.completed("do [[call:f]]")
    refused = await raw.refused("and now?", previous_response_id=response["id"])
    call = of_type(response, "function_call")
    assert refused["error"]["message"] == f"No tool output found for function call {call['call_id']}."


async def test_doubled_item_is_refused_when_it_is_already_in_the_chain(sim: Simulator, raw: Any) -> None:
    response = await raw.completed("one")
    again = [of_type(response, "message"), USER]
    refused = await raw.refused(again, previous_response_id=response["id"])
    assert refused["error"]["message"].startswith("Duplicate item found with id msg_")


async def test_reasoning_is_refused_across_a_boundary(sim: Simulator, raw: Any, dial: Any) -> None:
    reasoning = of_type(await raw.completed(), "reasoning")
    await (await dial(sim, "sk-sim-a2")).completed([USER, reasoning, USER])
    refused = await (await dial(sim, "sk-sim-c")).refused([USER, reasoning, USER])
    assert refused["status"] == 400 and refused["error"]["code"] == "invalid_encrypted_content"
    assert "organization_id did not match" in refused["error"]["message"]


async def test_reasoning_is_refused_when_altered_or_moved(sim: Simulator, raw: Any) -> None:
    reasoning = of_type(await raw.completed(), "reasoning")
    sealed = reasoning["encrypted_content"]
    altered = {**reasoning, "encrypted_content": sealed[:-6] + ("AAAAAA" if sealed[-6:] != "AAAAAA" else "BBBBBB")}
    for item in (altered, {**reasoning, "id": "rs_other"}, {**reasoning, "encrypted_content": "gAAAA"}):
        refused = await raw.refused([USER, item, USER])
        assert refused["error"]["code"] == "invalid_encrypted_content"
    without_id = {name: value for name, value in reasoning.items() if name != "id"}
    await raw.completed([USER, without_id, USER])


async def test_item_reference_resolves_within_its_boundary(sim: Simulator, raw: Any, dial: Any) -> None:
    stored = of_type(await raw.completed("one"), "message")
    reference = [{"type": "item_reference", "id": stored["id"]}, USER]
    await (await dial(sim, "sk-sim-a2")).completed(reference)
    assert sim.turns[-1].context[0] == stored
    refused = await (await dial(sim, "sk-sim-c")).refused(reference)
    assert refused["status"] == 404
    assert refused["error"]["message"] == (
        f"Item with id '{stored['id']}' not found. Items are not persisted when `store` is set to false."
    )


async def test_item_reference_does_not_resolve_when_not_stored(sim: Simulator, raw: Any) -> None:
    kept = of_type(await raw.completed("one", store=False), "message")
    assert (await raw.refused([{"type": "item_reference", "id": kept["id"]}]))["status"] == 404


async def test_compaction_replaces_what_was_before(sim: Simulator, raw: Any) -> None:
    rule = [{"type": "compaction", "compact_threshold": 1}]
    first = await raw.completed("one", context_management=rule, store=False)
    assert [item["type"] for item in first["output"]] == ["compaction", "reasoning", "message"]
    await raw.completed("two", previous_response_id=first["id"], store=False)
    context = sim.turns[-1].context
    assert [item.get("type") for item in context] == ["compaction", "reasoning", "message", "message"]
    replay = [USER, *first["output"], {"role": "user", "content": "two"}]
    assert context_digest(replay) == sim.turns[-1].context_digest


async def test_compaction_waits_for_its_threshold(sim: Simulator, raw: Any) -> None:
    rule = [{"type": "compaction", "compact_threshold": 10_000}]
    assert (await raw.completed("one", context_management=rule))["output"][0]["type"] == "reasoning"


async def test_compaction_is_refused_elsewhere_or_under_another_id(sim: Simulator, raw: Any, dial: Any) -> None:
    first = await raw.completed("one", context_management=[{"type": "compaction"}])
    item = of_type(first, "compaction")
    without_id = {name: value for name, value in item.items() if name != "id"}
    stranger = await dial(sim, "sk-sim-c")
    for asked, window in ((raw, [{**item, "id": "cmp_1"}, USER]), (raw, [without_id, USER]), (stranger, [item, USER])):
        refused = await asked.refused(window)
        assert refused["error"]["code"] == "invalid_encrypted_content"
    await raw.completed([item, USER])


def test_digest_ignores_reasoning_ids_and_status_but_nothing_else() -> None:
    items: list[dict[str, Any]] = [
        {**USER, "id": "a", "status": "completed"},
        {"type": "reasoning", "id": "rs"},
        CALL,
        OUTPUT,
    ]
    plain: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        CALL,
        OUTPUT,
    ]
    assert context_digest(items) == context_digest(plain)
    changes: list[tuple[int, dict[str, Any]]] = [
        (0, {"role": "system"}),
        (0, {"content": "hullo"}),
        (0, {"phase": "commentary"}),
        (1, {"call_id": "call_2"}),
        (1, {"name": "g"}),
        (1, {"arguments": "{} "}),
        (2, {"output": "undone"}),
        (2, {"type": "custom_tool_call_output"}),
    ]
    digests = {context_digest([*plain[:at], {**plain[at], **change}, *plain[at + 1 :]]) for at, change in changes}
    assert len(digests | {context_digest(plain)}) == len(changes) + 1


def test_digest_keeps_unknown_items_whole() -> None:
    item = {"type": "web_search_call", "id": "ws_1", "action": {"query": "x"}}
    assert context_digest([item]) == context_digest([{**item, "id": "ws_2"}])
    assert context_digest([item]) != context_digest([{**item, "action": {"query": "y"}}])
