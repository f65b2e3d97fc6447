"""Models: what the pool can be asked for, merged over its credentials."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import orjson

from broker.domain.credential import Credential
from broker.domain.wire import MAX_MODEL
from broker.upstream.bodies import TooLarge, bounded
from broker.upstream.dialer import Dialer
from broker.upstream.exchange import Unsent

log = logging.getLogger(__name__)

FRESH = 300.0
"""Seconds for which a vendor's answer is believed."""

AGAIN = 30.0
"""Seconds after a failure before the vendor is asked again."""

WITHIN = 4.0
"""Seconds for one question: clients wait for five (protocol.md 9.1.4)."""

LARGEST = 4 * 1024 * 1024
"""Bytes of an answer."""

Listed = dict[str, Any]
"""A model as a vendor describes it; `id` is its name."""

Fetch = Callable[[Credential], Awaitable[list[Listed]]]
"""Asks the vendor of a credential for its models; whatever it raises is a failure."""


class _Known(msgspec.Struct):
    """What a vendor has said (name -> JSON), and until when (the clock's seconds) it is not asked again."""

    models: dict[str, bytes]
    until: float


class Models:
    """The models of all credentials. Where a credential has none configured, its vendor is asked: at most once at a
    time, each answer is kept for `FRESH` seconds, and a failure leaves the last one standing.

    `usable` says whether a credential can serve at all; what only others offer is shown where nobody is usable. `clock`
    is monotonic, in seconds.
    """

    def __init__(
        self,
        pool: Callable[[], Sequence[Credential]],
        fetch: Fetch,
        usable: Callable[[Credential], bool],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._fetch = fetch
        self._usable = usable
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def listing(self) -> bytes:
        """All models, sorted by name, as the vendor would list them. Takes `WITHIN` seconds at most."""
        return b'{"object":"list","data":[%b]}' % b",".join((await self._merged()).values())

    async def one(self, name: str) -> bytes | None:
        """One model, None if nobody has it; as bounded as the listing."""
        return (await self._merged()).get(name)

    async def close(self) -> None:
        """Give up what is being asked."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking, timeout=1.0)

    async def _merged(self) -> dict[str, bytes]:
        pool = self._pool()
        shown = [credential for credential in pool if self._usable(credential)] or pool
        await self._learn([credential for credential in shown if not credential.models])
        self._forget_all_but(pool)
        found: dict[str, bytes] = {}
        for credential in reversed(shown):
            found |= {name: _described(name, credential) for name in (*credential.models, *credential.aliases)}
        # what a vendor says itself comes before our own words, and who stands first in the pool before the others
        for credential in reversed(shown):
            if not credential.models and (known := self._known.get(credential.key)) is not None:
                found |= known.models
        return dict(sorted(found.items()))

    async def _learn(self, credentials: Sequence[Credential]) -> None:
        """Ask all vendors that are to be asked, at once. Who leaves meanwhile stops nobody else's question."""
        now, asking = self._clock(), []
        for credential in credentials:
            known = self._known.get(credential.key)
            if known is None or known.until <= now:
                asking.append(self._ask(credential))
        if asking:
            await asyncio.wait(asking)

    def _ask(self, credential: Credential) -> asyncio.Task[None]:
        key = credential.key
        if (running := self._asking.get(key)) is None:
            running = asyncio.create_task(self._take(credential), name=f"models:{credential.name}")
            self._asking[key] = running
            running.add_done_callback(lambda done: self._asking.pop(key, None))
        return running

    async def _take(self, credential: Credential) -> None:
        known = self._known.get(credential.key)
        try:
            async with asyncio.timeout(WITHIN):
                listed = await self._fetch(credential)
            models = {model["id"]: _described(model["id"], credential, model) for model in listed if _sound(model)}
            self._known[credential.key] = _Known(models, self._clock() + FRESH)
        except Exception as error:  # noqa: BLE001 - a list that is old is better than none, whatever went wrong
            self._known[credential.key] = _Known({} if known is None else known.models, self._clock() + AGAIN)
            reason = error.reason if isinstance(error, Unlisted) else type(error).__name__
            log.warning("models not listed", extra={"credential": credential.name, "reason": reason})

    def _forget_all_but(self, pool: Sequence[Credential]) -> None:
        gone = self._known.keys() - {credential.key for credential in pool}
        for key in gone:
            del self._known[key]


def _sound(model: object) -> bool:
    """Whether this describes a model that a client could ask for."""
    name = model.get("id") if isinstance(model, dict) else None
    return isinstance(name, str) and 0 < len(name) <= MAX_MODEL


_OF_THE_ACCOUNT = frozenset({"permission", "organization"})
_ACCOUNTS = ("org-", "user-", "proj_")
"""What of a vendor's description names the account behind a credential, and how such names begin."""


def _described(name: str, credential: Credential, told: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """A model as its vendor has told of it, with what every client expects."""
    shown = {key: value for key, value in told.items() if key not in _OF_THE_ACCOUNT}
    if str(shown.get("owned_by", "")).startswith(_ACCOUNTS):
        del shown["owned_by"]
    return orjson.dumps({"id": name, "object": "model", "created": 0, "owned_by": credential.vendor, **shown})


class Unlisted(Exception):
    """A vendor has answered something else than a list of models; `reason` holds nothing of what it said."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def asked_by(dialer: Dialer) -> Fetch:
    """Asks the vendors themselves; raises `Unlisted`, and what aiohttp raises. The caller bounds the time."""

    async def fetch(credential: Credential) -> list[Listed]:
        try:
            answer = await dialer.ask(credential, "models", b"", {"Accept": "application/json"}, "GET")
        except Unsent as unsent:
            raise Unlisted(unsent.failure.code) from None
        async with answer:
            if answer.status != 200:
                raise Unlisted(f"status {answer.status}")
            try:
                return _list_in(await bounded(answer, LARGEST))
            except TooLarge:
                raise Unlisted("too large") from None

    return fetch


def _list_in(body: bytes) -> list[Listed]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Unlisted("not JSON") from None
    listed = document.get("data") if isinstance(document, dict) else document
    if not isinstance(listed, list):
        raise Unlisted("not a list")
    return listed
