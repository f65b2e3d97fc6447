"""The dialer: opens upstream sockets, and says why one was refused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import aiohttp
from aiohttp import ClientResponse

from broker import __version__
from broker.domain.classify import classify_handshake
from broker.domain.credential import Credential
from broker.domain.failure import Failure, FailureKind
from broker.domain.limits import from_headers
from broker.upstream.link import Host, Link
from broker.upstream.passage import Passage, install

log = logging.getLogger(__name__)

REFUSAL_BYTES = 64 * 1024


class Refused(Exception):
    """The upgrade was refused or could not be made."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind.value)
        self.failure = failure


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
        transport = connection.transport
        if transport is not None and (settled := _upgraded.get()) is not None:
            settled.transport = transport
            settled.headers = self.headers
            settled.passage = install(connection) if settled.tapped else None
        return self


@dataclass(slots=True)
class _Upgraded:
    """What `_Upgrade.start` has found in the connection, for the `dial` that waits for it in the same task."""

    tapped: bool
    transport: asyncio.Transport | None = None
    headers: Mapping[str, str] | None = None
    passage: Passage | None = None


_upgraded: ContextVar[_Upgraded | None] = ContextVar("upgraded", default=None)


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

    `open_links` are open now. With `tap` False links have no passage and cost more per frame; `ordinary` counts those
    that have none although they should.
    """

    def __init__(self, settings: DialSettings, *, clock: Callable[[], float], tap: bool = True) -> None:
        self._settings = settings
        self._clock = clock
        self._tap = tap
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

    async def dial(self, credential: Credential, headers: Mapping[str, str], host: Host) -> Link:
        """A fresh socket of `credential`. Raises `Refused` with the failure, classified; bounded in time."""
        assert self._client is not None, "the dialer was not started"
        upgraded = _Upgraded(self._tap)
        _upgraded.set(upgraded)
        failure: Failure | None = None
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
        except (_NotUpgraded, _NoAnswer, aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = self._failure_of(error)
            # what aiohttp has raised holds its frames, and they hold it: such a circle keeps the whole session
            error.__traceback__ = None
        if failure is not None:
            raise Refused(failure)
        transport, passage = upgraded.transport, upgraded.passage
        limits = from_headers(upgraded.headers or {}, self._clock())
        upgraded.transport = upgraded.passage = upgraded.headers = (
            None  # the transport carries this along in its context
        )
        if transport is None:
            raise Refused(Failure(FailureKind.TRANSPORT_LOST, code="closed_at_once", independent=True))
        if passage is None and self._tap:
            if not self.ordinary:
                log.warning("frames take the ordinary path", extra={"credential": credential.name})
            self.ordinary += 1
        self.open_links += 1
        return Link(credential, socket, transport, host, passage, self._ended, limits)

    def _ended(self) -> None:
        self.open_links -= 1

    def _failure_of(self, error: Exception) -> Failure:
        if isinstance(error, _NotUpgraded):
            return classify_handshake(error.status, error.headers, error.body, now=self._clock())
        code = str(error) if isinstance(error, _NoAnswer) else type(error).__name__
        return Failure(FailureKind.TRANSPORT_LOST, code=code, independent=True)


def _identity(credential: Credential) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {credential.secret.reveal()}",
        "User-Agent": f"session-broker/{__version__}",
    }
