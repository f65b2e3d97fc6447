"""From a configuration to a running node with its two listeners; and what operators read."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

import msgspec
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from broker.config import Config, ResolvedSecrets, TenantConfig
from broker.config.pool import pool
from broker.config.reload import Source
from broker.domain.credential import Credential, Secret
from broker.domain.frames import COMPILED
from broker.domain.selection import Strategy, Wish
from broker.domain.session import derive_sid
from broker.domain.turn import Policy
from broker.edge.access import Tenant
from broker.edge.collector import Collector
from broker.edge.node import Node, StoreSettings
from broker.edge.placement import Placing
from broker.edge.reload import reloader
from broker.edge.routes import NODE, client_app
from broker.edge.wiring import Bounds
from broker.store.connection import StoreUnavailable
from broker.upstream.dialer import DialSettings

log = logging.getLogger(__name__)


def operations_app(node: Node) -> web.Application:
    """What operators read; on a listener of its own that is never public."""
    app = web.Application()
    app[NODE] = node
    app.router.add_get("/livez", _livez)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/explain", _explain)
    return app


async def _livez(request: web.Request) -> web.Response:
    """The loop turns. Nothing else is a reason to kill a process that holds sessions."""
    return web.json_response({"status": "alive", "node": request.app[NODE].name})


async def _readyz(request: web.Request) -> web.Response:
    """Whether this node should get new connections.

    A store that is away makes a node degraded, not unready: live sessions go on, and a fleet that steps back as one
    would turn a pause of the store into an outage.
    """
    node = request.app[NODE]
    store = await node.store_answers()
    usable = node.placement.usable()
    detail = {
        "status": "ready" if node.ready else "stopping",
        "node": node.name,
        "degraded": not store or node.journal.degraded or usable == 0,
        "store": "ok" if store else "away",
        "journal": len(node.journal),
        "credentials_usable": usable,
        "credentials": len(node.placement.pool),
        "config": node.config_digest,
        "config_since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(node.adopted_at)),
        "sockets": len(node.sockets),
    }
    return web.json_response(detail, status=200 if node.ready else 503)


async def _metrics(request: web.Request) -> web.Response:
    node = request.app[NODE]
    node.show()
    return web.Response(body=node.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _explain(request: web.Request) -> web.Response:
    """Which credential a turn would be placed on here and now, and of every other one why it was passed over.

    Query: `model` (any), `session` and `tenant` (for a session that exists).
    """
    node, query = request.app[NODE], request.query
    pin, sid = None, ""
    if name := query.get("session"):
        sid = derive_sid(query.get("tenant", ""), name)
        try:
            session = await node.store.load(sid)
        except StoreUnavailable:
            return web.json_response({"error": "the store is away, and only it knows the session"}, status=503)
        if session is None:
            return web.json_response({"error": "no such session of this tenant"}, status=404)
        pin = session.pin
    wish = Wish(query.get("model", ""), pin.credential if pin is not None else None, session=sid)
    candidates = [msgspec.to_builtins(told) for told in node.placement.explain(wish)]
    return web.json_response({"model": wish.model, "pinned": wish.preferred, "candidates": candidates})


# --- from the configuration to a running node -----------------------------------------------------------------------


def build_node(config: Config, secrets: ResolvedSecrets, redis_url: Secret, *, process_index: int = 0) -> Node:
    """A node as configured; every room gets values, none reads the environment."""
    session, turn, limits, store = config.session, config.turn, config.limits, config.store
    credentials, tenants = taken_over(config, secrets)
    return Node(
        config.node if process_index == 0 else f"{config.node}-{process_index}",
        tenants=tenants,
        credentials=credentials,
        store=StoreSettings(
            url=redis_url.reveal(),
            timeout=store.timeout,
            connect_timeout=store.connect_timeout,
            idle_ttl=session.idle_ttl,
            owner_ttl=session.owner_ttl,
            max_transcript=session.max_transcript,
            key=secrets.encryption_key_bytes(),
            journal=store.journal,
            journal_bytes=store.journal_bytes,
            refresh=store.refresh,
        ),
        policy=Policy(turn.placements, turn.placing, boundaries=len({item.boundary for item in credentials})),
        bounds=Bounds(
            hold=turn.hold,
            first_event=turn.first_event,
            silence=turn.silence,
            answer=turn.answer,
            send_timeout=limits.send_timeout,
            heartbeat=limits.heartbeat,
            handshake=limits.handshake,
            request=limits.request,
            max_frame=limits.max_frame,
            max_sockets=limits.max_sockets,
            lane_queue=limits.lane_queue,
            transcript=session.transcript,
        ),
        dial=DialSettings(turn.connect, limits.max_upstream_frame, limits.heartbeat),
        placing=Placing(Strategy(config.selection.strategy), turn.wait),
    )


def taken_over(config: Config, secrets: ResolvedSecrets) -> tuple[list[Credential], list[Tenant]]:
    """What of a configuration a node takes over while it serves."""
    return pool(config, secrets), [_tenant(item) for item in config.tenants]


def _tenant(item: TenantConfig) -> Tenant:
    digests = tuple(bytes.fromhex(str(key).removeprefix("sha256:")) for key in item.keys)
    return Tenant(item.name, digests, item.transcript, item.max_sockets)


class Listeners:
    """A node with its two listeners: one for clients, one for operators."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._runners: list[web.AppRunner] = []
        self.client_port = 0
        self.operations_port = 0

    async def start(self, clients: tuple[str, int], operations: tuple[str, int], *, reuse_port: bool = False) -> None:
        """Start the node and listen; port 0 takes a free one, to be read from `client_port`, `operations_port`."""
        await self.node.start()
        self.client_port = await self._listen(client_app(self.node), *clients, reuse_port=reuse_port)
        self.operations_port = await self._listen(operations_app(self.node), *operations, reuse_port=reuse_port)

    async def _listen(self, app: web.Application, host: str, port: int, *, reuse_port: bool) -> int:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, host, port, reuse_port=reuse_port or None)
        await site.start()
        bound: int = runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Close the sockets with a reason, then the listeners, then the node."""
        await self.node.stop()
        for runner in self._runners:
            await runner.cleanup()


def run_node(
    config: Config, secrets: ResolvedSecrets, redis_url: Secret, source: Source, *, reuse_port: bool, process_index: int
) -> None:
    """Serve until SIGTERM or SIGINT, and follow `source`, at once with SIGHUP; blocks."""
    uvloop.run(_run_node(config, secrets, redis_url, source, reuse_port=reuse_port, process_index=process_index))


async def _run_node(
    config: Config, secrets: ResolvedSecrets, redis_url: Secret, source: Source, *, reuse_port: bool, process_index: int
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    listeners = Listeners(build_node(config, secrets, redis_url, process_index=process_index))
    reloading = reloader(listeners.node, (config, secrets), source, taken_over)
    loop.add_signal_handler(signal.SIGHUP, reloading.ask)
    clients, operations = config.listen, config.operations_listen
    try:
        await listeners.start((clients.host, clients.port), (operations.host, operations.port), reuse_port=reuse_port)
        node = listeners.node
        collector = Collector(lambda: node.opened, lambda: node.opened - len(node.sockets), lambda: node.busy)
        collector.start()
        duties = [
            asyncio.create_task(collector.run(), name="collector"),
            asyncio.create_task(reloading.run(), name="reload"),
        ]
        log.info("ready", extra={"node": node.name, "frames": "compiled" if COMPILED else "in Python"})
        await stopping.wait()
        for duty in duties:
            duty.cancel()
        log.info("stopping", extra={"node": listeners.node.name})
    finally:
        await listeners.stop()
