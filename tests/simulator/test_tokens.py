"""Tokens for applications: issued, expired, refused."""

from typing import Any

import aiohttp
import pytest

from broker.simulator import Application, SimCredential, Simulator

KNOWN = SimCredential("E", "sk-e", manner="azure", application=Application("tenant-1", "client-1", "hush"))
FORM = {
    "grant_type": "client_credentials",
    "client_id": "client-1",
    "client_secret": "hush",
    "scope": "https://ai.azure.com/.default",
}


@pytest.fixture
async def sim(new_simulator: Any) -> Simulator:
    simulator: Simulator = await new_simulator([KNOWN])
    return simulator


async def issue(
    http: aiohttp.ClientSession, sim: Simulator, tenant: str = "tenant-1", **changes: str
) -> tuple[int, Any]:
    async with http.post(f"{sim.token_url}/{tenant}/oauth2/v2.0/token", data=FORM | changes) as answer:
        return answer.status, await answer.json()


async def test_token_opens_every_door(sim: Simulator, http: aiohttp.ClientSession, ask: Any, dial: Any) -> None:
    status, issued = await issue(http, sim)
    assert (status, issued["token_type"], issued["expires_in"]) == (200, "Bearer", 3600)
    token = issued["access_token"]
    assert (await ask(sim, "POST", "/responses", {"model": "sim-1", "input": "x"}, secret=token))[0] == 200
    await (await dial(sim, token)).completed()
    assert {turn.credential for turn in sim.turns} == {"E"}
    assert sim.tokens.requests == {"client-1": 1}
    assert sim.handshakes[0].path == "/tenant-1/oauth2/v2.0/token" and "hush" not in repr(sim.handshakes)


async def test_expired_token_is_refused_with_its_own_code(
    sim: Simulator, http: aiohttp.ClientSession, ask: Any
) -> None:
    sim.tokens.lifetime = 0
    _, issued = await issue(http, sim)
    status, body = await ask(sim, "GET", "/models", secret=issued["access_token"])
    assert (status, body["error"]["code"]) == (401, "token_expired")
    assert (sim.handshakes[-1].status, sim.handshakes[-1].credential) == (401, None)


async def test_tokens_can_be_made_to_expire(sim: Simulator, http: aiohttp.ClientSession, ask: Any) -> None:
    old = (await issue(http, sim))[1]["access_token"]
    sim.tokens.expire()
    new = (await issue(http, sim))[1]["access_token"]
    assert [(await ask(sim, "GET", "/models", secret=token))[0] for token in (old, new, "eyJ.other")] == [401, 200, 401]


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "other"}, 401, "invalid_client"),
        ({"tenant": "tenant-2"}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"scope": "everything"}, 400, "invalid_scope"),
    ],
)
async def test_wrong_request_gets_no_token(
    sim: Simulator, http: aiohttp.ClientSession, changes: dict[str, str], status: int, error: str
) -> None:
    told, body = await issue(http, sim, **changes)
    assert (told, body["error"]) == (status, error) and "access_token" not in body


@pytest.mark.parametrize(
    ("fault", "status", "error"), [("invalid_client", 401, "invalid_client"), (500, 500, "temporarily_unavailable")]
)
async def test_token_endpoint_can_fail(
    sim: Simulator, http: aiohttp.ClientSession, fault: Any, status: int, error: str
) -> None:
    sim.tokens.fault = fault
    assert (await issue(http, sim))[0] == status
    sim.tokens.fault = None
    assert (await issue(http, sim))[0] == 200
    assert sim.tokens.requests == {"client-1": 2}


async def test_tokens_are_set_from_outside(sim: Simulator, http: aiohttp.ClientSession, ask: Any) -> None:
    token = (await issue(http, sim))[1]["access_token"]
    settings = {"lifetime": 5, "fault": "invalid_client", "expire": True}
    async with http.put(sim.control_url + "/tokens", json=settings) as answer:
        assert await answer.json() == {"requests": {"client-1": 1}, "lifetime": 5, "fault": "invalid_client"}
    assert (await ask(sim, "GET", "/models", secret=token))[0] == 401
    async with http.put(sim.control_url + "/tokens", json={"fault": None}) as answer:
        assert (await answer.json())["fault"] is None
    assert (await issue(http, sim))[1]["expires_in"] == 5
    async with http.put(sim.control_url + "/tokens", json={"lifetime": "x"}) as answer:
        assert answer.status == 400


def test_secret_of_an_application_is_not_shown() -> None:
    assert "hush" not in repr(KNOWN)
