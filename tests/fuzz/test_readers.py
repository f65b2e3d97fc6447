"""Whatever comes is read or refused, as documented, and in time that grows with its size alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.readers import READERS, SEEDS

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=120)
every_reader = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)

# --- what resembles the wire: its words, in any order, with any values, cut and spoilt ---

WORDS = [
    *("type", "response", "input", "model", "conversation", "id", "stream_id", "generate", "stream", "background"),
    *("previous_response_id", "client_metadata", "x-codex-turn-state", "headers", "item", "output_index", "output"),
    *("error", "code", "message", "status", "status_code", "detail", "body", "param", "resets_at", "retry-after"),
    *("resets_in_seconds", "tools", "prompt", "file_id", "container", "encrypted_content", "vector_store_ids"),
    *("rate_limits", "primary", "used_percent", "reset_at", "file_ids", "prompt_cache_key", "store", "error_type"),
]
VALUES = [
    *("response.create", "response.completed", "response.failed", "error", "response.output_item.done", "compaction"),
    *("codex.rate_limits", "item_reference", "invalid_api_key", "rate_limit_exceeded", "model_not_found", "tokens"),
    *("try again in 1m2s", "encrypted content could not be", "Request too large: tokens per min", "\\ud800", "\x00"),
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(VALUES)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=16,
)
documents = st.builds(
    lambda value, escaped: json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass"),
    st.dictionaries(st.sampled_from(WORDS), values, max_size=8) | values,
    st.booleans(),
)
HEAD = st.sampled_from(
    [b"", b"\x81retry-after: 7\n\n", b"\x68x-request-id: \xff\nretry-after: soon\n\n", b"\xffa: b\n\n"]
)
spoilt = st.builds(
    lambda head, raw, at, instead: head + raw[: at % (len(raw) + 1)] + instead + raw[at % (len(raw) + 1) + 1 :],
    HEAD,
    documents,
    st.integers(0, 400),
    st.binary(max_size=3),
)


@every_reader
@fixed
@given(st.builds(bytes.__add__, HEAD, documents))
def test_reads_or_refuses_any_document(read: Callable[[bytes], None], data: bytes) -> None:
    read(data)


@every_reader
@fixed
@given(spoilt)
def test_reads_or_refuses_what_was_spoilt(read: Callable[[bytes], None], data: bytes) -> None:
    read(data)


@every_reader
@fixed
@given(st.binary(max_size=120))
def test_reads_or_refuses_any_bytes(read: Callable[[bytes], None], data: bytes) -> None:
    read(data)


@every_reader
def test_reads_or_refuses_its_own_kind_cut_anywhere(read: Callable[[bytes], None]) -> None:
    for seed in SEEDS[read.__name__]:
        for at in range(len(seed) + 1):
            read(seed[:at])
            read(seed[:at] + seed[at + 1 :])
            read(seed[:at] + b"\xff" + seed[at:])


def nested(depth: int) -> list[bytes]:
    """Documents of every kind, with something deep within."""
    deep = b"[" * depth + b"]" * depth
    maps = b'{"error":' * depth + b"{}" + b"}" * depth
    return [
        shape % inner
        for inner in (deep, maps)
        for shape in (
            b"%b",
            b'{"type":"response.create","input":%b,"x":"file_id","file_id":"compaction"}',
            b'{"type":"response.create","client_metadata":%b,"x-codex-turn-state":1}',
            b'{"type":"response.create","generate":0,"response":{"conversation":%b,"input":[]}}',
            b'{"conversation":%b,"stream_id":"x"}',
            b'{"type":"response.completed","response":{"output":%b,"id":"x"},"stream_id":"s"}',
            b'{"type":"response.created","response":{"headers":{"x-codex-turn-state":%b}}}',
            b'{"type":"error","error":{"code":"invalid_value","param":%b}}',
            b'\x81a: b\n\n{"error":{"code":"invalid_value","param":%b}}',
            b'{"output":[{"encrypted_content":%b}]}',
        )
    ]


@every_reader
@pytest.mark.parametrize("depth", [200, 300, 990, 1000, 1010, 1020, 1030, 5000])
def test_reads_or_refuses_whatever_is_deep(read: Callable[[bytes], None], depth: int) -> None:
    for data in nested(depth):
        read(data)


# --- time ---

GROWING: dict[str, Callable[[int], bytes]] = {
    "an array": lambda size: b'{"type":"x","input":[' + b"1," * (size // 2) + b"1]}",
    "a map": lambda size: b"{" + b",".join(b'"k%d":0' % n for n in range(size // 9)) + b"}",
    "one key again and again": lambda size: b"{" + b'"input":0,' * (size // 10) + b'"type":"response.create"}',
    "items": lambda size: b'{"input":[' + b'{"type":"compaction","encrypted_content":"x"},' * (size // 46) + b"0]}",
    "words that bind": lambda size: b'{"input":"' + b'\\"file_id\\" ' * (size // 12) + b'","file_id":7}',
    "token after token": lambda size: b'{"client_metadata":{' + b'"x-codex-turn-state":0,' * (size // 23) + b'"a":1}}',
    "escapes": lambda size: b'{"type":"error","error":{"message":"' + b"\\u0041" * (size // 6) + b'"}}',
    "ciphertext": lambda size: b'{"error":{"message":"' + b"encrypted content " * (size // 18) + b'"}}',
    "a large request": lambda size: b'{"error":{"message":"' + b"request too large " * (size // 18) + b'"}}',
    "a response": lambda size: b'{"error":{"message":"' + b"response with id " * (size // 17) + b'"}}',
    "waits": lambda size: b'{"error":{"message":"' + b"try again in 1m " * (size // 16) + b'"}}',
    "digits": lambda size: b'{"error":{"message":"try again in ' + b"9" * size + b'"}}',
    "digits in a header": lambda size: b"\x81x-ratelimit-reset-tokens: " + b"9" * size + b"\n\n{}",
    "spans in a header": lambda size: b"x-ratelimit-reset-tokens: " + b"1m" * (size // 2) + b"\n\n{}",
    "what a connection names": lambda size: b"connection: " + b"x-codex-a, " * (size // 11) + b"\nx-codex-a: b",
    "many headers": lambda size: b"\n".join(b"x-codex-%d: v" % n for n in range(size // 14)),
    "white space": lambda size: b'{"type"' + b" " * size + b':"error"}',
    "empty lines": lambda size: b"\x0f" + b"\n" * size,
    "carriage returns": lambda size: b"\x0fdata: " + b"\r\n " * (size // 3),
    "lines of data": lambda size: b"\x0f" + b"data: x\n" * (size // 8),
    "events": lambda size: b"\x0f" + b"data: x\n\n" * (size // 9),
    "one open string": lambda size: b'{"type":"' + b"x" * size,
    "braces": lambda size: b"{" * size,
    "words of a prefix": lambda size: b'{"type":"' * (size // 9),
}
SIZE = 128 * 1024
PER_KIB = 0.01


def seconds(read: Callable[[bytes], None], data: bytes) -> float:
    """The best of three, of this process's own time."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        read(data)
        taken.append(time.process_time() - began)
    return min(taken)


@every_reader
@pytest.mark.parametrize("kind", GROWING)
def test_takes_time_that_grows_with_the_size_alone(read: Callable[[bytes], None], kind: str) -> None:
    once = seconds(read, GROWING[kind](SIZE))
    assert once < PER_KIB * SIZE / 1024
    if once > 0.02:
        # what takes no time at all cannot be compared; what is quadratic takes four times as long
        assert seconds(read, GROWING[kind](2 * SIZE)) < 3.2 * once + 0.02
