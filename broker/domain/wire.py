"""The wire: what is read of a frame, what is written into one, and nothing parsed that need not be.

Frames stay the bytes they came in. Fields are cut out and put in as raw slices, so numbers, key order, escapes and
unknown fields survive a rebuild (protocol.md 7.1, 7.2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
import orjson

from broker.domain.frames import names_any

MAX_MODEL = 256
STREAM_ID = re.compile(r"[A-Za-z0-9_.\-]{1,256}")


class BadFrame(Exception):
    """A client's frame that no vendor would accept; carries the vendor's code, a message and the parameter."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class ClientFrame(msgspec.Struct, frozen=True):
    """The few fields of a client's frame that the broker acts on; all else stays in the raw bytes."""

    type: str = ""
    stream_id: str | None = None
    model: str | None = None
    previous_response_id: str | None = None
    conversation: msgspec.Raw = msgspec.Raw(b"null")
    store: bool | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")
    client_metadata: msgspec.Raw = msgspec.Raw(b"null")
    response: msgspec.Raw = msgspec.Raw(b"null")


NULL = msgspec.Raw(b"null")
_client_frame = msgspec.json.Decoder(ClientFrame)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_client_frame(raw: bytes) -> tuple[ClientFrame, bytes]:
    """The fields of a client's frame, and the flat frame itself (raises `BadFrame`).

    Some gateways nest a create's fields under `response`; such a frame is laid flat, all others come back as they are.
    """
    frame = _decode(raw)
    if frame.type == "response.create" and bytes(frame.response)[:1] == b"{":
        raw = flatten(raw)
        frame = _decode(raw)
    return frame, raw


class ClientBody(msgspec.Struct, frozen=True):
    """The same of a request's body over HTTP; of endpoints that have no such field it stays as it is here."""

    model: str | None = None
    previous_response_id: str | None = None
    conversation: msgspec.Raw = msgspec.Raw(b"null")
    store: bool | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")
    stream: bool | None = None
    background: bool | None = None
    prompt_cache_key: str | None = None


_client_body = msgspec.json.Decoder(ClientBody)
_WEBSOCKET_ONLY = ("stream_id", "generate")
HTTP_ONLY = ("stream", "stream_options", "background")


def read_client_body(raw: bytes) -> ClientBody:
    """The fields of a request's body (raises `BadFrame`)."""
    return _read(_client_body, raw, "The body")


def check_fields(raw: bytes) -> None:
    """Refuse in a body what only a WebSocket's frame may hold (protocol.md 2.2, 2.3); raises `BadFrame`."""
    if not any(b'"%b"' % name.encode() in raw for name in _WEBSOCKET_ONLY):
        return
    held = fields(raw)
    for name in _WEBSOCKET_ONLY:
        if name in held:
            raise BadFrame("unknown_parameter", f"Unknown parameter: '{name}'. It exists on a WebSocket only.", name)


def _decode(raw: bytes) -> ClientFrame:
    return _read(_client_frame, raw, "The frame")


F = TypeVar("F", ClientFrame, ClientBody)


def _read(decoder: msgspec.json.Decoder[F], raw: bytes, what: str) -> F:
    try:
        if not raw.isascii():
            raw.decode()  # raw slices are not looked into; what is no UTF-8 would end the upstream's socket
        frame = decoder.decode(raw)
        if frame.model is not None and len(frame.model) > MAX_MODEL:
            raise BadFrame("invalid_value", f"'model' is longer than {MAX_MODEL} characters.", "model")
        if frame.previous_response_id is not None and frame.conversation != NULL:
            message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Give one of them."
            raise BadFrame("mutually_exclusive_parameters", message)
        return frame
    except msgspec.ValidationError as error:
        found = re.search(r"`\$\.?([\w.\[\]]*)`", str(error))
        param = found.group(1) if found else None
        if not param:
            raise BadFrame("invalid_json", f"{what} is not a JSON object.") from None
        raise BadFrame("invalid_type", f"Invalid type for '{param}': {error}.", param) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadFrame("invalid_json", f"{what} could not be parsed as a JSON object.") from None


def fields(raw: bytes) -> dict[str, msgspec.Raw]:
    """The top-level fields of an object as raw slices, in their order."""
    return _fields.decode(raw)


def join(parts: Mapping[str, bytes | msgspec.Raw]) -> bytes:
    """An object from raw fields, in their order."""
    return b"{" + b",".join(b"%b:%b" % (orjson.dumps(key), bytes(value)) for key, value in parts.items()) + b"}"


def flatten(raw: bytes) -> bytes:
    """A create frame whose fields were nested under `response`, laid flat; fields beside it win."""
    outer = fields(raw)
    inner = fields(bytes(outer.pop("response")))
    return join({"type": outer["type"], **inner, **outer})


def rewrite(raw: bytes, *, input: bytes | None = None, drop_previous: bool = False, model: str | None = None) -> bytes:
    """A create frame with another input, without `previous_response_id`, or under another model name.

    Nothing else changes, and a frame of which nothing changes comes back as the very bytes.
    """
    if input is None and not drop_previous and model is None:
        return raw
    parts: dict[str, bytes | msgspec.Raw] = dict(fields(raw))
    if drop_previous:
        parts.pop("previous_response_id", None)
    if input is not None:
        parts["input"] = input
    if model is not None:
        parts["model"] = orjson.dumps(model)
    return join(parts)


def as_frame(body: bytes) -> bytes:
    """A body of POST /v1/responses as a WebSocket's create, without what exists over HTTP only.

    What would make another event of it, or put it on a lane, does not come from a body, however it is spelled there.
    """
    held = fields(body)
    for name in ("type", *_WEBSOCKET_ONLY, *HTTP_ONLY):
        held.pop(name, None)
    return join({"type": b'"response.create"', **held})


def as_body(frame: bytes) -> tuple[bytes, bool]:
    """A WebSocket's create as a body of POST /v1/responses that is answered by a stream; False if it is a warm-up,
    for which HTTP has no word."""
    held = fields(frame)
    generates = bytes(held.get("generate", b"true")) != b"false"
    for name in ("type", *_WEBSOCKET_ONLY, *HTTP_ONLY):
        held.pop(name, None)
    return join({**held, "stream": b"true"}), generates


def without(raw: bytes, *names: str) -> bytes:
    """An object without these fields; one that has none of them comes back as the very bytes."""
    if not any(b'"%b"' % name.encode() in raw for name in names):
        return raw
    held = fields(raw)
    return join({name: held[name] for name in held if name not in names}) if held.keys() & set(names) else raw


def warms_up(frame: bytes) -> bool:
    """Whether a create makes no output."""
    return b'"generate"' in frame and bytes(fields(frame).get("generate", b"true")) == b"false"


def input_items(raw_input: bytes) -> bytes:
    """A create's `input` as a JSON array: a bare string is one user message, absence is no item."""
    raw_input = raw_input.strip()
    if raw_input[:1] == b"[":
        return raw_input
    if raw_input[:1] == b'"':
        return b'[{"type":"message","role":"user","content":[{"type":"input_text","text":' + raw_input + b"}]}]"
    return b"[]"


CONVERSATION = "a conversation"
COMPACTION = "a compaction item"
COMPACTIONS = ("compaction", "compaction_summary")


def binds(raw: bytes, frame: ClientFrame | ClientBody) -> str | None:
    """What in this frame lives in one owner's project, so that only its boundary can serve it; None if nothing.

    The bytes are searched first: a frame without one of the words costs no parse.
    """
    if frame.conversation != NULL:
        return CONVERSATION
    if not _may_bind(raw):
        return None
    document = _loads(raw)
    if document.get("prompt"):
        return "a stored prompt"
    return _binding_in([document.get("input"), document.get("tools")])


def owned(frame: ClientFrame | ClientBody, binding: str | None) -> tuple[str, ...]:
    """The things in this request that have an owner who is known by them: a conversation, or compaction items.

    `binding` is what `binds` has said of it.
    """
    if binding == CONVERSATION:
        named = _loads(bytes(frame.conversation))
        name = named.get("id") if isinstance(named, dict) else named
        return (name,) if isinstance(name, str) and name else ()
    return _compactions(_loads(bytes(frame.input))) if binding is not None else ()


def compactions(array: bytes) -> tuple[str, ...]:
    """The names of the compaction items among these items (a JSON array). The bytes are searched first."""
    return _compactions(_loads(array)) if b'"compaction' in array else ()


def _compactions(items: object) -> tuple[str, ...]:
    listed = items if isinstance(items, list) else []
    found = [item for item in listed if isinstance(item, dict) and item.get("type") in COMPACTIONS]
    ciphers = [item.get("encrypted_content") for item in found]
    return tuple(compaction_name(cipher) for cipher in ciphers if isinstance(cipher, str))


def compaction_name(encrypted_content: str) -> str:
    """A name for a compaction item, by what it holds: its id is not unique, and need not be there."""
    return "cmp:" + hashlib.sha256(encrypted_content.encode()).hexdigest()[:32]


def items_bind(array: bytes) -> str | None:
    """What among these items (a JSON array) lives in one owner's project; None if nothing."""
    return _binding_in([_loads(array)]) if _may_bind(array) else None


_ESCAPED = re.compile(rb"\\u00[5-7]")


def _may_bind(raw: bytes) -> bool:
    """Whether a word that binds may stand here: as it is, or with letters written as escapes, to be overlooked."""
    return names_any(raw) or (b"\\" in raw and b"\\u00" in raw and _ESCAPED.search(raw) is not None)


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise BadFrame("invalid_json", "The frame could not be parsed as JSON, or is nested too deeply.") from None


def _binding_in(stack: list[Any]) -> str | None:
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            if why := _binding_here(node):
                return why
            stack.extend(value for value in node.values() if isinstance(value, dict | list))
    return None


def _binding_here(node: dict[str, Any]) -> str | None:
    kind = node.get("type")
    if kind == "item_reference":
        return "an item reference"
    if kind in COMPACTIONS and node.get("encrypted_content"):
        return COMPACTION
    if isinstance(node.get("file_id"), str) or (isinstance(node.get("file_ids"), list) and node["file_ids"]):
        return "a file id"
    if isinstance(node.get("container"), str) or isinstance(node.get("container_id"), str):
        return "a container"
    if isinstance(node.get("vector_store_ids"), list):
        return "a vector store"
    return None


class EventKind(StrEnum):
    """What an upstream event means for the turn it belongs to."""

    ANNOUNCEMENT = "announcement"
    OUTPUT = "output"
    ITEM = "item"
    TERMINAL = "terminal"
    FAILURE = "failure"
    ASIDE = "aside"


_ANNOUNCEMENTS = frozenset(
    {
        "response.created",
        "response.in_progress",
        "response.queued",
        "response.metadata",
        "codex.response.metadata",
        "codex.rate_limits",
        "responsesapi.websocket_timing",
    }
)
_KINDS = {
    **dict.fromkeys(_ANNOUNCEMENTS, EventKind.ANNOUNCEMENT),
    "response.output_item.done": EventKind.ITEM,
    "response.completed": EventKind.TERMINAL,
    "response.done": EventKind.TERMINAL,
    "response.incomplete": EventKind.TERMINAL,
    "response.failed": EventKind.FAILURE,
    "response.error": EventKind.FAILURE,
    "error": EventKind.FAILURE,
    "response.steer.accepted": EventKind.ASIDE,
    "response.steer.pending": EventKind.ASIDE,
    "response.steer.failed": EventKind.ASIDE,
    "response.inject.created": EventKind.ASIDE,
    "response.inject.failed": EventKind.ASIDE,
}


_KINDS_AS_BYTES = {name.encode(): kind for name, kind in _KINDS.items()}


class _Head(msgspec.Struct):
    type: str = ""


class _Lane(msgspec.Struct):
    stream_id: str | None = None


class _Item(msgspec.Struct):
    item: msgspec.Raw = msgspec.Raw(b"null")
    output_index: int = 0


class _Response(msgspec.Struct, frozen=True):
    id: str | None = None
    status: str | None = None
    output: msgspec.Raw = msgspec.Raw(b"null")


class _WithResponse(msgspec.Struct):
    response: _Response | None = None


_NO_RESPONSE = _Response()
_head = msgspec.json.Decoder(_Head)
_lane = msgspec.json.Decoder(_Lane)
_item = msgspec.json.Decoder(_Item)
_response = msgspec.json.Decoder(_Response)
_with_response = msgspec.json.Decoder(_WithResponse)

_PREFIX = b'{"type":"'


class Garbage(Exception):
    """An upstream frame that is not an event."""


def event_type(raw: bytes) -> str:
    """The type of an upstream event; a slice where `type` stands first, as it nearly always does."""
    if raw.startswith(_PREFIX):
        end = raw.find(b'"', 9, 80)
        if end > 0:
            return raw[9:end].decode("ascii", "replace")
    try:
        return _head.decode(raw).type
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Garbage("not a JSON object") from None


_ERRORS = (b'{"type":"error"', b'{"error":{', b'{"error": {')


def begins_as_error(raw: bytes) -> bool:
    """Whether an event is an error by how it begins; `"error":null` is none."""
    return raw.startswith(_ERRORS)


def event_kind(raw: bytes) -> EventKind:
    """What an upstream event means; a type nobody has heard of is output (the set is open). Raises `Garbage`."""
    if raw.startswith(_PREFIX):
        end = raw.find(b'"', 9, 80)
        if end > 0:
            return _KINDS_AS_BYTES.get(raw[9:end], EventKind.OUTPUT)
    return _KINDS.get(event_type(raw), EventKind.OUTPUT)


def event_lane(raw: bytes) -> str | None:
    """The lane an event belongs to. The search comes first: most sockets never see a named lane."""
    if b'"stream_id"' not in raw:
        return None
    try:
        return _lane.decode(raw).stream_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def event_fields(raw: bytes) -> dict[str, msgspec.Raw]:
    """The top-level fields of an event, or of an object in one, as raw slices in their order (raises `Garbage`)."""
    try:
        return fields(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Garbage("not a JSON object") from None


def done_item(raw: bytes) -> tuple[int, bytes]:
    """Index and bytes of the item in a `response.output_item.done` (raises `Garbage`)."""
    try:
        event = _item.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Garbage("not an item event") from None
    return event.output_index, bytes(event.item)


def response_of(raw: bytes) -> tuple[str, bytes]:
    """Id and output array of the response in an event (empty id: there is none). Raises `Garbage`."""
    try:
        response = _with_response.decode(raw).response or _NO_RESPONSE
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Garbage("not a response event") from None
    return response.id or "", bytes(response.output)


_PREVIOUS = (b'"previous_response_id":null', b'"previous_response_id": null')


def continuing(raw: bytes, response_id: str) -> bytes:
    """An event of a turn that was sent with its whole context, as one that continues what its client has named.

    Within a string the quotes would be escaped, so that nothing but the field itself is found.
    """
    for absent in _PREVIOUS:
        if absent in raw:
            return raw.replace(absent, b'"previous_response_id":' + orjson.dumps(response_id), 1)
    return raw


_ENDINGS = {"failed": ("response.failed", EventKind.FAILURE), "incomplete": ("response.incomplete", EventKind.TERMINAL)}


def as_ending(response: bytes) -> tuple[bytes, EventKind]:
    """A response that came at once and whole, as the event that a stream would have ended with. Raises `Garbage`."""
    try:
        status = _response.decode(response).status
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Garbage("not a response") from None
    kind, means = _ENDINGS.get(status or "", ("response.completed", EventKind.TERMINAL))
    return join({"type": orjson.dumps(kind), "response": response}), means


def whole_response(raw: bytes, outputs: bytes) -> bytes:
    """The response in a terminal event, with its output where the vendor has left that out (protocol.md 3.10).

    Raises `Garbage` where there is none.
    """
    output = response_of(raw)[1]
    response = event_fields(raw).get("response", NULL)
    if response == NULL:
        raise Garbage("not a response event")
    if outputs == b"[]" or output not in (b"null", b"[]"):
        return bytes(response)
    return join({**event_fields(bytes(response)), "output": outputs})


def made(body: bytes) -> tuple[str, ...]:
    """The names of what an answer has brought into the world: a conversation, or compaction items."""
    document = _loads(body)
    if not isinstance(document, dict):
        return ()
    if document.get("object") == "conversation" and isinstance(document.get("id"), str):
        return (document["id"],)
    return _compactions(document.get("output"))


def streaming(body: bytes) -> bytes:
    """A body that asks for a stream."""
    return join({**fields(body), "stream": b"true"})


def error_event(
    status: int,
    code: str,
    message: str,
    *,
    type: str,
    param: str | None = None,
    stream_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """An `error` event in the vendor's shape, always with a numeric status: Codex ignores one without it."""
    document: dict[str, Any] = {"type": "error", "status": status}
    if stream_id is not None:
        document["stream_id"] = stream_id
    document["error"] = {"type": type, "code": code, "message": message, "param": param, **(extra or {})}
    if headers:
        document["headers"] = dict(headers)
    return orjson.dumps(document)


def with_status(raw: bytes, status: int) -> bytes:
    """An upstream `error` event with a numeric `status`; one that has it comes back as the very bytes.

    So does one that can be read and yet not be cut, for it is nested too deeply.
    """
    try:
        parts: dict[str, bytes | msgspec.Raw] = dict(event_fields(raw))
    except Garbage:
        return raw
    if bytes(parts.get("status", b"null")).isdigit() and "status_code" not in parts:
        return raw
    parts.pop("status_code", None)
    parts["status"] = str(status).encode()
    return join(parts)


def with_lane(raw: bytes, stream_id: str) -> bytes:
    """An upstream event with the lane it belongs to; one that names it comes back as the very bytes.

    Raises `Garbage`.
    """
    if event_lane(raw) is not None:
        return raw
    return join({**event_fields(raw), "stream_id": orjson.dumps(stream_id)})
