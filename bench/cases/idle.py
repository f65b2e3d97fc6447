"""Memory of a session that had a turn and waits: a node's private memory with 2,000 of them, less that before."""

from __future__ import annotations

import time
from pathlib import Path

from bench.finding import Finding, median_of
from bench.holding import Holding
from bench.stand import Relay, Stand

SESSIONS = 2000
TARGET_KB = 40.0
MOST_ROUNDS = 3
"""Fresh processes; they differ by less than one part in a hundred, and each takes seconds."""

SETTLES = 1.5
"""Seconds that the node has to let go of what the turns needed: it looks every second."""


def idle(rounds: int) -> list[Finding]:
    """KB per session, of the broker and of the plain relay."""
    broker, plain = [], []
    with Stand() as stand:
        for number in range(min(rounds, MOST_ROUNDS)):
            broker.append(_kb_per_session(stand, stand.broker(f"broker-{number}")))
            plain.append(_kb_per_session(stand, stand.plain(uvloop=True)))
    return [
        median_of("idle", "memory/session", "KB", broker, TARGET_KB),
        median_of("idle", "memory/session, aiohttp+uvloop", "KB", plain),
    ]


def _kb_per_session(stand: Stand, relay: Relay) -> float:
    """Of a fresh process: one that has had sessions before keeps their memory, and would look better."""
    relay.start(stand.folder)
    try:
        before = private_kb(relay.pids)
        with Holding(stand, relay, sessions=SESSIONS):
            time.sleep(SETTLES)
            return (private_kb(relay.pids) - before) / SESSIONS
    finally:
        relay.stop()


def private_kb(pids: list[int]) -> float:
    """What these processes have to themselves, and would give back if they ended."""
    return sum(_private_kb(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids)


def _private_kb(rollup: str) -> float:
    rows = (line.split() for line in rollup.splitlines())
    return sum(float(row[1]) for row in rows if row[0] in ("Private_Clean:", "Private_Dirty:"))
