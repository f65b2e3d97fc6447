"""The passage by itself, between doubles that only write down: nothing is lost, split, overtaken or stuck.

What it has in common with any tap is held to in tests/test_tap.py; here output may pass.
"""

from __future__ import annotations

import pytest

from broker.tap import LARGE, Tap
from broker.upstream.passage import NoteItem, Passage, Write
from tests.taps import PLANTED, SETTINGS, UNREADABLE, Scene, scene_of, told
from tests.upstream.frames import CLOSE, PING, Frame, delta, encoded, event, item, layout, read


def test_keeps_its_promises_in_every_story() -> None:
    told(Passage, SETTINGS)


# --- planted bugs -----------------------------------------------------------------------------------------------------


class NeverShuts(Passage):
    def shut(self) -> None:
        pass


class NeverOpens(Passage):
    def open(self, direct: Write, write: Write, note_item: NoteItem) -> None:
        pass


class OpensBehindTheEnd(Passage):
    def open(self, direct: Write, write: Write, note_item: NoteItem) -> None:
        self._direct, self._write, self._note_item = direct, write, note_item


class StaysOpenBehindTheEnd(Passage):
    def _finish(self) -> None:
        Tap._finish(self)


class PassesAnything(Passage):
    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        if self._write is None:
            return super()._message(data, at, start, end)
        self._write(data[at:end])
        return end


class PassesHalves(Passage):
    def data_received(self, data: bytes) -> None:
        direct = self._direct
        if direct is not None and not (self._waiting or self._left or self._under_way or self._fragments):
            direct(data)
        else:
            super().data_received(data)


class PassesTheFirstRunOnly(Passage):
    def data_received(self, data: bytes) -> None:
        if self._direct is not None:
            write, direct = self._write, self._direct
            self._write = None
            super().data_received(data)
            if self._direct is direct:
                self._write = write
        else:
            super().data_received(data)


class Forgetful(Passage):
    """Passes at the beginning of a chunk although something named by `forgets` speaks against it."""

    forgets = ""

    def data_received(self, data: bytes) -> None:
        kept = getattr(self, self.forgets)
        direct, note_item = self._direct, self._note_item
        others = {"_waiting", "_left", "_under_way", "_fragments"} - {self.forgets}
        if kept and direct is not None and not any(getattr(self, name) for name in others):
            frames = read(data)[0]
            if frames and frames[0].plain and all(map(note_item, [frames[0].payload] if b"item.done" in data else [])):
                end = layout(data)[0].end
                direct(data[:end])
                data = data[end:]
        if data:
            super().data_received(data)


class PassesWhileAMessageIsUnderWay(Forgetful):
    forgets = "_under_way"


class PassesInAFragmentedMessage(Forgetful):
    forgets = "_fragments"


class PassesInsideAFrame(Forgetful):
    forgets = "_left"


class Overtakes(Forgetful):
    forgets = "_waiting"


class OvertakesWhatCameWithIt(Passage):
    def open(self, direct: Write, write: Write, note_item: NoteItem) -> None:
        super().open(direct, direct, note_item)


class NotesNothing(Passage):
    def open(self, direct: Write, write: Write, note_item: NoteItem) -> None:
        super().open(direct, write, lambda raw: UNREADABLE not in raw)


class NotesTwice(Passage):
    def open(self, direct: Write, write: Write, note_item: NoteItem) -> None:
        super().open(direct, write, lambda raw: note_item(raw) and note_item(raw))


class NotesTheLastFirst(Passage):
    def _noted(self, data: bytes, items: list[tuple[int, int, int]], end: int) -> int:
        return super()._noted(data, items[::-1], end)


class NotesBehindOneThatCannotBeRead(Passage):
    def _noted(self, data: bytes, items: list[tuple[int, int, int]], end: int) -> int:
        said = [self._note_item(data[start:ends]) for _, start, ends in items]
        return next((item[0] for item, readable in zip(items, said, strict=True) if not readable), end)


class IgnoresWhatNotesSay(Passage):
    def _noted(self, data: bytes, items: list[tuple[int, int, int]], end: int) -> int:
        super()._noted(data, items, end)
        return end


class PassesTwice(Passage):
    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        super()._message(data, at, start, end)
        return end


class LosesWhatIsBehindARun(Passage):
    def open(self, direct: Write, write: Write, note_item: NoteItem) -> None:
        super().open(lambda data: direct(data[: layout(bytes(data))[0].end]), write, note_item)


class GoesOnThoughShutByAWrite(Passage):
    def data_received(self, data: bytes) -> None:
        direct, write, note_item = self._direct, self._write, self._note_item
        super().data_received(data[:200])
        self._direct, self._write, self._note_item = direct, write, note_item
        if data[200:]:
            super().data_received(data[200:])


BUGS: tuple[type[Passage], ...] = (
    NeverShuts,
    NeverOpens,
    OpensBehindTheEnd,
    StaysOpenBehindTheEnd,
    PassesAnything,
    PassesHalves,
    PassesTheFirstRunOnly,
    PassesWhileAMessageIsUnderWay,
    PassesInAFragmentedMessage,
    PassesInsideAFrame,
    Overtakes,
    OvertakesWhatCameWithIt,
    NotesNothing,
    NotesTwice,
    NotesTheLastFirst,
    NotesBehindOneThatCannotBeRead,
    IgnoresWhatNotesSay,
    PassesTwice,
    LosesWhatIsBehindARun,
    GoesOnThoughShutByAWrite,
)


@pytest.mark.parametrize("kind", BUGS, ids=lambda kind: kind.__name__)
def test_notices_a_planted_bug(kind: type[Passage]) -> None:
    with pytest.raises(AssertionError):
        told(kind, PLANTED)


# --- by hand ----------------------------------------------------------------------------------------------------------


def opened(frames: list[Frame], cut_off: int = 0) -> Scene:
    scene = scene_of(frames, Passage, cut_off=cut_off)
    scene.do("open")
    return scene


def test_keeps_nothing_back_when_the_peer_sends_no_more() -> None:
    for end in ("eof", "lost"):
        scene = opened([Frame(event("response.created")), Frame(delta()), Frame(item(0)), Frame(delta("half"))], 3)
        scene.feed(len(scene.data))
        assert scene.taken == [event("response.created")]
        assert scene.passed == [encoded([Frame(delta()), Frame(item(0))])]
        scene.end(end)
        assert b"".join(scene.inner) == Frame(delta("half")).encode()[:-3]


def test_a_run_goes_out_in_one_write_as_the_very_object_that_came() -> None:
    scene = opened([Frame(delta(str(n))) for n in range(50)])
    chunk = scene.data
    scene.feed(len(chunk))
    assert scene.passed == [chunk]


def test_a_run_behind_a_message_goes_out_in_one_write() -> None:
    behind = [Frame(delta(str(n))) for n in range(50)]
    scene = opened([Frame(event("response.novelty")), *behind, Frame(event("response.novelty"))])
    scene.feed(len(scene.data))
    assert scene.passed == [encoded(behind)] and len(scene.taken) == 2


def test_says_that_something_has_passed() -> None:
    for frames in ([Frame(delta())], [Frame(event("response.novelty")), Frame(delta())]):
        scene = opened([*frames, Frame(event("response.novelty"))])
        assert isinstance(scene.tap, Passage) and not scene.tap.passed
        scene.feed(len(scene.data))
        assert scene.tap.passed
        scene.tap.passed = False
        scene.tap.go()
        assert not scene.tap.passed


def test_says_nothing_of_what_was_taken() -> None:
    scene = scene_of([Frame(delta())], Passage)
    scene.feed(len(scene.data))
    assert isinstance(scene.tap, Passage) and not scene.tap.passed and scene.taken


def test_a_large_frame_that_is_not_whole_goes_the_ordinary_way() -> None:
    scene = opened([Frame(delta("x" * LARGE))])
    scene.feed(1000)
    assert scene.inner == [scene.data[:1000]]
    scene.feed(len(scene.data))
    assert b"".join(scene.inner) == scene.data


def test_a_large_frame_that_is_whole_passes() -> None:
    scene = opened([Frame(delta("x" * LARGE))])
    scene.feed(len(scene.data))
    assert scene.passed == [scene.data]


def test_nothing_passes_in_the_midst_of_a_fragmented_message() -> None:
    scene = opened([Frame(b'{"type":', fin=False), Frame(delta())])
    for frame in read(scene.data)[0]:
        scene.feed(len(frame.encode()))
    assert not scene.passed and not scene.taken


def test_who_takes_a_message_may_shut_or_open_before_the_next() -> None:
    frames = [Frame(event("response.novelty")), Frame(delta("a")), Frame(event("response.novelty")), Frame(delta("b"))]
    scene = opened(frames)
    scene.reactions.extend(["shut", "", "open"])
    scene.feed(len(scene.data))
    assert scene.taken == [frames[0].payload, delta("a"), frames[2].payload]
    assert scene.passed == [frames[3].encode()]


def test_a_client_that_falls_behind_by_a_write_gets_no_more_of_the_same_chunk() -> None:
    """A transport says so from within its `write`."""
    frames = [Frame(delta("a")), Frame(event("response.novelty")), Frame(delta("b"))]
    scene = opened(frames)
    scene.reactions.append("unready")
    scene.feed(len(scene.data))
    assert scene.passed == [frames[0].encode()] and not scene.taken
    scene.do("ready")
    assert scene.taken == [frames[1].payload, frames[2].payload]


def test_an_item_that_cannot_be_read_is_taken_and_what_is_around_it_passes() -> None:
    frames = [Frame(delta("a")), Frame(item(0)), Frame(item(5)), Frame(item(1)), Frame(delta("b"))]
    for first in (0, 1, 2):
        scene = opened(frames[first:])
        scene.feed(len(scene.data))
        assert scene.taken == [item(5)]
        assert b"".join(scene.passed) == encoded(frames[first:2] + frames[3:])


def test_does_not_open_behind_a_close() -> None:
    scene = scene_of([Frame(b"\x03\xe8", CLOSE), Frame(delta())], Passage)
    scene.feed(4)
    scene.do("open")
    scene.feed(len(scene.data))
    assert not scene.passed and not scene.taken


def test_a_ping_falls_between_what_passes() -> None:
    frames = [Frame(delta("a")), Frame(b"?", PING), Frame(delta("b"))]
    scene = opened(frames)
    scene.feed(len(scene.data))
    assert scene.passed == [frames[0].encode(), frames[2].encode()] and scene.inner == [frames[1].encode()]
