"""The Lua scripts of the store: each is a file of its own in `lua/`, with its contract on top."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the server knows it: by its text, and by the SHA-1 of it."""

    name: str
    text: str
    sha: str


def load(name: str) -> Script:
    """The script of that name."""
    text = files("broker.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


MOVE_PIN = load("move_pin")
COMMIT = load("commit")
FIND = load("find")
CHAIN = load("chain")
CLOSE_SESSION = load("close_session")
REPORT = load("report")
LICENCE = load("licence")
CLAIM = load("claim")
BEAT = load("beat")
REMOVE_STALE = load("remove_stale")
LEASE = load("lease")
FORGET_ROW = load("forget_row")
FORGET_RESPONSE = load("forget_response")
TRIM_EVENTS = load("trim_events")
READ_EVENTS = load("read_events")
RECLAIM_EVENTS = load("reclaim_events")
RECORD_EVENT = load("record_event")
OWE = load("owe")
OWED = load("owed")
CLAIM_TELLING = load("claim_telling")
END_TELLING = load("end_telling")
