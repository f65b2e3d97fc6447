"""The output items of one response, said event by event: compaction, reasoning, function calls, a message."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from broker.simulator.answer import Answer, Call, pieces
from broker.simulator.ciphertext import seal
from broker.simulator.context import Context, Item
from broker.simulator.events import EventWriter, escaped
from broker.simulator.vendor import Vendor

_DELTAS_PER_FLUSH = 512
# Type of the item, its field for what the tool is told, and the event in which that comes.
_FUNCTION = ("function_call", "arguments", "response.function_call_arguments")
_CUSTOM = ("custom_tool_call", "input", "response.custom_tool_call_input")


class Output:
    """Says items and keeps those that are done; `strike` is awaited after every delta while faults are armed."""

    def __init__(
        self,
        vendor: Vendor,
        boundary: str,
        flush: Callable[[], Awaitable[None]],
        writer: EventWriter,
        strike: Callable[[str], Awaitable[None]],
    ) -> None:
        self.items: list[Item] = []
        self.deltas = 0
        self.steers: list[Item] = []
        self._vendor = vendor
        self._boundary = boundary
        self._flush = flush
        self._writer = writer
        self._strike = strike

    @property
    def open_calls(self) -> list[Item]:
        return [item for item in self.items if item["type"] in ("function_call", "custom_tool_call")]

    @property
    def cut_short(self) -> bool:
        """The last item ended before all of it was said."""
        return bool(self.items) and self.items[-1].get("status") == "incomplete"

    def compact(self, context: Context, wanted: object) -> None:
        """A compaction item, if the request manages its context and the context has reached the threshold."""
        rules = [rule for rule in wanted if isinstance(rule, dict)] if isinstance(wanted, list) else []
        thresholds = [rule.get("compact_threshold") for rule in rules if rule.get("type") == "compaction"]
        if not any(context.tokens >= (least if isinstance(least, int) else 0) for least in thresholds):
            return
        item = compaction_item(self._boundary, context)
        self._add(item | {"encrypted_content": ""})
        self._done(item)

    def reason(self) -> None:
        if not self._vendor.options.reasoning:
            return
        item_id = "rs_" + secrets.token_hex(24)
        sealed = seal("reasoning", self._boundary, item_id)
        item: Item = {"id": item_id, "type": "reasoning", "summary": [], "encrypted_content": sealed}
        # The announcement holds only a part of the ciphertext, as the vendor's may.
        self._add(item | {"encrypted_content": sealed[:12]})
        self._done(item)

    async def call(self, answer: Answer) -> None:
        for call in answer.calls:
            await self._one_call(call, answer)

    async def _one_call(self, call: Call, answer: Answer) -> None:
        kind, held, event = _CUSTOM if call.custom else _FUNCTION
        item: Item = {
            "id": ("ctc_" if call.custom else "fc_") + secrets.token_hex(24),
            "type": kind,
            "call_id": call.call_id,
            "name": call.name,
            held: "",
            "status": "in_progress",
        }
        where = {"item_id": item["id"], "output_index": len(self.items)}
        self._add(item)
        count = max(min(answer.deltas, len(call.arguments)), 1)
        await self._pour(f"{event}.delta", where, pieces(call.arguments, count), answer.delay)
        named = {} if call.custom else {"name": call.name}
        self._writer.say(f"{event}.done", **where, **named, **{held: call.arguments})
        self._done(item | {held: call.arguments, "status": "completed"})

    async def speak(self, answer: Answer) -> None:
        item: Item = {
            "id": "msg_" + secrets.token_hex(24),
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
            "phase": "final_answer",
        }
        where = {"item_id": item["id"], "output_index": len(self.items), "content_index": 0}
        part: Item = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._add(item)
        self._writer.say("response.content_part.added", **where, part=part)
        spoken = pieces(answer.text, answer.deltas)
        said = await self._pour(
            "response.output_text.delta", where | {"logprobs": []}, spoken, answer.delay, steerable=True
        )
        self._writer.say("response.output_text.done", **where, text=said, logprobs=[])
        self._writer.say("response.content_part.done", **where, part=part | {"text": said})
        whole = said == answer.text and not answer.incomplete
        status = "completed" if whole else "incomplete"
        self._done(item | {"content": [part | {"text": said}], "status": status})

    async def _pour(
        self, kind: str, where: dict[str, Any], texts: Iterable[str], delay: float, *, steerable: bool = False
    ) -> str:
        """Send the deltas of one item; returns what was said before the end or a steer."""
        head = self._writer.delta_head(kind, **where)
        said: list[str] = []
        for text in texts:
            if steerable and self.steers:
                break
            self._writer.delta(kind, head, escaped(text))
            said.append(text)
            self.deltas += 1
            if self._vendor.faults:
                await self._strike("after_deltas")
            if delay:
                await self._flush()
                await asyncio.sleep(delay)
            elif self.deltas % _DELTAS_PER_FLUSH == 0:
                await self._flush()
        return "".join(said)

    def _add(self, item: Item) -> None:
        self._writer.say("response.output_item.added", output_index=len(self.items), item=item)

    def _done(self, item: Item) -> None:
        self._writer.say("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)


def compaction_item(boundary: str, context: Context) -> Item:
    """A compaction of a context; what it replaces stays checkable, because its digest is in the ciphertext."""
    item_id = "cmp_" + secrets.token_hex(24)
    return {
        "id": item_id,
        "type": "compaction",
        "encrypted_content": seal("compaction", boundary, item_id, context.digest),
    }
