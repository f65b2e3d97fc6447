"""What no client should send, and clients that do not behave: a clear answer, a bounded end, nobody else is harmed."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from typing import Any

import aiohttp
import orjson
import pytest

from broker.edge.app import Listeners
from broker.edge.websocket import MAX_STEERS
from broker.edge.wiring import Bounds
from broker.simulator import SessionClient
from tests.scenarios.house import KEY, House, Plain, counted, plain, wait_until
from tests.scenarios.test_echoes import Speaker, started, steer, upstream
from tests.upstream.bench import RawClient, loop_turn
from tests.upstream.frames import Frame

MIB = 1 << 20
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
DEEP = 10_000


async def good_turn(client: Plain) -> None:
    """The socket serves a turn as if nothing had been."""
    await client.create("good words")
    events = await client.until(1)
    assert events[-1]["type"] == "response.completed", events[-1]


async def neighbour(house: House, node: Listeners) -> SessionClient:
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    return client


def create(**fields: Any) -> str:
    return orjson.dumps({"type": "response.create", "model": "sim-1", "store": False, **fields}).decode()


async def upgraded(node: Listeners) -> socket.socket:
    """A bare TCP connection that has been upgraded."""
    loop = asyncio.get_running_loop()
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await loop.sock_connect(raw, ("127.0.0.1", node.client_port))
    headers = {"Host": "broker", **UPGRADE, "Authorization": f"Bearer {KEY}"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    await loop.sock_sendall(raw, f"GET /v1/responses HTTP/1.1\r\n{lines}\r\n".encode())
    assert b" 101 " in await loop.sock_recv(raw, 4096)
    return raw


def masked(text: bytes) -> bytes:
    """One text frame as a client sends it, with a mask of zeros."""
    assert len(text) < 126
    return bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text


# --- frames ---

BAD_FRAMES: dict[str, str] = {
    "empty": "",
    "not JSON": "this is not JSON {",
    "half a frame": '{"type":"response.create","model":"sim-1","inp',
    "an array": '[{"type":"response.create"}]',
    "a string": '"response.create"',
    "a number": "4711",
    "null": "null",
    "no type": '{"model":"sim-1","input":"x"}',
    "type null": '{"type":null}',
    "type a number": '{"type":7}',
    "unknown type": '{"type":"response.cancel","response_id":"resp_0"}',
    "type of 5000 characters": '{"type":"%s"}' % ("x" * 5000),
    "NaN": '{"type":"response.create","model":"sim-1","temperature":NaN}',
    "a lone surrogate as type": '{"type":"\\ud800"}',
    "trailing garbage": '{"type":"response.create","model":"sim-1","input":"x"} trailing',
    "deep unknown field": '{"type":"response.create","model":"sim-1","x":' + "[" * DEEP + "]" * (DEEP - 1),
    "model a number": create(model=7),
    "model an object": create(model={"a": 1}),
    "stream_id a number": create(stream_id=7),
    "stream_id an object": create(stream_id={}),
    "previous_response_id a number": create(previous_response_id=7),
    "previous_response_id a list": create(previous_response_id=["resp_0"]),
    "store a string": create(store="no"),
    "input of a wrong type": create(input=7),
    "input of wrong items": create(input=[1, 2, 3]),
    "input an object": create(input={"role": "user"}),
    "conversation of a wrong type": create(input="x", conversation=7),
    "no model": '{"type":"response.create","input":"x"}',
    "a steer without anything": '{"type":"response.steer"}',
    "a steer of numbers": '{"type":"response.steer","previous_response_id":7,"input":7}',
    "response not an object": '{"type":"response.create","response":7}',
    "a nested frame without a type": '{"type":"response.create","response":{"model":7}}',
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=list(BAD_FRAMES))
async def test_answers_a_bad_frame_and_serves_the_next_good_one(house: House, frame: str) -> None:
    node = await house.node()
    other = await neighbour(house, node)
    async with plain(node) as client:
        await client.ws.send_str(frame)
        answer = await client.event(within=3.0)

        assert answer["type"] in ("error", "response.steer.failed"), answer
        error = answer["error"]
        assert error["type"] and error["code"] and error["message"]
        if answer["type"] == "error":
            assert isinstance(answer["status"], int) and 400 <= answer["status"] < 500
        assert len(error["message"]) < 1000
        await good_turn(client)
    assert counted(node, "broker_turns_total", outcome="broken") == 0
    assert node.node.placement.usable() == 3
    assert (await other.turn("two")).ok


ODD_FRAMES: dict[str, str] = {
    "deep unknown field": create(input="x")[:-1] + ',"x":' + "[" * DEEP + "]" * DEEP + "}",
    "deep unknown object": create(input="x")[:-1] + ',"x":' + '{"a":' * DEEP + "1" + "}" * DEEP + "}",
    "deep input": create()[:-1] + ',"input":' + "[" * DEEP + "]" * DEEP + "}",
    "deep item": create()[:-1]
    + ',"input":[{"type":"message","role":"user","content":'
    + "[" * DEEP
    + "]" * DEEP
    + "}]}",
    "deep item that may bind": create()[:-1]
    + ',"input":[{"type":"message","role":"user","file_id":null,"content":'
    + "[" * DEEP
    + "]" * DEEP
    + "}]}",
    "deep conversation": create(input="x")[:-1] + ',"conversation":' + "[" * DEEP + "]" * DEEP + "}",
    "deep response": '{"type":"response.create","response":' + '{"a":' * DEEP + "1" + "}" * DEEP + "}",
    "a huge integer": create(input="x")[:-1] + ',"seed":' + "9" * 5000 + "}",
    "a huge exponent": create(input="x")[:-1] + ',"temperature":1e999999}',
    "duplicate keys": '{"type":"x","type":"response.create","model":7,"model":"sim-1","input":"a","input":"b"}',
    "a duplicate type that is wrong": '{"type":"response.create","model":"sim-1","input":"a","type":"x"}',
    "a lone surrogate in the input": create()[:-1] + ',"input":"\\ud800"}',
    "a lone surrogate in an item": create()[:-1] + ',"input":[{"role":"user","content":"\\udfff"}]}',
    "a lone surrogate as a key": create(input="x")[:-1] + ',"\\ud800":1}',
    "a null character": create(input="a\0b"),
    "an empty input": create(input=""),
    "an empty list": create(input=[]),
    "input null": create(input=None),
    "previous_response_id null": create(input="x", previous_response_id=None),
    "an empty previous_response_id": create(input="x", previous_response_id=""),
    "stream_id null": create(input="x", stream_id=None),
    "nested under response": '{"type":"response.create","response":{"model":"sim-1","input":"x","store":false}}',
    "blanks everywhere": ' \n\t{ "type" : "response.create" , "model":"sim-1","store":false,"input" : [ ] }\r\n ',
}


@pytest.mark.parametrize("frame", ODD_FRAMES.values(), ids=list(ODD_FRAMES))
async def test_ends_an_odd_frame_within_bounds_and_serves_the_next_good_one(house: House, frame: str) -> None:
    node = await house.node()
    other = await neighbour(house, node)
    async with plain(node) as client:
        await client.ws.send_str(frame)
        (end,) = (await client.until(1))[-1:]

        if end["type"] == "error":
            assert isinstance(end["status"], int) and 400 <= end["status"] < 500, end
            assert end["error"]["code"]
        await good_turn(client)
    assert counted(node, "broker_turns_total", outcome="broken") == 0
    assert node.node.placement.usable() == 3
    assert (await other.turn("two")).ok


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000", "1.0 1e5 \\u00fc \\/"], ids=["surrogate", "null", "escapes"])
async def test_replays_odd_text_or_refuses_it_but_never_breaks(house: House, text: str) -> None:
    node = await house.node()
    async with plain(node, **{"x-session-id": "odd"}) as client:
        await client.ws.send_str(create()[:-1] + ',"input":"' + text + '"}')
        first = (await client.until(1))[-1]
        if first["type"] == "response.completed":
            house.sim.faults.set("A", "usage_limit_reached")
            await client.create("two", previous_response_id=first["response"]["id"])
            second = (await client.until(1))[-1]
            assert second["type"] == "response.completed", second
            assert house.sim.turns[-1].credential != "A"
        await good_turn(client)
    assert counted(node, "broker_turns_total", outcome="broken") == 0


async def test_refuses_binary_frames_and_serves_the_next_good_one(house: House) -> None:
    node = await house.node()
    async with plain(node) as client:
        await client.ws.send_bytes(create(input="x").encode())
        answer = await client.event()
        assert (answer["type"], answer["status"]) == ("error", 400)
        await good_turn(client)


async def test_refuses_a_text_frame_that_is_no_text(house: House) -> None:
    node = await house.node()
    other = await neighbour(house, node)
    raw = await upgraded(node)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(raw, masked(b"\xff\xfe\xfd"))
        async with asyncio.timeout(3.0):
            answer = await loop.sock_recv(raw, 4096)
    finally:
        raw.close()

    told = answer[:1] == b"\x81" and b'"status":400' in answer
    assert told or answer[:1] in (b"\x88", b""), answer
    await wait_until(lambda: len(node.node.sockets) == 1)
    assert (await other.turn("two")).ok


# --- sizes ---


async def test_passes_frames_of_12_mib_and_moves_them_intact(house: House) -> None:
    node = await house.node()
    client = await house.connected(node)
    big = [{"type": "message", "role": "user", "content": "\u00fc" * (6 * MIB - 5000)}]
    assert (await client.turn("one")).ok

    second = await client.turn(big)
    house.sim.faults.set("A", "usage_limit_reached")
    third = await client.turn("three")
    house.sim.faults.set("B", "usage_limit_reached", when="again")
    fourth = await client.turn("again", incremental=False)

    assert second.ok and third.ok and fourth.ok, (second.error, third.error, fourth.error)
    assert [turn.credential for turn in house.sim.turns] == ["A", "A", "A", "B", "B", "C"]


async def test_ends_a_frame_over_the_limit_within_bounds_and_harms_nobody_else(house: House) -> None:
    node = await house.node(bounds=Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=3.0, max_frame=MIB))
    other = await neighbour(house, node)
    async with plain(node) as client:
        await client.ws.send_str(create(input="x" * (2 * MIB)))
        message = await client.ws.receive(timeout=5.0)
        if message.type is aiohttp.WSMsgType.TEXT:
            answer = orjson.loads(message.data)
            assert answer["type"] == "error" and answer["status"] in (400, 413)
        else:
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert client.ws.close_code == 1009
    await wait_until(lambda: len(node.node.sockets) == 1)
    assert len(house.sim.turns) == 1
    assert (await other.turn("two")).ok
    async with plain(node) as client:
        await good_turn(client)


# --- clients that do not read, do not speak, or are too many ---


async def test_cuts_off_a_client_that_reads_nothing_and_keeps_its_memory(house: House) -> None:
    node = await house.node(bounds=Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=3.0, send_timeout=1.0))
    other = await neighbour(house, node)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    raw = await upgraded(node)
    talk = '{"type":"response.create","model":"sim-1","input":"[[deltas:4000]] [[pad:40000000]]"}'
    await asyncio.get_running_loop().sock_sendall(raw, masked(talk.encode()))
    try:
        await wait_until(lambda: any(s.behind for s in node.node.sockets))
        for number in range(5):
            turn = await other.turn(f"meanwhile {number}")
            assert turn.ok and turn.duration < 1.0, (turn.problems, turn.duration)
        await wait_until(lambda: counted(node, "broker_socket_closes_total", code="slow") >= 1)
        await wait_until(lambda: len(node.node.sockets) == 1)
    finally:
        raw.close()

    assert time.monotonic() - began < 8.0
    # the vendor's 40 MB answer lives in this process, too; the broker shall not hold it a second time
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    await wait_until(lambda: house.sim.sockets["A"] == 1)
    assert node.node.placement.usable() == 3 and not node.node.health.snapshot.rows
    assert (await other.turn("afterwards")).ok
    assert node.node.placement.in_flight["A"] == 0


async def test_refuses_more_sockets_than_the_node_takes(house: House) -> None:
    node = await house.node(bounds=Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=3.0, max_sockets=2))
    first, second = await house.connected(node), await house.connected(node)
    third = house.agent(node)

    assert not await third.connect()
    assert third.handshake_status == 503
    assert int(third.handshake_headers["retry-after"]) >= 1
    assert (await first.turn("one")).ok and (await second.turn("one")).ok
    await first.close()
    await wait_until(lambda: len(node.node.sockets) == 1)
    assert await third.connect()
    assert (await third.turn("one")).ok


# --- before the upgrade ---


async def ask(node: Listeners, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    """A plain HTTP request, and what came of it."""
    url = f"http://127.0.0.1:{node.client_port}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, allow_redirects=False) as response,
    ):
        body = await response.read()
        return response.status, orjson.loads(body) if body[:1] == b"{" else None


BAD_KEYS = {
    "none": None,
    "another key": "Bearer sbk_who-is-this",
    "empty": "Bearer ",
    "no scheme": KEY,
    "another scheme": f"Basic {KEY}",
    "a longer key": f"Bearer {KEY}x",
    "a key of the vendor": "Bearer sk-sim-A",
    "64 KiB minus": "Bearer " + "x" * 7000,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=list(BAD_KEYS))
async def test_refuses_a_bad_key_before_the_upgrade(house: House, key: str | None) -> None:
    node = await house.node()

    wanted = UPGRADE if key is None else UPGRADE | {"Authorization": key}
    status, body = await ask(node, "GET", "/v1/responses", wanted)

    assert status == 401
    assert body["error"]["code"] == "invalid_api_key" and body["error"]["type"] and body["error"]["message"]
    assert (key or "absent").rpartition(" ")[2] not in orjson.dumps(body).decode() or key == "Bearer "
    assert counted(node, "broker_handshakes_total", result="unauthorized") == 1
    assert node.node.sockets == set()


@pytest.mark.parametrize(
    ("method", "path", "upgrade", "status"),
    [
        ("GET", "/v1/responses", False, 405),
        ("PUT", "/v1/responses", False, 405),
        ("DELETE", "/v1/responses", False, 405),
        ("GET", "/", True, 404),
        ("GET", "/responses", True, 404),
        ("GET", "/v1/nothing", True, 404),
        ("GET", "/v1/responses/extra", True, 404),
        ("GET", "/metrics", False, 404),
        ("GET", "/readyz", False, 404),
    ],
)
async def test_refuses_a_wrong_method_or_path(house: House, method: str, path: str, upgrade: bool, status: int) -> None:
    node = await house.node()

    wanted = (UPGRADE if upgrade else {}) | {"Authorization": f"Bearer {KEY}"}
    answered, _ = await ask(node, method, path, wanted)

    assert answered == status
    async with plain(node) as client:
        await good_turn(client)


async def test_refuses_an_upgrade_that_is_none(house: House) -> None:
    node = await house.node()

    wanted = UPGRADE | {"Authorization": f"Bearer {KEY}", "Sec-WebSocket-Version": "6"}
    status, _ = await ask(node, "GET", "/v1/responses", wanted)

    assert 400 <= status < 500
    await wait_until(lambda: node.node.sockets == set())
    async with plain(node) as client:
        await good_turn(client)


async def test_echoes_a_sub_protocol_and_ignores_a_name_that_is_no_name(house: House) -> None:
    node = await house.node()
    long = await house.connected(node, session_id="x" * 257)
    assert long.handshake_headers["x-session-id"].startswith("sess_")

    client = await house.connected(node, headers={"Sec-WebSocket-Protocol": "openai-beta.responses.v1"})

    assert client.handshake_headers["sec-websocket-protocol"] == "openai-beta.responses.v1"
    assert (await client.turn("one")).ok


async def test_cuts_off_a_client_that_steers_and_reads_nothing(house: House) -> None:
    """Every such steer is answered with its own words: one client could fill up a node that kept the answers."""
    node = await house.node()
    other = await neighbour(house, node)
    client = await RawClient.connect(node.client_port, "s", receive=4096)
    text = orjson.dumps({"type": "response.steer", "previous_response_id": "resp_0", "input": "y" * 60_000})
    frame, sent = Frame(text, mask=b"\0\0\0\0").encode(), 0
    # what a node keeps is bounded by 1 MiB, what the kernel does on the way by a few more
    while not client.over and sent < 24 * MIB:
        client.send_raw(frame)
        sent += len(frame)
        await client.sent()

    assert client.over, "it was cut off"
    await wait_until(lambda: len(node.node.sockets) == 1)
    assert (await other.turn("two")).ok


async def test_refuses_a_steer_when_too_many_wait_for_the_vendor(house: House) -> None:
    async def script(speaker: Speaker, frame: dict[str, Any]) -> None:
        if frame["type"] == "response.create":
            await speaker.begin("r1")
            speakers.append(speaker)

    speakers: list[Speaker] = []
    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node) as client:
            await started(client, "one")
            for number in range(MAX_STEERS + 1):
                await steer(client, "r1", f"steer {number}")
            refused = await client.event()
            assert refused["type"] == "response.steer.failed"
            assert refused["error"]["code"] == "too_many_pending_steers"
            assert refused["steer"] == {"previous_response_id": "r1", "input": f"steer {MAX_STEERS}"}
            # an answer makes room for another
            await speakers[0].say("response.steer.accepted", steer={"id": "s"})
            assert (await client.event())["type"] == "response.steer.accepted"
            await steer(client, "r1", "the last one")
            await wait_until(lambda: len(vendor.frames) == MAX_STEERS + 2)
        said = [frame["input"] for frame in vendor.frames[1:]]
        assert said == [*(f"steer {number}" for number in range(MAX_STEERS)), "the last one"]


async def test_refuses_a_steer_when_the_vendor_reads_none(house: House) -> None:
    """What waits for a vendor is bounded in bytes too: a few steers may be as large as many small ones."""

    async def script(speaker: Speaker, frame: dict[str, Any]) -> None:
        await speaker.begin("r1")
        assert speaker.request.transport is not None
        speaker.request.transport.pause_reading()
        # and its kernel takes little more
        speaker.request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node) as client:
            await started(client, "one")
            refusal = asyncio.ensure_future(client.event(within=10.0))
            sent = 0
            while not refusal.done() and sent < MAX_STEERS - 1:
                await steer(client, "r1", "y" * (MIB // 4))
                await loop_turn()
                sent += 1
            refused = await refusal
            assert refused["type"] == "response.steer.failed"
            assert refused["error"]["code"] == "too_many_pending_steers"
