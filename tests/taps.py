"""All around a tap by doubles that only write down, and stories in which they hold it to what it promises.

The scene knows by a reader of its own where frames begin, and judges each byte at the moment when it leaves the tap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from broker.tap import LARGE, WAITING, Tap
from broker.upstream.passage import Passage
from tests.upstream.frames import (
    BINARY,
    BROKEN,
    CLOSE,
    CONTINUATION,
    LAWLESS,
    PING,
    PONG,
    TEXT,
    Frame,
    Place,
    boundaries,
    cut,
    cuts,
    delta,
    encoded,
    event,
    item,
    lawful,
    layout,
    read,
)

SETTINGS = settings(
    max_examples=600, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
PLANTED = settings(SETTINGS, max_examples=4000, phases=[Phase.generate], report_multiple_bugs=False)

UNREADABLE = b'"msg_5"'
"""What is in an item that the scene cannot read."""

ITEM = b'{"type":"response.output_item.done"'


class Wire(asyncio.Transport):
    """A transport that brings what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.closing = False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing, "resumed a transport that closes"
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing


class Scene(asyncio.Protocol):
    """The protocol behind a tap, who takes its messages, and a client to whom they may pass."""

    def __init__(self, kind: type[Tap] = Tap, data: bytes = b"", *, masked: bool = False, largest: int = LARGE) -> None:
        self.places = {place.start: place for place in layout(data)}
        self.data = data
        self.masked = masked
        self.largest = min(largest, LARGE)
        self.wire = Wire()
        self.tap: Tap
        if issubclass(kind, Passage):
            self.tap = kind(self.wire, self)
        else:
            self.tap = kind(self.wire, self, masked=masked, largest=largest)
        self.tap.on_behind = self.on_behind
        # what is true now
        self.begun = False
        self.finished = False
        self.flushing = False
        self.ready = True
        self.opened = False
        self.fragments = False
        self.left = 0
        # what has been
        self.fed = 0
        self.gone = 0
        self.coming = 0
        self.whole = 0
        self.dealt = 0
        self.taken: list[bytes] = []
        self.passed: list[bytes] = []
        self.inner: list[bytes] = []
        self.notes: list[bytes] = []
        self.told: list[str] = []
        self.behind: list[bool] = []
        self.unrested = False
        # what shall be done from within
        self.eager = False
        self.reactions: deque[str] = deque()
        self.at_rest: deque[str] = deque()

    # --- what is there ---

    @property
    def waiting(self) -> int:
        return self.fed - self.gone

    @property
    def under_way(self) -> int:
        """Messages that have at least begun to go to the protocol behind, and are not dealt with."""
        return self.coming - self.dealt

    @property
    def taking(self) -> bool:
        return self.begun and not self.finished

    def may_take(self, place: Place) -> bool:
        """Whether this is a frame of the kind that is taken."""
        frame = place.frame
        lawful = (frame.fin, frame.opcode, frame.rsv, bool(frame.mask)) == (True, TEXT, 0, self.masked)
        return lawful and place.end - place.start <= self.largest

    def waits_rightly(self) -> bool:
        """Whether what waits has a reason to."""
        if not self.waiting:
            return True
        if self.left:
            return False
        place = self.places.get(self.gone)
        if self.taking and (self.under_way or not self.ready):
            return True
        if place is not None and self.taking and not self.fragments and self.may_take(place):
            return place.end > self.fed
        return place is None or self.fed < place.body - len(place.frame.mask)

    # --- the transport ---

    def feed(self, size: int) -> None:
        chunk = self.data[self.fed : self.fed + size]
        self.fed += len(chunk)
        self.tap.data_received(chunk)

    # --- the protocol behind ---

    def data_received(self, data: bytes) -> None:
        if not data:
            self.told.append("alive")
            return
        self._leaves(data)
        self.inner.append(data)
        at, size = self.gone, len(data)
        self.gone += size
        if self.flushing:
            return
        if self.left:
            assert size <= self.left, "more than the rest of a frame"
            self.left -= size
        else:
            self._begins(self._place(at), size)
        if not self.left and self.whole < self.coming:
            self.whole = self.coming
            if self.eager:
                self.deal()

    def _begins(self, place: Place, size: int) -> None:
        frame = place.frame
        assert size <= place.end - place.start, "more than one frame"
        if self.taking:
            assert not self.under_way, "handed over before the message in front of it was dealt with"
            assert self.ready, "handed over although nothing more may come"
            assert self.fragments or not self.may_take(place), "handed over what is to be taken"
        self.left = place.end - place.start - size
        if frame.opcode < CLOSE:
            self.fragments = not frame.fin
            self.coming += frame.fin
            return
        lawful = frame.opcode in (PING, PONG) and frame.fin and not frame.rsv and not frame.width
        if not lawful:
            self.finished, self.opened = True, False

    def deal(self) -> bool:
        """A message that the protocol behind has got is dealt with."""
        if self.dealt == self.whole:
            return False
        self.dealt += 1
        self.tap.taken()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")

    def eof_received(self) -> bool | None:
        self.told.append("eof")
        return None

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def on_behind(self, behind: bool) -> None:
        self.behind.append(behind)

    # --- who takes messages ---

    def begin(self) -> None:
        self.tap.begin(self.take, lambda: self.ready, self.rest)
        self.begun = True

    def take(self, raw: bytes) -> None:
        place = self._place(self.gone)
        assert self.taking and not self.flushing, "taken behind the end"
        assert not self.under_way, "taken while a message was under way"
        assert self.ready, "taken although nothing more may be"
        assert not self.left and not self.fragments, "taken in the midst of something else"
        assert self.may_take(place), "taken what is not to be"
        assert place.end <= self.fed, "taken before it was whole"
        assert raw == place.frame.payload and type(raw) is bytes, "not what was sent"
        plain = self.opened and place.frame.plain
        assert not plain or (ITEM in raw and UNREADABLE in raw), "plain output that did not pass"
        assert not self.notes, "an item was noted that did not pass"
        self.gone = place.end
        self.taken.append(raw)
        self.unrested = True
        self._react(self.reactions)

    def rest(self) -> None:
        assert self.waits_rightly(), "rests although there is something to be done"
        self.unrested = False
        self._react(self.at_rest)

    def _react(self, reactions: deque[str]) -> None:
        if reactions:
            self.do(reactions.popleft())

    # --- the client ---

    def direct(self, data: bytes | memoryview) -> None:
        assert not self.unrested, "overtakes what came with it"
        self._passes(bytes(data))
        self._react(self.reactions)

    def write(self, data: bytes | memoryview) -> None:
        self._passes(bytes(data))
        self.unrested = True
        self._react(self.reactions)

    def _passes(self, data: bytes) -> None:
        self._leaves(data)
        assert self.opened and self.taking and not self.flushing, "passed while it was shut"
        assert not self.under_way, "passed while a message was under way"
        assert self.ready, "passed although nothing more may be"
        assert not self.left and not self.fragments, "passed in the midst of something else"
        self._place(self.gone)
        frames, rest = read(data)
        assert not rest, "a write that is not whole frames"
        assert all(frame.plain for frame in frames), "something passed that is not plain output"
        items = [frame.payload for frame in frames if frame.payload.startswith(ITEM)]
        assert not any(UNREADABLE in item for item in items), "an item passed that cannot be read"
        assert self.notes == items, "the items that pass are not those that were noted"
        self.notes.clear()
        self.gone += len(data)
        self.passed.append(data)

    def note_item(self, raw: bytes) -> bool:
        assert type(raw) is bytes
        if UNREADABLE in raw:
            return False
        self.notes.append(raw)
        return True

    # --- what everybody is held to ---

    def _place(self, at: int) -> Place:
        assert at in self.places, "a frame was split"
        return self.places[at]

    def _leaves(self, data: bytes) -> None:
        here = self.data[self.gone : self.fed]
        assert here.startswith(data), "bytes are lost, repeated or out of order"

    def do(self, step: str) -> None:
        """One thing happens, from outside or from within."""
        passage = self.tap if isinstance(self.tap, Passage) else None
        if step == "deal":
            self.deal()
        elif step == "go":
            self.tap.go()
        elif step == "ready":
            self.ready = True
            self.tap.go()
        elif step == "ready, quietly":
            self.ready = True
        elif step == "ready, open":
            self.ready = True
            self.do("open")
        elif step == "unready":
            # as a link does it: who takes nothing more has shut the passage before
            if passage is not None:
                passage.shut()
            self.ready = self.opened = False
        elif step == "open" and passage is not None and self.ready:
            passage.open(self.direct, self.write, self.note_item)
            self.opened = self.taking and not self.flushing
        elif step == "shut" and passage is not None:
            passage.shut()
            self.opened = False
        elif step == "begin" and not self.begun:
            self.begin()
        elif step == "close":
            self.wire.closing = True
        elif step == "behind":
            self.tap.pause_writing()
            assert self.told[-1:] == ["pause"] and self.behind[-1:] == [True], "somebody was not told"
        elif step == "caught up":
            self.tap.resume_writing()
            assert self.told[-1:] == ["resume"] and self.behind[-1:] == [False], "somebody was not told"
        elif step == "alive":
            before = self.told.count("alive")
            self.tap.keep_alive()
            assert self.told.count("alive") == before + 1

    def look(self) -> None:
        """What is true whenever nothing happens."""
        assert not self.unrested, "nobody was told that a message was the last"
        assert not self.notes, "an item was noted that did not pass"
        if not self.wire.closing:
            assert self.wire.reading == (self.waiting <= WAITING), f"{self.waiting} bytes wait, {self.wire.reading=}"

    def end(self, how: str) -> None:
        """The peer sends no more; all that it has sent must be dealt with the ordinary way."""
        taken, passed = len(self.taken), len(self.passed)
        self.flushing = True
        if how == "eof":
            self.tap.eof_received()
        else:
            self.wire.closing = True
            self.tap.connection_lost(None)
            assert self.behind[-1:] == [True], "nobody was told that it will read nothing any more"
        assert self.told[-1:] == [how] and self.told.count(how) == 1, "the protocol behind does not hear of the end"
        assert not self.waiting, f"{self.waiting} bytes were kept back"
        assert (len(self.taken), len(self.passed)) == (taken, passed)


@dataclass(frozen=True, repr=False)
class Story:
    """Frames, the chunks in which they come, what happens between the chunks and within, and how it ends."""

    frames: list[Frame]
    data: bytes
    chunks: list[int]
    steps: list[str]
    reactions: list[str]
    at_rest: list[str]
    eager: bool
    end: str

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        within = f"within {self.reactions}, at rest {self.at_rest}, {self.eager=}, {self.end=}"
        return f"{self.frames[:40]} in {self.chunks}: {self.steps} {within}"


STEPS = (
    *["feed"] * 6,
    *["deal"] * 3,
    *["open"] * 3,
    *("shut", "unready", "unready", "ready", "ready", "ready, quietly", "ready, open", "go"),
    *("behind", "caught up", "alive"),
)
REACTIONS = (*[""] * 8, "go", "go", "open", "shut", "unready", "ready", "deal")
MASKS = (b"\x01\x02\x03\x04", b"\xff\x00\x81\x7e", b"\0\0\0\0", b"aaab")


def _edge(size: int, width: int, masked: bool) -> Frame:
    """A text that makes a frame of this size."""
    room = size - 2 - width - 4 * masked
    return Frame(delta("e" * (room - len(delta("")))), width=width)


ODD: tuple[dict[str, Any], ...] = (
    *({"fin": False},) * 5,
    *({"opcode": CLOSE},) * 3,
    *({"opcode": CONTINUATION}, {"opcode": BINARY}, {"opcode": BINARY}),
    *({"rsv": 4}, {"rsv": 4}, {"rsv": 2}, {"rsv": 1}, {"width": 2}, {"width": 8}),
    *({"opcode": 3}, {"opcode": 7}, {"opcode": CLOSE}, {"opcode": 11}, {"opcode": PING}, {"opcode": PONG, "rsv": 4}),
)
"""What makes an odd frame of a lawful one."""


KINDS = ("", *["odd"] * 4, "full", "full", "edges", "items", "items", "lawless", "lawless", "broken", "nested")


@st.composite
def stories(draw: st.DrawFn, masked: bool = False) -> Story:
    frames = draw(lawful)
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=12, max_size=50))
    kind, tail = (
        draw(st.sampled_from(KINDS)),
        b"",
    )
    if kind == "full":
        # enough for the transport to be paused, behind something that keeps it from being dealt with
        frames = [Frame(delta()), *draw(lawful), *[Frame(delta("z" * 50_000))] * draw(st.integers(5, 12)), *frames]
        steps = ["open", "feed", *draw(st.sampled_from(((), ("unready",)))), *["feed"] * 12, *steps]
        if draw(st.booleans()):
            frames.insert(1, Frame(event("response.novelty"), width=2, mask=MASKS[0]))
        if draw(st.booleans()):
            steps[draw(st.integers(3, 14)) :] = ["close", "feed", "ready", "deal", "deal", "open", "feed", "deal"]
    elif kind == "edges":
        sizes, widths = st.integers(LARGE - 1, LARGE + 2), st.sampled_from((2, 2, 8))
        frames += [_edge(draw(sizes), draw(widths), masked) for _ in range(3)] + draw(lawful)
    elif kind == "items":
        frames += [Frame(item(index)) for index in draw(st.lists(st.integers(0, 5), min_size=2, max_size=8))]
        frames += draw(lawful)
    elif kind == "odd" and frames:
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(frames) - 1))
            frames[at] = replace(frames[at], **draw(st.sampled_from(ODD)))
        frames += [Frame(delta("behind"))]
    elif kind == "nested":
        # what looks like a frame and is the content of one
        nested = [Frame(Frame(delta("nested")).encode(), draw(st.sampled_from((BINARY, PING, PING)))) for _ in range(3)]
        frames = [*nested, *frames, *nested]
    elif kind == "lawless":
        frames += [*draw(st.sampled_from(list(LAWLESS.values()))), Frame(delta("behind")), *draw(lawful)]
    elif kind == "broken":
        tail = draw(st.one_of(st.sampled_from(list(BROKEN.values())), st.binary(max_size=300)))
    if masked:
        frames = [replace(frame, mask=b"" if frame.mask else MASKS[at % len(MASKS)]) for at, frame in enumerate(frames)]
    if kind in ("odd", "lawless", "broken") or draw(st.integers(0, 3)):
        # who has ended before it began is a case of its own
        steps = ["begin", *steps]
    else:
        steps.insert(draw(st.integers(0, len(steps))), "begin")
    data = encoded(frames) + tail
    starts = boundaries(frames)
    if kind == "nested":
        starts += [place.body for place in layout(data) if place.body - place.start < 10]
        starts.sort()
    if draw(st.booleans()):
        # whole frames; nothing is left in front of the next chunk but what may not be dealt with
        where = [start for start in starts if 0 < start < len(data) and draw(st.booleans())]
    else:
        where = draw(cuts(data, starts))
    return Story(
        frames,
        data,
        [len(chunk) for chunk in cut(data, where)],
        steps,
        draw(st.lists(st.sampled_from(REACTIONS), min_size=8, max_size=30)),
        draw(st.lists(st.sampled_from((*[""] * 6, "go", "shut", "unready", "ready")), max_size=10)),
        draw(st.integers(0, 3)) == 0,
        draw(st.sampled_from(("", "", "eof", "lost"))),
    )


def tell(kind: type[Tap], story: Story, *, masked: bool = False) -> None:
    """Live through a story and hold the tap to all it promises."""
    scene, coming = Scene(kind, story.data, masked=masked), deque(story.chunks)
    scene.eager = story.eager
    scene.reactions, scene.at_rest = deque(story.reactions), deque(story.at_rest)
    for step in story.steps:
        if step != "feed":
            scene.do(step)
        elif coming and scene.wire.reading:
            scene.feed(coming.popleft())
            assert scene.waits_rightly(), "something waits without a reason"
        scene.look()
    if story.end:
        scene.end(story.end)
        for step in ("deal", "ready", "open", "go", "deal", "shut"):
            scene.do(step)
        return
    _go_on(scene, coming)
    assert not coming or scene.wire.closing, "the peer is never read again"
    assert scene.waits_rightly(), f"{scene.waiting} bytes stayed behind"
    scene.end("lost")
    assert scene.gone == scene.fed


def _go_on(scene: Scene, coming: deque[int]) -> None:
    """From here on everything is dealt with as it comes."""
    scene.reactions.clear()
    scene.at_rest.clear()
    for step in ("begin", "ready", "open"):
        scene.do(step)
    busy = True
    while busy:
        busy = scene.deal()
        scene.look()
        if coming and scene.wire.reading:
            scene.feed(coming.popleft())
            assert scene.waits_rightly(), "something waits without a reason"
            scene.look()
            busy = True


def told(kind: type[Tap], profile: settings, *, masked: bool = False) -> None:
    """Look for a story that a tap of this kind does not live up to."""

    @profile
    @given(stories(masked))
    def search(story: Story) -> None:
        tell(kind, story, masked=masked)

    search()


def scene_of(
    frames: Sequence[Frame], kind: type[Tap] = Tap, *, masked: bool = False, cut_off: int = 0, begin: bool = True
) -> Scene:
    """A scene for a test by hand, of the frames less so many bytes at their end; nothing has come yet."""
    data = encoded(frames)
    scene = Scene(kind, data[: len(data) - cut_off], masked=masked)
    if begin:
        scene.begin()
    return scene
