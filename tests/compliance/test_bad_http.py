"""What no client should send over HTTP: an answer in the vendor's form, and a connection that goes on where it can."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from backports import zstd

from broker.edge.app import Listeners
from broker.edge.wiring import Bounds
from tests.compliance.plain_http import Answered, Connection, connected, request
from tests.compliance.schemas import ResponseResource, checked
from tests.compliance.stage import pool
from tests.scenarios.house import KEY, OTHER_KEY, House, counted, wait_until

LIMIT = 256 * 1024
"""Bytes of a body that the node takes."""

DEEP = 10_000
PATH = "/v1/responses"


@pytest.fixture
async def node(house: House) -> Listeners:
    """A node that serves one model, takes small bodies, and waits for them half a second."""
    bounds = Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=3.0, request=0.5, max_frame=LIMIT)
    models = [replace(credential, models=frozenset({"sim-1"})) for credential in pool(house)]
    started = await house.node(credentials=models, bounds=bounds)
    house.sim.forget()
    return started


@pytest.fixture
async def connection(node: Listeners) -> AsyncIterator[Connection]:
    async with connected(node.client_port) as found:
        yield found


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "sim-1", "input": "hello", "store": False, **fields})


async def good(connection: Connection, data: bytes | None = None, headers: dict[str, str] | None = None) -> Answered:
    """A request that is served as if nothing had been."""
    await connection.send(request("POST", PATH, data or body(), key=KEY, headers=headers))
    answered = await connection.answer()
    assert answered.status == 200, answered
    checked(answered.body, ResponseResource)
    return answered


def unharmed(node: Listeners) -> None:
    """No credential is blamed, and nothing of ours broke."""
    assert node.node.placement.usable() == 3
    assert counted(node, "broker_turns_total", outcome="broken") == 0


# --- bodies ---

NO_OBJECT: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"this is not JSON {",
    "half of one": b'{"model":"sim-1","input":"hel',
    "an array": b'[{"model":"sim-1"}]',
    "a string": b'"hello"',
    "a number": b"4711",
    "null": b"null",
    "NaN": b'{"model":"sim-1","input":"x","temperature":NaN}',
    "more behind it": body() + b" trailing",
    "no UTF-8": b'{"model":"sim-1","input":"\xff\xfe"}',
    "no UTF-8 in a field nobody reads": b'{"model":"sim-1","input":"x","colour":"\xc3\x28"}',
    "a field that goes too deep": b'{"model":"sim-1","input":"x","x":' + b"[" * DEEP + b"]" * (DEEP - 1),
    "zeros": b"\0" * 100,
}


@pytest.mark.parametrize("data", NO_OBJECT.values(), ids=list(NO_OBJECT))
async def test_refuses_a_body_that_is_no_object_and_serves_the_next(
    house: House, node: Listeners, connection: Connection, data: bytes
) -> None:
    await connection.send(request("POST", PATH, data, key=KEY))
    answered = await connection.answer()

    assert answered.status == 400
    assert answered.error["code"] == "invalid_json" and answered.error["type"] == "invalid_request_error"
    assert not house.sim.handshakes, "nobody was asked"
    await good(connection)
    unharmed(node)


WRONG_FIELDS: dict[str, tuple[bytes, str, str]] = {
    "a lane": (body(stream_id="lane"), "unknown_parameter", "stream_id"),
    "a warm-up": (body(generate=False), "unknown_parameter", "generate"),
    "a model that is a number": (body(model=7), "invalid_type", "model"),
    "a model that is an object": (body(model={}), "invalid_type", "model"),
    "input that is a number": (body(input=7), "invalid_type", "input"),
    "input that is an object": (body(input={"role": "user"}), "invalid_type", "input"),
    "items that are numbers": (body(input=[1, 2, 3]), "invalid_type", "input"),
    "store as a word": (body(store="no"), "invalid_type", "store"),
    "a parent that is a number": (body(previous_response_id=7), "invalid_type", "previous_response_id"),
    "a parent that is a list": (body(previous_response_id=["resp_1"]), "invalid_type", "previous_response_id"),
    "a stream as a word": (body(stream="yes"), "invalid_type", "stream"),
    "a stream as a number": (body(stream=1), "invalid_type", "stream"),
    "no model": (b'{"input":"hello"}', "missing_required_parameter", "model"),
    "an unknown parent": (
        body(previous_response_id="resp_of_nobody"),
        "previous_response_not_found",
        "previous_response_id",
    ),
}


@pytest.mark.parametrize(("data", "code", "param"), WRONG_FIELDS.values(), ids=list(WRONG_FIELDS))
async def test_names_the_field_that_is_wrong_and_serves_the_next(
    house: House, node: Listeners, connection: Connection, data: bytes, code: str, param: str
) -> None:
    await connection.send(request("POST", PATH, data, key=KEY))
    answered = await connection.answer()

    assert answered.status == 400, answered
    assert (answered.error["code"], answered.error["param"]) == (code, param)
    if code == "unknown_parameter":
        assert not house.sim.handshakes, "another vendor might have taken it for a frame"
    await good(connection)
    unharmed(node)


@pytest.mark.parametrize("stream", [True, False])
async def test_refuses_by_status_what_is_wrong_before_anything_is_shown(
    house: House, node: Listeners, connection: Connection, stream: bool
) -> None:
    await connection.send(request("POST", PATH, body(model="no-such-model", stream=stream), key=KEY))
    answered = await connection.answer()

    assert answered.status == 404
    assert (answered.error["code"], answered.error["param"]) == ("model_not_found", "model")
    assert not house.sim.turns
    await good(connection)


ODD_BODIES: dict[str, bytes] = {
    "a field that goes deep": body()[:-1] + b',"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "an input that goes deep": b'{"model":"sim-1","input":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "an object that goes deep": body()[:-1] + b',"x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "a huge number": body()[:-1] + b',"seed":' + b"9" * 5000 + b"}",
    "a huge exponent": body()[:-1] + b',"temperature":1e999999}',
    "keys that come twice": b'{"model":7,"model":"sim-1","input":"a","input":"b"}',
    "a lone surrogate": b'{"model":"sim-1","input":"\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf" + body(),
}


@pytest.mark.parametrize("data", ODD_BODIES.values(), ids=list(ODD_BODIES))
async def test_serves_an_odd_body_or_refuses_it_and_never_breaks(
    node: Listeners, connection: Connection, data: bytes
) -> None:
    await connection.send(request("POST", PATH, data, key=KEY))
    answered = await connection.answer()

    assert answered.status in (200, 400), answered
    if answered.status == 400:
        assert answered.error["type"] == "invalid_request_error"
    await good(connection)
    unharmed(node)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=x", ""])
async def test_minds_no_content_type(node: Listeners, connection: Connection, kind: str) -> None:
    await good(connection, headers={"Content-Type": kind})
    await good(connection)


# --- encodings and sizes ---


PACKED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}


@pytest.mark.parametrize("encoding", PACKED)
async def test_reads_a_compressed_body(node: Listeners, connection: Connection, encoding: str) -> None:
    await good(connection, PACKED[encoding](body()), headers={"Content-Encoding": encoding})
    await good(connection)


BAD_ENCODINGS = [
    pytest.param("x-unknown", b"\x01\x02\x03 not JSON", id="one that nobody knows"),
    pytest.param("gzip", gzip.compress(body() * 50)[:-20], id="gzip that breaks off"),
    pytest.param("gzip", b"this was never compressed", id="gzip that is none"),
    pytest.param("deflate", b"\xff\xff\xff\xff", id="deflate that is none"),
]


@pytest.mark.parametrize(("encoding", "data"), BAD_ENCODINGS)
async def test_refuses_an_encoding_that_it_cannot_read(
    node: Listeners, connection: Connection, encoding: str, data: bytes
) -> None:
    await connection.send(request("POST", PATH, data, key=KEY, headers={"Content-Encoding": encoding}))
    answered = await connection.answer()

    assert answered.status in (400, 415), answered
    assert answered.error["type"] == "invalid_request_error"
    async with connected(node.client_port) as another:
        await good(another)
    unharmed(node)


async def test_refuses_a_body_over_the_limit(house: House, node: Listeners, connection: Connection) -> None:
    await connection.send(request("POST", PATH, body(input="x" * LIMIT), key=KEY))
    answered = await connection.answer()

    assert answered.status == 413
    assert answered.error["code"] == "payload_too_large"
    assert not house.sim.turns
    async with connected(node.client_port) as another:
        await good(another, body(input="x" * (LIMIT // 2)))


async def test_refuses_a_body_over_the_limit_that_comes_in_chunks(node: Listeners, connection: Connection) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    head = request("POST", PATH, key=KEY, headers={"Transfer-Encoding": "chunked"})
    await connection.send(head + chunk * 8 + b"0\r\n\r\n")
    answered = await connection.answer()

    assert (answered.status, answered.error["code"]) == (413, "payload_too_large")


async def test_refuses_a_body_that_swells_over_the_limit(node: Listeners, connection: Connection) -> None:
    bomb = gzip.compress(b" " * (100 * 1024 * 1024))
    assert len(bomb) < LIMIT
    await connection.send(request("POST", PATH, bomb, key=KEY, headers={"Content-Encoding": "gzip"}))
    answered = await connection.answer()

    assert (answered.status, answered.error["code"]) == (413, "payload_too_large")
    async with connected(node.client_port) as another:
        await good(another)


# --- keys ---

BAD_KEYS: dict[str, str] = {
    "none": "",
    "an unknown one": "Bearer sbk_of-nobody",
    "an empty one": "Bearer ",
    "no scheme": KEY,
    "another scheme": "Basic dGVhbTprZXk=",
    "more behind it": f"Bearer {KEY} {KEY}",
    "no ASCII": "Bearer \xff\xfe",
}


@pytest.mark.parametrize("header", BAD_KEYS.values(), ids=list(BAD_KEYS))
@pytest.mark.parametrize("path", [PATH, PATH + "/compact", "/v1/models"])
async def test_lets_nobody_in_whom_it_does_not_know(
    house: House, node: Listeners, connection: Connection, header: str, path: str
) -> None:
    method, data = ("GET", None) if path == "/v1/models" else ("POST", body())
    await connection.send(request(method, path, data, headers={"Authorization": header}))
    answered = await connection.answer()

    assert answered.status == 401
    assert answered.error["code"] == "invalid_api_key"
    assert b"sbk_" not in answered.body, "no key is said again"
    assert not house.sim.turns
    await good(connection)


# --- paths and methods ---


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/responses", "/v1/response", "/V1/responses", "/v1/nothing?a=b"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_knows_no_other_path(node: Listeners, connection: Connection, method: str, path: str) -> None:
    await connection.send(request(method, path, body() if method == "POST" else None, key=KEY))
    answered = await connection.answer()

    assert answered.status == 404
    assert answered.error["type"] == "invalid_request_error"
    await good(connection)


WRONG_METHODS = [
    ("PUT", PATH, "POST"),
    ("DELETE", PATH, "POST"),
    ("PATCH", PATH, "POST"),
    ("GET", PATH, "POST"),
    ("GET", PATH + "/compact", "POST"),
    ("DELETE", PATH + "/compact", "POST"),
    ("POST", "/v1/models", "GET"),
]


@pytest.mark.parametrize(("method", "path", "right"), WRONG_METHODS)
async def test_names_the_methods_that_an_address_takes(
    node: Listeners, connection: Connection, method: str, path: str, right: str
) -> None:
    data = None if method == "GET" else body()
    await connection.send(request(method, path, data, key=KEY))
    answered = await connection.answer()

    assert answered.status == 405
    assert answered.error["type"] == "invalid_request_error"
    assert right in [name.strip() for name in answered.headers.get("allow", "").split(",")]
    await good(connection)


# --- whose is it ---


@pytest.mark.parametrize("stream", [True, False])
async def test_does_not_know_a_response_of_another_tenant(
    house: House, node: Listeners, connection: Connection, stream: bool
) -> None:
    first = orjson.loads((await good(connection, body(store=True))).body)["id"]
    before = len(house.sim.turns)
    await connection.send(request("POST", PATH, body(previous_response_id=first, stream=stream), key=OTHER_KEY))
    answered = await connection.answer()

    assert answered.status == 400
    assert answered.error["code"] == "previous_response_not_found"
    assert len(house.sim.turns) == before, "nobody was asked"
    await good(connection, body(previous_response_id=first))


# --- connections ---


async def test_serves_one_request_after_the_other_on_a_connection(node: Listeners, connection: Connection) -> None:
    await connection.send(b"".join(request("POST", PATH, body(input=f"number {n}"), key=KEY) for n in range(3)))
    ids = [orjson.loads((await connection.answer()).body)["id"] for _ in range(3)]
    assert len(set(ids)) == 3


async def test_ends_a_body_that_does_not_come_within_its_time(
    house: House, node: Listeners, connection: Connection
) -> None:
    await connection.send(request("POST", PATH, body()[:10], key=KEY, length=len(body())))
    answered = await connection.answer(within=3.0)

    assert answered.status == 408
    assert answered.error["type"] == "invalid_request_error"
    assert not house.sim.turns
    async with connected(node.client_port) as another:
        await good(another)
    unharmed(node)


async def test_ends_a_body_that_comes_byte_by_byte_within_its_time(node: Listeners, connection: Connection) -> None:
    await connection.send(request("POST", PATH, b"", key=KEY, length=1000))
    answer = asyncio.create_task(connection.answer(within=3.0))
    while not answer.done():
        await connection.send(b" ")
        await asyncio.wait([answer], timeout=0.05)

    assert answer.result().status == 408


async def test_forgets_a_client_that_leaves_within_its_body(house: House, node: Listeners) -> None:
    async with connected(node.client_port) as connection:
        await connection.send(request("POST", PATH, body()[:10], key=KEY, length=len(body())))
    await wait_until(lambda: not node.node.clients)
    async with connected(node.client_port) as another:
        await good(another)
    assert len(house.sim.turns) == 1
    unharmed(node)


HEADER_BOMBS: dict[str, bytes] = {
    "a header of 100 KB": b"X-Bomb: " + b"x" * 100_000 + b"\r\n",
    "20,000 headers": b"".join(b"X-Bomb-%d: x\r\n" % number for number in range(20_000)),
    "a header without a name": b": x\r\n",
    "a header with a line break in it": b"X-Bomb: a\rb\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "a length below zero": b"Content-Length: -1\r\n",
    "a length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
}


@pytest.mark.parametrize("lines", HEADER_BOMBS.values(), ids=list(HEADER_BOMBS))
async def test_refuses_headers_that_are_none_and_harms_nobody(
    node: Listeners, connection: Connection, lines: bytes
) -> None:
    head = request("POST", PATH, key=KEY).removesuffix(b"\r\n")
    try:
        await connection.send(head + lines + b"\r\n0\r\n\r\n")
        answered = await connection.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # closing without a word is an answer too
    else:
        # the library refuses these before a handler sees them, in words of its own
        assert 400 <= answered.status < 500, answered
    async with connected(node.client_port) as another:
        await good(another)
    unharmed(node)
