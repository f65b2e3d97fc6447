"""The passage by itself, between doubles that only write down: nothing is lost, split, overtaken or stuck."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from broker.upstream.passage import LARGE, WAITING, Gate, Opening, Passage, Sink
from tests.upstream.frames import Frame, boundaries, cut, cuts, delta, encoded, event, item, lawful, read

SETTINGS = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
PLANTED = settings(SETTINGS, max_examples=250, phases=[Phase.generate], report_multiple_bugs=False)


class Wire(asyncio.Transport):
    """A transport that brings what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False


class Scene(asyncio.Protocol):
    """All around a passage at once: the protocol behind it, the client, and who says what may pass; it writes down."""

    def __init__(self, kind: type[Passage] = Passage, frames: Sequence[Frame] = ()) -> None:
        self.at = dict(zip(boundaries(frames), frames, strict=False))
        self.wire = Wire()
        self.passage = kind(self.wire, self)
        self.passage.opening = self
        self.now: str = "wait"
        self.fed = b""
        self.runs: list[tuple[int, bytes]] = []
        self.inner = b""
        self.handed: list[tuple[int, int]] = []
        self.noted: list[bytes] = []
        self.told = 0
        self.taken = 0
        self.deaf = False
        self.behind: asyncio.Event | None = None
        self.ended = False

    @property
    def gone(self) -> int:
        """Bytes that have left the passage."""
        return len(self.inner) + sum(len(data) for _, data in self.runs)

    @property
    def waiting(self) -> int:
        return len(self.fed) - self.gone

    # the protocol behind the passage

    def data_received(self, data: bytes) -> None:
        if data:
            at, before, rest = self.gone, self.begun, read(self.inner)[1]
            self.handed.append((at, len(data)))
            self.inner += data
            self._look_at_handed(at, before, bool(rest))

    def eof_received(self) -> None:
        self.ended = True

    def _look_at_handed(self, at: int, before: int, in_a_frame: bool) -> None:
        if self.now == "all" or in_a_frame:
            assert self.now == "all" or self.begun == before, "more than the rest of a frame"
            return
        assert self.now != "wait", "handed over although the gate says wait"
        assert before == self.taken, "a message was handed over before the one in front of it was dealt with"
        assert self.begun <= before + 1, "two messages at once"
        frame = self.at.get(at)
        if self.now == "sink" and frame is not None and frame.plain and len(frame.payload) < LARGE - 10:
            assert b'"msg_5"' in frame.payload, "plain output that did not pass"

    # the client

    def write(self, data: bytes) -> bool:
        assert self.now == "sink", f"passed although the gate says {self.now}"
        frames, rest = read(data)
        assert not rest, "a write that is not whole frames"
        assert all(frame.plain for frame in frames), "something passed that is not plain output"
        assert not self.under_way, "passed while a message was under way"
        self.runs.append((self.gone, data))
        if self.deaf and self.behind is None:
            self.behind = asyncio.Event()
        return self.behind is None

    async def drained(self) -> None:
        assert self.behind is not None
        await self.behind.wait()
        self.behind = None

    # who says what may pass

    def gate(self) -> Sink | Gate:
        gates: dict[str, Sink | Gate] = {"sink": self, "one": Gate.ONE, "all": Gate.ALL, "wait": Gate.WAIT}
        return gates[self.now]

    def passed(self) -> None:
        self.told += 1

    def note_item(self, raw: bytes) -> bool:
        self.noted.append(raw)
        return b'"msg_5"' not in raw

    # what the test asks

    @property
    def begun(self) -> int:
        """Messages whose last frame has at least begun to go to the protocol behind."""
        frames, rest = read(self.inner)
        return sum(frame.ends_message for frame in frames) + (
            len(rest) > 0 and bool(rest[0] & 0x80 and rest[0] & 8 == 0)
        )

    @property
    def whole(self) -> int:
        return sum(frame.ends_message for frame in read(self.inner)[0])

    @property
    def under_way(self) -> int:
        return self.begun - self.taken

    def feed(self, data: bytes) -> None:
        self.fed += data
        self.passage.data_received(data)

    def take(self) -> bool:
        """One message is read by the protocol behind, and dealt with."""
        if self.taken == self.whole:
            return False
        self.taken += 1
        self.passage.taken()
        return True


_: type[Opening] = Scene
_sink: type[Sink] = Scene


@dataclass(frozen=True, repr=False)
class Story:
    """Frames, the chunks in which they come, and what happens between the chunks."""

    frames: list[Frame]
    chunks: list[bytes]
    steps: list[str]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        return f"{self.frames[:40]} in {[len(chunk) for chunk in self.chunks]}: {self.steps}"


STEPS = ("feed", "feed", "feed", "sink", "sink", "one", "one", "wait", "all", "take", "take", "deaf", "drain")


@st.composite
def stories(draw: st.DrawFn) -> Story:
    frames = draw(lawful)
    steps = draw(st.lists(st.sampled_from(STEPS), max_size=40))
    if draw(st.integers(0, 3)) == 0:
        frames = frames + [Frame(delta("z" * 50_000))] * draw(st.integers(5, 12)) + frames
        if draw(st.booleans()):
            frames = [Frame(delta()), Frame(event("response.novelty")), *frames]
            steps = ["deaf", "sink", "feed", "drain", *steps]
    data = encoded(frames)
    return Story(frames, cut(data, draw(cuts(data, boundaries(frames)))), steps)


async def tell(kind: type[Passage], story: Story) -> None:
    """Live through a story and hold the passage to all it promises."""
    scene, coming = Scene(kind, story.frames), deque(story.chunks)
    for step in story.steps:
        await _take_step(scene, step, coming)
        _look(scene, story)
    await _finish(scene, coming, story)
    assert not scene.waiting, f"{scene.waiting} bytes stayed behind"
    assert sum(frame.plain and b"output_item.done" in frame.payload[:60] for frame in read(_passed(scene))[0]) == sum(
        b'"msg_5"' not in raw for raw in scene.noted
    ), "an item passed unnoticed, or was noticed twice"
    assert scene.wire.reading, "the upstream is never read again"
    assert scene.told >= len(scene.runs), "the turn does not hear of what has passed"


async def _take_step(scene: Scene, step: str, coming: deque[bytes]) -> None:
    if step == "feed":
        if coming and scene.wire.reading:
            scene.feed(coming.popleft())
    elif step == "take":
        scene.take()
    elif step == "deaf":
        scene.deaf = True
    elif step == "drain":
        scene.deaf = False
        if scene.behind is not None:
            scene.behind.set()
            for _ in range(10):  # turns of the loop in which those who wait come to know
                await asyncio.sleep(0)
            assert scene.behind is None, "nobody waits for the client"
    else:
        scene.now = step
        scene.passage.go()


async def _finish(scene: Scene, coming: deque[bytes], story: Story) -> None:
    await _take_step(scene, "drain", coming)
    await _take_step(scene, "sink", coming)
    for _ in range(10 * len(story.frames) + len(coming) + 10):
        while coming and scene.wire.reading:
            scene.feed(coming.popleft())
        if not scene.take() and not coming:
            break
        _look(scene, story)


def _passed(scene: Scene) -> bytes:
    return b"".join(data for _, data in scene.runs)


def _look(scene: Scene, story: Story) -> None:
    order = sorted(
        [(at, at + len(data), True) for at, data in scene.runs] + [(a, a + n, False) for a, n in scene.handed]
    )
    starts = boundaries(story.frames)
    bytes_inner, bytes_sink = iter(_pieces(scene.inner, scene.handed)), iter([data for _, data in scene.runs])
    rebuilt = b"".join(next(bytes_sink) if passed else next(bytes_inner) for _, _, passed in order)
    assert scene.fed.startswith(rebuilt), "bytes are lost, repeated or out of order"
    for (_, _, before), (at, _, after) in pairwise(order):
        assert before == after or at in starts, "a frame was split"
    paused = scene.waiting > WAITING or scene.behind is not None
    assert scene.wire.reading != paused, (
        f"{scene.waiting} bytes wait, behind={scene.behind is not None}, {scene.wire.reading=}"
    )


def _pieces(data: bytes, handed: list[tuple[int, int]]) -> Iterator[bytes]:
    at = 0
    for _, size in handed:
        yield data[at : at + size]
        at += size


def told(kind: type[Passage], profile: settings) -> None:
    """Look for a story that a passage of this kind does not live up to."""
    with asyncio.Runner() as runner:

        @profile
        @given(stories())
        def search(story: Story) -> None:
            runner.run(tell(kind, story))

        search()


def test_keeps_its_promises_in_every_story() -> None:
    told(Passage, SETTINGS)


# --- planted bugs -----------------------------------------------------------------------------------------------------


class ForgetsMessages(Passage):
    def _gate(self) -> Sink | Gate:
        self._under_way = 0
        return super()._gate()


class ForgetsTheRest(Passage):
    def _gate(self) -> Sink | Gate:
        return self.opening.gate() if self.opening is not None else Gate.ALL


class StaysBehind(Passage):
    def taken(self) -> None:
        self._under_way -= 1


class NeverFull(Passage):
    def _mind_fullness(self) -> None:
        pass


class AlwaysFull(Passage):
    def _mind_fullness(self) -> None:
        if len(self._tail) > WAITING:
            self._transport.pause_reading()


class PassesAnything(Passage):
    def _run(self, data: bytes, opening: Opening) -> int:
        _, rest = read(data)
        return len(data) - len(rest)


class PassesHalves(Passage):
    def _run(self, data: bytes, opening: Opening) -> int:
        return len(data) if super()._run(data, opening) else 0


class NotesNothing(Passage):
    def _run(self, data: bytes, opening: Opening) -> int:
        return super()._run(data, _Blind())


class _Blind:
    def gate(self) -> Sink | Gate:
        return Gate.ALL

    def passed(self) -> None:
        pass

    def note_item(self, raw: bytes) -> bool:
        return True


class HandsOverAll(Passage):
    def _hand_over(self, *, everything: bool) -> bool:
        return super()._hand_over(everything=True)


class HandsOverFirst(Passage):
    def _pass(self, sink: Sink) -> bool:
        passed = super()._pass(sink)
        self._tail, rest = self._tail[:-1], self._tail[-1:]
        self._inner.data_received(rest)
        return passed


class MindsNoClient(Passage):
    def _write(self, sink: Sink, data: bytes) -> None:
        sink.write(data)


class NeverResumes(Passage):
    async def _drain(self, sink: Sink) -> None:
        await sink.drained()
        self._drainer = None


class ResumesWhileFull(Passage):
    async def _drain(self, sink: Sink) -> None:
        await sink.drained()
        self._drainer = None
        self._transport.resume_reading()


class LosesTheTail(Passage):
    def data_received(self, data: bytes) -> None:
        self._tail = data
        self.go()


BUGS: tuple[type[Passage], ...] = (
    ForgetsMessages,
    ForgetsTheRest,
    StaysBehind,
    NeverFull,
    AlwaysFull,
    PassesAnything,
    PassesHalves,
    NotesNothing,
    HandsOverAll,
    HandsOverFirst,
    MindsNoClient,
    NeverResumes,
    ResumesWhileFull,
    LosesTheTail,
)


@pytest.mark.parametrize("kind", BUGS, ids=lambda kind: kind.__name__)
def test_notices_a_planted_bug(kind: type[Passage]) -> None:
    with pytest.raises(AssertionError):
        told(kind, PLANTED)


# --- by hand ----------------------------------------------------------------------------------------------------------


async def test_keeps_nothing_back_when_the_peer_sends_no_more() -> None:
    for end in ("eof_received", "connection_lost"):
        for now in ("sink", "one", "wait", "all"):
            scene = Scene()
            scene.now = now
            data = encoded([Frame(event("response.created")), Frame(delta()), Frame(item(0)), Frame(delta("half"))])[
                :-3
            ]
            scene.feed(data)
            scene.now = "all"
            getattr(scene.passage, end)(*([None] if end == "connection_lost" else []))
            assert _passed(scene) + scene.inner == data


async def test_a_run_goes_out_in_one_write() -> None:
    scene = Scene()
    scene.now = "sink"
    data = encoded([Frame(delta(str(n))) for n in range(50)])
    scene.feed(data)
    assert [written for _, written in scene.runs] == [data]


async def test_a_large_frame_that_is_not_whole_goes_the_ordinary_way() -> None:
    scene = Scene()
    scene.now = "sink"
    data = Frame(delta("x" * LARGE)).encode()
    scene.feed(data[:1000])
    assert scene.inner == data[:1000]
    scene.feed(data[1000:])
    assert scene.inner == data


async def test_nothing_passes_in_the_midst_of_a_fragmented_message() -> None:
    scene = Scene()
    scene.now = "sink"
    scene.feed(Frame(b'{"type":', fin=False).encode())
    scene.feed(Frame(delta()).encode())
    assert not scene.runs
