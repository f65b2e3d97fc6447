"""Clients that leave in their several ways, and clients that send bytes nobody can read."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from broker.domain.credential import Credential, Secret
from broker.edge.wiring import Bounds
from tests.circles import uncollected
from tests.scenarios.house import KEY, House, Plain, conversation, counted, plain, wait_until
from tests.scenarios.test_collection import OURS
from tests.scenarios.test_echoes import Frame as Event
from tests.scenarios.test_echoes import Speaker, upstream, words
from tests.upstream.bench import RawClient, loop_turn
from tests.upstream.frames import CLOSE, Frame

GOODBYE = Frame((1000).to_bytes(2, "big"), CLOSE, mask=b"\0\0\0\0")


def cut(socket: Plain) -> None:
    """End the connection without a close frame."""
    socket.ws.get_extra_info("socket").shutdown(2)


def replayed(house: House, said: list[str]) -> None:
    """The vendor was last sent a whole conversation, with these words of the user."""
    served = house.sim.turns[-1]
    assert served.previous_response_id is None
    assert [item["content"][0]["text"] for item in served.input if item.get("role") == "user"] == said


async def test_keeps_a_session_that_another_socket_has_gone_on_with_when_its_first_socket_is_closed(
    house: House,
) -> None:
    node = await house.node()
    one = await house.connected(node)
    first = await one.turn("one")
    assert first.ok, first.problems
    two = await house.connected(node)
    second = await two.turn("two", parent=first)
    assert second.ok, second.problems

    await one.close()
    await wait_until(lambda: house.sim.sockets["A"] == 1)
    house.sim.faults.set("A", "usage_limit_reached")
    third = await two.turn("three", parent=second)

    assert third.ok, third.problems
    replayed(house, ["one", "two", "three"])
    assert list(house.sim.turns[-1].context) == conversation(third)


@pytest.mark.parametrize("code", [1011, 1006, 4000])
async def test_keeps_a_session_when_the_client_s_close_says_that_something_went_wrong(house: House, code: int) -> None:
    node = await house.node()
    async with plain(node) as socket:
        await socket.create("one")
        first = (await socket.until(1))[-1]["response"]["id"]
        if code == 1006:
            cut(socket)
        else:
            await socket.ws.close(code=code, message=b"keepalive ping timeout")
    await wait_until(lambda: sum(house.sim.sockets.values()) == 0)

    async with plain(node) as socket:
        await socket.create("two", previous_response_id=first)
        events = await socket.until(1)

    assert events[-1]["type"] == "response.completed", events[-1]
    replayed(house, ["one", "two"])


async def test_deletes_a_session_when_its_only_socket_is_closed_cleanly(house: House) -> None:
    node = await house.node()
    async with plain(node) as socket:
        await socket.create("one")
        first = (await socket.until(1))[-1]["response"]["id"]
    await wait_until(lambda: sum(house.sim.sockets.values()) == 0)

    async with plain(node) as socket:
        await socket.create("two", previous_response_id=first)
        (refused,) = await socket.until(1)

    assert refused["error"]["code"] == "previous_response_not_found"
    assert len(house.sim.turns) == 1


@pytest.mark.parametrize("manner", ["closes", "is_cut"])
async def test_sends_nothing_up_when_the_client_leaves_during_the_dial(house: House, manner: str) -> None:
    knocked, opened, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    frames: list[str] = []

    async def hesitate(request: web.Request) -> web.WebSocketResponse:
        knocked.set()
        try:
            await opened.wait()
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            async for message in ws:
                frames.append(message.data)
            return ws
        finally:
            over.set()

    app = web.Application()
    app.router.add_get("/v1/responses", hesitate)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        node = await house.node(credentials=[Credential("M", address, Secret("sk-m"), limit_group="M", boundary="m")])
        client = await house.connected(node, session_id="s")
        turn = asyncio.create_task(client.turn("one"))
        await asyncio.wait_for(knocked.wait(), 2.0)
        await (client.kill() if manner == "is_cut" else client.close())
        assert not (await turn).ok
        opened.set()
        await asyncio.wait_for(over.wait(), 5.0)
    finally:
        await runner.cleanup()

    assert frames == []
    await wait_until(lambda: counted(node, "broker_sockets") == 0)
    assert counted(node, "broker_dispatches_total") == 0


@pytest.mark.parametrize("first", ["client", "vendor"])
async def test_begins_no_waiting_turn_when_the_client_leaves_as_the_one_before_it_ends(
    house: House, first: str
) -> None:
    async def script(speaker: Speaker, frame: Event) -> None:
        if words(frame["input"]) == ["one"]:
            speakers.append(speaker)
            await speaker.begin("r1")
        else:
            await speaker.tell("r2", "fine")

    fault = {"type": "invalid_request_error", "code": "context_length_exceeded", "message": "too long"}
    speakers: list[Speaker] = []
    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        with uncollected(*OURS) as left:
            client = await RawClient.connect(node.client_port, "s")
            client.create("one")
            while not any(b"delta" in frame.payload for frame in client.frames):
                await client.more()
            client.create("two")
            assert await client.settled() == [], "the second one waits"
            # both are there when the node looks at its sockets again, because they are written without a pause
            if first == "client":
                client.send(GOODBYE)
            await speakers[0].say("error", status=400, error=fault)
            if first == "vendor":
                client.send(GOODBYE)
            # at once, and not after the time that a turn has to end behind its client
            await wait_until(lambda: not node.node.sockets, within=1.0)
            await client.abort()
            await wait_until(lambda: not node.node.busy and not left(), within=1.0)
        if first == "client":  # else the second one has been begun before anybody could know
            assert vendor.inputs() == [["one"]]


async def test_leaves_no_turn_behind_when_its_dial_takes_longer_than_a_leaving_client_is_waited_for(
    house: House,
) -> None:
    knocked, hung_up = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocked.set()
        while await reader.read(1 << 16):
            pass
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    bounds = Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=0.1)
    mute = Credential("M", address, Secret("sk-m"), limit_group="M", boundary="m")
    node = await house.node(credentials=[mute], bounds=bounds)
    with uncollected(*OURS) as left:
        async with plain(node) as socket:
            await socket.create("one")
            await asyncio.wait_for(knocked.wait(), 2.0)
        await wait_until(lambda: not node.node.sockets, within=1.0)
        # the dial itself would have another second or two
        await wait_until(lambda: not node.node.busy and not left(), within=1.0)
    await asyncio.wait_for(hung_up.wait(), 2.0)
    server.close()


async def test_sends_no_create_up_when_it_crosses_our_own_close(house: House) -> None:
    async def script(speaker: Speaker, frame: Event) -> None:
        await speaker.begin(f"r{len(vendor.frames)}")

    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        client = await RawClient.connect(node.client_port, "s")
        client.create("one")
        while not any(b"delta" in frame.payload for frame in client.frames):
            await client.more()
        with uncollected(*OURS) as left:
            (socket,) = node.node.sockets
            closing = asyncio.create_task(socket.close(1012, "node restarts"))
            await loop_turn(1)
            # the close is written but not yet read, and the node has only begun to let go
            client.create("two")
            await wait_until(lambda: not node.node.sockets)
            assert await client.leave() == (1012).to_bytes(2, "big") + b"node restarts"
            await closing
            del socket, closing
            await wait_until(lambda: not node.node.busy and not left(), within=1.0)
        assert vendor.inputs() == [["one"]]


async def test_refuses_an_authorization_that_is_no_utf_8(house: House) -> None:
    node = await house.node()
    reader, writer = await asyncio.open_connection("127.0.0.1", node.client_port)
    writer.write(
        b"GET /v1/responses HTTP/1.1\r\nHost: broker\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"Authorization: Bearer " + KEY.encode() + b"\xff\xfe\r\n\r\n"
    )
    status = await asyncio.wait_for(reader.readline(), 2.0)
    writer.close()

    assert status.split()[1] == b"401", status
    client = await house.connected(node)
    assert (await client.turn("one")).ok


async def bad_text(socket: Plain, raw: bytes) -> dict[str, object]:
    """What the answer is to a text frame of these bytes."""
    await socket.ws.send_frame(raw, aiohttp.WSMsgType.TEXT)
    return await socket.event()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"response.create","model":"sim-1","store":false,"input":"abc\xff\xfe"}',
        b'{"type":"response.create","model":"sim-1","store":false,"input":"\xed\xa0\x80"}',
        b'{"type":"response.create","model":"sim\xc3","store":false,"input":"abc"}',
        b'{"type":"response.create","model":"sim-1","store":false,"input":"abc","x\xff":1}',
    ],
)
async def test_answers_a_frame_that_is_no_utf_8_and_goes_on(house: House, raw: bytes) -> None:
    node = await house.node()
    async with plain(node) as socket:
        for _ in range(2):
            refused = await bad_text(socket, raw)
            assert (refused["type"], refused["status"]) == ("error", 400), refused
        await socket.create("good words")
        assert (await socket.until(1))[-1]["type"] == "response.completed"

    assert len(house.sim.turns) == 1, "what nobody can read is not sent up"
    assert counted(node, "broker_upstream_failures_total") == 0
