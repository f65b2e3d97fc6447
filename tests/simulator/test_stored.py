"""Stored responses over HTTP: fetched, listed, deleted, and to whom they belong."""

from typing import Any

import pytest

from broker.simulator import Simulator

HELLO = {"model": "sim-1", "input": "hello"}


async def test_stored_response_is_fetched_as_it_was_answered(sim: Simulator, ask: Any) -> None:
    _, created = await ask(sim, "POST", "/responses", HELLO)
    assert await ask(sim, "GET", f"/responses/{created['id']}") == (200, created)
    assert (sim.handshakes[-1].method, sim.handshakes[-1].credential) == ("GET", "A")
    assert sim.handshakes[-1].path == f"/v1/responses/{created['id']}"


async def test_response_of_a_websocket_is_fetched_over_http(sim: Simulator, ask: Any, raw: Any) -> None:
    created = await raw.completed()
    assert (await ask(sim, "GET", f"/responses/{created['id']}"))[1] == created


async def test_failed_response_is_fetched(sim: Simulator, ask: Any) -> None:
    sim.faults.set("A", "server_error", at="after_deltas", after=1, do="failed", times=1)
    _, failed = await ask(sim, "POST", "/responses", HELLO)
    assert (await ask(sim, "GET", f"/responses/{failed['id']}"))[1]["status"] == "failed"


@pytest.mark.parametrize(
    ("method", "rest"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
)
async def test_unstored_response_is_not_found(sim: Simulator, ask: Any, method: str, rest: str) -> None:
    _, created = await ask(sim, "POST", "/responses", {**HELLO, "store": False})
    status, body = await ask(sim, method, f"/responses/{created['id']}{rest}")
    assert status == 404 and body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"] == f"Response with id '{created['id']}' not found."


@pytest.mark.parametrize(("scope", "status"), [("boundary", 200), ("credential", 404)])
async def test_response_belongs_to_its_scope(new_simulator: Any, ask: Any, scope: str, status: int) -> None:
    sim = await new_simulator(store_scope=scope)
    _, created = await ask(sim, "POST", "/responses", HELLO)
    path = f"/responses/{created['id']}"
    assert (await ask(sim, "GET", path, secret="sk-sim-a2"))[0] == status
    assert (await ask(sim, "GET", path, secret="sk-sim-c"))[0] == 404
    continued = {**HELLO, "previous_response_id": created["id"]}
    assert (await ask(sim, "POST", "/responses", continued, secret="sk-sim-a2"))[0] == (200 if status == 200 else 400)
    assert (await ask(sim, "GET", path))[0] == 200


async def test_deleted_response_is_gone_for_continuation_too(sim: Simulator, ask: Any, raw: Any) -> None:
    created = await raw.completed()
    path = f"/responses/{created['id']}"
    assert await ask(sim, "DELETE", path) == (200, {"id": created["id"], "object": "response", "deleted": True})
    assert (await ask(sim, "GET", path))[0] == 404
    assert (await ask(sim, "DELETE", path))[0] == 404
    # The connection that made it still has it in its memory.
    refused = await raw.refused(previous_response_id=created["id"])
    assert refused["error"]["code"] == "previous_response_not_found"


async def test_input_items_are_the_whole_context(sim: Simulator, ask: Any) -> None:
    _, first = await ask(sim, "POST", "/responses", HELLO)
    _, second = await ask(sim, "POST", "/responses", {**HELLO, "input": "two", "previous_response_id": first["id"]})
    _, listed = await ask(sim, "GET", f"/responses/{second['id']}/input_items?order=asc")
    assert listed["object"] == "list" and not listed["has_more"]
    assert [item["type"] for item in listed["data"]] == ["message", "reasoning", "message", "message"]
    assert all(item["id"] for item in listed["data"]) and listed["first_id"] == listed["data"][0]["id"]


async def test_input_items_come_in_pages_newest_first(sim: Simulator, ask: Any) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(5)]
    _, created = await ask(sim, "POST", "/responses", {**HELLO, "input": items})
    path = f"/responses/{created['id']}/input_items?limit=2"
    _, first = await ask(sim, "GET", path)
    _, second = await ask(sim, "GET", f"{path}&after={first['last_id']}")
    _, third = await ask(sim, "GET", f"{path}&after={second['last_id']}")
    pages = [[item["content"] for item in page["data"]] for page in (first, second, third)]
    assert pages == [["4", "3"], ["2", "1"], ["0"]]
    assert [page["has_more"] for page in (first, second, third)] == [True, True, False]


async def test_synchronous_response_is_not_cancelled_nor_streamed(sim: Simulator, ask: Any) -> None:
    _, created = await ask(sim, "POST", "/responses", HELLO)
    assert (await ask(sim, "POST", f"/responses/{created['id']}/cancel"))[0] == 400
    assert (await ask(sim, "GET", f"/responses/{created['id']}?stream=true"))[0] == 400


async def test_input_tokens_are_those_of_the_answer(sim: Simulator, ask: Any) -> None:
    _, created = await ask(sim, "POST", "/responses", HELLO)
    follow = {**HELLO, "previous_response_id": created["id"]}
    status, counted = await ask(sim, "POST", "/responses/input_tokens", follow)
    _, answered = await ask(sim, "POST", "/responses", follow)
    tokens = answered["usage"]["input_tokens"]
    assert (status, counted) == (200, {"object": "response.input_tokens", "input_tokens": tokens})
    assert [turn.path for turn in sim.turns][1:] == ["/v1/responses/input_tokens", "/v1/responses"]


@pytest.mark.parametrize("path", ["/responses/input_tokens", "/responses/compact"])
async def test_other_work_meets_faults_like_turns(sim: Simulator, ask: Any, path: str) -> None:
    sim.faults.set("A", "insufficient_quota", times=1)
    status, body = await ask(sim, "POST", path, HELLO)
    assert status == 429 and body["error"]["code"] == "insufficient_quota"
    assert (sim.turns[-1].path, sim.turns[-1].outcome) == (f"/v1{path}", "error")
    assert (await ask(sim, "POST", path, HELLO))[0] == 200


async def test_model_is_shown_or_not_found(sim: Simulator, ask: Any) -> None:
    assert (await ask(sim, "GET", "/models/sim-2", secret="sk-sim-b"))[1]["id"] == "sim-2"
    status, body = await ask(sim, "GET", "/models/sim-1", secret="sk-sim-b")
    assert status == 404 and body["error"]["code"] == "model_not_found"


async def test_conversation_is_shown_changed_and_deleted(sim: Simulator, ask: Any) -> None:
    _, created = await ask(sim, "POST", "/conversations", {"metadata": {"a": "1"}})
    path = f"/conversations/{created['id']}"
    assert await ask(sim, "GET", path) == (200, created) and created["metadata"] == {"a": "1"}
    assert (await ask(sim, "POST", path, {"metadata": {"a": "2"}}))[1]["metadata"] == {"a": "2"}
    assert (await ask(sim, "DELETE", path))[1]["deleted"] is True
    status, body = await ask(sim, "GET", path)
    assert status == 404 and body["error"]["code"] == "conversation_not_found"
    assert (await ask(sim, "POST", "/responses", {**HELLO, "conversation": created["id"]}))[0] == 404


async def test_items_of_a_conversation_are_listed_and_added(sim: Simulator, ask: Any) -> None:
    _, created = await ask(sim, "POST", "/conversations", {"items": [{"role": "user", "content": "one"}]})
    path = f"/conversations/{created['id']}/items"
    _, added = await ask(sim, "POST", path, {"items": [{"role": "user", "content": "two"}]})
    assert [item["content"] for item in added["data"]] == ["two"]
    _, listed = await ask(sim, "GET", f"{path}?order=asc")
    assert [item["content"] for item in listed["data"]] == ["one", "two"] and listed["data"][1] == added["data"][0]
    await ask(sim, "POST", "/responses", {**HELLO, "conversation": created["id"]})
    assert len(sim.turns[-1].context) == 3
    assert len((await ask(sim, "GET", path))[1]["data"]) == 5
    assert (await ask(sim, "GET", path, secret="sk-sim-c"))[0] == 404


async def test_a_count_does_not_hold_the_conversation(sim: Simulator, ask: Any) -> None:
    body = {**HELLO, "conversation": sim.create_conversation("org-a")}
    assert (await ask(sim, "POST", "/responses/input_tokens", body))[0] == 200
    assert (await ask(sim, "POST", "/responses", body))[0] == 200
