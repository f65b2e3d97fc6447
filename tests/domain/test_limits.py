"""What vendors tell about their limits: the shapes of protocol.md 3.6 and 6.4, and whatever else may come."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.classify import read_refusal
from broker.domain.limits import MAX_USED, NEARLY, Limits, from_event, from_headers

NOW = 1_800_000_000.0
YEAR = 366 * 86400.0


def event(primary: object = None, secondary: object = None, **fields: Any) -> bytes:
    limits = {"primary": primary, "secondary": secondary}
    return orjson.dumps({"type": "codex.rate_limits", "plan_type": "pro", "rate_limits": limits, **fields})


def window(used: object, **more: Any) -> dict[str, Any]:
    return {"used_percent": used, "window_minutes": 300, **more}


def counted(what: str, limit: object, remaining: object, reset: object = None) -> dict[str, str]:
    told = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-{what}": str(value) for name, value in told.items() if value is not None}


def codex(name: str, used: object, **more: Any) -> dict[str, str]:
    told = {"used_percent": used, **more}
    return {f"x-codex-{name}-{key.replace('_', '-')}": str(value) for key, value in told.items()}


# -- events ----------------------------------------------------------------------------------------------------


def test_event_tells_used_and_reset() -> None:
    assert from_event(event(window(97, reset_at=int(NOW) + 60)), NOW) == Limits(0.97, NOW + 60, NOW)


@pytest.mark.parametrize(
    ("first", "second", "used", "resets"),
    [
        (window(20, reset_at=NOW + 60), window(80, reset_at=NOW + 900), 0.8, NOW + 900),
        (window(90, reset_at=NOW + 60), window(80, reset_at=NOW + 900), 0.9, NOW + 60),
        (window(90, reset_at=NOW + 60), window(90, reset_at=NOW + 900), 0.9, NOW + 900),
        (window(90, reset_at=NOW + 900), window(90, reset_at=NOW + 60), 0.9, NOW + 900),
        (None, window(50, reset_at=NOW + 900), 0.5, NOW + 900),
        (window("lots"), window(5), 0.05, 0),
        (window(130), window(5), 1.3, 0),
    ],
)
def test_fullest_window_wins_and_then_the_later_reset(
    first: object, second: object, used: float, resets: float
) -> None:
    assert from_event(event(first, second), NOW) == Limits(used, resets, NOW)


@pytest.mark.parametrize(
    ("told", "resets"),
    [
        ({"reset_at": NOW + 60}, NOW + 60),
        ({"resets_at": NOW + 60}, NOW + 60),
        ({"reset_after_seconds": 60}, NOW + 60),
        ({"resets_in_seconds": 60}, NOW + 60),
        ({"reset_at": str(int(NOW) + 60)}, NOW + 60),
        ({"reset_at": "2027-01-15T08:01:00Z"}, NOW + 60),
        ({"reset_at": "2027-01-15T08:01:00"}, NOW + 60),
        ({"reset_at": "2027-01-15T10:01:00+02:00"}, NOW + 60),
        ({"reset_at": NOW + 60, "reset_after_seconds": 5}, NOW + 60),
        ({"reset_at": None, "reset_after_seconds": 5}, NOW + 5),
        ({"reset_at": 0, "resets_in_seconds": 5}, NOW + 5),
        ({"reset_at": (NOW + 60) * 1000}, 0),
        ({"reset_at": 300}, 0),
        ({"reset_at": NOW + 2 * YEAR}, 0),
        ({"reset_after_seconds": 2 * YEAR}, 0),
        ({"reset_after_seconds": -1}, 0),
        ({"reset_at": True}, 0),
        ({"reset_at": [NOW + 60]}, 0),
        ({"reset_at": "soon"}, 0),
        ({}, 0),
    ],
)
def test_reset_is_read_in_every_spelling(told: dict[str, Any], resets: float) -> None:
    assert from_event(event(window(97, **told)), NOW) == Limits(0.97, resets, NOW)


def test_window_whose_end_has_passed_is_free() -> None:
    over = window(99, reset_at=NOW - 1)
    assert from_event(event(over), NOW) == Limits(0.0, NOW - 1, NOW)
    assert from_event(event(over, window(10, reset_at=NOW + 9)), NOW) == Limits(0.1, NOW + 9, NOW)


@pytest.mark.parametrize("used", [None, -1, 1001, 1e300, "nan", "inf", "-inf", "", True, [97], {"percent": 97}])
def test_window_without_a_sensible_share_is_ignored(used: object) -> None:
    assert from_event(event(window(used, reset_at=NOW + 60)), NOW) is None
    assert from_headers(codex("primary", used, reset_at=NOW + 60), NOW) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage {",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"97",
        b"{}",
        b'{"type":"codex.rate_limits"}',
        b'{"type":"codex.rate_limits","rate_limits":[97]}',
        b'{"type":"codex.rate_limits","rate_limits":{"primary":97}}',
        event(window(97)).replace(b"codex.rate_limits", b"response.created"),
        b"[" * 100_000,
    ],
)
def test_all_else_tells_nothing(raw: bytes) -> None:
    assert from_event(raw, NOW) is None


# -- headers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reset", "resets"),
    [
        ("12ms", NOW + 0.012),
        ("1s", NOW + 1),
        ("6m0s", NOW + 360),
        ("1h2m3.5s", NOW + 3723.5),
        ("60", NOW + 60),
        (str(NOW + 60), NOW + 60),
        ("2027-01-15T08:01:00Z", NOW + 60),
        ("", 0),
        ("-1", 0),
        ("soon", 0),
        ("6m and a bit", 0),
        ("9" * 400 + "s", 0),
        (str((NOW + 60) * 1000), 0),
        (None, 0),
    ],
)
def test_counts_tell_their_reset_in_every_spelling(reset: str | None, resets: float) -> None:
    found = from_headers(counted("requests", 100, 4, reset), NOW)
    assert found is not None and found.used == pytest.approx(0.96) and found.at == NOW
    assert found.resets == pytest.approx(resets, abs=1e-6)


@pytest.mark.parametrize(
    ("limit", "remaining", "used"),
    [
        (100, 0, 1.0),
        (100, 100, 0.0),
        (100, 150, 0.0),
        ("60000", "15000", 0.75),
        (-1, 0, None),
        (0, 0, None),
        (-1, -1, None),
        (100, -1, None),
        (None, 0, None),
        (100, None, None),
        ("many", 0, None),
        ("nan", 0, None),
        ("inf", 0, None),
        (100, "nan", None),
    ],
)
def test_counts_only_matter_where_there_is_a_limit(limit: object, remaining: object, used: float | None) -> None:
    found = from_headers(counted("tokens", limit, remaining), NOW)
    assert (found.used if found else None) == used


def test_headers_of_the_fullest_window_win() -> None:
    headers = {
        **counted("requests", 100, 90, "1s"),
        **counted("tokens", 1000, 20, "6m0s"),
        **codex("primary", 40, reset_at=int(NOW) + 60, window_minutes=300),
        **codex("secondary", 97, reset_after_seconds=600, window_minutes=10080),
    }
    assert from_headers(headers, NOW) == Limits(0.98, NOW + 360, NOW)
    del headers["x-ratelimit-limit-tokens"]
    assert from_headers(headers, NOW) == Limits(0.97, NOW + 600, NOW)
    del headers["x-codex-secondary-used-percent"]
    assert from_headers(headers, NOW) == Limits(0.4, NOW + 60, NOW)
    del headers["x-codex-primary-used-percent"]
    found = from_headers(headers, NOW)
    assert found is not None and found.used == pytest.approx(0.1)
    del headers["x-ratelimit-remaining-requests"]
    assert from_headers(headers, NOW) is None


@pytest.mark.parametrize("headers", [counted("tokens", 10, 1, "2s"), codex("primary", 90, reset_after_seconds=2)])
def test_names_of_headers_may_be_written_in_any_case(headers: dict[str, str]) -> None:
    assert from_headers({name.title(): value for name, value in headers.items()}, NOW) == Limits(0.9, NOW + 2, NOW)


def test_headers_of_an_error_event_are_read() -> None:
    told = codex("primary", 100, reset_at=int(NOW) + 60)
    for document in ({"error": {"code": "x", "headers": told}}, {"error": {"code": "x"}, "headers": told}):
        assert from_headers(read_refusal(document).headers, NOW) == Limits(1.0, NOW + 60, NOW)


def test_other_families_of_headers_tell_nothing() -> None:
    assert (
        from_headers({"content-type": "x", "x-codex-active-limit": "9", "x-codex-other-used-percent": "9"}, 1) is None
    )


# -- what follows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "nearly"),
    [
        (Limits(NEARLY, NOW + 1, NOW), True),
        (Limits(1.3, NOW + 1, NOW - 9999), True),
        (Limits(0.949, NOW + 1, NOW), False),
        (Limits(1.0, NOW, NOW - 9), False),
        (Limits(1.0, NOW - 1, NOW), False),
        (Limits(1.0, 0, NOW), True),
        (Limits(1.0, 0, NOW - 59), True),
        (Limits(1.0, 0, NOW - 60), False),
        (Limits(0.5, 0, NOW), False),
    ],
)
def test_nearly_used_until_the_reset_or_for_a_minute(limits: Limits, nearly: bool) -> None:
    assert limits.nearly_used(NOW) is nearly


# -- whatever may come -----------------------------------------------------------------------------------------

clocks = st.floats(0, 1e10)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.floats().map(str)
    | st.from_regex(r"[0-9.]{1,9}(ms|s|m|h|d){0,2}", fullmatch=True)
    | st.datetimes().map(str)
    | st.integers(0, 200)
)
windows = scalars | st.dictionaries(
    st.sampled_from(
        ["used_percent", "window_minutes", "reset_at", "resets_at", "reset_after_seconds", "resets_in_seconds"]
    )
    | st.text(max_size=3),
    scalars,
)
documents = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner))
events = st.fixed_dictionaries(
    {"type": st.just("codex.rate_limits")},
    optional={
        "rate_limits": documents | st.fixed_dictionaries({}, optional={"primary": windows, "secondary": windows})
    },
)
names = st.text(max_size=30) | st.sampled_from(
    [f"x-ratelimit-{told}-{what}" for told in ("limit", "remaining", "reset") for what in ("requests", "tokens")]
    + [f"X-Codex-{name}-{told}" for name in ("Primary", "Secondary") for told in ("Used-Percent", "Reset-At")]
    + ["x-codex-primary-reset-after-seconds", "x-codex-primary-window-minutes"]
)


def check(limits: Limits | None, now: float) -> None:
    """Finite and bounded, and usable at any time."""
    if limits is None:
        return
    assert all(math.isfinite(number) for number in (limits.used, limits.resets, limits.at))
    assert 0 <= limits.used <= MAX_USED and limits.at == now
    assert limits.resets == 0 or now - 86400 <= limits.resets <= now + YEAR
    assert not limits.nearly_used(now + YEAR)


@settings(max_examples=300)
@given(events, clocks)
def test_event_of_any_content_tells_bounded_numbers_or_nothing(document: object, now: float) -> None:
    check(from_event(dumps(document), now), now)


@settings(max_examples=200)
@given(st.binary(max_size=60) | documents.map(lambda document: dumps(document)))
def test_bytes_of_any_kind_tell_nothing(raw: bytes) -> None:
    assert from_event(raw, NOW) is None


@settings(max_examples=300)
@given(st.dictionaries(names, scalars.map(str)), clocks)
def test_headers_of_any_content_tell_bounded_numbers_or_nothing(headers: dict[str, str], now: float) -> None:
    check(from_headers(headers, now), now)


def dumps(document: object) -> bytes:
    """JSON of anything, integers of any size and lone surrogates included."""
    return json.dumps(document).encode()
