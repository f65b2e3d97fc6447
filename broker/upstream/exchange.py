"""A link over HTTP: each turn is a request of its own, and the vendor remembers nothing between two of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import aiohttp

from broker.domain import sse, warmup, wire
from broker.domain.classify import classify_answer
from broker.domain.credential import Credential
from broker.domain.endpoints import DONE, Endpoint
from broker.domain.failure import NOT_OFFERED, Failure, FailureKind
from broker.domain.limits import Limits
from broker.domain.wire import EventKind
from broker.upstream.bodies import TooLarge, bounded
from broker.upstream.link import NOBODY, Host, Listener

REFUSAL_BYTES = 64 * 1024

LINGER = 2.0
"""Seconds in which an answer whose end was told may still end its stream, so that its connection can be used again."""

Ask = Callable[[Credential, str, bytes, Mapping[str, str]], Awaitable[aiohttp.ClientResponse]]
"""Sends a body to a path of a credential's endpoint; raises what aiohttp raises, or `Unsent`."""


class Unsent(Exception):
    """The request never left; carries the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind.value)
        self.failure = failure


class Exchanges:
    """A link like any other to the turns on it: each `send` is a request, answered by events, or at once and whole.

    `frames`: what is sent are frames of a WebSocket's client, to be put into HTTP's words.
    """

    __slots__ = (
        "_ask",
        "_clock",
        "_headers",
        "_host",
        "_largest",
        "_listeners",
        "_moved",
        "_on_end",
        "_opened",
        "_room",
        "_running",
        "commented",
        "credential",
        "ended",
        "endpoint",
        "expires",
        "frames",
        "held",
        "limits",
        "retired",
    )

    steers = False
    lanes = True
    model = ""
    last_lane: str | None = None
    blank = True

    def __init__(
        self,
        credential: Credential,
        endpoint: Endpoint,
        ask: Ask,
        headers: Mapping[str, str],
        host: Host,
        *,
        ended: Callable[[], None],
        clock: Callable[[], float],
        largest: int,
        frames: bool,
    ) -> None:
        self.credential = credential
        self.endpoint = endpoint
        self.frames = frames
        self.retired = self.held = False
        self.ended: dict[str | None, str] = {}
        self.expires = float("inf")
        self.limits: Limits | None = None
        self._ask = ask
        self._headers = headers
        self._host = host
        self._on_end = ended
        self._clock = clock
        self._largest = largest
        self._listeners: dict[str | None, Listener] = {}
        self._running: dict[str | None, _Exchange] = {}
        self._room: asyncio.Event | None = None
        self.commented = False
        self._opened: Listener | None = None
        self._moved = False

    # --- what the vendor remembers: nothing ---

    def holds(self, response_id: str) -> bool:
        """Nothing is held between two requests."""
        return False

    def mint(self, response_id: str, lane: str | None) -> None:
        """Nothing is held between two requests."""

    def forget(self, response_id: str, lane: str | None) -> None:
        """Nothing is held between two requests."""

    def stores(self, lane: str | None) -> bool:
        """Whether the vendor has seen the turn of this lane; a warm-up is answered here."""
        running = self._running.get(lane)
        return running is None or not running.warmed

    def lane_of(self, lane: str | None) -> str | None:
        """The lane as it is known here."""
        return lane

    # --- its turns ---

    @property
    def busy(self) -> bool:
        """Whether a turn is in flight on it."""
        return bool(self._listeners)

    @property
    def usable(self) -> bool:
        """Whether another turn may start on it."""
        return not self.retired

    @property
    def clogged(self) -> bool:
        """Whether the vendor does not read what it was sent."""
        return False

    def attach(self, lane: str | None, listener: Listener) -> None:
        """Events of this lane go to `listener` from now on."""
        self.shut()
        self._listeners[lane] = listener

    def listener(self, lane: str | None) -> Listener | None:
        """Who takes the events of a lane."""
        return self._listeners.get(lane)

    def detach(self, lane: str | None, listener: Listener) -> None:
        """This listener's turn is over: a request that nobody waits for any more is given up."""
        if self._listeners.get(lane) is listener:
            self.shut()
            del self._listeners[lane]
            if (running := self._running.pop(lane, None)) is not None:
                running.leave()
            self.proceed()

    def send(self, frame: bytes, lane: str | None) -> None:
        """Ask for a response; whatever goes wrong is told to the listener by `lost`."""
        self.ended.pop(lane, None)  # what is told twice comes in one answer, and ends with it
        self._running[lane] = _Exchange(self, frame, lane, self._listeners[lane])

    def keep_alive(self) -> None:
        """Nothing is read here; TCP itself notices who is gone."""

    async def close(self) -> None:
        """Give up what still runs."""
        self.retired = True
        running = [exchange.task for exchange in self._running.values()]
        self._running.clear()
        self._host = NOBODY
        self._on_end()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=3.0)

    # --- what comes back ---

    def open(self, listener: Listener) -> None:
        """Plain output may pass to the client without being looked at one by one, if this turn is alone here.

        Where lanes have names, each event must be given its own.
        """
        if self.endpoint.conversing and len(self._listeners) == 1 and self._listeners.get(None) is listener:
            self._opened = listener

    def shut(self) -> None:
        """Every event is looked at."""
        self._opened = None

    def hold(self) -> None:
        """The client is behind: that is asked before each run."""

    def resume(self) -> None:
        """The client has caught up."""
        self.proceed()

    def passed(self) -> bool:
        """Whether output has passed since this was last asked."""
        moved, self._moved = self._moved, False
        return moved

    def proceed(self) -> None:
        """There may be room again."""
        if self._room is not None:
            self._room.set()

    def free(self, listener: Listener) -> bool:
        """Whether the client, and the turn, can take more."""
        return not (listener.full or self.held or self._host.behind)

    async def room(self, listener: Listener) -> None:
        """Wait until they can."""
        while not self.free(listener):
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()


class _Exchange:
    """One request and its answer. `over` says that the turn's end was told; `warmed`, that no vendor was asked."""

    def __init__(self, link: Exchanges, frame: bytes, lane: str | None, listener: Listener) -> None:
        self.over = self.warmed = False
        self._link = link
        self._lane = lane
        self._listener: Listener | None = listener
        body, generates = wire.as_body(frame) if link.frames else (frame, True)
        self.warmed = not generates
        course = self._warm(frame) if self.warmed else self._run(body)
        self.task = asyncio.create_task(course, name=f"exchange:{link.credential.name}")

    def leave(self) -> None:
        """Nobody listens any more. An answer that has told its end may come to the end of its stream, for a moment."""
        self._listener = None
        if not self.over:
            self.task.cancel()
        elif not self.task.done():
            asyncio.get_running_loop().call_later(LINGER, self.task.cancel)

    async def _warm(self, frame: bytes) -> None:
        # HTTP has no warm-up: what it is for, an id that the next turn can continue, the transcript gives as well
        created, completed = warmup.answer(wire.fields(frame), f"resp_{secrets.token_hex(24)}", time.time())
        self._deal(self._on_lane(created), EventKind.ANNOUNCEMENT)
        self._deal(self._on_lane(completed), EventKind.TERMINAL)

    async def _run(self, body: bytes) -> None:
        link = self._link
        failure = Failure(FailureKind.TRANSPORT_LOST, code="closed_by_us", orderly=True)
        try:
            answer = await link._ask(link.credential, link.endpoint.path, body, link._headers)
            async with answer:
                failure = await self._read(answer)
        except Unsent as unsent:
            failure = unsent.failure
        except (sse.TooLarge, TooLarge):
            failure = Failure(FailureKind.TRANSPORT_LOST, code="event_too_large")
        except wire.Garbage:
            failure = _GARBAGE
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = Failure(FailureKind.TRANSPORT_LOST, code=type(error).__name__)
            # the body keeps what it has raised, and that the frames in which it was: a circle that keeps all of this
            error.__traceback__ = None
        except asyncio.CancelledError:
            pass  # given up by `leave` or `close`; a task that ends cancelled keeps its frames, and they this exchange
        finally:
            self._end(failure)

    def _end(self, failure: Failure) -> None:
        listener, self._listener = self._listener, None
        if listener is not None and not self.over:
            self.over = True
            listener.lost(failure)

    async def _read(self, answer: aiohttp.ClientResponse) -> Failure:
        """Deal with an answer; what went wrong if its end was not told."""
        link = self._link
        if self._listener is not None:
            self._listener.answered(answer.headers)
        if answer.status >= 300:
            body = await bounded(answer, REFUSAL_BYTES)
            failure = classify_answer(answer.status, answer.headers, body, now=link._clock())
            beside = failure.code == NOT_OFFERED and not link.endpoint.conversing
            return replace(failure, orderly=True) if beside else failure
        if answer.content_type == "text/event-stream":
            return await self._stream(answer)
        whole, kind = await bounded(answer, link._largest), EventKind.TERMINAL
        if link.endpoint.conversing:
            # a response that runs in the background is answered at once, and whole
            whole, kind = wire.as_ending(whole)
        self._deal(whole, kind)
        return _GARBAGE

    async def _stream(self, answer: aiohttp.ClientResponse) -> Failure:
        reader = sse.Reader(self._link._largest)
        while piece := await _more(answer.content):
            self._link.commented = piece.startswith(b":")
            await self._take(reader, piece, deque())
        await self._take(reader, b"", deque(reader.finish()))
        return Failure(FailureKind.TRANSPORT_LOST, code="stream_ended", orderly=False)

    async def _take(self, reader: sse.Reader, piece: bytes, events: deque[bytes]) -> None:
        """Deal with events, and then with a piece, in one write, as far as their client and their turn can take it."""
        link, at, in_lines = self._link, 0, b"\r" not in piece
        while (listener := self._listener) is not None and (events or at < len(piece)):
            if not link.free(listener):
                await link.room(listener)
            host = link._host
            host.gather()
            try:
                while (events or at < len(piece)) and link.free(listener):
                    if events:
                        self._understand(events.popleft())
                    elif not in_lines:
                        events.extend(reader.feed(piece))
                        at = len(piece)
                    elif (end := self._pass(reader, piece, at)) > at:
                        at = end
                    else:
                        # one by one, as each may open the way for a run, or shut it
                        end = piece.find(b"\n\n", at) + 2
                        end = end if end > 1 else len(piece)
                        events.extend(reader.feed(piece[at:end]))
                        at = end
            finally:
                host.flush()

    def _pass(self, reader: sse.Reader, piece: bytes, at: int) -> int:
        """Pass a run of plain output on in one go, if the turn shows; the answer is where it ends."""
        link, listener = self._link, self._listener
        if listener is None or link._opened is not listener or self.over or not reader.between:
            return at
        items: list[tuple[int, int, int]] = []
        end = sse.plain_run(piece, at, items)
        for begins, start, ends in items:
            if not listener.note_item(piece[start:ends]):
                end = begins
                break
        if end > at:
            link._moved = True
            run = piece[at:end]
            link._host.write(sse.as_frames(run) if link.frames else run)
        return end

    def _understand(self, data: bytes) -> None:
        if not self._link.endpoint.conversing:
            self._understand_chunk(data)
        elif data != b"[DONE]":  # some say it behind their end
            self._deal(self._on_lane(data), wire.event_kind(data))

    def _understand_chunk(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._deal(DONE, EventKind.TERMINAL)
        elif wire.begins_as_error(data):
            self._deal(data, EventKind.FAILURE)
        else:
            self._deal(data, EventKind.OUTPUT)

    def _on_lane(self, data: bytes) -> bytes:
        return data if self._lane is None else wire.with_lane(data, self._lane)

    def _deal(self, data: bytes, kind: EventKind) -> None:
        listener = self._listener
        if listener is None or self.over:
            return
        self.over = kind in (EventKind.TERMINAL, EventKind.FAILURE)
        listener.receive(data, kind)


async def _more(content: aiohttp.StreamReader) -> bytes:
    """All of a body that is here and was not read; nothing at its end.

    aiohttp's own way (`readany`) tells the transport to go on after each chunk of HTTP, which costs more than all else
    that is done for a chunk.
    """
    if not _KNOWN:
        return await content.readany()
    while True:
        piece, ends_chunk = await content.readchunk()
        if content.total_bytes and content._buffer:
            piece += _rest(content)
        if piece or not ends_chunk:
            return piece


_KNOWN = all(
    hasattr(aiohttp.StreamReader, name)
    for name in ("_buffer", "_buffer_offset", "_cursor", "_http_chunk_splits", "_protocol", "_size")
)
"""Whether this is an aiohttp that gathers bodies as `_rest` expects it."""


def _rest(content: aiohttp.StreamReader) -> bytes:
    """What `readchunk` has left there, taken as that takes it."""
    offset, content._buffer_offset = content._buffer_offset, 0
    rest = b"".join(content._buffer)
    content._buffer.clear()
    if content._http_chunk_splits:
        content._http_chunk_splits.clear()
    content._cursor += content._size
    content._size = 0
    content._protocol.resume_reading()
    return rest[offset:]


_GARBAGE = Failure(FailureKind.TRANSPORT_LOST, code="garbage")
