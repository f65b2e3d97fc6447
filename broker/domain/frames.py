"""WebSocket frames as bytes: where one ends, and what stands before a text (RFC 6455 5.2).

What is done for every frame has a compiled twin (`broker/_frames.c`), which takes its place where it was built.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

FIN_TEXT = 0x81
"""The first byte of a whole, unfragmented, uncompressed text frame."""

MASKED = 0x80


def frame_size(data: bytes, position: int = 0) -> int | None:
    """Bytes of the whole frame that begins here, header included; None while its header is not whole."""
    if len(data) - position < 2:
        return None
    length, header = data[position + 1] & 0x7F, 2
    if data[position + 1] & MASKED:
        header += 4
    if length >= 126:
        wide = 2 if length == 126 else 8
        if len(data) - position < 2 + wide:
            return None
        length = int.from_bytes(data[position + 2 : position + 2 + wide], "big")
        header += wide
    return header + length


def text_header(size: int, masked: int = 0) -> bytes:
    """The header of a whole text frame of `size` bytes, without the mask itself; `masked` is `MASKED` or 0."""
    if size < 126:
        return bytes((FIN_TEXT, size | masked))
    if size < 1 << 16:
        return _WIDE(FIN_TEXT, 126 | masked, size)
    return _WIDEST(FIN_TEXT, 127 | masked, size)


_WIDE = struct.Struct("!BBH").pack
_WIDEST = struct.Struct("!BBQ").pack


def pure_text_frame(data: bytes, at: int, mask: int, largest: int) -> tuple[int, int]:
    """Start and end of the payload of the text frame at `at`; `mask` says whether it must be masked (`MASKED`, or 0).

    `(-1, at)`: it is not all there yet. `(0, at)`: it is no whole, unfragmented, uncompressed text frame of that kind
    of at most `largest` bytes, or will be none.
    """
    size = len(data)
    if at >= size:
        return -1, at
    if data[at] != FIN_TEXT:
        return 0, at
    if size - at < 2:
        return -1, at
    if data[at + 1] & MASKED != mask:
        return 0, at
    length, start = data[at + 1] & 0x7F, at + 2
    if length >= 126:
        start += 2 if length == 126 else 8
        if start > size:
            return -1, at
        length = int.from_bytes(data[at + 2 : start], "big")
    if mask:
        start += 4
    end = start + length
    if end - at > largest:
        return 0, at
    return (start, end) if end <= size else (-1, at)


_PREFIX = b'{"type":"response.'
_ITEM = b"output_item.done"

PLAIN = frozenset(
    (
        b"audio.delta",
        b"audio.done",
        b"audio.transcript.delta",
        b"audio.transcript.done",
        b"code_interpreter_call.completed",
        b"code_interpreter_call.in_progress",
        b"code_interpreter_call.interpreting",
        b"code_interpreter_call_code.delta",
        b"code_interpreter_call_code.done",
        b"content_part.added",
        b"content_part.done",
        b"custom_tool_call_input.delta",
        b"custom_tool_call_input.done",
        b"file_search_call.completed",
        b"file_search_call.in_progress",
        b"file_search_call.searching",
        b"function_call_arguments.delta",
        b"function_call_arguments.done",
        b"mcp_call_arguments.delta",
        b"mcp_call_arguments.done",
        b"output_item.added",
        _ITEM,
        b"output_text.annotation.added",
        b"output_text.delta",
        b"output_text.done",
        b"reasoning_summary_part.added",
        b"reasoning_summary_part.done",
        b"reasoning_summary_text.delta",
        b"reasoning_summary_text.done",
        b"reasoning_text.delta",
        b"reasoning_text.done",
        b"refusal.delta",
        b"refusal.done",
        b"web_search_call.completed",
        b"web_search_call.in_progress",
        b"web_search_call.searching",
    )
)
"""Types, behind `response.`, that need no look from the turn that shows. The set is closed on purpose."""


def pure_plain_run(data: bytes, at: int, items: list[tuple[int, int, int]]) -> int:
    """How far a run of whole plain frames reaches from `at`.

    `items` gets those in which an item is done: where the frame begins, where its payload begins, where both end.
    """
    while True:
        start, end = pure_text_frame(data, at, 0, len(data))
        if start <= 0 or not data.startswith(_PREFIX, start, end):
            return at
        named = start + len(_PREFIX)
        quote = data.find(b'"', named, min(named + 64, end))
        kind = data[named:quote] if quote >= 0 else b""
        if kind not in PLAIN:
            return at
        if kind == _ITEM:
            items.append((at, start, end))
        at = end


BINDING = (
    b"item_reference",
    b"file_id",
    b"file_ids",
    b"container",
    b"container_id",
    b"vector_store_ids",
    b"compaction",
    b"compaction_summary",
    b"prompt",
)
"""Keys and types that bind a request to the project in which something lives (protocol.md 8.3)."""

_QUOTED = re.compile(b'"(?:' + b"|".join(BINDING) + b')"')


def pure_names_any(data: bytes) -> bool:
    """Whether one of `BINDING` stands in quotes. It may still be a mere word; where none does, nothing binds.

    A quoted key never occurs inside a JSON string, whose quotes are escaped.
    """
    return _QUOTED.search(data) is not None


names_any: Callable[[bytes], bool] = pure_names_any
"""`pure_names_any`, or its twin."""

text_frame: Callable[[bytes, int, int, int], tuple[int, int]] = pure_text_frame
"""`pure_text_frame`, or its twin."""

plain_run: Callable[[bytes, int, list[tuple[int, int, int]]], int] = pure_plain_run
"""`pure_plain_run`, or its twin."""

try:
    from broker import _frames

    _frames.prepare(PLAIN, BINDING)
    text_frame, plain_run, names_any = _frames.text_frame, _frames.plain_run, _frames.names_any
except (ImportError, AttributeError, TypeError):  # none was built, or one of another version
    COMPILED = False
else:
    COMPILED = True
