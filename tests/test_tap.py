"""The tap by itself, between doubles that only write down: nothing is lost, split, overtaken or stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from broker.tap import LARGE, WAITING, Take, Tap, tappable, unmasked, write_masked
from tests.taps import MASKS, PLANTED, SETTINGS, Scene, Wire, scene_of, told
from tests.upstream.frames import CLOSE, PING, Frame, delta, encoded, event, read

PEERS = pytest.mark.parametrize("of_client", [False, True], ids=["unmasked", "masked"])


@PEERS
def test_keeps_its_promises_in_every_story(of_client: bool) -> None:
    told(Tap, SETTINGS, masked=of_client)


# --- planted bugs -----------------------------------------------------------------------------------------------------


class ForgetsTheFragments(Tap):
    def _hand_over(self, data: bytes, at: int) -> int:
        reached = super()._hand_over(data, at)
        self._fragments = False
        return reached


class LosesTheRestOfAFrame(Tap):
    def _hand_over(self, data: bytes, at: int) -> int:
        reached = super()._hand_over(data, at)
        self._left = 0
        return reached


class ForgetsMessages(Tap):
    def _advance(self, data: bytes, at: int) -> int:
        self._under_way = 0
        return super()._advance(data, at)


class CountsPings(Tap):
    def _hand_over(self, data: bytes, at: int) -> int:
        reached = super()._hand_over(data, at)
        self._under_way += reached > at and data[at] == 0x89
        return reached


class ForgetsFragmentedMessages(Tap):
    def _hand_over(self, data: bytes, at: int) -> int:
        before = self._under_way
        reached = super()._hand_over(data, at)
        if data[at] == 0x80:
            self._under_way = before
        return reached


class StaysBehind(Tap):
    def taken(self) -> None:
        self._under_way -= 1


class IgnoresReady(Tap):
    def begin(
        self, take: Take, ready: Callable[[], bool] | None = None, rest: Callable[[], None] | None = None
    ) -> None:
        super().begin(take, None, rest)


class AsksReadyOnce(Tap):
    def go(self) -> None:
        ready = self._ready
        answer = ready()
        self._ready = lambda: answer
        super().go()
        self._ready = ready


class TakesHalves(Tap):
    def _advance(self, data: bytes, at: int) -> int:
        return super()._advance(data + bytes(-len(data) % 64), at)


class HandsOverAll(Tap):
    def _hand_over(self, data: bytes, at: int) -> int:
        self._inner.data_received(data[at:])
        return len(data)


class HandsOverLargeOnesOnly(Tap):
    def _advance(self, data: bytes, at: int) -> int:
        reached = super()._advance(data, at)
        if reached == at and not self._under_way and self._ready() and not self._left and len(data) - at > 100:
            return self._hand_over(data, at)
        return reached


class UnmasksFromTheWrongByte(Tap):
    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        assert self._take is not None
        shifted = data[start - 3 : start] + data[start - 4 : start - 3]
        self._take(unmasked(shifted + data[start:end], 4, 4 + end - start))
        return end


class ForgetsTheMask(Tap):
    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        assert self._take is not None
        self._take(data[start:end])
        return end


class TakesFromAnybody(Tap):
    def _advance(self, data: bytes, at: int) -> int:
        kept = self._masked
        if len(data) > at + 1 and not self._left:
            self._masked = data[at + 1] & 0x80
        reached = super()._advance(data, at)
        self._masked = kept
        return reached


class MixesUpLengths(Tap):
    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        return super()._message(data, at, start + (6 if data[at + 1] & 0x7F == 127 else 0), end)


class TakesCompressed(Tap):
    def _advance(self, data: bytes, at: int) -> int:
        plain = not self._left and data[at] & 0x8F == 0x81
        return super()._advance(data[:at] + b"\x81" + data[at + 1 :] if plain else data, at)


class TakesBinary(Tap):
    def _advance(self, data: bytes, at: int) -> int:
        binary = not self._left and data[at] == 0x82
        return super()._advance(data[:at] + b"\x81" + data[at + 1 :] if binary else data, at)


class TakesAnySize(Tap):
    def begin(
        self, take: Take, ready: Callable[[], bool] | None = None, rest: Callable[[], None] | None = None
    ) -> None:
        super().begin(take, ready, rest)
        self._largest += 1


class TakesBehindAClose(Tap):
    def _finish(self) -> None:
        pass


class TakesBehindABreach(Tap):
    def _hand_over(self, data: bytes, at: int) -> int:
        take = self._take
        reached = super()._hand_over(data, at)
        if data[at] not in (0x88, 0x08):
            self._take = take
        return reached


class NeverFull(Tap):
    def _mind(self, full: bool) -> None:
        self._full = full


class AlwaysFull(Tap):
    def _mind(self, full: bool) -> None:
        self._full = full
        if full:
            self.transport.pause_reading()


class ResumesWhileClosing(Tap):
    def _mind(self, full: bool) -> None:
        self._full = full
        (self.transport.pause_reading if full else self.transport.resume_reading)()


class PausesForEver(Tap):
    def taken(self) -> None:
        full, self._full = self._full, False
        super().taken()
        if not self._waiting:
            self._full = full


class KeepsTheLastBack(Tap):
    def _flush(self) -> None:
        self._finish()


class FlushesTooLate(Tap):
    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._flush()

    def eof_received(self) -> bool | None:
        answer = self._inner.eof_received()
        self._flush()
        return answer


class TakesTheLast(Tap):
    def _flush(self) -> None:
        self._ready = lambda: True
        self.go()
        super()._flush()


class LosesTheTail(Tap):
    def data_received(self, data: bytes) -> None:
        self._waiting = data
        self.go()


class DoublesAtACut(Tap):
    def data_received(self, data: bytes) -> None:
        super().data_received(self._waiting + data)


class DropsPongs(Tap):
    def _hand_over(self, data: bytes, at: int) -> int:
        end = at + 2 + len(data[at + 2 : at + 2 + (data[at + 1] & 0x7F)]) if len(data) > at + 1 else at
        return end if data[at] == 0x8A else super()._hand_over(data, at)


class NeverRests(Tap):
    def begin(
        self, take: Take, ready: Callable[[], bool] | None = None, rest: Callable[[], None] | None = None
    ) -> None:
        super().begin(take, ready)


class RestsTooEarly(Tap):
    def _message(self, data: bytes, at: int, start: int, end: int) -> int:
        reached = super()._message(data, at, start, end)
        self._rest()
        return reached


class GoesInCircles(Tap):
    def go(self) -> None:
        self._going = False
        super().go()


class TellsNobodyOfTheEnd(Tap):
    def connection_lost(self, exc: Exception | None) -> None:
        self._flush()
        self._inner.connection_lost(exc)


class TellsNobodyWhoIsBehind(Tap):
    def pause_writing(self) -> None:
        self._inner.pause_writing()


class KeepsWritingToItself(Tap):
    def resume_writing(self) -> None:
        if self.on_behind is not None:
            self.on_behind(False)


FOR_BOTH: tuple[type[Tap], ...] = (
    ForgetsTheFragments,
    LosesTheRestOfAFrame,
    ForgetsMessages,
    CountsPings,
    ForgetsFragmentedMessages,
    StaysBehind,
    IgnoresReady,
    AsksReadyOnce,
    TakesHalves,
    HandsOverAll,
    HandsOverLargeOnesOnly,
    TakesFromAnybody,
    MixesUpLengths,
    TakesCompressed,
    TakesBinary,
    TakesAnySize,
    TakesBehindAClose,
    TakesBehindABreach,
    NeverFull,
    AlwaysFull,
    ResumesWhileClosing,
    PausesForEver,
    KeepsTheLastBack,
    FlushesTooLate,
    TakesTheLast,
    LosesTheTail,
    DoublesAtACut,
    DropsPongs,
    NeverRests,
    RestsTooEarly,
    GoesInCircles,
    TellsNobodyOfTheEnd,
    TellsNobodyWhoIsBehind,
    KeepsWritingToItself,
)
FOR_CLIENTS: tuple[type[Tap], ...] = (UnmasksFromTheWrongByte, ForgetsTheMask)


@pytest.mark.parametrize(
    ("kind", "of_client"),
    # each bug once, on either kind of peer by turns; those of masks where there are masks
    [*((kind, at % 2 == 0) for at, kind in enumerate(FOR_BOTH)), *((kind, True) for kind in FOR_CLIENTS)],
    ids=lambda value: value.__name__ if isinstance(value, type) else "masked" if value else "unmasked",
)
def test_notices_a_planted_bug(kind: type[Tap], of_client: bool) -> None:
    with pytest.raises(AssertionError):
        told(kind, PLANTED, masked=of_client)


# --- by hand ----------------------------------------------------------------------------------------------------------


def of(frames: list[Frame], of_client: bool) -> list[Frame]:
    """The frames as this kind of peer sends them."""
    return [replace(frame, mask=MASKS[0]) for frame in frames] if of_client else frames


@PEERS
def test_keeps_nothing_back_when_the_peer_sends_no_more(of_client: bool) -> None:
    for end in ("eof", "lost"):
        for now in ("ready", "unready"):
            scene = scene_of(of([Frame(delta()), Frame(b"{}"), Frame(delta("half"))], of_client), masked=of_client)
            scene.data = scene.data[:-3]
            scene.do(now)
            scene.feed(len(scene.data))
            taken = [] if now == "unready" else [delta(), b"{}"]
            assert scene.taken == taken
            scene.end(end)
            assert read(b"".join(scene.inner))[0] == ([] if taken else [*read(scene.data)[0]])


@PEERS
@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("largest", [1000, LARGE, 10 * LARGE])
def test_a_frame_over_the_largest_size_goes_the_ordinary_way_at_once(of_client: bool, largest: int, over: int) -> None:
    bound = min(largest, LARGE)
    header = len(Frame(b"x" * (bound - 14), mask=MASKS[0] if of_client else b"").encode()) - (bound - 14)
    frames = of([Frame(b"x" * (bound - header + over))], of_client)
    data = encoded(frames)
    assert len(data) == bound + over
    scene = Scene(Tap, data, masked=of_client, largest=largest)
    scene.begin()
    scene.feed(500)
    assert scene.inner == ([data[:500]] if over else [])
    scene.feed(len(data))
    assert b"".join(scene.inner) == (data if over else b"")
    assert scene.taken == ([] if over else [frames[0].payload])


@PEERS
def test_nothing_is_taken_in_the_midst_of_a_fragmented_message(of_client: bool) -> None:
    frames = of([Frame(b'{"a":', fin=False), Frame(b"", PING), Frame(b"1}", 0), Frame(b"{}")], of_client)
    scene = scene_of(frames, masked=of_client)
    scene.feed(len(scene.data))
    assert scene.inner == [frame.encode() for frame in frames[:3]]
    assert not scene.taken
    scene.deal()
    assert scene.taken == [b"{}"]


@PEERS
def test_takes_nothing_behind_a_close_that_comes_with_it(of_client: bool) -> None:
    frames = of([Frame(b"{}"), Frame(b"\x03\xe8", CLOSE), Frame(b"{}")], of_client)
    scene = scene_of(frames, masked=of_client)
    scene.feed(len(scene.data))
    assert scene.taken == [b"{}"]
    assert scene.inner == [frame.encode() for frame in frames[1:]]


@PEERS
def test_takes_nothing_when_a_close_came_before_it_began(of_client: bool) -> None:
    frames = of([Frame(b"\x03\xe8", CLOSE), Frame(b"{}")], of_client)
    scene = scene_of(frames, masked=of_client, begin=False)
    scene.feed(len(frames[0].encode()))
    scene.begin()
    scene.feed(len(scene.data))
    assert not scene.taken and b"".join(scene.inner) == scene.data


@PEERS
def test_is_not_read_while_too_much_waits(of_client: bool) -> None:
    scene = scene_of(of([Frame(b"x" * 50_000)] * 12, of_client), masked=of_client)
    scene.ready = False
    while scene.wire.reading:
        scene.feed(10_000)
    assert WAITING < scene.waiting <= WAITING + 10_000 and not scene.taken
    scene.do("ready")
    assert scene.wire.reading and len(scene.taken) == scene.fed // 50_000
    scene.feed(len(scene.data))
    assert len(scene.taken) == 12


def test_does_not_resume_a_transport_that_closes() -> None:
    scene = scene_of([Frame(b"x" * 50_000)] * 12)
    scene.ready = False
    scene.feed(len(scene.data))
    assert not scene.wire.reading
    scene.wire.closing = True
    scene.do("ready")
    assert not scene.wire.reading


def test_hands_everything_over_before_it_begins_and_waits_for_what_it_has_handed_over() -> None:
    frames = [Frame(b"one"), Frame(b"two"), Frame(b"three")]
    scene = scene_of(frames, begin=False)
    scene.feed(sum(len(frame.encode()) for frame in frames[:2]))
    assert scene.inner == [frame.encode() for frame in frames[:2]]
    scene.begin()
    scene.feed(len(scene.data))
    assert scene.deal() and not scene.taken
    assert scene.deal() and scene.taken == [b"three"]


def test_a_taker_that_fails_loses_nothing_behind_it() -> None:
    """A bug of ours costs a socket, which hears of it by its transport, and no order."""
    scene = scene_of([Frame(b"one"), Frame(b"two"), Frame(b"three")], begin=False)
    taken: list[bytes] = []

    def take(raw: bytes) -> None:
        taken.append(raw)
        if raw == b"two" and taken.count(raw) == 1:
            raise RuntimeError

    scene.tap.begin(take)
    with pytest.raises(RuntimeError):
        scene.feed(len(scene.data))
    assert taken == [b"one", b"two"]
    scene.tap.go()
    assert taken == [b"one", b"two", b"three"]


def test_gives_the_transport_back() -> None:
    class Held(Wire):
        held: object = None

        def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
            self.held = protocol

    wire, inner = Held(), asyncio.Protocol()
    Tap(wire, inner, masked=True).remove()
    assert wire.held is inner


def test_taps_only_where_nothing_has_come_with_the_handshake() -> None:
    class Inner(asyncio.Protocol):
        tail = b""

    inner = Inner()
    assert tappable(Wire(), inner, "tail")
    assert not tappable(None, inner, "tail")
    assert not tappable(Wire(), inner, "another")
    assert not tappable(Wire(), asyncio.BaseProtocol(), "tail")
    inner.tail = b"\x81"
    assert not tappable(Wire(), inner, "tail")


class Written(Wire):
    """A transport that keeps what is written to it, as it is at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


def masked(payload: bytes) -> bytes:
    wire = Written()
    write_masked(wire, payload)
    return wire.written


@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 126, 127, 65_535, 65_536, 65_537, 100_000])
def test_masks_so_that_a_reader_finds_the_same_text(size: int) -> None:
    payload = bytes(at * 7 % 251 for at in range(size))
    (frame,), rest = read(masked(payload))
    assert not rest and len(frame.mask) == 4
    assert frame == Frame(payload, mask=frame.mask, width=frame.width)
    assert frame.encode() == replace(frame, width=0).encode()
    assert unmasked(frame.encode(), len(frame.encode()) - size, len(frame.encode())) == payload


def test_masks_by_chance() -> None:
    assert len({masked(b"the same") for _ in range(20)}) > 1


def test_a_client_of_another_kind_is_not_taken_from() -> None:
    for of_client in (False, True):
        scene = scene_of(of([Frame(event("response.created"))], not of_client), masked=of_client)
        scene.feed(len(scene.data))
        assert not scene.taken and b"".join(scene.inner) == scene.data


@PEERS
def test_stays_unread_although_aiohttp_goes_on_reading(of_client: bool) -> None:
    scene = scene_of(of([Frame(b"x" * 50_000)] * 40, of_client), masked=of_client)
    scene.ready = False
    while scene.wire.reading:
        scene.feed(10_000)
    scene.wire.resume_reading()  # its queue has drained, and it does not know what waits here
    scene.feed(10_000)
    assert not scene.wire.reading
