"""A link: one upstream socket of one credential, and what the vendor remembers on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from aiohttp import ClientResponse, WSMsgType

from broker import __version__
from broker.domain import wire
from broker.domain.classify import classify_close, classify_handshake
from broker.domain.credential import Credential
from broker.domain.failure import Failure, FailureKind
from broker.upstream.passage import Gate, Passage, Sink, install

log = logging.getLogger(__name__)

REFUSAL_BYTES = 64 * 1024
REMEMBERED = 256
SEND_TIMEOUT = 30.0


class Listener(Protocol):
    """Who takes what comes back on a lane."""

    async def receive(self, raw: bytes, kind: wire.EventKind) -> None:
        """One event of the lane's turn. Waiting here holds up this socket and nobody else's."""

    def gate(self) -> Sink | Gate:
        """Where plain output of this turn may pass without a look at it, or what may happen instead."""

    def passed(self) -> None:
        """Output has passed."""

    def note_item(self, raw: bytes) -> None:
        """An item that has passed (raises `wire.Garbage`)."""

    def take_over(self, frames: list[tuple[bytes, wire.EventKind]]) -> None:
        """Events of this lane that came before it was this listener's."""

    def lost(self, failure: Failure) -> None:
        """The socket is gone, or is no use any more."""

    def expired(self) -> None:
        """The vendor has announced the end of the socket."""


class Refused(Exception):
    """The upgrade was refused or could not be made."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind.value)
        self.failure = failure


class LinkClosed(Exception):
    """The socket was already gone; nothing was sent."""


class LinkLost(Exception):
    """The socket went while something was being sent: it may have arrived."""


class _Upgrade(ClientResponse):
    """Keeps the body of a refused upgrade: the vendor says there why, and when it will be over.

    It also stops redirects, which would take a credential elsewhere, and repetitions that nobody has asked for.
    """

    async def start(self, connection: aiohttp.connector.Connection) -> ClientResponse:
        try:
            await super().start(connection)
        except (aiohttp.ClientError, OSError) as error:
            # aiohttp would knock a second time by itself; whether to is the turn's decision
            raise _NoAnswer(type(error).__name__) from None
        if self.status != 101:
            body = b""
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async with asyncio.timeout(2.0):
                    body = await self.content.read(REFUSAL_BYTES)
            raise _NotUpgraded(self.status, dict(self.headers), body)
        _passage.set(install(connection))
        return self


_passage: ContextVar[Passage | None] = ContextVar("passage", default=None)
"""What `_Upgrade.start` has put into the connection, for the `dial` that waits for it in the same task."""


class _NoAnswer(Exception):
    pass


class _NotUpgraded(Exception):
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.body = body


@dataclass(frozen=True, slots=True)
class DialSettings:
    """Seconds to connect, bytes of one upstream message, seconds between pings."""

    connect: float = 5.0
    max_frame: int = 64 * 1024 * 1024
    heartbeat: float = 20.0


class Dialer:
    """Opens links. One for a process; it holds the connector and closes it.

    `open_links` are open now, `ordinary` were opened without a passage and cost more per frame.
    """

    def __init__(self, settings: DialSettings, *, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._client: aiohttp.ClientSession | None = None
        self.open_links = 0
        self.ordinary = 0

    async def start(self) -> None:
        """Must be called on the loop that uses it."""
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            response_class=_Upgrade,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        """Close the connector; links are closed by those who opened them."""
        if self._client is not None:
            await self._client.close()

    async def dial(
        self, credential: Credential, headers: Mapping[str, str], aside: Callable[[bytes, str | None], object]
    ) -> Link:
        """A fresh socket of `credential`. Raises `Refused` with the failure, classified; bounded in time."""
        assert self._client is not None, "the dialer was not started"
        try:
            async with asyncio.timeout(self._settings.connect):
                socket = await self._client.ws_connect(
                    credential.base_url.rstrip("/").replace("http", "ws", 1) + "/responses",
                    headers={**headers, **credential.headers, **_identity(credential)},
                    max_msg_size=self._settings.max_frame,
                    heartbeat=self._settings.heartbeat,
                    compress=0,
                    decode_text=False,
                    autoping=False,
                )
        except _NotUpgraded as refusal:
            now = self._clock()
            raise Refused(classify_handshake(refusal.status, refusal.headers, refusal.body, now=now)) from None
        except _NoAnswer as lost:
            raise Refused(Failure(FailureKind.TRANSPORT_LOST, code=str(lost), independent=True)) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Refused(Failure(FailureKind.TRANSPORT_LOST, code=type(error).__name__, independent=True)) from None
        passage = _passage.get()
        if passage is None and not self.ordinary:
            log.warning("frames take the ordinary path", extra={"credential": credential.name})
        self.ordinary += passage is None
        return Link(credential, socket, self, aside, passage)


def _identity(credential: Credential) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {credential.secret.reveal()}",
        "User-Agent": f"session-broker/{__version__}",
    }


class Link:
    """One upstream socket.

    It knows which responses were minted on it and are still there (`holds`), and hands every event to the listener
    of its lane. `retired` means that no further turn may start on it; it closes when the last one has left.
    """

    def __init__(
        self,
        credential: Credential,
        socket: aiohttp.ClientWebSocketResponse[bool],
        dialer: Dialer,
        aside: Callable[[bytes, str | None], object],
        passage: Passage | None,
    ) -> None:
        self.credential = credential
        self.opened = asyncio.get_running_loop().time()
        self.retired = False
        self._socket = socket
        self._dialer = dialer
        self._aside = aside
        self._minted: OrderedDict[str, str | None] = OrderedDict()
        self._listeners: dict[str | None, Listener] = {}
        self._passing: Listener | None = None
        self._named = False
        self.ended: dict[str | None, str] = {}
        self._passage = passage
        if passage is not None:
            passage.opening = self
        dialer.open_links += 1
        self._reader = asyncio.create_task(self._read(), name=f"link:{credential.name}")

    # --- what the vendor remembers ---

    def holds(self, response_id: str) -> bool:
        """Whether this very socket minted the response, and nothing has made the vendor forget it since."""
        return response_id in self._minted

    def mint(self, response_id: str, lane: str | None) -> None:
        """A response ended well on this socket."""
        self._minted[response_id] = lane
        self._minted.move_to_end(response_id)
        if len(self._minted) > REMEMBERED:
            self._minted.popitem(last=False)

    def forget(self, response_id: str, lane: str | None) -> None:
        """A continuation of it failed: on its own lane the vendor evicts it, a fork keeps it (protocol.md 4.2)."""
        if response_id in self._minted and self._minted[response_id] == lane:
            del self._minted[response_id]

    # --- its turns ---

    @property
    def busy(self) -> bool:
        """Whether a turn is in flight on it."""
        return bool(self._listeners)

    @property
    def usable(self) -> bool:
        """Whether another turn may start on it."""
        return not self.retired and not self._socket.closed and not self._reader.done()

    def attach(self, lane: str | None, listener: Listener) -> None:
        """Events of this lane go to `listener` from now on."""
        self._named = self._named or lane is not None
        self._listeners[lane] = listener

    def listener(self, lane: str | None) -> Listener | None:
        """Who takes the events of a lane."""
        return self._listeners.get(lane)

    def detach(self, lane: str | None, listener: Listener) -> None:
        """This listener's turn is over; a retired link closes with its last one."""
        if self._listeners.get(lane) is listener:
            del self._listeners[lane]
            self.proceed()

    async def send(self, frame: bytes) -> None:
        """Send one frame up. Raises `LinkClosed` if it was not sent, `LinkLost` if that is unknown."""
        gone = self._passage is not None and self._passage.closing
        if gone or self._socket.closed or self._reader.done():
            raise LinkClosed
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._socket.send_frame(frame, WSMsgType.TEXT)
        except (aiohttp.ClientError, OSError, TimeoutError, RuntimeError):
            self.retired = True
            raise LinkLost from None

    def keep_alive(self) -> None:
        """The client is behind, so nothing is read here; the vendor is not to blame for its silence."""
        if self._passage is not None and not self._passage.closing:
            self._passage.keep_alive()

    async def close(self) -> None:
        """Close the socket and wait for its reader, bounded."""
        self.retired = True
        self._reader.cancel()
        await asyncio.wait([self._reader], timeout=3.0)

    # --- what comes back ---

    def gate(self) -> Sink | Gate:
        """Whether plain output may pass: only while one turn alone is on this link, and says so.

        Where lanes have names, every frame must be asked for its own: one that was abandoned may still speak.
        """
        if self._named or len(self._listeners) != 1:
            return Gate.ALL
        (self._passing,) = self._listeners.values()
        return self._passing.gate()

    def passed(self) -> None:
        """Output of the passing turn has gone to its client."""
        if self._passing is not None:
            self._passing.passed()

    def proceed(self) -> None:
        """The turn on this link has dealt with what it was given."""
        if self._passage is not None:
            self._passage.go()

    def note_item(self, raw: bytes) -> bool:
        """An item of the passing turn is done; False if it cannot be read."""
        try:
            if self._passing is not None:
                self._passing.note_item(raw)
        except wire.Garbage:
            return False
        return True

    async def _read(self) -> None:
        failure = Failure(FailureKind.TRANSPORT_LOST, code="closed_by_us", orderly=True)
        try:
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    await self.dispatch(message.data)
                    if self._passage is not None:
                        self._passage.taken()
                elif message.type is WSMsgType.PING:
                    # one that can no longer be answered must not cost what came behind it
                    with contextlib.suppress(aiohttp.ClientError, OSError):
                        await self._socket.pong(message.data)
                elif message.type is not WSMsgType.PONG:
                    raise wire.Garbage("a binary frame")
            failure = classify_close(self._socket.close_code)
        except wire.Garbage:
            failure = Failure(FailureKind.TRANSPORT_LOST, code="garbage")
        except (aiohttp.ClientError, OSError):
            failure = classify_close(1006)
        finally:
            self.retired = True
            self._dialer.open_links -= 1
            if len(self._listeners) > 1 and failure.kind is FailureKind.REQUEST_FAULT:
                # one of them sent what ended the socket for all, and nobody can say which
                failure = Failure(FailureKind.TRANSPORT_LOST, code=failure.code, orderly=True)
            for listener in list(self._listeners.values()):
                listener.lost(failure)
            self._listeners.clear()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._socket.close()

    async def dispatch(self, raw: bytes) -> None:
        """Hand one event to whom it belongs. An event that belongs to nobody goes aside (raises `Garbage`)."""
        kind = wire.event_kind(raw)
        lane = wire.event_lane(raw)
        owner = self._listeners.get(lane)
        if owner is None and lane is None and kind is wire.EventKind.FAILURE and len(self._listeners) == 1:
            # an error that the vendor could not attribute (protocol.md 3.8), and only one turn it can mean
            (owner,) = self._listeners.values()
        if kind is wire.EventKind.FAILURE and b"websocket_connection_limit_reached" in raw:
            # it ends the socket for all; one that carries a number or a lane ends that very response as well
            named = owner if lane is not None or b'"sequence_number"' in raw else None
            self._expire(apart_from=named)
            if named is None:
                return
        if owner is not None:
            await owner.receive(raw, kind)
        else:
            result = self._aside(raw, lane)
            if asyncio.iscoroutine(result):
                await result

    def _expire(self, apart_from: Listener | None) -> None:
        self.retired = True
        for listener in list(self._listeners.values()):
            if listener is not apart_from:
                listener.expired()
