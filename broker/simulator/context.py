"""What an answer is a function of: the ordered items of a conversation, and a digest that shows any change to them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from broker.simulator.ciphertext import check_sealed
from broker.simulator.refusal import Refusal

Item = dict[str, Any]
CallKey = tuple[str, str]

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


def input_items(value: object) -> list[Item]:
    """The `input` of a request as items; a string is one user message."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return list(value)
    raise Refusal(400, "invalid_type", "Invalid type for 'input': expected a string or an array.", param="input")


def item_type(item: Item) -> str:
    """The type of an item; a bare role and content is a message."""
    kind = item.get("type", "message")
    return kind if isinstance(kind, str) else "message"


def message_text(item: Item) -> str:
    """All text of a message, joined."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part.get("text", "") for part in parts if isinstance(part, dict) and part.get("type") in _TEXT_PARTS)


def canonical(item: Item) -> bytes | None:
    """The bytes that stand for an item in the digest; None for reasoning, which a legal replay may drop."""
    kind = item_type(item)
    if kind == "reasoning":
        return None
    meaning: object
    if kind == "message":
        meaning = [kind, item.get("role"), _canonical_content(item.get("content")), item.get("phase")]
    elif kind == "function_call":
        meaning = [kind, item.get("call_id"), item.get("name"), item.get("arguments")]
    elif kind == "function_call_output":
        meaning = [kind, item.get("call_id"), item.get("output")]
    else:
        meaning = [kind, {key: value for key, value in item.items() if key not in ("id", "status")}]
    return orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS)


def _canonical_content(content: object) -> list[object]:
    if isinstance(content, str):
        return [["text", content]]
    parts = content if isinstance(content, list) else []
    return [
        ["text", part.get("text")] if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else part
        for part in parts
    ]


def after_compaction(items: Sequence[Item]) -> tuple[Sequence[Item], bool]:
    """The items from the last compaction on, which replaces all before it, and whether there was one."""
    for at in range(len(items) - 1, -1, -1):
        if item_type(items[at]) == "compaction":
            return items[at:], True
    return items, False


@dataclass(frozen=True, slots=True)
class Context:
    """An effective context, immutable; growing it costs no more than what is added."""

    items: tuple[Item, ...] = ()
    counted: int = 0  # items in the digest
    tokens: int = 0
    item_ids: frozenset[str] = frozenset()
    calls: frozenset[CallKey] = frozenset()
    open_calls: tuple[CallKey, ...] = ()
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256, repr=False)

    @property
    def digest(self) -> str:
        """sha256 over the canonical form of every item in order, as hex."""
        return self._hash.hexdigest()

    def grown(self, more: Iterable[Item]) -> "Context":
        """This context and then the given items."""
        added, compacted = after_compaction(list(more))
        start = Context() if compacted else self
        running = start._hash.copy()
        counted, size = 0, 0
        for item in added:
            form = canonical(item)
            if form is not None:
                running.update(len(form).to_bytes(8, "big") + form)
                counted, size = counted + 1, size + len(form)
        calls, open_calls = _pair(start, added)
        return Context(
            items=(*start.items, *added),
            counted=start.counted + counted,
            tokens=start.tokens + size // 4,
            item_ids=start.item_ids.union(item["id"] for item in added if isinstance(item.get("id"), str)),
            calls=calls,
            open_calls=open_calls,
            _hash=running,
        )

    def check(self, more: Sequence[Item], boundary: str) -> None:
        """Refuse input that the vendor would not accept after this context."""
        added, compacted = after_compaction(more)
        start = Context() if compacted else self
        seen, calls = set(start.item_ids), set(start.calls)
        for item in added:
            _check_id(item, seen)
            if item_type(item) in ("reasoning", "compaction"):
                check_sealed(item, boundary)
            key = _call_key(item)
            if key is not None:
                calls.add(key)
            _check_output(item, calls)
        _, open_calls = _pair(start, added)
        if open_calls:
            message = f"No tool output found for function call {open_calls[0][1]}."
            raise Refusal(400, "invalid_function_call_output", message, param="input")


def context_digest(items: Iterable[Item]) -> str:
    """The digest of a whole conversation, as the simulator's answers begin with it."""
    return Context().grown(items).digest


def _call_key(item: Item) -> CallKey | None:
    kind, call_id = item_type(item), item.get("call_id")
    return (kind, call_id) if kind.endswith("_call") and isinstance(call_id, str) else None


def _output_key(item: Item) -> CallKey | None:
    kind = item_type(item)
    if not kind.endswith("_output") or "call_id" not in item:
        return None
    # A tool_search_call is answered by a tool_search_output, all others say "call" in both names.
    return kind.removesuffix("_output").removesuffix("_call") + "_call", str(item["call_id"])


def _pair(start: Context, added: Iterable[Item]) -> tuple[frozenset[CallKey], tuple[CallKey, ...]]:
    calls, open_calls = set(start.calls), dict.fromkeys(start.open_calls)
    for item in added:
        call, output = _call_key(item), _output_key(item)
        if call is not None:
            calls.add(call)
            open_calls[call] = None
        elif output is not None:
            open_calls.pop(output, None)
    return frozenset(calls), tuple(open_calls)


def _check_id(item: Item, seen: set[str]) -> None:
    item_id = item.get("id")
    if not isinstance(item_id, str):
        return
    if item_id in seen:
        message = f"Duplicate item found with id {item_id}. Remove duplicate items from your input and try again."
        raise Refusal(400, "invalid_value", message, param="input")
    seen.add(item_id)


def _check_output(item: Item, calls: set[CallKey]) -> None:
    key = _output_key(item)
    if key is not None and key not in calls:
        message = f"No tool call found for function call output with call_id {key[1]}."
        raise Refusal(400, "invalid_function_call_output", message, param="input")
