"""The manners of vendors: for the whole simulator or for one credential of it."""

import asyncio
from typing import Any

import aiohttp
import pytest

from broker.simulator import MANNERS, SimCredential, Simulator, manner_of

HELLO = {"model": "sim-1", "input": "hello"}
PRNF = "previous_response_not_found"
NO_LANES = ["azure", "strict", "vercel", "xai"]


def test_manner_is_known_by_name_and_can_be_changed() -> None:
    assert manner_of("azure") is MANNERS["azure"] and manner_of("http_only", upgrade_status=405).upgrade_status == 405
    with pytest.raises(KeyError):
        manner_of("nobody")


async def test_every_credential_has_its_own_manner(new_simulator: Any, dial: Any) -> None:
    sim = await new_simulator([SimCredential("X", "sk-x", manner="xai"), SimCredential("O", "sk-o")])
    xai, openai = await dial(sim, "sk-x"), await dial(sim, "sk-o")
    assert (await xai.refused(stream_id="a"))["error"]["param"] == "stream_id"
    assert (await openai.completed(stream_id="a"))["status"] == "completed"


@pytest.mark.parametrize("manner", NO_LANES)
async def test_lanes_and_steers_are_refused(new_simulator: Any, dial: Any, manner: str) -> None:
    raw = await dial(await new_simulator(manner=manner))
    refused = await raw.refused(stream_id="a")
    assert (refused["status"], refused["error"]["code"]) == (400, "unknown_parameter")
    await raw.send({"type": "response.steer", "previous_response_id": "resp_1", "input": "x"})
    assert (await raw.event())["error"]["code"] == "unsupported_event_type"
    await raw.completed()


@pytest.mark.parametrize("manner", NO_LANES)
async def test_one_turn_after_the_other_without_lanes(new_simulator: Any, dial: Any, manner: str) -> None:
    raw = await dial(await new_simulator(manner=manner))
    await raw.create("one [[slow:2]]")
    await raw.create("two")
    events = [*await raw.until("response.completed"), *await raw.until("response.completed")]
    kinds = [event["type"] for event in events if event["type"] in ("response.created", "response.completed")]
    assert kinds == ["response.created", "response.completed"] * 2


# -- azure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("manner", "status"), [("azure", 200), ("openai", 401)])
async def test_api_key_header_is_taken_by_azure_alone(
    new_simulator: Any, http: aiohttp.ClientSession, manner: str, status: int
) -> None:
    sim = await new_simulator(manner=manner)
    headers = {"api-key": "sk-sim-a"}
    async with http.post(sim.base_url + "/responses", headers=headers, json=HELLO) as answer:
        assert answer.status == status
    assert "api-key" not in sim.handshakes[-1].headers
    async with http.post(sim.base_url + "/responses", headers={"api-key": ""}, json=HELLO) as answer:
        assert answer.status == 401


async def test_azure_lives_under_its_own_path_with_a_query(
    new_simulator: Any, http: aiohttp.ClientSession, ask: Any
) -> None:
    sim = await new_simulator(manner="azure")
    url, headers = sim.base_url_of("/openai/v1"), {"Authorization": "Bearer sk-sim-a"}
    async with http.get(url + "/models?api-version=preview", headers=headers) as answer:
        assert answer.status == 200
    async with http.ws_connect(url + "/responses?api-version=preview", headers=headers) as ws:
        assert sim.handshakes[-1].path == "/openai/v1/responses"
        await ws.close()
    assert (await ask(sim, "POST", "/responses?api-version=preview", HELLO))[0] == 200


async def test_azure_knows_deployments_only(new_simulator: Any, ask: Any) -> None:
    sim = await new_simulator(manner="azure")
    status, body = await ask(sim, "POST", "/responses", HELLO, secret="sk-sim-b")
    assert (status, body["error"]["code"]) == (404, "DeploymentNotFound")


async def test_azure_remembers_one_response(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(manner="azure"))
    first, second = await raw.completed(store=False), await raw.completed(store=False)
    assert (await raw.refused(previous_response_id=first["id"], store=False))["error"]["code"] == PRNF
    await raw.completed(previous_response_id=second["id"], store=False)


# -- xai, vercel, strict -----------------------------------------------------------------------------------------


async def test_xai_uses_its_ids_again_and_tells_an_unknown_one_in_words(new_simulator: Any, dial: Any) -> None:
    sim = await new_simulator(manner="xai")
    raw = await dial(sim)
    first, second = await raw.completed(), await raw.completed("two")
    assert first["id"] == second["id"]
    refused = await raw.refused(previous_response_id="resp_gone")
    assert refused["error"] == {"message": "Response with id=resp_gone not found."}


async def test_xai_ends_a_warm_up_when_it_is_created(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(manner="xai"))
    await raw.create("before", generate=False, store=False)
    warmed = await raw.event()
    assert warmed["type"] == "response.created"
    answered = await raw.answer("now", previous_response_id=warmed["response"]["id"], store=False)
    assert [answered[0]["type"], answered[-1]["type"]] == ["response.created", "response.completed"]


@pytest.mark.parametrize("manner", ["strict", "xai"])
@pytest.mark.parametrize("field", ["stream", "stream_options", "background"])
async def test_strict_vendor_refuses_fields_of_http(new_simulator: Any, dial: Any, manner: str, field: str) -> None:
    raw = await dial(await new_simulator(manner=manner))
    refused = await raw.refused(**{field: False})
    assert (refused["error"]["code"], refused["error"]["param"]) == ("unknown_parameter", field)
    await raw.completed()


async def test_vercel_ends_a_socket_for_a_second_model(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(manner="vercel"))
    await raw.completed()
    await raw.completed()
    assert (await raw.refused(model="sim-2"))["error"]["code"] == "model_mismatch"
    assert (await raw.receive()).data == 1008


async def test_vercel_refuses_large_frames(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(manner="vercel"))
    await raw.completed("x" * (3 << 20))
    assert (await raw.refused("x" * (4 << 20)))["error"]["code"] == "payload_too_large"
    assert (await raw.receive()).data == 1009


async def test_age_of_a_manner_ends_a_socket(new_simulator: Any, dial: Any) -> None:
    raw = await dial(await new_simulator(manner=manner_of("vercel", age_limit=0.02)))
    assert (await raw.event())["error"]["code"] == "websocket_connection_limit_reached"
    assert (await raw.receive()).data == 1001


# -- servers without sockets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 405, 426])
async def test_upgrade_is_refused_and_posts_are_served(new_simulator: Any, dial: Any, ask: Any, status: int) -> None:
    sim = await new_simulator(manner=manner_of("http_only", upgrade_status=status))
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await dial(sim)
    assert refused.value.status == status == sim.handshakes[-1].status
    assert (await ask(sim, "POST", "/responses", HELLO))[0] == 200


@pytest.mark.parametrize("field", ["type", "stream_id", "generate"])
async def test_closed_schema_refuses_fields_of_the_websocket(new_simulator: Any, ask: Any, field: str) -> None:
    sim = await new_simulator(manner="http_only")
    status, body = await ask(sim, "POST", "/responses", {**HELLO, field: "response.create"})
    assert (status, body["error"]["param"]) == (400, field)


async def test_stateless_server_finds_nothing_again(new_simulator: Any, ask: Any) -> None:
    sim = await new_simulator(manner="http_only")
    _, created = await ask(sim, "POST", "/responses", HELLO)
    assert (await ask(sim, "GET", f"/responses/{created['id']}"))[0] == 404
    status, body = await ask(sim, "POST", "/responses", {**HELLO, "previous_response_id": created["id"]})
    assert status == 404 and body["error"]["code"] == 404
    assert body["error"]["message"] == f"Response with id '{created['id']}' not found."
    assert (await ask(sim, "POST", "/responses", {**HELLO, "background": True}))[0] == 400


# -- openai ------------------------------------------------------------------------------------------------------


async def test_answers_of_openai_have_an_id(sim: Simulator, http: aiohttp.ClientSession, dial: Any) -> None:
    seen = set()
    for secret in ("sk-sim-a", "sk-unknown"):
        async with http.get(sim.base_url + "/models", headers={"Authorization": f"Bearer {secret}"}) as answer:
            seen.add(answer.headers["x-request-id"])
            assert answer.headers["openai-processing-ms"].isdigit()
    assert len(seen) == 2
    upgrade = await dial(sim)
    assert "x-request-id" not in upgrade.ws._response.headers


async def test_other_vendors_give_no_id(new_simulator: Any, http: aiohttp.ClientSession) -> None:
    sim = await new_simulator(manner="xai")
    async with http.get(sim.base_url + "/models", headers={"Authorization": "Bearer sk-sim-a"}) as answer:
        assert answer.status == 200 and "x-request-id" not in answer.headers


@pytest.mark.parametrize("which", ["organization", "project"])
async def test_organization_and_project_must_be_the_keys_own(new_simulator: Any, ask: Any, which: str) -> None:
    known = SimCredential("P", "sk-p", organization="org-1", project="proj-1")
    sim = await new_simulator([known])
    own = {"openai_organization": "org-1", "openai_project": "proj-1"}
    assert (await ask(sim, "GET", "/models", secret="sk-p", **own))[0] == 200
    assert (await ask(sim, "GET", "/models", secret="sk-p"))[0] == 200
    status, body = await ask(sim, "GET", "/models", secret="sk-p", **{**own, f"openai_{which}": "other"})
    assert (status, body["error"]["code"]) == (401, f"mismatched_{which}")


async def test_limits_are_told_beside_manners(new_simulator: Any, http: aiohttp.ClientSession) -> None:
    sim = await new_simulator(manner="azure")
    sim.tell_limits("A", 50)
    async with asyncio.timeout(5), http.get(sim.base_url + "/models", headers={"api-key": "sk-sim-a"}) as answer:
        assert answer.headers["x-codex-primary-used-percent"] == "50"
