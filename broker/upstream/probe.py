"""The prober: asks a vendor the least that shows whether a credential serves, and says what failed if it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import aiohttp
import orjson

from broker.domain.classify import classify, classify_event, classify_handshake, document_of, read_refusal
from broker.domain.credential import Credential
from broker.domain.events import Failed
from broker.domain.failure import Failure, FailureKind
from broker.domain.wire import EventKind
from broker.upstream.bodies import beginning
from broker.upstream.dialer import Dialer, DialSettings, Refused
from broker.upstream.identity import Identity, NoIdentity
from broker.upstream.link import Link, LinkClosed

MODELS, WARMUP, RESPONSE, OFF, AUTO = "models", "warmup", "response", "off", "auto"

TIMEOUT = 15.0
"""Seconds for a whole probe."""

REFUSAL_BYTES, ANSWER_BYTES = 64 * 1024, 4 * 1024 * 1024
"""How much is read of a refusal, and of an answer."""

_TEXT = "ping"
_JSON = {"Content-Type": "application/json", "Accept": "application/json"}
_LEAST_OUTPUT = 16


def plan(credential: Credential) -> tuple[str, str]:
    """The kind of probe and the vendor's name of the model for a credential; the kind may be `off`.

    Without a model there is nothing to ask for but the list of models, which proves the key and not its quota.
    """
    kind = credential.probe_kind
    if kind == AUTO:
        kind = credential.manners.probe
    model = credential.probe_model or min(credential.models, default="")
    if kind in (WARMUP, RESPONSE) and not model:
        kind = MODELS
    return kind, credential.upstream_model(model)


class Prober:
    """Sends probes: each is one request, bounded by `timeout` seconds. One for a process; it holds the connections.

    An `identity` that is given is started and stopped by whoever gives it.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        timeout: float = TIMEOUT,
        connect: float = 5.0,
        identity: Identity | None = None,
    ) -> None:
        self._clock = clock
        self._own_identity = identity is None
        self._identity = identity or Identity()
        self._timeout = timeout
        self._connect = connect
        settings = DialSettings(connect, max_frame=ANSWER_BYTES)
        self._dialer = Dialer(settings, self._identity, clock=clock, tap=False)
        self._client: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Must be called on the loop that uses it."""
        if self._own_identity:
            await self._identity.start()
        await self._dialer.start()
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        """Let go of the connections."""
        await self._dialer.stop()
        if self._client is not None:
            await self._client.close()
        if self._own_identity:
            await self._identity.stop()

    async def probe(self, credential: Credential, model: str, kind: str) -> Failure | None:
        """Send one request and say what failed; None if the credential serves.

        `kind` is models, warmup or response, and `model` the vendor's name of one. No client's request is part of the
        evidence, so every failure is independent; one that is the request's fault is our own, and says that the
        credential was let in.
        """
        ask = {MODELS: self._models, WARMUP: self._warmup, RESPONSE: self._response}[kind]
        try:
            async with asyncio.timeout(self._timeout):
                failure = await ask(credential, model)
        except TimeoutError:
            failure = _lost("silent")
        # what the vendor wrote may name an account, and nobody needs it here
        return None if failure is None else replace(failure, independent=True, raw=None)

    async def _models(self, credential: Credential, model: str) -> Failure | None:
        return await self._http("GET", credential, "models", None)

    async def _response(self, credential: Credential, model: str) -> Failure | None:
        body = {"model": model, "input": _TEXT, "max_output_tokens": _LEAST_OUTPUT, "store": False, "stream": False}
        return await self._http("POST", credential, "responses", orjson.dumps(body))

    async def _http(self, method: str, credential: Credential, path: str, body: bytes | None) -> Failure | None:
        failure = await self._http_once(method, credential, path, body)
        if failure is not None and await self._identity.renewed(credential, failure.status, failure.code):
            failure = await self._http_once(method, credential, path, body)
        return failure

    async def _http_once(self, method: str, credential: Credential, path: str, body: bytes | None) -> Failure | None:
        assert self._client is not None, "the prober was not started"
        try:
            shown = await self._identity.headers(credential)
        except NoIdentity as none:
            return none.failure
        url, headers = self._identity.url(credential, path), {**credential.headers, **shown, **_JSON}
        try:
            # a redirect would take the credential elsewhere
            async with self._client.request(method, url, data=body, headers=headers, allow_redirects=False) as answer:
                good = 200 <= answer.status < 300
                told = await beginning(answer, ANSWER_BYTES if good else REFUSAL_BYTES)
                if good:
                    return self._answered(told)
                return self._refused(answer.status, dict(answer.headers), told, asked=body is not None)
        except (aiohttp.ClientError, OSError) as error:
            return _lost(type(error).__name__)

    def _answered(self, told: bytes) -> Failure | None:
        document = document_of(told)
        if document is None:
            return _lost("garbage")
        if document.get("status") == "failed" or document.get("error"):
            return classify(read_refusal(document), now=self._clock())
        return None

    def _refused(self, status: int, headers: Mapping[str, str], told: bytes, *, asked: bool) -> Failure:
        document, now = document_of(told), self._clock()
        if asked and document is not None:
            return classify(read_refusal(document, status, headers), now=now)
        # nothing was asked for, or something at the door has answered: this is about the way in
        return classify_handshake(status, headers, told, now=now)

    async def _warmup(self, credential: Credential, model: str) -> Failure | None:
        frame = {"type": "response.create", "model": model, "input": _TEXT, "generate": False, "store": False}
        listener = _Warmup(self._clock)
        try:
            link = await self._dialer.dial(credential, {}, listener)
        except Refused as refused:
            return refused.failure
        try:
            link.attach(None, listener)
            link.send(orjson.dumps(frame), None)
            return await listener.outcome
        except LinkClosed:
            return _lost("closed_at_once")
        finally:
            await link.close()


class _Warmup:
    """Waits for what becomes of one warm-up. It is the link's host as well, for there is no client."""

    full = False
    behind = False

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.outcome: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()

    def receive(self, raw: bytes, kind: EventKind) -> None:
        """An event of the warm-up: its end, or what goes before it."""
        if kind is EventKind.FAILURE:
            self._settle(classify_event(raw, now=self._clock()))
        elif kind is EventKind.TERMINAL:
            self._settle(None)

    def answered(self, headers: Mapping[str, str]) -> None:
        """A socket has no answers of its own."""

    def lost(self, failure: Failure) -> None:
        """The socket ended first."""
        self._settle(failure)

    def expired(self) -> None:
        """The vendor ends the socket."""
        self._settle(Failure(FailureKind.CONNECTION_EXPIRED, code="websocket_connection_limit_reached"))

    def note_item(self, raw: bytes) -> bool:
        """Nothing passes here."""
        return False

    def take_over(self, events: list[tuple[bytes, EventKind] | Failed]) -> None:
        """What came before is nobody's."""

    def direct(self, data: bytes | memoryview) -> None:
        """Nothing is written."""

    write = direct

    def gather(self) -> None:
        """Nothing is written."""

    def flush(self) -> None:
        """Nothing is written."""

    def aside(self, link: Link, raw: bytes, lane: str | None) -> None:
        """Nobody is interested in it."""

    def _settle(self, outcome: Failure | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def _lost(code: str) -> Failure:
    return Failure(FailureKind.TRANSPORT_LOST, code=code)
