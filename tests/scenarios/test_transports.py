"""What a vendor speaks and what a client speaks need not be the same: every turn is the same turn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import orjson
import pytest
from aiohttp import web

from broker.domain.credential import Credential, Secret
from broker.edge.app import Listeners
from broker.simulator import Fault, SessionClient
from broker.simulator.manners import Manner
from tests.scenarios.house import House, by, conversation, counted, held_against, plain, wait_until
from tests.serving import serving

Build = Callable[..., Awaitable[House]]


def speaking(house: House, **transports: tuple[str, ...]) -> list[Credential]:
    """The house's credentials, each with the transports of its endpoint."""
    return [replace(each, transports=transports[each.name]) for each in house.credentials() if each.name in transports]


async def by_http(house: House) -> tuple[Listeners, SessionClient]:
    """A client by WebSocket, in front of vendors that have none."""
    node = await house.node(credentials=by(house.credentials(), "http"))
    return node, await house.connected(node, session_id="agent-7")


# --- a socket below, requests above ---


async def test_gives_a_vendor_that_remembers_nothing_the_whole_context_with_every_turn(house: House) -> None:
    _, client = await by_http(house)
    for number in range(4):
        turn = await client.turn(f"turn {number} [[call:look]]")
        assert turn.ok and turn.digest_ok, (turn.error, turn.problems)
        turn = await client.tool_turn()
        assert turn.ok and turn.digest_ok, (turn.error, turn.problems)
        record = house.sim.turns[-1]
        assert record.transport == "sse" and record.previous_response_id is None
        assert record.input == conversation(turn) == list(record.context)
    assert sum(house.sim.sockets.values()) == 0 and len(house.sim.turns) == 8


async def test_sends_no_field_that_only_sockets_have_by_http(house: House) -> None:
    node, _ = await by_http(house)
    async with plain(node) as socket:
        await socket.create("hello", lane="a", client_metadata={"x": "y"}, unheard_of=[1, 2])
        events = await socket.until(1)
    assert events[-1]["type"] == "response.completed"
    record = house.sim.turns[-1]
    assert not {"type", "stream_id", "generate"} & set(record.frame_keys), record.frame_keys
    assert record.fields["stream"] is True
    assert record.fields["unheard_of"] == [1, 2] and record.fields["client_metadata"] == {"x": "y"}


async def test_runs_lanes_side_by_side_by_http_and_names_them_in_every_event(house: House) -> None:
    _, client = await by_http(house)
    slow = asyncio.create_task(client.turn("slow [[deltas:40]] [[slow:20]]", lane="slow"))
    await wait_until(lambda: house.sim.turns)
    quick = [await client.turn(f"quick {number}", lane="quick") for number in range(3)]
    assert not slow.done(), "nobody waits for another lane"
    assert all(turn.ok and turn.digest_ok for turn in [*quick, await slow]), client.notices
    fork = await client.turn("fork", lane="quick", parent=quick[0])
    assert fork.ok and fork.digest_ok, (fork.error, fork.problems)


async def test_keeps_the_turns_of_one_lane_in_order_by_http(house: House) -> None:
    node, _ = await by_http(house)
    async with plain(node) as socket:
        for number in range(3):
            await socket.create(f"turn {number} [[slow:5]]", lane="a")
        events = await socket.until(3)
    completed = [event["response"]["id"] for event in events if event["type"] == "response.completed"]
    created = [event["response"]["id"] for event in events if event["type"] == "response.created"]
    assert completed == created and len(set(created)) == 3
    assert all(event["stream_id"] == "a" for event in events)
    assert [event["type"] for event in events].index("response.completed") < len(events) // 2


async def test_answers_a_warm_up_itself_and_continues_it_where_the_vendor_has_no_such_thing(house: House) -> None:
    _, client = await by_http(house)
    warm = await client.turn("the context", extra={"generate": False})
    assert warm.ok and warm.items == [], (warm.error, warm.problems)
    assert warm.events == ["response.created", "response.completed"]
    assert house.sim.turns == []

    turn = await client.turn("the question")
    assert turn.ok and turn.digest_ok, (turn.error, turn.problems)
    assert list(house.sim.turns[-1].context) == conversation(turn)


async def test_continues_a_warm_up_that_was_stored_only_in_words_from_another_node(house: House) -> None:
    _, client = await by_http(house)
    warm = await client.turn("the context", store=True, extra={"generate": False})
    assert warm.ok, (warm.error, warm.problems)
    await client.kill()
    other = await house.node(credentials=by(house.credentials(), "http"))
    turn = await (await house.connected(other, session_id="agent-7")).turn("the question", parent=warm, store=True)
    assert turn.ok and turn.digest_ok, (turn.error, turn.problems)


async def test_refuses_steers_where_the_vendor_cannot_be_steered(house: House) -> None:
    node, _ = await by_http(house)
    async with plain(node) as socket:
        await socket.create("hello [[deltas:20]] [[slow:20]]")
        event = await socket.event()
        response_id = event["response"]["id"]
        steer = {"type": "response.steer", "previous_response_id": response_id, "input": "left"}
        await socket.ws.send_str(orjson.dumps(steer).decode())
        events = await socket.until(1)
    failed = [event for event in events if event["type"] == "response.steer.failed"]
    assert [event["error"]["code"] for event in failed] == ["steering_not_supported"], [e["type"] for e in events]
    assert failed[0]["steer"]["previous_response_id"] == response_id
    assert events[-1]["type"] == "response.completed", "the turn itself goes on"


async def test_tells_an_error_in_the_form_of_sockets_to_a_socket(house: House) -> None:
    node, _ = await by_http(house)
    house.sim.faults.set("*", "context_length_exceeded")
    async with plain(node) as socket:
        await socket.create("hello", lane="a")
        (event,) = await socket.until(1)
        assert (event["type"], event["status"], event["stream_id"]) == ("error", 400, "a")
        assert event["error"]["code"] == "context_length_exceeded"
        house.sim.faults.set("*", Fault(at="after_deltas", after=2, do="error", code="server_is_overloaded"))
        await socket.create("hello [[slow:5]]", lane="a")
        events = await socket.until(1)
        assert "error" in events[-1] and isinstance(events[-1]["status"], int), events[-1]
        assert events[-1]["stream_id"] == "a"


async def test_ends_the_request_upstream_when_a_socket_leaves(house: House) -> None:
    node, client = await by_http(house)
    asked = asyncio.create_task(client.turn("[[deltas:400]] [[slow:20]]"))
    await wait_until(lambda: house.sim.turns)
    await client.kill()
    await asked
    await wait_until(lambda: house.sim.turns[-1].outcome == "lost", within=1.5)
    await wait_until(lambda: not node.node.sockets and node.node.dialer.open_links == 0)


# --- from one to the other ---


@pytest.mark.parametrize("first, second", [("websocket", "http"), ("http", "websocket")])
@pytest.mark.parametrize("below", ["socket", "request"])
async def test_moves_a_session_between_vendors_that_speak_differently(
    house: House, first: str, second: str, below: str
) -> None:
    node = await house.node(credentials=speaking(house, A=(first,), B=(second,)))
    client = await house.connected(node, session_id="s") if below == "socket" else house.caller(node, session_id="s")
    one = await client.turn("one", store=False)
    assert one.ok, one.problems
    house.sim.faults.set("A", "usage_limit_reached")
    two = await client.turn("two", store=False)
    three = await client.turn("three", store=False)
    for turn in (two, three):
        assert turn.ok and turn.digest_ok, (turn.error, turn.problems)
        assert turn.events.count("response.created") == 1
    assert [record.credential for record in house.sim.turns] == ["A", "A", "B", "B"]
    wanted = "websocket" if second == "websocket" else "sse"
    assert {record.transport for record in house.sim.turns[2:]} == {wanted}
    assert list(house.sim.turns[-1].context) == conversation(three)


async def test_prefers_what_the_operator_prefers_for_sockets_and_requests_for_requests(house: House) -> None:
    for transports, wanted in ((("websocket", "http"), "websocket"), (("http", "websocket"), "sse")):
        node = await house.node(credentials=by(house.credentials(), *transports))
        assert (await (await house.connected(node)).turn("hello")).ok
        assert house.sim.turns[-1].transport == wanted
        assert (await house.caller(node).turn("hello")).ok
        assert house.sim.turns[-1].transport == "sse"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_serves_requests_by_a_vendor_that_only_has_sockets(house: House, stream: bool) -> None:
    node = await house.node()
    caller = house.caller(node, stream=stream)
    for turn in (await caller.turn("one [[call:look]]"), await caller.answer_calls()):
        assert turn.ok, (turn.error, turn.problems)
    assert {record.transport for record in house.sim.turns} == {"websocket"}
    assert not {"stream", "background"} & set(house.sim.turns[-1].frame_keys), house.sim.turns[-1].frame_keys
    # each request lets go of its socket
    await wait_until(lambda: sum(house.sim.sockets.values()) == 0)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_runs_in_the_background_only_where_the_vendor_speaks_http(house: House, stream: bool) -> None:
    node = await house.node(credentials=speaking(house, A=("websocket",), B=("websocket", "http")))
    caller = house.caller(node)
    async with caller.ask(
        "responses", {"model": "sim-1", "input": "hello", "background": True, "stream": stream}
    ) as answer:
        assert answer.status == 200
        assert b'"resp_' in await answer.read()
    assert [(turn.credential, turn.fields["background"]) for turn in house.sim.turns] == [("B", True)]

    lonely = await house.node(credentials=speaking(house, A=("websocket",)))
    caller.move(lonely)
    async with caller.ask("responses", {"model": "sim-1", "input": "hello", "background": True}) as answer:
        told = await answer.json()
        assert (answer.status, told["error"]["code"]) == (501, "endpoint_not_offered"), told
    assert len(house.sim.turns) == 1 and held_against(lonely) == {}


# --- endpoints without a WebSocket ---


@pytest.mark.parametrize("status", [404, 405, 426, 501])
async def test_turns_to_http_at_once_where_there_is_no_websocket_and_asks_for_it_no_more(
    build: Build, status: int
) -> None:
    house = await build({"A": "org-a"}, manners={"A": Manner("gateway", upgrade_status=status)})
    node = await house.node(credentials=by(house.credentials(), "websocket", "http"))
    for _ in range(3):
        client = await house.connected(node)
        begun = time.monotonic()
        for text in ("one", "two"):
            turn = await client.turn(text)
            assert turn.ok and turn.digest_ok, (turn.error, turn.problems)
        assert time.monotonic() - begun < 1.0
    upgrades = [seen for seen in house.sim.handshakes if seen.transport == "websocket"]
    assert len(upgrades) == 1, "once, and then not for a while"
    assert held_against(node) == {} and counted(node, "broker_failovers_total") == 0
    assert counted(node, "broker_upstream_failures_total") == 0


async def test_blames_an_upgrade_that_is_refused_where_nothing_else_is_spoken(build: Build) -> None:
    house = await build({"A": "org-a", "B": "org-a"}, manners={"A": Manner("gateway", upgrade_status=404)})
    node = await house.node()
    turn = await (await house.connected(node)).turn("one")
    assert turn.ok, (turn.error, turn.problems)
    assert house.sim.turns[-1].credential == "B"


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_does_not_take_another_refusal_of_the_upgrade_for_a_lack_of_websockets(house: House, status: int) -> None:
    node = await house.node(credentials=by(house.credentials(), "websocket", "http"))
    house.sim.faults.set("A", Fault(at="handshake", do="refuse", status=status, code=None))
    assert (await (await house.connected(node)).turn("one")).ok
    assert house.sim.turns[-1].credential != "A"
    assert house.sim.turns[-1].transport == "websocket"


# --- connections ---


class Counting:
    """A vendor that counts connections, and closes one behind an answer where it is told to."""

    def __init__(self) -> None:
        self.connections: set[object] = set()
        self.requests = 0
        self.open: list[web.Request] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.requests += 1
        self.connections.add(request.transport)
        self.open.append(request)
        told = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await told.prepare(request)
        number = self.requests
        response = {"id": f"resp_{number}", "status": "completed", "output": []}
        for at, kind in enumerate(("created", "completed")):
            event = orjson.dumps({"type": f"response.{kind}", "sequence_number": at, "response": response})
            await told.write(b"event: response.%b\ndata: %b\n\n" % (kind.encode(), event))
        return told

    def close_all(self) -> None:
        """What a vendor does with connections that nobody has used for a while."""
        for request in self.open:
            if request.transport is not None:
                request.transport.close()
        self.open.clear()


@contextlib.asynccontextmanager
async def counting() -> AsyncIterator[Counting]:
    vendor = Counting()
    async with serving(web.post("/v1/responses", vendor.answer)) as address:
        vendor.url = address + "/v1"
        yield vendor


@pytest.mark.parametrize("below", ["socket", "request"])
async def test_uses_connections_again_and_loses_nothing_when_one_was_closed_meanwhile(house: House, below: str) -> None:
    async with counting() as vendor:
        credential = Credential("M", vendor.url, Secret("sk-m"), limit_group="M", transports=("http",))
        node = await house.node(credentials=[credential])

        async def ask() -> None:
            if below == "socket":
                async with plain(node) as socket:
                    await socket.create("hello", store=True)
                    assert (await socket.until(1))[-1]["type"] == "response.completed"
                return
            async with caller.ask("responses", {"model": "sim-1", "input": "hello", "stream": True}) as answer:
                assert answer.status == 200 and b"response.completed" in await answer.read()

        caller = house.caller(node)
        for _ in range(5):
            await ask()
        assert (vendor.requests, len(vendor.connections)) == (5, 1)
        for _ in range(5):
            vendor.close_all()
            await ask()
        assert vendor.requests == 10, "nothing was asked twice"
        assert counted(node, "broker_upstream_failures_total", kind="transport_lost") == 0
        assert held_against(node) == {}


async def test_sends_again_what_met_a_connection_that_was_just_being_closed(house: House) -> None:
    """The vendor closes as the request comes, which nobody can see in time."""
    seen: list[int] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(2):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if number == 1:
                writer.close()
                return
            seen.append(1)
            response = {"id": f"resp_{len(seen)}", "status": "completed", "output": []}
            events = b"".join(
                b"data: %b\n\n" % orjson.dumps({"type": f"response.{k}", "sequence_number": at, "response": response})
                for at, k in enumerate(("created", "completed"))
            )
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(events)
                + events
            )

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    credential = Credential("M", url, Secret("sk-m"), limit_group="M", transports=("http",))
    node = await house.node(credentials=[credential])
    caller = house.caller(node)
    try:
        for _ in range(3):
            async with caller.ask("responses", {"model": "sim-1", "input": "hello", "stream": True}) as answer:
                assert answer.status == 200 and b"response.completed" in await answer.read()
    finally:
        server.close()
    assert held_against(node) == {}
    assert counted(node, "broker_upstream_failures_total", kind="transport_lost") == 0, "nobody has read it"
    assert counted(node, "broker_turns_total", outcome="completed") == 3
