"""The vendor over plain HTTP: JSON, server-sent events, models, compaction, conversations."""

from typing import Any

import aiohttp
import orjson
import pytest

from broker.simulator import Fault, Simulator

AUTH = {"Authorization": "Bearer sk-sim-a"}
HELLO = {"model": "sim-1", "input": "hello"}


async def post(http: aiohttp.ClientSession, sim: Simulator, body: Any, path: str = "/responses") -> tuple[int, Any]:
    async with http.post(sim.base_url + path, headers=AUTH, json=body) as answer:
        return answer.status, await answer.json()


async def stream(http: aiohttp.ClientSession, sim: Simulator, **fields: Any) -> list[dict[str, Any]]:
    body = {**HELLO, **fields, "stream": True}
    async with http.post(sim.base_url + "/responses", headers=AUTH, json=body) as answer:
        assert answer.status == 200 and answer.content_type == "text/event-stream"
        blocks = (await answer.read()).decode().split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_json_answer_is_a_whole_response(sim: Simulator, http: aiohttp.ClientSession) -> None:
    status, response = await post(http, sim, HELLO)
    assert status == 200 and response["status"] == "completed"
    assert response["output"][-1]["content"][0]["text"].startswith("ctx=")
    assert sim.turns[-1].transport == "json" and sim.turns[-1].socket is None


async def test_stream_has_the_events_of_the_websocket(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    streamed, framed = await stream(http, sim), await raw.answer()
    assert [event["type"] for event in streamed] == [event["type"] for event in framed]
    assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
    assert sim.turns[0].transport == "sse"


async def test_stored_response_continues_over_http_and_websocket(
    sim: Simulator, http: aiohttp.ClientSession, raw: Any
) -> None:
    _, first = await post(http, sim, HELLO)
    second = await raw.completed("two", previous_response_id=first["id"])
    await post(http, sim, {**HELLO, "previous_response_id": second["id"]})
    assert len(sim.turns[-1].context) == 7


async def test_unstored_response_does_not_continue_over_http(sim: Simulator, http: aiohttp.ClientSession) -> None:
    _, first = await post(http, sim, {**HELLO, "store": False})
    status, body = await post(http, sim, {**HELLO, "previous_response_id": first["id"]})
    assert status == 400 and body["error"]["code"] == "previous_response_not_found"
    assert body["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize("field", ["stream_id", "generate"])
async def test_websocket_fields_are_refused_over_http(sim: Simulator, http: aiohttp.ClientSession, field: str) -> None:
    status, body = await post(http, sim, {**HELLO, field: "x"})
    assert status == 400 and body["error"]["param"] == field


async def test_unknown_key_is_refused(sim: Simulator, http: aiohttp.ClientSession) -> None:
    async with http.post(sim.base_url + "/responses", headers={"Authorization": "Bearer no"}, json=HELLO) as answer:
        assert answer.status == 401 and (await answer.json())["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("at", ["handshake", "before_created"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_early_fault_is_an_http_error(
    sim: Simulator, http: aiohttp.ClientSession, at: str, streaming: bool
) -> None:
    sim.faults.set("A", "insufficient_quota", at=at, times=1)
    status, body = await post(http, sim, {**HELLO, "stream": streaming})
    assert status == 429 and body["error"]["code"] == "insufficient_quota"
    assert (await post(http, sim, HELLO))[0] == 200


async def test_late_fault_is_a_flat_error_in_the_stream(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.set("A", "server_error", at="after_created")
    last = (await stream(http, sim))[-1]
    assert last["code"] == "server_error" and last["sequence_number"] == 2 and "error" not in last


async def test_failed_response_ends_the_stream(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.set("A", "server_is_overloaded", at="after_deltas", after=2, do="failed")
    last = (await stream(http, sim))[-1]
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "server_is_overloaded"


async def test_failed_response_is_a_json_answer(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.faults.set("A", "server_error", at="after_created", do="failed")
    status, body = await post(http, sim, HELLO)
    assert status == 200 and body["status"] == "failed"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(at="after_deltas", do="reset"),
        Fault(at="after_deltas", do="close"),
        Fault(at="after_created", do="garbage", variant="half"),
    ],
)
async def test_stream_can_be_cut(sim: Simulator, http: aiohttp.ClientSession, fault: Fault) -> None:
    sim.faults.set("A", fault)
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await stream(http, sim)
    assert sim.turns[-1].outcome == "lost"


async def test_silent_request_ends_when_the_client_leaves(
    sim: Simulator, http: aiohttp.ClientSession, wait_until: Any
) -> None:
    sim.faults.set("A", Fault(at="after_created", do="silence"))
    async with http.post(sim.base_url + "/responses", headers=AUTH, json={**HELLO, "stream": True}) as answer:
        assert await answer.content.readline() == b"event: response.created\n"
        assert sim.turns[-1].outcome == "active"
        answer.close()
    await wait_until(lambda: sim.turns[-1].outcome == "lost")


@pytest.mark.parametrize(("keep_alive", "connections"), [(75.0, 1), (0.01, 2)])
async def test_idle_connection_is_kept_for_a_while(
    new_simulator: Any, http: aiohttp.ClientSession, wait_until: Any, keep_alive: float, connections: int
) -> None:
    sim = await new_simulator(keep_alive=keep_alive)
    await post(http, sim, HELLO)
    if connections > 1:
        await wait_until(lambda: sim.connections == 0)
    await post(http, sim, HELLO)
    assert len({seen.port for seen in sim.handshakes}) == connections


async def test_models_are_those_of_the_credential(sim: Simulator, http: aiohttp.ClientSession) -> None:
    async with http.get(sim.base_url + "/models", headers={"Authorization": "Bearer sk-sim-b"}) as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == ["sim-2"]


async def test_compaction_gives_a_window_to_go_on_from(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    status, compacted = await post(http, sim, HELLO, "/responses/compact")
    assert status == 200 and compacted["object"] == "response.compaction"
    await raw.completed([*compacted["output"], {"role": "user", "content": "on"}], tools=[])
    assert (await post(http, sim, {"input": "x"}, "/responses/compact"))[0] == 400


async def test_conversation_can_be_created(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    status, conversation = await post(http, sim, {"items": [{"role": "user", "content": "before"}]}, "/conversations")
    assert status == 200
    await raw.completed("now", conversation=conversation["id"])
    assert len(sim.turns[-1].context) == 2
