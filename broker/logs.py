"""Log lines: standard logging, in text or JSON, with an allow-list of fields and no message of a foreign exception."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from types import TracebackType
from typing import Literal, TextIO

import orjson

# What `extra` may carry into a line; anything else in a record stays out of it.
FIELDS = (
    "frames",
    "session",
    "turn",
    "credential",
    "tenant",
    "lane",
    "node",
    "reason",
    "kind",
    "phase",
    "outcome",
    "code",
    "status",
    "attempt",
    "duration_ms",
    "count",
    "bytes",
)
_LONGEST = 2000
# Control characters of C0 and C1 and the Unicode line breaks: one event must stay one line, and no terminal command.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def setup(
    level: str = "info", format: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> logging.Handler:
    """Make the root logger write to `stream` (standard error), and nowhere else. Returns the handler."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A handler that fails would print the record with its arguments, past the allow-list.
    logging.raiseExceptions = False
    return handler


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, event, the allowed fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for one record."""
        line: dict[str, object] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _event(record),
            **_fields(record),
        }
        if exception := _exception(record):
            line["exception"] = {"type": exception[0], "stack": exception[1]}
        return orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode()


class TextFormatter(logging.Formatter):
    """One line for people: time, level, logger, event, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for one record."""
        parts = [_timestamp(record), f"{record.levelname.lower():<7}", f"{record.name}:", _event(record)]
        parts += [f"{name}={value}" for name, value in _fields(record).items()]
        if exception := _exception(record):
            parts.append(f"exception={exception[0]} at {' < '.join(reversed(exception[1]))}")
        return " ".join(parts)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _event(record: logging.LogRecord) -> str:
    try:
        return _clean(record.getMessage())
    except (TypeError, ValueError, KeyError):
        return _clean(str(record.msg))


def _fields(record: logging.LogRecord) -> dict[str, str | int | float | bool]:
    present = ((name, getattr(record, name, None)) for name in FIELDS)
    return {name: _scalar(value) for name, value in present if value is not None}


def _scalar(value: object) -> str | int | float | bool:
    # Exact types: an enum that is also a number or a text goes by what it prints.
    if type(value) in (float, bool) or (type(value) is int and abs(value) < 2**63):
        return value  # type: ignore[return-value]
    return _clean(str(value))


def _clean(text: str) -> str:
    # Lone surrogates cannot be encoded and would lose the whole line.
    text = text.translate(_ESCAPES).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _exception(record: logging.LogRecord) -> tuple[str, list[str]] | None:
    """The exception's type and where it came through; its message may quote anything, so it stays out."""
    if not record.exc_info or record.exc_info[0] is None:
        return None
    kind, _, trace = record.exc_info
    return f"{kind.__module__}.{kind.__qualname__}", _stack(trace)


def _stack(trace: TracebackType | None) -> list[str]:
    frames = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in traceback.walk_tb(trace)]
    return [f"{file.rsplit('/', 1)[-1]}:{line}:{function}" for file, line, function in frames[-20:]]
