"""The simulated vendor as one object: start it, point credentials at it, break it, look at what it saw."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from broker.simulator.control_api import add_control, end_sockets
from broker.simulator.credentials import SimCredential, SimOptions
from broker.simulator.faults import Fault, FaultBoard
from broker.simulator.handshake import VENDOR, name_request, tell_limits
from broker.simulator.record import Handshake, TurnRecord
from broker.simulator.routes import add_routes
from broker.simulator.script import SCRIPTS, Script
from broker.simulator.telemetry import Telemetry
from broker.simulator.tokens import Tokens
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
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=0.1,
            keepalive_timeout=self.options.keep_alive,
        )
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
        await self.vendor.stop()
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

    def script(self, scripts: Iterable[Script]) -> None:
        """Let markers in prompts ask for these calls, besides `[[tools:N]]`, which may be given anew."""
        self.vendor.scripts = {**SCRIPTS, **{script.marker: script for script in scripts}}

    @property
    def tokens(self) -> Tokens:
        """The tokens of applications: how long they live, how often they were asked for, what goes wrong there."""
        return self.vendor.tokens

    def base_url_of(self, prefix: str) -> str:
        """The base url under another prefix, such as /openai/v1."""
        return self._origin + prefix

    @property
    def token_url(self) -> str:
        """The authority of the tokens; the path of the endpoint is /{tenant}/oauth2/v2.0/token."""
        return self._origin

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

    @property
    def connections(self) -> int:
        """Open connections of any kind, idle ones of HTTP included."""
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    def forget(self) -> None:
        """Drop all records."""
        self.vendor.recorder.turns.clear()
        self.vendor.recorder.handshakes.clear()

    def create_conversation(self, scope: str) -> str:
        """The id of a new conversation object of an organisation (or credential, where that is the scope of stores)."""
        return self.vendor.store(scope).create_conversation().id

    async def end_sockets(self, credential: str = "*", *, do: str = "reset", code: int = 1001) -> int:
        """Reset or close all live sockets of a credential at once, busy or not; returns how many."""
        return await end_sockets(self.vendor, credential, Fault(at="idle", do=do, close_code=code, message=""))

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app[VENDOR] = self.vendor
        add_routes(app)
        app.on_response_prepare.append(tell_limits)
        app.on_response_prepare.append(name_request)
        add_control(app)
        return app
