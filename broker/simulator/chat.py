"""Chat completions: messages in, the same answer to the same context as a response gives, as JSON or as chunks."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from typing import Any

import orjson
from aiohttp import web

from broker.simulator.answer import Answer, Call, answer_to, pieces
from broker.simulator.context import Context, Item
from broker.simulator.credentials import SimCredential
from broker.simulator.handshake import VENDOR, body_of, door, json_response
from broker.simulator.http_wire import ChatWire
from broker.simulator.intake import Create, check_model
from broker.simulator.refusal import Refusal
from broker.simulator.strike import Caller, FailedByFault, Gone, strike
from broker.simulator.vendor import Vendor
from broker.simulator.work import recorded

Delta = dict[str, Any]


@door
async def create_chat(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    frame, raw = await body_of(request)
    stream = frame.get("stream") is True
    create, wire = Create(frame, raw), ChatWire(request, stream)
    caller = Caller(credential, "sse" if stream else "json")
    vendor = request.app[VENDOR]
    items = _items(frame.get("messages"))
    async with recorded(request, caller, create, wire, items) as record:
        check_model(credential, create.model, vendor.manner_of(credential))
        context = Context().grown(items)
        record.context, record.context_digest = context.items, context.digest
        chat = Chat(vendor, caller, create, wire, context)
        record.response_id = chat.chat_id
        try:
            await chat.run()
        except (Refusal, FailedByFault) as failure:
            refusal = failure if isinstance(failure, Refusal) else failure.fault.refusal()
            record.end("error", refusal.code or refusal.error_type)
            if wire.response is None:
                raise refusal from None
            wire.refuse(refusal, None)
            await _flush_last(wire)
        except Gone:
            record.end("lost")
    return wire.response or json_response(chat.whole())


async def _flush_last(wire: ChatWire) -> None:
    try:
        await wire.flush()
    except Gone:
        return


class Chat:
    """One completion; its pieces go out as chunks where the client wants a stream."""

    def __init__(self, vendor: Vendor, caller: Caller, create: Create, wire: ChatWire, context: Context) -> None:
        self.chat_id = "chatcmpl-" + secrets.token_hex(14)
        self._vendor = vendor
        self._caller = caller
        self._create = create
        self._wire = wire
        self._context = context
        self._answer = answer_to(context, vendor.options, _tools(create.frame.get("tools")), vendor.scripts)
        self._created = int(time.time())
        options = create.frame.get("stream_options")
        self._tells_usage = isinstance(options, dict) and options.get("include_usage") is True

    async def run(self) -> None:
        """Say everything, and meet faults on the way; raises Refusal, FailedByFault or Gone."""
        self._say({"role": "assistant", "content": None if self._answer.calls else "", "refusal": None})
        await self._wire.flush()
        await self._strike("after_created", 0)
        for number, delta in enumerate(_deltas(self._answer), 1):
            self._say(delta)
            await self._strike("after_deltas", number)
            if self._answer.delay:
                await self._wire.flush()
                await asyncio.sleep(self._answer.delay)
        self._say({}, _reason(self._answer))
        if self._tells_usage:
            self._put([], usage=self._usage())
        self._wire.put("done", b"[DONE]")
        await self._wire.flush()

    def whole(self) -> dict[str, Any]:
        """The completion as one object."""
        answer = self._answer
        message: dict[str, Any] = {"role": "assistant", "content": None if answer.calls else answer.text}
        message |= {"refusal": None, "annotations": []}
        if answer.calls:
            message["tool_calls"] = [_tool_call(call, call.arguments) for call in answer.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
        return self._head("chat.completion") | {"choices": [choice], "usage": self._usage()}

    def _say(self, delta: Delta, reason: str | None = None) -> None:
        self._put([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}])

    def _put(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> None:
        chunk = self._head("chat.completion.chunk") | {"choices": choices}
        self._wire.put("chunk", orjson.dumps(chunk | ({"usage": usage} if self._tells_usage else {})))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.chat_id,
            "object": kind,
            "created": self._created,
            "model": self._create.model,
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }

    def _usage(self) -> dict[str, Any]:
        spoken = sum(len(call.arguments) for call in self._answer.calls) or len(self._answer.text)
        return {
            "prompt_tokens": self._context.tokens,
            "completion_tokens": spoken // 4,
            "total_tokens": self._context.tokens + spoken // 4,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    async def _strike(self, point: str, deltas: int) -> None:
        await strike(
            self._vendor,
            self._caller,
            self._wire,
            point,
            raw=self._create.raw,
            model=self._create.model,
            deltas=deltas,
        )


def _deltas(answer: Answer) -> Iterator[Delta]:
    if not answer.calls:
        for text in pieces(answer.text, answer.deltas):
            yield {"content": text}
        return
    for at, call in enumerate(answer.calls):
        yield {"tool_calls": [{"index": at, **_tool_call(call, "")}]}
        for text in pieces(call.arguments, max(min(answer.deltas, len(call.arguments)), 1)):
            yield {"tool_calls": [{"index": at, "function": {"arguments": text}}]}


def _tool_call(call: Call, arguments: str) -> dict[str, Any]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _reason(answer: Answer) -> str:
    return "tool_calls" if answer.calls else "length" if answer.incomplete else "stop"


def _tools(value: object) -> list[dict[str, Any]]:
    """The tools of a chat in the form of a response's; custom tools are not called in chats."""
    tools = [tool for tool in value if isinstance(tool, dict)] if isinstance(value, list) else []
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), dict)]
    return [{"type": "function", **function} for function in functions]


def _items(messages: object) -> list[Item]:
    """The messages as items of a context."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "invalid_type", "Invalid type for 'messages': expected an array.", param="messages")
    return [item for message in messages for item in _items_of(message)]


def _items_of(message: dict[str, Any]) -> Iterator[Item]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        yield {"type": "function_call_output", "call_id": str(message.get("tool_call_id")), "output": content}
        return
    if content is not None:
        yield {"type": "message", "role": role, "content": content}
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        called = {"name": function.get("name"), "arguments": function.get("arguments")}
        yield {"type": "function_call", "call_id": str(call.get("id")), **called}
