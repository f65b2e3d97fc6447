"""Tokens: what the secret of an application is exchanged for at Entra ID, renewed before they run out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import aiohttp
from yarl import URL

from broker.domain.classify import classify, document_of, read_refusal
from broker.domain.credential import Entra, Secret, Token
from broker.domain.failure import Failure, FailureKind
from broker.upstream.bodies import beginning

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds in which there is a token, or a reason why there is none."""

ASKING = 4.0
"""Seconds for one question to Entra."""

LEASE = 5.0
"""Seconds for which one node asks for all; if it dies meanwhile, the others still have time to ask themselves."""

POLL = 0.05
"""Seconds, up to twice as many, between two looks for the token that another node is asking for."""

RENEWED_AT, SPREAD = 0.8, 0.05
"""The part of its life after which a token is renewed, and by how much that differs between nodes."""

PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds after a failure in which nobody asks again; Entra may name a longer span."""

DROPPED_EVERY, LATE = 30.0, 5.0
"""Seconds between two drops, and those after a drop in which refusals may still be meant for the token before."""

ANSWER_BYTES, TOKEN_BYTES = 64 * 1024, 32 * 1024
LIFE, LONGEST_LIFE = 300.0, 86_400.0
"""Seconds that a token lives for which no life was named, and that any is taken to live at most."""

_TOKEN = re.compile(r"[!-~]+")
_REFUSALS = frozenset(
    {
        "access_denied",
        "consent_required",
        "interaction_required",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_resource",
        "invalid_scope",
        "invalid_tenant",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
_BUSY = frozenset({"temporarily_unavailable", "server_error"})


class Shelf(Protocol):
    """Where nodes share tokens. Every method raises `ConnectionError` where the shelf cannot be asked, soon."""

    async def get(self, entra: Entra, secret: Secret) -> Token | None:
        """The token that lies there and still lives."""

    async def put(self, entra: Entra, secret: Secret, token: Token) -> None:
        """Lay it there for as long as it lives."""

    async def lock(self, entra: Entra, secret: Secret, holder: str, ttl: float) -> bool:
        """Whether `holder` may ask for a new one now; for `ttl` seconds nobody else may."""

    async def unlock(self, entra: Entra, secret: Secret, holder: str) -> None:
        """Others may ask at once."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A token, and when it must be renewed and when it is dead (by the clock of the process)."""

    value: Secret
    due: float
    ends: float


class _Application:
    """What is known of one application with one secret. `rejected` is the token that a vendor has refused."""

    def __init__(self, entra: Entra, secret: Secret) -> None:
        self.entra = entra
        self.secret = secret
        self.held: _Held | None = None
        self.rejected: Secret | None = None
        self.dropped = float("-inf")
        self.failure: Failure | None = None
        self.again = float("-inf")
        self.asking: asyncio.Task[Secret | Failure] | None = None

    def alive(self, now: float) -> Secret | None:
        """The token, as long as it lives."""
        return self.held.value if self.held is not None and now < self.held.ends else None

    def fresh(self, now: float) -> bool:
        """Whether nobody needs to think of a new one."""
        return self.held is not None and now < self.held.due


class Tokens:
    """The tokens of this process. One question at a time for an application, and with a shelf one in all nodes.

    A token that is due is renewed while it still serves; where that fails it serves as long as it lives. `clock` is in
    seconds and only goes forward, `chance` in [0, 1) spreads nodes.
    """

    def __init__(
        self,
        shelf: Shelf | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        timeout: float = TIMEOUT,
    ) -> None:
        self._shelf = shelf
        self._clock = clock
        self._chance = chance
        self._timeout = timeout
        self._known: dict[tuple[Entra, Secret], _Application] = {}
        self._client: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Must be called on the loop that uses it."""
        self._client = aiohttp.ClientSession(
            # asked once an hour: a connection that is kept would be closed by then
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        """Give up what is being asked for, and let go of the connections."""
        asking = [each.asking for each in self._known.values() if each.asking is not None]
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking, timeout=3.0)
        if self._client is not None:
            await self._client.close()

    async def token(self, entra: Entra, secret: Secret) -> Secret | Failure:
        """A token that lives, at once where there is one, or why there is none; within `timeout` seconds."""
        known, now = self._of(entra, secret), self._clock()
        if (value := known.alive(now)) is not None:
            if not known.fresh(now) and now >= known.again:
                self._ask_for(known)
            return value
        if known.failure is not None and now < known.again:
            return known.failure
        asking = self._ask_for(known)
        await asyncio.wait([asking])  # whoever leaves takes nothing away from the others
        return _lost("stopped") if asking.cancelled() else asking.result()

    def drop(self, entra: Entra, secret: Secret) -> bool:
        """A vendor has refused the token: the next turn gets another. Returns whether asking that vendor again is
        worth it; an application whose tokens are refused anyhow gets a new one every `DROPPED_EVERY` seconds only."""
        known, now = self._known.get((entra, secret)), self._clock()
        if known is None or known.held is None:
            return known is not None and known.asking is not None
        if now - known.dropped < DROPPED_EVERY:
            return now - known.dropped < LATE
        known.rejected, known.held, known.failure, known.dropped = known.held.value, None, None, now
        return True

    def _of(self, entra: Entra, secret: Secret) -> _Application:
        known = self._known.get((entra, secret))
        if known is None:
            self._forget_the_dead()
            known = self._known[entra, secret] = _Application(entra, secret)
        return known

    def _forget_the_dead(self) -> None:
        now = self._clock()
        for key, each in list(self._known.items()):
            if each.asking is None and each.alive(now) is None and now >= each.again:
                del self._known[key]

    def _ask_for(self, known: _Application) -> asyncio.Task[Secret | Failure]:
        if known.asking is None:
            known.asking = asyncio.create_task(self._renew(known), name="token")
        return known.asking

    async def _renew(self, known: _Application) -> Secret | Failure:
        """Get a new token, or note why there is none; one that still lives serves on."""
        failure: Failure | None
        try:
            async with asyncio.timeout(self._timeout):
                failure = await self._obtain(known)
        except TimeoutError:
            failure = _lost("silent")
        finally:
            known.asking = None
        now = self._clock()
        if failure is not None:
            pause = min(max(PAUSE * (1 + self._chance()), failure.retry_after or 0.0), LONGEST_PAUSE)
            known.again = now + pause
            log.warning("no new token", extra={"code": failure.code, "status": failure.status})
        known.failure = failure
        return known.alive(now) or failure or _lost("dropped")

    async def _obtain(self, known: _Application) -> Failure | None:
        if self._shelf is None:
            return self._took(known, await self._ask(known))
        try:
            return await self._share(known, self._shelf)
        except ConnectionError:
            # nobody knows what the other nodes do, so this one helps itself
            return self._took(known, await self._ask(known))

    async def _share(self, known: _Application, shelf: Shelf) -> Failure | None:
        """Take what another node has laid on the shelf, or ask for all of them."""
        entra, secret, holder = known.entra, known.secret, secrets.token_hex(8)
        while not await self._found(known, shelf):
            if await shelf.lock(entra, secret, holder, LEASE):
                break
            await asyncio.sleep(POLL * (1 + self._chance()))
        else:
            return None
        try:
            # whoever had the lease before may have laid one there since
            if await self._found(known, shelf):
                return None
            got = await self._ask(known)
            if isinstance(got, Token):
                with contextlib.suppress(ConnectionError):
                    await shelf.put(entra, secret, got)
            return self._took(known, got)
        finally:
            with contextlib.suppress(ConnectionError):
                await shelf.unlock(entra, secret, holder)

    async def _found(self, known: _Application, shelf: Shelf) -> bool:
        """Whether a token that need not be renewed lies on the shelf. Any that lives is better than none."""
        token, now = await shelf.get(known.entra, known.secret), self._clock()
        if token is not None and token.value not in (known.rejected, known.alive(now)):
            held = self._hold(token, now)
            if known.held is None or held.ends > known.held.ends:
                known.held = held
        return known.fresh(now)

    def _hold(self, token: Token, now: float) -> _Held:
        spent = token.life - token.left
        due = token.life * (RENEWED_AT + SPREAD * self._chance()) - spent
        # a request takes a moment to arrive
        return _Held(token.value, now + due, now + token.left - min(30.0, token.life / 20))

    def _took(self, known: _Application, got: Token | Failure) -> Failure | None:
        if isinstance(got, Failure):
            return got
        known.held = self._hold(got, self._clock())
        log.info("token renewed")
        return None

    async def _ask(self, known: _Application) -> Token | Failure:
        """Ask Entra, once."""
        assert self._client is not None, "tokens were not started"
        entra, began = known.entra, self._clock()
        form = {
            "grant_type": "client_credentials",
            "client_id": entra.client_id,
            "client_secret": known.secret.reveal(),
            "scope": entra.scope,
        }
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            async with (
                asyncio.timeout(ASKING),
                # a redirect would take the secret elsewhere
                self._client.post(address(entra), data=form, headers=headers, allow_redirects=False) as answer,
            ):
                body = await beginning(answer, ANSWER_BYTES)
                if answer.status != 200:
                    return refused(answer.status, dict(answer.headers), body)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _lost("silent" if isinstance(error, TimeoutError) else type(error).__name__)
        return _read(body, self._clock() - began)


def address(entra: Entra) -> URL:
    """Where tokens of a directory are made."""
    return URL(f"{entra.authority.rstrip('/')}/{quote(entra.tenant, safe='')}/oauth2/v2.0/token", encoded=True)


def refused(status: int, headers: dict[str, str], body: bytes) -> Failure:
    """The failure in an answer that is no token: the application's own, or the way there.

    Nothing of the body is kept but a code that we know: it names tenants and applications.
    """
    document = document_of(body)
    word = document.get("error") if document is not None else None
    if not isinstance(word, str) or word in _BUSY or status in (408, 429) or not 400 <= status < 500:
        told = classify(read_refusal(None, status, headers), now=time.time())
        return Failure(
            FailureKind.OVERLOADED,
            status=status,
            code="no_token",
            retry_after=told.retry_after,
            independent=True,
            unsent=True,
        )
    code = word if word in _REFUSALS else "no_token"
    return Failure(FailureKind.AUTH_REJECTED, status=401, code=code, names_key=True, independent=True, unsent=True)


def _read(body: bytes, spent: float) -> Token | Failure:
    """The token in a good answer, of whose life `spent` seconds have gone by."""
    document = document_of(body) or {}
    value, kind = document.get("access_token"), document.get("token_type")
    life = _seconds(document.get("expires_in", LIFE))
    if not isinstance(value, str) or len(value) > TOKEN_BYTES or not _TOKEN.fullmatch(value) or life is None:
        return _lost("garbage")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return _lost("garbage")
    return Token(Secret(value), life, life - spent)


def _seconds(told: object) -> float | None:
    """A life as it was told; some write the number as a text."""
    if isinstance(told, str) and told.isascii() and told.isdigit() and len(told) < 12:
        told = int(told)
    if isinstance(told, bool) or not isinstance(told, int | float) or not told > 0:
        return None
    return min(float(told), LONGEST_LIFE)


def _lost(code: str) -> Failure:
    return Failure(FailureKind.TRANSPORT_LOST, code=code, independent=True, unsent=True)
