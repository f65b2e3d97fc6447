"""What the vendor tells a credential of its limits: as an event in every stream, and in the headers of its answers."""

import math
from dataclasses import dataclass
from typing import Any

STYLES = frozenset({"x-codex", "x-ratelimit", "none"})
_LIMIT = 1000
_NUMBERS = ("used_percent", "window_minutes", "resets_at", "secondary_percent", "secondary_resets_at")


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A window and how it is told. When `resets_at` (epoch seconds) has passed, the window is empty and a new one runs.

    `style` names the family of headers, "none" sends none. `frames` off leaves the event out. The long window is told
    where `secondary_percent` is given; `x-ratelimit` tells it as tokens, the other one as requests.
    """

    used_percent: float
    resets_at: float | None = None
    window_minutes: float = 300
    secondary_percent: float | None = None
    secondary_resets_at: float | None = None
    style: str = "x-codex"
    frames: bool = True

    def __post_init__(self) -> None:
        values = [getattr(self, name) for name in _NUMBERS]
        good = all(_number(value) for value in values if value is not None)
        if not good or self.used_percent is None or not self.window_minutes or self.style not in STYLES:
            raise ValueError(f"no such limits: {values} style={self.style!r}")

    def event(self, now: float) -> dict[str, Any]:
        """The fields of a `codex.rate_limits` event."""
        named = {name: _as_event(window, now) for name, window in self._windows(now).items()}
        return {
            "plan_type": "pro",
            "rate_limits": {"primary": None, "secondary": None, **named},
            "credits": None,
            "metered_limit_name": None,
            "limit_name": None,
        }

    def headers(self, now: float) -> dict[str, str]:
        """The headers of an answer."""
        told: dict[str, str] = {}
        for name, window in self._windows(now).items():
            if self.style == "x-codex":
                told |= _as_codex(f"x-codex-{name}-", window)
            elif self.style == "x-ratelimit":
                told |= _as_counts("requests" if name == "primary" else "tokens", window, now)
        return told

    def _windows(self, now: float) -> dict[str, "_Window"]:
        windows = {"primary": _Window(self.used_percent, self.window_minutes, self.resets_at)}
        if self.secondary_percent is not None:
            windows["secondary"] = _Window(self.secondary_percent, 7 * 24 * 60, self.secondary_resets_at)
        return {name: window.at(now) for name, window in windows.items()}


@dataclass(frozen=True, slots=True)
class _Window:
    used_percent: float
    minutes: float
    resets_at: float | None

    def at(self, now: float) -> "_Window":
        """The window as it stands: after its end, the empty one that followed it."""
        if self.resets_at is None or now < self.resets_at:
            return self
        length = self.minutes * 60
        passed = math.floor((now - self.resets_at) / length) + 1
        return _Window(0, self.minutes, self.resets_at + passed * length)


def _as_event(window: _Window, now: float) -> dict[str, Any]:
    told: dict[str, Any] = {"used_percent": window.used_percent, "window_minutes": window.minutes}
    if window.resets_at is not None:
        told |= {"reset_at": window.resets_at, "reset_after_seconds": int(window.resets_at - now)}
    return told


def _as_codex(prefix: str, window: _Window) -> dict[str, str]:
    told = {"used-percent": window.used_percent, "window-minutes": window.minutes, "reset-at": window.resets_at}
    return {prefix + name: str(value) for name, value in told.items() if value is not None}


def _as_counts(what: str, window: _Window, now: float) -> dict[str, str]:
    left = max(0, round(_LIMIT * (1 - window.used_percent / 100)))
    told = {f"x-ratelimit-limit-{what}": str(_LIMIT), f"x-ratelimit-remaining-{what}": str(left)}
    if window.resets_at is not None:
        told[f"x-ratelimit-reset-{what}"] = f"{int((window.resets_at - now) * 1000)}ms"
    return told


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11
