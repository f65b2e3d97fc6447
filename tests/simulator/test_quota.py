"""Quota that is used up until a time, what the vendor tells of it, and who is refused at the door."""

import time
from typing import Any

import aiohttp
import pytest

from broker.simulator import SessionClient, Simulator, Telemetry

AUTH = {"Authorization": "Bearer sk-sim-a"}
HELLO = {"model": "sim-1", "input": "hello"}
LATER = 3600.0


async def post(http: aiohttp.ClientSession, sim: Simulator, path: str = "/responses", **fields: Any) -> int:
    async with http.post(sim.base_url + path, headers=AUTH, json=HELLO | fields) as answer:
        return answer.status


async def get(http: aiohttp.ClientSession, sim: Simulator, path: str = "/models") -> int:
    async with http.get(sim.base_url + path, headers=AUTH) as answer:
        return answer.status


async def models_head(http: aiohttp.ClientSession, sim: Simulator, secret: str = "sk-sim-a") -> dict[str, str]:
    """The limits in the head of an answer, with names in lower case."""
    async with http.get(sim.base_url + "/models", headers={"Authorization": f"Bearer {secret}"}) as answer:
        return limits_in(answer)


def limits_in(answer: aiohttp.ClientResponse) -> dict[str, str]:
    told = {name.lower(): value for name, value in answer.headers.items()}
    return {name: value for name, value in told.items() if name.startswith(("x-codex", "x-ratelimit"))}


# -- quota until a time ----------------------------------------------------------------------------------------


async def test_quota_is_used_up_until_its_time_and_free_after_it(sim: Simulator, raw: Any, wait_until: Any) -> None:
    until = time.time() + 0.3
    armed = sim.faults.set("A", "usage_limit_reached", resets_at=until, until=until)
    error = (await raw.refused())["error"]
    assert error["type"] == "usage_limit_reached" and error["resets_at"] == until
    assert "resets_in_seconds" not in error and armed.fired == 1
    await wait_until(lambda: time.time() >= until)
    await raw.completed()
    assert armed.fired == 1 and armed.left is None


async def test_quota_that_has_ended_lets_the_next_fault_act(sim: Simulator, raw: Any) -> None:
    sim.faults.set("A", "usage_limit_reached", until=time.time())
    sim.faults.add("A", "slow_down", until=time.time() + LATER)
    assert (await raw.refused())["error"]["code"] == "slow_down"


async def test_quota_refuses_creates_on_every_way_but_no_other_request(
    sim: Simulator, raw: Any, http: aiohttp.ClientSession
) -> None:
    sim.faults.set("A", "usage_limit_reached", until=time.time() + LATER)
    await raw.refused()
    await raw.refused(generate=False)
    assert [await post(http, sim), await post(http, sim, stream=True)] == [429, 429]
    assert await get(http, sim) == 200 and await post(http, sim, "/conversations", items=[]) == 200
    sim.faults.clear()
    await raw.completed(generate=False)


async def test_quota_until_a_time_is_set_from_outside(
    sim: Simulator, raw: Any, http: aiohttp.ClientSession, wait_until: Any
) -> None:
    until = time.time() + 0.3
    body = {"credential": "A", "preset": "usage_limit_reached", "resets_at": until, "until": until}
    async with http.put(sim.control_url + "/faults", json=body) as answer:
        assert answer.status == 200 and (await answer.json())["until"] == until
    await raw.refused()
    await wait_until(lambda: time.time() >= until)
    await raw.completed()


@pytest.mark.parametrize("until", ["soon", [1], True])
async def test_quota_until_nonsense_is_not_armed(sim: Simulator, http: aiohttp.ClientSession, until: object) -> None:
    async with http.put(sim.control_url + "/faults", json={"credential": "A", "until": until}) as answer:
        assert answer.status == 400
    assert sim.faults.armed == []


# -- what the vendor tells -------------------------------------------------------------------------------------


async def test_nothing_is_told_of_limits_unless_set(sim: Simulator, raw: Any, http: aiohttp.ClientSession) -> None:
    sim.tell_limits("C", used_percent=97)
    assert [event["type"] for event in await raw.answer()].count("codex.rate_limits") == 0
    assert not limits_in(raw.ws._response) and not await models_head(http, sim)


async def test_stream_tells_limits_right_after_created(sim: Simulator, raw: Any) -> None:
    resets_at = int(time.time() + LATER)
    sim.tell_limits("A", used_percent=97, resets_at=resets_at, secondary_percent=12.5)
    events = await raw.answer(stream_id="x")
    assert [event["type"] for event in events[:3]] == ["response.created", "codex.rate_limits", "response.in_progress"]
    told = events[1]
    assert told["stream_id"] == "x" and "sequence_number" not in told and told["plan_type"] == "pro"
    primary = told["rate_limits"]["primary"]
    assert LATER - 10 < primary.pop("reset_after_seconds") <= LATER
    assert primary == {"used_percent": 97, "window_minutes": 300, "reset_at": resets_at}
    assert told["rate_limits"]["secondary"] == {"used_percent": 12.5, "window_minutes": 10080}
    numbers = [event["sequence_number"] for event in events if event is not told]
    assert numbers == list(range(len(events) - 1))


async def test_stream_over_http_tells_limits_too(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.tell_limits("*", used_percent=50)
    body = HELLO | {"stream": True}
    async with http.post(sim.base_url + "/responses", headers=AUTH, json=body) as answer:
        named = [line for line in (await answer.text()).split("\n") if line.startswith("event: ")]
        assert limits_in(answer)["x-codex-primary-used-percent"] == "50"
    assert named[:2] == ["event: response.created", "event: codex.rate_limits"]


async def test_client_finds_nothing_wrong_with_told_limits(sim: Simulator, new_client: Any) -> None:
    sim.tell_limits("A", used_percent=97, resets_at=time.time() + LATER)
    client: SessionClient = await new_client(sim)
    assert client.handshake_headers["x-codex-primary-used-percent"] == "97"
    result = await client.turn("hello", lane="x")
    assert result.ok, result.problems
    assert result.events[1] == "codex.rate_limits"


async def test_upgrade_and_answers_tell_limits_in_the_style_of_codex(
    sim: Simulator, dial: Any, http: aiohttp.ClientSession
) -> None:
    sim.tell_limits("A", used_percent=97, resets_at=1_900_000_000, secondary_percent=3)
    expected = {
        "x-codex-primary-used-percent": "97",
        "x-codex-primary-window-minutes": "300",
        "x-codex-primary-reset-at": "1900000000",
        "x-codex-secondary-used-percent": "3",
        "x-codex-secondary-window-minutes": "10080",
    }
    assert limits_in((await dial(sim)).ws._response) == expected
    assert await models_head(http, sim) == expected
    assert await models_head(http, sim, "sk-sim-a2") == {}


async def test_answers_tell_limits_in_the_style_of_counts(sim: Simulator, http: aiohttp.ClientSession) -> None:
    sim.tell_limits("A", used_percent=97, resets_at=time.time() + 60, secondary_percent=120, style="x-ratelimit")
    told = await models_head(http, sim)
    reset = told.pop("x-ratelimit-reset-requests")
    assert reset.endswith("ms") and 50_000 < int(reset[:-2]) <= 60_000
    assert told == {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "30",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
    }


async def test_limits_are_told_on_one_way_only_if_wished(sim: Simulator, raw: Any, http: aiohttp.ClientSession) -> None:
    sim.tell_limits("A", used_percent=97, style="none")
    assert (await raw.answer())[1]["type"] == "codex.rate_limits" and not await models_head(http, sim)
    sim.tell_limits("A", used_percent=97, frames=False)
    assert (await raw.answer())[1]["type"] == "response.in_progress" and await models_head(http, sim)
    sim.tell_limits("A", None)
    assert (await raw.answer())[1]["type"] == "response.in_progress" and not await models_head(http, sim)


async def test_refused_turn_tells_limits_but_a_stranger_is_told_nothing(
    sim: Simulator, http: aiohttp.ClientSession
) -> None:
    sim.tell_limits("A", used_percent=100)
    sim.faults.set("A", "usage_limit_reached")
    async with http.post(sim.base_url + "/responses", headers=AUTH, json=HELLO) as answer:
        assert answer.status == 429 and limits_in(answer)["x-codex-primary-used-percent"] == "100"
    sim.faults.set("A", "invalid_api_key", at="handshake")
    assert await models_head(http, sim) == {}
    assert await models_head(http, sim, "unknown") == {}


def test_window_is_empty_after_its_end_and_a_new_one_runs() -> None:
    told = Telemetry(97, resets_at=1000.0, window_minutes=1)
    assert told.headers(999.0)["x-codex-primary-used-percent"] == "97"
    for now, resets_at in ((1000.0, "1060.0"), (1059.0, "1060.0"), (1060.0, "1120.0"), (1500.0, "1540.0")):
        headers = told.headers(now)
        assert (headers["x-codex-primary-used-percent"], headers["x-codex-primary-reset-at"]) == ("0", resets_at)


async def test_limits_are_told_and_hushed_from_outside(sim: Simulator, http: aiohttp.ClientSession) -> None:
    async with http.put(sim.control_url + "/limits", json={"credential": "A", "used_percent": 97}) as answer:
        assert answer.status == 200 and (await answer.json())["used_percent"] == 97
    assert (await models_head(http, sim))["x-codex-primary-used-percent"] == "97"
    async with http.delete(sim.control_url + "/limits?credential=B") as answer:
        assert answer.status == 200
    assert await models_head(http, sim)
    async with http.delete(sim.control_url + "/limits?credential=A") as answer:
        assert answer.status == 200
    assert not await models_head(http, sim)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"used_percent": "x"},
        {"used_percent": -1},
        {"used_percent": 1, "style": "x"},
        {"used_percent": 1, "y": 1},
    ],
)
async def test_nonsense_is_not_told(sim: Simulator, http: aiohttp.ClientSession, body: object) -> None:
    async with http.put(sim.control_url + "/limits", json=body) as answer:
        assert answer.status == 400
    assert not await models_head(http, sim)


# -- the door --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["error", "refuse"])
async def test_fault_at_the_handshake_refuses_every_request(
    sim: Simulator, http: aiohttp.ClientSession, new_client: Any, do: str
) -> None:
    sim.faults.set("A", "invalid_api_key", at="handshake", do=do)
    seen = [await get(http, sim), await post(http, sim)]
    seen += [await post(http, sim, path) for path in ("/responses/compact", "/conversations")]
    seen.append((await new_client(sim)).handshake_status)
    assert seen == [401] * 5 and sim.turns == []
    assert [door.status for door in sim.handshakes] == [401] * 5
    sim.faults.clear()
    assert await get(http, sim) == 200 and await post(http, sim) == 200


async def test_revoked_key_is_refused_until_its_time(
    sim: Simulator, http: aiohttp.ClientSession, wait_until: Any
) -> None:
    until = time.time() + 0.3
    sim.faults.set("A", "token_revoked", at="handshake", until=until)
    assert await get(http, sim) == 401
    await wait_until(lambda: time.time() >= until)
    assert await get(http, sim) == 200


async def test_requests_are_recorded_with_what_was_asked(sim: Simulator, raw: Any, http: aiohttp.ClientSession) -> None:
    before = time.time()
    await get(http, sim, "/models?limit=1")
    await post(http, sim)
    await post(http, sim, "/conversations", items=[])
    async with http.get(sim.base_url + "/models", headers={"Authorization": "Bearer unknown"}) as answer:
        assert answer.status == 401
    assert [(seen.credential, seen.method, seen.path, seen.transport) for seen in sim.handshakes] == [
        ("A", "GET", "/v1/responses", "websocket"),
        ("A", "GET", "/v1/models", "http"),
        ("A", "POST", "/v1/responses", "http"),
        ("A", "POST", "/v1/conversations", "http"),
        (None, "GET", "/v1/models", "http"),
    ]
    assert all(before <= seen.time <= time.time() for seen in sim.handshakes[1:])
    async with http.get(sim.control_url + "/handshakes?since=1") as answer:
        assert (await answer.json())["handshakes"][0]["path"] == "/v1/models"
