"""Responses in the background: they outlive their client, are replayed, cancelled, deleted, and meet faults."""

from typing import Any

import aiohttp
import pytest

from broker.simulator import Fault, Simulator

AUTH = {"Authorization": "Bearer sk-sim-a"}
TASK = {"model": "sim-1", "input": "hello", "background": True}
LONG = {**TASK, "input": "hello [[slow:20]] [[deltas:500]]"}


async def begin(http: aiohttp.ClientSession, sim: Simulator, body: Any) -> tuple[aiohttp.ClientResponse, str]:
    """A stream in the background, read up to its first event, and the id of its response."""
    answer = await http.post(sim.base_url + "/responses", headers=AUTH, json={**body, "stream": True})
    assert await answer.content.readline() == b"event: response.created\n"
    return answer, str(sim.turns[-1].response_id)


async def test_response_is_queued_at_once_and_runs_on(sim: Simulator, ask: Any, wait_until: Any) -> None:
    status, queued = await ask(sim, "POST", "/responses", TASK)
    assert (status, queued["status"], queued["output"]) == (200, "queued", [])
    await wait_until(lambda: sim.turns[-1].outcome == "completed")
    _, done = await ask(sim, "GET", f"/responses/{queued['id']}")
    assert done["status"] == "completed" and done["output"][-1]["content"][0]["text"].startswith("ctx=")
    assert (await ask(sim, "POST", "/responses", {**TASK, "previous_response_id": queued["id"]}))[0] == 200


async def test_response_is_in_progress_meanwhile(sim: Simulator, ask: Any) -> None:
    _, queued = await ask(sim, "POST", "/responses", LONG)
    assert (await ask(sim, "GET", f"/responses/{queued['id']}"))[1]["status"] == "in_progress"


async def test_client_that_leaves_does_not_stop_it(
    sim: Simulator, http: aiohttp.ClientSession, ask: Any, stream: Any, wait_until: Any
) -> None:
    answer, response_id = await begin(http, sim, {**LONG, "input": "hello [[slow:1]] [[deltas:30]]"})
    answer.close()
    await wait_until(lambda: sim.turns[-1].outcome != "active")
    assert sim.turns[-1].outcome == "completed"
    assert (await ask(sim, "GET", f"/responses/{response_id}"))[1]["status"] == "completed"


async def test_events_are_replayed_from_a_number_on(sim: Simulator, ask: Any, stream: Any) -> None:
    heard = await stream(sim, "POST", "/responses", {**TASK, "stream": True})
    assert [event["type"] for event in heard][:3] == ["response.created", "response.queued", "response.in_progress"]
    assert [event["sequence_number"] for event in heard] == list(range(len(heard)))
    path = f"/responses/{heard[0]['response']['id']}?stream=true"
    assert await stream(sim, "GET", path) == heard
    assert await stream(sim, "GET", f"{path}&starting_after=4") == heard[5:]


async def test_running_response_is_followed_to_its_end(sim: Simulator, ask: Any, stream: Any) -> None:
    _, queued = await ask(sim, "POST", "/responses", {**TASK, "input": "x [[slow:2]] [[deltas:30]]"})
    assert sim.turns[-1].outcome == "active"
    heard = await stream(sim, "GET", f"/responses/{queued['id']}?stream=true")
    assert heard[0]["type"] == "response.created" and heard[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in heard] == list(range(len(heard)))


async def test_running_response_is_cancelled(
    sim: Simulator, http: aiohttp.ClientSession, ask: Any, wait_until: Any
) -> None:
    answer, response_id = await begin(http, sim, LONG)
    status, cancelled = await ask(sim, "POST", f"/responses/{response_id}/cancel")
    assert (status, cancelled["status"]) == (200, "cancelled") and sim.turns[-1].outcome == "cancelled"
    assert b"response.completed" not in await answer.read()
    assert (await ask(sim, "GET", f"/responses/{response_id}"))[1]["status"] == "cancelled"
    assert (await ask(sim, "POST", f"/responses/{response_id}/cancel"))[1]["status"] == "cancelled"
    continued = {**TASK, "background": False, "previous_response_id": response_id}
    assert (await ask(sim, "POST", "/responses", continued))[0] == 400


async def test_finished_response_stays_what_it_is_when_cancelled(sim: Simulator, ask: Any, wait_until: Any) -> None:
    _, queued = await ask(sim, "POST", "/responses", TASK)
    await wait_until(lambda: sim.turns[-1].outcome == "completed")
    assert (await ask(sim, "POST", f"/responses/{queued['id']}/cancel"))[1]["status"] == "completed"


async def test_deleting_ends_a_running_response(sim: Simulator, ask: Any, wait_until: Any) -> None:
    _, queued = await ask(sim, "POST", "/responses", LONG)
    assert (await ask(sim, "DELETE", f"/responses/{queued['id']}"))[0] == 200
    assert sim.turns[-1].outcome == "cancelled"
    assert (await ask(sim, "GET", f"/responses/{queued['id']}"))[0] == 404


async def test_background_needs_a_store(sim: Simulator, ask: Any) -> None:
    status, body = await ask(sim, "POST", "/responses", {**TASK, "store": False})
    assert status == 400 and body["error"]["param"] == "background"


@pytest.mark.parametrize("streaming", [True, False])
async def test_early_fault_is_an_http_error(sim: Simulator, ask: Any, streaming: bool) -> None:
    sim.faults.set("A", "insufficient_quota")
    status, body = await ask(sim, "POST", "/responses", {**TASK, "stream": streaming})
    assert status == 429 and body["error"]["code"] == "insufficient_quota"


@pytest.mark.parametrize("deed", ["error", "failed"])
async def test_late_fault_is_told_by_the_response(sim: Simulator, ask: Any, wait_until: Any, deed: str) -> None:
    sim.faults.set("A", "server_error", at="after_deltas", do=deed)
    _, queued = await ask(sim, "POST", "/responses", TASK)
    await wait_until(lambda: sim.turns[-1].outcome != "active")
    _, failed = await ask(sim, "GET", f"/responses/{queued['id']}")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")


@pytest.mark.parametrize("deed", ["reset", "close"])
async def test_cut_connection_is_taken_up_again(
    sim: Simulator, http: aiohttp.ClientSession, stream: Any, deed: str
) -> None:
    sim.faults.set("A", Fault(at="after_deltas", do=deed, after=2, times=1))
    answer, response_id = await begin(http, sim, TASK)
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await answer.read()
    heard = await stream(sim, "GET", f"/responses/{response_id}?stream=true&starting_after=0")
    assert heard[0]["sequence_number"] == 1 and heard[-1]["type"] == "response.completed"


async def test_reset_before_anything_was_said_ends_it(sim: Simulator, ask: Any) -> None:
    sim.faults.set("A", Fault(at="before_created", do="reset"))
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await ask(sim, "POST", "/responses", TASK)
    assert sim.turns[-1].outcome == "lost"


async def test_vendor_stops_with_a_response_in_the_background(sim: Simulator, ask: Any) -> None:
    await ask(sim, "POST", "/responses", LONG)
    await sim.stop()
    assert sim.turns[-1].outcome == "lost"
