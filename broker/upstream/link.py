"""A link: one upstream socket of one credential, and what the vendor remembers on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp
from aiohttp import WSMsgType

from broker.domain import warmup, wire
from broker.domain.classify import classify_close
from broker.domain.credential import Credential
from broker.domain.events import Failed
from broker.domain.failure import Failure, FailureKind
from broker.domain.limits import Limits
from broker.tap import Tap, write_masked
from broker.upstream.passage import NoteItem, Passage, Write

REMEMBERED = 256

CLOGGED = 1024 * 1024
"""Bytes that may wait for a vendor before nothing is sent that can be refused."""


class Listener(Protocol):
    """Who takes what comes back on a lane."""

    full: bool
    """It has as much to deal with as it may have; its socket is not read until it says `Link.proceed`."""

    def receive(self, raw: bytes, kind: wire.EventKind) -> None:
        """One event of the lane's turn."""

    def note_item(self, raw: bytes) -> bool:
        """An item that is about to pass; False if it cannot be read, so that it comes by `receive` instead."""

    def take_over(self, events: list[tuple[bytes, wire.EventKind] | Failed]) -> None:
        """Events of this lane that came before it was this listener's."""

    def answered(self, headers: Mapping[str, str]) -> None:
        """The head of the vendor's answer to this turn's own request; on a socket there is none."""

    def lost(self, failure: Failure) -> None:
        """The socket is gone, or is no use any more; or the turn's own request has failed."""

    def expired(self) -> None:
        """The vendor has announced the end of the socket."""


class Host(Protocol):
    """Whom a link serves: one client, with all its turns."""

    @property
    def behind(self) -> bool:
        """Whether the client is behind with reading, so that nothing more is read for it."""

    @property
    def direct(self) -> Write:
        """Writes whole frames to the client at once, where nothing is being gathered."""

    def write(self, data: bytes | memoryview) -> None:
        """Whole frames to the client, as the bytes they are."""

    def gather(self) -> None:
        """What is written to the client from now on leaves in one write, with `flush`."""

    def flush(self) -> None:
        """Write what was gathered, if anything was."""

    def aside(self, link: Link, raw: bytes, lane: str | None) -> None:
        """An event that belongs to no running turn."""


class _Nobody:
    """The host of a link that is gone."""

    behind = True

    def direct(self, data: bytes | memoryview) -> None:
        """Nothing is written."""

    write = direct

    def gather(self) -> None:
        """Nothing is written."""

    def flush(self) -> None:
        """Nothing is written."""

    def aside(self, link: Link, raw: bytes, lane: str | None) -> None:
        """Nobody listens."""


NOBODY: Host = _Nobody()


class LinkClosed(Exception):
    """The socket was already gone; nothing was sent."""


class Link:
    """One upstream socket.

    It knows which responses were minted on it and are still there (`holds`), and hands every event to the listener
    of its lane. `limits` is what the vendor said at the door. `retired` means that no further turn may start on it; it
    closes when the last one has left. While it is `held`, nothing is dealt with. `expires` (the loop's clock) is when
    no further turn may start by its age, `lanes` whether several turns may run on it, `model` the
    only one that it may ask for, where that is so.

    Where a vendor has no lanes, one turn runs at a time, and its lane is known here alone. With `frames` False, what is
    sent are bodies of HTTP requests, to be put into frames.
    """

    __slots__ = (
        "_as_it_is",
        "_gone",
        "_host",
        "_listeners",
        "_minted",
        "_named",
        "_on_end",
        "_only_lane",
        "_opened",
        "_passage",
        "_reader",
        "_room",
        "_socket",
        "_transport",
        "_warming",
        "credential",
        "ended",
        "expires",
        "frames",
        "held",
        "lanes",
        "limits",
        "model",
        "retired",
    )

    steers = True
    commented = False

    def __init__(
        self,
        credential: Credential,
        socket: aiohttp.ClientWebSocketResponse[bool],
        transport: asyncio.Transport,
        host: Host,
        passage: Passage | None,
        ended: Callable[[], None],
        limits: Limits | None = None,
        *,
        frames: bool = True,
    ) -> None:
        self.credential = credential
        self.limits = limits
        self.frames = frames
        self.expires = float("inf")
        self.model = ""
        manners = credential.manners
        self.lanes = manners.lanes
        self._as_it_is = frames and manners.lanes and not manners.strict and manners.warmup != "created_only"
        self._only_lane: str | None = None
        self._warming: set[str | None] = set()
        self.retired = self.held = False
        self.ended: dict[str | None, str] = {}
        self._socket = socket
        self._transport = transport
        self._on_end = ended
        self._host = host
        self._minted: dict[str, str | None] = {}
        self._listeners: dict[str | None, Listener] = {}
        self._named = False
        self._gone = False
        self._room: asyncio.Event | None = None
        self._opened: tuple[Write, Write, NoteItem] | None = None
        self._passage = passage
        if passage is not None:
            passage.begin(self.take, self.ready, host.flush)
        self._reader: asyncio.Task[None] | None = asyncio.create_task(self._read(), name=f"link:{credential.name}")

    # --- what the vendor remembers ---

    def holds(self, response_id: str) -> bool:
        """Whether this very socket minted the response, and nothing has made the vendor forget it since."""
        return response_id in self._minted

    def mint(self, response_id: str, lane: str | None) -> None:
        """A response ended well on this socket."""
        if not self.lanes:
            self._minted.clear()  # such a vendor remembers one response of a socket (protocol.md 1.1)
        self._minted.pop(response_id, None)  # the newest stands last
        self._minted[response_id] = lane
        if len(self._minted) > REMEMBERED:
            del self._minted[next(iter(self._minted))]

    def forget(self, response_id: str, lane: str | None) -> None:
        """A continuation of it failed: on its own lane the vendor evicts it, a fork keeps it (protocol.md 4.2)."""
        if response_id in self._minted and self._minted[response_id] == lane:
            del self._minted[response_id]

    def stores(self, lane: str | None) -> bool:
        """Whether the vendor has seen the turn of this lane."""
        return True

    # --- its turns ---

    @property
    def busy(self) -> bool:
        """Whether a turn is in flight on it."""
        return bool(self._listeners)

    @property
    def usable(self) -> bool:
        """Whether another turn may start on it."""
        return not (self.retired or self._gone or self._transport.is_closing())

    def attach(self, lane: str | None, listener: Listener) -> None:
        """Events of this lane go to `listener` from now on."""
        if lane is not None:
            self._named = True
        self._listeners[self.lane_of(lane)] = listener
        self._only_lane = lane
        self.shut()

    def listener(self, lane: str | None) -> Listener | None:
        """Who takes the events of a lane."""
        return self._listeners.get(self.lane_of(lane))

    @property
    def last_lane(self) -> str | None:
        """Whose turn was the last on it."""
        return self._only_lane

    @property
    def blank(self) -> bool:
        """Whether nothing is remembered on it."""
        return not self._minted

    def lane_of(self, lane: str | None) -> str | None:
        """The lane as the vendor knows it."""
        return lane if self.lanes else None

    def detach(self, lane: str | None, listener: Listener) -> None:
        """This listener's turn is over; a retired link closes with its last one."""
        lane = self.lane_of(lane)
        if self._listeners.get(lane) is listener:
            del self._listeners[lane]
            self._warming.discard(lane)
            self.shut()
            self.proceed()

    def send(self, frame: bytes, lane: str | None) -> None:
        """Send one frame up. Raises `LinkClosed` if it was not sent; one that is lost on its way is told by `lost`."""
        if self._gone or self._transport.is_closing() or self._socket.closed:
            raise LinkClosed
        write_masked(self._transport, frame if self._as_it_is else self._in_manner(frame, lane))

    def _in_manner(self, frame: bytes, lane: str | None) -> bytes:
        """The frame as this vendor takes it."""
        manners = self.credential.manners
        if not self.frames:
            frame = wire.as_frame(frame)
        elif manners.strict:
            frame = wire.without(frame, *wire.HTTP_ONLY)
        if not self.lanes and lane is not None:
            frame = wire.without(frame, "stream_id")
        if manners.warmup == "created_only" and wire.warms_up(frame):
            self._warming.add(self.lane_of(lane))
        return frame

    @property
    def clogged(self) -> bool:
        """Whether the vendor does not read what it was sent."""
        return self._transport.get_write_buffer_size() > CLOGGED

    def keep_alive(self) -> None:
        """Nothing is read here, or nothing that aiohttp would see; the vendor is not to blame for its silence."""
        if self._transport.is_closing():
            return
        protocol = self._transport.get_protocol()
        if isinstance(protocol, Tap):
            protocol.keep_alive()
        elif isinstance(protocol, asyncio.Protocol):
            protocol.data_received(b"")

    async def close(self) -> None:
        """Close the socket and wait for its reader, bounded."""
        self.retired = True
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader], timeout=3.0)

    # --- what comes back ---

    def open(self, listener: Listener) -> None:
        """Plain output may pass to the client, if that takes frames and the turn of `listener` is alone here.

        Where lanes have names, every frame must be asked for its own: one that was abandoned may still speak.
        """
        if self._passage is None or self._named or not self.frames or len(self._listeners) != 1:
            return
        host = self._host
        self._opened = (host.direct, host.write, listener.note_item)
        if not host.behind:
            self._passage.open(*self._opened)

    def shut(self) -> None:
        """Nothing passes any more without being looked at."""
        if self._opened is not None:
            self._opened = None
            self.hold()

    def hold(self) -> None:
        """The client is behind: nothing passes until `resume`."""
        if self._passage is not None:
            self._passage.shut()

    def resume(self) -> None:
        """The client has caught up."""
        if self._passage is not None and self._opened is not None:
            self._passage.open(*self._opened)
        self.proceed()

    def passed(self) -> bool:
        """Whether output has passed since this was last asked."""
        passage = self._passage
        if passage is None or not passage.passed:
            return False
        passage.passed = False
        return True

    def ready(self) -> bool:
        """Whether another message can be dealt with; who has brought it to say no calls `proceed` later."""
        for listener in self._listeners.values():
            if listener.full:
                return False
        return not (self.held or self._host.behind)

    def proceed(self) -> None:
        """There may be room again."""
        if self._passage is not None:
            self._passage.go()
        if self._room is not None:
            self._room.set()

    async def _read(self) -> None:
        failure = Failure(FailureKind.TRANSPORT_LOST, code="closed_by_us", orderly=True)
        try:
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    await self._take_ordinary(message.data)
                elif message.type is WSMsgType.PING:
                    # one that can no longer be answered must not cost what came behind it
                    with contextlib.suppress(aiohttp.ClientError, OSError):
                        await self._socket.pong(message.data)
                elif message.type is not WSMsgType.PONG:
                    raise wire.Garbage("a binary frame")
            failure = classify_close(self._socket.close_code)
        except wire.Garbage:
            failure = _GARBAGE
        except (aiohttp.ClientError, OSError):
            failure = classify_close(1006)
        finally:
            self._end(failure)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._socket.close()
            self._transport.abort()  # a peer that reads nothing would keep it, with all that it was sent

    async def _take_ordinary(self, raw: bytes) -> None:
        while not self.ready():
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        self._deal(raw)
        if self._passage is not None:
            self._passage.taken()

    def _end(self, failure: Failure) -> None:
        """No event comes from here any more; whoever still waits for one is told why."""
        if self._gone:
            return
        self._gone = self.retired = True
        self.shut()
        self._host = NOBODY  # what is gone shall not go round in circles: a collection stops everybody
        self._on_end()
        if len(self._listeners) > 1 and failure.kind is FailureKind.REQUEST_FAULT:
            # one of them sent what ended the socket for all, and nobody can say which
            failure = Failure(FailureKind.TRANSPORT_LOST, code=failure.code, orderly=True)
        listeners = list(self._listeners.values())
        self._listeners.clear()
        for listener in listeners:
            listener.lost(failure)

    def take(self, raw: bytes) -> None:
        """One event from the passage."""
        self._host.gather()
        self._deal(raw)

    def _deal(self, raw: bytes) -> None:
        """Hand one event to whom it belongs. An event that belongs to nobody goes aside; garbage ends the link."""
        if self._gone:
            return
        try:
            kind = wire.event_kind(raw)
            # a vendor names a lane only where the client has named one, so most sockets never look
            lane = wire.event_lane(raw) if self._named and self.lanes else None
            owner = self._listeners.get(lane)
            if self._only_lane is not None and not self.lanes:
                raw = wire.with_lane(raw, self._only_lane)
            if kind is wire.EventKind.FAILURE:
                self._deal_failure(raw, lane, owner)
            elif owner is not None:
                owner.receive(raw, kind)
                if self._warming:
                    self._end_warmup(raw, lane, owner)
            else:
                self._host.aside(self, raw, lane)
        except wire.Garbage:
            self._end(_GARBAGE)
            if self._reader is not None:
                self._reader.cancel()

    def _end_warmup(self, raw: bytes, lane: str | None, owner: Listener) -> None:
        """A warm-up of which this vendor tells only the beginning has ended with that."""
        if lane in self._warming and wire.event_type(raw) == "response.created":
            self._warming.discard(lane)
            owner.receive(warmup.completed_from(raw), wire.EventKind.TERMINAL)

    def _deal_failure(self, raw: bytes, lane: str | None, owner: Listener | None) -> None:
        if owner is None and lane is None and len(self._listeners) == 1:
            # an error that the vendor could not attribute (protocol.md 3.8), and only one turn it can mean
            (owner,) = self._listeners.values()
        if b"websocket_connection_limit_reached" in raw:
            # it ends the socket for all; one that carries a number or a lane ends that very response as well
            named = owner if lane is not None or b'"sequence_number"' in raw else None
            self._expire(apart_from=named)
            if named is None:
                return
        if owner is not None:
            owner.receive(raw, wire.EventKind.FAILURE)
        else:
            self._host.aside(self, raw, lane)

    def _expire(self, apart_from: Listener | None) -> None:
        self.retired = True
        for listener in list(self._listeners.values()):
            if listener is not apart_from:
                listener.expired()


_GARBAGE = Failure(FailureKind.TRANSPORT_LOST, code="garbage")
