"""The client's transcript, its checks, and how it loses and regains connections."""

import asyncio
import base64
import hashlib
from typing import Any

import pytest

from broker.simulator import SessionClient, Simulator, TurnResult
from broker.simulator.context import Context


async def test_client_keeps_a_chain_of_increments(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    for text in ("one", "two", "three"):
        result = await client.turn(text)
        assert result.ok and result.digest_ok, result.problems
    seen = sim.turns[-1]
    assert [len(turn.input) for turn in sim.turns] == [1, 1, 1]
    assert seen.previous_response_id == sim.turns[1].response_id
    assert [item.get("role") for item in seen.context if item["type"] == "message"] == ["user", "assistant"] * 2 + [
        "user"
    ]


async def test_client_sends_the_whole_transcript_when_not_incremental(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    await client.turn("one")
    result = await client.turn("two", incremental=False)
    assert result.ok, result.problems
    assert sim.turns[-1].previous_response_id is None
    assert len(sim.turns[-1].input) == 4


async def test_client_answers_tool_calls(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    first = await client.turn("please [[call:search]] and [[call:read]]")
    assert first.ok and [call["name"] for call in first.calls] == ["search", "read"], first.problems
    second = await client.tool_turn()
    assert second.ok and second.text.startswith("ctx="), second.problems
    assert (await client.turn("next", incremental=False)).ok


async def test_client_runs_lanes_side_by_side(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    results = await asyncio.gather(*(client.turn(f"hi {lane} [[slow:1]]", lane=lane) for lane in ("x", "y", None)))
    assert all(result.ok for result in results), [result.problems for result in results]
    again = await asyncio.gather(*(client.turn("more", lane=lane) for lane in ("x", "y", None)))
    assert all(result.ok for result in again), [result.problems for result in again]


async def test_client_forks_from_an_earlier_turn(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    root = await client.turn("root")
    fork = await client.turn("fork", lane="f", parent=root)
    trunk = await client.turn("trunk")
    assert fork.ok and trunk.ok, fork.problems + trunk.problems
    assert fork.parent is root and trunk.parent is root


async def test_client_reports_a_refused_handshake(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim, "sk-unknown")
    assert not client.connected and client.handshake_status == 401
    result = await client.turn("hello")
    assert not result.ok and result.problems == ["not connected"]


async def test_client_gives_up_when_the_vendor_is_silent(sim: Simulator, new_client: Any) -> None:
    sim.faults.set("A", "server_error", do="silence")
    client = await new_client(sim, timeout=0.05)
    result = await client.turn("hello")
    assert result.terminal is None and result.problems == ["no event for 0.05 s"]


async def test_client_retries_after_an_error(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    await client.turn("one")
    sim.faults.set("A", "server_error", times=1)
    failed = await client.turn("two")
    assert failed.error_code == "server_error" and failed.error is not None and failed.error["status"] == 500
    evicted = await client.retry()
    assert evicted.error_code == "previous_response_not_found"
    assert (await client.retry(incremental=False)).ok
    assert (await client.turn("three")).ok


async def test_client_ends_its_connection_abruptly_or_cleanly(sim: Simulator, new_client: Any, wait_until: Any) -> None:
    client = await new_client(sim)
    assert sim.sockets["A"] == 1
    await client.kill()
    await wait_until(lambda: sim.sockets["A"] == 0)
    assert await client.connect()
    await client.close()
    await wait_until(lambda: sim.sockets["A"] == 0)


async def test_client_notices_events_after_the_end(sim: Simulator, new_client: Any, wait_until: Any) -> None:
    client = await new_client(sim)
    sim.faults.set("A", "server_is_overloaded", do="double", at="after_created")
    result = await client.turn("hello")
    await wait_until(lambda: result.problems)
    assert result.problems == ["response.failed after error"]


async def test_client_notices_a_context_that_is_not_its_own(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    first = await client.turn("one")
    first.after = Context().grown([{"role": "user", "content": "something else"}])
    second = await client.turn("two")
    assert not second.ok and not second.digest_ok
    assert "answered from context" in second.problems[0]


async def test_client_follows_a_steered_turn(sim: Simulator, new_client: Any, wait_until: Any) -> None:
    client = await new_client(sim)
    turn = asyncio.create_task(client.turn("long [[slow:20]] [[deltas:200]]", lane="s"))
    await wait_until(lambda: client.results.get("s") and client.results["s"].text)
    await client.steer("rather this", lane="s")
    steered = await turn
    assert steered.ok and steered.terminal == "response.incomplete", steered.problems
    assert steered.successor is not None and steered.successor.ok, steered.successor
    assert (await client.turn("on", lane="s")).ok


async def test_client_sends_its_headers_and_session(sim: Simulator, new_client: Any) -> None:
    await new_client(sim, session_id="s-1", headers={"X-Extra": "yes"})
    seen = sim.handshakes[-1].headers
    assert seen["x-session-id"] == "s-1" and seen["x-extra"] == "yes" and "authorization" not in seen


async def test_killed_connection_is_a_reset_for_the_other_side() -> None:
    ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{upgrade}Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n\r\n".encode())
        try:
            ending.set_result(f"{len(await reader.read())} bytes, then an orderly end")
        except ConnectionResetError:
            ending.set_result("reset")
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        client = SessionClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "sk", timeout=5)
        assert await client.connect()
        await client.kill()
        async with asyncio.timeout(5):
            assert await ending == "reset"


CREATED = {"type": "response.created", "sequence_number": 0, "response": {"id": "r"}}
COMPLETED = {"type": "response.completed", "sequence_number": 1, "response": {"id": "r"}}


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([{**CREATED, "sequence_number": 1}], "response.created starts at sequence_number 1"),
        ([CREATED, {"type": "response.in_progress", "sequence_number": 0}], "sequence_number 0 after 0"),
        ([CREATED, {"type": "response.in_progress"}], "response.in_progress without sequence_number"),
        ([CREATED, {**CREATED, "sequence_number": 1}], "a second response.created"),
        ([{**COMPLETED, "sequence_number": 0}], "response.completed without response.created"),
        ([CREATED, {**COMPLETED, "response": {"id": "q"}}], "response.completed names q, created named r"),
        ([CREATED, COMPLETED, {**COMPLETED, "sequence_number": 2}], "response.completed after response.completed"),
        ([CREATED, COMPLETED], "the answer says nothing of its context"),
        (
            [CREATED, {**COMPLETED, "response": {"id": "r", "output": [{"id": "m"}]}}],
            "the terminal event lists other items than were sent",
        ),
    ],
)
def test_result_names_what_is_wrong(events: list[dict[str, Any]], problem: str) -> None:
    result = TurnResult(None, None, [], True, {})
    for event in events:
        result.observe(event, 0.0)
    assert problem in result.problems and not result.ok
