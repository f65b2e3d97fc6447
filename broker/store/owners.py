"""Owners: which credential has made what lives at a vendor under an id, longer than any session does.

Stored responses, conversations, and compaction items by their digest. What is not found is merely unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from broker.store import keys
from broker.store.connection import Answers, Command, Connection, StoreUnavailable, command
from broker.store.reading import readable

RETENTION = 30 * 86_400.0
"""Seconds for which a vendor keeps what it was told to store."""

MANY = 256
"""Things from which a question takes the socket for large ones."""


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """The credential that has made it, and the boundary in which it can be used.

    No generation: what was made with a secret is still there for the one that replaced it.
    """

    credential: str
    boundary: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Owner).decode


def derive_own(tenant: str, thing: str) -> str:
    """The key of a thing: 128 bits of a digest over tenant and name, so that a foreign thing is just unknown."""
    return hashlib.sha256(b"own\0" + tenant.encode() + b"\0" + thing.encode()).hexdigest()[:32]


class OwnerStore:
    """The owners, for `ttl` seconds from when they were last noted. Every method may raise `StoreUnavailable`, and is
    one round trip. Asked again, none does harm: the last word stands."""

    def __init__(self, connection: Connection, ttl: float = RETENTION) -> None:
        self._connection = connection
        self._ttl = max(1, round(ttl * 1000))

    async def note(self, tenant: str, thing: str, owner: Owner) -> None:
        """From now on this belongs to `owner`."""
        await self._connection.ask(self.noting(tenant, thing, owner), read=True)

    def submit(
        self,
        tenant: str,
        thing: str,
        owner: Owner,
        then: Callable[[StoreUnavailable | None], None] = lambda outcome: None,
    ) -> None:
        """The same for callers without a task: `then` is called from the loop, with `StoreUnavailable` if it failed.

        It is asked again once where the connection was lost.
        """
        noting = self.noting(tenant, thing, owner)

        def answered_again(answers: Answers) -> None:
            then(answers if isinstance(answers, StoreUnavailable) else None)

        def answered(answers: Answers) -> None:
            if isinstance(answers, StoreUnavailable) and answers.reason == "connection":
                self._connection.submit((noting,), answered_again)
            else:
                answered_again(answers)

        self._connection.submit((noting,), answered)

    def noting(self, tenant: str, thing: str, owner: Owner) -> Command:
        """What notes it, to be sent along with something else."""
        return command("SET", keys.owner(derive_own(tenant, thing)), _encode(owner), "PX", self._ttl)

    async def find(self, tenant: str, things: Sequence[str]) -> dict[str, Owner]:
        """Who owns these things, as far as it is known; what cannot be read is not known."""
        wanted = list(dict.fromkeys(things))
        if not wanted:
            return {}
        # one by one, for they share no slot; MGET, for what is of another type is no entry, and no reason to stop
        asked = (command("MGET", keys.owner(derive_own(tenant, thing))) for thing in wanted)
        answers = await self._connection.ask(*asked, read=True, bulky=len(wanted) > MANY)
        found = {thing.encode(): raw for thing, (raw,) in zip(wanted, answers, strict=True) if raw is not None}
        return readable(found, _decode)

    async def forget(self, tenant: str, thing: str) -> None:
        """Nobody owns this any more."""
        await self._connection.ask(command("UNLINK", keys.owner(derive_own(tenant, thing))), read=True)
