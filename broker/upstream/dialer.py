"""The dialer: opens upstream sockets, and says why one was refused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.parse import unquote

import aiohttp
from aiohttp import ClientResponse
from yarl import URL

from broker.domain.classify import classify_handshake
from broker.domain.credential import Credential
from broker.domain.endpoints import RESPONSES, Endpoint
from broker.domain.failure import Failure, FailureKind
from broker.domain.limits import from_headers
from broker.upstream.exchange import Exchanges, Unsent
from broker.upstream.identity import Identity, NoIdentity
from broker.upstream.link import Host, Link
from broker.upstream.passage import Passage, install

log = logging.getLogger(__name__)

REFUSAL_BYTES = 64 * 1024

NO_WEBSOCKET = frozenset({404, 405, 426, 501})
"""Answers to an upgrade that say that there is no WebSocket here (protocol.md 6.3)."""

LOOK_AGAIN = 600.0
"""Seconds after which an endpoint that had no WebSocket is asked for one again."""

KEPT_OPEN = 15.0
"""Seconds for which an idle connection is kept: vendors keep theirs longer, so few are closed under a request."""


AT_ONCE = 0.5
"""Seconds within which a connection that was idle shows that it had been closed; who cuts it later has read."""


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
    """Opens links. One for a process; it holds the connectors and closes them.

    `open_links` are open now. With `tap` False links have no passage and cost more per frame; `ordinary` counts those
    that have none although they should.
    """

    def __init__(
        self, settings: DialSettings, identity: Identity, *, clock: Callable[[], float], tap: bool = True
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._clock = clock
        self._tap = tap
        self._client: aiohttp.ClientSession | None = None
        self._requests: aiohttp.ClientSession | None = None
        self._without_websocket: dict[str, float] = {}
        self._leaving: set[asyncio.Task[None]] = set()
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
        self._requests = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEPT_OPEN),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_reuse()],
        )

    async def stop(self) -> None:
        """Close the connectors; links are closed by those who opened them."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=5.0)
        for client in (self._client, self._requests):
            if client is not None:
                await client.close()

    async def open(
        self,
        credential: Credential,
        headers: Mapping[str, str],
        host: Host,
        endpoint: Endpoint = RESPONSES,
        *,
        frames: bool = True,
    ) -> Link | Exchanges:
        """A fresh link of `credential`, by whichever transport suits its client and its endpoint.

        `frames`: the client speaks by WebSocket, and so does the vendor if it can; whoever speaks HTTP is served by
        HTTP if that is there, for a request needs no handshake of its own. Raises `Refused`.
        """
        transports = credential.transports if endpoint.conversing else ("http",)
        by_http = "http" in transports
        if by_http and (not frames or transports[0] == "http" or self._has_no_websocket(credential)):
            return self._exchanges(credential, headers, host, endpoint, frames=frames)
        try:
            return await self.dial(credential, headers, host, frames=frames)
        except Refused as refused:
            if not by_http or refused.failure.status not in NO_WEBSOCKET:
                raise
            self._without_websocket[credential.base_url] = self._clock() + LOOK_AGAIN
            log.info("endpoint has no WebSocket", extra={"credential": credential.name})
        return self._exchanges(credential, headers, host, endpoint, frames=frames)

    def see_off(self, closing: Coroutine[object, object, None]) -> None:
        """Let links close, each bounded in time, while nobody waits for it."""
        task = asyncio.create_task(closing, name="links-close")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _has_no_websocket(self, credential: Credential) -> bool:
        return self._without_websocket.get(credential.base_url, 0.0) > self._clock()

    def _exchanges(
        self, credential: Credential, headers: Mapping[str, str], host: Host, endpoint: Endpoint, *, frames: bool
    ) -> Exchanges:
        self.open_links += 1
        return Exchanges(
            credential,
            endpoint,
            self.ask,
            headers,
            host,
            ended=self._ended,
            clock=self._clock,
            largest=self._settings.max_frame,
            frames=frames,
        )

    async def ask(
        self,
        credential: Credential,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        method: str = "POST",
        query: str = "",
    ) -> aiohttp.ClientResponse:
        """The answer of an endpoint to one request, its head read and its body not. No redirect is followed, and
        nothing is sent twice, but for a token that has run out. Raises `Unsent`, and what aiohttp raises."""
        answer = await self._ask(credential, path, body, headers, method, query)
        if await self._identity.renewed(credential, answer.status, ""):
            answer.release()
            answer = await self._ask(credential, path, body, headers, method, query)
        return answer

    async def _ask(
        self, credential: Credential, path: str, body: bytes, headers: Mapping[str, str], method: str, query: str
    ) -> aiohttp.ClientResponse:
        assert self._requests is not None, "the dialer was not started"
        connection, asked = _Connection(), asyncio.get_running_loop().time()
        if self._requests.closed:
            raise Unsent(Failure(FailureKind.TRANSPORT_LOST, code="node_stops", orderly=True, unsent=True))
        try:
            identity = await self._identity.headers(credential)
            return await self._requests.request(
                method,
                _asking(self._identity.url(credential, path), query),
                data=body or None,
                headers={
                    "Content-Type": "application/json",
                    "Accept-Encoding": "identity",
                    **headers,
                    **credential.headers,
                    **identity,
                },
                allow_redirects=False,
                trace_request_ctx=connection,
            )
        except NoIdentity as none:
            raise Unsent(none.failure) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            failure = Failure(FailureKind.TRANSPORT_LOST, code=type(error).__name__, independent=True, unsent=True)
            raise Unsent(failure) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            at_once = asyncio.get_running_loop().time() - asked < AT_ONCE
            if not connection.reused or not at_once or b'"conversation"' in body:
                raise
            # an idle connection that was closed under the request: nobody has read it
            code = type(error).__name__
            raise Unsent(Failure(FailureKind.CONNECTION_EXPIRED, code=code)) from None

    async def dial(
        self, credential: Credential, headers: Mapping[str, str], host: Host, *, frames: bool = True
    ) -> Link:
        """A fresh socket of `credential`. Raises `Refused` with the failure, classified; bounded in time."""
        try:
            return await self._dial(credential, headers, host, frames)
        except Refused as refused:
            if not await self._identity.renewed(credential, refused.failure.status, refused.failure.code):
                raise
        return await self._dial(credential, headers, host, frames)

    async def _dial(self, credential: Credential, headers: Mapping[str, str], host: Host, frames: bool) -> Link:
        assert self._client is not None, "the dialer was not started"
        upgraded = _Upgraded(self._tap)
        _upgraded.set(upgraded)
        failure: Failure | None = None
        try:
            identity = await self._identity.headers(credential)
        except NoIdentity as none:
            raise Refused(none.failure) from None
        try:
            async with asyncio.timeout(self._settings.connect):
                socket = await self._client.ws_connect(
                    self._identity.url(credential, "responses"),
                    headers={**headers, **credential.headers, **identity},
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
        return Link(credential, socket, transport, host, passage, self._ended, limits, frames=frames)

    def _ended(self) -> None:
        self.open_links -= 1

    def _failure_of(self, error: Exception) -> Failure:
        if isinstance(error, _NotUpgraded):
            return classify_handshake(error.status, error.headers, error.body, now=self._clock())
        code = str(error) if isinstance(error, _NoAnswer) else type(error).__name__
        return Failure(FailureKind.TRANSPORT_LOST, code=code, independent=True)


def _asking(url: URL, query: str) -> URL:
    """An address with a client's parameters behind its own, which no client's take the place of."""
    own = url.query
    parts = [part for part in query.split("&") if part and unquote(part.partition("=")[0]) not in own]
    return URL(f"{url}{'&' if url.raw_query_string else '?'}{'&'.join(parts)}", encoded=True) if parts else url


class _Connection:
    """What is known of the connection that a request went by."""

    reused = False


def _reuse() -> aiohttp.TraceConfig:
    async def note(session: object, context: SimpleNamespace, told: object) -> None:
        context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note)
    return trace
