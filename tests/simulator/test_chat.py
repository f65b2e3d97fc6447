"""Chat completions and embeddings: the same answers in other clothes, recorded and open to faults like turns."""

import base64
import struct
from typing import Any

import aiohttp
import orjson
import pytest

from broker.simulator import Fault, Simulator, context_digest

USER = {"role": "user", "content": "hello"}
CHAT = {"model": "sim-1", "messages": [USER]}
PATH = "/chat/completions"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def said(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_chat_answers_from_its_messages(sim: Simulator, ask: Any) -> None:
    status, answer = await ask(sim, "POST", PATH, CHAT)
    text = answer["choices"][0]["message"]["content"]
    assert status == 200 and answer["object"] == "chat.completion"
    assert text.startswith(f"ctx={context_digest([USER])[:32]} items=1 | ")
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["total_tokens"] > 0
    seen = sim.turns[-1]
    assert (seen.path, seen.credential, seen.outcome) == ("/v1/chat/completions", "A", "completed")
    assert (seen.response_id, seen.transport, seen.context_digest) == (answer["id"], "json", context_digest([USER]))


async def test_chat_streams_chunks_up_to_done(sim: Simulator, http: aiohttp.ClientSession, ask: Any) -> None:
    _, whole = await ask(sim, "POST", PATH, CHAT)
    headers = {"Authorization": "Bearer sk-sim-a"}
    async with http.post(sim.base_url + PATH, headers=headers, json={**CHAT, "stream": True}) as answer:
        assert answer.content_type == "text/event-stream"
        blocks = (await answer.read()).decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""] and all(block.startswith("data: ") for block in blocks[:-1])
    chunks = [orjson.loads(block.removeprefix("data: ")) for block in blocks[:-2]]
    assert said(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and "usage" not in chunks[0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_chat_tells_its_usage_when_asked(sim: Simulator, stream: Any) -> None:
    chunks = await stream(sim, "POST", PATH, {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["prompt_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("mark", ["[[call:add]]", "[[tools:1]]"])
async def test_chat_calls_tools_and_goes_on_from_their_output(sim: Simulator, ask: Any, stream: Any, mark: str) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": mark}], "tools": [TOOL]}
    _, answer = await ask(sim, "POST", PATH, body)
    message = answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls" and message["content"] is None
    (call,) = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "add")
    chunks = await stream(sim, "POST", PATH, {**body, "stream": True})
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert parts[0]["id"] == call["id"] and {part["index"] for part in parts} == {0}
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    output = {"role": "tool", "tool_call_id": call["id"], "content": "3"}
    _, last = await ask(sim, "POST", PATH, {**body, "messages": [*body["messages"], message, output]})
    assert last["choices"][0]["message"]["content"].startswith("ctx=")
    assert [item["type"] for item in sim.turns[-1].context] == ["message", "function_call", "function_call_output"]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("at", ["handshake", "before_created"])
async def test_early_fault_is_an_http_error(sim: Simulator, ask: Any, streaming: bool, at: str) -> None:
    sim.faults.set("A", "rate_limit_exceeded", at=at)
    status, body = await ask(sim, "POST", PATH, {**CHAT, "stream": streaming})
    assert status == 429 and body["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(("at", "chunks"), [("after_created", 1), ("after_deltas", 3)])
@pytest.mark.parametrize("deed", ["error", "failed"])
async def test_late_fault_is_an_error_in_the_stream(
    sim: Simulator, stream: Any, at: str, chunks: int, deed: str
) -> None:
    sim.faults.set("A", "server_is_overloaded", at=at, after=2, do=deed)
    told = await stream(sim, "POST", PATH, {**CHAT, "stream": True})
    assert len(told) == chunks + 1 and told[-1]["error"]["code"] == "server_is_overloaded"
    assert (sim.turns[-1].outcome, sim.turns[-1].error_code) == ("error", "server_is_overloaded")


async def test_late_fault_of_a_whole_answer_is_an_http_error(sim: Simulator, ask: Any) -> None:
    sim.faults.set("A", "server_error", at="after_deltas", after=2)
    assert (await ask(sim, "POST", PATH, CHAT))[0] == 500


@pytest.mark.parametrize("deed", ["reset", "close"])
async def test_stream_can_be_cut(sim: Simulator, stream: Any, deed: str) -> None:
    sim.faults.set("A", Fault(at="after_deltas", do=deed))
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await stream(sim, "POST", PATH, {**CHAT, "stream": True})
    assert sim.turns[-1].outcome == "lost"


@pytest.mark.parametrize("body", [{**CHAT, "messages": "hello"}, {"model": "sim-1"}, {"messages": [USER]}])
async def test_nonsense_is_refused(sim: Simulator, ask: Any, body: Any) -> None:
    assert (await ask(sim, "POST", PATH, body))[0] == 400


async def test_foreign_model_is_refused(sim: Simulator, ask: Any) -> None:
    for path, body in ((PATH, CHAT), ("/embeddings", {"model": "sim-1", "input": "x"})):
        status, answer = await ask(sim, "POST", path, body, secret="sk-sim-b")
        assert status == 404 and answer["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("given", "count"), [("x", 1), (["x", "y"], 2), ([1, 2, 3], 1), ([[1], [2]], 2)])
async def test_embeddings_are_one_for_each_input(sim: Simulator, ask: Any, given: Any, count: int) -> None:
    body = {"model": "sim-1", "input": given, "dimensions": 16}
    status, answer = await ask(sim, "POST", "/embeddings", body)
    vectors = [one["embedding"] for one in answer["data"]]
    assert status == 200 and len(vectors) == count and all(len(vector) == 16 for vector in vectors)
    _, packed = await ask(sim, "POST", "/embeddings", {**body, "encoding_format": "base64"})
    unpacked = [list(struct.unpack("<16f", base64.b64decode(one["embedding"]))) for one in packed["data"]]
    assert unpacked == vectors
    assert sim.turns[-1].path == "/v1/embeddings" and sim.turns[-1].outcome == "completed"


async def test_embeddings_meet_faults(sim: Simulator, ask: Any) -> None:
    sim.faults.set("A", "insufficient_quota", times=1)
    assert (await ask(sim, "POST", "/embeddings", {"model": "sim-1", "input": "x"}))[0] == 429
    assert (await ask(sim, "POST", "/embeddings", {"model": "sim-1"}))[0] == 400
