"""The items of a turn as they lie in Redis: compressed, encrypted if a key is set, cut into chunks."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence

from backports import zstd
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.domain.transcript import TurnItems

CHUNK = 256 * 1024
"""Bytes of the largest value: beyond that a single value holds up the whole server."""

COMPRESS_FROM = 16 * 1024
THREAD_FROM = 256 * 1024
"""Bytes from which the work is noticed by other sessions, and so belongs in a thread."""

_VERSION = 0x10
_COMPRESSED = 0x01
_ENCRYPTED = 0x02
_NONCE = 12
_FLAGS = [bytes((flags,)) for flags in range(256)]
_CRC = struct.Struct(">I")
_LENGTH = struct.Struct(">I")


class Unreadable(Exception):
    """These bytes are not, or not with this key, the items of that turn."""


class Codec:
    """Turns items into chunks and back; with a 32-byte `key` they are sealed to their session and turn.

    Layout: one byte (version in the high half, compressed 1, encrypted 2), then, if encrypted, a nonce, then
    `crc32, length of the inputs, inputs, outputs`. What was written without a key stays readable after one is set.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != 32:
            raise ValueError("a transcript key has 32 bytes")
        self._cipher = AESGCM(key) if key is not None else None

    def encode(self, sid: str, turn_id: str, items: TurnItems) -> list[bytes]:
        """The chunks of a turn's items."""
        inputs, outputs = items.inputs, items.outputs
        length = _LENGTH.pack(len(inputs))
        # the checksum finds damage where no cipher does
        checksum = _CRC.pack(zlib.crc32(outputs, zlib.crc32(inputs, zlib.crc32(length))))
        flags = _VERSION
        parts: tuple[bytes, ...] = (checksum, length, inputs, outputs)
        if items.size >= COMPRESS_FROM:
            flags |= _COMPRESSED
            parts = (zstd.compress(b"".join(parts), level=1),)
        if self._cipher is not None:
            flags |= _ENCRYPTED
            nonce = os.urandom(_NONCE)
            parts = (nonce, self._cipher.encrypt(nonce, b"".join(parts), _bound_to(flags, sid, turn_id)))
        whole = b"".join((_FLAGS[flags], *parts))
        return [whole] if len(whole) <= CHUNK else [whole[at : at + CHUNK] for at in range(0, len(whole), CHUNK)]

    def decode(self, sid: str, turn_id: str, chunks: Sequence[bytes]) -> TurnItems:
        """The items behind these chunks; raises `Unreadable`."""
        whole = b"".join(chunks)
        if not whole or whole[0] & 0xF0 != _VERSION:
            raise Unreadable("unknown format")
        flags, body = whole[0], whole[1:]
        if flags & _ENCRYPTED:
            body = self._open(body, _bound_to(flags, sid, turn_id))
        if flags & _COMPRESSED:
            try:
                body = zstd.decompress(body)
            except zstd.ZstdError as error:
                raise Unreadable("damaged") from error
        return _unframe(body)

    def _open(self, sealed: bytes, bound: bytes) -> bytes:
        if self._cipher is None:
            raise Unreadable("encrypted, and no key is set")
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
        except (InvalidTag, ValueError) as error:
            raise Unreadable("wrong key, or damaged") from error


def _bound_to(flags: int, sid: str, turn_id: str) -> bytes:
    # items copied to another turn or session, or with other flags, do not open
    return bytes((flags,)) + f"{sid}|{turn_id}".encode()


def _unframe(framed: bytes) -> TurnItems:
    if len(framed) < _CRC.size + _LENGTH.size:
        raise Unreadable("damaged")
    body = memoryview(framed)[_CRC.size :]
    if zlib.crc32(body) != _CRC.unpack_from(framed)[0]:
        raise Unreadable("damaged")
    inputs = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    return TurnItems(bytes(body[_LENGTH.size : inputs]), bytes(body[inputs:]))
