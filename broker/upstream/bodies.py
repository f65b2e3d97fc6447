"""Bodies of answers, none of them larger than it may be."""

from __future__ import annotations

import aiohttp


class TooLarge(Exception):
    """A body is larger than it may be."""


async def beginning(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The body up to a bound; what is longer comes cut, and is no document any more."""
    read = bytearray()
    async for piece in answer.content.iter_any():
        read += piece
        if len(read) > most:
            break
    return bytes(read[:most])


async def bounded(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body; raises `TooLarge`."""
    read = await beginning(answer, most + 1)
    if len(read) > most:
        raise TooLarge
    return read
