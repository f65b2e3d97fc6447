"""A server as the suite sees it: requests over HTTP and turns over a WebSocket, every answer checked by its shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp
import orjson

from tests.compliance.schemas import CompactResource, HttpError, Mismatch, ResponseResource, checked, checked_event

WITHIN = 10.0
"""Seconds for one answer, and for the silence between two events."""

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")

Event = dict[str, Any]


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP that was no response: its status and its error."""

    status: int
    error: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask, and with which key; each request goes over a connection of its own."""

    base_url: str
    key: str
    http: aiohttp.ClientSession

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}

    async def respond(self, **fields: Any) -> dict[str, Any]:
        """The response to a request that is to be answered whole."""
        raw = await self._posted("/responses", {"model": "sim-1", **fields, "stream": False})
        return checked(raw, ResponseResource)

    async def refused(self, path: str = "/responses", **fields: Any) -> Answer:
        """The error that a request deserves."""
        async with self.http.post(self.base_url + path, headers=self.headers, json=fields) as answer:
            assert answer.content_type == "application/json", answer.content_type
            assert answer.status >= 400, answer.status
            error: dict[str, Any] = checked(await answer.read(), HttpError)["error"]
            return Answer(answer.status, error)

    async def stream(self, **fields: Any) -> list[Event]:
        """The events of a request that is to be answered by a stream."""
        body = {"model": "sim-1", **fields, "stream": True}
        async with self.http.post(self.base_url + "/responses", headers=self.headers, json=body) as answer:
            raw = await answer.read()
            assert answer.status == 200, (answer.status, raw)
            assert answer.content_type == "text/event-stream", answer.content_type
        return in_order(_events_of(raw.decode()))

    async def compact(self, **fields: Any) -> dict[str, Any]:
        """The window that replaces an input."""
        return checked(await self._posted("/responses/compact", {"model": "sim-1", **fields}), CompactResource)

    async def _posted(self, path: str, body: dict[str, Any]) -> bytes:
        async with self.http.post(self.base_url + path, headers=self.headers, json=body) as answer:
            raw = await answer.read()
            assert answer.status == 200, (answer.status, raw)
            assert answer.content_type == "application/json", answer.content_type
            return raw

    @asynccontextmanager
    async def socket(self, *, steering: bool = False) -> AsyncIterator[Socket]:
        """A WebSocket of its own; closed with 1000 behind the block."""
        url = self.base_url + "/responses"
        async with self.http.ws_connect(url, headers=self.headers, max_msg_size=0, decode_text=False) as ws:
            yield Socket(ws, steering)


class Socket:
    """A WebSocket on which each frame is checked as it comes."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse[Any], steering: bool) -> None:
        self._ws = ws
        self._steering = steering

    async def send(self, frame: dict[str, Any] | str) -> None:
        await self._ws.send_str(frame if isinstance(frame, str) else orjson.dumps(frame).decode())

    async def create(self, asked: str | Sequence[dict[str, Any]], **fields: Any) -> None:
        await self.send({"type": "response.create", "model": "sim-1", "store": False, "input": asked, **fields})

    async def event(self) -> Event:
        message = await self._ws.receive(timeout=WITHIN)
        assert message.type is aiohttp.WSMsgType.TEXT, f"the socket ended within a turn: {message}"
        return checked_event(message.data, "websocket", steering=self._steering)

    async def until(self, *kinds: str, times: int = 1) -> list[Event]:
        """All events up to so many of these kinds."""
        seen: list[Event] = []
        while sum(event["type"] in kinds for event in seen) < times:
            seen.append(await self.event())
        return seen

    async def turn(self, asked: str | Sequence[dict[str, Any]], **fields: Any) -> list[Event]:
        """One turn to its end, whatever that is."""
        await self.create(asked, **fields)
        return in_order(await self.until(*ENDS))

    async def completed(self, asked: str | Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """The response of a turn that must complete."""
        last = (await self.turn(asked, **fields))[-1]
        assert last["type"] == "response.completed", last
        response: dict[str, Any] = last["response"]
        return response

    async def refused(self, asked: str | Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """The error of a turn that must be refused, or that must fail."""
        last = (await self.turn(asked, **fields))[-1]
        assert last["type"] in ("error", "response.failed"), last
        error: dict[str, Any] = last["error"] if last["type"] == "error" else last["response"]["error"]
        return error


def in_order(events: list[Event]) -> list[Event]:
    """The events of one response, if they follow each other as the specification says (protocol.md 3.1, 3.7)."""
    if not events or events[-1]["type"] not in ENDS:
        raise Mismatch(f"a turn without an end: {[event['type'] for event in events]}")
    if events[0]["type"] == "error":
        return events
    if events[0]["type"] not in ("response.created", "response.queued"):
        raise Mismatch(f"a turn begins with {events[0]['type']}")
    numbers = [event["sequence_number"] for event in events if "sequence_number" in event]
    if numbers[0] != 0 or any(a >= b for a, b in pairwise(numbers)):
        raise Mismatch(f"the events of one response are numbered {numbers}")
    if len({event["response"]["id"] for event in events if "response" in event}) > 1:
        raise Mismatch("a response changes its id")
    _check_items(events)
    return events


def _check_items(events: list[Event]) -> None:
    """Deltas make up their text, and items that are done make up the output."""
    deltas: dict[str, str] = {}
    for event in events:
        match event["type"]:
            case "response.output_text.delta" | "response.function_call_arguments.delta":
                deltas[event["item_id"]] = deltas.get(event["item_id"], "") + event["delta"]
            case "response.output_text.done" | "response.function_call_arguments.done":
                if deltas.get(event["item_id"], "") != event.get("text", event.get("arguments")):
                    raise Mismatch("deltas do not make up what is done")
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    if events[-1]["type"] != "error" and events[-1]["response"]["output"] not in (done, []):
        raise Mismatch("the output is not made of the items that were done")


def _events_of(text: str) -> list[Event]:
    """The events of a stream; behind the last there may be a `[DONE]` (protocol.md 10.7), and comments anywhere."""
    events: list[Event] = []
    for block in text.split("\n\n"):
        fields = [line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")]
        named, data = dict(fields).get("event"), "\n".join(rest for name, rest in fields if name == "data")
        if not fields or (data == "[DONE]" and events and events[-1]["type"] in ENDS):
            continue
        events.append(checked_event(data, "http"))
        if named != events[-1]["type"]:
            raise Mismatch(f"{events[-1]['type']} comes under the name {named!r}")
    return events


def text_of(response: dict[str, Any]) -> str:
    """All that a response says."""
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")
