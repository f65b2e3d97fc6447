"""Who we are to a vendor: the headers that say so, and the address where they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable

from yarl import URL

from broker import __version__
from broker.domain.credential import Credential, Secret
from broker.domain.failure import Failure
from broker.domain.vendors import API_KEY
from broker.upstream.tokens import Shelf, Tokens

EXPIRED = frozenset({"", "401", "unauthorized", "token_expired", "expired_token", "invalid_token"})
"""Codes of a 401 that may mean no more than that a token has run out; many vendors say nothing at all."""


class NoIdentity(Exception):
    """There is nothing to show the vendor now; carries the failure. Nothing was sent."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind.value)
        self.failure = failure


class Identity:
    """The identities of all credentials. One for a process; nodes that have a `shelf` share their tokens by it."""

    def __init__(self, shelf: Shelf | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = Tokens(shelf, clock=clock)

    async def start(self) -> None:
        """Must be called on the loop that uses it."""
        await self._tokens.start()

    async def stop(self) -> None:
        """Let go of the connections; who waits for a token gets none."""
        await self._tokens.stop()

    async def headers(self, credential: Credential) -> dict[str, str]:
        """The headers of a request. Raises `NoIdentity`; waits only where a token must be asked for, bounded."""
        shown = {"User-Agent": f"session-broker/{__version__}"}
        if credential.auth == API_KEY:
            shown["api-key"] = credential.secret.reveal()
        else:
            shown["Authorization"] = f"Bearer {(await self._bearer(credential)).reveal()}"
        if credential.organization:
            shown["OpenAI-Organization"] = credential.organization
        if credential.project:
            shown["OpenAI-Project"] = credential.project
        return shown

    async def _bearer(self, credential: Credential) -> Secret:
        if credential.entra is None:
            return credential.secret
        got = await self._tokens.token(credential.entra, credential.secret)
        if isinstance(got, Failure):
            raise NoIdentity(got)
        return got

    async def renewed(self, credential: Credential, status: int, code: str) -> bool:
        """Whether a vendor that has refused these headers is worth asking once more, with new ones.

        Only tokens change by themselves; who has one gets another at most every 30 seconds.
        """
        if credential.entra is None or status != 401 or code.lower() not in EXPIRED:
            return False
        return self._tokens.drop(credential.entra, credential.secret)

    def url(self, credential: Credential, path: str) -> URL:
        """Below the address of its endpoint; what stands behind the `?` of that stays there."""
        base, mark, query = credential.base_url.partition("?")
        return URL(f"{base.rstrip('/')}/{path}{mark}{query}", encoded=True)
