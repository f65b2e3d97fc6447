"""The agent over HTTP: its transcript, its checks, and what it makes of answers that are none."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from broker.simulator import Fault, HttpClient, Simulator
from broker.simulator.context import Context

Serve = Callable[[str, str], Awaitable[HttpClient]]


@pytest.mark.parametrize("streamed", [True, False])
async def test_agent_keeps_a_chain_of_increments(sim: Simulator, new_agent: Any, streamed: bool) -> None:
    agent = await new_agent(sim, streamed=streamed)
    for text in ("one", "two", "three"):
        result = await agent.turn(text, store=True)
        assert result.ok and result.digest_ok and result.status == 200, result.problems
    assert [len(turn.input) for turn in sim.turns] == [1, 1, 1] and len(sim.turns[-1].context) == 7
    assert {turn.transport for turn in sim.turns} == {"sse" if streamed else "json"}


@pytest.mark.parametrize("streamed", [True, False])
async def test_agent_resends_its_transcript_where_nothing_is_stored(
    sim: Simulator, new_agent: Any, streamed: bool
) -> None:
    agent = await new_agent(sim, streamed=streamed)
    await agent.turn("one")
    lost = await agent.turn("two")
    assert lost.error_code == "previous_response_not_found" and lost.status == 400 and not lost.problems
    assert (await agent.retry(incremental=False)).ok
    assert len(sim.turns[-1].input) == 4


@pytest.mark.parametrize("streamed", [True, False])
async def test_agent_answers_tool_calls(sim: Simulator, new_agent: Any, streamed: bool) -> None:
    agent = await new_agent(sim, streamed=streamed)
    first = await agent.turn("please [[call:search]] and [[call:read]]", store=True)
    assert first.ok and [call["name"] for call in first.calls] == ["search", "read"], first.problems
    second = await agent.tool_turn()
    assert second.ok and second.text.startswith("ctx="), second.problems


async def test_agent_runs_lanes_side_by_side(sim: Simulator, new_agent: Any) -> None:
    agent = await new_agent(sim)
    for _ in range(2):
        results = await asyncio.gather(*(agent.turn("x", lane=lane, store=True) for lane in ("x", "y", None)))
        assert all(result.ok for result in results), [result.problems for result in results]
    assert all("stream_id" not in turn.frame_keys for turn in sim.turns)


async def test_session_is_named_and_headers_are_shown(sim: Simulator, new_agent: Any) -> None:
    agent = await new_agent(sim, session_id="sess_1", headers={"x-mine": "1"})
    result = await agent.turn("one")
    seen = sim.handshakes[-1].headers
    assert (seen["x-session-id"], seen["x-mine"]) == ("sess_1", "1")
    assert result.headers["x-request-id"] == agent.handshake_headers["x-request-id"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_agent_observes_errors_with_their_status(sim: Simulator, new_agent: Any, streamed: bool) -> None:
    sim.faults.set("A", "rate_limit_exceeded", times=1)
    agent = await new_agent(sim, streamed=streamed)
    result = await agent.turn("one")
    assert (result.status, result.terminal, result.error_code) == (429, "error", "rate_limit_exceeded")
    assert result.error is not None and result.error["status"] == 429 and result.headers["retry-after"] == "2"
    assert (await agent.retry()).ok


async def test_agent_observes_an_error_in_the_stream(sim: Simulator, new_agent: Any) -> None:
    sim.faults.set("A", "server_error", at="after_deltas", times=1)
    result = await (await new_agent(sim)).turn("one")
    assert (result.status, result.error_code, result.problems) == (200, "server_error", [])


@pytest.mark.parametrize("streamed", [True, False])
async def test_agent_observes_a_failed_response(sim: Simulator, new_agent: Any, streamed: bool) -> None:
    sim.faults.set("A", "server_error", at="after_deltas", do="failed")
    result = await (await new_agent(sim, streamed=streamed)).turn("one")
    assert (result.terminal, result.error_code, result.ok) == ("response.failed", "server_error", False)


async def test_agent_notices_a_lost_connection(sim: Simulator, new_agent: Any) -> None:
    sim.faults.set("A", Fault(at="after_deltas", do="reset"))
    result = await (await new_agent(sim)).turn("one")
    assert result.terminal is None and result.problems[0].startswith("the connection was lost")


async def test_agent_gives_up_when_the_vendor_is_silent(sim: Simulator, new_agent: Any) -> None:
    sim.faults.set("A", Fault(at="after_created", do="silence"))
    result = await (await new_agent(sim, timeout=0.05)).turn("one")
    assert result.terminal is None and result.problems[0].startswith("the connection was lost")


async def test_agent_notices_that_nobody_is_there(sim: Simulator, new_agent: Any) -> None:
    agent = await new_agent(sim)
    await sim.stop()
    assert (await agent.turn("one")).problems[0].startswith("the connection was lost")


async def test_agent_leaves_in_the_middle(sim: Simulator, new_agent: Any, wait_until: Any) -> None:
    agent = await new_agent(sim)
    turn = asyncio.create_task(agent.turn("long [[slow:20]] [[deltas:500]]"))
    await wait_until(lambda: agent.results.get(None) and agent.results[None].text)
    await agent.kill()
    await wait_until(lambda: sim.turns[-1].outcome == "lost")
    assert not (await turn).ok and not agent.connected
    assert (await agent.turn("again")).ok and agent.connected


async def test_agent_notices_a_context_that_is_not_its_own(sim: Simulator, new_agent: Any) -> None:
    agent = await new_agent(sim, streamed=False)
    first = await agent.turn("one", store=True)
    first.after = Context().grown([{"role": "user", "content": "something else"}])
    second = await agent.turn("two")
    assert not second.digest_ok and "answered from context" in second.problems[0]


@pytest.mark.parametrize("streamed", [True, False])
async def test_agent_sees_a_response_in_the_background_to_its_end(
    sim: Simulator, new_agent: Any, streamed: bool
) -> None:
    agent = await new_agent(sim, streamed=streamed)
    text = "one [[slow:5]] [[deltas:10]]"
    result = await agent.turn(text, store=True, extra={"background": True})
    assert result.ok and result.digest_ok, result.problems
    assert (await agent.turn("two", store=True)).ok


async def test_agent_asks_for_anything_else(sim: Simulator, new_agent: Any) -> None:
    agent = await new_agent(sim)
    result = await agent.turn("one", store=True)
    reply = await agent.call("GET", f"/responses/{result.response_id}/input_items", params={"order": "asc"})
    assert reply.status == 200 and len(reply.body["data"]) == 1
    assert (await agent.call("POST", "/embeddings", {"model": "sim-1", "input": "x"})).status == 200


# -- answers that no vendor gives --------------------------------------------------------------------------------

CREATED = 'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"r"}}\n\n'


@pytest.fixture
async def against(new_agent: Any) -> Any:
    """An agent whose every request is answered with one given body."""
    runners: list[web.AppRunner] = []

    async def start(body: str, content_type: str = "text/event-stream") -> HttpClient:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=body, content_type=content_type)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return HttpClient(f"http://127.0.0.1:{runner.addresses[0][1]}", "sk", timeout=2)

    agents: list[HttpClient] = []

    async def serve(body: str, content_type: str = "text/event-stream") -> HttpClient:
        agents.append(await start(body, content_type))
        return agents[-1]

    yield serve
    for agent in agents:
        await agent.close()
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (CREATED, "the answer ended before its end"),
        (CREATED + CREATED, "sequence_number 0 after 0"),
        (CREATED.replace("event: response.created", "event: other"), "an event named other of type response.created"),
        (CREATED + 'data: {"type":"error","error":{"code":"x"}}\n\n', "an error in the form of a WebSocket"),
        ("data: nonsense\n\n", "not JSON without sequence_number"),
        ("", "the answer ended before its end"),
    ],
)
async def test_agent_notices_a_broken_stream(against: Serve, body: str, problem: str) -> None:
    result = await (await against(body, "text/event-stream")).turn("one")
    assert problem in result.problems


async def test_agent_passes_over_comments_and_reads_any_line_ends(against: Serve) -> None:
    flat = 'data: {"type":"error","code":"x","message":"y"}\n\n'
    body = (": alive\n\n" + CREATED + ": alive\n\n" + flat).replace("\n", "\r\n")
    result = await (await against(body, "text/event-stream")).turn("one")
    assert (result.error_code, result.problems) == ("x", [])
    assert result.events == ["response.created", "error"]


async def test_agent_notices_json_where_it_wants_a_stream(against: Serve) -> None:
    body = '{"id":"r","status":"completed","output":[]}'
    result = await (await against(body, "application/json")).turn("one")
    assert result.problems[0] == "asked for a stream, got application/json"


async def test_agent_notices_a_page_where_it_wants_an_answer(against: Serve) -> None:
    result = await (await against("<html>hello</html>", "text/html")).turn("one")
    assert not result.ok and result.error is not None and "<html>" in result.error["message"]


async def test_agent_closes_with_its_connections(sim: Simulator, new_agent: Any, http: aiohttp.ClientSession) -> None:
    agent = await new_agent(sim)
    assert agent.connected
    await agent.close()
    assert not agent.connected
