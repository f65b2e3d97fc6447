"""The wire: frames keep their bytes, and no word inside a string is taken for a key."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.frames import BINDING as WORDS_THAT_BIND
from broker.domain.wire import (
    COMPACTION,
    CONVERSATION,
    MAX_MODEL,
    BadFrame,
    EventKind,
    Garbage,
    as_body,
    as_frame,
    binds,
    check_fields,
    compaction_name,
    done_item,
    error_event,
    event_kind,
    event_lane,
    event_type,
    fields,
    flatten,
    input_items,
    items_bind,
    join,
    made,
    owned,
    read_client_body,
    read_client_frame,
    response_of,
    rewrite,
    streaming,
    warms_up,
    whole_response,
    with_lane,
    with_status,
    without,
)

fixed = settings(derandomize=True, deadline=None, database=None, max_examples=60)

DEPTH = 10_000
DEEP = b"[" * DEPTH + b"]" * DEPTH

# --- values as a client might write them: every one is valid JSON, few would survive being parsed and written again ---

ODD = [
    b"1.0",
    b"-0.0",
    b"1e400",
    b"1E+2",
    b"0.1000",
    b"123456789012345678901234567890",
    b"9" * 400,
    b'"\\u00e9\\/\\ud83d\\ude00"',
    b'"\xc3\xa9"',
    b'"\\"stream_id\\": \\"x\\""',
    b"{ }",
    b"[ ]",
    b'{"b":1,"a":2,"b":3}',
    b'[1 ,\t2,\n{"z" : null}]',
    b"true",
    b"null",
]
RESERVED = {"type", "input", "model", "previous_response_id", "response"}
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda key: key not in RESERVED)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
written = json_values.map(lambda value: _surrogates_aside(json.dumps(value))) | st.sampled_from(ODD)
objects = st.dictionaries(keys, written, max_size=6)


def _surrogates_aside(text: str) -> bytes:
    # half of a pair is no text; a whole pair is
    try:
        json.loads(text).__repr__().encode()
    except UnicodeEncodeError:
        return b'"half"'
    return text.encode()


def frame_of(parts: dict[str, bytes], space: bytes = b"") -> bytes:
    """A frame as a client writes it, with white space where JSON allows it."""
    pairs = (json.dumps(key).encode() + space + b":" + space + value for key, value in parts.items())
    return b"{" + space + (space + b"," + space).join(pairs) + space + b"}"


def raw_fields(frame: bytes) -> dict[str, bytes]:
    return {key: bytes(value) for key, value in fields(frame).items()}


spaces = st.sampled_from([b"", b" ", b"\n\t "])


@fixed
@given(objects, spaces, st.booleans(), st.booleans(), st.booleans())
def test_a_rewrite_keeps_the_bytes_of_all_it_was_not_told_to_change(
    parts: dict[str, bytes], space: bytes, input: bool, drop: bool, model: bool
) -> None:
    original = {"type": b'"response.create"', "previous_response_id": b'"resp_1"', **parts, "input": b'[ "x" ]'}
    raw = frame_of(original, space)
    again = rewrite(raw, input=b"[1.0]" if input else None, drop_previous=drop, model="m\u00e9" if model else None)
    expected = dict(original)
    if drop:
        del expected["previous_response_id"]
    if input:
        expected["input"] = b"[1.0]"
    if model:
        expected["model"] = orjson.dumps("m\u00e9")
    assert raw_fields(again) == expected
    assert list(fields(again)) == list(expected)
    if not (input or drop or model):
        assert again is raw


@fixed
@given(objects, objects, spaces)
def test_flattening_keeps_all_bytes_and_the_fields_beside_win(
    inner: dict[str, bytes], outer: dict[str, bytes], space: bytes
) -> None:
    nested = {"input": b'"hi"', **inner}
    raw = frame_of({**outer, "type": b'"response.create"', "response": frame_of(nested, space)}, space)
    flat = raw_fields(flatten(raw))
    assert flat == {"type": b'"response.create"', **nested, **outer}
    assert next(iter(flat)) == "type"


@fixed
@given(objects, spaces)
def test_a_flat_frame_is_never_rewritten_by_reading_it(parts: dict[str, bytes], space: bytes) -> None:
    raw = frame_of({"type": b'"response.create"', **parts}, space)
    for name in ("stream_id", "model", "store", "generate"):
        parts.pop(name, None)
    try:
        frame, again = read_client_frame(raw)
    except BadFrame as refused:
        assert refused.code == "invalid_type"
    else:
        assert again is raw
        assert frame.type == "response.create"


def test_of_duplicate_keys_the_last_wins_with_its_own_bytes() -> None:
    raw = b'{"type":"response.create","a":1.0,"b":2,"a":3.00}'
    assert rewrite(raw, model="m") == b'{"type":"response.create","a":3.00,"b":2,"model":"m"}'


def test_an_unchanged_frame_comes_back_as_the_very_bytes() -> None:
    raw = b'{ "type" : "response.create", "x":1e400 }'
    assert rewrite(raw) is raw
    assert read_client_frame(raw)[1] is raw


@pytest.mark.parametrize("value", ODD)
def test_odd_values_survive(value: bytes) -> None:
    raw = b'{"type":"response.create","odd":%b,"input":"x"}' % value
    assert raw_fields(rewrite(raw, input=b"[]"))["odd"] == value
    assert join(fields(raw)) == raw


def test_lays_a_nested_create_flat() -> None:
    raw = b'{"type":"response.create","stream_id":"s","response": {"model":"m","input":"x","store":false}}'
    frame, flat = read_client_frame(raw)
    assert flat == b'{"type":"response.create","model":"m","input":"x","store":false,"stream_id":"s"}'
    assert (frame.model, frame.store, frame.stream_id, bytes(frame.input)) == ("m", False, "s", b'"x"')


def test_leaves_other_frames_nested() -> None:
    raw = b'{"type":"response.steer","response":{"model":"m"}}'
    assert read_client_frame(raw)[1] is raw


def test_reads_the_fields_it_acts_on_and_takes_null_for_absence() -> None:
    frame, _ = read_client_frame(b'{"type":"response.create","previous_response_id":null,"model":null,"store":null}')
    assert (frame.previous_response_id, frame.model, frame.store) == (None, None, None)
    assert bytes(frame.conversation) == b"null"


BAD = [b"", b"{", b"nul", b'"text"', b"[]", b"7", b"null", b'{"type":"x"}{', b"\xff\xfe", b'{"a":NaN}', b"{'a':1}"]


@pytest.mark.parametrize("raw", [*BAD, DEEP, b'{"type":"response.create","x":' + DEEP + b"}"])
def test_refuses_what_is_no_json_object(raw: bytes) -> None:
    with pytest.raises(BadFrame) as refused:
        read_client_frame(raw)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("field", "value"), [("type", b"7"), ("stream_id", b"1"), ("model", b"[]"), ("store", b'"no"')]
)
def test_names_the_field_whose_type_is_wrong(field: str, value: bytes) -> None:
    with pytest.raises(BadFrame) as refused:
        read_client_frame(b'{"%b":%b}' % (field.encode(), value))
    assert (refused.value.code, refused.value.param) == ("invalid_type", field)


@fixed
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_comes_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(BadFrame):
        read_client_frame(raw)
    with contextlib.suppress(Garbage):
        event_kind(raw)
    assert event_lane(raw) is None


# --- bodies over HTTP, and frames made of them ---

OTHER_WAY = {"type", "stream_id", "generate", "stream", "stream_options", "background"}
requests = st.dictionaries(
    keys.filter(lambda key: key not in OTHER_WAY) | st.sampled_from(["model", "input"]), written, max_size=6
)
beside = st.dictionaries(st.sampled_from(sorted(OTHER_WAY)), st.sampled_from([b"true", b"null", b'"x"', b"{}"]))


def read_body(raw: bytes) -> tuple[str | None, tuple[str, ...]]:
    body = read_client_body(raw)
    binding = binds(raw, body)
    return binding, owned(body, binding)


@fixed
@given(requests, beside, spaces)
def test_a_body_becomes_a_create_and_keeps_the_bytes_of_all_else(
    parts: dict[str, bytes], more: dict[str, bytes], space: bytes
) -> None:
    frame = raw_fields(as_frame(frame_of({**more, **parts}, space)))
    assert frame == {"type": b'"response.create"', **parts}
    assert list(frame) == ["type", *parts]


@fixed
@given(requests, beside, spaces)
def test_a_create_becomes_a_body_that_asks_for_a_stream(
    parts: dict[str, bytes], more: dict[str, bytes], space: bytes
) -> None:
    more = {**more, "type": b'"response.create"'}
    body, generates = as_body(frame_of({**more, **parts}, space))
    assert raw_fields(body) == {**parts, "stream": b"true"}
    assert list(fields(body)) == [*parts, "stream"]
    assert generates


def test_a_warm_up_becomes_a_body_and_is_told_to_be_one() -> None:
    assert as_body(b'{"type":"response.create","generate": false ,"a":1.0}') == (b'{"a":1.0,"stream":true}', False)
    assert as_body(b'{"type":"response.create","generate":null}')[1]


@pytest.mark.parametrize("name", ["stream_id", "generate"])
def test_refuses_in_a_body_what_only_a_frame_may_hold(name: str) -> None:
    with pytest.raises(BadFrame) as refused:
        check_fields(b'{"input":"x","%b": null}' % name.encode())
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", name)
    text = json.dumps({"input": f'say "{name}": "x"', "metadata": {name: "x"}, "input_of": [name]})
    check_fields(text.encode())


def test_a_body_smuggles_nothing_into_a_frame_however_it_is_spelled() -> None:
    raw = rb'{"t\u0079pe":"response.steer","stream\u005fid":"other","gener\u0061te":false,"a":1.0}'
    assert as_frame(raw) == b'{"type":"response.create","a":1.0}'


@fixed
@given(objects, spaces, st.sets(st.sampled_from(["stream", "background", "stream_id"])))
def test_leaves_out_the_fields_it_was_told_to_and_no_byte_more(
    parts: dict[str, bytes], space: bytes, names: set[str]
) -> None:
    original = {"stream": b"1.0", "stream_id": b'"s"', **parts, "last": b'"background"'}
    raw = frame_of(original, space)
    assert raw_fields(without(raw, *names)) == {name: v for name, v in original.items() if name not in names}
    if not names & set(original):
        assert without(raw, *names) is raw


def test_a_frame_that_only_speaks_of_a_field_comes_back_as_the_very_bytes() -> None:
    raw = b'{ "input":"the \\"stream_id\\"", "metadata":{"stream_id":"x"} }'
    assert without(raw, "stream_id") is raw


@pytest.mark.parametrize(
    ("raw", "warms"),
    [
        (b'{"generate":false}', True),
        (b'{"x":1, "generate" :\tfalse }', True),
        (b'{"generate":true}', False),
        (b'{"generate":null}', False),
        (b'{"generate":"false"}', False),
        (b'{"metadata":{"generate":false}}', False),
        (b'{"input":"generate"}', False),
        (b"{}", False),
    ],
)
def test_knows_a_warm_up(raw: bytes, warms: bool) -> None:
    assert warms_up(raw) is warms


@fixed
@given(objects, spaces)
def test_asking_for_a_stream_keeps_all_bytes(parts: dict[str, bytes], space: bytes) -> None:
    assert raw_fields(streaming(frame_of({"stream": b"false", **parts}, space))) == {**parts, "stream": b"true"}


def test_reads_the_fields_of_a_body_and_takes_null_for_absence() -> None:
    names = ("model", "previous_response_id", "store", "stream", "background", "prompt_cache_key")
    for raw in (b"{}", b"{%b}" % b",".join(b'"%b":null' % name.encode() for name in names)):
        assert [getattr(read_client_body(raw), name) for name in names] == [None] * 6
    told = read_client_body(b'{"store":false,"stream":true,"background":false,"prompt_cache_key":"k","unknown":1e400}')
    assert (told.store, told.stream, told.background, told.prompt_cache_key) == (False, True, False, "k")


@pytest.mark.parametrize("raw", [*BAD, DEEP, b'{"x":' + DEEP + b"}"])
def test_refuses_a_body_that_is_no_json_object(raw: bytes) -> None:
    with pytest.raises(BadFrame) as refused:
        read_client_body(raw)
    assert refused.value.code == "invalid_json"
    assert "body" in refused.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", b"7"), ("store", b'"no"'), ("stream", b"1"), ("background", b"{}"), ("prompt_cache_key", b"[]")],
)
def test_names_the_field_of_a_body_whose_type_is_wrong(field: str, value: bytes) -> None:
    with pytest.raises(BadFrame) as refused:
        read_client_body(b'{"%b":%b}' % (field.encode(), value))
    assert (refused.value.code, refused.value.param) == ("invalid_type", field)


@pytest.mark.parametrize("read", [read_client_body, read_client_frame])
def test_a_name_of_a_model_is_bounded(read: Any) -> None:
    read(b'{"model":"%b"}' % (b"m" * MAX_MODEL))
    with pytest.raises(BadFrame) as refused:
        read(b'{"model":"%b"}' % (b"m" * (MAX_MODEL + 1)))
    assert refused.value.param == "model"


# --- what has an owner ---

CIPHER = compaction_name("gAAA")
ODD_INPUTS: list[Any] = ["compaction", 7, 1.5, True, None, {}, []]


@pytest.mark.parametrize(
    ("asked", "binding", "names"),
    [
        ({"conversation": "conv_1"}, CONVERSATION, ("conv_1",)),
        ({"conversation": {"id": "conv_1"}}, CONVERSATION, ("conv_1",)),
        ({"conversation": {"id": 7}}, CONVERSATION, ()),
        ({"conversation": {}}, CONVERSATION, ()),
        ({"conversation": ""}, CONVERSATION, ()),
        ({"conversation": 7}, CONVERSATION, ()),
        ({"conversation": True}, CONVERSATION, ()),
        ({"conversation": ["conv_1"]}, CONVERSATION, ()),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAA"}]}, COMPACTION, (CIPHER,)),
        ({"input": [{"type": "compaction_summary", "encrypted_content": "gAAA", "id": "x"}]}, COMPACTION, (CIPHER,)),
        ({"input": [{"type": "compaction", "encrypted_content": 7}]}, COMPACTION, ()),
        ({"input": [{"type": "compaction", "encrypted_content": ["gAAA"]}]}, COMPACTION, ()),
        (
            {"input": [7, None, "compaction", {"type": "compaction", "encrypted_content": "gAAA"}]},
            COMPACTION,
            (CIPHER,),
        ),
        ({"input": {"type": "compaction", "encrypted_content": "gAAA"}}, COMPACTION, ()),
        *(
            ({"input": odd, "tools": [{"type": "compaction", "encrypted_content": "gAAA"}]}, COMPACTION, ())
            for odd in ODD_INPUTS
        ),
        ({"input": [{"type": "input_file", "file_id": "f"}]}, "a file id", ()),
        ({"input": "compaction"}, None, ()),
        ({"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]}, None, ()),
        ({"conversation": None, "input": 5}, None, ()),
    ],
)
def test_knows_what_has_an_owner_and_survives_every_wrong_type(
    asked: dict[str, Any], binding: str | None, names: tuple[str, ...]
) -> None:
    assert read_body(orjson.dumps(asked)) == (binding, names)
    raw = create(**{"input": None, **asked})
    frame = read_client_frame(raw)[0]
    assert (binds(raw, frame), owned(frame, binding)) == (binding, names)


def test_every_compaction_item_is_named_in_its_order() -> None:
    items = [{"type": "compaction", "encrypted_content": each} for each in ("one", "two")]
    assert read_body(orjson.dumps({"input": items}))[1] == (compaction_name("one"), compaction_name("two"))


@fixed
@given(st.sampled_from(["conversation", "input", "tools", "prompt"]), json_values, st.sampled_from(["compaction", "x"]))
def test_no_type_of_a_value_breaks_what_looks_for_owners(name: str, value: object, kind: str) -> None:
    item = {"type": kind, "encrypted_content": value, "content": [value]}
    for held in (value, [value], [item], item):
        raw = _surrogates_aside(json.dumps({name: held}))
        if raw != b'"half"':
            with contextlib.suppress(BadFrame):
                read_body(raw)


def test_the_name_of_a_compaction_item_does_not_give_away_what_it_holds() -> None:
    assert compaction_name("gAAA") != compaction_name("gAAB")
    assert "gAAA" not in CIPHER
    assert len(compaction_name("x" * 1_000_000)) == len(CIPHER) == 36


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"object": "conversation", "id": "conv_1"}, ("conv_1",)),
        ({"object": "conversation", "id": 7}, ()),
        ({"object": "response.compaction", "output": [{"type": "compaction", "encrypted_content": "gAAA"}]}, (CIPHER,)),
        ({"output": [7, None, {"encrypted_content": 7}, {}]}, ()),
        ({"output": {"encrypted_content": "gAAA"}}, ()),
        ({"output": "gAAA"}, ()),
        ({"output": 7}, ()),
        ({"id": "conv_1"}, ()),
        ([], ()),
        ("conversation", ()),
        (None, ()),
    ],
)
def test_knows_what_an_answer_has_made(body: object, names: tuple[str, ...]) -> None:
    assert made(orjson.dumps(body)) == names


# --- upstream events ---

KINDS = [
    ("response.created", EventKind.ANNOUNCEMENT),
    ("response.in_progress", EventKind.ANNOUNCEMENT),
    ("response.queued", EventKind.ANNOUNCEMENT),
    ("codex.rate_limits", EventKind.ANNOUNCEMENT),
    ("response.output_text.delta", EventKind.OUTPUT),
    ("response.output_item.added", EventKind.OUTPUT),
    ("response.output_item.done", EventKind.ITEM),
    ("response.compaction.compacting", EventKind.OUTPUT),
    ("never.heard.of", EventKind.OUTPUT),
    ("", EventKind.OUTPUT),
    ("response.completed", EventKind.TERMINAL),
    ("response.incomplete", EventKind.TERMINAL),
    ("response.done", EventKind.TERMINAL),
    ("response.failed", EventKind.FAILURE),
    ("response.error", EventKind.FAILURE),
    ("error", EventKind.FAILURE),
    ("response.steer.accepted", EventKind.ASIDE),
    ("response.steer.pending", EventKind.ASIDE),
    ("response.inject.failed", EventKind.ASIDE),
]
SHAPES = [b'{"type":"%b","x":1}', b'{ "type" : "%b" }', b'{"x":{"type":"error"},"type":"%b"}', b' {"type":"%b"}']


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("type", "kind"), KINDS)
def test_knows_an_event_wherever_its_type_stands(type: str, kind: EventKind, shape: bytes) -> None:
    raw = shape % type.encode()
    assert (event_type(raw), event_kind(raw)) == (type, kind)


def test_reads_a_long_type_whole() -> None:
    name = "response." + "x" * 200
    assert event_type(b'{"type":"%b"}' % name.encode()) == name


@pytest.mark.parametrize("raw", [b"", b"[]", b"[DONE]", b"7", b'{"type":7}', b'{"x":1', b"\xff", b" " + DEEP])
def test_takes_what_is_no_event_for_garbage(raw: bytes) -> None:
    with pytest.raises(Garbage):
        event_kind(raw)


@pytest.mark.parametrize(
    ("raw", "lane"),
    [
        (b'{"type":"x","stream_id":"s"}', "s"),
        (b'{"stream_id" : "s", "type":"x"}', "s"),
        (b'{"type":"x"}', None),
        (b'{"type":"x","stream_id":null}', None),
        (b'{"type":"x","delta":"say \\"stream_id\\":\\"evil\\""}', None),
        (b'{"type":"x","delta":"\\\\\\"stream_id\\":\\"evil\\"","stream_id":"s"}', "s"),
        (b'{"type":"x","item":{"stream_id":"inner"}}', None),
        (b'{"type":"x","delta":"stream_id"}', None),
        (b'{"type":"x","delta":["stream_id"]}', None),
    ],
)
def test_finds_the_lane_in_the_key_alone(raw: bytes, lane: str | None) -> None:
    assert event_lane(raw) == lane


@fixed
@given(st.text(max_size=30), st.text(max_size=30))
def test_no_text_is_taken_for_a_lane(before: str, after: str) -> None:
    text = f'{before}"stream_id":"evil"{after}'
    event = {"type": "response.output_text.delta", "delta": text}
    for raw in (json.dumps(event).encode(), json.dumps(event, ensure_ascii=False).encode("utf-8", "replace")):
        assert event_lane(raw) is None


def test_cuts_the_item_out_as_the_bytes_it_is() -> None:
    item = b'{"id":"m", "n":1.0,"t":"\\u00e9"}'
    raw = b'{"type":"response.output_item.done","output_index":3,"item":%b}' % item
    assert done_item(raw) == (3, item)


def test_cuts_id_and_output_out_of_a_response() -> None:
    raw = b'{"type":"response.completed","response":{"id":"resp_1","output":[ {"n":1.0} ],"status":null}}'
    assert response_of(raw) == ("resp_1", b'[ {"n":1.0} ]')
    assert response_of(b'{"type":"error"}') == ("", b"null")


@pytest.mark.parametrize("read", [done_item, response_of])
@pytest.mark.parametrize("body", [b"7", b'"x"', b"["], ids=["number", "text", "broken"])
def test_takes_what_cannot_be_read_for_garbage(read: Any, body: bytes) -> None:
    with pytest.raises(Garbage):
        read(b'{"output_index":"no","response":%b,"item":%b}' % (body, body))


@pytest.mark.parametrize("read", [done_item, response_of])
def test_takes_what_is_nested_too_deeply_for_garbage(read: Any) -> None:
    with pytest.raises(Garbage):
        read(b'{"item":%b,"response":{"output":%b}}' % (DEEP, DEEP))


def test_a_deep_event_has_no_lane() -> None:
    assert event_lane(b'{"type":"x","item":%b,"stream_id":"s"}' % DEEP) is None


ITEMS = b'[{"n":1.0}]'


@pytest.mark.parametrize(
    ("response", "outputs", "whole"),
    [
        (b'{"id":"r", "output":[ {"n":2.0} ]}', ITEMS, None),
        (b'{"id":"r", "output":[ {"n":2.0} ]}', b"[]", None),
        (b'{"id":"r", "output":[]}', b"[]", None),
        (b'{"id":"r", "x":1.0}', b"[]", None),
        (b'{"id":"r", "output":[],"x":{"a" : 1.00}}', ITEMS, b'{"id":"r","output":[{"n":1.0}],"x":{"a" : 1.00}}'),
        (b'{"id":"r", "output":null}', ITEMS, b'{"id":"r","output":[{"n":1.0}]}'),
        (b'{"id":"r"}', ITEMS, b'{"id":"r","output":[{"n":1.0}]}'),
        (b"{}", ITEMS, b'{"output":[{"n":1.0}]}'),
    ],
)
def test_takes_the_whole_response_out_of_its_end(response: bytes, outputs: bytes, whole: bytes | None) -> None:
    raw = b'{"type":"response.completed","response": %b ,"x":1}' % response
    assert whole_response(raw, outputs) == (response if whole is None else whole)


@pytest.mark.parametrize("outputs", [b"[]", ITEMS])
@pytest.mark.parametrize(
    "raw", [b'{"type":"response.done"}', b'{"response":null}', b'{"response":7}', b'{"response":[]}', b"[]", b"", DEEP]
)
def test_an_end_without_a_response_is_garbage(raw: bytes, outputs: bytes) -> None:
    with pytest.raises(Garbage):
        whole_response(raw, outputs)


def test_names_the_lane_of_an_event_that_names_none() -> None:
    assert with_lane(b'{"type":"x", "n":1.0}', "s") == b'{"type":"x","n":1.0,"stream_id":"s"}'
    named = b'{"type":"x", "stream_id":"t"}'
    assert with_lane(named, "s") is named
    for raw in (b'{"type":"x","\xff":1}', b'{"type":"x","item":%b}' % DEEP, b'{"type":"x",'):
        with pytest.raises(Garbage):
            with_lane(raw, "s")


def test_an_error_that_cannot_be_cut_keeps_its_bytes() -> None:
    raw = b'{"type":"error","error":%b}' % DEEP
    assert with_status(raw, 400) is raw


# --- what binds a turn to a boundary ---


def why(raw: bytes) -> str | None:
    return binds(raw, read_client_frame(raw)[0])


def create(input: object = None, **more: object) -> bytes:
    return orjson.dumps({"type": "response.create", "input": input, **more})


BINDING: list[tuple[str, bytes, str]] = [
    ("conversation", create("x", conversation="conv_1"), "a conversation"),
    ("conversation object", create("x", conversation={"id": "conv_1"}), "a conversation"),
    ("prompt", create("x", prompt={"id": "pmpt_1"}), "a stored prompt"),
    ("item reference", create([{"type": "item_reference", "id": "msg_1"}]), "an item reference"),
    ("file", create([{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]), "a file id"),
    ("container", create("x", tools=[{"type": "code_interpreter", "container": "cntr_1"}]), "a container"),
    (
        "files of a container",
        create("x", tools=[{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f"]}}]),
        "a file id",
    ),
    ("container of a call", create([{"type": "code_interpreter_call", "container_id": "c"}]), "a container"),
    ("vector store", create("x", tools=[{"type": "file_search", "vector_store_ids": ["v"]}]), "a vector store"),
    ("compaction", create([{"type": "compaction", "encrypted_content": "g"}]), "a compaction item"),
    ("compaction summary", create([{"type": "compaction_summary", "encrypted_content": "g"}]), "a compaction item"),
]


@pytest.mark.parametrize(("raw", "reason"), [pytest.param(raw, r, id=name) for name, raw, r in BINDING])
def test_binds(raw: bytes, reason: str) -> None:
    assert why(raw) == reason


@pytest.mark.parametrize(("raw", "reason"), [pytest.param(raw, r, id=name) for name, raw, r in BINDING])
@pytest.mark.parametrize("at", [0, -1])
def test_binds_however_the_word_is_spelled(raw: bytes, reason: str, at: int) -> None:
    spelled = raw
    for word in WORDS_THAT_BIND:
        letter = b"\\u%04x" % word[at]
        other = letter + word[1:] if at == 0 else word[:-1] + letter
        spelled = spelled.replace(b'"%b"' % word, b'"%b"' % other)
    assert spelled != raw or reason == CONVERSATION
    assert why(spelled) == reason
    items = read_client_frame(spelled)[0].input
    assert items_bind(bytes(items)) == items_bind(bytes(read_client_frame(raw)[0].input))


FREE = [
    ("nothing", create("x")),
    ("null conversation", create("x", conversation=None)),
    ("null prompt", create("x", prompt=None)),
    ("words in text", create('say "file_id":"f" and "prompt":{"id":1} and "item_reference"')),
    ("words in a tool output", create([{"type": "function_call_output", "output": '{"file_id":"f","container":"c"}'}])),
    (
        "a schema",
        create("x", tools=[{"type": "function", "parameters": {"properties": {"file_id": {"type": "string"}}}}]),
    ),
    ("required of a schema", create("x", tools=[{"type": "function", "parameters": {"required": ["file_id"]}}])),
    ("no files", create("x", tools=[{"type": "code_interpreter", "container": {"type": "auto", "file_ids": []}}])),
    ("an empty compaction", create([{"type": "compaction"}])),
    ("a file with its content", create([{"type": "input_file", "file_id": None, "file_data": "data:"}])),
    ("metadata", create("x", metadata={"file_id": "f"})),
]


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in FREE])
def test_does_not_bind(raw: bytes) -> None:
    assert why(raw) is None


@fixed
@given(st.sampled_from(["file_id", "container", "item_reference", "prompt", "conversation", "compaction"]), json_values)
def test_no_word_inside_a_string_binds(word: str, value: object) -> None:
    text = json.dumps({word: "x", "type": word, "v": value})
    assert why(json.dumps({"type": "response.create", "input": text, "instructions": text}).encode()) is None


def test_finds_what_binds_however_deep() -> None:
    node: object = {"file_id": "f"}
    for _ in range(200):
        node = {"content": [node]}
    assert why(json.dumps({"type": "response.create", "input": [node]}).encode()) == "a file id"


@pytest.mark.parametrize("odd", [b"1e400", b"9" * 400, b"[" * 1010 + b"]" * 1010], ids=["float", "int", "deep"])
def test_refuses_what_can_be_cut_but_not_parsed(odd: bytes) -> None:
    raw = b'{"type":"response.create","input":[],"file_id":%b}' % odd
    try:
        assert why(raw) is None
    except BadFrame as refused:
        assert refused.code == "invalid_json"


def test_items_bind_like_frames() -> None:
    assert items_bind(b'[{"type":"item_reference","id":"x"}]') == "an item reference"
    assert items_bind(b'[{"type":"message","content":"\\"file_id\\":\\"x\\""}]') is None


# --- input as an array ---


@pytest.mark.parametrize(
    ("raw", "items"),
    [
        (b"null", b"[]"),
        (b"[]", b"[]"),
        (b" [1.0] ", b"[1.0]"),
        (
            b'"h\\u00e9"',
            b'[{"type":"message","role":"user","content":[{"type":"input_text","text":"h\\u00e9"}]}]',
        ),
        (b'""', b'[{"type":"message","role":"user","content":[{"type":"input_text","text":""}]}]'),
    ],
)
def test_makes_items_of_an_input(raw: bytes, items: bytes) -> None:
    assert input_items(raw) == items


# --- errors on the wire ---


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"type":"error","status":429,"error":{}}', None),
        (b'{"type":"error","error":{"x":1.0}}', b'{"type":"error","error":{"x":1.0},"status":400}'),
        (b'{"type":"error","status":null,"e":1}', b'{"type":"error","status":400,"e":1}'),
        (b'{"type":"error","status":"429"}', b'{"type":"error","status":400}'),
        (b'{"type":"error","status_code":429,"e":1}', b'{"type":"error","e":1,"status":400}'),
    ],
)
def test_gives_an_error_a_numeric_status(raw: bytes, expected: bytes | None) -> None:
    assert with_status(raw, 400) == (raw if expected is None else expected)
    if expected is None:
        assert with_status(raw, 400) is raw


def test_writes_an_error_in_the_vendors_shape() -> None:
    raw = error_event(429, "c", "m", type="t", stream_id="s", headers={"retry-after": "1"}, extra={"resets_at": 5})
    assert json.loads(raw) == {
        "type": "error",
        "status": 429,
        "stream_id": "s",
        "error": {"type": "t", "code": "c", "message": "m", "param": None, "resets_at": 5},
        "headers": {"retry-after": "1"},
    }
    assert "stream_id" not in msgspec.json.decode(error_event(400, "c", "m", type="t"))
