"""What a vendor tells about its limits: how much of the fullest window is used, and when that window is free again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

NEARLY = 0.95
"""The part of a window from which on a credential counts as nearly used up."""

UNTOLD_RESET = 60.0
"""Seconds for which a full window counts as full when nobody has told its end."""

MAX_USED = 10.0
_DAY = 86400.0
_YEAR = 366 * _DAY
_MAX_COUNT = 1e15
_WINDOWS = ("primary", "secondary")
_COUNTED = ("requests", "tokens")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class Limits(msgspec.Struct, frozen=True):
    """The fullest window of a credential. `used` is 0 to 10 (1 is all of it), the times are epoch seconds.

    `resets` is when that window is free again, on the store's clock, and 0 if nobody told; `at` is when it was told.
    """

    used: float
    resets: float
    at: float

    def nearly_used(self, now: float) -> bool:
        """Whether hardly anything is left at `now`; a window that nobody told the end of counts for 60 seconds."""
        return self.used >= NEARLY and (self.resets > now or (self.resets == 0 and self.at > now - UNTOLD_RESET))


def from_event(raw: bytes, now: float) -> Limits | None:
    """The limits in a `codex.rate_limits` event (protocol.md 3.6); None for anything else. Never raises."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    event = _object(document)
    if event.get("type") != "codex.rate_limits":
        return None
    told = _object(event.get("rate_limits"))
    return _fullest([_window(_object(told.get(name)), now) for name in _WINDOWS], now)


def from_headers(headers: Mapping[str, str], now: float) -> Limits | None:
    """The limits in the headers of an answer, or of an `error` event; None if they tell nothing. Never raises.

    Reads `x-codex-primary-*` and `-secondary-*`, and `x-ratelimit-*` for requests and tokens (protocol.md 6.4).
    """
    told = {str(name).lower(): value for name, value in headers.items()}
    windows = [_window(_under(told, f"x-codex-{name}-"), now) for name in _WINDOWS]
    return _fullest([*windows, *(_counted(told, what, now) for what in _COUNTED)], now)


def _fullest(windows: list[tuple[float, float] | None], now: float) -> Limits | None:
    found = [window for window in windows if window is not None]
    if not found:
        return None
    used, resets = max(found)
    return Limits(used, resets, now)


def _window(told: Mapping[str, Any], now: float) -> tuple[float, float] | None:
    percent = _number(told.get("used_percent"), MAX_USED * 100)
    return None if percent is None else _settled(percent / 100, _reset(told, now), now)


def _counted(told: Mapping[str, Any], what: str, now: float) -> tuple[float, float] | None:
    limit = _number(told.get(f"x-ratelimit-limit-{what}"), _MAX_COUNT)
    remaining = _number(told.get(f"x-ratelimit-remaining-{what}"), _MAX_COUNT)
    if not limit or remaining is None:
        return None  # Azure says -1 and 0 where it does not count
    reset = _counted_reset(told.get(f"x-ratelimit-reset-{what}"), now)
    return _settled(max(0.0, 1 - remaining / limit), reset, now)


def _settled(used: float, resets: float, now: float) -> tuple[float, float]:
    """A window whose end has passed is free, whatever was told of it."""
    return (0.0 if 0 < resets <= now else used, resets)


def _reset(told: Mapping[str, Any], now: float) -> float:
    # clients of today read the absolute time; the seconds are the older spelling, and go stale on their way
    return next(_told_resets(told, now), 0.0)


def _told_resets(told: Mapping[str, Any], now: float) -> Iterator[float]:
    for name in ("reset_at", "resets_at"):
        if at := _epoch(told.get(name), now):
            yield at
    for name in ("reset_after_seconds", "resets_in_seconds"):
        if (span := _number(told.get(name), _YEAR)) is not None:
            yield now + span


def _counted_reset(value: object, now: float) -> float:
    """The end of a window of requests or tokens: Go's duration, plain seconds, or a time."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        value = sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(value))
    span = _number(value, _YEAR)
    return _epoch(value, now) if span is None else now + span


def _epoch(value: object, now: float) -> float:
    """A time as epoch seconds; 0 if it is none, or so far off that it must mean something else."""
    at = _number(value, now + _YEAR)
    if at is None and isinstance(value, str):
        at = _date(value)
    return at if at is not None and now - _DAY <= at <= now + _YEAR else 0.0


def _date(text: str) -> float | None:
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _number(value: object, most: float) -> float | None:
    """A number from 0 to `most`, or the text of one; None for all else, NaN among it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _under(told: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The headers under a prefix, named as the fields of an event are."""
    return {
        name.removeprefix(prefix).replace("-", "_"): value for name, value in told.items() if name.startswith(prefix)
    }
