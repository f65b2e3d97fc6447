"""Lanes of one socket: order within, concurrency between, limits, and steering."""

from typing import Any

import pytest

from broker.simulator import Simulator

LONG = "hello [[slow:10]] [[deltas:300]]"


async def steer(raw: Any, response_id: object, text: object = "rather this", **more: object) -> None:
    await raw.send({"type": "response.steer", "previous_response_id": response_id, "input": text, **more})


async def begin(raw: Any, text: str = LONG, **fields: Any) -> str:
    """Start a long response; its id, once it has begun to speak."""
    await raw.create(text, **fields)
    events = await raw.until("response.output_text.delta")
    response_id: str = events[0]["response"]["id"]
    return response_id


async def test_events_of_a_named_lane_carry_its_name(sim: Simulator, raw: Any) -> None:
    events = await raw.answer("hello", stream_id="a.b-C_1")
    assert {event["stream_id"] for event in events} == {"a.b-C_1"}
    refused = await raw.refused("x", stream_id="a.b-C_1", previous_response_id="resp_nowhere")
    assert refused["stream_id"] == "a.b-C_1"


@pytest.mark.parametrize("name", ["", "with space", "x" * 257, 7, None, "ä", "x\n"])
async def test_lane_name_is_refused_when_it_breaks_the_rules(sim: Simulator, raw: Any, name: object) -> None:
    refused = await raw.refused(stream_id=name)
    assert refused["error"]["code"] == "invalid_stream_id" and "stream_id" not in refused
    await raw.completed(stream_id="x" * 256)


async def test_one_lane_answers_in_order(sim: Simulator, raw: Any) -> None:
    for _ in range(3):
        await raw.create("x [[slow:1]]", stream_id="a")
    events = [event for _ in range(3) for event in await raw.until("response.completed")]
    kinds = [event["type"] for event in events if event["type"] in ("response.created", "response.completed")]
    assert kinds == ["response.created", "response.completed"] * 3


async def test_lanes_answer_side_by_side(sim: Simulator, raw: Any) -> None:
    await begin(raw, stream_id="slow")
    await raw.create("quick", stream_id="quick")
    events = await raw.until("response.completed")
    assert events[-1]["stream_id"] == "quick"
    assert any(event["stream_id"] == "slow" for event in await raw.until("response.output_text.delta"))


async def test_more_than_the_allowed_responses_wait(sim: Simulator, raw: Any) -> None:
    for at in range(16):
        await raw.create(f"{at} [[slow:10]] [[deltas:{3 if at == 0 else 500}]]", stream_id=f"lane{at}")
    await raw.create("waits", stream_id="lane16")
    events = await raw.until("response.completed")
    assert events[-1]["stream_id"] == "lane0"
    assert not any(event["stream_id"] == "lane16" for event in events)
    events = await raw.until("response.completed")
    assert events[-1]["stream_id"] == "lane16"


async def test_too_many_lane_names_are_refused(sim: Simulator, raw: Any) -> None:
    await raw.completed()  # the default lane does not count
    for at in range(32):
        await raw.completed(stream_id=f"lane{at}")
    refused = await raw.refused(stream_id="lane32")
    assert refused["status"] == 400 and refused["error"]["code"] == "websocket_stream_limit_reached"
    assert refused["stream_id"] == "lane32"
    await raw.completed(stream_id="lane0")
    await raw.completed()


async def test_steer_ends_the_response_and_starts_its_successor(sim: Simulator, raw: Any) -> None:
    response_id = await begin(raw, stream_id="s", store=False)
    await steer(raw, response_id)
    accepted = (await raw.until("response.steer.accepted"))[-1]
    assert accepted["steer"]["previous_response_id"] == response_id and accepted["steer"]["id"].startswith("steer_")
    ended = (await raw.until("response.incomplete"))[-1]
    assert ended["response"]["incomplete_details"] == {"reason": "steered"}
    assert ended["response"]["output"][-1]["status"] == "incomplete"
    created = await raw.event()
    assert created["type"] == "response.created" and created["stream_id"] == "s"
    assert created["response"]["id"] != response_id and created["response"]["previous_response_id"] == response_id
    assert created["response"]["store"] is False and created["sequence_number"] == 0
    successor = (await raw.until("response.completed"))[-1]["response"]
    context = sim.turns[-1].context
    assert [item.get("role") for item in context if item["type"] == "message"] == ["user", "assistant", "user"]
    assert context[-1]["content"][0]["text"] == "rather this"
    await raw.completed("on", previous_response_id=successor["id"], stream_id="s", store=False)


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("", {}),
        (5, {}),
        ("x", {"model": "sim-1"}),
        ("x", {"stream_id": "s"}),
        ([{"role": "system", "content": "x"}], {}),
    ],
)
async def test_steer_fails_when_it_is_malformed(sim: Simulator, raw: Any, text: object, more: Any) -> None:
    response_id = await begin(raw)
    await steer(raw, response_id, text, **more)
    failed = (await raw.until("response.steer.failed"))[-1]
    assert failed["error"]["code"] == "invalid_input" and failed["steer"]["input"] == text


async def test_steer_fails_when_there_is_nothing_to_steer(sim: Simulator, raw: Any) -> None:
    done = await raw.completed()
    await steer(raw, done["id"])
    assert (await raw.event())["error"]["code"] == "response_already_completed"
    await steer(raw, "resp_nowhere")
    assert (await raw.event())["error"]["code"] == "response_not_found"


async def test_steer_fails_when_the_response_compacts(sim: Simulator, raw: Any) -> None:
    response_id = await begin(raw, context_management=[{"type": "compaction"}])
    await steer(raw, response_id)
    failed = (await raw.until("response.steer.failed"))[-1]
    assert failed["error"]["code"] == "steering_not_supported"


async def test_steer_fails_when_too_many_wait(sim: Simulator, raw: Any) -> None:
    response_id = await begin(raw, "hello [[slow:2000]] [[deltas:5]]")
    for _ in range(33):
        await steer(raw, response_id)
    events = [await raw.event() for _ in range(33)]
    assert [event["type"] for event in events[:32]] == ["response.steer.accepted"] * 32
    assert events[32]["error"]["code"] == "too_many_pending_steers"


async def test_steer_waits_when_the_response_calls_tools(sim: Simulator, raw: Any) -> None:
    await raw.create("do [[call:f]] [[slow:10]]", store=False)
    begun = await raw.until("response.function_call_arguments.delta")
    await steer(raw, begun[0]["response"]["id"])
    done = (await raw.until("response.completed"))[-1]["response"]
    pending = await raw.event()
    call = done["output"][-1]
    assert pending["type"] == "response.steer.pending" and pending["reason"] == "waiting_for_required_input"
    assert pending["required_input"] == [{"type": "function_call", "call_id": call["call_id"], "name": "f"}]
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "ok"}]
    await raw.completed(outputs, previous_response_id=done["id"], store=False)
    context = sim.turns[-1].context
    assert [item["type"] for item in context][-2:] == ["function_call_output", "message"]
