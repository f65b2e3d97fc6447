"""The passage: whole upstream frames go to the client as the very bytes that came, from the transport's callback.

A server's frames are unmasked, and so are those a client wants from us, so nothing is framed anew: a scanner hops from
header to header, looks at the type of each payload, and writes a run of plain output in one go. Rules that hold here:
- Output passes only while it is opened to a client's transport, and nothing that came before it waits.
- Only frames of a known plain type pass; announcements, terminal events and unknown types are messages like any other,
  and whoever takes them may open or shut the passage before the next frame is looked at.
- Frames are written whole, so whatever else is written to the client falls between frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp.connector import Connection

from broker.domain.frames import FIN_TEXT
from broker.tap import Tap, tappable

_PREFIX = b'{"type":"response.'
_DELTA = b'{"type":"response.output_text.delta"'
_ITEM = b"output_item.done"

PLAIN = frozenset(
    b"response." + kind
    for kind in (
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
"""Types that need no look from the turn that shows. The set is closed on purpose: what is not in it is looked at."""

_ITEM_DONE = b"response." + _ITEM

Write = Callable[[bytes], object]
NoteItem = Callable[[bytes], bool]
"""Told of an item that passes; False if it cannot be read, so that it shall be looked at like any other message."""


class Passage(Tap):
    """A tap on an upstream socket, through which plain output may pass straight to a client.

    `passed` says that something has, since it was last set to False.
    """

    __slots__ = ("_note_item", "_write", "passed")

    def __init__(self, transport: asyncio.Transport, inner: asyncio.Protocol) -> None:
        super().__init__(transport, inner, masked=False)
        self.passed = False
        self._write: Write | None = None
        self._note_item: NoteItem = _unreadable

    def open(self, write: Write, note_item: NoteItem) -> None:
        """Plain output passes to `write` until `shut` is called."""
        if self._take is not None:
            self._write = write
            self._note_item = note_item

    def shut(self) -> None:
        """Every frame is a message again."""
        self._write = None

    def _finish(self) -> None:
        super()._finish()
        self._write = None

    def data_received(self, data: bytes) -> None:
        """Pass a run of plain output straight on; everything else goes as in any tap."""
        write = self._write
        if write is not None and not (self._waiting or self._left or self._under_way or self._fragments):
            end = self._run(data, 0)
            if end:
                self.passed = True
                if end == len(data):
                    write(data)
                    return
                write(data[:end])
                data = data[end:]
        super().data_received(data)

    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        write = self._write
        if write is None or (reached := self._run(data, at)) == at:
            return super()._message(data, at, start, end)
        self.passed = True
        write(data[at:reached])
        return reached

    def _run(self, data: bytes, position: int) -> int:
        """How far a run of whole plain frames reaches from `position`."""
        size = len(data)
        while size - position >= 2 and data[position] == FIN_TEXT:
            length = data[position + 1]
            start = position + 2
            if length >= 126:
                if length == 126:
                    start += 2
                    length = int.from_bytes(data[position + 2 : start], "big")
                elif length == 127:
                    start += 8
                    length = int.from_bytes(data[position + 2 : start], "big")
                else:
                    return position
            end = start + length
            if end > size:
                return position
            if not data.startswith(_DELTA, start):
                if not data.startswith(_PREFIX, start):
                    return position
                kind = data[start + 9 : data.find(b'"', start + 9, start + 80)]
                if kind not in PLAIN:
                    return position
                if kind == _ITEM_DONE and not self._note_item(data[start:end]):
                    return position
            position = end
        return position


def _unreadable(raw: bytes) -> bool:
    return False


def install(connection: Connection) -> Passage | None:
    """Put a passage into a connection that was just upgraded; None where that cannot be done."""
    inner, transport = connection.protocol, connection.transport
    if inner is None or transport is None or not tappable(transport, inner, "_tail"):
        return None
    passage = Passage(transport, inner)
    transport.set_protocol(passage)
    return passage
