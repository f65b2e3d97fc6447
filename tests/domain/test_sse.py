"""Server-sent events: the same events wherever a stream is cut, in bounded space and linear time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.sse import COMMENT, Reader, TooLarge, bare, named

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=150)

LARGEST = 1 << 20


def read(pieces: Sequence[bytes], largest: int = LARGEST) -> list[bytes]:
    reader = Reader(largest)
    return [event for piece in pieces for event in reader.feed(piece)] + reader.finish()


def by_the_book(stream: bytes) -> list[bytes]:
    """What WHATWG's rules make of a stream, line by line; but the last event needs no empty line behind it."""
    events, data = [], list[bytes]()
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for line in [*lines, b""]:
        if not line:
            events += [b"\n".join(data)] if data else []
            data = []
        elif line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
    return events


def cut(stream: bytes, at: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(stream), *(each % (len(stream) + 1) for each in at)})
    return [stream[start:end] for start, end in pairwise(places)]


LINES = [b"data: x", b"data:y", b"data:  two", b"data:", b"data: a:b", b": a comment", b"event: z", b"id: 7", b"", b""]
lines = st.sampled_from([*LINES, b"data: \xc3\xa9\xff", b"database: no", b" data: no", b"retry: 1", b"nothing"])
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
streams = st.lists(st.tuples(lines, ends), max_size=14).map(lambda told: b"".join(line + end for line, end in told))
tails = st.sampled_from([b"", b"data: last", b"data: last\n", b"data: last\r", b"data: last\r\n", b": comment", b"\r"])


@fixed
@given(streams, tails, st.lists(st.integers(0, 1 << 16), max_size=12))
def test_gives_the_same_events_wherever_a_stream_is_cut(stream: bytes, tail: bytes, at: list[int]) -> None:
    whole = stream + tail
    assert read(cut(whole, at)) == read([whole]) == by_the_book(whole)


@fixed
@given(streams | st.binary(max_size=80))
def test_gives_the_same_events_byte_by_byte(stream: bytes) -> None:
    assert read([stream[place : place + 1] for place in range(len(stream))]) == by_the_book(stream)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_every_cut_in_two_gives_the_same_events(end: bytes) -> None:
    told = [b"event: a", b'data: {"n":1}', b"", b": quiet", b"", b"data: one", b"data: two", b"", b"data: last"]
    stream = end.join(told)
    for place in range(len(stream) + 1):
        assert read([stream[:place], stream[place:]]) == [b'{"n":1}', b"one\ntwo", b"last"]


def test_an_event_is_given_as_soon_as_its_empty_line_is_there() -> None:
    reader = Reader(LARGEST)
    assert reader.feed(b"data: 1\n") == []
    assert reader.feed(b"\ndata: 2\r\n\r") == [b"1", b"2"]
    assert reader.feed(b"\n") == []
    assert reader.feed(b"data: 3\r\r") == [b"3"]
    assert reader.feed(b"") == []
    assert reader.feed(b"data: 4\n\n") == [b"4"]
    assert reader.finish() == []


def test_an_empty_piece_between_cr_and_lf_changes_nothing() -> None:
    assert read([b"data: 1\r", b"", b"\ndata: 2\r\n", b"\r\n"]) == [b"1\n2"]


def test_what_has_no_data_is_no_event() -> None:
    assert read([COMMENT, b"event: ping\n\n", b"\n\n\n", b": x\ndata: y\n\n"]) == [b"y"]


def test_reads_what_it_writes() -> None:
    written = named("response.created", b'{"type":"response.created"}') + COMMENT + bare(b"[DONE]")
    assert written.startswith(b"event: response.created\ndata: {")
    assert read([written]) == [b'{"type":"response.created"}', b"[DONE]"]


# --- bounds ---


def test_gathers_no_more_than_it_may() -> None:
    reader = Reader(100)
    assert reader.feed(b"data: " + b"x" * 94) == []
    with pytest.raises(TooLarge):
        reader.feed(b"x")


@pytest.mark.parametrize("line", [b": comment\n", b"data: x\n", b"event: y\r\n", b"x"])
def test_what_never_ends_is_too_large(line: bytes) -> None:
    reader, fed = Reader(1000), 0
    with pytest.raises(TooLarge):
        while fed < 5000:
            reader.feed(line)
            fed += len(line.replace(b"\r", b""))
    assert fed <= 1000


def test_any_number_of_events_is_never_too_large() -> None:
    reader = Reader(100)
    assert sum(len(reader.feed(b"data: %b\n\n" % (b"x" * 80))) for _ in range(1000)) == 1000
    assert len(reader.feed(b"data: x\n\n" * 1000)) == 1000


# --- time: generous, for machines that are busy; what is looked at twice takes minutes ---


def seconds(pieces: Sequence[bytes], largest: int) -> float:
    began = time.process_time()
    read(pieces, largest)
    return time.process_time() - began


MIB = 1 << 20


def pieces_of(stream: bytes, size: int) -> list[bytes]:
    return [stream[place : place + size] for place in range(0, len(stream), size)]


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * (16 * MIB) + b"\n\n",
        b"data: " + b"x\n" * (8 * MIB) + b"\n\n",
        b"data: " + b"x\r" * (8 * MIB) + b"\n\n",
    ],
    ids=["one line", "many lines", "many CR"],
)
def test_an_event_of_16_mib_in_pieces_takes_linear_time(stream: bytes) -> None:
    assert seconds(pieces_of(stream, 4096), 17 * MIB) < 4.0


def test_one_event_of_16_mib_is_read_within_two_seconds() -> None:
    assert seconds(pieces_of(b"data: " + b"x" * (16 * MIB) + b"\n\n", 4096), 17 * MIB) < 2.0


def test_many_events_in_one_piece_take_linear_time() -> None:
    assert seconds([b"data: x\n\n" * 200_000, b"data: y\n" * 10], MIB * 4) < 3.0
