"""What lives with the credential that made it: its requests find it from every node, and nobody else's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from redis import Redis

from broker.domain.credential import Credential
from broker.edge.app import Listeners
from broker.simulator import Fault
from tests.scenarios.house import (
    OTHER_KEY,
    Answer,
    Caller,
    House,
    by,
    held_against,
    only,
    server_sent,
    wait_until,
)

Build = Callable[..., Awaitable[House]]
Said = tuple[int, dict[str, Any]]


@pytest.fixture
async def house(build: Build) -> House:
    """Three projects: what is stored with one credential is unknown to the others."""
    return await build({"A": "org-a", "B": "org-b", "C": "org-c"}, store_scope="credential")


def pool_of(house: House, *names: str) -> list[Credential]:
    return only(by(house.credentials(), "websocket", "http"), *(names or house.boundaries))


async def made_on(house: House, name: str, **more: Any) -> tuple[Listeners, Listeners]:
    """A node on which everything is made by this credential, and one on which A is preferred."""
    return (
        await house.node(credentials=pool_of(house, name), **more),
        await house.node(credentials=pool_of(house), **more),
    )


async def said(caller: Caller, method: str, path: str, body: Any = None, **more: Any) -> Said:
    async with caller.ask(path, body, method=method, **more) as answer:
        raw = await answer.read()
        assert answer.content_type == "application/json", (answer.status, raw)
        return answer.status, orjson.loads(raw)


def assert_unknown(told: Said) -> None:
    assert (told[0], told[1]["error"]["code"]) == (404, "not_found"), told


def assert_not_continued(answer: Answer) -> None:
    assert (answer.status, answer.error_code) == (400, "previous_response_not_found"), (answer.status, answer.error)


def asked(house: House, below: str) -> list[tuple[str | None, str, str]]:
    """The requests that the vendors have seen for one thing."""
    seen = [each for each in house.sim.handshakes if below in each.path]
    return [(each.credential, each.method, each.path) for each in seen]


# --- responses ---


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_finds_a_stored_response_from_every_node(house: House, stream: bool) -> None:
    one, two = await made_on(house, "B")
    caller = house.caller(one, stream=stream)
    first = await caller.turn("one")
    assert first.ok, first.problems
    for node in (one, two):
        caller.move(node)
        status, fetched = await said(caller, "GET", f"responses/{first.response_id}")
        assert (status, fetched["id"], fetched["output"]) == (200, first.response_id, first.items)
        status, listed = await said(caller, "GET", f"responses/{first.response_id}/input_items?order=asc&limit=5")
        assert (status, listed["object"]) == (200, "list")
        assert listed["data"][0]["content"][0]["text"] == "one"
        status, refused = await said(caller, "POST", f"responses/{first.response_id}/cancel")
        assert (status, refused["error"]["message"]) == (400, "Cannot cancel a synchronous response.")
    assert {credential for credential, _, _ in asked(house, str(first.response_id))} == {"B"}
    assert held_against(one) == held_against(two) == {}


async def test_finds_what_a_socket_has_stored(house: House) -> None:
    one, two = await made_on(house, "B")
    client = await house.connected(one)
    first = await client.turn("one", store=True)
    assert first.ok, first.problems
    status, fetched = await said(house.caller(two), "GET", f"responses/{first.response_id}")
    assert (status, fetched["id"]) == (200, first.response_id)


async def test_knows_nothing_of_what_was_not_stored(house: House) -> None:
    node, _ = await made_on(house, "B")
    caller = house.caller(node, session_id="agent-7")
    first = await caller.turn("one", store=False)
    status, told = await said(caller, "GET", f"responses/{first.response_id}")
    assert (status, told["error"]["code"]) == (404, "not_found"), told


METHODS = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]


@pytest.mark.parametrize("method, path", METHODS)
async def test_hides_what_another_tenant_has_made(house: House, method: str, path: str) -> None:
    node, _ = await made_on(house, "B")
    first = await house.caller(node).turn("one")
    house.sim.forget()
    assert_unknown(await said(house.caller(node, key=OTHER_KEY), method, f"responses/{first.response_id}{path}"))
    assert_unknown(await said(house.caller(node), method, f"responses/resp_nobody{path}"))
    assert house.sim.handshakes == [], "nobody was asked"
    assert (await said(house.caller(node), "GET", f"responses/{first.response_id}"))[0] == 200


@pytest.mark.parametrize("method, path", METHODS)
async def test_knows_nothing_of_an_owner_that_has_left_the_pool(house: House, method: str, path: str) -> None:
    one, _ = await made_on(house, "B")
    rest = await house.node(credentials=pool_of(house, "A", "C"))
    first = await house.caller(one).turn("one")
    house.sim.forget()
    assert_unknown(await said(house.caller(rest), method, f"responses/{first.response_id}{path}"))
    assert house.sim.handshakes == []


async def test_continues_nothing_that_was_deleted(house: House) -> None:
    one, two = await made_on(house, "B")
    caller = house.caller(one)
    first = await caller.turn("one")
    second = await caller.turn("two")
    caller.move(two)
    status, told = await said(caller, "DELETE", f"responses/{first.response_id}")
    assert (status, told["deleted"]) == (200, True)

    for node in (two, one):
        caller.move(node)
        assert_not_continued(await caller.turn("again", parent=first))
        assert_unknown(await said(caller, "GET", f"responses/{first.response_id}"))
        assert_unknown(await said(caller, "DELETE", f"responses/{first.response_id}"))
    third = await caller.turn("three", parent=second)
    assert third.ok and third.digest_ok, (third.error, third.problems)


async def test_keeps_what_the_vendor_did_not_delete(house: House) -> None:
    node, _ = await made_on(house, "B")
    caller = house.caller(node)
    first = await caller.turn("one")
    house.sim.faults.set("B", "server_error", at="handshake", do="refuse", times=1)
    status, _ = await said(caller, "DELETE", f"responses/{first.response_id}")
    assert status == 503
    again = await caller.turn("again", parent=first)
    assert again.ok, (again.error, again.problems)


FAULTS: dict[str, tuple[Fault | str, int, str]] = {
    "401": ("invalid_api_key", 503, "no_credential_available"),
    "429": ("rate_limit_exceeded", 429, "rate_limit_exceeded"),
    "503": ("service_unavailable", 503, "server_is_overloaded"),
    "html": (Fault(status=502, body="<html>bad gateway</html>"), 503, "server_is_overloaded"),
    "reset": (Fault(do="reset"), 503, "upstream_unavailable"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_says_in_its_own_words_that_an_owner_cannot_answer(house: House, fault: str) -> None:
    one, two = await made_on(house, "B")
    caller = house.caller(one)
    first = await caller.turn("one")
    deed, status, code = FAULTS[fault]
    changes = {} if isinstance(deed, Fault) and deed.do == "reset" else {"do": "refuse"}
    house.sim.faults.set("B", deed, at="handshake", **changes)
    house.sim.forget()
    caller.move(two)
    told = await said(caller, "GET", f"responses/{first.response_id}")
    assert (told[0], told[1]["error"]["code"]) == (status, code), told
    assert b"sk-sim" not in orjson.dumps(told[1])
    assert {credential for credential, _, _ in asked(house, "responses")} == {"B"}, "nobody else has it"


async def test_continues_a_stored_response_at_its_owner_when_its_session_is_forgotten(house: House) -> None:
    one, two = await made_on(house, "B", idle_ttl=0.2)
    caller = house.caller(one)
    first = await caller.turn("one")
    assert first.ok, first.problems
    with Redis.from_url(house.url) as redis:
        await wait_until(lambda: not [key for key in redis.scan_iter() if b":turns" in key])
    for node in (two, one):
        caller.move(node)
        second = await caller.turn("two", parent=first)
        assert second.ok and second.digest_ok, (second.error, second.problems)
        assert house.sim.turns[-1].credential == "B"
        assert house.sim.turns[-1].previous_response_id == first.response_id
    other = await house.caller(two, key=OTHER_KEY).turn("two", parent=first)
    assert_not_continued(other)
    socket = await house.connected(two)
    third = await socket.turn("three", parent=first, store=True)
    assert third.ok and third.digest_ok, (third.error, third.problems)


# --- in the background ---


async def ends(caller: Caller, response_id: str, within: float = 5.0) -> dict[str, Any]:
    """Ask until a response is over."""
    deadline = time.monotonic() + within
    while True:
        status, told = await said(caller, "GET", f"responses/{response_id}")
        assert status == 200, told
        if told["status"] not in ("queued", "in_progress"):
            return told
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.02)


def in_background(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "sim-1", "input": text, "background": True, "store": True, **more}


async def test_answers_at_once_what_runs_in_the_background_and_finds_it_from_every_node(house: House) -> None:
    one, two = await made_on(house, "B")
    caller = house.caller(one)
    begun = time.monotonic()
    status, queued = await said(caller, "POST", "responses", in_background("hello [[deltas:40]] [[slow:20]]"))
    assert status == 200 and queued["status"] in ("queued", "in_progress"), queued
    assert time.monotonic() - begun < 0.5
    caller.move(two)
    ended = await ends(caller, queued["id"])
    assert ended["status"] == "completed" and ended["output"], ended
    for node in (one, two):
        caller.move(node)
        answer = await caller.turn("and?", parent=None, previous_response_id=queued["id"])
        assert answer.status == 200 and answer.terminal == "response.completed", answer.error
        assert house.sim.turns[-1].credential == "B"
        assert "hello" in str(house.sim.turns[-1].context[0])


async def test_cancels_what_runs_in_the_background_from_another_node(house: House) -> None:
    one, two = await made_on(house, "B")
    caller = house.caller(one)
    _, queued = await said(caller, "POST", "responses", in_background("hello [[deltas:400]] [[slow:20]]"))
    caller.move(two)
    status, cancelled = await said(caller, "POST", f"responses/{queued['id']}/cancel")
    assert (status, cancelled["status"]) == (200, "cancelled"), cancelled
    assert (await ends(caller, queued["id"]))["status"] == "cancelled"


async def test_goes_on_in_the_background_when_the_client_of_its_stream_leaves(house: House) -> None:
    one, two = await made_on(house, "B")
    caller = house.caller(one)
    body = in_background("hello [[deltas:40]] [[slow:20]]", stream=True)
    async with caller.ask("responses", body) as answer:
        async for event in server_sent(answer):
            if event["type"] == "response.created":
                response_id = event["response"]["id"]
                # who has its id may ask for it at once, wherever it likes
                status, told = await said(house.caller(two), "GET", f"responses/{response_id}")
                assert (status, told["id"]) == (200, response_id), told
            if event["type"] == "response.output_text.delta":
                break
        answer.close()
    ended = await ends(house.caller(two), response_id)
    assert ended["status"] == "completed", ended
    assert house.sim.turns[-1].outcome == "completed"
    async with house.caller(two).ask(f"responses/{response_id}?stream=true&starting_after=3", method="GET") as replayed:
        assert replayed.content_type == "text/event-stream"
        numbers = [event["sequence_number"] async for event in server_sent(replayed)]
    assert numbers[0] == 4 and numbers == sorted(numbers)
    following = await house.caller(two).turn("and?", previous_response_id=response_id)
    assert following.status == 200 and following.terminal == "response.completed", following.error
    assert house.sim.turns[-1].credential == "B"


async def test_moves_what_runs_in_the_background_before_it_is_taken(house: House) -> None:
    _, node = await made_on(house, "B")
    house.sim.faults.set("A", "usage_limit_reached", at="handshake", do="refuse")
    caller = house.caller(node)
    status, queued = await said(caller, "POST", "responses", in_background("hello"))
    assert status == 200, queued
    assert (await ends(caller, queued["id"]))["status"] == "completed"


# --- conversations ---


async def conversation_on(house: House, name: str) -> tuple[Listeners, str]:
    """A conversation of this credential, and a node on which A is preferred."""
    one, two = await made_on(house, name)
    status, made = await said(house.caller(one), "POST", "conversations", {"metadata": {"x": "y"}})
    assert (status, made["object"], made["metadata"]) == (200, "conversation", {"x": "y"}), made
    return two, made["id"]


@pytest.mark.parametrize("below", ["socket", "streamed", "whole"])
async def test_keeps_a_conversation_with_the_credential_that_made_it(house: House, below: str) -> None:
    node, name = await conversation_on(house, "B")
    caller = house.caller(node, stream=below == "streamed")
    for text in ("one", "two"):
        if below == "socket":
            turn = await (await house.connected(node)).turn(text, store=True, extra={"conversation": name})
            assert turn.terminal == "response.completed", turn.error
        else:
            answer = await caller.turn(text, parent=None, conversation={"id": name})
            assert answer.terminal == "response.completed", answer.error
    assert [turn.credential for turn in house.sim.turns] == ["B", "B"]
    status, listed = await said(caller, "GET", f"conversations/{name}/items?order=asc")
    assert status == 200
    assert [i["content"][0]["text"] for i in listed["data"] if i.get("role") == "user"] == ["one", "two"]


async def test_waits_for_the_reset_of_the_only_credential_that_has_a_conversation(house: House) -> None:
    node, name = await conversation_on(house, "B")
    house.sim.faults.set("B", "usage_limit_reached", resets_in=3600)
    caller = house.caller(node)
    for _ in range(2):
        refused = await caller.turn("one", parent=None, conversation=name)
        assert (refused.status, refused.error_code) == (429, "usage_limit_reached"), refused.error
        assert int(refused.headers["retry-after"]) > 3500
    assert {turn.credential for turn in house.sim.turns} == {"B"}
    assert (await caller.turn("unbound", parent=None)).ok


async def test_knows_no_conversation_of_another_tenant_and_none_that_was_deleted(house: House) -> None:
    node, name = await conversation_on(house, "B")
    other, caller = house.caller(node, key=OTHER_KEY), house.caller(node)
    for path in ("", "/items"):
        assert_unknown(await said(other, "GET", f"conversations/{name}{path}"))
    foreign = await other.turn("one", parent=None, conversation=name)
    assert (foreign.status, foreign.error_code) == (404, "not_found")
    status, added = await said(
        caller, "POST", f"conversations/{name}/items", {"items": [{"role": "user", "content": "hi"}]}
    )
    assert status == 200 and len(added["data"]) == 1, added
    status, told = await said(caller, "POST", f"conversations/{name}", {"metadata": {"z": "1"}})
    assert (status, told["metadata"]) == (200, {"z": "1"})
    status, told = await said(caller, "DELETE", f"conversations/{name}")
    assert (status, told["deleted"]) == (200, True)
    assert_unknown(await said(caller, "GET", f"conversations/{name}"))
    gone = await caller.turn("one", parent=None, conversation=name)
    assert (gone.status, gone.error_code) == (404, "not_found")
    assert house.sim.turns == []


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_says_that_nobody_knows_what_became_of_a_turn_of_a_conversation(house: House, stream: bool) -> None:
    node, name = await conversation_on(house, "B")
    caller = house.caller(node)
    house.sim.faults.set("B", Fault(at="before_created", do="reset"), times=1)
    lost = await caller.turn("one", parent=None, conversation=name, stream=stream)
    assert (lost.status, lost.error_code) == (502, "outcome_unknown"), lost.error
    assert len(house.sim.turns) == 1, "it may stand there already"


# --- compacted context ---


@pytest.mark.parametrize("way", ["endpoint", "response"])
@pytest.mark.parametrize("below", ["socket", "request"])
async def test_takes_compacted_context_back_to_where_it_can_be_read(house: House, way: str, below: str) -> None:
    one, two = await made_on(house, "B")
    maker = house.caller(one)
    if way == "endpoint":
        status, made = await said(maker, "POST", "responses/compact", {"model": "sim-1", "input": "a long story"})
        assert (status, made["object"]) == (200, "response.compaction"), made
        items = made["output"]
    else:
        rule = {"type": "compaction", "compact_threshold": 1}
        answer = await maker.turn("a long story", store=False, context_management=[rule])
        assert answer.ok, answer.problems
        items = [item for item in answer.items if item["type"] == "compaction"]
    assert [item["type"] for item in items] == ["compaction"]
    given = [*items, {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and?"}]}]

    if below == "socket":
        turn = await (await house.connected(two)).turn(given)
        assert turn.terminal == "response.completed", turn.error
    else:
        answer = await house.caller(two).turn(given, store=False)
        assert answer.terminal == "response.completed", answer.error
    assert house.sim.turns[-1].credential == "B"
    assert [record.credential for record in house.sim.turns if record.path.endswith("/responses")][-1:] == ["B"]


async def test_reads_compacted_context_anywhere_in_its_organisation(build: Build) -> None:
    house = await build({"A": "org-a", "B": "org-b", "B2": "org-b"}, store_scope="credential")
    one, two = await made_on(house, "B")
    _, made = await said(house.caller(one), "POST", "responses/compact", {"model": "sim-1", "input": "a story"})
    house.sim.faults.set("B", "usage_limit_reached", resets_in=3600)
    caller = house.caller(two)
    moved = await caller.turn([*made["output"], {"role": "user", "content": "and?"}], store=False)
    assert moved.terminal == "response.completed", moved.error
    assert house.sim.turns[-1].credential == "B2"
    house.sim.faults.set("B2", "usage_limit_reached", resets_in=3600)
    refused = await caller.turn([*made["output"], {"role": "user", "content": "and?"}], parent=None, store=False)
    assert (refused.status, refused.error_code) == (429, "usage_limit_reached"), refused.error
    assert all(record.credential != "A" for record in house.sim.turns if record.path.endswith("/responses"))


# --- under another name ---


async def test_finds_what_was_made_with_a_secret_that_was_replaced(house: House) -> None:
    one, _ = await made_on(house, "B")
    first = await house.caller(one).turn("one")
    renamed = [replace(each, priority=9) for each in pool_of(house)]
    again = await house.node(credentials=renamed)
    status, told = await said(house.caller(again), "GET", f"responses/{first.response_id}")
    assert (status, told["id"]) == (200, first.response_id)
