"""Allotment: how many turns this node may run at once on a credential whose cap holds for all nodes together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from broker.domain.credential import Credential
from broker.metrics import Metrics
from broker.store.health import HealthStore
from broker.store.reasons import StoreUnavailable

LASTS = 5.0
"""Seconds after which the slots of a node that has died are others' to take."""

SETTLE_EVERY = 1.0

ASK_EVERY = 0.2
"""Seconds after a claim that brought too little in which no more is claimed."""


class Allotment:
    """Slots are claimed when they are needed and given back when they were idle for a moment (`settle`, once a second).

    A turn that finds a free slot here needs no round trip. `caps` says what selection may count on: less than the
    whole cap only while others are known to hold the rest. `came` is called when a claim was answered.
    """

    def __init__(
        self,
        node: str,
        store: HealthStore,
        metrics: Metrics,
        in_flight: Mapping[str, int],
        came: Callable[[], None],
    ) -> None:
        self.caps: dict[str, int] = {}
        self.share = (0, 1)
        self._node = node
        self._store = store
        self._metrics = metrics
        self._in_flight = in_flight
        self._came = came
        self._held: dict[str, int] = {}
        self._tight: dict[str, float] = {}
        self._sought: dict[str, tuple[float, int]] = {}
        self._settler: asyncio.Task[None] | None = None
        self._claims: dict[str, asyncio.Task[None]] = {}

    def start(self, pool: Callable[[], Mapping[str, Credential]]) -> None:
        """Settle from now on, for the credentials that `pool` has by name."""
        self._settler = asyncio.create_task(self._keep_settled(pool), name="slots")

    async def _keep_settled(self, pool: Callable[[], Mapping[str, Credential]]) -> None:
        while True:
            await asyncio.sleep(SETTLE_EVERY)
            self.settle(pool())

    async def stop(self) -> None:
        """Give everything back, bounded."""
        if self._settler is not None:
            self._settler.cancel()
            await asyncio.wait([self._settler])
        for task in self._claims.values():
            task.cancel()
        giving = [
            asyncio.create_task(self._store.claim(name, self._node, 0, used=0, cap=1, lasting=LASTS))
            for name in self._held
        ]
        if giving:
            await asyncio.wait(giving, timeout=1.0)
            for given in giving:
                if given.done() and not given.cancelled():
                    given.exception()

    def has_room(self, credential: Credential, waiting: int) -> bool:
        """Whether another turn may start here now; if not, slots for it and for those who wait are claimed."""
        name, cap = credential.name, credential.max_in_flight
        running = self._in_flight[name]
        if not cap or running < self._held.get(name, 0):
            return True
        if name not in self._claims:
            slots = min(running + 1 + waiting, cap)
            self._sought[name] = (asyncio.get_running_loop().time() + SETTLE_EVERY, slots)
            self._claim(credential, slots)
        return False

    def settle(self, pool: Mapping[str, Credential]) -> None:
        """Renew what is in use, give back what is idle, and let tight credentials be asked for again."""
        now = asyncio.get_running_loop().time()
        for name in [name for name, until in self._tight.items() if until <= now]:
            del self._tight[name]
            self.caps.pop(name, None)
        for name in [name for name in self._held if name not in self._claims]:
            credential = pool.get(name)
            if credential is None or not credential.max_in_flight:
                del self._held[name]
            else:
                # no turn shall start on what is being given back
                self._held[name] = min(self._held[name], self._in_flight[name])
                self._claim(credential, self._in_flight[name])

    def _claim(self, credential: Credential, slots: int) -> None:
        name = credential.name
        task = asyncio.create_task(self._ask(credential, slots), name=f"claim:{name}")
        self._claims[name] = task
        task.add_done_callback(lambda done: self._claims.pop(name, None))

    async def _ask(self, credential: Credential, slots: int) -> None:
        name, cap = credential.name, credential.max_in_flight
        loop, running = asyncio.get_running_loop(), self._in_flight[credential.name]
        try:
            until, sought = self._sought.get(name, (0.0, 0))
            wants = max(slots, sought if until > loop.time() else 0)
            claim = await self._store.claim(
                name, self._node, slots, used=min(running, slots), cap=cap, lasting=LASTS, wants=wants
            )
            held = min(claim.held, claim.most)  # what runs beyond its part is not replaced when it ends
        except StoreUnavailable as error:
            # nobody can say what the others run: an even part is this node's
            self._metrics.store_errors.inc(error.reason)
            index, nodes = self.share
            held = cap // nodes + (index < cap % nodes)
        if held:
            self._held[name] = held
        else:
            self._held.pop(name, None)
        if held < slots:
            self.caps[name] = max(held, self._in_flight[name])
            self._tight[name] = loop.time() + ASK_EVERY
            loop.call_later(ASK_EVERY * 1.01, self._again, name)
        loop.call_soon(self._came)

    def _again(self, name: str) -> None:
        if self._tight.pop(name, None) is not None:
            self.caps.pop(name, None)
            self._came()
