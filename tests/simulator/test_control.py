"""A simulator that is looked at and broken from another process."""

import asyncio
import socket
from typing import Any

import aiohttp
import pytest

from broker.simulator import SimCredential, Simulator, parse_credentials, serve


async def arm(http: aiohttp.ClientSession, sim: Simulator, body: Any) -> tuple[int, Any]:
    async with http.put(sim.control_url + "/faults", json=body) as answer:
        return answer.status, await answer.json()


async def look(http: aiohttp.ClientSession, sim: Simulator, path: str) -> Any:
    async with http.get(sim.control_url + path) as answer:
        assert answer.status == 200
        return await answer.json()


async def test_fault_is_armed_and_cleared_from_outside(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    status, armed = await arm(http, sim, {"credential": "A", "preset": "usage_limit_reached", "resets_in": 5})
    assert status == 200 and armed["fired"] == 0
    assert (await raw.refused())["error"]["resets_in_seconds"] == 5
    assert [fault["fired"] for fault in (await look(http, sim, "/state"))["faults"]] == [1]
    async with http.delete(sim.control_url + "/faults?credential=A") as answer:
        assert answer.status == 200
    await raw.completed()


async def test_fault_without_a_preset_is_spelled_out(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    await arm(http, sim, {"credential": "*", "at": "after_created", "do": "failed", "code": "odd", "times": 1})
    assert (await raw.answer())[-1]["response"]["error"]["code"] == "odd"
    await raw.completed()


@pytest.mark.parametrize("body", [{"preset": "nonsense"}, {"at": "nonsense"}, {"colour": "red"}, [], "x"])
async def test_nonsense_is_not_armed(sim: Simulator, http: aiohttp.ClientSession, body: Any) -> None:
    assert (await arm(http, sim, body))[0] == 400
    assert sim.faults.armed == []


async def test_turns_are_shown_from_a_number_on(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    for text in ("one", "two", "three"):
        await raw.completed(text)
    turns = (await look(http, sim, "/turns?since=1"))["turns"]
    assert [turn["number"] for turn in turns] == [2, 3]
    assert turns[0]["input"][0]["content"][0]["text"] == "two" and turns[0]["outcome"] == "completed"
    async with http.delete(sim.control_url + "/turns") as answer:
        assert answer.status == 200
    assert (await look(http, sim, "/turns"))["turns"] == []


async def test_state_shows_sockets_and_no_secret(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    state = await look(http, sim, "/state")
    assert state["sockets"]["A"] == 1 and state["handshakes"] == 1
    assert "sk-sim" not in str(state) + str(await look(http, sim, "/handshakes"))


async def test_sockets_are_ended_from_outside(sim: Simulator, http: aiohttp.ClientSession, raw: Any) -> None:
    async with http.delete(sim.control_url + "/sockets?credential=A&do=close&code=1012") as answer:
        assert await answer.json() == {"sockets": 1}
    assert (await raw.receive()).data == 1012


async def test_simulator_serves_until_cancelled(http: aiohttp.ClientSession) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = asyncio.create_task(serve("127.0.0.1", port, [SimCredential("A", "sk")]))
    async with asyncio.timeout(5):
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{port}/_sim/state") as answer:
                    assert answer.status == 200
                    break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.002)
    process.cancel()
    await asyncio.gather(process, return_exceptions=True)
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(f"http://127.0.0.1:{port}/_sim/state")


def test_credentials_are_read_from_text() -> None:
    assert parse_credentials(["A:sk-a:org-a", "B:sk-b", "C:sk-c:org-c:m1,m2"]) == [
        SimCredential("A", "sk-a", "org-a", None),
        SimCredential("B", "sk-b", "org", None),
        SimCredential("C", "sk-c", "org-c", ["m1", "m2"]),
    ]


@pytest.mark.parametrize("specs", [["A"], [":sk"], ["A:"], ["A:sk", "A:sk2"]])
def test_credentials_are_refused_when_unreadable(specs: list[str]) -> None:
    with pytest.raises(ValueError, match="credential"):
        parse_credentials(specs)


def test_secret_is_not_shown() -> None:
    assert "sk-a" not in repr(SimCredential("A", "sk-a"))


async def test_simulator_stops_at_once_and_starts_again_on_its_port(sim: Simulator, dial: Any) -> None:
    raw = await dial(sim)
    stored = await raw.completed("one")
    await raw.create("x [[slow:50]] [[deltas:1000]]")
    await raw.until("response.output_text.delta")
    port = int(sim.base_url.split(":")[2].split("/")[0])
    async with asyncio.timeout(3):
        await sim.stop()
    assert sim.sockets["A"] == 0 and sim.turns[-1].outcome == "lost"
    await sim.start(port=port)
    await (await dial(sim)).completed("two", previous_response_id=stored["id"])
