"""The shapes of the Open Responses specification, as far as a client may hold a server to them (protocol.md 10.5).

What is named here must be there and have this type; further keys are tolerated. A type of event that is not named here
is a fault of its own.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import orjson
from msgspec import UNSET, Struct, UnsetType

Status = Literal["in_progress", "completed", "incomplete"]
Transport = Literal["websocket", "http"]


class Mismatch(AssertionError):
    """What came has none of the shapes that it may have."""


# --- parts of messages ---


class TopLogProb(Struct):
    token: str
    logprob: float
    bytes: list[int]


class LogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class UrlCitation(Struct, tag_field="type", tag="url_citation"):
    url: str
    start_index: int
    end_index: int
    title: str


class InputText(Struct, tag_field="type", tag="input_text"):
    text: str


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[UrlCitation]
    logprobs: list[LogProb] | UnsetType = UNSET


class PlainText(Struct, tag_field="type", tag="text"):
    text: str


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str


class Refusal(Struct, tag_field="type", tag="refusal"):
    refusal: str


class InputImage(Struct, tag_field="type", tag="input_image"):
    image_url: str | None
    detail: Literal["low", "high", "auto"]


class InputFile(Struct, tag_field="type", tag="input_file"):
    filename: str | UnsetType = UNSET
    file_url: str | UnsetType = UNSET


class InputVideo(Struct, tag_field="type", tag="input_video"):
    video_url: str


Part = InputText | OutputText | PlainText | SummaryText | ReasoningText | Refusal | InputImage | InputFile


# --- items ---


class Message(Struct, tag_field="type", tag="message"):
    id: str
    status: Status
    role: Literal["user", "assistant", "system", "developer"]
    content: list[Part | InputVideo]
    phase: Literal["commentary", "final_answer"] | UnsetType = UNSET


class FunctionCall(Struct, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class FunctionCallOutput(Struct, tag_field="type", tag="function_call_output"):
    id: str
    call_id: str
    output: str | list[InputText | InputImage | InputFile]
    status: Status


class Reasoning(Struct, tag_field="type", tag="reasoning"):
    id: str
    summary: list[Part]
    content: list[Part] | UnsetType = UNSET
    encrypted_content: str | UnsetType = UNSET


class Compaction(Struct, tag_field="type", tag="compaction"):
    id: str
    encrypted_content: str
    created_by: str | UnsetType = UNSET


Item = Message | FunctionCall | FunctionCallOutput | Reasoning | Compaction


# --- the response object ---


class IncompleteDetails(Struct):
    reason: str


class ResponseError(Struct):
    code: str
    message: str


class FunctionTool(Struct, tag_field="type", tag="function"):
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


ToolChoiceWord = Literal["none", "auto", "required"]


class FunctionChoice(Struct, tag_field="type", tag="function"):
    name: str | UnsetType = UNSET


class AllowedTools(Struct, tag_field="type", tag="allowed_tools"):
    tools: list[FunctionChoice]
    mode: ToolChoiceWord


class TextFormat(Struct, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, tag_field="type", tag="json_object"):
    pass


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema"):
    name: str
    description: str | None
    schema: Any
    strict: bool


class Text(Struct):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat
    verbosity: Literal["low", "medium", "high"] | UnsetType = UNSET


class ReasoningSettings(Struct):
    effort: Literal["none", "low", "medium", "high", "xhigh"] | None
    summary: Literal["concise", "detailed", "auto"] | None


class InputDetails(Struct):
    cached_tokens: int


class OutputDetails(Struct):
    reasoning_tokens: int


class Usage(Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class ResponseResource(Struct):
    """Everything that a request may set is said again in its response."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: str
    incomplete_details: IncompleteDetails | None
    model: str
    previous_response_id: str | None
    instructions: str | None
    output: list[Item]
    error: ResponseError | None
    tools: list[FunctionTool]
    tool_choice: ToolChoiceWord | FunctionChoice | AllowedTools
    truncation: Literal["auto", "disabled"]
    parallel_tool_calls: bool
    text: Text
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    temperature: float
    reasoning: ReasoningSettings | None
    usage: Usage | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    store: bool
    background: bool
    service_tier: str
    metadata: Any
    safety_identifier: str | None
    prompt_cache_key: str | None


class CompactResource(Struct):
    """What `/responses/compact` answers."""

    id: str
    object: Literal["response.compaction"]
    output: list[Item]
    created_at: int
    usage: Usage


# --- events ---


class Numbered(Struct, tag_field="type"):
    sequence_number: int


class OfResponse(Numbered):
    response: ResponseResource


class Created(OfResponse, tag="response.created"):
    pass


class Queued(OfResponse, tag="response.queued"):
    pass


class InProgress(OfResponse, tag="response.in_progress"):
    pass


class Completed(OfResponse, tag="response.completed"):
    pass


class Failed(OfResponse, tag="response.failed"):
    pass


class Incomplete(OfResponse, tag="response.incomplete"):
    pass


class OfOutput(Numbered):
    output_index: int


class ItemAdded(OfOutput, tag="response.output_item.added"):
    item: Item | None


class ItemDone(OfOutput, tag="response.output_item.done"):
    item: Item | None


class OfItem(OfOutput):
    item_id: str


class OfContent(OfItem):
    content_index: int


class OfSummary(OfItem):
    summary_index: int


class ContentPartAdded(OfContent, tag="response.content_part.added"):
    part: Part


class ContentPartDone(OfContent, tag="response.content_part.done"):
    part: Part


class TextDelta(OfContent, tag="response.output_text.delta"):
    delta: str
    logprobs: list[LogProb] | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET


class TextDone(OfContent, tag="response.output_text.done"):
    text: str
    logprobs: list[LogProb] | UnsetType = UNSET


class AnnotationAdded(OfContent, tag="response.output_text.annotation.added"):
    annotation_index: int
    annotation: UrlCitation | None


class RefusalDelta(OfContent, tag="response.refusal.delta"):
    delta: str


class RefusalDone(OfContent, tag="response.refusal.done"):
    refusal: str


class ReasoningDelta(OfContent, tag="response.reasoning.delta"):
    delta: str
    obfuscation: str | UnsetType = UNSET


class ReasoningDone(OfContent, tag="response.reasoning.done"):
    text: str


class SummaryPartAdded(OfSummary, tag="response.reasoning_summary_part.added"):
    part: Part


class SummaryPartDone(OfSummary, tag="response.reasoning_summary_part.done"):
    part: Part


class SummaryDelta(OfSummary, tag="response.reasoning_summary_text.delta"):
    delta: str
    obfuscation: str | UnsetType = UNSET


class SummaryDone(OfSummary, tag="response.reasoning_summary_text.done"):
    text: str


class ArgumentsDelta(OfItem, tag="response.function_call_arguments.delta"):
    delta: str
    obfuscation: str | UnsetType = UNSET


class ArgumentsDone(OfItem, tag="response.function_call_arguments.done"):
    arguments: str


class ErrorPayload(Struct):
    type: str
    code: str | None
    message: str
    param: str | None
    headers: dict[str, str] | UnsetType = UNSET


class StreamError(Numbered, tag="error"):
    error: ErrorPayload


EVENTS = (
    *(Created, Queued, InProgress, Completed, Failed, Incomplete),
    *(ItemAdded, ItemDone, ContentPartAdded, ContentPartDone),
    *(TextDelta, TextDone, AnnotationAdded, RefusalDelta, RefusalDone),
    *(ReasoningDelta, ReasoningDone, SummaryPartAdded, SummaryPartDone, SummaryDelta, SummaryDone),
    *(ArgumentsDelta, ArgumentsDone, StreamError),
)
"""The 24 events of the specification."""


class WebSocketErrorPayload(Struct):
    code: str
    message: str
    type: str | UnsetType = UNSET
    param: str | UnsetType | None = UNSET


class WebSocketError(Struct, tag_field="type", tag="error"):
    """The envelope of whatever goes wrong on a WebSocket."""

    status: int
    error: WebSocketErrorPayload


class FlatError(Numbered, tag="error"):
    """The same in a stream over HTTP, as OpenAI sends it (protocol.md 6.1)."""

    code: str | None
    message: str
    param: str | None


class HttpErrorPayload(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class HttpError(Struct):
    """The body of an answer that is an error."""

    error: HttpErrorPayload


# --- events beyond the specification: the vendor's steering, which only a client gets that steers (protocol.md 3.5) ---


class AcceptedSteer(Struct):
    id: str
    previous_response_id: str


class SteerAccepted(Numbered, tag="response.steer.accepted"):
    steer: AcceptedSteer


class RequiredInput(Struct):
    type: str
    call_id: str
    name: str


class SteerPending(Numbered, tag="response.steer.pending"):
    reason: Literal["waiting_for_required_input"]
    required_input: list[RequiredInput]


class SteerFailedError(Struct):
    type: str
    code: str
    message: str


class RefusedSteer(Struct):
    previous_response_id: Any
    input: Any


class SteerFailed(Struct, tag_field="type", tag="response.steer.failed"):
    error: SteerFailedError
    steer: RefusedSteer


STEERING = (SteerAccepted, SteerPending, SteerFailed)

_OTHER_ERRORS: dict[Transport, type[Struct]] = {"websocket": WebSocketError, "http": FlatError}


def _decoders(*kinds: type[Struct]) -> dict[str, msgspec.json.Decoder[Any]]:
    return {str(kind.__struct_config__.tag): msgspec.json.Decoder(kind) for kind in kinds}


_events = _decoders(*EVENTS)
_steering = _decoders(*STEERING)


def checked_event(
    raw: bytes | str, transport: Literal["websocket", "http"], *, steering: bool = False
) -> dict[str, Any]:
    """An event that the specification knows, in a shape that it allows; raises `Mismatch`."""
    event = _object(raw)
    kind = event.get("type")
    known = _events | _steering if steering else _events
    if kind not in known:
        raise Mismatch(f"no event of the specification: {kind!r}")
    try:
        known[kind].decode(raw)
    except msgspec.ValidationError as error:
        if kind != "error":
            raise Mismatch(f"{kind}: {error}") from None
        checked(raw, _OTHER_ERRORS[transport])
    return event


def checked(raw: bytes | str, shape: type[Struct]) -> dict[str, Any]:
    """An object that has this shape; raises `Mismatch`."""
    try:
        msgspec.json.decode(raw, type=shape)
    except msgspec.DecodeError as error:
        raise Mismatch(f"{shape.__name__}: {error}") from None
    return _object(raw)


def _object(raw: bytes | str) -> dict[str, Any]:
    try:
        read = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Mismatch(f"no JSON: {error}") from None
    if not isinstance(read, dict):
        raise Mismatch("no object")
    return read
