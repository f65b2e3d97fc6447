"""What operators read of a worker: whether it lives, what its duties do, and its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from broker.metrics import WorkerMetrics
from workers.cluster import Cluster
from workers.duties import Progress
from workers.janitor import Janitor


class Outlook:
    """All that can be read of a worker. `stopping` is set when it is told to end."""

    def __init__(
        self,
        node: str,
        progress: Sequence[Progress],
        metrics: WorkerMetrics,
        cluster: Cluster,
        store_answers: Callable[[], Awaitable[bool]],
        stopping: asyncio.Event,
    ) -> None:
        self.node = node
        self.stopping = stopping
        self._progress = progress
        self._metrics = metrics
        self._cluster = cluster
        self._store_answers = store_answers

    async def detail(self) -> dict[str, Any]:
        """What readiness tells. Bounded by the time that the store has for an answer."""
        store = await self._store_answers()
        return {
            "status": "stopping" if self.stopping.is_set() else "ready",
            "node": self.node,
            "degraded": not store,
            "store": "ok" if store else "away",
            "leads": self.leads(),
            "duties": {
                each.duty.name: {
                    "age": round(each.age, 3),
                    "alone": each.duty.alone,
                    "leading": each.leading,
                }
                for each in self._progress
            },
        }

    def leads(self) -> list[str]:
        """The duties that this worker, and no other, does right now."""
        return [each.duty.name for each in self._progress if each.duty.alone and each.leading]

    def render(self) -> bytes:
        """The exposition text, with the gauges as they are now."""
        for each in self._progress:
            self._metrics.duty_age.labels(each.duty.name).set(each.age)
            self._metrics.duty_leader.labels(each.duty.name).set(each.leading)
        if Janitor.name not in self.leads():
            self._cluster.hide()
        return self._metrics.render()


OUTLOOK: web.AppKey[Outlook] = web.AppKey("outlook", Outlook)


def operations_app(outlook: Outlook) -> web.Application:
    """What operators read; on a listener of its own that is never public."""
    app = web.Application()
    app[OUTLOOK] = outlook
    app.router.add_get("/livez", _livez)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)
    return app


async def _livez(request: web.Request) -> web.Response:
    """The loop turns. Nothing else is a reason to kill a worker: the store is waited for."""
    return web.json_response({"status": "alive", "node": request.app[OUTLOOK].node})


async def _readyz(request: web.Request) -> web.Response:
    """A store that is away makes a worker degraded, not unready: a new one would wait as well."""
    outlook = request.app[OUTLOOK]
    return web.json_response(await outlook.detail(), status=503 if outlook.stopping.is_set() else 200)


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[OUTLOOK].render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


class Listener:
    """The listener for operators."""

    def __init__(self, outlook: Outlook) -> None:
        self._runner = web.AppRunner(operations_app(outlook), access_log=None, shutdown_timeout=0.5)
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one, to be read from `port`. Raises `OSError` where that cannot be."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; bounded in time."""
        await self._runner.cleanup()
