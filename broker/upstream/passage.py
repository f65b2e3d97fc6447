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

from broker.domain.frames import plain_run
from broker.tap import Tap, tappable

Write = Callable[[bytes | memoryview], object]
NoteItem = Callable[[bytes], bool]
"""Told of an item that passes; False if it cannot be read, so that it shall be looked at like any other message."""


class Passage(Tap):
    """A tap on an upstream socket, through which plain output may pass straight to a client.

    `passed` says that something has, since it was last set to False.
    """

    __slots__ = ("_direct", "_note_item", "_write", "passed")

    def __init__(self, transport: asyncio.Transport, inner: asyncio.Protocol) -> None:
        super().__init__(transport, inner, masked=False)
        self.passed = False
        self._direct: Write | None = None
        self._write: Write | None = None
        self._note_item: NoteItem = _unreadable

    def open(self, direct: Write, write: Write, note_item: NoteItem) -> None:
        """Plain output passes until `shut` is called: to `direct`, or behind messages that came with it to `write`.

        What passes is not asked for one by one: whoever would say that it is not ready shuts first.
        """
        if self._take is not None:
            self._direct, self._write, self._note_item = direct, write, note_item

    def shut(self) -> None:
        """Every frame is a message again."""
        self._direct = self._write = None
        self._note_item = _unreadable

    def _finish(self) -> None:
        super()._finish()
        self.shut()

    def data_received(self, data: bytes) -> None:
        """Pass a run of plain output straight on; everything else goes as in any tap."""
        direct = self._direct
        if direct is not None and not (self._waiting or self._left or self._under_way or self._fragments):
            items: list[tuple[int, int, int]] = []
            end = plain_run(data, 0, items)
            if items:
                end = self._noted(data, items, end)
            if end:
                self.passed = True
                if end == len(data):
                    direct(data)
                    return
                direct(memoryview(data)[:end])
                data = data[end:]
        super().data_received(data)

    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        write, take = self._write, self._take
        if write is not None:
            items: list[tuple[int, int, int]] = []
            reached = self._noted(data, items, plain_run(data, at, items))
            if reached > at:
                self.passed = True
                write(memoryview(data)[at:reached])
                return reached
        assert take is not None
        take(data[start:end])
        return end

    def _noted(self, data: bytes, items: list[tuple[int, int, int]], end: int) -> int:
        """Note the items of a run; the answer is where it ends, which is before one that cannot be read."""
        for begins, start, ends in items:
            if not self._note_item(data[start:ends]):
                return begins
        return end


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
