"""Server-sent events as bytes: the data of whole events out of a stream, and events as a client reads them."""

from __future__ import annotations


class TooLarge(Exception):
    """One event is larger than it may be."""


class Reader:
    """Takes a stream piece by piece, wherever it is cut, and gives the data of every event that is whole.

    Names, ids and comments are left out: every vendor's data says by itself what it is. Lines may end in LF, CR or
    both. What is gathered is never looked at twice, and never more than `largest` bytes (`TooLarge`).
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._gathered = bytearray()
        self._looked_at = 0
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece completes."""
        gathered = self._gathered
        gathered += self._in_lines(piece)
        found, at = [], 0
        while (end := gathered.find(b"\n\n", max(at, self._looked_at))) >= 0:
            data = _data(bytes(gathered[at:end]))
            at = self._looked_at = end + 2
            if data is not None:
                found.append(data)
        if at:
            del gathered[:at]
        if len(gathered) > self._largest:
            raise TooLarge
        self._looked_at = max(0, len(gathered) - 1)
        return found

    def finish(self) -> list[bytes]:
        """The stream has ended: the data of an event behind which no empty line came any more."""
        return self.feed(b"\n\n") if self._gathered else []

    def _in_lines(self, piece: bytes) -> bytes:
        if self._after_cr and piece:
            # the CR was taken for the end of a line; the LF that belongs to it is not another
            self._after_cr = False
            if piece[:1] == b"\n":
                piece = piece[1:]
        if b"\r" not in piece:
            return piece
        self._after_cr = piece[-1:] == b"\r"
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes | None:
    """What stands behind `data:`; None in an event that has none, such as a comment that keeps a connection alive."""
    lines = [line[5:] for line in event.split(b"\n") if line[:5] == b"data:"]
    return b"\n".join([line[1:] if line[:1] == b" " else line for line in lines]) if lines else None


def named(kind: str, data: bytes) -> bytes:
    """An event with its name, as the Responses API sends it."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def bare(data: bytes) -> bytes:
    """An event without a name, as chat completions send it."""
    return b"data: %b\n\n" % data


COMMENT = b": keep-alive\n\n"
"""What says nothing, and keeps whoever stands in between from closing a quiet stream."""
