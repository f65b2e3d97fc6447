"""The kinds of single values a setting can hold, each with the text that says what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from broker.domain.credential import Secret


@dataclass(frozen=True, slots=True)
class Kind:
    """How one value is read: `parse` returns it or raises ValueError; `private` values are never shown to anybody."""

    allowed: str
    parse: Callable[[Any], Any]
    private: bool = False


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB)")
_SIZE_UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Capitals only: many vendors' keys would pass for a variable's name if small letters were allowed too,
# and a key that was pasted here by mistake must not travel into an error message.
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
LONGEST = 30 * 86400.0
LARGEST = 1024**4


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_duration(value: Any) -> float:
    """Seconds, from `"90s"`, `"250ms"` or a number of seconds; more than nothing and at most 30 days."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        value = float(match[1]) * _DURATION_UNITS[match[2]]
    if not _is_number(value) or not 0 < value <= LONGEST:
        raise ValueError
    return float(value)


def parse_size(value: Any) -> int:
    """Bytes, from `"16MiB"` or a whole number of bytes; at least one and at most 1024 GiB."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        value = int(match[1]) * _SIZE_UNITS[match[2]]
    return _whole(value, 1, LARGEST)


def _whole(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError
    return value


def _between(value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise ValueError
    return value


PROBE_KINDS = ("auto", "models", "warmup", "response", "off")


def _probe_kind(value: Any) -> str:
    if value is False:
        return "off"  # as YAML reads that word
    if value not in PROBE_KINDS:
        raise ValueError
    return str(value)


def _number_above_zero(value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise ValueError
    return float(value)


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError
        return value

    return parse


def _printable(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or value != value.strip():
        raise ValueError
    return value


def _http_url(value: Any) -> str:
    parts = urlsplit(_printable(value))
    _ = parts.port  # raises ValueError when it is no port
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError
    return parts._replace(path=parts.path.rstrip("/")).geturl()


def parse_webhook_url(value: Any) -> Secret:
    """The address of a webhook, as it is; a Secret because whoever has it may post there."""
    parts = urlsplit(_printable(value))
    _ = parts.port
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError
    return Secret(str(value))


def parse_redis_url(value: Any) -> Secret:
    """A Redis address; a Secret because it can hold a password."""
    parts = urlsplit(_printable(value))
    if parts.scheme == "unix":
        usable = bool(parts.path)
    else:
        _ = parts.port
        usable = parts.scheme in ("redis", "rediss") and bool(parts.hostname)
    if not usable:
        raise ValueError
    return Secret(str(value))


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host and a port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: Any) -> Address:
    """An Address from `"127.0.0.1:8080"` or `"[::1]:8080"`."""
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[3]) > 65535:
        raise ValueError
    return Address(match[1] or match[2], int(match[3]))


NAME = Kind("1 to 64 letters, digits, '_', '.' or '-'", _matching(_NAME))
HEADER_NAME = Kind("a header's name", _matching(_HEADER_NAME))

Seconds = Annotated[
    float, Kind("a duration above 0 and up to 30 days, such as '90s', '5m', '1h', '250ms' or seconds", parse_duration)
]
ProbeKind = Annotated[str, Kind(f"one of {', '.join(PROBE_KINDS)}", _probe_kind)]
WorkerLease = Annotated[
    float, Kind("a duration from 1 to 60 seconds, such as '6s'", lambda value: _between(parse_duration(value), 1, 60))
]
Bytes = Annotated[int, Kind("a size of at least one byte, such as '16MiB', '256KiB' or bytes", parse_size)]
Count = Annotated[int, Kind("a whole number of at least 1", lambda value: _whole(value, 1, 10**9))]
CountOrNone = Annotated[int, Kind("a whole number of at least 0", lambda value: _whole(value, 0, 10**9))]
Tier = Annotated[int, Kind("a whole number of at least 0", lambda value: _whole(value, 0, 1000))]
Weight = Annotated[float, Kind("a number above 0", _number_above_zero)]
Name = Annotated[str, NAME]
Text = Annotated[str, Kind("a text without line breaks", _printable)]
HttpUrl = Annotated[str, Kind("an http:// or https:// address without user, password or '#'", _http_url, private=True)]
RedisUrl = Annotated[
    Secret, Kind("a redis://, rediss:// or unix:// address (its value is not shown)", parse_redis_url, private=True)
]
WebhookUrl = Annotated[
    Secret,
    Kind("an http:// or https:// address without user, password or '#' (not shown)", parse_webhook_url, private=True),
]
EnvName = Annotated[
    str,
    Kind(
        "the name of an environment variable in capitals, digits and '_' (its value is not shown: "
        "if it is a secret, put it into such a variable)",
        _matching(_ENV_NAME),
        private=True,
    ),
]
FilePath = Annotated[str, Kind("the path of a file", _printable, private=True)]
Digest = Annotated[
    str,
    Kind(
        "'sha256:' and 64 small hex digits, as `broker mint-key` prints (its value is not shown)",
        _matching(_DIGEST),
        private=True,
    ),
]
HeaderValue = Annotated[str, Kind("a text without line breaks (its value is not shown)", _printable, private=True)]
Listen = Annotated[Address, Kind("'host:port', such as '127.0.0.1:8080'", parse_address)]
