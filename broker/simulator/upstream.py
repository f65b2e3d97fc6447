"""The simulated vendor as one object: start it, point credentials at it, break it, look at what it saw."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from broker.simulator.control_api import add_control, end_sockets
from broker.simulator.credentials import SimCredential, SimOptions
from broker.simulator.faults import Fault, FaultBoard
from broker.simulator.handshake import VENDOR, tell_limits
from broker.simulator.http import compact, create_conversation, create_response, list_models
from broker.simulator.record import Handshake, TurnRecord
from broker.simulator.socket import open_socket
from broker.simulator.telemetry import Telemetry
from broker.simulator.vendor import Vendor


class Simulator:
    """A vendor on a port of its own; options are fields of SimOptions."""

    def __init__(self, credentials: Sequence[SimCredential], options: SimOptions | None = None, **changes: Any) -> None:
        self.options = replace(options or SimOptions(), **changes)
        self.vendor = Vendor(credentials, self.options)
        self._runner: web.AppRunner | None = None
        self._origin = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one, which `base_url` then names."""
        runner = web.AppRunner(self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, host, port, backlog=4096).start()
        self._runner = runner
        bound = runner.addresses[0][1]
        self._origin = f"http://{f'[{host}]' if ':' in host else host}:{bound}"

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._runner is None:
            return
        await self.end_sockets(do="close", code=1001)
        await self._runner.cleanup()
        self._runner = None

    @property
    def base_url(self) -> str:
        return self._origin + "/v1"

    @property
    def control_url(self) -> str:
        return self._origin + "/_sim"

    @property
    def faults(self) -> FaultBoard:
        return self.vendor.faults

    def tell_limits(self, credential: str, used_percent: float | None, **how: Any) -> None:
        """Tell a credential ("*" is all) how much of its window is used, from now on; None keeps silent again.

        `how` are the other fields of Telemetry, such as `resets_at` or `style`.
        """
        if used_percent is None:
            self.vendor.limits.pop(credential, None)
        else:
            self.vendor.limits[credential] = Telemetry(used_percent, **how)

    @property
    def turns(self) -> list[TurnRecord]:
        """The turns seen so far, oldest first."""
        return list(self.vendor.recorder.turns)

    @property
    def handshakes(self) -> list[Handshake]:
        """The upgrades and HTTP requests seen so far, oldest first."""
        return list(self.vendor.recorder.handshakes)

    @property
    def sockets(self) -> dict[str, int]:
        """Live WebSockets by credential name."""
        return {known.name: self.vendor.recorder.sockets[known.name] for known in self.vendor.credentials}

    def forget(self) -> None:
        """Drop all records."""
        self.vendor.recorder.turns.clear()
        self.vendor.recorder.handshakes.clear()

    def create_conversation(self, boundary: str) -> str:
        """The id of a new conversation object of an organisation."""
        return self.vendor.store_of(boundary).create_conversation().id

    async def end_sockets(self, credential: str = "*", *, do: str = "reset", code: int = 1001) -> int:
        """Reset or close all live sockets of a credential at once, busy or not; returns how many."""
        return await end_sockets(self.vendor, credential, Fault(at="idle", do=do, close_code=code, message=""))

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app[VENDOR] = self.vendor
        app.router.add_get("/v1/responses", open_socket)
        app.router.add_post("/v1/responses", create_response)
        app.router.add_post("/v1/responses/compact", compact)
        app.router.add_post("/v1/conversations", create_conversation)
        app.router.add_get("/v1/models", list_models)
        app.on_response_prepare.append(tell_limits)
        add_control(app)
        return app
