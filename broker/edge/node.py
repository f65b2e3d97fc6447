"""A node: everything one edge process holds, and the order in which it comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.domain.commands import Outcome
from broker.domain.credential import Credential, Secret
from broker.domain.health import HealthState
from broker.domain.transcript import Commit
from broker.domain.turn import Policy
from broker.edge.access import Access, Tenant
from broker.edge.health import HealthBoard
from broker.edge.models import Models, asked_by
from broker.edge.placement import Placement, Placing
from broker.edge.pulse import Pulse
from broker.edge.request import ClientRequest
from broker.edge.sessions import Sessions
from broker.edge.websocket import ClientSocket
from broker.edge.wiring import Bounds, Wiring
from broker.metrics import Metrics
from broker.store.codec import Codec
from broker.store.connection import Connection, StoreUnavailable
from broker.store.health import HealthStore
from broker.store.hints import Hints
from broker.store.journal import Journal
from broker.store.nodes import NodeStore
from broker.store.owners import RETENTION, OwnerStore
from broker.store.sessions import Committed, SessionStore
from broker.store.tokens import TokenShelf
from broker.tap import Tap, tappable
from broker.upstream.dialer import Dialer, DialSettings
from broker.upstream.identity import Identity

log = logging.getLogger(__name__)

BEAT_EVERY = 1.0
"""Seconds between two heartbeats: other nodes place by this node's load as old as that."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where the store is and how it is used; `key` (32 bytes) encrypts transcripts. Without `hints` a change of health
    is seen with the next refresh."""

    url: str
    timeout: float = 1.0
    connect_timeout: float = 0.5
    idle_ttl: float = 3600.0
    owner_ttl: float = RETENTION
    max_transcript: int = 64 * 1024 * 1024
    key: bytes | None = None
    journal: int = 1000
    journal_bytes: int = 64 * 1024 * 1024
    refresh: float = 1.0
    hints: bool = True


class Node:
    """One edge. `start` must run on the loop that serves; `stop` lets go of everything, bounded in time."""

    def __init__(
        self,
        name: str,
        *,
        tenants: Sequence[Tenant],
        credentials: Sequence[Credential],
        store: StoreSettings,
        policy: Policy | None = None,
        bounds: Bounds | None = None,
        dial: DialSettings | None = None,
        placing: Placing | None = None,
    ) -> None:
        self.name = name
        self.bounds = bounds or Bounds()
        self.policy = policy or Policy(boundaries=len({c.boundary for c in credentials}))
        self.metrics = Metrics()
        self.chance = random.SystemRandom()
        self.tenants = tuple(tenants)
        self.shared = len(tenants) > 1
        self.access = Access(tenants)
        self.config_digest = digest_of(credentials, tenants)
        self.adopted_at = time.time()
        self.sockets: set[ClientSocket] = set()
        self.requests: set[ClientRequest] = set()
        self.arriving: Counter[str] = Counter()
        self.opened = 0
        self.untapped = 0
        self.ready = False
        self._store_settings = store
        self.connection = Connection(store.url, timeout=store.timeout, connect_timeout=store.connect_timeout)
        codec = Codec(store.key)
        self.owners = OwnerStore(self.connection, store.owner_ttl)
        self.store = SessionStore(
            self.connection, codec, self.owners, idle_ttl=store.idle_ttl, max_transcript=store.max_transcript
        )
        self.journal = Journal(self.store, max_turns=store.journal, max_bytes=store.journal_bytes)
        self.journal.listen(self._landed)
        self._nodes = NodeStore(self.connection)
        table = HealthStore(self.connection)
        self.health = HealthBoard(table, self._nodes, self.metrics, refresh=store.refresh, chance=self.chance)
        self.placement = Placement(
            credentials,
            self.health,
            table,
            self.metrics,
            node=name,
            chance=self.chance,
            placing=placing,
            bound=self._bound,
        )
        self.hints = Hints(store.url, self.health.hear, self.health.refresh_soon) if store.hints else None
        self.sessions = Sessions(self.store, self.journal, self.owners, self.metrics, shared=self.shared)
        self.identity = Identity(TokenShelf(self.connection))
        self.dialer = Dialer(dial or DialSettings(), self.identity, clock=self.health.now, tap=self.bounds.tap)
        fetch = asked_by(self.dialer)
        self.models = Models(lambda: self.placement.pool, fetch, self._may_serve, clock=time.monotonic)
        shortest = min(self.bounds.hold, self.bounds.first_event, self.bounds.silence)
        self.wiring = Wiring(
            self.policy,
            self.bounds,
            self.metrics,
            self.health,
            self.placement,
            self.sessions,
            self.store,
            self.journal,
            self.dialer,
            Pulse(shortest),
            self.chance,
        )
        self._boundaries = {credential.boundary for credential in credentials}
        self._duties: list[asyncio.Task[None]] = []
        self._primed()

    def _primed(self) -> None:
        """Counters that have not counted yet read 0 instead of being absent."""
        for outcome in Outcome:
            self.metrics.turns.inc(outcome.value, by=0)
        for direction in ("client", "upstream"):
            self.metrics.sockets.labels(direction)

    async def start(self) -> None:
        """Be ready to serve. A store that is away does not keep the node from starting; readiness tells."""
        await self.identity.start()
        await self.dialer.start()
        self.journal.start()
        await self.health.start()
        self.placement.start()
        if self.hints is not None:
            self.hints.start()
        every = self._store_settings.idle_ttl / 4
        self._duties = [
            asyncio.create_task(self.sessions.keep_alive(every), name="keep-alive"),
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._sweep(), name="sweep"),
        ]
        self.ready = True

    async def stop(self) -> None:
        """Close every client socket so that its client reconnects elsewhere, then everything else."""
        self.ready = False
        if self.clients:
            closing = [asyncio.create_task(socket.close(1012, "node restarts")) for socket in list(self.clients)]
            await asyncio.wait(closing, timeout=5.0)
        for duty in self._duties:
            duty.cancel()
        if self._duties:
            await asyncio.wait(self._duties, timeout=2.0)
        left = await self.journal.close(5.0)
        if left:
            log.error("turns were not written", extra={"count": left})
        if self.hints is not None:
            await self.hints.stop()
        await self.placement.stop()
        await self.health.stop()
        await self.models.close()
        await self.dialer.stop()
        await self.identity.stop()
        await self.connection.close()
        self.metrics.flush()

    def adopt(self, credentials: Sequence[Credential], tenants: Sequence[Tenant]) -> None:
        """Serve these tenants with these credentials from now on. It takes no time, and no turn sees half of it.

        A turn that runs ends on its link, with the credential it began with; the next one of its session finds the same
        link only if its credential is the same object as before. Sockets of a tenant that is gone stay until their
        clients leave. Tenants may not become several where there was one at the start (see `shared`).
        """
        gone = {credential.name for credential in self.placement.pool} - {credential.name for credential in credentials}
        self._boundaries |= {credential.boundary for credential in credentials}
        self.policy.boundaries = max(self.policy.boundaries, len(self._boundaries))
        self.placement.adopt(credentials)
        for name in gone:
            for state in HealthState:
                self.metrics.health_state.labels(name, state.value).set(0)
        self.tenants = tuple(tenants)
        self.access = Access(tenants)
        by_name = {tenant.name: tenant for tenant in tenants}
        for socket in self.clients:
            socket.tenant = by_name.get(socket.tenant.name, socket.tenant)
        self.config_digest = digest_of(credentials, tenants)
        self.adopted_at = time.time()

    def tap(self, transport: asyncio.Transport | None, protocol: asyncio.Protocol) -> Tap | None:
        """A tap on a client's socket that is about to be upgraded; None where that cannot be done."""
        if not self.bounds.tap:
            return None
        if transport is None or not tappable(transport, protocol, "_message_tail"):
            self.untapped += 1
            return None
        tap = Tap(transport, protocol, masked=True, largest=self.bounds.max_frame)
        transport.set_protocol(tap)
        return tap

    def enter(self, client: ClientSocket | ClientRequest) -> None:
        """A client's socket is open, or a request of it is here."""
        if isinstance(client, ClientSocket):
            self.sockets.add(client)
            self.opened += 1
        else:
            self.requests.add(client)

    def leave(self, client: ClientSocket | ClientRequest) -> None:
        """It is gone."""
        if isinstance(client, ClientSocket):
            self.sockets.discard(client)
        else:
            self.requests.discard(client)

    @contextlib.contextmanager
    def slot(self, tenant: Tenant) -> Iterator[None]:
        """A client that is not served yet, or not by a turn, counts as one of its tenant's."""
        self.arriving[tenant.name] += 1
        try:
            yield
        finally:
            self.arriving[tenant.name] -= 1

    def serving(self, tenant: Tenant | None = None) -> int:
        """How many clients are here, or have begun to come: all of them, or those of one tenant."""
        if tenant is None:
            return len(self.sockets) + len(self.requests) + self.arriving.total()
        return sum(client.tenant is tenant for client in self.clients) + self.arriving[tenant.name]

    @property
    def clients(self) -> list[ClientSocket | ClientRequest]:
        """Everybody who is being served."""
        return [*self.sockets, *self.requests]

    @property
    def busy(self) -> bool:
        """Whether any turn is in flight."""
        return any(self.placement.in_flight.values())

    async def store_answers(self) -> bool:
        """Whether the store answers right now."""
        try:
            await self.connection.ping()
        except StoreUnavailable:
            return False
        return True

    def _may_serve(self, credential: Credential) -> bool:
        verdict = self.health.snapshot.verdict(credential, "", self.health.now())
        return verdict.row is None or verdict.row.state not in (HealthState.REVOKED, HealthState.PAUSED)

    def _landed(self, commit: Commit, committed: Committed) -> None:
        self.metrics.commits.inc(committed.status)

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self._nodes.beat(self.name, self.load())
            await asyncio.sleep(BEAT_EVERY)

    def load(self) -> dict[str, Any]:
        """What other nodes and operators hear of this one: how much is open, and what runs on which credential."""
        return {
            "sockets": len(self.sockets),
            "links": self.dialer.open_links,
            "in_flight": +self.placement.in_flight,
            "bound": self._bound(),
        }

    def _bound(self) -> Counter[str]:
        """Sessions with an open socket, by the credential that they are pinned to."""
        pins = {socket.session.sid: socket.session.pin for socket in self.clients}
        return Counter(pin.credential for pin in pins.values() if pin is not None)

    async def _sweep(self) -> None:
        """Show the gauges, and cut off clients that have taken nothing for too long."""
        while True:
            await asyncio.sleep(1.0)
            self.show()
            self.metrics.flush()
            self._look_after(self.clients, time.monotonic() - self.bounds.send_timeout)

    def _look_after(self, clients: Sequence[ClientSocket | ClientRequest], late: float) -> None:
        # not in the loop of the task: whoever it has looked at last would be kept until the next time
        for client in clients:
            if isinstance(client, ClientRequest):
                client.check()
            if client.slow_since is None:
                continue
            client.links.keep_alive()
            if client.slow_since < late:
                self.metrics.closes.inc("slow")
                client.abort()

    def show(self) -> None:
        """Bring the gauges up to date."""
        self.metrics.sockets.labels("client").set(len(self.sockets))
        self.metrics.requests_open.set(len(self.requests))
        self.metrics.sockets.labels("upstream").set(self.dialer.open_links)
        self.metrics.untapped.labels("client").set(self.untapped)
        self.metrics.untapped.labels("upstream").set(self.dialer.ordinary)
        self.metrics.sessions.set(len({socket.session.sid for socket in self.clients}))
        self.metrics.journal.set(len(self.journal))


def digest_of(credentials: Sequence[Credential], tenants: Sequence[Tenant]) -> str:
    """Twelve hex digits that two nodes have in common if, and only if, they serve the same tenants with the same
    credentials; of secrets they hold the generation alone."""
    told = hashlib.sha256()
    items: tuple[Credential | Tenant, ...] = (*credentials, *tenants)
    for item in items:
        for field in dataclasses.fields(item):
            value = getattr(item, field.name)
            if not isinstance(value, Secret):
                told.update(repr((field.name, _ordered(value))).encode())
    return told.hexdigest()[:12]


def _ordered(value: object) -> object:
    if isinstance(value, Mapping):
        return sorted(value.items())
    return sorted(value) if isinstance(value, frozenset) else value
