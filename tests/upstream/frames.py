"""Frames as a vendor might write them, right and wrong, the cuts between them, and a reader of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson
from hypothesis import strategies as st

from broker.domain import frames

PLAIN = frozenset(b"response." + kind for kind in frames.PLAIN)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@dataclass(frozen=True, slots=True, repr=False)
class Frame:
    """One frame. `width` are the bytes of the extended length: 0 means as few as will do, else 2 or 8."""

    payload: bytes = b""
    opcode: int = TEXT
    fin: bool = True
    rsv: int = 0
    mask: bytes = b""
    width: int = 0

    def __repr__(self) -> str:
        body = self.payload if len(self.payload) < 100 else self.payload[:60] + b"..%d" % len(self.payload)
        return f"Frame({body!r}, {self.opcode}, {self.fin=}, {self.rsv=}, {self.mask!r}, {self.width})"

    def encode(self) -> bytes:
        size = len(self.payload)
        width = max(self.width, 0 if size < 126 else 2 if size < 65536 else 8)
        first = self.fin << 7 | self.rsv << 4 | self.opcode
        short = {0: size, 2: 126, 8: 127}[width] | (0x80 if self.mask else 0)
        length = size.to_bytes(width, "big") if width else b""
        return bytes((first, short)) + length + self.mask + _masked(self.payload, self.mask)

    @property
    def ends_message(self) -> bool:
        """Whether a reader has a message of data when it has this frame."""
        return self.fin and self.opcode < CLOSE

    @property
    def plain(self) -> bool:
        """Whether it is output that may pass as it is, by the words of the passage's own rules."""
        kind = self.payload.split(b'"', 4)[3:4] if self.payload.startswith(b'{"type":"response.') else []
        whole = (self.fin, self.opcode, self.rsv, self.mask) == (True, TEXT, 0, b"")
        return whole and bool(kind) and kind[0] in PLAIN and self.payload.count(b'"', 0, 80) >= 4


def _masked(payload: bytes, mask: bytes) -> bytes:
    if not mask or not payload:
        return payload
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def encoded(frames: Sequence[Frame]) -> bytes:
    return b"".join(frame.encode() for frame in frames)


def read(data: bytes | bytearray) -> tuple[list[Frame], bytes]:
    """The whole frames at the beginning of `data`, and what is left."""
    frames, at = [], 0
    while (found := _read_one(bytes(data[at : at + 14]))) is not None:
        frame, header, size = found
        if len(data) < at + header + size:
            break
        raw = bytes(data[at + header : at + header + size])
        frames.append(replace(frame, payload=_masked(raw, frame.mask)))
        at += header + size
    return frames, bytes(data[at:])


def _read_one(head: bytes) -> tuple[Frame, int, int] | None:
    if len(head) < 2:
        return None
    size = head[1] & 0x7F
    width = {126: 2, 127: 8}.get(size, 0)
    header = 2 + width + (4 if head[1] & 0x80 else 0)
    if len(head) < header:
        return None
    size = int.from_bytes(head[2 : 2 + width], "big") if width else size
    mask = head[header - 4 : header] if head[1] & 0x80 else b""
    return Frame(b"", head[0] & 15, bool(head[0] & 0x80), head[0] >> 4 & 7, mask, width), header, size


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame is whose length is known: of `data[start:end]` the payload is from `body` on."""

    frame: Frame
    start: int
    body: int
    end: int


def layout(data: bytes) -> list[Place]:
    """Where the frames of a stream are; the last one may reach beyond the end."""
    found, at = list[Place](), 0
    while (one := _read_one(data[at : at + 14]) or _read_one_but_its_mask(data[at : at + 14])) is not None:
        frame, header, size = one
        frame = replace(frame, payload=_masked(data[at + header : at + header + size], frame.mask))
        found.append(Place(frame, at, at + header, at + header + size))
        at += header + size
    return found


def _read_one_but_its_mask(head: bytes) -> tuple[Frame, int, int] | None:
    wide = len(head) >= 2 and head[1] & 0x80 and len(head) >= 2 + {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
    return _read_one(head + bytes(4)) if wide else None


def messages(frames: Sequence[Frame]) -> list[bytes]:
    """The payloads of text messages, put together where they came in fragments."""
    found, parts = [], b""
    for frame in frames:
        if frame.opcode in (TEXT, CONTINUATION):
            parts += frame.payload
            if frame.fin:
                found.append(parts)
                parts = b""
    return found


# --- events -----------------------------------------------------------------------------------------------------------


def event(kind: str, **fields: object) -> bytes:
    return orjson.dumps({"type": kind, **fields})


def delta(text: str = "x", **fields: object) -> bytes:
    return event("response.output_text.delta", delta=text, **fields)


def item(index: int, **fields: object) -> bytes:
    content = {"type": "message", "id": f"msg_{index}", "role": "assistant", "content": []}
    return event("response.output_item.done", output_index=index, item=content, **fields)


PLAIN_KINDS = sorted(kind.decode() for kind in PLAIN if kind != b"response.output_item.done")
OPEN_KINDS = (
    "response.image_generation_call.partial_image",
    "response.output_text.delta.later",
    "response.",
    "response.output_item",
    "codex.novelty",
    "x" * 100,
)
NOTICES = ("response.in_progress", "response.metadata", "codex.rate_limits", "responsesapi.websocket_timing")
ASIDES = ("response.steer.pending", "response.inject.created", "response.inject.failed")
SIZES = (100, 125, 126, 127, 65_535, 65_536, 70_000, 300_000)

_texts = st.one_of(
    st.text(max_size=30), st.sampled_from(('"', '"type":"response.completed"', "\x00", "\u2028", '{"stream_id":"b"}'))
)
_plain_payloads = st.one_of(
    _texts.map(delta),
    st.builds(lambda kind, text: event(kind, text=text), st.sampled_from(PLAIN_KINDS), _texts),
    st.integers(0, 5).map(item),
    st.sampled_from(SIZES).map(lambda size: delta("x" * (size - len(delta(""))))),
)
_open_payloads = st.one_of(
    st.builds(lambda kind, text: event(kind, text=text), st.sampled_from(OPEN_KINDS), _texts),
    st.sampled_from(NOTICES).map(event),
    st.sampled_from(ASIDES).map(event),
    st.sampled_from(SIZES).map(lambda size: event("response.novelty", text="x" * (size - 38))),
    _texts.map(lambda text: b' { "type" : "response.output_text.delta", "delta" : ' + orjson.dumps(text) + b"}"),
    _texts.map(lambda text: orjson.dumps({"delta": text, "type": "response.output_text.delta"})),
    st.integers(0, 5).map(lambda index: orjson.dumps({"output_index": index, "type": "response.output_item.done"})),
)
_strange_payloads = st.sampled_from(
    (
        b'{"type":"response.output_text.delta","delta":"\xff\xfe\xc0"}',
        b'{"type":"response.output_text.delta"',
        b'{"type":"response.refusal.done" and no JSON behind it',
        b'{"type":"response.novelty\xff","delta":""}',
    )
)
payloads = st.one_of(_plain_payloads, _plain_payloads, _plain_payloads, _open_payloads, _strange_payloads)

_control = st.builds(Frame, st.binary(max_size=125), st.sampled_from((PING, PING, PONG)))
_whole = st.builds(
    Frame,
    payloads,
    width=st.sampled_from((0, 0, 0, 0, 2, 8)),
    mask=st.sampled_from((b"", b"", b"", b"", b"", b"\x01\x02\x03\x04")),
)


@st.composite
def _fragmented(draw: st.DrawFn) -> list[Frame]:
    payload = draw(payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
    parts = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    frames: list[Frame] = []
    for at, part in enumerate(parts):
        frames.append(Frame(part, TEXT if at == 0 else CONTINUATION, fin=at == len(parts) - 1))
        if at < len(parts) - 1:
            frames += draw(st.lists(_control, max_size=1))
    return frames


_single = st.one_of(_whole, _whole, _whole, _control).map(lambda frame: [frame])
_run = st.lists(st.builds(Frame, _texts.map(delta)), min_size=1, max_size=12)
lawful = st.lists(st.one_of(_single, _single, _run, _fragmented()), max_size=10).map(
    lambda groups: [frame for group in groups for frame in group]
)
"""Frames that any upstream may send while a turn is running, and that do not end it."""

LAWLESS: dict[str, list[Frame]] = {
    "compressed without having asked": [Frame(delta(), rsv=4)],
    "a reserved bit": [Frame(delta(), rsv=2)],
    "a reserved bit on a fragment": [Frame(delta(), rsv=1, fin=False)],
    "a reserved opcode": [Frame(delta(), 3)],
    "a reserved control opcode": [Frame(b"x", 11)],
    "binary": [Frame(delta(), BINARY)],
    "an empty text": [Frame(b"")],
    "no JSON": [Frame(b"this is not JSON")],
    "an item that is none": [Frame(b'{"type":"response.output_item.done","item":')],
    "an item with a strange index": [Frame(event("response.output_item.done", output_index="first", item={}))],
    "a fragmented ping": [Frame(b"x", PING, fin=False)],
    "a ping that is too long": [Frame(b"x" * 126, PING)],
    "a continuation of nothing": [Frame(delta(), CONTINUATION)],
    "a second text in a fragmented one": [Frame(b'{"type":', fin=False), Frame(event("response.novelty"))],
    "half a close": [Frame(b"\x03", CLOSE)],
    "a close code that is none": [Frame((1005).to_bytes(2, "big"), CLOSE)],
    "a close that is no UTF-8": [Frame(b"\x03\xe8\xff", CLOSE)],
    "a close": [Frame((1011).to_bytes(2, "big") + b"sorry", CLOSE)],
    "an orderly close": [Frame((1000).to_bytes(2, "big"), CLOSE)],
    "a close without a word": [Frame(b"", CLOSE)],
}
"""Frames that end a socket, by name; closes among them."""

BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "half a header": b"\x81",
    "half a length": b"\x81\x7e\x01",
    "half a frame": Frame(delta("y" * 200)).encode()[:100],
    "half a large frame": Frame(delta("y" * 200_000)).encode()[:70_000],
    "a length beyond all bounds": b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff" + delta(),
    "a length beyond what is taken": b"\x81\x7f" + (64 << 20).to_bytes(8, "big") + delta(),
    "half a masked header": b"\x81\xfe\x01\x00\x01\x02",
}
"""Bytes behind which the socket ends."""


# --- cuts -------------------------------------------------------------------------------------------------------------


@st.composite
def cuts(draw: st.DrawFn, data: bytes, boundaries: Sequence[int]) -> list[int]:
    """Where to cut `data`: nowhere, everywhere in a stretch, at random, or within headers."""
    size = len(data)
    if size < 2:
        return []
    how = draw(st.sampled_from(("whole", "random", "headers", "bytes")))
    if how == "whole":
        return []
    if how == "bytes":
        start = 0 if size <= 160 else draw(st.sampled_from(boundaries))
        return list(range(max(1, start - 4), min(size, start + 160)))
    if how == "random":
        return sorted(draw(st.sets(st.integers(1, size - 1), max_size=12)))
    near = st.builds(lambda at, off: at + off, st.sampled_from(boundaries), st.integers(-1, 11))
    return sorted(at for at in draw(st.sets(near, max_size=12)) if 0 < at < size)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    return [part for start, end in zip([0, *at], [*at, len(data)], strict=True) if (part := data[start:end])]


def boundaries(frames: Sequence[Frame]) -> list[int]:
    """Where frames begin, and where the last one ends."""
    found = [0]
    for frame in frames:
        found.append(found[-1] + len(frame.encode()))
    return found
