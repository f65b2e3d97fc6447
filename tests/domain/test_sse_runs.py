"""Runs of server-sent events: only what is plain, whole and in the very form in which it is sent passes unread."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.frames import PLAIN, plain_run, text_header
from broker.domain.sse import Reader, as_frames, bare, named
from broker.domain.sse import plain_run as plain_events

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=300)

ITEM = "response.output_item.done"
KINDS = sorted(f"response.{kind.decode()}" for kind in PLAIN)
NOT_PLAIN = [
    "response.created",
    "response.completed",
    "response.failed",
    "error",
    "codex.rate_limits",
    "response.steer.accepted",
]
NOT_PLAIN += ["response.output_text.delta2", "response.output_text", "response.", "xresponse.output_text.delta"]


def data_of(kind: str, text: str = "a word") -> bytes:
    return f'{{"type":"{kind}","delta":"{text}"}}'.encode()


def event(kind: str, text: str = "a word") -> bytes:
    return named(kind, data_of(kind, text))


DELTA = event("response.output_text.delta")


@pytest.mark.parametrize("kind", KINDS)
def test_passes_every_plain_kind(kind: str) -> None:
    stream, items = event(kind) + event(kind) + DELTA, list[tuple[int, int, int]]()
    assert plain_events(stream, 0, items) == len(stream)
    assert [stream[start:end] for _, start, end in items] == ([data_of(kind)] * 2 if kind == ITEM else [])
    assert [begins for begins, _, _ in items] == ([0, len(event(kind))] if kind == ITEM else [])


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_ends_before_what_must_be_looked_at(kind: str) -> None:
    assert plain_events(DELTA + event(kind) + DELTA, 0, []) == len(DELTA)


OTHER_FORMS = {
    "two names": named("response.completed", data_of("response.output_text.delta")),
    "a name that hides the type": named("response.output_text.delta", data_of("response.completed")),
    "no name": bare(data_of("response.output_text.delta")),
    "a comment": b": alive\n\n",
    "an id": b"id: 7\n" + DELTA,
    "two lines of data": DELTA[:-1] + b"data: more\n\n",
    "another line behind the data": DELTA[:-1] + b"id: 7\n\n",
    "no end": DELTA[:-1],
    "the type is not first": named("response.output_text.delta", b'{"delta":"a","type":"response.output_text.delta"}'),
    "no space": DELTA.replace(b"data: ", b"data:"),
    "an item under another name": named("response.output_text.delta", data_of(ITEM)),
    "another event under an item's name": named(ITEM, data_of("response.output_text.delta")),
}


@pytest.mark.parametrize("told", OTHER_FORMS.values(), ids=list(OTHER_FORMS))
def test_ends_before_an_event_in_any_other_form(told: bytes) -> None:
    assert plain_events(DELTA + told, 0, []) == len(DELTA)
    assert plain_events(told, 0, []) == 0


def test_begins_where_it_is_told() -> None:
    stream = event("response.created") + DELTA + event(ITEM)
    items: list[tuple[int, int, int]] = []
    assert plain_events(stream, 1, items) == 1
    assert plain_events(stream, len(event("response.created")), items) == len(stream)
    assert [stream[start:end] for _, start, end in items] == [data_of(ITEM)]


texts = st.text(alphabet="ab:{}[]/\\.é\u2028😀 ", max_size=12).map(lambda text: text.replace("\\", "\\\\"))
events = st.tuples(st.sampled_from([*KINDS, *NOT_PLAIN]), texts)


@fixed
@given(st.lists(events, max_size=12))
def test_reaches_as_far_as_the_same_run_of_frames(told: list[tuple[str, str]]) -> None:
    stream = [event(*each) for each in told]
    frames = [text_header(len(data_of(*each))) + data_of(*each) for each in told]
    items, of_frames = list[tuple[int, int, int]](), list[tuple[int, int, int]]()
    reached, of_frame = plain_events(b"".join(stream), 0, items), plain_run(b"".join(frames), 0, of_frames)
    counted = [0, *accumulate(map(len, stream))].index(reached)
    assert counted == [0, *accumulate(map(len, frames))].index(of_frame)
    assert len(items) == len(of_frames)
    assert as_frames(b"".join(stream)[:reached]) == b"".join(frames)[:of_frame]


@fixed
@given(st.lists(events, max_size=12), st.integers(0, 2000))
def test_never_takes_a_part_of_an_event(told: list[tuple[str, str]], at: int) -> None:
    stream = b"".join(event(*each) for each in told)[:at]
    reached = plain_events(stream, 0, [])
    assert reached in [0, *accumulate(len(event(*each)) for each in told)]


def test_says_whether_an_event_begins_next() -> None:
    reader = Reader(1 << 20)
    assert reader.between
    reader.feed(DELTA + DELTA[:9])
    assert not reader.between
    reader.feed(DELTA[9:])
    assert reader.between
    reader.feed(b"data: x\r\n\r")
    assert not reader.between  # an LF would belong to the CR
