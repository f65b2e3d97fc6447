"""Server-sent events as bytes: the data of whole events out of a stream, and events as a client reads them."""

from __future__ import annotations

import re

from broker.domain.frames import PLAIN, text_header


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

    @property
    def between(self) -> bool:
        """Whether an event begins with whatever comes next."""
        return not (self._gathered or self._after_cr)

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


_ITEM = b"output_item.done"
_RUN = re.compile(
    # what there is most of is tried first
    rb'(?:event: response\.(output_text\.delta|%b)\ndata: {"type":"response\.\1".*\n\n)++'
    % b"|".join(re.escape(kind) for kind in sorted(PLAIN - {_ITEM}))
)
_DONE_ITEM = re.compile(rb'event: response\.%b\ndata: ({"type":"response\.%b".*)\n\n' % ((re.escape(_ITEM),) * 2))


def plain_run(data: bytes, at: int, items: list[tuple[int, int, int]]) -> int:
    """How far a run of whole plain events reaches from `at`, in the very form in which `named` writes them.

    `items` gets those in which an item is done: where the event begins, where its data begins, and where that ends.
    Plain is what is plain in `frames`; an event in any other form ends the run. There must be no CR in `data`.
    """
    while True:
        if (run := _RUN.match(data, at)) is not None:
            at = run.end()
        if (item := _DONE_ITEM.match(data, at)) is None:
            return at
        items.append((at, *item.span(1)))
        at = item.end()


def as_frames(run: bytes) -> bytes:
    """The data of a run that `plain_run` has found, as WebSocket frames."""
    found = [event[event.index(b"data: ") + 6 :] for event in run.split(b"\n\n") if event]
    return b"".join([text_header(len(data)) + data for data in found])


def _data(event: bytes) -> bytes | None:
    """What stands behind `data:`; None in an event that has none, such as a comment that keeps a connection alive."""
    lines = [line[5:] for line in event.split(b"\n") if line[:5] == b"data:"]
    return b"\n".join([line[1:] if line[:1] == b" " else line for line in lines]) if lines else None


def named(kind: str, data: bytes) -> bytes:
    """An event with its name, as the Responses API sends it. Data of several lines stays one event, and a name that
    would end its line is none."""
    name = kind.encode() if kind.isprintable() else b"message"
    return b"event: %b\ndata: %b\n\n" % (name, _in_one_event(data))


def bare(data: bytes) -> bytes:
    """An event without a name, as chat completions send it."""
    return b"data: %b\n\n" % _in_one_event(data)


def _in_one_event(data: bytes) -> bytes:
    if b"\n" not in data and b"\r" not in data:
        return data
    return b"\ndata: ".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))


COMMENT = b": keep-alive\n\n"
"""What says nothing, and keeps whoever stands in between from closing a quiet stream."""
