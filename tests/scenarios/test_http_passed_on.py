"""Chat completions, embeddings and the rest: passed on as they are, by whichever credential can serve them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import web

from broker.domain.credential import Credential, Secret
from broker.edge.app import Listeners
from broker.edge.wiring import Bounds
from broker.simulator import Fault
from broker.simulator.faults import presets
from tests.scenarios.house import (
    Caller,
    House,
    by,
    counted,
    everything_in,
    held_against,
    own_endpoints,
    plain,
    server_sent,
    wait_until,
)
from tests.serving import serving

Build = Callable[..., Awaitable[House]]
Body = dict[str, Any]

DOWNWARDS = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def chat(text: str = "hello", **more: Any) -> Body:
    return {"model": "sim-1", "messages": [{"role": "user", "content": text}], **more}


async def chunks(answer: Any) -> list[Any]:
    """The data of a stream of chunks, `[DONE]` among it."""
    found = []
    async for line in answer.content:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            found.append("[DONE]" if data == b"[DONE]" else orjson.loads(data))
        else:
            assert not line.strip() or line.startswith(b":"), line
    return found


async def said_in(answer: Any, stream: bool) -> str:
    if not stream:
        return str((await answer.json())["choices"][0]["message"]["content"])
    told = await chunks(answer)
    assert told[-1] == "[DONE]" and told.count("[DONE]") == 1
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in told[:-1] if c["choices"])


@pytest.fixture
async def node(house: House) -> Listeners:
    bounds = Bounds(hold=1.0, first_event=0.4, silence=1.0, answer=0.6, leave=3.0)
    pool = own_endpoints(by(house.credentials(), "websocket", "http"))
    return await house.node(credentials=pool, bounds=bounds)


@pytest.fixture
async def caller(house: House, node: Listeners) -> Caller:
    return house.caller(node)


# --- as they are ---


@DOWNWARDS
async def test_serves_chats(house: House, caller: Caller, stream: bool) -> None:
    async with caller.ask("chat/completions", chat(stream=stream)) as answer:
        assert answer.status == 200
        assert answer.content_type == ("text/event-stream" if stream else "application/json")
        words = await said_in(answer, stream)
    assert words.startswith("ctx=")
    (record,) = house.sim.turns
    assert (record.credential, record.path, record.outcome) == ("A", "/v1/chat/completions", "completed")
    assert record.fields == {"model": "sim-1", "stream": stream}


async def test_passes_usage_and_calls_of_a_chat_on(house: House, caller: Caller) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    body = chat("[[call:look]]", stream=True, stream_options={"include_usage": True}, tools=tools)
    async with caller.ask("chat/completions", body) as answer:
        told = await chunks(answer)
    assert told[-1] == "[DONE]" and told[-2]["usage"]["total_tokens"] > 0 and told[-2]["choices"] == []
    assert told[1]["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "look"


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_serves_embeddings(house: House, caller: Caller, encoding: str) -> None:
    body = {"model": "sim-1", "input": ["one", "two"], "encoding_format": encoding}
    async with caller.ask("embeddings", body) as answer:
        told = await answer.json()
        assert answer.status == 200, told
    assert [each["index"] for each in told["data"]] == [0, 1]
    assert isinstance(told["data"][0]["embedding"], str if encoding == "base64" else list)
    assert house.sim.turns[-1].credential == "A"


async def test_counts_input_tokens(house: House, caller: Caller) -> None:
    async with caller.ask("responses/input_tokens", {"model": "sim-1", "input": "hello"}) as answer:
        told = await answer.json()
    assert (answer.status, told["object"]) == (200, "response.input_tokens"), told


@DOWNWARDS
async def test_keeps_nothing_of_what_it_passes_on(house: House, caller: Caller, stream: bool) -> None:
    async with caller.ask("chat/completions", chat("xylophone-4711", stream=stream)) as answer:
        await answer.read()
        assert "x-session-id" not in answer.headers
    kept = await everything_in(house.url)
    assert not [key for key, held in kept.items() if b"xylophone" in held or b"sb:s" in key], kept


# --- another credential ---

BEFORE_ANYTHING: dict[str, tuple[Fault | str, str, dict[str, str]]] = {
    "401": ("invalid_api_key", "handshake", {"credential:A": "revoked"}),
    "403": ("forbidden_generic", "handshake", {"credential:A": "suspect"}),
    "429 quota": ("usage_limit_reached", "handshake", {"group:A": "exhausted"}),
    "429 rate": ("rate_limit_exceeded", "before_created", {"group:A:sim-1": "cooling"}),
    "503": ("service_unavailable", "before_created", {"endpoint": "cooling"}),
    "html": (Fault(status=502, body="<html>bad gateway</html>"), "handshake", {"endpoint": "cooling"}),
    "reset": (Fault(do="reset"), "handshake", {}),
    "silence": (Fault(do="silence"), "before_created", {}),
}


@pytest.mark.parametrize("fault", BEFORE_ANYTHING)
@pytest.mark.parametrize("path", ["chat", "chat-stream", "embeddings", "input_tokens", "compact"])
async def test_asks_another_credential_when_the_first_cannot(
    house: House, node: Listeners, caller: Caller, fault: str, path: str
) -> None:
    deed, at, held = BEFORE_ANYTHING[fault]
    if path in ("input_tokens", "compact"):
        at = "handshake"  # the simulated vendor has no other point there
    changes = {} if isinstance(deed, Fault) and deed.do != "error" else {"do": "refuse"}
    house.sim.faults.set("A", deed, at=at, **changes)
    if path.startswith("chat"):
        async with caller.ask("chat/completions", chat(stream=path == "chat-stream")) as answer:
            assert answer.status == 200, await answer.read()
            assert (await said_in(answer, path == "chat-stream")).startswith("ctx=")
    else:
        where = path if path == "embeddings" else f"responses/{path}"
        async with caller.ask(where, {"model": "sim-1", "input": "hello"}) as answer:
            assert answer.status == 200, await answer.read()
    served = [seen for seen in house.sim.handshakes if seen.accepted][-1]
    assert served.credential == "B"
    endpoint = f"endpoint:{house.sim.base_url}"
    assert held_against(node) == {subject.replace("endpoint", endpoint): state for subject, state in held.items()}
    assert counted(node, "broker_failovers_total") == 1


@pytest.mark.parametrize("deed", ["reset", "error", "silence", "half"])
async def test_says_in_a_stream_of_chunks_that_it_broke_off(
    house: House, node: Listeners, caller: Caller, deed: str
) -> None:
    fault = Fault(at="after_deltas", after=2, do="garbage" if deed == "half" else deed, variant="half")
    house.sim.faults.set("A", fault)
    async with caller.ask("chat/completions", chat("[[slow:5]]", stream=True)) as answer:
        assert answer.status == 200
        told = await chunks(answer)
    assert "[DONE]" not in told, "what broke off must not look whole"
    assert set(told[-1]) == {"error"}, told[-1]
    assert told[-1]["error"]["message"] and told[-1]["error"]["code"]
    assert len(house.sim.turns) == 1, "nothing is asked anew after something was shown"


@DOWNWARDS
async def test_gives_the_whole_answer_of_another_credential_when_one_breaks_off_unseen(
    house: House, caller: Caller, stream: bool
) -> None:
    """Whole: nothing has been shown of it before its end, so all of it can move."""
    house.sim.faults.set("A", Fault(at="after_created", do="reset"))
    async with caller.ask("chat/completions", chat(stream=stream)) as answer:
        if stream and answer.status == 200:
            told = await chunks(answer)
            assert told[-1] == "[DONE]" or set(told[-1]) == {"error"}
        else:
            assert answer.status == 200, await answer.read()
            assert (await answer.json())["choices"][0]["message"]["content"].startswith("ctx=")


@DOWNWARDS
@pytest.mark.parametrize("fault", ["context_length_exceeded", "content_policy"])
async def test_passes_on_what_is_said_about_the_request(
    house: House, node: Listeners, caller: Caller, fault: str, stream: bool
) -> None:
    house.sim.faults.set("*", fault)
    async with caller.ask("chat/completions", chat(stream=stream)) as answer:
        told = await answer.json()
    assert answer.status == 400
    assert told["error"]["code"] == presets[fault].code and told["error"]["message"] == presets[fault].message
    assert len(house.sim.turns) == 1 and held_against(node) == {}


@DOWNWARDS
async def test_says_when_all_are_exhausted(house: House, caller: Caller, stream: bool) -> None:
    house.sim.faults.set("*", "usage_limit_reached", resets_in=3600)
    for _ in range(2):
        async with caller.ask("chat/completions", chat(stream=stream)) as answer:
            told = await answer.json()
        assert (answer.status, told["error"]["type"]) == (429, "usage_limit_reached"), told
        assert int(answer.headers["Retry-After"]) > 3500
    assert len(house.sim.turns) == 3


async def test_asks_two_credentials_at_most_for_a_poisonous_chat(house: House, node: Listeners, caller: Caller) -> None:
    house.sim.faults.set("*", "forbidden_generic", when="poison")
    async with caller.ask("chat/completions", chat("poison")) as answer:
        assert answer.status == 403, await answer.read()
    assert len(house.sim.turns) == 2 and held_against(node) == {}


async def test_ends_the_request_upstream_when_the_client_of_a_chat_leaves(
    house: House, node: Listeners, caller: Caller
) -> None:
    async with caller.ask("chat/completions", chat("[[deltas:400]] [[slow:20]]", stream=True)) as answer:
        await answer.content.readline()
        answer.close()
    await wait_until(lambda: house.sim.turns[-1].outcome == "lost", within=1.5)
    await wait_until(lambda: not node.node.clients and node.node.dialer.open_links == 0)


async def test_brings_chunks_down_as_they_come(house: House, caller: Caller) -> None:
    async with caller.ask("chat/completions", chat("[[deltas:50]] [[slow:20]]", stream=True)) as answer:
        async with asyncio.timeout(0.6):
            while b"content" not in await answer.content.readline():
                pass
        answer.close()


# --- a vendor of our own, byte by byte ---


Answering = Callable[[web.Request, bytes], web.StreamResponse | Awaitable[web.StreamResponse]]


class Vendor:
    """A vendor that answers what it is told to; `seen` are the requests, with their bodies."""

    def __init__(self, answer: Answering) -> None:
        self.seen: list[tuple[str, bytes, dict[str, str]]] = []
        self.url = ""
        self._answer = answer

    def credential(self, name: str = "M", **more: Any) -> Credential:
        return Credential(name, self.url, Secret(f"sk-{name}"), limit_group=name, transports=("http",), **more)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.path_qs, body, {n.lower(): v for n, v in request.headers.items()}))
        answer = self._answer(request, body)
        return answer if isinstance(answer, web.StreamResponse) else await answer


@contextlib.asynccontextmanager
async def vendor_of(answer: Answering) -> AsyncIterator[Vendor]:
    vendor = Vendor(answer)
    async with serving(web.route("*", "/{path:.*}", vendor.handle)) as address:
        vendor.url = address + "/v1"
        yield vendor


ODD = (
    b'{ "id":"x", "unheard_of" : [1,2.50,1e3, {"\\u00e9":"\xc3\xa9"}],"usage":null , "object":"list",'
    b'"big":12345678901234567890}\n'
)


@pytest.mark.parametrize("path", ["chat/completions", "embeddings", "responses/input_tokens", "responses/compact"])
async def test_leaves_every_byte_of_an_answer_and_of_a_request_as_it_is(house: House, path: str) -> None:
    sent = b'{"model": "m-1",  "odd":1.0e2, "input":"\\u00e9", "messages":[], "x": 12345678901234567890 }'
    async with vendor_of(lambda request, body: web.Response(body=ODD, content_type="application/json")) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with house.caller(node).ask(path, sent) as answer:
            assert await answer.read() == ODD
        assert [body for _, body, _ in vendor.seen] == [sent]


async def test_leaves_every_byte_of_a_chunk_as_it_is(house: House) -> None:
    stream = b"data: " + ODD.strip() + b'\n\n: comment\n\ndata: {"a" : 1}\r\n\r\ndata: [DONE]\n\n'
    async with vendor_of(lambda request, body: web.Response(body=stream, content_type="text/event-stream")) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with house.caller(node).ask("chat/completions", {"model": "m", "messages": [], "stream": True}) as answer:
            told = await answer.read()
    assert told == b"data: " + ODD.strip() + b'\n\ndata: {"a" : 1}\n\ndata: [DONE]\n\n'


async def test_calls_a_model_by_the_name_that_its_vendor_knows(house: House) -> None:
    async with vendor_of(lambda request, body: web.Response(body=b"{}", content_type="application/json")) as vendor:
        alias = vendor.credential(aliases={"m-1": "deployment-7"}, models=frozenset({"m-1"}))
        node = await house.node(credentials=[alias])
        for path in ("chat/completions", "embeddings"):
            async with house.caller(node).ask(path, {"model": "m-1", "messages": [], "z": {"model": "m-1"}}) as answer:
                assert answer.status == 200
        sent = [orjson.loads(body) for _, body, _ in vendor.seen]
    assert sent == [{"model": "deployment-7", "messages": [], "z": {"model": "m-1"}}] * 2


async def test_shows_a_vendor_its_own_key_and_none_of_the_client_s(house: House) -> None:
    async with vendor_of(lambda request, body: web.Response(body=b"{}", content_type="application/json")) as vendor:
        node = await house.node(credentials=[vendor.credential(headers={"x-extra": "1"})])
        headers = {"Cookie": "a=b", "x-api-key": "secret", "x-forwarded-for": "10.0.0.1", "idempotency-key": "i-1"}
        async with house.caller(node, headers=headers).ask("chat/completions", chat()) as answer:
            assert answer.status == 200
        ((_, _, seen),) = vendor.seen
    assert seen["authorization"] == "Bearer sk-M" and seen["x-extra"] == "1" and seen["idempotency-key"] == "i-1"
    assert not {"cookie", "x-api-key", "x-forwarded-for", "x-session-id"} & set(seen)


def nothing_here(request: web.Request, body: bytes) -> web.Response:
    return web.Response(status=404, text="<html><body>404 page not found</body></html>", content_type="text/html")


def answer_404_json(request: web.Request, body: bytes) -> web.Response:
    return web.json_response({"detail": "Not Found"}, status=404)


@pytest.mark.parametrize("page", [nothing_here, answer_404_json])
@pytest.mark.parametrize("path", ["embeddings", "chat/completions"])
async def test_asks_another_credential_where_the_first_has_no_such_endpoint(
    house: House, page: Callable[[web.Request, bytes], web.Response], path: str
) -> None:
    async with vendor_of(page) as vendor:
        pool = [vendor.credential(priority=-1), *by(house.credentials(), "http")]
        node = await house.node(credentials=pool)
        body = {**chat(), "input": "hello"}
        for _ in range(2):
            async with house.caller(node).ask(path, body) as answer:
                assert answer.status == 200, await answer.read()
        assert house.sim.turns[-1].credential == "A"
        assert not [row for row in held_against(node) if row.startswith(("credential:M", "endpoint"))]

        lonely = await house.node(credentials=[vendor.credential()])
        async with house.caller(lonely).ask(path, body) as answer:
            told = await answer.json()
            assert (answer.status, told["error"]["code"]) == (501, "endpoint_not_offered"), told
        assert held_against(lonely) == {}


async def test_takes_no_redirect_to_another_address(house: House) -> None:
    def elsewhere(request: web.Request, body: bytes) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{other.url}/chat/completions"})

    async with (
        vendor_of(lambda request, body: web.Response(body=b"{}", content_type="application/json")) as other,
        vendor_of(elsewhere) as vendor,
    ):
        node = await house.node(credentials=[vendor.credential()])
        async with house.caller(node).ask("chat/completions", chat()) as answer:
            assert answer.status >= 500, await answer.read()
            assert other.url.encode() not in await answer.read()
        assert other.seen == [], "a credential stays at its address"


async def test_merges_the_lists_of_models(house: House) -> None:
    pool = by(house.credentials(), "http")
    pool = [replace(pool[0], models=frozenset({"only-here"})), replace(pool[1], aliases={"nick": "sim-1"}), pool[2]]
    node = await house.node(credentials=pool)
    caller = house.caller(node)
    async with caller.ask("models", method="GET") as answer:
        listed = await answer.json()
    assert [model["id"] for model in listed["data"]] == ["nick", "only-here", "sim-1", "sim-2"]
    async with caller.ask("models/sim-1", method="GET") as answer:
        assert (await answer.json())["id"] == "sim-1"
    async with caller.ask("models/nobody", method="GET") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "model_not_found")


# --- streams in every form that the format allows ---

EVENTS: list[Body] = [
    {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_m", "output": []}},
    {"type": "response.output_text.delta", "sequence_number": 1, "delta": "one\n\ndata: two"},
    {"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 3.0}}},
    {"type": "response.output_text.delta", "sequence_number": 2, "delta": "\u2028 \u00e9 three"},
    {
        "type": "response.output_item.done",
        "sequence_number": 3,
        "output_index": 0,
        "item": {"id": "msg_m", "type": "message", "role": "assistant", "content": []},
    },
    {
        "type": "response.completed",
        "sequence_number": 4,
        "response": {"id": "resp_m", "status": "completed", "output": [], "usage": None},
    },
]


def in_its_own_form(event: Body) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))


def in_lines(event: Body) -> bytes:
    lines = orjson.dumps(event, option=orjson.OPT_INDENT_2).split(b"\n")
    return b"".join(b"data: %b\n" % line for line in lines) + b"\n"


FORMS: dict[str, Callable[[Body], bytes]] = {
    "its own": in_its_own_form,
    "no names": lambda event: b"data: %b\n\n" % orjson.dumps(event),
    "no space": lambda event: b"data:%b\n\n" % orjson.dumps(event),
    "crlf": lambda event: in_its_own_form(event).replace(b"\n", b"\r\n"),
    "cr": lambda event: in_its_own_form(event).replace(b"\n", b"\r"),
    "comments and ids": lambda event: b": ping\n\nid: 7\nretry: 10\n" + in_its_own_form(event),
    "another name": lambda event: b"event: message\ndata: %b\n\n" % orjson.dumps(event),
    "several lines": in_lines,
    "several lines, crlf": lambda event: in_lines(event).replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
async def test_reads_a_stream_in_every_form_and_writes_it_in_one(house: House, form: str, size: int) -> None:
    stream = b"".join(map(FORMS[form], EVENTS)) + b"data: [DONE]\n\n"

    async def answer(request: web.Request, body: bytes) -> web.StreamResponse:
        told = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await told.prepare(request)
        for at in range(0, len(stream), size):
            await told.write(stream[at : at + size])
        return told

    shown = [event for event in EVENTS if event["type"] != "codex.rate_limits"]
    async with vendor_of(answer) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        caller = house.caller(node)
        for whole in (False, True):
            async with caller.ask("responses", {"model": "m", "input": "x", "stream": not whole}) as told:
                assert told.status == 200, await told.read()
                if whole:
                    said = await told.json()
                    assert said["id"] == "resp_m" and said["output"] == [shown[-2]["item"]]
                else:
                    assert [event async for event in server_sent(told)] == shown
        async with plain(node) as socket:
            await socket.create("x")
            assert await socket.until(1) == shown
    assert counted(node, "broker_upstream_failures_total") == 0


@pytest.mark.parametrize("below", ["socket", "request"])
@pytest.mark.parametrize("form", ["its own", "no names"])
async def test_notes_the_items_that_only_pass_by(house: House, form: str, below: str) -> None:
    """The vendor lists nothing at the end: what the next turn needs has gone by in the midst of plain output."""
    told = [EVENTS[0], *[EVENTS[1]] * 3, EVENTS[4], *[EVENTS[1]] * 3, EVENTS[5]]
    events = [{**event, "sequence_number": number} for number, event in enumerate(told)]
    stream = b"".join(map(FORMS[form], events))
    async with vendor_of(lambda request, body: web.Response(body=stream, content_type="text/event-stream")) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        follows = {"previous_response_id": "resp_m"}
        if below == "socket":
            async with plain(node) as socket:
                for more in ({}, follows):
                    await socket.create("x", **more)
                    await socket.until(1)
        else:
            caller = house.caller(node, session_id="agent-7")
            for more in ({}, follows):
                body = {"model": "m", "input": "x", "stream": True, "store": False, **more}
                async with caller.ask("responses", body) as answer:
                    assert b"response.completed" in await answer.read()
        given = orjson.loads(vendor.seen[-1][1])["input"]
    assert [item.get("role") for item in given] == ["user", "assistant", "user"], given
    assert given[1]["type"] == "message"


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
async def test_does_not_take_a_stream_for_whole_that_has_no_end(house: House, path: str) -> None:
    chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": "x"}}]}
    stream = b"".join(map(in_its_own_form, EVENTS[:4])) if path == "responses" else FORMS["no names"](chunk)
    async with vendor_of(lambda request, body: web.Response(body=stream, content_type="text/event-stream")) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        body = {**chat(stream=True), "input": "x"}
        async with house.caller(node).ask(path, body) as answer:
            told = await answer.read()
    assert b"[DONE]" not in told and b"response.completed" not in told
    assert b"upstream_interrupted" in told, told
