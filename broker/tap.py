"""The tap: stands between a transport and aiohttp's protocol, and takes whole text messages as they come.

What would otherwise go through a reader, a queue and a task is handed on from the transport's own callback. Rules that
hold here:
- Only whole, unfragmented, uncompressed text frames of ordinary size are taken; control frames, fragments, large frames
  and everything that breaks the protocol go to aiohttp, which knows what to do about them.
- Nothing overtakes: while a message is at aiohttp's and not yet dealt with, all that follows waits here.
- What waits is bounded: beyond `WAITING` bytes the transport is not read.

This is the only room that knows how aiohttp reads. Where that is not as expected, nothing is tapped, and whoever asked
for it goes on by what aiohttp brings: slower, and no less right.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from broker.domain.frames import MASKED, frame_size, text_frame, text_header

try:
    from aiohttp._websocket.helpers import websocket_mask
except ImportError:  # pragma: no cover - another aiohttp

    def websocket_mask(mask: bytes, data: bytearray) -> None:
        """What aiohttp does in C, by one large number."""
        size = len(data)
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        data[:] = (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")


LARGE = 64 * 1024
"""A frame that is larger goes to aiohttp, which has a place to gather it."""

WAITING = 256 * 1024
"""Bytes that may wait here before the transport is not read any more."""

LAWFUL_CONTROL = frozenset({0x89, 0x8A})
"""The first bytes of pings and pongs; any other control frame is a close, or nothing that the protocol knows."""

Take = Callable[[bytes], None]


class Tap(asyncio.Protocol):
    """Takes the text messages of one socket. `masked`: the peer is a client, whose frames are masked.

    Before `begin` is called, everything goes to aiohttp. `largest` is the size of the largest frame that is taken.
    """

    __slots__ = (
        "_ended",
        "_fragments",
        "_full",
        "_going",
        "_inner",
        "_largest",
        "_left",
        "_masked",
        "_ready",
        "_rest",
        "_take",
        "_under_way",
        "_waiting",
        "on_behind",
        "transport",
    )

    def __init__(
        self, transport: asyncio.Transport, inner: asyncio.Protocol, *, masked: bool, largest: int = LARGE
    ) -> None:
        self.transport = transport
        self.on_behind: Callable[[bool], None] | None = None
        self._inner = inner
        self._masked = MASKED if masked else 0
        self._largest = min(largest, LARGE)
        self._take: Take | None = None
        self._ready: Callable[[], bool] = _always
        self._rest: Callable[[], None] = _nothing
        self._waiting = b""
        self._left = 0
        self._fragments = False
        self._under_way = 0
        self._going = False
        self._full = False
        self._ended = False

    def begin(
        self, take: Take, ready: Callable[[], bool] | None = None, rest: Callable[[], None] | None = None
    ) -> None:
        """Messages go to `take` from now on, as long as `ready` says so; who has said no calls `go` later.

        `rest` is called when all that could be dealt with at once has been.
        """
        if not self._ended:
            self._take = take
        if ready is not None:
            self._ready = ready
        if rest is not None:
            self._rest = rest

    def keep_alive(self) -> None:
        """Tell aiohttp's heartbeat that the peer lives: it does not see what is taken here, nor what is not read."""
        self._inner.data_received(b"")

    # --- what the transport brings ---

    def data_received(self, data: bytes) -> None:
        """Take what may be taken; hand the rest to aiohttp, in order."""
        self._waiting = self._waiting + data if self._waiting else data
        self.go()

    def go(self) -> None:
        """Deal with what is here as far as it may be dealt with now."""
        if self._going or not self._waiting:
            return
        self._going = True
        data, at = self._waiting, 0
        try:
            while at < len(data):
                reached = self._advance(data, at)
                if reached == at:
                    break
                at = reached
        except BaseException:
            at += frame_size(data, at) or 0  # a fault of ours; what brought it shall not be dealt with twice
            raise
        finally:
            self._going = False
            self._waiting = data[at:] if at else data
            self._rest()
        full = len(self._waiting) > WAITING
        if full or self._full:
            self._mind(full)

    def _mind(self, full: bool) -> None:
        self._full = full
        if full:
            # every time: aiohttp has reasons of its own to go on reading, and does not know of this one
            self.transport.pause_reading()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _advance(self, data: bytes, at: int) -> int:
        """Deal with one frame, or a run of them, at `at`; the answer is where the next one begins, or `at` itself."""
        if self._left:
            # the rest of a frame goes where its beginning went, and at once: it is what is being waited for
            end = min(at + self._left, len(data))
            self._left -= end - at
            self._inner.data_received(data[at:end])
            return end
        if self._take is None:
            return self._hand_over(data, at)
        if self._under_way or not self._ready():
            return at
        if self._fragments:
            return self._hand_over(data, at)
        start, end = text_frame(data, at, self._masked, self._largest)
        if start > 0:
            return self._message(data, at, start, end)
        return at if start else self._hand_over(data, at)

    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        """One whole text frame from `at` to `end`, its payload from `start` on."""
        assert self._take is not None
        self._take(unmasked(data, start, end) if self._masked else data[start:end])
        return end

    def _hand_over(self, data: bytes, at: int) -> int:
        """Hand one frame, or what is here of it, to aiohttp; nothing while its header is not whole."""
        size = frame_size(data, at)
        if size is None:
            return at
        if data[at] & 0x0F < 8:
            ends = data[at] & 0x80
            self._fragments = not ends
            self._under_way += ends >> 7
        elif data[at] not in LAWFUL_CONTROL or data[at + 1] & 0x7F > 125:
            self._finish()
        end = at + size
        if end > len(data):
            self._left, end = end - len(data), len(data)
        self._inner.data_received(data[at:end])
        return end

    def taken(self) -> None:
        """A message that aiohttp brought has been dealt with."""
        self._under_way -= 1
        self.go()

    def _finish(self) -> None:
        """The socket ends here, by a close or by a breach of the protocol: nothing behind it is taken."""
        self._ended, self._take = True, None

    def _flush(self) -> None:
        """Nothing comes any more: what waits goes the ordinary way."""
        data, self._waiting = self._waiting, b""
        self._finish()
        if data:
            self._inner.data_received(data)

    # --- everything else is aiohttp's ---

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; what it brought before is still dealt with."""
        self._flush()
        if self.on_behind is not None:
            self.on_behind(True)  # it will read nothing any more
        self._inner.connection_lost(exc)
        self._let_go()

    def _let_go(self) -> None:
        """What is gone shall not go round in circles: only a collection would find it, and that stops everybody."""
        self.on_behind = None
        self._ready, self._rest = _always, _nothing
        if getattr(self._inner, "_data_received_cb", None) is not None:
            self._inner._data_received_cb = None  # type: ignore[attr-defined]

    def eof_received(self) -> bool | None:
        """The peer sends no more."""
        self._flush()
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The peer is behind with reading."""
        self._inner.pause_writing()
        if self.on_behind is not None:
            self.on_behind(True)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._inner.resume_writing()
        if self.on_behind is not None:
            self.on_behind(False)

    def remove(self) -> None:
        """Give the transport back to aiohttp; only before anything has come."""
        self.transport.set_protocol(self._inner)


def _always() -> bool:
    return True


def _nothing() -> None:
    pass


def unmasked(data: bytes, start: int, end: int) -> bytes:
    """The payload that reaches from `start` to `end`, with the four bytes of its mask before it."""
    body = bytearray(data[start:end])
    websocket_mask(data[start - 4 : start], body)
    return bytes(body)


def write_masked(transport: asyncio.WriteTransport, payload: bytes) -> None:
    """Write a text frame as a client sends it, under a mask of chance (RFC 6455 5.3).

    The mask keeps a payload from looking like something else to whoever is in between; it is no secret.
    """
    mask, body = random.randbytes(4), bytearray(payload)
    websocket_mask(mask, body)
    header = text_header(len(payload), MASKED) + mask
    if len(payload) <= LARGE:
        transport.write(header + body)
    else:
        # a large one is not copied once more
        transport.write(header)
        transport.write(body)


def tappable(transport: asyncio.BaseTransport | None, inner: object, buffer: str) -> bool:
    """Whether a transport can be tapped: nothing has come behind the handshake, where aiohttp would keep it (`buffer`).

    Where something has, or where this is another aiohttp, where frames begin would be a guess.
    """
    return isinstance(inner, asyncio.Protocol) and transport is not None and getattr(inner, buffer, None) == b""
