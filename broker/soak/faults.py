"""The fault schedule of a soak: seeded, of every kind, and never without one credential that is well."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from broker.simulator import Fault, Simulator, presets

SETTLED = 5.0
"""Seconds after its last fault in which a credential can still be blocked by what was told of it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: a preset or a fault of its own, and how it is brought about."""

    name: str
    fault: Fault
    weight: float = 1.0
    revokes: bool = False


def _kinds() -> list[Kind]:
    def preset(name: str, **changes: object) -> Fault:
        return presets[name].but(**changes)

    return [
        Kind("quota", preset("usage_limit_reached", resets_in=1), 3),
        Kind("quota after created", preset("usage_limit_reached", resets_in=1, at="after_created"), 2),
        Kind("quota without a time", preset("insufficient_quota", resets_in=1), 1),
        Kind("rate limit", preset("rate_limit_exceeded", headers={"retry-after-ms": "700"}), 2),
        Kind("overload", preset("server_is_overloaded"), 2),
        Kind("overload after created", preset("server_is_overloaded", at="after_created"), 2),
        Kind("double frame", preset("server_is_overloaded", at="after_created", do="double"), 2),
        Kind("failed", preset("server_error", at="after_created", do="failed"), 2),
        Kind("capacity as 400", preset("capacity_400"), 1),
        Kind("no status", preset("server_is_overloaded", omit_status=True), 1),
        Kind("generic 401", preset("unauthorized_generic"), 1),
        Kind(
            "handshake 429", preset("rate_limit_exceeded", at="handshake", do="refuse", headers={"retry-after": "1"}), 2
        ),
        Kind("handshake 503", preset("service_unavailable", at="handshake", do="refuse"), 2),
        Kind("handshake html", presets["cloudflare_html"], 1),
        Kind("reset before created", Fault(at="before_created", do="reset"), 2),
        Kind("reset after created", Fault(at="after_created", do="reset"), 2),
        Kind("reset after output", Fault(at="after_deltas", after=2, do="reset"), 1),
        Kind("close before created", Fault(at="before_created", do="close", close_code=1011), 1),
        Kind("close after output", Fault(at="after_deltas", after=1, do="close", close_code=1011), 1),
        Kind("garbage", Fault(at="after_created", do="garbage"), 1),
        Kind("half a frame", Fault(at="before_created", do="garbage", variant="half"), 1),
        Kind("error after output", preset("server_error", at="after_deltas", after=2), 1),
        Kind("silence", Fault(at="before_created", do="silence"), 1),
        Kind("idle reset", Fault(at="idle", do="reset"), 2),
        Kind("idle close", Fault(at="idle", do="close", close_code=1001), 2),
        Kind("forgotten", Fault(at="idle", do="drop_continuation"), 2),
        Kind("age limit", preset("websocket_connection_limit_reached", at="idle", do="error"), 2),
        Kind("age limit in a turn", preset("websocket_connection_limit_reached"), 1),
        Kind("revoked", preset("token_invalidated"), 0.2, revokes=True),
    ]


KINDS = _kinds()


@dataclass
class Schedule:
    """Brings faults about until it is stopped. `counts` says how often each kind was armed."""

    sim: Simulator
    credentials: list[str]
    chance: random.Random
    every: float = 0.05
    counts: Counter[str] = field(default_factory=Counter)
    revoked: set[str] = field(default_factory=set)
    _well: str = ""
    _next: str = ""
    _settled_at: float = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        self._well = self._next = self.credentials[0]
        while True:
            await asyncio.sleep(self.every * self.chance.uniform(0.5, 1.5))
            self._rotate()
            self._strike()

    def _rotate(self) -> None:
        """The part of the one that stays well goes round; who takes it over is left alone for long enough before."""
        now = time.monotonic()
        if now < self._settled_at:
            return
        self._well = self._next
        others = [name for name in self.credentials if name != self._well and name not in self.revoked]
        if others:
            self._next = self.chance.choice(others)
            self.sim.faults.clear(self._next)
        self._settled_at = now + SETTLED

    def _strike(self) -> None:
        kind = self.chance.choices(KINDS, [kind.weight for kind in KINDS])[0]
        targets = [name for name in self.credentials if name not in (self._well, self._next, *self.revoked)]
        if not targets or (kind.revokes and len(targets) < 2):
            return
        name = self.chance.choice(targets)
        self.counts[kind.name] += 1
        if kind.revokes:
            self.revoked.add(name)
            self.sim.faults.set(name, kind.fault)
        else:
            self.sim.faults.set(name, kind.fault.but(times=self.chance.randint(1, 4)))

    def stop(self) -> None:
        """No more faults."""
        self.sim.faults.clear()
