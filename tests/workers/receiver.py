"""A receiver of webhooks: a real HTTP server that answers as it is told, and remembers what came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from broker.domain.credential import Secret
from tests.serving import serving


@dataclass
class Post:
    """One post as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["X-Broker-Event"]


@dataclass
class Receiver:
    """`answers` are the statuses of the next posts, then 200. While `open` is not set, answers wait."""

    port: int = 0
    posts: list[Post] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0

    def url(self, path: str = "/hook") -> Secret:
        return Secret(f"http://127.0.0.1:{self.port}{path}")

    @property
    def ids(self) -> list[str]:
        return [post.id for post in self.posts]

    async def take(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.posts.append(Post(request.path, dict(request.headers), await request.read()))
        status = self.answers.pop(0) if self.answers else 200
        try:
            await self.open.wait()
        finally:
            self.at_once -= 1
        return web.Response(status=status, headers={"Location": "/elsewhere"} if 300 <= status < 400 else {})


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    receiver.open.set()
    async with serving(web.route("*", "/{path:.*}", receiver.take), cancels=True) as address:
        receiver.port = int(address.rpartition(":")[2])
        yield receiver
