"""Frames as bytes: the compiled twin against the functions in Python, and both against a reader that shares no code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.domain import frames
from broker.domain.frames import FIN_TEXT, MASKED, frame_size, pure_plain_run, pure_text_frame, text_header
from tests.upstream.frames import BROKEN, LAWLESS, TEXT, Frame, Place, delta, encoded, event, item, lawful, layout, read

SETTINGS = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
COMPILED = pytest.mark.skipif(
    not frames.COMPILED, reason="THE COMPILED TWIN OF frames.py IS MISSING: nothing is compared"
)
KINDS = pytest.mark.parametrize("kind", ["pure", pytest.param("compiled", marks=COMPILED)])
TEXT_FRAMES = {"pure": pure_text_frame, "compiled": frames.text_frame}
PLAIN_RUNS = {"pure": pure_plain_run, "compiled": frames.plain_run}
LARGEST = (0, 1, 2, 6, 7, 14, 100, 125, 131, 1000, 1 << 16, 1 << 24)

_bytes = st.sampled_from((0x81, 0x81, 0x81, 0x01, 0xC1, 0x80, 0x89, 0, 1, 5, 125, 126, 127, 128, 253, 254, 255))
_headers = st.lists(_bytes, max_size=20).map(bytes)
_garbage = st.one_of(st.binary(max_size=40), _headers, st.builds(lambda a, b: a + b, _headers, st.binary(max_size=200)))


@st.composite
def _near_lawful(draw: st.DrawFn) -> bytes:
    """Encoded frames, lawful or not, with some bytes changed, cut off or put in between."""
    few = lawful.map(lambda made: [frame for frame in made if len(frame.payload) < 5000])
    data = bytearray(encoded(draw(few) + draw(st.sampled_from([[], *LAWLESS.values()])) + draw(few)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, min(len(data), 300)))
        how = draw(st.sampled_from(("change", "remove", "add")))
        data[at : at + (how != "add")] = b"" if how == "remove" else bytes((draw(_bytes),))
    tail = draw(st.sampled_from([b"", *(broken for broken in BROKEN.values() if len(broken) < 5000)]))
    return bytes(data) + tail


streams = st.one_of(_garbage, _near_lawful())


def _run(function: Callable[..., int], data: bytes, at: int) -> tuple[int, list[tuple[int, int, int]]]:
    items: list[tuple[int, int, int]] = []
    return function(data, at, items), items


@COMPILED
def test_the_twin_is_what_serves() -> None:
    assert TEXT_FRAMES["compiled"] is not pure_text_frame
    assert PLAIN_RUNS["compiled"] is not pure_plain_run


@COMPILED
@SETTINGS
@given(streams, st.sampled_from(LARGEST))
def test_the_twin_finds_the_same_frame_at_every_position(data: bytes, largest: int) -> None:
    for at in range(min(len(data), 600) + 3):
        for mask in (0, MASKED):
            expected = pure_text_frame(data, at, mask, largest)
            assert frames.text_frame(data, at, mask, largest) == expected, (at, mask)


@COMPILED
@SETTINGS
@given(streams)
def test_the_twin_finds_the_same_run_at_every_position(data: bytes) -> None:
    for at in range(min(len(data), 600) + 3):
        assert _run(frames.plain_run, data, at) == _run(pure_plain_run, data, at), at


@COMPILED
@settings(SETTINGS, max_examples=60)
@given(lawful, st.integers(0, 20))
def test_the_twin_finds_the_same_among_large_frames(made: list[Frame], cut_off: int) -> None:
    data = encoded(made)
    data = data[: max(0, len(data) - cut_off)]
    for place in layout(data):
        for at in (place.start, place.start + 1, place.body, place.end):
            assert _run(frames.plain_run, data, at) == _run(pure_plain_run, data, at), at
            for largest in (1 << 16, 1 << 17):
                for mask in (0, MASKED):
                    expected = pure_text_frame(data, at, mask, largest)
                    assert frames.text_frame(data, at, mask, largest) == expected, at


NAMES = (
    b"output_text.delta",
    b"output_text.delta.",
    b"output_text.delt",
    b"output_item.done",
    b"output_item.don",
    b"output_item.done ",
    b"",
    *(b"x" * size for size in (62, 63, 64, 65)),
    *sorted(frames.PLAIN),
)


@KINDS
@pytest.mark.parametrize("behind", [b'"', b'"}', b"", b'\0"', b'\\"', b'","text":"' + b"x" * 80 + b'"}'])
def test_only_a_type_that_is_plain_passes(kind: str, behind: bytes) -> None:
    for name in NAMES:
        payload = b'{"type":"response.' + name + behind
        data = Frame(payload).encode()
        plain = name in frames.PLAIN and behind.startswith(b'"')
        items = [(0, len(data) - len(payload), len(data))] if plain and name == b"output_item.done" else []
        assert _run(PLAIN_RUNS[kind], data, 0) == (len(data) if plain else 0, items), name
        # nothing that stands behind the frame belongs to it
        assert _run(PLAIN_RUNS[kind], data[:-1] + b'"', 0)[0] in (0, len(data))
        short = Frame(payload[: 18 + len(name)]).encode()
        assert _run(PLAIN_RUNS[kind], short + b'"' + data, 0) == (0, []), name


# --- against a reader that shares no code -----------------------------------------------------------------------------


def _expected(data: bytes, place: Place, mask: int, largest: int) -> tuple[int, int]:
    frame = place.frame
    if (frame.fin, frame.rsv, frame.opcode, bool(frame.mask)) != (True, 0, TEXT, bool(mask)):
        return 0, place.start
    if place.end - place.start > largest:
        return 0, place.start
    return (place.body, place.end) if place.end <= len(data) else (-1, place.start)


@KINDS
@SETTINGS
@given(data=streams, largest=st.sampled_from(LARGEST))
def test_finds_what_another_reader_finds(kind: str, data: bytes, largest: int) -> None:
    places = layout(data)
    for place in places:
        for mask in (0, MASKED):
            found = TEXT_FRAMES[kind](data, place.start, mask, largest)
            assert found == _expected(data, place, mask, largest), place
    end = places[-1].end if places else 0
    if end < len(data):
        # a header that is not whole is waited for, unless what is there of it tells enough
        assert TEXT_FRAMES[kind](data, end, 0, largest)[0] in (0, -1)


@KINDS
@SETTINGS
@given(data=streams)
def test_runs_as_far_as_another_reader_would_let_it(kind: str, data: bytes) -> None:
    places = layout(data)
    for first, place in enumerate(places):
        reached, items = place.start, []
        for each in places[first:]:
            if not each.frame.plain or each.end > len(data):
                break
            reached = each.end
            if each.frame.payload.startswith(b'{"type":"response.output_item.done"'):
                items.append((each.start, each.body, each.end))
        assert _run(PLAIN_RUNS[kind], data, place.start) == (reached, items)


@SETTINGS
@given(streams)
def test_knows_the_size_of_every_frame(data: bytes) -> None:
    places = layout(data)
    for place in places:
        assert frame_size(data, place.start) == place.end - place.start
        assert frame_size(data[place.start :]) == place.end - place.start
        header = place.body - len(place.frame.mask)
        assert frame_size(data[:header], place.start) == place.end - place.start
        assert frame_size(data[: header - 1], place.start) is None
    end = places[-1].end if places else 0
    if end <= len(data):
        assert frame_size(data, end) is None


SIZES = (0, 1, 124, 125, 126, 127, 128, 255, 256, 65_534, 65_535, 65_536, 65_537, 1 << 20)


@pytest.mark.parametrize("size", SIZES)
def test_writes_a_header_that_another_reader_understands(size: int) -> None:
    for mask, key in ((0, b""), (MASKED, b"\0\0\0\0")):
        data = text_header(size, mask) + key + bytes(size)
        assert read(data) == ([Frame(bytes(size), mask=key, width=0 if size < 126 else 2 if size < 65_536 else 8)], b"")
        assert data == Frame(bytes(size), mask=key).encode()
        assert frame_size(data) == len(data)
        for text_frame in TEXT_FRAMES.values():
            assert text_frame(data, 0, mask, len(data)) == (len(data) - size, len(data))
            assert text_frame(data, 0, mask, len(data) - 1) == (0, 0)
            assert text_frame(data[:-1], 0, mask, len(data)) == (-1, 0)
            assert text_frame(data, 0, MASKED - mask, len(data)) == (0, 0)


def test_writes_a_header_of_any_size() -> None:
    huge = text_header((1 << 63) - 1)
    assert frame_size(huge) == len(huge) + (1 << 63) - 1
    assert huge[0] == FIN_TEXT


@KINDS
@pytest.mark.parametrize("length", [(1 << 64) - 1, 1 << 63, (1 << 63) - 1, (1 << 63) - 15, 1 << 32, 1 << 31])
@pytest.mark.parametrize("mask", [0, MASKED])
def test_a_length_beyond_all_bounds_is_no_frame_to_wait_for(kind: str, length: int, mask: int) -> None:
    data = b"xyz\x81" + bytes((127 | mask,)) + length.to_bytes(8, "big") + delta()
    for largest in (0, 1 << 16, 1 << 30, sys.maxsize if length > sys.maxsize else 0):
        assert TEXT_FRAMES[kind](data, 3, mask, largest) == (0, 3)
    assert _run(PLAIN_RUNS[kind], data, 3) == (3, [])


# --- what nobody should give it ---------------------------------------------------------------------------------------

DATA = encoded([Frame(delta()), Frame(item(0)), Frame(event("response.novelty"))])
WRONG: tuple[Any, ...] = (None, "text", 1.5, [], {}, object(), bytearray(DATA), memoryview(DATA))


@COMPILED
@pytest.mark.parametrize("name", ["text_frame", "plain_run"])
def test_the_twin_refuses_wrong_arguments(name: str) -> None:
    function: Callable[..., object] = getattr(frames, name)
    right: tuple[Any, ...] = (DATA, 0, 0, 1000) if name == "text_frame" else (DATA, 0, [])
    numbers = range(1, 4) if name == "text_frame" else range(1, 2)
    function(*right)
    for size in range(len(right)):
        with pytest.raises(TypeError):
            function(*right[:size])
    with pytest.raises(TypeError):
        function(*right, 0)
    with pytest.raises(TypeError):
        function(*right, more=0)
    for value in (*WRONG, 7):
        with pytest.raises(TypeError):
            function(value, *right[1:])
    for at in numbers:
        for value in WRONG:
            with pytest.raises(TypeError):
                function(*right[:at], value, *right[at + 1 :])
        for value in (1 << 63, 1 << 70, -(1 << 70)):
            with pytest.raises((OverflowError, ValueError)):
                function(*right[:at], value, *right[at + 1 :])
    for negative in (-1, -2, -len(DATA), -(1 << 63)):
        with pytest.raises(ValueError):
            function(DATA, negative, *right[2:])
    for beyond in (len(DATA), len(DATA) + 1, (1 << 63) - 1):
        assert function(DATA, beyond, *right[2:]) == ((-1, beyond) if name == "text_frame" else beyond)
        assert function(b"", beyond, *right[2:]) == ((-1, beyond) if name == "text_frame" else beyond)


@COMPILED
def test_the_twin_refuses_anything_but_a_list_for_the_items() -> None:
    wrong: tuple[Any, ...] = (None, (), {}, "text", 7)
    for value in wrong:
        with pytest.raises(TypeError):
            frames.plain_run(DATA, 0, value)


@COMPILED
def test_the_twin_takes_nothing_of_a_negative_size() -> None:
    for largest in (-1, -1000):
        assert frames.text_frame(DATA, 0, 0, largest) == pure_text_frame(DATA, 0, 0, largest) == (0, 0)


class Number:
    """Counts as a number where one is asked for."""

    def __index__(self) -> int:
        return 7


@COMPILED
def test_the_twin_says_what_was_wrong_first() -> None:
    wrong: Any = "text"
    with pytest.raises(TypeError):
        frames.text_frame(DATA, 0, wrong, Number())  # type: ignore[arg-type]


@KINDS
def test_a_mask_is_taken_whole(kind: str) -> None:
    assert TEXT_FRAMES[kind](b"\x81\x00", 0, 1 << 32, 1000) == (0, 0)


@COMPILED
def test_the_largest_number_is_no_overflow() -> None:
    data = b"\x81\x7f" + sys.maxsize.to_bytes(8, "big") + b"x"
    for largest in (sys.maxsize, sys.maxsize - 10, sys.maxsize - 11):
        assert frames.text_frame(data, 0, 0, largest) == pure_text_frame(data, 0, 0, largest)


WORDS = st.lists(
    st.sampled_from([*frames.BINDING, b'"', b'"', b"\\", b" ", b"x", b"_", b"prompts", b"file"]), max_size=12
).map(b"".join)


@COMPILED
@given(WORDS | st.binary(max_size=40))
def test_a_word_in_quotes_is_found_alike(data: bytes) -> None:
    assert frames.names_any(data) is frames.pure_names_any(data)


@COMPILED
def test_every_word_is_found_at_the_very_end_and_not_behind_it() -> None:
    for word in frames.BINDING:
        assert frames.names_any(b'"' + word + b'"')
        assert not frames.names_any(b'"' + word)
        assert not frames.names_any(word + b'"')
