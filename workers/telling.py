"""What a webhook is told about a change of health: whether, as JSON, and in one line for people."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import msgspec

from broker.domain.health import BLOCKING, HealthState
from broker.store.events import HealthEvent
from broker.store.tellings import Telling

_LONGEST = 200


def chosen(event: HealthEvent, states: Collection[str]) -> bool:
    """Whether somebody who wants to hear of these states hears of this: a subject comes into one of them, or leaves it.

    A block that only gets longer is not told, and exhausted is told of whole limit groups, not of one model.
    """
    if event.state == event.from_:
        return False
    told = set(states) - ({HealthState.EXHAUSTED} if _about_one_model(event.subject) else set())
    return event.state in told or event.from_ in told


def body_of(telling: Telling) -> bytes:
    """The JSON object that is posted: `event`, and `text` as Slack and its like show it. Always the same bytes."""
    event = telling.event
    if event is None:
        said: Any = {"id": telling.id, "more": telling.more}
        return msgspec.json.encode({"event": said, "text": f"session-broker: {_more(telling.more)}"})
    return msgspec.json.encode({"event": event, "text": line_of(event)})


def line_of(event: HealthEvent) -> str:
    """One line for people; nothing in it has a meaning to Slack."""
    said = ["session-broker:", named(event.subject), "is"]
    if event.state == HealthState.HEALTHY:
        return " ".join([*said, f"healthy again (was {_clean(event.from_)})"])
    if event.state == HealthState.SUSPECT and event.from_ in BLOCKING:
        return " ".join([*said, f"back on trial (was {_clean(event.from_)})"])
    said.append(_clean(event.state))
    if event.because:
        said.append(f"({_clean(event.because)})")
    if until := _time(event.until):
        said.append(f"until {until}")
    return " ".join(said)


def named(subject: str) -> str:
    """A subject in words."""
    kind, _, rest = subject.partition(":")
    if kind == "endpoint":
        return f"endpoint {_clean(rest)}"
    who, _, model = rest.partition(":")
    name, own, _ = who.partition("@")
    if kind == "group":
        about = f"limit group of credential {_clean(name)}" if own else f"limit group {_clean(name)}"
    elif kind in ("credential", "model"):
        about = f"credential {_clean(name)}"
    else:
        return _clean(subject)
    return f"{about}, model {_clean(model)}" if model else about


def _about_one_model(subject: str) -> bool:
    return subject.startswith("model:") or (subject.startswith("group:") and subject.count(":") > 1)


def _more(count: int) -> str:
    return f"{count} more change" if count == 1 else f"{count} more changes"


def _time(seconds: float) -> str:
    """A time in UTC; empty for none, and for what is none."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds > 0 else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _clean(text: str) -> str:
    """Vendors and clients have a hand in these words: they stay in one line, are not long, and mention nobody."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST])
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
