"""WebSocket frames as bytes: where one ends, and what stands before a text (RFC 6455 5.2)."""

from __future__ import annotations

FIN_TEXT = 0x81
"""The first byte of a whole, unfragmented, uncompressed text frame."""

MASKED = 0x80


def frame_size(data: bytes, position: int = 0) -> int | None:
    """Bytes of the whole frame that begins here, header included; None while its header is not whole."""
    if len(data) - position < 2:
        return None
    length, header = data[position + 1] & 0x7F, 2
    if data[position + 1] & MASKED:
        header += 4
    if length >= 126:
        wide = 2 if length == 126 else 8
        if len(data) - position < 2 + wide:
            return None
        length = int.from_bytes(data[position + 2 : position + 2 + wide], "big")
        header += wide
    return header + length


def text_header(size: int, masked: int = 0) -> bytes:
    """The header of a whole text frame of `size` bytes, without the mask itself; `masked` is `MASKED` or 0."""
    if size < 126:
        return bytes((FIN_TEXT, size | masked))
    if size < 1 << 16:
        return bytes((FIN_TEXT, 126 | masked, size >> 8, size & 0xFF))
    return bytes((FIN_TEXT, 127 | masked)) + size.to_bytes(8, "big")
