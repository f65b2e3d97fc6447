"""What is wrong with a request is the client's to hear: no credential is blamed for it, and nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from broker.domain.session import Session
from broker.edge.app import Listeners
from broker.simulator import Fault, SessionClient, TurnResult, presets
from broker.simulator.record import TurnRecord
from tests.scenarios.house import House, conversation, counted, held_against


def request(status: int, code: str | None, message: str, param: str | None = None) -> Fault:
    return Fault(status=status, code=code, error_type="invalid_request_error", message=message, param=param)


FAULTS = {
    "generic 404": presets["generic_404"],
    "generic 400": request(400, None, "Bad Request"),
    "413": request(413, None, "Request entity too large"),
    "422": request(422, "invalid_value", "Invalid value: 'purple'.", "tool_choice"),
    "unknown parameter": request(400, "unknown_parameter", "Unknown parameter: 'colour'.", "colour"),
    "unsupported value": request(400, "unsupported_value", "Unsupported value: 'temperature'.", "temperature"),
    "context length": presets["context_length_exceeded"],
    "content policy": presets["content_policy"],
    "bio policy": request(400, "bio_policy", "This request was blocked."),
    "an unknown item": request(404, "item_not_found", "Item with id 'rs_1' not found.", "input"),
    "a code nobody knows": request(400, "brand_new_code", "Something new.", "x"),
}


@dataclass
class Scene:
    """A session with one good turn, and all that may not change."""

    house: House
    node: Listeners
    client: SessionClient
    first: TurnResult
    session: Session
    record: TurnRecord

    async def nothing_changed(self) -> None:
        after = await self.house.session(self.client)
        assert after == self.session
        assert held_against(self.node) == {}
        assert counted(self.node, "broker_failovers_total") == 0
        assert counted(self.node, "broker_pin_resets_total") == 0
        assert counted(self.node, "broker_replays_total") == 0
        assert counted(self.node, "broker_turns_total", outcome="request_fault") == 1

    async def goes_on_as_an_increment(self, parent: TurnResult) -> None:
        self.house.sim.faults.clear()
        following = await self.client.turn("next", parent=parent)
        assert following.ok, (following.problems, following.error)
        served = self.house.sim.turns[-1]
        assert (served.credential, served.socket) == ("A", self.record.socket)
        assert served.previous_response_id == parent.response_id
        assert served.input == following.input and list(served.context) == conversation(following)
        assert counted(self.node, "broker_dispatches_total", mode="replay") == 0


@pytest.fixture
async def scene(house: House) -> Scene:
    node = await house.node(alone=True)
    client = await house.connected(node)
    first = await client.turn("one")
    assert first.ok, first.problems
    return Scene(house, node, client, first, await house.session(client), house.sim.turns[-1])


def as_sent(fault: Fault) -> dict[str, Any]:
    return {"status": fault.status, **fault.refusal().error()}


@pytest.mark.parametrize("name", FAULTS)
async def test_passes_on_what_the_vendor_says_of_the_request(scene: Scene, name: str) -> None:
    scene.house.sim.faults.set("A", FAULTS[name])

    refused = await scene.client.turn("bad", parent=None)

    assert refused.terminal == "error" and refused.problems == []
    assert refused.error == as_sent(FAULTS[name])
    assert [turn.credential for turn in scene.house.sim.turns] == ["A", "A"]
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(scene.first)


async def test_passes_on_a_fault_of_the_request_that_follows_created(scene: Scene) -> None:
    fault = FAULTS["context length"]
    scene.house.sim.faults.set("A", fault, at="after_created")
    refused = await scene.client.turn("bad", parent=None)
    assert refused.error is not None and refused.problems == []
    assert {key: refused.error[key] for key in as_sent(fault)} == as_sent(fault)
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(scene.first)


async def test_passes_on_a_failed_response_when_the_request_is_at_fault(scene: Scene) -> None:
    scene.house.sim.faults.set("A", "content_policy", at="after_created", do="failed")
    refused = await scene.client.turn("bad", parent=None)
    assert refused.terminal == "response.failed" and refused.problems == []
    assert refused.events == ["response.created", "response.in_progress", "response.failed"]
    assert refused.error == presets["content_policy"].response_error()
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(scene.first)


async def test_settles_a_fault_of_the_request_once_when_it_comes_in_two_frames(scene: Scene) -> None:
    scene.house.sim.faults.set("A", "content_policy", do="double")
    refused = await scene.client.turn("bad", parent=None)
    assert refused.terminal == "error" and refused.error_code == "invalid_prompt"
    assert refused.error is not None and refused.error["status"] == 400
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(scene.first)
    assert refused.problems == [] and scene.client.notices == []


async def test_adds_the_status_when_the_vendor_left_it_out(scene: Scene) -> None:
    fault = FAULTS["context length"]
    scene.house.sim.faults.set("A", fault, omit_status=True)
    refused = await scene.client.turn("bad", parent=None)
    assert refused.error == as_sent(fault)


async def test_passes_on_the_vendors_own_complaint_about_a_tool_output_without_a_call(scene: Scene) -> None:
    orphan = {"type": "function_call_output", "call_id": "call_nobody", "output": "x"}
    refused = await scene.client.turn([orphan], parent=None)
    assert refused.error_code == "invalid_function_call_output"
    assert refused.error is not None and refused.error["status"] == 400
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(scene.first)


async def test_passes_on_that_a_named_response_is_unknown(scene: Scene) -> None:
    stranger = TurnResult(None, None, [], True, {}, response_id="resp_nobody-knows")

    refused = await scene.client.turn("bad", parent=stranger)

    assert refused.terminal == "error" and refused.problems == []
    assert refused.error is not None
    assert (refused.error["status"], refused.error["code"]) == (400, "previous_response_not_found")
    assert refused.error["param"] == "previous_response_id" and "resp_nobody-knows" in refused.error["message"]
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(scene.first)


async def test_refuses_an_unknown_response_itself_when_tenants_share_the_credentials(house: House) -> None:
    client = await house.connected(await house.node())
    assert (await client.turn("one")).ok
    stranger = TurnResult(None, None, [], True, {}, response_id="resp_of-another-tenant-for-all-we-know")

    refused = await client.turn("bad", parent=stranger)

    assert refused.error is not None
    assert (refused.error["status"], refused.error["code"]) == (400, "previous_response_not_found")
    assert refused.error["param"] == "previous_response_id" and refused.error["type"] == "invalid_request_error"
    assert len(house.sim.turns) == 1, "the vendor was asked, and it does not know one tenant from another"
    assert (await client.turn("two")).ok


@pytest.mark.parametrize("name", ["generic 404", "context length"])
async def test_goes_on_from_a_stored_parent_when_its_continuation_was_at_fault(scene: Scene, name: str) -> None:
    stored = await scene.client.turn("two", store=True)
    assert stored.ok, stored.problems
    scene.session = await scene.house.session(scene.client)
    scene.house.sim.faults.set("A", FAULTS[name])

    refused = await scene.client.turn("bad", store=True)

    assert refused.error == as_sent(FAULTS[name])
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(stored)


async def test_gives_up_a_parent_as_the_vendor_does_when_its_continuation_was_at_fault(scene: Scene) -> None:
    scene.house.sim.faults.set("A", FAULTS["context length"])
    refused = await scene.client.turn("bad")
    assert refused.error == as_sent(FAULTS["context length"])
    scene.house.sim.faults.clear()
    dispatched = len(scene.house.sim.turns)

    again = await scene.client.retry()

    assert again.error is not None and again.problems == []
    assert (again.error["status"], again.error["code"]) == (400, "previous_response_not_found")
    assert len(scene.house.sim.turns) == dispatched, "nobody upstream is asked for what is known to be gone"
    assert await scene.house.session(scene.client) == scene.session and held_against(scene.node) == {}
    whole = await scene.client.turn("with everything", incremental=False)
    assert whole.ok, whole.problems
    assert scene.house.sim.turns[-1].socket == scene.record.socket


async def test_keeps_the_parent_when_a_fork_on_another_lane_was_at_fault(scene: Scene) -> None:
    scene.house.sim.faults.set("A", FAULTS["context length"])
    fork = await scene.client.turn("bad", lane="fork", parent=scene.first)
    assert fork.error == as_sent(FAULTS["context length"])
    await scene.nothing_changed()
    await scene.goes_on_as_an_increment(scene.first)


async def test_takes_a_refusal_for_the_requests_own_when_two_credentials_refuse_it_alike(scene: Scene) -> None:
    scene.house.sim.faults.set("*", "forbidden_generic", when="poison")

    refused = await scene.client.turn("poison", parent=None)

    assert refused.error is not None and refused.problems == []
    assert refused.error["status"] == 403 and isinstance(refused.error["code"], str)
    assert [turn.credential for turn in scene.house.sim.turns] == ["A", "A", "B"], "C is not asked any more"
    assert held_against(scene.node) == {}, "what this request has said of A is taken back"
    assert (await scene.client.turn("harmless", incremental=False)).ok
