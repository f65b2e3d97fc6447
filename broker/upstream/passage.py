"""The passage: whole upstream frames go to the client as the very bytes that came, from the transport's callback.

A server's frames are unmasked, and so are those a client wants from us, so nothing is framed anew: a scanner hops from
header to header, looks at the type of each payload, and writes a run of plain output in one go. Rules that hold here:
- Only whole, unfragmented, uncompressed text frames of a known plain type pass; everything else takes the ordinary path
  through aiohttp's own reader: control frames, fragments, held announcements, terminal events, unknown types.
- Nothing overtakes: while a message is on the ordinary path and not yet dealt with, all that follows waits here. So one
  announcement in front of a burst does not send the whole burst the slow way.
- What waits is bounded: beyond `WAITING` bytes the upstream is not read.
- Frames are written whole, so whatever else is written to the client falls between frames.

This is the only room that knows how aiohttp reads: it stands between a transport and aiohttp's protocol, and `install`
refuses (None) where that is not as expected; the ordinary path alone then serves, slower and no less right.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Protocol

from aiohttp.connector import Connection

LARGE = 64 * 1024
"""A frame that is larger and not yet whole takes the ordinary path, which has a place to gather it."""

WAITING = 256 * 1024
"""Bytes that may wait behind a message that is being dealt with before the upstream is not read any more."""

WHILE_BEHIND = 0.1
"""Seconds between two signs of life of an upstream that is not read because its client is behind."""

TELL_ALIVE_EVERY = 5.0
"""Seconds of passing after which aiohttp's own heartbeat is told that the peer lives."""

_FIN_TEXT = 0x81
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


class Sink(Protocol):
    """Where passing frames go: a client that takes bytes as they are."""

    def write(self, data: bytes) -> bool:
        """Write whole frames; False if the client is behind, and its upstream should wait for `drained`."""

    async def drained(self) -> None:
        """Wait until the client has caught up, or is gone."""


class Gate(Enum):
    """What may happen with the next bytes, when they may not simply pass."""

    ONE = auto()
    """One message takes the ordinary path; what follows waits until it is dealt with."""
    ALL = auto()
    """Everything takes the ordinary path: several turns share the socket, or none is on it."""
    WAIT = auto()
    """Something before them is being dealt with; `Passage.go` tells when it is done."""


class Opening(Protocol):
    """Who says whether output may pass now, and wants to know the items that did."""

    def gate(self) -> Sink | Gate:
        """Where plain output may go at this moment, or what else may happen."""

    def passed(self) -> None:
        """Output has passed."""

    def note_item(self, raw: bytes) -> bool:
        """An item is done; False if it cannot be read, so that the ordinary path may deal with it."""


class Passage(asyncio.Protocol):
    """Stands between an upstream transport and aiohttp's protocol."""

    def __init__(self, transport: asyncio.Transport, inner: asyncio.Protocol) -> None:
        self.opening: Opening | None = None
        self._transport = transport
        self._inner = inner
        self._tail = b""
        self._left = 0
        self._fragments = False
        self._under_way = 0
        self._full = False
        self._alive_at = 0.0
        self._drainer: asyncio.Task[None] | None = None

    @property
    def closing(self) -> bool:
        """Whether the transport is on its way out: nothing can be sent any more."""
        return self._transport.is_closing()

    def keep_alive(self) -> None:
        """Nobody reads while the client is behind; aiohttp's heartbeat shall not take that for the peer's death."""
        self._inner.data_received(b"")

    # --- what the transport brings ---

    def data_received(self, data: bytes) -> None:
        """Pass on what may pass; hand the rest to aiohttp, in order."""
        self._tail = self._tail + data if self._tail else data
        self.go()

    def go(self) -> None:
        """Deal with what is here as far as it may be dealt with now."""
        while self._tail:
            gate = self._gate()
            if gate is Gate.WAIT:
                break
            if not isinstance(gate, Gate):
                if self._pass(gate):
                    continue
                if self._incomplete():
                    break
            if not self._hand_over(everything=gate is Gate.ALL):
                break
        self._mind_fullness()

    def _gate(self) -> Sink | Gate:
        if self.opening is None:
            return Gate.ALL
        if self._left:
            # the rest of a frame goes where its beginning went, and at once: it is what is being waited for
            return Gate.ONE
        gate = self.opening.gate()
        if self._under_way and gate is not Gate.ALL:
            return Gate.WAIT
        # nothing passes in the midst of a message that comes in fragments
        return Gate.ONE if self._fragments and not isinstance(gate, Gate) else gate

    def _mind_fullness(self) -> None:
        full = len(self._tail) > WAITING
        if full != self._full:
            self._full = full
            if full:
                self._transport.pause_reading()
            elif self._drainer is None and not self._transport.is_closing():
                self._transport.resume_reading()

    def _pass(self, sink: Sink) -> bool:
        """Write the run of plain frames at the beginning; False if there is none."""
        data, opening = self._tail, self.opening
        end = self._run(data, opening) if opening is not None else 0
        if not end:
            return False
        self._tail = data[end:]
        self._write(sink, data if end == len(data) else data[:end])
        if opening is not None:
            opening.passed()
        return True

    def _incomplete(self) -> bool:
        """Whether here is the beginning of a frame that may still pass when it is whole."""
        if len(self._tail) < 2:
            return True
        if self._tail[0] != _FIN_TEXT or self._tail[1] >= 128:
            return False
        size = _frame_size(self._tail)
        return size is None or len(self._tail) < size <= LARGE

    def _hand_over(self, *, everything: bool) -> bool:
        """Hand one frame, or everything, to aiohttp; False if a header is not whole yet."""
        data = self._tail
        position = min(self._left, len(data))
        self._left -= position
        while len(data) - position >= 2 and (everything or not position):
            size = _frame_size(data, position)
            if size is None:
                break
            ends_message = data[position] & 0x80 and data[position] & 0x0F < 8
            if data[position] & 0x0F < 8:
                self._fragments = not ends_message
            position += size
            if position > len(data):
                self._left, position = position - len(data), len(data)
            self._under_way += bool(ends_message)
        self._tail = data[position:]
        if position:
            self._inner.data_received(data if position == len(data) else data[:position])
        return position > 0

    def taken(self) -> None:
        """A message from the ordinary path has been dealt with."""
        self._under_way -= 1
        self.go()

    def _run(self, data: bytes, opening: Opening) -> int:
        """How far a run of whole plain frames reaches from the beginning of `data`."""
        position, size = 0, len(data)
        while size - position >= 2 and data[position] == _FIN_TEXT:
            length = data[position + 1]
            start = position + 2
            if length >= 126:
                if length > 127:
                    return position
                wide = 2 if length == 126 else 8
                start += wide
                length = int.from_bytes(data[position + 2 : start], "big")
            end = start + length
            if end > size:
                return position
            if not data.startswith(_DELTA, start):
                if not data.startswith(_PREFIX, start):
                    return position
                kind = data[start + 9 : data.find(b'"', start + 9, start + 80)]
                if kind not in PLAIN:
                    return position
                if kind == _ITEM_DONE and not opening.note_item(data[start:end]):
                    return position
            position = end
        return position

    def _write(self, sink: Sink, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._alive_at > TELL_ALIVE_EVERY:
            self._alive_at = now
            self._inner.data_received(b"")
        if not sink.write(data) and self._drainer is None:
            self._transport.pause_reading()
            self._drainer = asyncio.create_task(self._drain(sink), name="client-behind")

    async def _drain(self, sink: Sink) -> None:
        drained = asyncio.create_task(sink.drained(), name="drained")
        try:
            while not (await asyncio.wait({drained}, timeout=WHILE_BEHIND))[0]:
                if not self.closing:
                    self.keep_alive()
        finally:
            drained.cancel()
            self._drainer = None
            if self.opening is not None:
                self.opening.passed()  # while nothing was read, nothing could be heard
            if not self._full and not self._transport.is_closing():
                self._transport.resume_reading()

    def _flush(self) -> None:
        """Nothing comes any more: what waits goes the ordinary way."""
        while self._tail and self._hand_over(everything=True):
            pass

    # --- everything else is aiohttp's ---

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; what it brought before is still dealt with."""
        self._flush()
        self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """The peer sends no more."""
        self._flush()
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The peer is behind."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._inner.resume_writing()


def _frame_size(data: bytes, position: int = 0) -> int | None:
    """Bytes of the whole frame that begins here, header included; None while its header is not whole."""
    length, header = data[position + 1] & 0x7F, 2
    if data[position + 1] & 0x80:
        header += 4
    if length >= 126:
        wide = 2 if length == 126 else 8
        if len(data) - position < 2 + wide:
            return None
        length = int.from_bytes(data[position + 2 : position + 2 + wide], "big")
        header += wide
    return header + length


def install(connection: Connection) -> Passage | None:
    """Put a passage into a connection that was just upgraded, before anything was read behind its handshake.

    None where that cannot be done: something has come with the handshake already, or this is another aiohttp; where
    frames begin would then be a guess.
    """
    inner, transport = connection.protocol, connection.transport
    if inner is None or transport is None or getattr(inner, "_tail", None) != b"":
        return None
    passage = Passage(transport, inner)
    transport.set_protocol(passage)
    return passage
