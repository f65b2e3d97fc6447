"""A turn that breaks off after its first output: an honest end, and a session that is ready for the retry at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import pytest

from broker.edge.app import Listeners
from broker.edge.wiring import Bounds
from broker.simulator import Fault, SessionClient, TurnResult, presets
from tests.scenarios.house import House, conversation, counted, held_against, own_endpoints

OVERLOADED = {"endpoint": "cooling"}


@dataclass(frozen=True)
class Case:
    """A fault in mid-output, and what is held against whom."""

    name: str
    fault: Fault
    held: Mapping[str, str]


CASES = (
    Case("server error", presets["server_error"], OVERLOADED),
    Case("overload", presets["server_is_overloaded"], OVERLOADED),
    Case("double frame", presets["server_is_overloaded"].but(do="double"), OVERLOADED),
    Case("failed", presets["server_error"].but(do="failed"), OVERLOADED),
    Case("quota", presets["usage_limit_reached"], {"group:A": "exhausted"}),
    Case("quota without a status", presets["insufficient_quota"].but(omit_status=True), {"group:A": "exhausted"}),
    Case("failed by quota", presets["insufficient_quota"].but(do="failed"), {"group:A": "exhausted"}),
    Case("rate limit", presets["rate_limit_exceeded"], {"group:A:sim-1": "cooling"}),
    Case("revoked key", presets["token_revoked"], {"credential:A": "revoked"}),
    Case("reset", Fault(do="reset"), {}),
    Case("close 1011", Fault(do="close", close_code=1011), {}),
    Case("close 1000", Fault(do="close", close_code=1000), {}),
    Case("garbage", Fault(do="garbage"), {}),
    Case("a binary frame", Fault(do="garbage", variant="binary"), {}),
    Case("half a frame", Fault(do="garbage", variant="half"), {}),
    Case("silence", Fault(do="silence"), {}),
)


@dataclass
class Scene:
    """A session of two turns on A; credentials whose endpoints differ."""

    house: House
    node: Listeners
    client: SessionClient
    second: TurnResult

    async def breaks_off(self, fault: Fault, text: str = "three [[deltas:6]]") -> TurnResult:
        self.house.sim.faults.set("A", fault, at="after_deltas", after=3, times=1)
        broken = await self.client.turn(text)
        assert broken.text and broken.response_id and broken.first_output is not None, "output was shown"
        return broken


@pytest.fixture
async def scene(build: Callable[..., Awaitable[House]]) -> Scene:
    house = await build({"A": "org-a", "B": "org-a"})
    bounds = Bounds(hold=1.0, first_event=1.0, silence=0.4, leave=3.0)
    node = await house.node(credentials=own_endpoints(house.credentials()), bounds=bounds)
    client = await house.connected(node)
    assert (await client.turn("one [[call:look]]")).ok
    second = await client.tool_turn()
    assert second.ok, second.problems
    return Scene(house, node, client, second)


def ends_honestly(broken: TurnResult) -> bool:
    return (
        broken.terminal == "error"
        and broken.problems == []
        and broken.events.count("error") == 1
        and broken.error is not None
        and (broken.error["status"], broken.error["code"]) == (503, "upstream_interrupted")
        and "again" in broken.error["message"]
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
async def test_serves_the_retry_with_another_credential(scene: Scene, case: Case) -> None:
    house, client = scene.house, scene.client
    before = await house.session(client)

    broken = await scene.breaks_off(case.fault)

    assert ends_honestly(broken), (broken.error, broken.problems)
    assert await house.session(client) == before, "nothing was written"
    endpoint = f"endpoint:{house.sim.base_url}"
    assert held_against(scene.node) == {key.replace("endpoint", endpoint): held for key, held in case.held.items()}
    assert counted(scene.node, "broker_turns_total", outcome="interrupted") == 1
    assert counted(scene.node, "broker_failovers_total") == 0, "what was shown is never moved"

    again = await client.retry()

    assert again.ok and again.digest_ok, (again.problems, again.error)
    served = house.sim.turns[-1]
    assert served.credential == "B" and len(house.sim.turns) == 4
    assert "previous_response_id" not in served.frame_keys
    assert served.input == conversation(again) == list(served.context)
    partial = {item["id"] for item in broken.items}
    assert not partial & {item.get("id") for item in served.context}
    fourth = await client.turn("four")
    assert fourth.ok and client.notices == [], (fourth.problems, client.notices)
    following = house.sim.turns[-1]
    assert following.socket == served.socket and following.previous_response_id == again.response_id
    assert list(following.context) == conversation(fourth)
    assert broken.problems == [], "nothing came behind its end"


@pytest.mark.parametrize("fault", [Fault(do="reset"), presets["server_error"]], ids=["reset", "server-error"])
async def test_serves_the_retry_with_the_same_credential_when_there_is_no_other(house: House, fault: Fault) -> None:
    node = await house.node(credentials=house.credentials()[:1])
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", fault, at="after_deltas", after=3, times=1)
    broken = await client.turn("two [[deltas:6]]")
    assert ends_honestly(broken), (broken.error, broken.problems)
    again = await client.retry()
    assert again.ok, (again.problems, again.error)
    first, shown, served = house.sim.turns
    assert first.socket == shown.socket != served.socket and served.input == conversation(again)


async def test_forgets_the_partial_turn_when_the_client_goes_on_with_something_else(scene: Scene) -> None:
    assert ends_honestly(await scene.breaks_off(presets["server_error"]))
    other = await scene.client.turn("something else")
    assert other.ok and other.parent is scene.second, other.problems
    assert list(scene.house.sim.turns[-1].context) == conversation(other)


async def test_serves_the_retry_when_the_client_sends_everything_anew(scene: Scene) -> None:
    assert ends_honestly(await scene.breaks_off(Fault(do="reset")))
    again = await scene.client.retry(incremental=False)
    assert again.ok, again.problems
    assert scene.house.sim.turns[-1].input == conversation(again)


async def test_serves_the_retry_when_the_client_reconnects_after_the_interruption(scene: Scene) -> None:
    broken = await scene.breaks_off(presets["insufficient_quota"])
    assert ends_honestly(broken)
    await scene.client.kill()
    elsewhere = await scene.house.connected(await scene.house.node())
    elsewhere.heads, elsewhere.results = scene.client.heads, scene.client.results
    again = await elsewhere.retry()
    assert again.ok, (again.problems, again.error)
    assert scene.house.sim.turns[-1].input == conversation(again)


async def test_spares_other_lanes_when_a_turn_of_one_breaks_off(scene: Scene) -> None:
    scene.house.sim.faults.set("A", "server_error", at="after_deltas", after=2, when="breaks", times=1)
    steady, broken = await asyncio.gather(
        scene.client.turn("steady [[slow:20]][[deltas:12]]", lane="steady"),
        scene.client.turn("breaks [[slow:20]][[deltas:12]]", lane="breaks"),
    )
    assert ends_honestly(broken) and steady.ok, (broken.error, steady.problems)
    again = await scene.client.retry(lane="breaks")
    on = await scene.client.turn("on", lane="steady")
    assert again.ok and on.ok, (again.error, on.error)


async def test_passes_on_what_the_vendor_says_of_the_request_in_mid_output(scene: Scene) -> None:
    broken = await scene.breaks_off(presets["content_policy"].but(do="failed"), "three")
    assert broken.terminal == "response.failed" and broken.error_code == "invalid_prompt"
    assert held_against(scene.node) == {} and broken.problems == []
    assert counted(scene.node, "broker_turns_total", outcome="request_fault") == 1


async def test_interrupts_when_a_hold_had_to_end_before_the_failure_came(scene: Scene) -> None:
    """Announcements are not held for ever; once they are out, the turn can no longer move."""
    bounds = Bounds(hold=0.1, first_event=1.0, silence=0.5, leave=3.0)
    node = await scene.house.node(credentials=own_endpoints(scene.house.credentials()), bounds=bounds)
    client = await scene.house.connected(node)
    scene.house.sim.faults.set("A", Fault(do="silence"), at="after_created", times=1)
    broken = await client.turn("one")
    assert ends_honestly(broken), (broken.error, broken.problems)
    assert broken.events == ["response.created", "response.in_progress", "error"]
    assert (await client.retry()).ok
