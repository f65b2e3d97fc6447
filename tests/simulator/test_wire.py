"""Frames, events and the response object on a WebSocket."""

import asyncio
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from broker.simulator import Simulator, context_digest

USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}


async def test_upgrade_is_refused_when_the_key_is_unknown(sim: Simulator, http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": "Bearer sk-unknown", "Connection": "Upgrade", "Upgrade": "websocket"}
    async with http.get(sim.base_url + "/responses", headers=headers) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "invalid_api_key"
    assert [(seen.credential, seen.accepted) for seen in sim.handshakes] == [(None, False)]


async def test_upgrade_is_recorded_without_the_secret(sim: Simulator, raw: Any) -> None:
    seen = sim.handshakes[-1]
    assert seen.credential == "A" and seen.accepted and seen.headers["upgrade"] == "websocket"
    assert "sk-sim-a" not in str(seen)


async def test_events_come_in_order_and_numbered(sim: Simulator, raw: Any) -> None:
    events = await raw.answer("hello")
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "output_item.done", "output_item.added", "content_part.added",
        "output_text.delta", "output_text.delta", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert not any("stream_id" in event for event in events)
    assert (await raw.answer("again"))[0]["sequence_number"] == 0


async def test_deltas_add_up_to_the_text_everywhere(sim: Simulator, raw: Any) -> None:
    events = await raw.answer("hello [[deltas:7]] [[pad:500]]")
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    by_kind = {event["type"]: event for event in events}
    assert sum(event["type"] == "response.output_text.delta" for event in events) == 7
    assert by_kind["response.output_text.done"]["text"] == said and len(said) > 500
    assert by_kind["response.completed"]["response"]["output"][1]["content"][0]["text"] == said


async def test_answer_names_the_digest_of_its_context(sim: Simulator, raw: Any) -> None:
    response = await raw.completed("hello")
    text = response["output"][1]["content"][0]["text"]
    assert text.startswith(f"ctx={context_digest([USER])[:32]} items=1 | ")


async def test_response_object_is_whole(sim: Simulator, raw: Any) -> None:
    short = {"type": "function", "name": "f", "parameters": {}}
    tools = [{**short, "description": None, "strict": True}]
    response = await raw.completed("hello", tools=[short], metadata={"k": "v"}, instructions="be", store=False)
    assert response["object"] == "response" and response["status"] == "completed" and response["model"] == "sim-1"
    assert (response["tools"], response["metadata"], response["instructions"]) == (tools, {"k": "v"}, "be")
    assert response["store"] is False and response["error"] is None and response["incomplete_details"] is None
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] and usage["input_tokens"] > 0
    required = {
        "created_at", "completed_at", "previous_response_id", "top_p", "temperature", "presence_penalty", "text",
        "frequency_penalty", "reasoning", "tool_choice", "truncation", "parallel_tool_calls", "service_tier",
        "max_output_tokens", "top_logprobs", "background",
    }  # fmt: skip
    assert required <= response.keys()


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{not json", "invalid_json", None),
        ("[1]", "invalid_json", None),
        ('{"type":"response.cancel"}', "unsupported_event_type", "type"),
        ('{"type":"response.create","input":"x"}', "missing_required_parameter", "model"),
        ('{"type":"response.create","model":"sim-1","input":5}', "invalid_type", "input"),
        (
            '{"type":"response.create","model":"sim-1","input":"x","stream_id":""}',
            "invalid_stream_id",
            "stream_id",
        ),
    ],
)
async def test_bad_frame_is_refused_and_the_socket_survives(
    sim: Simulator, raw: Any, frame: str, code: str, param: str | None
) -> None:
    await raw.ws.send_str(frame)
    event = await raw.event()
    assert (event["type"], event["status"], event["error"]["code"], event["error"]["param"]) == (
        "error",
        400,
        code,
        param,
    )
    assert "stream_id" not in event and "sequence_number" not in event
    await raw.completed()


async def test_http_fields_are_tolerated(sim: Simulator, raw: Any) -> None:
    await raw.completed("hello", stream=True, stream_options={}, background=False)
    assert {"stream", "stream_options", "background"} <= set(sim.turns[-1].frame_keys)


async def test_model_is_refused_when_the_credential_lacks_it(sim: Simulator, dial: Any) -> None:
    other = await dial(sim, "sk-sim-b")
    event = await other.refused(model="sim-1")
    assert event["status"] == 404 and event["error"]["code"] == "model_not_found"
    await other.completed(model="sim-2")


async def test_warm_up_completes_without_output(sim: Simulator, raw: Any) -> None:
    events = await raw.answer("context", generate=False, store=False)
    assert [event["type"] for event in events] == ["response.created", "response.completed"]
    warm = events[-1]["response"]
    assert warm["output"] == [] and warm["usage"]["input_tokens"] > 0
    response = await raw.completed("go", previous_response_id=warm["id"], store=False)
    assert " items=2 " in response["output"][1]["content"][0]["text"]


async def test_incomplete_mark_ends_with_incomplete(sim: Simulator, raw: Any) -> None:
    last = (await raw.answer("hello [[incomplete]]"))[-1]
    assert last["type"] == "response.incomplete" and last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_slow_mark_spreads_the_deltas(sim: Simulator, raw: Any) -> None:
    loop = asyncio.get_running_loop()
    await raw.create("hello [[slow:10]] [[deltas:5]]")
    await raw.until("response.output_text.delta")
    begun = loop.time()
    await raw.until("response.completed")
    assert loop.time() - begun >= 0.03


async def test_reasoning_can_be_switched_off(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(reasoning=False))
    assert [item["type"] for item in (await raw.completed())["output"]] == ["message"]


async def test_announced_reasoning_is_only_a_part(sim: Simulator, raw: Any) -> None:
    items = [event["item"] for event in await raw.answer() if "output_item" in event["type"]]
    added, done = items[0]["encrypted_content"], items[1]["encrypted_content"]
    assert done.startswith("gAAAA") and done.startswith(added) and len(added) < len(done)


async def test_response_ids_repeat_when_the_vendor_reuses_them(new_simulator: Any, dial: Any) -> None:
    sim = await new_simulator(reuse_response_ids=True)
    raw = await dial(sim)
    first = await raw.completed("one", store=False)
    second = await raw.completed("two", previous_response_id=first["id"], store=False)
    third = await raw.completed("three", previous_response_id=first["id"], store=False)
    assert first["id"] == second["id"] == third["id"]
    assert len(sim.turns[-1].context) == 7
    assert (await (await dial(sim)).completed())["id"] != first["id"]


async def test_connection_ends_at_its_age_limit_while_idle(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(age_limit=0.05))
    event = await raw.event()
    assert event["status"] == 400 and event["error"]["code"] == "websocket_connection_limit_reached"
    closed = await raw.receive()
    assert closed.type is aiohttp.WSMsgType.CLOSE and closed.data == 1001


async def test_connection_lets_a_response_finish_at_its_age_limit(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(age_limit=0.05))
    events = await raw.answer("hello [[slow:20]] [[deltas:6]]")
    assert events[-1]["type"] == "response.completed"
    assert (await raw.event())["error"]["code"] == "websocket_connection_limit_reached"


async def test_connection_interrupts_a_response_at_its_age_limit_when_told(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(age_limit=0.05, age_interrupts=True))
    events = await raw.answer("hello [[slow:20]] [[deltas:100]]")
    assert events[-1]["type"] == "error" and "stream_id" not in events[-1]


async def test_sockets_are_counted_while_they_live(sim: Simulator, dial: Any, wait_until: Any) -> None:
    first, second = await dial(sim), await dial(sim)
    assert sim.sockets == {"A": 2, "A2": 0, "B": 0, "C": 0}
    await first.ws.close()
    await wait_until(lambda: sim.sockets["A"] == 1)
    await second.ws.close()
    await wait_until(lambda: sim.sockets["A"] == 0)


async def test_turns_are_recorded_as_received(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    await raw.completed([USER], previous_response_id=first["id"], store=False, tools=[], stream_id="x")
    one, two = sim.turns
    assert (one.number, two.number, two.credential, two.transport, two.lane) == (1, 2, "A", "websocket", "x")
    assert two.previous_response_id == first["id"] and two.input == [USER] and two.store is False
    assert two.frame_keys == ["type", "model", "input", "previous_response_id", "store", "tools", "stream_id"]
    assert two.fields["tools"] == [] and two.outcome == "completed" and two.ended is not None
    assert len(two.context) == 4 and two.context_digest == context_digest(two.context)


async def test_records_are_bounded(new_simulator: Any, dial: Any) -> None:
    sim = await new_simulator(records=3)
    raw = await dial(sim)
    for _ in range(5):
        await raw.completed()
    assert [turn.number for turn in sim.turns] == [3, 4, 5]


async def test_turn_is_recorded_as_lost_when_the_client_leaves(sim: Simulator, raw: Any, wait_until: Any) -> None:
    await raw.create("hello [[slow:20]] [[deltas:500]]")
    await raw.until("response.output_text.delta")
    assert sim.turns[0].outcome == "active"
    await raw.ws.close()
    await wait_until(lambda: sim.turns[0].outcome == "lost")


async def test_input_tokens_grow_with_the_context(sim: Simulator, raw: Any) -> None:
    sizes = []
    parent = None
    for _ in range(3):
        response = await raw.completed("more", previous_response_id=parent, store=False)
        parent = response["id"]
        sizes.append(response["usage"]["input_tokens"])
    assert all(before < after for before, after in pairwise(sizes))
