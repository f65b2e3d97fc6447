"""The cases of the Open Responses compliance suite (protocol.md 10.3, 10.4), each as a conversation with a target.

The simulated vendor calls a tool when the last message asks for it by a mark, and its answers begin with a digest of
the context that it has: where the suite only wants an answer, these also want the answer to that conversation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from broker.simulator import context_digest
from tests.compliance.schemas import Mismatch, ResponseResource, checked
from tests.compliance.target import Target, text_of, user

Case = Callable[[Target], Awaitable[None]]
Item = dict[str, Any]

WEATHER = "[[call:get_weather]] What is the weather like in Lisbon?"
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR42mP4z8AARwzEcQCukw/xOF6MEQAAAABJRU5"
    "ErkJggg=="
)
BARE_TOOL: Item = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string", "description": "A town and its country"}},
        "required": ["place"],
    },
}
TOOL: Item = {**BARE_TOOL, "description": "The weather of a place, now", "strict": True}


def answers(response: Item, context: list[Item]) -> None:
    """The response is complete, and it is the answer to this conversation."""
    assert response["status"] == "completed", response
    assert response["output"]
    assert text_of(response).startswith(f"ctx={context_digest(context)[:32]} "), "an answer to something else"


def output_of(call: Item, result: str) -> Item:
    return {"type": "function_call_output", "call_id": call["call_id"], "output": result}


def only_call(response: Item) -> Item:
    (call,) = [item for item in response["output"] if item["type"] == "function_call"]
    assert call["name"] == "get_weather" and call["arguments"]
    found: Item = call
    return found


# --- over HTTP ---


async def basic_response(target: Target) -> None:
    asked = [user("Say hello in three words.")]
    answers(await target.respond(input=asked), asked)


async def assistant_phase(target: Target) -> None:
    asked = [
        user("Find the town, then say its name."),
        {"type": "message", "role": "assistant", "content": "I am looking for it.", "phase": "commentary"},
        {"type": "message", "role": "assistant", "content": "It is Lisbon.", "phase": "final_answer"},
        user("Once more, please."),
    ]
    answers(await target.respond(input=asked), asked)


async def streaming_response(target: Target) -> None:
    asked = [user("Count to five. [[deltas:8]]")]
    events = await target.stream(input=asked)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    answers(events[-1]["response"], asked)


async def system_prompt(target: Target) -> None:
    asked = [{"type": "message", "role": "system", "content": "Speak like a sailor."}, user("Say hello.")]
    answers(await target.respond(input=asked), asked)


async def tool_calling(target: Target) -> None:
    response = await target.respond(input=[user(WEATHER)], tools=[TOOL])
    assert response["status"] == "completed"
    only_call(response)


async def tool_calling_with_defaults(target: Target) -> None:
    response = await target.respond(input=[user(WEATHER)], tools=[BARE_TOOL])
    only_call(response)
    assert response["tools"][0]["name"] == "get_weather"


async def image_input(target: Target) -> None:
    content = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PNG}]
    asked = [{"type": "message", "role": "user", "content": content}]
    answers(await target.respond(input=asked), asked)


async def multi_turn(target: Target) -> None:
    asked = [
        user("My name is Ada."),
        {"type": "message", "role": "assistant", "content": "Hello Ada!"},
        user("What is my name?"),
    ]
    answers(await target.respond(input=asked), asked)


async def compact_response(target: Target) -> None:
    compacted = await target.compact(input=[user("A long story."), user("Its end.")], prompt_cache_key="compliance")
    assert any(item["type"] == "compaction" for item in compacted["output"])


async def compact_missing_model(target: Target) -> None:
    refused = await target.refused("/responses/compact", input=[user("A long story.")])
    assert refused.status in (400, 422), refused


# --- over HTTP, of older branches ---


async def function_call_roundtrip(target: Target) -> None:
    asked = [user(WEATHER)]
    response = await target.respond(input=asked, tools=[TOOL])
    answered = [*asked, *response["output"], output_of(only_call(response), '{"sky":"blue"}')]
    answers(await target.respond(input=answered, tools=[TOOL]), answered)


async def file_input(target: Target) -> None:
    file = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,aGVsbG8="}
    asked = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is in it?"}, file]}]
    answers(await target.respond(input=asked), asked)


async def previous_response_id(target: Target) -> None:
    first = await target.respond(input=[user("My name is Ada.")], store=True)
    second = await target.respond(input=[user("What is my name?")], store=True, previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"] != second["id"]
    answers(second, [user("My name is Ada."), *first["output"], user("What is my name?")])


async def tool_calling_streaming(target: Target) -> None:
    events = await target.stream(input=[user(WEATHER)], tools=[TOOL])
    kinds = [event["type"] for event in events]
    assert "response.function_call_arguments.delta" in kinds and "response.function_call_arguments.done" in kinds
    for kind in ("response.output_item.added", "response.output_item.done"):
        assert any(event["type"] == kind and event["item"]["type"] == "function_call" for event in events)
    only_call(events[-1]["response"])


# --- over a WebSocket ---


async def websocket_response(target: Target) -> None:
    asked = [user("Say hello in three words.")]
    async with target.socket() as socket:
        answers(await socket.completed(asked, store=True), asked)


async def websocket_sequential_responses(target: Target) -> None:
    async with target.socket() as socket:
        for text in ("Say one.", "Say two."):
            answers(await socket.completed([user(text)]), [user(text)])


async def websocket_continuation(target: Target) -> None:
    async with target.socket() as socket:
        first = await socket.completed([user("Remember the word blue.")])
        second = await socket.completed([user("Which word?")], previous_response_id=first["id"])
    answers(second, [user("Remember the word blue."), *first["output"], user("Which word?")])


async def websocket_reconnect_store_false_recovery(target: Target) -> None:
    async with target.socket() as socket:
        first = await socket.completed([user("Remember the word blue.")])
    async with target.socket() as socket:
        error = await socket.refused([user("Which word?")], previous_response_id=first["id"])
        assert error["code"] == "previous_response_not_found", error
        fresh = [user("Remember the word blue."), *first["output"], user("Which word?")]
        answers(await socket.completed(fresh), fresh)


async def websocket_previous_response_not_found(target: Target) -> None:
    async with target.socket() as socket:
        error = await socket.refused([user("Go on.")], previous_response_id="resp_of_nobody")
    assert error["code"] == "previous_response_not_found", error


async def websocket_failed_continuation_evicts_cache(target: Target) -> None:
    async with target.socket() as socket:
        first = await socket.completed([user("Remember the word blue.")])
        unknown = output_of({"call_id": "call_of_nobody"}, "done")
        failed = await socket.refused([unknown], previous_response_id=first["id"])
        assert failed["code"] != "previous_response_not_found", failed
        gone = await socket.refused([user("Which word?")], previous_response_id=first["id"])
    assert gone["code"] == "previous_response_not_found", gone


async def websocket_compact_new_chain(target: Target) -> None:
    compacted = await target.compact(input=[user("A long story."), user("Its end.")])
    asked = [*compacted["output"], user("Go on from there.")]
    async with target.socket() as socket:
        answers(await socket.completed(asked, tools=[]), asked)


async def websocket_generate_false(target: Target) -> None:
    async with target.socket() as socket:
        warmed = await socket.completed([user("Read this.")], generate=False)
        assert warmed["id"] and warmed["output"] == []
        response = await socket.completed([user("What was it?")], previous_response_id=warmed["id"])
    answers(response, [user("Read this."), user("What was it?")])


# --- without any traffic ---


async def response_output_phase_schema(target: Target) -> None:
    """What comes with a phase is understood, and a phase that does not exist is not; the target has no part in it."""
    for phase, fits in (("commentary", True), ("final_answer", True), ("afterthought", False), (None, False)):
        said = {"type": "output_text", "text": "hello", "annotations": []}
        message = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [said]}
        raw = response_with([{**message, "phase": phase}])
        try:
            checked(raw, ResponseResource)
        except Mismatch:
            assert not fits, phase
        else:
            assert fits, phase


def response_with(output: list[Item]) -> bytes:
    """A response as the specification wants it."""
    fields: Item = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "completed_at": 2,
        "status": "completed",
        "incomplete_details": None,
        "model": "sim-1",
        "previous_response_id": None,
        "instructions": None,
        "output": output,
        "error": None,
        "tools": [],
        "tool_choice": "auto",
        "truncation": "disabled",
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}},
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": 0,
        "temperature": 1,
        "reasoning": None,
        "usage": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "store": True,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }
    return orjson.dumps(fields)


def _named(*cases: Case) -> dict[str, Case]:
    return {getattr(case, "__name__", "").replace("_", "-"): case for case in cases}


HTTP = _named(
    basic_response,
    assistant_phase,
    response_output_phase_schema,
    streaming_response,
    system_prompt,
    tool_calling,
    image_input,
    multi_turn,
    compact_response,
    compact_missing_model,
    function_call_roundtrip,
    file_input,
    previous_response_id,
    tool_calling_streaming,
)
"""The cases over HTTP, and below them those of older branches."""

WEBSOCKET = _named(
    websocket_response,
    websocket_sequential_responses,
    websocket_continuation,
    websocket_reconnect_store_false_recovery,
    websocket_previous_response_not_found,
    websocket_failed_continuation_evicts_cache,
    websocket_generate_false,
)
"""The cases over a WebSocket alone."""

BOTH = _named(websocket_compact_new_chain)
"""What needs a WebSocket and HTTP."""
