"""Log lines: their shape, their allow-list, and what never gets into one."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from broker import logs


@pytest.fixture(autouse=True)
def root_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def writing(form: Literal["text", "json"], level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    logs.setup(level, form, stream)
    return logging.getLogger("broker.test"), stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_the_event_and_the_allowed_fields() -> None:
    logger, stream = writing("json")
    logger.warning("pin %s", "moved", extra={"session": "s1", "attempt": 2, "duration_ms": 1.5, "prompt": "canary"})
    (line,) = lines(stream)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "broker.test",
        "event": "pin moved",
        "session": "s1",
        "attempt": 2,
        "duration_ms": 1.5,
    }


def test_text_line_is_one_line_for_people() -> None:
    logger, stream = writing("text")
    logger.error("turn ended", extra={"turn": 7, "reason": "quota", "prompt": "canary"})
    assert stream.getvalue().split(" ", 1)[1] == "error   broker.test: turn ended turn=7 reason=quota\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_control_characters_do_not_reach_the_stream(form: Literal["text", "json"]) -> None:
    logger, stream = writing(form)
    logger.info("a\nb\x1b[31m\u2028\x85\ud800", extra={"reason": "c\r\nd\x00"})
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert "\\x1b" in text.replace("\\\\", "\\")


@pytest.mark.parametrize("form", ["text", "json"])
def test_exception_is_told_by_type_and_place_and_never_by_its_message(form: Literal["text", "json"]) -> None:
    logger, stream = writing(form)
    try:
        raise ValueError("canary")
    except ValueError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "builtins.ValueError" in text
    assert "test_logs.py:" in text
    assert "canary" not in text
    assert text.count("\n") == 1


def test_odd_arguments_cost_no_line() -> None:
    logger, stream = writing("json")
    logger.info("%d", "no number")
    logger.info("large", extra={"count": 2**80, "bytes": float("nan"), "reason": None})
    assert [line["event"] for line in lines(stream)] == ["%d", "large"]


def test_level_is_kept() -> None:
    logger, stream = writing("json", "warning")
    logger.info("quiet")
    logger.warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]
