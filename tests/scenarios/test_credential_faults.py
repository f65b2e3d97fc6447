"""Every way in which a credential can fail a turn: the client sees one clean answer of another one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from broker.edge.app import Listeners
from broker.edge.wiring import Bounds
from broker.simulator import Fault, SessionClient, TurnResult
from tests.scenarios.house import House, conversation, counted, held_against, own_endpoints, wait_until

Build = Callable[..., Awaitable[House]]

POOL = {"A": "org-a", "D": "org-a", "B": "org-a"}
"""A is everybody's first choice, D shares its quota, B has one of its own."""

REVOKED = {"credential:A": "revoked"}
SUSPECT = {"credential:A": "suspect"}
EXHAUSTED = {"group:shared": "exhausted"}
COOLING = {"group:shared:sim-1": "cooling"}
SLOWED = {"group:shared": "cooling"}
OVERLOADED = {"endpoint": "cooling"}
NOTHING: dict[str, str] = {}


@dataclass(frozen=True)
class Case:
    """A fault of A: what it is taken for, how far the turn had come, and what is held against whom afterwards."""

    name: str
    fault: str | Fault
    kind: str
    held: Mapping[str, str]
    at: str = "before_created"
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def phase(self) -> str:
        return "before_send" if self.at == "handshake" else "sent"

    @property
    def server(self) -> str:
        """Who must serve: what A shares with D, its quota and its limits of rate, takes D along; nothing else does."""
        return "B" if self.held in (EXHAUSTED, COOLING, SLOWED) else "D"

    @property
    def ambiguous(self) -> int:
        """A turn that may have run is counted when it is sent again."""
        return int(self.kind == "transport_lost" and self.at != "handshake")


def case(name: str, fault: str | Fault, kind: str, held: Mapping[str, str], at: str = "", **changes: Any) -> Case:
    return Case(name, fault, kind, held, at or "before_created", tuple(changes.items()))


def refused(name: str, fault: str | Fault, kind: str, held: Mapping[str, str], **changes: Any) -> Case:
    return case(f"handshake {name}", fault, kind, held, "handshake", do="refuse", **changes)


BARE_503 = Fault(status=503, body="<html>upstream connect error</html>")
DETAIL = Fault(status=401, body={"detail": "Unauthorized"})

REFUSED = (
    refused("401", "invalid_api_key", "auth_rejected", REVOKED),
    refused("401 without a code", "unauthorized_generic", "auth_rejected", REVOKED),
    refused("401 with a bare detail", DETAIL, "auth_rejected", REVOKED),
    refused("403", "forbidden_generic", "auth_rejected", REVOKED),
    refused("429 rate", "rate_limit_exceeded", "rate_limited", COOLING),
    refused("429 quota", "usage_limit_reached", "quota_exhausted", EXHAUSTED),
    refused("403 challenge", "cloudflare_html", "overloaded", OVERLOADED),
    refused("503", "service_unavailable", "overloaded", OVERLOADED),
    refused("503 in HTML", BARE_503, "overloaded", OVERLOADED),
    case("handshake reset", Fault(do="reset"), "transport_lost", NOTHING, "handshake"),
    case("handshake garbage", Fault(do="garbage"), "transport_lost", NOTHING, "handshake"),
)
NAMED_KEY = tuple(
    case(name, name, "auth_rejected", REVOKED)
    for name in ("token_invalidated", "token_revoked", "account_deactivated", "invalid_api_key", "org_disabled_400")
)
QUOTA = tuple(
    case(name, name, "quota_exhausted", EXHAUSTED)
    for name in ("usage_limit_reached", "insufficient_quota", "credit_balance_exhausted")
)
ANSWERED = (
    *NAMED_KEY,
    *QUOTA,
    case("401 without a code", "unauthorized_generic", "auth_rejected", SUSPECT),
    case("403 without a code", "forbidden_generic", "auth_rejected", SUSPECT),
    case("rate limit", "rate_limit_exceeded", "rate_limited", COOLING),
    case("slow down", "slow_down", "rate_limited", SLOWED),
    case("overload", "server_is_overloaded", "overloaded", OVERLOADED),
    case("overload after created", "server_is_overloaded", "overloaded", OVERLOADED, "after_created"),
    case("capacity as a 400", "capacity_400", "overloaded", OVERLOADED),
    case("server error", "server_error", "overloaded", OVERLOADED),
    case("double frame", "server_is_overloaded", "overloaded", OVERLOADED, do="double"),
    case("double frame after created", "server_is_overloaded", "overloaded", OVERLOADED, "after_created", do="double"),
    case("failed", "server_error", "overloaded", OVERLOADED, "after_created", do="failed"),
    case("failed by the rate", "rate_limit_exceeded", "rate_limited", COOLING, "after_created", do="failed"),
    case("failed by quota", "insufficient_quota", "quota_exhausted", EXHAUSTED, "after_created", do="failed"),
    case("quota after created", "usage_limit_reached", "quota_exhausted", EXHAUSTED, "after_created"),
    case("overload without a status", "server_is_overloaded", "overloaded", OVERLOADED, omit_status=True),
    case("quota without a status", "usage_limit_reached", "quota_exhausted", EXHAUSTED, omit_status=True),
    case("key without a status", "token_revoked", "auth_rejected", REVOKED, omit_status=True),
    case("server error without a code", "service_unavailable", "overloaded", OVERLOADED, omit_status=True),
)
LOST = (
    case("silence", Fault(do="silence"), "transport_lost", NOTHING),
    case("reset", Fault(do="reset"), "transport_lost", NOTHING),
    case("reset after created", Fault(do="reset"), "transport_lost", NOTHING, "after_created"),
    case("close 1011", Fault(do="close", close_code=1011), "transport_lost", NOTHING),
    case("close 1000", Fault(do="close", close_code=1000), "transport_lost", NOTHING),
    case("close 1011 after created", Fault(do="close", close_code=1011), "transport_lost", NOTHING, "after_created"),
    case("garbage", Fault(do="garbage"), "transport_lost", NOTHING),
    case("garbage after created", Fault(do="garbage"), "transport_lost", NOTHING, "after_created"),
    case("a binary frame", Fault(do="garbage", variant="binary"), "transport_lost", NOTHING),
    case("half a frame", Fault(do="garbage", variant="half"), "transport_lost", NOTHING),
)


def named(cases: tuple[Case, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


@dataclass
class Scene:
    """A session that is pinned to A by its first turn, and a second node that watches."""

    house: House
    one: Listeners
    two: Listeners
    client: SessionClient
    first: TurnResult

    async def forget_upstream_socket(self) -> None:
        """The vendor drops A's idle socket, so that the next turn needs a handshake."""
        await self.house.sim.end_sockets("A")
        await wait_until(lambda: self.one.node.dialer.open_links == 0)


@pytest.fixture
async def scene(build: Build) -> Scene:
    house = await build(POOL)
    pool = own_endpoints(
        [replace(known, limit_group="B" if known.name == "B" else "shared") for known in house.credentials()]
    )
    bounds = Bounds(hold=1.0, first_event=0.4, silence=5.0, leave=3.0)
    one = await house.node(credentials=pool, bounds=bounds)
    two = await house.node(credentials=pool, bounds=bounds)
    client = await house.connected(one)
    first = await client.turn("one [[call:look]]")
    assert first.ok and house.sim.turns[-1].credential == "A", first.problems
    return Scene(house, one, two, client, first)


def expected_rows(scene: Scene, held: Mapping[str, str]) -> dict[str, str]:
    endpoint = f"endpoint:{scene.house.sim.base_url}"
    return {subject.replace("endpoint", endpoint): state for subject, state in held.items()}


async def moves_to_another_credential(scene: Scene, case: Case) -> None:
    house, one, client = scene.house, scene.one, scene.client
    before = await house.session(client)
    house.sim.faults.set("A", case.fault, at=case.at, **dict(case.changes))

    second = await client.tool_turn()

    assert second.ok and second.digest_ok, (second.problems, second.error)
    assert second.events.count("response.created") == 1 and second.events.count("response.completed") == 1
    served = house.sim.turns[-1]
    assert (served.credential, served.outcome) == (case.server, "completed")
    assert "previous_response_id" not in served.frame_keys
    assert served.input == conversation(second) == list(served.context)
    assert len(house.sim.turns) == (2 if case.at == "handshake" else 3), "each credential was asked once"

    after = await house.session(client)
    assert before.pin is not None and after.pin is not None
    assert (after.pin.credential, after.pin.epoch) == (case.server, before.pin.epoch + 1)
    assert after.pin.because == case.kind
    assert not after.incremental_disabled

    assert counted(one, "broker_failovers_total") == 1
    assert counted(one, "broker_failovers_total", reason=case.kind, phase=case.phase) == 1
    assert counted(one, "broker_pin_resets_total", reason=case.kind) == 1
    assert counted(one, "broker_replays_total", cause=case.kind) == 1
    assert counted(one, "broker_ambiguous_replays_total") == case.ambiguous
    assert counted(one, "broker_turns_total", outcome="completed") == 2
    assert counted(one, "broker_turns_total") == 2

    rows = expected_rows(scene, case.held)
    assert held_against(one) == rows
    await wait_until(lambda: held_against(scene.two) == rows, within=1.0)

    house.sim.faults.clear()
    third = await client.turn("three")
    assert third.ok, third.problems
    increment = house.sim.turns[-1]
    assert (increment.credential, increment.socket) == (case.server, served.socket)
    assert increment.previous_response_id == second.response_id and increment.input == third.input
    assert list(increment.context) == conversation(third)


@named(REFUSED)
async def test_moves_the_turn_when_the_credential_is_refused_at_the_door(scene: Scene, case: Case) -> None:
    await scene.forget_upstream_socket()
    await moves_to_another_credential(scene, case)


@named(ANSWERED)
async def test_moves_the_turn_when_the_vendor_answers_with_an_error(scene: Scene, case: Case) -> None:
    await moves_to_another_credential(scene, case)


@named(LOST)
async def test_moves_the_turn_when_its_socket_is_lost(scene: Scene, case: Case) -> None:
    await moves_to_another_credential(scene, case)


@named((REFUSED[0], REFUSED[7], NAMED_KEY[0], QUOTA[0], *(c for c in ANSWERED if "double" in c.name), LOST[1]))
async def test_counts_a_failure_once_by_credential_and_kind(scene: Scene, case: Case) -> None:
    await scene.forget_upstream_socket()
    scene.house.sim.faults.set("A", case.fault, at=case.at, **dict(case.changes))
    assert (await scene.client.tool_turn()).ok
    assert counted(scene.one, "broker_upstream_failures_total", credential="A", kind=case.kind) == 1
    assert counted(scene.one, "broker_upstream_failures_total") == 1


async def test_excludes_the_model_and_not_the_credential_when_it_cannot_serve_the_model(scene: Scene) -> None:
    scene.house.sim.faults.set("A", "model_not_found", model="sim-1")
    assert (await scene.client.tool_turn()).ok
    await wait_until(lambda: held_against(scene.two) == {"model:A:sim-1": "cooling"}, within=1.0)
    other = await scene.house.connected(scene.two)
    assert (await other.turn("hello", model="sim-2")).ok
    assert scene.house.sim.turns[-1].credential == "A"


async def test_doubts_a_credential_when_three_sockets_in_a_row_are_lost(scene: Scene) -> None:
    house, one = scene.house, scene.one
    house.sim.faults.set("A", Fault(do="reset"))
    assert (await scene.client.tool_turn()).ok
    for number in (2, 3):
        assert held_against(one) == {}, f"before loss {number}"
        fresh = await house.connected(one)
        assert (await fresh.turn("hello")).ok
    await wait_until(lambda: held_against(scene.two) == SUSPECT, within=1.0)


async def test_forgets_lost_sockets_when_a_turn_succeeds_in_between(scene: Scene) -> None:
    house, one = scene.house, scene.one
    for _ in range(2):
        house.sim.faults.set("A", Fault(do="reset"), times=2)
        for _ in range(2):
            assert (await (await house.connected(one)).turn("hello")).ok
        assert (await (await house.connected(one)).turn("hello")).ok
        assert house.sim.turns[-1].credential == "A"
    assert held_against(one) == {}


async def test_spares_an_exhausted_group_for_new_sessions_of_every_node(scene: Scene) -> None:
    scene.house.sim.faults.set("A", "usage_limit_reached")
    assert (await scene.client.tool_turn()).ok
    await wait_until(lambda: held_against(scene.two) == EXHAUSTED, within=1.0)
    scene.house.sim.faults.clear()
    scene.house.sim.forget()
    for node in (scene.one, scene.two):
        assert (await (await scene.house.connected(node)).turn("hello")).ok
    assert [seen.credential for seen in scene.house.sim.handshakes] == ["B", "B"]


async def test_moves_on_when_the_credential_ends_every_socket_right_after_the_upgrade(scene: Scene) -> None:
    await scene.forget_upstream_socket()
    scene.house.sim.faults.set("A", Fault(at="handshake", do="close", close_code=1001))
    second = await scene.client.tool_turn()
    assert second.ok, second.error
    assert scene.house.sim.turns[-1].credential == "D"


async def test_moves_on_when_every_socket_of_the_credential_has_reached_its_limit(scene: Scene) -> None:
    scene.house.sim.faults.set("A", "websocket_connection_limit_reached")
    second = await scene.client.tool_turn()
    assert second.ok, second.error
    assert scene.house.sim.turns[-1].credential == "D"
