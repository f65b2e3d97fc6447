"""The answer to a context: what is said follows from the context alone, how it is said from marks in the last message.

Marks in the text of the last user message: [[call:NAME]] (any number), [[deltas:N]], [[pad:N]] (bytes),
[[slow:MS]], [[incomplete]]; and the markers of scripts, such as [[tools:N]] (script.py).
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson

from broker.simulator.context import Context, item_type, message_text
from broker.simulator.credentials import SimOptions
from broker.simulator.script import Script, step_of

_MARK = re.compile(r"\[\[(call|deltas|pad|slow|incomplete)(?::([A-Za-z0-9_.-]+))?\]\]")
_LOREM = (
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore "
    "magna aliqua ut enim ad minim veniam quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo "
)
_BYTES_PER_DELTA = 5
_MAX_DELTAS = 1_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; its id follows from the context, so that a replay yields the same one."""

    name: str
    call_id: str
    arguments: str  # of a function, or the input of a custom tool
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say, in how many deltas, and how slowly (seconds)."""

    text: str
    calls: tuple[Call, ...]
    deltas: int
    delay: float
    incomplete: bool


def answer_to(
    context: Context, options: SimOptions, tools: object = None, scripts: Mapping[str, Script] | None = None
) -> Answer:
    """The answer; calls are only made when the last user message has not been followed by a tool output.

    A script makes its calls with the tools of the request, and as many in a row as it has been asked for.
    """
    step = step_of(context.items, tools, scripts) if scripts else None
    request, answered = _last_request(context)
    marks = [(match[1], match[2] or "") for match in _MARK.finditer(request)]
    values = dict(marks)
    deltas = min(max(_number(values.get("deltas"), options.deltas), 1), _MAX_DELTAS)
    digest = context.digest
    names = [] if answered else [value for kind, value in marks if kind == "call" and value]
    calls = [_call(digest, at, name) for at, name in enumerate(names)]
    if step is not None and step.tool is not None:
        calls = [Call(step.tool, call_id(digest, 0, step.tool), step.payload, step.custom)]
    said = f"{step.marker}={step.made} " if step is not None else ""
    return Answer(
        text=_text(digest, context.counted, deltas, _number(values.get("pad"), 0), said),
        calls=tuple(calls),
        deltas=deltas,
        delay=_number(values.get("slow"), 0) / 1000 if "slow" in values else options.delay,
        incomplete="incomplete" in values,
    )


def pieces(text: str, count: int) -> Iterator[str]:
    """The text cut into `count` pieces, none empty if the text is long enough."""
    size = max(len(text) // count, 1)
    for at in range(count - 1):
        yield text[at * size : (at + 1) * size]
    yield text[(count - 1) * size :]


def _last_request(context: Context) -> tuple[str, bool]:
    answered = False
    for item in reversed(context.items):
        if item_type(item) == "message" and item.get("role") == "user":
            return message_text(item), answered
        answered = answered or item_type(item).endswith("_output")
    return "", answered


def call_id(digest: str, at: int, name: str) -> str:
    """The id of a call that is made from a context."""
    return "call_" + hashlib.sha256(f"{digest} {at} {name}".encode()).hexdigest()[:24]


def _text(digest: str, counted: int, deltas: int, pad: int, said: str) -> str:
    head = f"ctx={digest[:32]} items={counted} | {said}"
    wanted = max(_BYTES_PER_DELTA * deltas, len(head) + 40) - len(head) + pad
    return head + (_LOREM * (wanted // len(_LOREM) + 1))[:wanted]


def _call(digest: str, at: int, name: str) -> Call:
    arguments = orjson.dumps({"ctx": digest[:32], "call": at}).decode()
    return Call(name, call_id(digest, at, name), arguments)


def _number(value: str | None, default: int) -> int:
    return int(value) if value is not None and value.isdigit() else default
