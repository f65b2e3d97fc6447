"""Everything that reads what others wrote, as functions of bytes, which expect the documented exceptions and no other.

They hold their readers to more than not breaking: what is read again is what was read, and times are times. The tests
beside them feed what resembles the wire, `fuzz_wire.py` whatever reaches a new branch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

from broker.domain import errors, headers, limits, sse, warmup, wire
from broker.domain.classify import classify_answer, classify_close, classify_event, classify_handshake
from broker.domain.failure import Failure

NOW = 1_800_000_000.0
LANE = "lane"
ITEMS = b'[{"type":"message"}]'


def frame(data: bytes) -> None:
    """A client's frame, and all that is done to one before it goes up."""
    with contextlib.suppress(wire.BadFrame):
        read, flat = wire.read_client_frame(data)
        wire.owned(read, wire.binds(flat, read))
        wire.items_bind(wire.input_items(bytes(read.input)))
        bare = headers.without_turn_state(flat)
        assert wire.read_client_frame(bare)[0].model == read.model
        again = wire.rewrite(flat, input=ITEMS, drop_previous=True, model="m")
        found = wire.read_client_frame(again)[0]
        assert (found.model, found.previous_response_id, bytes(found.input)) == ("m", None, ITEMS)
        assert wire.without(flat, "stream_id").count(b"{") <= flat.count(b"{")
        body, generates = wire.as_body(flat)
        assert wire.warms_up(flat) in (False, not generates)
        assert wire.read_client_body(body).stream is True
        warmup.answer(wire.fields(flat), "resp_1", NOW)


def body(data: bytes) -> None:
    """A body over HTTP, and all that is done to one before it goes up."""
    with contextlib.suppress(wire.BadFrame):
        read = wire.read_client_body(data)
        wire.check_fields(data)
        wire.owned(read, wire.binds(data, read))
        headers.without_turn_state(data)
        assert wire.read_client_body(wire.streaming(data)).stream is True
        made = wire.fields(wire.as_frame(data))
        assert bytes(made["type"]) == b'"response.create"'
        assert not made.keys() & {"stream", "stream_options", "background", "stream_id", "generate"}


def event(data: bytes) -> None:
    """A vendor's event, and all that is done to one before it goes down."""
    lane = wire.event_lane(data)
    assert lane is None or b"stream_id" in data
    for read in (wire.event_type, wire.event_kind, wire.done_item, wire.response_of, warmup.completed_from):
        with contextlib.suppress(wire.Garbage):
            read(data)
    for outputs in (b"[]", ITEMS):
        with contextlib.suppress(wire.Garbage):
            assert wire.whole_response(data, outputs)[:1] == b"{"
    with contextlib.suppress(wire.Garbage):
        headers.without_account(data)
    limits.from_event(data, NOW)


def stream(data: bytes) -> None:
    """An event stream, in pieces of a size that its first byte names, and in one."""
    size, told = 1 + data[0] % 16 if data else 1, data[1:]
    pieces = [told[at : at + size] for at in range(0, len(told), size)]
    found = [_events(each) for each in (pieces, [told])]
    assert found[0] == found[1]
    assert sum(map(len, found[0])) <= len(told)


def _events(pieces: list[bytes]) -> list[bytes]:
    reader = sse.Reader(1 << 20)
    return [event for piece in pieces for event in reader.feed(piece)] + reader.finish()


def refusal(data: bytes) -> None:
    """A vendor's refusal: as an event, at the door, and as an answer with headers."""
    head, _, told = data.partition(b"\n\n")
    status = 300 + int.from_bytes(head[:1]) % 300
    fields = _fields(head[1:])
    found = classify_event(data, now=NOW)
    with contextlib.suppress(wire.Garbage):
        if wire.event_kind(data) is wire.EventKind.FAILURE:
            _check(found)
    _check(classify_handshake(status, fields, told, now=NOW))
    _check(classify_answer(status, fields, told, now=NOW))
    _check(classify_close(int.from_bytes(head[:2]), head.decode("latin-1")))
    limits.from_headers(fields, NOW)
    with contextlib.suppress(wire.BadFrame):
        wire.made(told)


def _check(found: Failure) -> None:
    """A failure is one that every codec can tell."""
    for time in (found.until, found.retry_after):
        assert time is None or (math.isfinite(time) and time >= 0)
    errors.unserved(found).event()
    errors.refused(found).event()
    if found.raw is not None and found.row.verbatim:
        assert wire.event_kind(errors.verbatim(found, None)) is wire.EventKind.FAILURE
        with contextlib.suppress(wire.Garbage):
            # what is nested too deeply is given no lane
            assert wire.event_lane(errors.verbatim(found, LANE)) is not None


def crossing(data: bytes) -> None:
    """Headers, both ways."""
    told = _fields(data)
    for found in (headers.up(told, websocket=True), headers.up(told, websocket=False), headers.down(told)):
        for name, value in found.items():
            assert name == name.lower()
            assert not set("\r\n\0") & set(name + value)
            assert "authorization" not in name
    limits.from_headers(told, NOW)


def _fields(data: bytes) -> Mapping[str, str]:
    """Headers as a server hands them on: bytes that are no UTF-8 stay as halves of pairs."""
    pairs = (line.partition(b":") for line in data.split(b"\n"))
    return {name.decode("latin-1"): value.strip().decode("utf-8", "surrogateescape") for name, _, value in pairs}


READERS: tuple[Callable[[bytes], None], ...] = (frame, body, event, stream, refusal, crossing)

SEEDS: dict[str, tuple[bytes, ...]] = {
    "frame": (
        b'{"type":"response.create","model":"m","input":[{"type":"compaction","encrypted_content":"g"}],"store":false}',
        b'{"type":"response.create","response":{"conversation":{"id":"c"},"input":"x"},"stream_id":"s"}',
        b'{"type":"response.create","generate":false,"client_metadata":{"x-codex-turn-state":"t"},"file_id":"f"}',
        b'{"type":"response.create","previous_response_id":null,"tools":[{"type":"compaction","encrypted_content":"x"}]}',
    ),
    "body": (
        b'{"model":"m","input":"x","stream":true,"background":false,"prompt_cache_key":"k","conversation":"c"}',
        rb'{"stream\u005fid":"s","generate":false,"input":7,"prompt":{"id":"p"},"vector_store_ids":[]}',
        b'{"input":[{"type":"item_reference","id":"i"}],"client_metadata":{"X-Codex-Turn-State":1e400}}',
    ),
    "event": (
        b'{"type":"response.output_item.done","output_index":0,"item":{"id":"m","n":1.0}}',
        b'{"type":"response.completed","response":{"id":"r","output":[],"headers":{"x-codex-turn-state":"t"}}}',
        b'{"type":"response.created","stream_id":"s","response":{"id":"r","status":"in_progress"},"headers":{}}',
        b'{"type":"codex.rate_limits","rate_limits":{"primary":{"used_percent":5,"reset_at":1800000100}}}',
    ),
    "stream": (
        b"\x03event: x\ndata: {}\n\n: quiet\r\n\r\ndata: a\rdata: b\r\rdata:",
        b"\x00data: 1\r\n\r\ndata: 2\n\n\n",
    ),
    "refusal": (
        b'\x81retry-after: 7\nx-request-id: r\n\n{"error":{"type":"tokens","code":"rate_limit_exceeded"}}',
        b'\x68x-ratelimit-reset-requests: 6m0s\n\n{"detail":{"code":"deactivated_workspace"},"status":402}',
        b'{"type":"error","status":400,"error":{"type":"invalid_request_error","code":"invalid_value"},"headers":{}}',
        b'{"type":"response.failed","response":{"error":{"code":"model_not_found","message":"try again in 1m 2s"}}}',
    ),
    "crossing": (
        b"connection: x-a, upgrade\nX-Codex-Window-Id: w\nAuthorization: Bearer s\nx-codex-primary-used-percent: 99",
        b"openai-beta: a\0b\nx-request-id: r\rs\ntraceparent: \xff\nx-codex-a: a\nX-Codex-A: b\nx-codex-\xe9: c",
        b"x-ratelimit-limit-tokens: 10\nx-ratelimit-remaining-tokens: 1\nx-ratelimit-reset-tokens: 2026-01-01T00:00:00",
    ),
}
"""What each of them is made for, to begin with."""
