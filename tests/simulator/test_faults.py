"""Every fault at every point, as a raw client sees it."""

import asyncio
from typing import Any

import aiohttp
import pytest

from broker.simulator import Fault, FaultBoard, Simulator, presets

AUTH = {"Authorization": "Bearer sk-sim-a"}
RESET = (aiohttp.ClientError, ConnectionError)


async def refused_upgrade(http: aiohttp.ClientSession, sim: Simulator) -> tuple[int, str, str]:
    headers = AUTH | {"Connection": "Upgrade", "Upgrade": "websocket"}
    async with http.get(sim.base_url + "/responses", headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def ends(raw: Any) -> Any:
    """The message with which the connection ended."""
    message = await raw.receive()
    while message.type is aiohttp.WSMsgType.TEXT:
        message = await raw.receive()
    return message


@pytest.mark.parametrize("name", sorted(presets))
async def test_preset_arrives_as_an_error_event(sim: Simulator, raw: Any, name: str) -> None:
    sim.faults.set("A", presets[name].but(at="before_created", do="error", body=None, times=1))
    event = await raw.refused()
    fault = presets[name]
    assert event["status"] == fault.status and event["error"]["code"] == fault.code
    assert event["error"]["type"] == fault.error_type and event["error"]["message"] == fault.message
    await raw.completed()


@pytest.mark.parametrize("name", sorted(presets))
async def test_preset_refuses_a_handshake(sim: Simulator, http: aiohttp.ClientSession, dial: Any, name: str) -> None:
    sim.faults.set("A", name, at="handshake", do="refuse", times=1)
    status, content_type, text = await refused_upgrade(http, sim)
    assert status == presets[name].status
    assert ("text/html" in content_type) == (name == "cloudflare_html") and text
    assert not sim.handshakes[-1].accepted and sim.handshakes[-1].status == status
    await (await dial(sim)).completed()


async def test_error_tells_when_the_limit_resets(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", "usage_limit_reached", resets_at=1_900_000_000, resets_in=60)
    error = (await raw.refused())["error"]
    assert (error["resets_at"], error["resets_in_seconds"], error["plan_type"]) == (1_900_000_000, 60, "pro")


async def test_error_carries_headers(sim: Simulator, raw: Any, http: aiohttp.ClientSession) -> None:
    sim.faults.set("A", "rate_limit_exceeded")
    assert (await raw.refused())["error"]["headers"]["retry-after"] == "2"
    async with http.post(sim.base_url + "/responses", headers=AUTH, json={"model": "sim-1"}) as answer:
        assert answer.status == 429 and answer.headers["Retry-After"] == "2"


async def test_error_can_lack_its_status(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", "server_error", omit_status=True)
    assert "status" not in await raw.refused()


async def test_error_can_be_replaced_as_a_whole(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", Fault(body={"type": "error", "status_code": 429, "code": "flat"}, times=1))
    assert await raw.refused() == {"type": "error", "status_code": 429, "code": "flat"}
    sim.faults.set("A", "cloudflare_html", at="before_created")
    await raw.create()
    assert (await raw.receive()).data.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("at", "before"),
    [("before_created", 0), ("after_created", 2), ("after_deltas", 9)],
)
async def test_fault_strikes_at_its_point(sim: Simulator, raw: Any, at: str, before: int) -> None:
    sim.faults.set("A", "server_error", at=at, after=3)
    events = await raw.answer()
    assert events[-1]["type"] == "error" and len(events) == before + 1
    assert events[-1].get("sequence_number") == (before or None)


async def test_fault_after_more_deltas_than_there_are_does_nothing(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", "server_error", at="after_deltas", after=5)
    await raw.completed("hello [[deltas:4]]")
    assert (await raw.answer("hello [[deltas:5]]"))[-1]["type"] == "error"


@pytest.mark.parametrize(("at", "sequence"), [("before_created", 0), ("after_created", 2)])
async def test_response_can_fail(sim: Simulator, raw: Any, at: str, sequence: int) -> None:
    sim.faults.set("A", "server_is_overloaded", at=at, do="failed")
    last = (await raw.answer(stream_id="x"))[-1]
    assert last["type"] == "response.failed" and last["sequence_number"] == sequence and last["stream_id"] == "x"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_is_overloaded"
    assert sim.turns[-1].outcome == "failed" and sim.turns[-1].error_code == "server_is_overloaded"


async def test_double_failure_is_an_error_and_then_a_failed_response(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", "server_is_overloaded", at="after_created", do="double")
    await raw.create()
    error, failed = (await raw.until("response.failed"))[2:]
    assert error["type"] == "error" and "status" not in error and error["sequence_number"] == 2
    assert error["error"]["headers"] == {"x-retry-metadata": "NO_MORE_RETRY"}
    assert failed["sequence_number"] == 3


async def test_silent_turn_holds_its_lane_only(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", "server_error", do="silence", at="after_created", times=1)
    await raw.create("held", stream_id="held")
    await raw.until("response.in_progress")
    await raw.create("behind", stream_id="held")
    events = await raw.answer("other", stream_id="other")
    assert {event["stream_id"] for event in events} == {"other"}
    assert [turn.outcome for turn in sim.turns] == ["active", "completed"]


@pytest.mark.parametrize("at", ["before_created", "after_created", "after_deltas"])
async def test_connection_can_be_reset(sim: Simulator, raw: Any, at: str, wait_until: Any) -> None:
    sim.faults.set("A", "server_error", at=at, do="reset")
    await raw.create()
    message = await ends(raw)
    assert message.type is not aiohttp.WSMsgType.CLOSE and raw.ws.close_code == 1006
    await wait_until(lambda: sim.turns[-1].outcome == "lost")


async def test_connection_can_be_closed_with_a_code(sim: Simulator, raw: Any, wait_until: Any) -> None:
    sim.faults.set("A", Fault(at="after_deltas", after=2, do="close", close_code=4402, message="out of credits"))
    await raw.create()
    message = await ends(raw)
    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4402, "out of credits")
    await wait_until(lambda: sim.turns[-1].outcome == "lost")


async def test_garbage_comes_between_events(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", Fault(at="after_created", do="garbage", times=1))
    await raw.create()
    await raw.until("response.in_progress")
    assert (await raw.receive()).data == "this is not JSON {"
    await raw.until("response.completed")
    sim.faults.set("A", Fault(at="after_created", do="garbage", variant="binary", times=1))
    await raw.create()
    await raw.until("response.in_progress")
    assert (await raw.receive()).type is aiohttp.WSMsgType.BINARY


async def test_half_a_frame_is_followed_by_a_reset(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", Fault(at="after_created", do="garbage", variant="half"))
    await raw.create()
    message = await ends(raw)
    assert message.type is not aiohttp.WSMsgType.CLOSE and raw.ws.close_code == 1006


async def test_dropped_continuation_is_not_found(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    sim.faults.set("A", Fault(do="drop_continuation", times=1))
    refused = await raw.refused("two", previous_response_id=first["id"], store=False)
    assert refused["error"]["code"] == "previous_response_not_found"


async def test_idle_fault_acts_at_once_on_idle_sockets(sim: Simulator, raw: Any, dial: Any) -> None:
    other = await dial(sim, "sk-sim-a2")
    sim.faults.set("A", Fault(at="idle", do="close", close_code=1001, times=1))
    assert (await raw.receive()).data == 1001
    await other.completed()


async def test_idle_fault_waits_for_a_busy_socket(sim: Simulator, raw: Any) -> None:
    await raw.create("x [[slow:5]] [[deltas:10]]")
    await raw.until("response.output_text.delta")
    sim.faults.set("A", Fault(at="idle", do="error", times=1))
    events = await raw.until("response.completed", "error")
    assert events[-1]["type"] == "response.completed"
    assert (await raw.event())["error"]["code"] == "server_error"


async def test_idle_drop_makes_the_next_increment_fail(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    armed = sim.faults.set("*", Fault(at="idle", do="drop_continuation", times=1))
    refused = await raw.refused("two", previous_response_id=first["id"], store=False)
    assert refused["error"]["code"] == "previous_response_not_found" and armed.fired == 1


async def test_idle_silence_answers_no_more(sim: Simulator, raw: Any, dial: Any, wait_until: Any) -> None:
    armed = sim.faults.set("A", Fault(at="idle", do="silence", times=1))
    await wait_until(lambda: armed.fired)
    await raw.create("unheard")
    await raw.ws.ping()
    await (await dial(sim)).completed("heard")
    assert [turn.input[0]["content"][0]["text"] for turn in sim.turns] == ["heard"]


async def test_handshake_can_hang(sim: Simulator, dial: Any, wait_until: Any) -> None:
    sim.faults.set("A", Fault(at="handshake", do="silence", times=1))
    hanging = asyncio.create_task(dial(sim))
    await wait_until(lambda: sim.handshakes)
    assert not hanging.done() and sim.handshakes[0].status is None
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    await (await dial(sim)).completed()


@pytest.mark.parametrize("do", ["reset", "garbage"])
async def test_handshake_can_be_cut(sim: Simulator, dial: Any, do: str) -> None:
    sim.faults.set("A", Fault(at="handshake", do=do))
    with pytest.raises(RESET):
        await dial(sim)


async def test_cut_connection_ends_with_a_tcp_reset(sim: Simulator) -> None:
    sim.faults.set("A", Fault(at="handshake", do="reset"))
    port = int(sim.base_url.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-sim-a\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(5):
            await reader.read()
    writer.close()


async def test_socket_can_be_closed_right_after_the_handshake(sim: Simulator, dial: Any) -> None:
    sim.faults.set("A", Fault(at="handshake", do="close", close_code=1008))
    raw = await dial(sim)
    assert (await raw.receive()).data == 1008


async def test_fault_counts_down(sim: Simulator, raw: Any) -> None:
    armed = sim.faults.set("A", "server_error", times=2)
    kinds = [(await raw.answer())[-1]["type"] for _ in range(3)]
    assert kinds == ["error", "error", "response.completed"] and armed.fired == 2 and armed.left == 0


async def test_fault_strikes_its_credential_only(sim: Simulator, raw: Any, dial: Any) -> None:
    sibling = await dial(sim, "sk-sim-a2")
    sim.faults.set("A2", "server_error")
    await raw.completed()
    await sibling.refused()
    sim.faults.clear("A2")
    await sibling.completed()


async def test_poisonous_request_is_refused_by_every_credential(sim: Simulator, raw: Any, dial: Any) -> None:
    sim.faults.set("*", "invalid_api_key", when="poison")
    for socket in (raw, await dial(sim, "sk-sim-a2"), await dial(sim, "sk-sim-c")):
        await socket.refused("some poison here")
        await socket.completed("harmless")
    sim.faults.clear()
    await raw.completed("some poison here")


async def test_fault_strikes_its_model_only(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", "model_not_found", model="sim-2")
    await raw.completed(model="sim-1")
    await raw.refused(model="sim-2")


def test_chance_is_repeatable() -> None:
    def strikes(seed: int) -> list[bool]:
        board = FaultBoard(seed)
        board.set("A", "server_error", probability=0.5)
        return [board.take("A", "before_created") is not None for _ in range(64)]

    assert strikes(1) == strikes(1) != strikes(2)
    assert 10 < sum(strikes(1)) < 54


def test_faults_add_up_or_replace_each_other() -> None:
    board = FaultBoard()
    board.set("A", "server_error", times=1)
    board.add("A", "slow_down", times=1)
    taken = [board.take("A", "before_created") for _ in range(3)]
    assert [fault and fault.code for fault in taken] == ["server_error", "slow_down", None]
    board.set("A", "token_revoked")
    assert [armed.fault.code for armed in board.armed] == ["token_revoked"]


@pytest.mark.parametrize("field", ["at", "do"])
def test_unknown_point_or_deed_is_an_error(field: str) -> None:
    with pytest.raises(ValueError, match="no such fault"):
        presets["server_error"].but(**{field: "nonsense"})


async def test_live_sockets_can_be_ended_while_busy(sim: Simulator, raw: Any, wait_until: Any) -> None:
    await raw.create("x [[slow:20]] [[deltas:500]]")
    await raw.until("response.output_text.delta")
    assert await sim.end_sockets("A") == 1
    assert (await ends(raw)).type is not aiohttp.WSMsgType.CLOSE
    await wait_until(lambda: sim.sockets["A"] == 0)
