"""Who may connect: client keys, known only by their digests."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """One party whose sessions nobody else can see.

    `transcript` False: nothing of its turns is kept. `max_sockets`: client sockets per process, 0 for no own cap.
    """

    name: str
    digests: tuple[bytes, ...]
    transcript: bool = True
    max_sockets: int = 0


class Access:
    """Finds the tenant of a client key. It needs no store, so it works when the store does not."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._keys = [(digest, tenant) for tenant in tenants for digest in tenant.digests]

    def tenant(self, authorization: str | None) -> Tenant | None:
        """The tenant of an `Authorization: Bearer ...` header, or None.

        Every known key is compared, each in constant time, so the time tells nothing about which one came close.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, tenant in self._keys:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found if scheme.lower() == "bearer" else None
