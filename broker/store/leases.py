"""Leases: who does alone, for a while, what only one in the cluster may do."""

from __future__ import annotations

from broker.store import keys, scripts
from broker.store.connection import Connection


class LeaseStore:
    """The leases, on the store's clock. Every method may raise `StoreUnavailable`, and is one round trip.

    A token names one holder. Whoever is late changes nothing: what has run out, or is another's, is neither kept nor
    released. `ttl` is in seconds.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def acquire(self, name: str, token: str, ttl: float) -> bool:
        """Take a free lease, or keep one's own; False while it is another's. Asked again, it does no harm."""
        return await self._do("take", name, token, ttl)

    async def renew(self, name: str, token: str, ttl: float) -> bool:
        """Hold it for `ttl` seconds from now on; False if it is no longer held, which does not take it anew."""
        return await self._do("keep", name, token, ttl)

    async def release(self, name: str, token: str) -> bool:
        """Let others take it at once; False if it was no longer held."""
        return await self._do("drop", name, token, 0.001)

    async def _do(self, act: str, name: str, token: str, ttl: float) -> bool:
        milliseconds = int(ttl * 1000)
        if milliseconds < 1:
            raise ValueError("a lease lasts at least a millisecond")
        answer = await self._connection.run(
            scripts.LEASE, (keys.lease(name),), (act, token, milliseconds), read=act != "drop"
        )
        return bool(answer == b"1")
