"""Tokens that nodes share: sealed with what only those have who could ask for one themselves."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.domain.credential import Entra, Secret, Token
from broker.store import keys, scripts
from broker.store.connection import Connection, StoreUnavailable, command

_NONCE = 12
_NAME, _KEY = 16, 32
_VERSION = b"\x01"

T = TypeVar("T")


class _Sealed(msgspec.Struct, frozen=True, array_like=True):
    """What is sealed: the token, and the seconds it was made for."""

    value: str
    life: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Sealed).decode


class TokenShelf:
    """The tokens that lie there. Every method raises `ConnectionError` where the store cannot be asked.

    Name and key of a token come from the secret of its application, so nobody finds or opens it who has not that
    secret; it lies there as long as it lives, and its age is told by the clock of the store alone.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, entra: Entra, secret: Secret) -> Token | None:
        """The token that lies there and still lives; one that cannot be opened is none."""
        name, cipher = _derive(entra, secret)
        key = keys.token(name)
        # MGET, for what is of another type is no token, and no reason to stop
        (raw,), left = await _asked(self._connection.ask(command("MGET", key), command("PTTL", key), read=True))
        opened = _open(cipher, name, raw)
        if opened is None or int(left) <= 0:
            return None
        return Token(Secret(opened.value), opened.life, min(int(left) / 1000, opened.life))

    async def put(self, entra: Entra, secret: Secret, token: Token) -> None:
        """Lay it there for as long as it lives; asked again, it does no harm."""
        name, cipher = _derive(entra, secret)
        nonce = os.urandom(_NONCE)
        plain = _encode(_Sealed(token.value.reveal(), token.life))
        sealed = _VERSION + nonce + cipher.encrypt(nonce, plain, _VERSION + name.encode())
        living = max(1, int(token.left * 1000))
        await _asked(self._connection.ask(command("SET", keys.token(name), sealed, "PX", living), read=True))

    async def lock(self, entra: Entra, secret: Secret, holder: str, ttl: float) -> bool:
        """Whether `holder` may ask for a new one now; for `ttl` seconds nobody else may."""
        return bool(await self._lease(entra, secret, "take", holder, ttl) == b"1")

    async def unlock(self, entra: Entra, secret: Secret, holder: str) -> None:
        """Others may ask at once. Who holds it no longer changes nothing."""
        await self._lease(entra, secret, "drop", holder, 0.001)

    async def _lease(self, entra: Entra, secret: Secret, act: str, holder: str, ttl: float) -> Any:
        key = keys.token_lease(_derive(entra, secret)[0])
        args = (act, holder, max(1, int(ttl * 1000)))
        return await _asked(self._connection.run(scripts.LEASE, (key,), args, read=act != "drop"))


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except StoreUnavailable as away:
        raise ConnectionError(away.reason) from None


def _derive(entra: Entra, secret: Secret) -> tuple[str, AESGCM]:
    """The name of a token, and what seals it."""
    about = "\0".join((entra.authority, entra.tenant, entra.client_id, entra.scope)).encode()
    made = HKDF(hashes.SHA256(), _NAME + _KEY, None, b"session-broker token\0" + about).derive(secret.reveal().encode())
    return made[:_NAME].hex(), AESGCM(made[_NAME:])


def _open(cipher: AESGCM, name: str, raw: bytes | None) -> _Sealed | None:
    if raw is None or not raw.startswith(_VERSION):
        return None
    try:
        return _decode(cipher.decrypt(raw[1 : 1 + _NONCE], raw[1 + _NONCE :], _VERSION + name.encode()))
    except (InvalidTag, ValueError, msgspec.DecodeError):
        return None
