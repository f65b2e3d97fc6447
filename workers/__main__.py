"""Runs all duties in one process, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets as chance
import signal
import time
from collections.abc import Sequence

import uvloop

from broker.config import Config, ResolvedSecrets
from broker.config.pool import pool
from broker.config.reload import Reloaded, Reloader, Source, kept, same
from broker.domain.credential import Credential, Secret
from broker.metrics import WorkerMetrics
from broker.store.connection import Connection, StoreUnavailable
from broker.store.events import EventStore
from broker.store.health import HealthStore
from broker.store.leases import LeaseStore
from broker.store.nodes import NodeStore
from broker.store.sweep import SweepStore
from broker.store.tellings import TellingStore
from broker.store.timeline import TimelineStore
from broker.store.tokens import TokenShelf
from broker.upstream import probe
from broker.upstream.identity import Identity
from workers.cluster import Cluster
from workers.duties import Duty, Progress, run_duty
from workers.heartbeat import Heartbeat
from workers.janitor import Janitor
from workers.leadership import TTL, Lead
from workers.operations import Listener, Outlook
from workers.prober import Prober
from workers.recorder import Recorder
from workers.webhooks import Webhook, Webhooks, webhooks_of

log = logging.getLogger(__name__)

ENDS_WITHIN, CLOSES_WITHIN = 2.5, 2.0
"""Seconds in which the duties end and give their leases back, and in which all else is let go of."""


class Worker:
    """One worker: its connections, its duties, and what can be read of it. `credentials` may change while it runs."""

    def __init__(
        self,
        config: Config,
        credentials: Sequence[Credential],
        redis_url: Secret,
        webhooks: Sequence[Webhook] = (),
    ) -> None:
        store = config.store
        self.name = f"{config.node}-worker-{os.getpid()}"
        self.credentials = list(credentials)
        self.metrics = WorkerMetrics()
        self.cluster = Cluster(self.metrics)
        self.connection = Connection(redis_url.reveal(), timeout=store.timeout, connect_timeout=store.connect_timeout)
        self.nodes = NodeStore(self.connection)
        self.identity = Identity(TokenShelf(self.connection))
        self.asks = probe.Prober(clock=time.time, identity=self.identity)
        self.prober = Prober(
            HealthStore(self.connection), self.asks, lambda: self.credentials, counted=self.metrics.probes.inc
        )
        leases, token = LeaseStore(self.connection), f"{self.name}:{chance.token_hex(8)}"
        tellings = TellingStore(self.connection, token)
        self.webhooks = Webhooks(webhooks, tellings, counts=self.metrics.webhook_posts)
        self.progress = make_progress(self.duties(config), leases, token, self.metrics, ttl=config.worker.lease)
        self.stopping = asyncio.Event()
        self.outlook = Outlook(self.name, self.progress, self.metrics, self.cluster, self._store_answers, self.stopping)
        self.listener = Listener(self.outlook)

    def duties(self, config: Config) -> list[Duty]:
        """All duties. A new one is added here."""
        return [
            Heartbeat(self.nodes, self.name, lambda: self.outlook.leads()),
            Janitor(
                self.nodes,
                SweepStore(self.connection),
                lambda: self.credentials,
                self.cluster,
                idle_ttl=config.session.idle_ttl,
            ),
            self.prober,
            Recorder(
                EventStore(self.connection),
                TimelineStore(self.connection),
                self.webhooks,
                self.name,
                counts=self.metrics.health_events,
            ),
        ]

    async def run(self, host: str, port: int) -> None:
        """Run until `stopping` is set; then end within five seconds. Raises `OSError` where it cannot listen."""
        await self.identity.start()
        await self.asks.start()
        try:
            await self.listener.start(host, port)
            log.info("ready", extra={"node": self.name})
            await run_until(self.stopping, self.progress)
        finally:
            self.stopping.set()
            log.info("stopping", extra={"node": self.name})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSES_WITHIN):
                    await self._let_go()

    async def _let_go(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            await asyncio.gather(self.prober.stop(), self.nodes.leave(self.name), self.webhooks.close(0.3))
        await self.asks.stop()
        await self.identity.stop()
        await self.listener.stop()
        await self.connection.close()

    async def _store_answers(self) -> bool:
        try:
            await self.connection.ping()
        except StoreUnavailable:
            return False
        return True

    def take(self, config: Config, secrets: ResolvedSecrets) -> Reloaded:
        """Take over the credentials of a changed configuration."""
        self.webhooks.follow(webhooks_of(config, secrets))
        credentials = kept(self.credentials, pool(config, secrets))
        if same(credentials, self.credentials):
            return Reloaded.UNCHANGED
        self.credentials = credentials
        log.info("configuration adopted", extra={"node": self.name, "count": len(credentials)})
        return Reloaded.ADOPTED


def run(config: Config, secrets: ResolvedSecrets, redis_url: Secret, source: Source) -> None:
    """Run the duties until SIGTERM or SIGINT; blocks. Raises `OSError` where it cannot listen."""
    uvloop.run(_run(config, secrets, redis_url, source))


async def _run(config: Config, secrets: ResolvedSecrets, redis_url: Secret, source: Source) -> None:
    worker = Worker(config, pool(config, secrets), redis_url, webhooks_of(config, secrets))
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.stopping.set)
    reloader = Reloader(worker.take, source, config, counted=worker.metrics.config_reloads.inc)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    reloading = asyncio.create_task(reloader.run(), name="reload")
    listen = config.worker.operations_listen
    try:
        await worker.run(listen.host, listen.port)
    finally:
        reloading.cancel()
        await asyncio.wait([reloading])


def make_progress(
    duties: Sequence[Duty], leases: LeaseStore, token: str, metrics: WorkerMetrics, *, ttl: float = TTL
) -> list[Progress]:
    """The duties as this worker does them: those to be done alone with a lead each."""
    return [
        Progress(
            duty,
            Lead(leases, f"duty:{duty.name}", token, ttl=ttl) if duty.alone else None,
            steps=metrics.duty_steps,
        )
        for duty in duties
    ]


async def run_until(stopping: asyncio.Event, progress: Sequence[Progress]) -> None:
    """Run these duties until `stopping` is set. A duty that breaks takes the worker with it, to be started anew."""
    tasks = [asyncio.create_task(run_duty(each), name=f"duty:{each.duty.name}") for each in progress]
    told = asyncio.create_task(stopping.wait(), name="stopping")
    try:
        done, _ = await asyncio.wait([*tasks, told], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*tasks, told):
            task.cancel()
        await asyncio.wait([*tasks, told], timeout=ENDS_WITHIN)
    for task in done - {told}:
        task.result()
