"""Upstreams that speak late, twice or nonsense: what belongs to one response reaches no other one, here or in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import WSMsgType, web

from broker.domain.credential import Credential, Secret
from broker.edge.app import Listeners
from broker.edge.wiring import Bounds
from broker.simulator.credentials import SimOptions
from tests.scenarios.house import House, Plain, conversation, counted, plain, wait_until
from tests.serving import serving

Frame = dict[str, Any]


class Speaker:
    """One socket of a scripted upstream; `lane` is what its events say of theirs."""

    def __init__(self, ws: web.WebSocketResponse, request: web.Request, lane: str | None = None) -> None:
        self.ws = ws
        self.request = request
        self.lane = lane

    async def say(self, kind: str, response_id: str | None = None, **more: Any) -> None:
        """One event, if the socket is still there."""
        event: Frame = {"type": kind, **more}
        if response_id is not None:
            event["response"] = {"id": response_id, "output": []}
        if self.lane is not None:
            event["stream_id"] = self.lane
        with contextlib.suppress(ConnectionError):
            await self.ws.send_str(orjson.dumps(event).decode())

    async def begin(self, response_id: str, text: str = "x") -> None:
        await self.say("response.created", response_id)
        await self.say("response.output_text.delta", delta=text)

    async def finish(self, response_id: str, text: str) -> None:
        await self.say("response.output_item.done", item=answer(text), output_index=0)
        await self.say("response.completed", response_id)

    async def tell(self, response_id: str, text: str) -> None:
        """A whole good response."""
        await self.begin(response_id, text)
        await self.finish(response_id, text)

    def cut(self) -> None:
        """End the connection without a word."""
        assert self.request.transport is not None
        self.request.transport.abort()


Script = Callable[[Speaker, Frame], Awaitable[None]]


class Upstream:
    """A vendor that says what its script tells it to, whatever the protocol says."""

    def __init__(self, script: Script) -> None:
        self.frames: list[Frame] = []
        self.said: list[asyncio.Task[None]] = []
        self.sockets = 0
        self.url = ""
        self._script = script

    def credential(self, name: str = "M") -> Credential:
        return Credential(name, self.url, Secret(f"sk-{name}"), limit_group=name, boundary="org-a")

    def inputs(self) -> list[list[str]]:
        """The words of every create that was received, in order."""
        return [words(frame["input"]) for frame in self.frames if frame["type"] == "response.create"]

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        self.sockets += 1
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                frame = orjson.loads(message.data)
                self.frames.append(frame)
                speaker = Speaker(ws, request, frame.get("stream_id"))
                self.said.append(asyncio.ensure_future(self._script(speaker, frame)))
        return ws


@contextlib.asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Upstream]:
    """A running scripted vendor."""
    vendor = Upstream(script)
    async with serving(web.get("/v1/responses", vendor.handle)) as address:
        vendor.url = address + "/v1"
        try:
            yield vendor
        finally:
            for task in vendor.said:
                task.cancel()
            await asyncio.gather(*vendor.said, return_exceptions=True)


def answer(text: str) -> Frame:
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "id": f"msg_{text}", "content": content}


def words(items: str | list[Frame]) -> list[str]:
    """The words of an input, item by item."""
    if isinstance(items, str):
        return [items]
    return [item["content"] if isinstance(item["content"], str) else item["content"][0]["text"] for item in items]


def shown(events: list[Frame]) -> list[tuple[str, str | None]]:
    """What a client was told of responses: the kind of each event with the response it is about."""
    return [(event["type"], event.get("response", {}).get("id")) for event in events]


def good(response_id: str) -> list[tuple[str, str | None]]:
    """A whole response as `shown` has it."""
    return [
        ("response.created", response_id),
        ("response.output_text.delta", None),
        ("response.output_item.done", None),
        ("response.completed", response_id),
    ]


async def steer(socket: Plain, target: str, text: str) -> None:
    frame = {"type": "response.steer", "previous_response_id": target, "input": text}
    await socket.ws.send_str(orjson.dumps(frame).decode())


async def started(socket: Plain, text: str) -> None:
    """A create of which the first output has been seen."""
    await socket.create(text)
    while not (await socket.event())["type"].endswith("delta"):
        pass


async def continued(node: Listeners, vendor: Upstream, name: str, response_id: str) -> list[str]:
    """The context a response has in Redis: what is sent up when a fresh socket goes on with it."""
    async with plain(node, **{"x-session-id": name}) as socket:
        await socket.create("go on", previous_response_id=response_id)
        events = await socket.until(1)
    assert events[-1]["type"] == "response.completed", events[-1]
    assert "previous_response_id" not in vendor.frames[-1]
    context = vendor.inputs()[-1]
    assert context[-1] == "go on"
    return context[:-1]


# --- responses that end twice ---


async def test_serves_the_next_turn_when_a_request_fault_is_told_twice(build: Callable[..., Awaitable[House]]) -> None:
    fault = {"type": "invalid_request_error", "code": "context_length_exceeded", "message": "too long"}

    async def script(speaker: Speaker, frame: Frame) -> None:
        if words(frame["input"]) == ["long"]:
            await speaker.say("error", status=400, error=fault)
            await wait_until(lambda: len(vendor.frames) == 2)
            await speaker.say("response.failed", response={"id": "r1", "status": "failed", "error": fault})
            echoed.set()
        else:
            await echoed.wait()
            await speaker.tell("r2", "fine")

    echoed = asyncio.Event()
    house = await build()
    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node, **{"x-session-id": "s"}) as socket:
            await socket.create("long")
            await socket.create("short")
            events = await socket.until(2)
            await socket.create("more", previous_response_id="r2")
            more = await socket.until(1)

        assert shown(events) == [("error", None), *good("r2")]
        assert events[0]["error"]["code"] == "context_length_exceeded"
        assert shown(more) == good("r2")
        assert vendor.inputs() == [["long"], ["short"], ["more"]], "nothing was sent twice"
    assert counted(node, "broker_turns_total", outcome="completed") == 2


@pytest.mark.parametrize("when", ["nothing_waits", "the_next_is_sent", "the_next_speaks"])
async def test_keeps_a_second_ending_from_the_next_turn(build: Callable[..., Awaitable[House]], when: str) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        number = len(vendor.frames)
        if number == 1:
            await speaker.tell("r1", "answer 1")
            if when == "the_next_is_sent":
                await wait_until(lambda: len(vendor.frames) == 2)
            elif when == "the_next_speaks":
                await speaking.wait()
            await speaker.say("response.done", "r1")
            echoed.set()
        else:
            if when == "the_next_speaks":
                await speaker.begin("r2", "answer 2")
                speaking.set()
                await echoed.wait()
                await speaker.finish("r2", "answer 2")
            else:
                await echoed.wait()
                await speaker.tell(f"r{number}", f"answer {number}")

    echoed, speaking = asyncio.Event(), asyncio.Event()
    house = await build()
    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node, **{"x-session-id": "s"}) as socket:
            await socket.create("q1")
            events = await socket.until(1)
            await socket.create("q2", previous_response_id="r1")
            events += await socket.until(1)

        # a vendor's second name for an ending may reach the client, but never as the end of another response
        assert [entry for entry in shown(events) if entry != ("response.done", "r1")] == good("r1") + good("r2")
        assert await continued(node, vendor, "s", "r2") == ["q1", "answer 1", "q2", "answer 2"]
    assert counted(node, "broker_turns_total", outcome="completed") == 3


@pytest.mark.parametrize("garbage", [None, 7, {"a": 1}, "x\ud800"], ids=["null", "number", "object", "no_text"])
async def test_ends_at_most_the_turn_that_has_a_garbage_id(
    build: Callable[..., Awaitable[House]], garbage: object
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        number, asked = len(vendor.frames), words(frame["input"])[-1]
        if number == 1:
            created = json.dumps({"type": "response.created", "response": {"id": garbage, "output": []}})
            with contextlib.suppress(ConnectionError):
                await speaker.ws.send_str(created)
            # a turn that has been given up has its answer behind the next create, and before that one's
            began = time.monotonic()
            await wait_until(lambda: len(vendor.frames) == 2 or time.monotonic() > began + 0.3)
            await speaker.tell("r1", "to q1")
            late.set()
        else:
            await late.wait()
            await speaker.tell(f"r{number}", f"to {asked}")

    late = asyncio.Event()
    house = await build()
    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node, **{"x-session-id": "s"}) as socket:
            await socket.create("q1")
            await socket.create("q2")
            events = await socket.until(2)

        first = next(at for at, event in enumerate(events) if event["type"] in ("response.completed", "error"))
        assert [event["delta"] for event in events[: first + 1] if "delta" in event] in ([], ["to q1"])
        newest = events[-1]["response"]["id"]
        assert shown(events[first + 1 :]) == good(newest), shown(events)
        assert [event["delta"] for event in events[first + 1 :] if "delta" in event] == ["to q2"]
        assert await continued(node, vendor, "s", newest) == ["q2", "to q2"]


# --- lanes ---


async def test_keeps_what_an_abandoned_lane_still_says_from_the_client_and_other_lanes(
    build: Callable[..., Awaitable[House]],
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        if frame.get("stream_id") == "b":
            await speaker.begin("rb", "B")
            await abandoned.wait()
            await speaker.say("response.output_text.delta", delta="B")
            await told_late.wait()
            await speaker.say("response.output_text.delta", delta="B")
            await speaker.finish("rb", "B")
        elif frame.get("stream_id") == "a" and len(vendor.frames) == 2:
            # silent until another attempt has been made
            await wait_until(lambda: len(vendor.frames) == 3)
            abandoned.set()
            await speaker.tell("ra-late", "A-LATE")
            told_late.set()
        elif frame.get("stream_id") == "a":
            await told_late.wait()
            await speaker.tell("ra", "A-NEW")
        else:
            await speaker.tell("r-on", "on")

    abandoned, told_late = asyncio.Event(), asyncio.Event()
    house = await build()
    async with upstream(script) as vendor:
        bounds = Bounds(hold=0.2, first_event=0.7, silence=5.0, leave=3.0)
        node = await house.node(credentials=[vendor.credential()], bounds=bounds)
        async with plain(node, **{"x-session-id": "s"}) as socket:
            await socket.create("to b", "b")
            assert (await socket.event())["type"] == "response.created"
            await socket.create("to a", "a")
            events = await socket.until(2)

        of = {lane: [event for event in events if event["stream_id"] == lane] for lane in "ab"}
        assert [event["delta"] for event in of["b"] if "delta" in event] == ["B", "B", "B"]
        assert [event["item"]["id"] for event in of["b"] if "item" in event] == ["msg_B"]
        assert shown(of["a"]) == good("ra")
        assert b"LATE" not in orjson.dumps(events)
        assert await continued(node, vendor, "s", "rb") == ["to b", "B"]
        assert await continued(node, vendor, "s", "ra") == ["to a", "A-NEW"]


# --- ids ---


async def test_keeps_the_whole_context_when_a_vendor_reuses_ids_and_the_socket_is_renewed(
    build: Callable[..., Awaitable[House]],
) -> None:
    house = await build({"A": "org-a"}, options=SimOptions(reuse_response_ids=True))
    node = await house.node(credentials=[replace(house.credentials()[0], max_age=0.3)])
    client = await house.connected(node)
    began = time.monotonic()
    for text in ("one", "two", "three"):
        turn = await client.turn(text, store=True)
        assert turn.ok, turn.problems
    await wait_until(lambda: time.monotonic() > began + 0.5)

    for text in ("four", "five"):
        turn = await client.turn(text, store=True)

        assert turn.ok, turn.problems
        assert list(house.sim.turns[-1].context) == conversation(turn)
    said = [item["content"][0]["text"] for item in house.sim.turns[-1].context if item.get("role") == "user"]
    assert said == ["one", "two", "three", "four", "five"]
    assert len(house.sim.handshakes) > 1, "the socket was renewed"


# --- steers ---


@pytest.mark.parametrize("accepted", [True, False])
async def test_keeps_the_words_of_a_lost_response_s_steer_from_other_conversations(
    build: Callable[..., Awaitable[House]], accepted: bool
) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        if frame["type"] == "response.steer":
            lost = frame["input"] == "STEER-1"
            if accepted or not lost:
                await speaker.say("response.steer.accepted", steer={"id": "s"})
            if lost:
                await took_effect.wait()
                speaker.cut()
            else:
                await speaker.say("response.incomplete", "r2")
                await speaker.tell("r-next", "NEXT")
        elif words(frame["input"])[-1] in ("one", "two"):
            await speaker.begin({"one": "r1", "two": "r2"}[words(frame["input"])[-1]])
        else:
            await speaker.tell(f"r-{len(vendor.frames)}", "fine")

    took_effect = asyncio.Event()
    house = await build()
    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node, **{"x-session-id": "s"}) as socket:
            await started(socket, "one")
            await steer(socket, "r1", "STEER-1")
            if accepted:
                assert (await socket.event())["type"] == "response.steer.accepted"
            took_effect.set()
            assert (await socket.until(1))[-1]["type"] == "error"
            await socket.create("a new root")
            root = (await socket.until(1))[-1]["response"]["id"]
            await started(socket, "two")
            await steer(socket, "r2", "STEER-2")
            assert (await socket.until(1))[-1]["response"]["id"] == "r-next"

        assert await continued(node, vendor, "s", root) == ["a new root", "fine"]
        assert await continued(node, vendor, "s", "r-next") == ["two", "STEER-2", "NEXT"]
    assert all("STEER-1" not in said for said in vendor.inputs())


async def test_lets_a_steered_turn_s_successor_go_before_what_waits(build: Callable[..., Awaitable[House]]) -> None:
    async def script(speaker: Speaker, frame: Frame) -> None:
        if frame["type"] == "response.steer":
            await speaker.say("response.steer.accepted", steer={"id": "s"})
            await speaker.say("response.incomplete", "r1")
            # a create that was not held back would be here by now
            began = time.monotonic()
            await wait_until(lambda: len(vendor.frames) > 2 or time.monotonic() > began + 0.2)
            early.append(len(vendor.frames) > 2)
            await speaker.tell("r-next", "SUCCESSOR")
        elif words(frame["input"]) == ["one"]:
            await speaker.begin("r1")
        else:
            await speaker.tell(f"r-{len(vendor.frames)}", "fine")

    early: list[bool] = []
    house = await build()
    async with upstream(script) as vendor:
        node = await house.node(credentials=[vendor.credential()])
        async with plain(node, **{"x-session-id": "s"}) as socket:
            await started(socket, "one")
            await socket.create("another conversation")
            await steer(socket, "r1", "STEER")
            events = await socket.until(2)

        assert early == [False]
        assert shown(events) == [
            ("response.steer.accepted", None),
            ("response.incomplete", "r1"),
            *good("r-next"),
            *good("r-3"),
        ]
        assert await continued(node, vendor, "s", "r-next") == ["one", "STEER", "SUCCESSOR"]
        assert await continued(node, vendor, "s", "r-3") == ["another conversation", "fine"]
