"""A directory that makes tokens, as Entra ID does: a real server that counts and remembers what it was asked."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

from broker.domain.credential import Entra, Secret

TENANT, CLIENT, SCOPE = "acme.example", "client-1", "https://ai.azure.com/.default"
HIDDEN = "canary~of-the.application"
SECRET = Secret(HIDDEN)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Directory:
    """Makes tokens that live `life` seconds. `answer` replaces what it does; closed, `gate` holds answers back."""

    def __init__(self) -> None:
        self.life: object = 3600
        self.answer: Answer | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[dict[str, str]] = []
        self.made: list[str] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def entra(self) -> Entra:
        """The one application it knows."""
        return Entra(TENANT, CLIENT, SCOPE, f"http://127.0.0.1:{self._port}")

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{tenant}/oauth2/v2.0/token", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def fails(self, status: int, word: object, **headers: str) -> None:
        """From now on it refuses."""

        async def refuse(request: web.Request) -> web.StreamResponse:
            told = {"error": word, "error_description": f"AADSTS: {CLIENT} of {TENANT} with {HIDDEN[:9]}"}
            return web.json_response(told, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

        self.answer = refuse

    def says(self, body: bytes) -> None:
        """From now on this is its answer to everything."""

        async def say(request: web.Request) -> web.StreamResponse:
            return web.Response(body=body, content_type="application/json")

        self.answer = say

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        self.asked.append({**{k: str(v) for k, v in form.items()}, "tenant": request.match_info["tenant"]})
        await self.gate.wait()
        if self.answer is not None:
            return await self.answer(request)
        if form.get("client_secret") != HIDDEN:
            return web.json_response({"error": "invalid_client", "error_description": "AADSTS7000215"}, status=401)
        self.made.append(f"canary-token-{secrets.token_hex(16)}")
        return web.json_response({"token_type": "Bearer", "expires_in": self.life, "access_token": self.made[-1]})
