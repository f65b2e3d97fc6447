"""Turns over HTTP: sessions, what fails before anything is shown and after it, and who may continue what."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import pytest

from broker.edge.app import Listeners
from broker.edge.wiring import Bounds
from broker.simulator import Fault
from broker.simulator.faults import presets
from tests.scenarios.house import (
    KEY,
    OTHER_KEY,
    PRIVATE_KEY,
    Answer,
    Caller,
    House,
    by,
    conversation,
    counted,
    everything_in,
    held_against,
    own_endpoints,
    wait_until,
)
from tests.scenarios.test_credential_faults import (
    ANSWERED,
    LOST,
    POOL,
    REFUSED,
    REVOKED,
    SUSPECT,
    Case,
    named,
)

Build = Callable[..., Awaitable[House]]

UPWARDS = pytest.mark.parametrize("transports", [("websocket",), ("websocket", "http")], ids=["by-socket", "by-http"])
"""What the endpoints speak: a request goes up by HTTP wherever that is there."""
DOWNWARDS = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


async def two_nodes(house: House, *transports: str) -> tuple[Listeners, Listeners]:
    pool = by(house.credentials(), *transports)
    return await house.node(credentials=pool), await house.node(credentials=pool)


def texts(answer: Answer) -> list[str]:
    return [item["content"][0]["text"] for item in conversation(answer) if item.get("role") == "user"]


# --- sessions ---


@UPWARDS
@DOWNWARDS
@pytest.mark.parametrize("store", [True, False], ids=["stored", "unstored"])
async def test_goes_on_with_a_session_over_alternating_nodes(
    house: House, transports: tuple[str, ...], stream: bool, store: bool
) -> None:
    nodes = itertools.cycle(await two_nodes(house, *transports))
    caller = house.caller(next(nodes), session_id=None if store else "agent-7", stream=stream)
    for number in range(6):
        turn = await caller.turn(f"turn {number} [[call:look]]" if number == 2 else f"turn {number}", store=store)
        if turn.calls:
            caller.move(next(nodes))
            turn = await caller.answer_calls(store=store)
        assert turn.ok and turn.digest_ok, (number, turn.status, turn.error, turn.problems)
        assert list(house.sim.turns[-1].context) == conversation(turn)
        caller.move(next(nodes))
    assert len(house.sim.turns) == 7, "nothing was asked twice"


@UPWARDS
async def test_says_the_session_in_every_answer(house: House, transports: tuple[str, ...]) -> None:
    node, _ = await two_nodes(house, *transports)
    named = house.caller(node, session_id="agent-7")
    unnamed = house.caller(node)
    answers = [
        await named.turn("one"),
        await named.turn("two", stream=False),
        await named.turn("three", parent=None, model=""),
        await unnamed.turn("one"),
    ]
    house.sim.faults.set("*", "usage_limit_reached")
    answers.append(await named.turn("four"))
    house.sim.faults.set("*", "context_length_exceeded")
    answers.append(await named.turn("five"))

    assert [answer.headers.get("x-session-id") for answer in answers[:3]] == ["agent-7"] * 3
    assert answers[3].headers["x-session-id"].startswith("sess_")
    assert [answer.headers.get("x-session-id") for answer in answers[4:]] == ["agent-7"] * 2
    assert all(answer.headers.get("x-request-id") for answer in answers)


async def test_finds_the_session_of_an_answer_by_the_name_that_it_gave(house: House) -> None:
    one, two = await two_nodes(house, "websocket", "http")
    first = await house.caller(one).turn("one")
    again = house.caller(two, session_id=first.headers["x-session-id"])
    second = await again.turn("two", parent=first)
    assert second.ok, (second.error, second.problems)
    assert second.headers["x-session-id"] == first.headers["x-session-id"]


@UPWARDS
@DOWNWARDS
async def test_keeps_nothing_of_a_response_that_is_neither_stored_nor_named(
    house: House, transports: tuple[str, ...], stream: bool
) -> None:
    one, two = await two_nodes(house, *transports)
    caller = house.caller(one, stream=stream)
    first = await caller.turn("my word is xylophone-4711", store=False)
    assert first.ok, first.problems

    for node in (one, two):
        caller.move(node)
        again = await caller.turn("two", store=False)
        assert (again.status, again.error_code) == (400, "previous_response_not_found"), again.error
    asked = len(house.sim.turns)
    kept = await everything_in(house.url)

    assert asked == 1, "it is refused before anybody is asked"
    assert first.response_id is not None
    assert not [key for key, held in kept.items() if first.response_id.encode() in key + held]
    assert not [key for key in kept if b"sb:s" in key], kept.keys()
    assert not [key for key, held in kept.items() if b"xylophone" in held]


async def test_refuses_to_continue_what_another_tenant_has_stored(house: House) -> None:
    node, _ = await two_nodes(house, "websocket", "http")
    first = await house.caller(node).turn("one")
    other = await house.caller(node, key=OTHER_KEY).turn("two", parent=first)
    assert (other.status, other.error_code) == (400, "previous_response_not_found")
    assert len(house.sim.turns) == 1


@UPWARDS
async def test_continues_over_http_what_a_socket_began_and_back(house: House, transports: tuple[str, ...]) -> None:
    one, two = await two_nodes(house, *transports)
    socket = await house.connected(one, session_id="agent-7")
    caller = house.caller(two, session_id="agent-7")
    first = await socket.turn("one [[call:look]]")
    second = await caller.turn(
        [{"type": "function_call_output", "call_id": first.calls[0]["call_id"], "output": "seen"}],
        parent=first,
        store=False,
    )
    assert second.ok and second.digest_ok, (second.error, second.problems)
    assert list(house.sim.turns[-1].context) == conversation(second)
    third = await socket.turn("three", parent=second)
    assert third.ok and third.digest_ok, (third.error, third.problems)
    assert list(house.sim.turns[-1].context) == conversation(third)
    caller.move(one)
    fourth = await caller.turn("four", parent=third, store=False, stream=False)
    assert fourth.ok and fourth.digest_ok, (fourth.error, fourth.problems)
    assert [record.transport for record in house.sim.turns].count("websocket") == (
        4 if transports == ("websocket",) else 2
    )


async def test_forks_from_one_response_as_often_as_wanted(house: House) -> None:
    nodes = await two_nodes(house, "websocket", "http")
    caller = house.caller(nodes[0])
    first = await caller.turn("one")
    for number, node in enumerate((*nodes, *nodes)):
        caller.move(node)
        fork = await caller.turn(f"fork {number}", parent=first)
        assert fork.ok and fork.digest_ok, (fork.error, fork.problems)
        assert texts(fork) == ["one", f"fork {number}"]


@DOWNWARDS
async def test_keeps_no_words_of_a_tenant_whose_turns_are_not_kept(house: House, stream: bool) -> None:
    node, _ = await two_nodes(house, "websocket", "http")
    caller = house.caller(node, key=PRIVATE_KEY, session_id="s", stream=stream)
    assert (await caller.turn("my word is marimba-0815")).ok
    assert (await caller.turn("two")).ok, "the vendor has it"
    assert not [key for key, held in (await everything_in(house.url)).items() if b"marimba" in held]


@UPWARDS
@pytest.mark.parametrize("session_id", ["agent-7", None], ids=["named", "unnamed"])
async def test_runs_requests_of_one_session_side_by_side(
    house: House, transports: tuple[str, ...], session_id: str | None
) -> None:
    nodes = await two_nodes(house, *transports)
    caller = house.caller(nodes[0], session_id=session_id)
    first = await caller.turn("one")
    callers = [house.caller(node, session_id=session_id, stream=stream) for node in nodes for stream in (True, False)]
    asked = [each.turn(f"fork {at} [[slow:5]]", parent=first) for at, each in enumerate(callers * 2)]
    for turn in await asyncio.gather(*asked):
        assert turn.ok and turn.digest_ok, (turn.error, turn.problems)
        after = await caller.turn("after", parent=turn)
        assert after.ok and after.digest_ok and len(texts(after)) == 3, (after.error, after.problems)


@UPWARDS
async def test_serves_clients_that_know_no_chunks(house: House, transports: tuple[str, ...]) -> None:
    node, _ = await two_nodes(house, *transports)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.client_port)
    body = b'{"model":"sim-1","input":"hello","stream":true}'
    head = f"POST /v1/responses HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(5.0):
        answer = await reader.read()
    writer.close()
    told = answer.partition(b"\r\n\r\n")[2]
    assert told.startswith(b"event: response.created\ndata: {") and told.endswith(b"}\n\n"), told[:100]
    assert told.count(b"event: response.completed") == 1


@UPWARDS
@DOWNWARDS
async def test_leaves_it_to_the_vendor_to_refuse_what_excludes_each_other(
    house: House, transports: tuple[str, ...], stream: bool
) -> None:
    pool = by(house.credentials(), *transports)
    node = await house.node(credentials=pool, alone=True)
    caller = house.caller(node, stream=stream)
    first = await caller.turn("one")
    both = await caller.turn("two", parent=first, conversation=house.sim.create_conversation("org-a"))
    assert (both.status, both.error_code) == (400, "mutually_exclusive_parameters"), both.error


# --- failures before anything is shown ---


@dataclass
class Scene:
    """A session that is pinned to A by its first turn, and a second node that watches."""

    house: House
    one: Listeners
    two: Listeners
    caller: Caller
    by_socket: bool


@pytest.fixture
async def scene(build: Build, transports: tuple[str, ...]) -> Scene:
    house = await build(POOL)
    pool = [
        replace(known, limit_group="B" if known.name == "B" else "shared")
        for known in by(house.credentials(), *transports)
    ]
    bounds = Bounds(hold=1.0, first_event=0.4, silence=1.0, leave=3.0)
    one, two = [await house.node(credentials=own_endpoints(pool), bounds=bounds) for _ in range(2)]
    made = Scene(house, one, two, house.caller(one, session_id="agent-7"), transports == ("websocket",))
    first = await made.caller.turn("one [[call:look]]", store=False)
    assert first.ok and house.sim.turns[-1].credential == "A", (first.error, first.problems)
    return made


async def moves_unseen(scene: Scene, case: Case, *, stream: bool) -> None:
    house, one, caller = scene.house, scene.one, scene.caller
    house.sim.faults.set("A", case.fault, at=case.at, **dict(case.changes))

    second = await caller.answer_calls(store=False, stream=stream)

    assert second.status == 200 and second.ok and second.digest_ok, (second.status, second.problems, second.error)
    assert second.events.count("response.created") == 1 and second.events.count("response.completed") == 1
    served = house.sim.turns[-1]
    assert (served.credential, served.outcome) == (case.server, "completed")
    assert list(served.context) == conversation(second)
    assert counted(one, "broker_failovers_total") == 1
    assert counted(one, "broker_failovers_total", reason=case.kind) == 1
    assert counted(one, "broker_turns_total") == counted(one, "broker_turns_total", outcome="completed") == 2
    rows = rows_of(scene, case.held)
    assert held_against(one) == rows
    await wait_until(lambda: held_against(scene.two) == rows, within=1.0)

    house.sim.faults.clear()
    caller.move(scene.two)
    third = await caller.turn("three", store=False)
    assert third.ok and third.digest_ok, (third.problems, third.error)
    assert house.sim.turns[-1].credential == case.server


def rows_of(scene: Scene, held: Mapping[str, str]) -> dict[str, str]:
    endpoint = f"endpoint:{scene.house.sim.base_url}"
    return {subject.replace("endpoint", endpoint): state for subject, state in held.items()}


def over_http(case: Case) -> Case:
    """At the door of a request stands the request itself: a 401 that does not name the key is no proof there."""
    soft = case.at == "handshake" and case.held == REVOKED and "invalid" not in str(case.fault)
    return replace(case, held=SUSPECT) if soft else case


BY_SOCKET = pytest.mark.parametrize("transports", [("websocket",)], ids=["by-socket"])
BY_HTTP = pytest.mark.parametrize("transports", [("websocket", "http")], ids=["by-http"])


@BY_SOCKET
@DOWNWARDS
@named((*REFUSED, *ANSWERED, *LOST))
async def test_moves_a_request_unseen_when_its_socket_fails(scene: Scene, case: Case, stream: bool) -> None:
    await moves_unseen(scene, case, stream=stream)


@BY_HTTP
@DOWNWARDS
@named(tuple(map(over_http, (*REFUSED, *ANSWERED, *LOST))))
async def test_moves_a_request_unseen_when_its_exchange_fails(scene: Scene, case: Case, stream: bool) -> None:
    await moves_unseen(scene, case, stream=stream)


@UPWARDS
async def test_excludes_the_model_and_not_the_credential_when_it_cannot_serve_the_model(scene: Scene) -> None:
    scene.house.sim.faults.set("A", "model_not_found", model="sim-1")
    assert (await scene.caller.answer_calls(store=False)).ok
    await wait_until(lambda: held_against(scene.two) == {"model:A:sim-1": "cooling"}, within=1.0)
    assert (await scene.house.caller(scene.two).turn("hello", model="sim-2")).ok
    assert scene.house.sim.turns[-1].credential == "A"


@UPWARDS
@DOWNWARDS
async def test_says_when_the_quota_comes_back_when_all_are_exhausted(
    scene: Scene, transports: tuple[str, ...], stream: bool
) -> None:
    scene.house.sim.faults.set("*", "usage_limit_reached", resets_in=3600)
    before = time.time()
    refused = await scene.caller.answer_calls(store=False, stream=stream)
    again = await scene.house.caller(scene.two, stream=stream).turn("hello")

    for answer in (refused, again):
        assert answer.status == 429 and answer.headers["content-type"].startswith("application/json")
        assert answer.error is not None and answer.error_code == "usage_limit_reached", answer.error
        assert answer.error["type"] == "usage_limit_reached", "Codex knows it by its type"
        assert before + 3590 <= answer.error["resets_at"] <= time.time() + 3610
        assert 3500 <= int(answer.headers["retry-after"]) <= 3610
    assert len(scene.house.sim.turns) == 3, "D's quota is A's, and the second caller asks nobody"


FAULTS_OF_THE_REQUEST = {
    "context_length_exceeded": (400, "context_length_exceeded", "input"),
    "content_policy": (400, "invalid_prompt", None),
}


@UPWARDS
@DOWNWARDS
@pytest.mark.parametrize("fault", FAULTS_OF_THE_REQUEST)
async def test_passes_on_what_the_vendor_says_about_the_request(scene: Scene, stream: bool, fault: str) -> None:
    scene.house.sim.faults.set("*", fault)
    refused = await scene.caller.answer_calls(store=False, stream=stream)

    status, code, param = FAULTS_OF_THE_REQUEST[fault]
    assert (refused.status, refused.error_code) == (status, code)
    assert refused.error is not None and refused.error["param"] == param
    assert refused.error["message"] == presets[fault].message
    assert "retry-after" not in refused.headers
    assert len(scene.house.sim.turns) == 2 and held_against(scene.one) == {}
    scene.house.sim.faults.clear()
    assert (await scene.caller.answer_calls(store=False)).ok


@UPWARDS
@DOWNWARDS
async def test_asks_two_credentials_at_most_for_a_request_that_everybody_refuses(scene: Scene, stream: bool) -> None:
    scene.house.sim.faults.set("*", "forbidden_generic", when="poison")
    refused = await scene.caller.turn("poison", parent=None, stream=stream)

    assert refused.status == 403, refused.error
    assert len(scene.house.sim.turns) == 3
    assert held_against(scene.one) == {}
    for _ in range(3):
        assert (await scene.house.caller(scene.two).turn("hello")).ok


@UPWARDS
async def test_leaves_no_words_of_a_credential_in_an_answer(scene: Scene) -> None:
    told = {"message": "Incorrect API key provided: sk-sim-A. Organisation org-hidden."}
    scene.house.sim.faults.set("*", "invalid_api_key", **told)
    refused = await scene.caller.answer_calls(store=False)
    said = refused.body + repr(refused.headers).encode()
    assert refused.status >= 400
    assert b"sk-sim" not in said and b"org-hidden" not in said, said


# --- failures after something was shown ---


@UPWARDS
@pytest.mark.parametrize("deed", ["reset", "error", "failed", "close", "silence"])
async def test_says_in_the_stream_that_it_broke_off_and_serves_the_retry(scene: Scene, deed: str) -> None:
    house, caller = scene.house, scene.caller
    assert (await caller.answer_calls(store=False)).ok
    house.sim.faults.set("A", Fault(at="after_deltas", after=2, do=deed, code="server_is_overloaded", status=503))
    broken = await caller.turn("two [[slow:5]]", store=False)

    assert broken.status == 200 and broken.events[0] == "response.created"
    assert broken.terminal == "error" and broken.error is not None, broken.terminal
    assert set(broken.error) >= {"code", "message", "param", "type"}, "flat, as over HTTP"
    assert broken.error["code"] == "upstream_interrupted"
    assert not [problem for problem in broken.problems if "sequence" in problem], broken.problems
    assert len(house.sim.turns) == 3, "nothing is sent anew after something was shown"

    retried = await caller.turn("two", store=False)
    assert retried.ok and retried.digest_ok, (retried.error, retried.problems)
    assert house.sim.turns[-1].credential != "A", "a retry that meets the same breach would be none"


@UPWARDS
async def test_answers_whole_although_the_vendor_breaks_off_in_the_middle_of_its_output(scene: Scene) -> None:
    assert (await scene.caller.answer_calls(store=False)).ok
    scene.house.sim.faults.set("A", Fault(at="after_deltas", after=2, do="reset"))
    whole = await scene.caller.turn("two", store=False, stream=False)
    assert whole.status == 503 or whole.ok, whole.error
    if not whole.ok:
        assert whole.error_code == "upstream_interrupted" and int(whole.headers["retry-after"]) >= 1
    scene.house.sim.faults.clear()
    assert (await scene.caller.turn("two", store=False, stream=False)).ok
