"""What all doors of the simulated vendor share: its callers, its settings, its stores, its faults and its records."""

import asyncio
import hmac
import secrets
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from broker.simulator.credentials import SimCredential, SimOptions
from broker.simulator.faults import EVERY_CREDENTIAL, Fault, FaultBoard
from broker.simulator.manners import Manner, manner_of
from broker.simulator.memory import BoundaryStore, ConnectionMemory
from broker.simulator.record import Recorder
from broker.simulator.script import SCRIPTS, Script
from broker.simulator.telemetry import Telemetry
from broker.simulator.tokens import Tokens


class LiveSocket(Protocol):
    """What the vendor may do to a connection from outside."""

    credential: SimCredential

    def check_idle(self) -> None: ...

    async def suffer(self, fault: Fault) -> None: ...


class Vendor:
    """One vendor in one process."""

    def __init__(self, credentials: Sequence[SimCredential], options: SimOptions) -> None:
        self.credentials = list(credentials)
        self.options = options
        self.faults = FaultBoard(options.seed)
        self.recorder = Recorder(options.records)
        self.live: dict[int, LiveSocket] = {}
        self.limits: dict[str, Telemetry] = {}  # by the name of a credential, or "*"
        self.scripts: dict[str, Script] = dict(SCRIPTS)  # by marker
        self.tokens = Tokens(self.credentials, options.token_lifetime)
        self._stores: dict[str, BoundaryStore] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._sockets = 0
        self.faults.listen(self._check_idle)

    def authenticate(self, headers: Mapping[str, str]) -> SimCredential | None:
        """The credential of a request, or None; raises Refusal for a token that has expired."""
        scheme, _, secret = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = secret.strip()
            return self._by_secret(given) or self.tokens.owner(given)
        known = self._by_secret(headers.get("api-key", ""))
        return known if known is not None and self.manner_of(known).api_key_header else None

    def _by_secret(self, secret: str) -> SimCredential | None:
        given = secret.encode()
        return next((known for known in self.credentials if hmac.compare_digest(known.secret.encode(), given)), None)

    def manner_of(self, credential: SimCredential | None) -> Manner:
        """The manner that a caller meets; None is a stranger."""
        own = credential.manner if credential is not None else None
        return manner_of(own if own is not None else self.options.manner)

    def told_limits(self, credential: str) -> Telemetry | None:
        """What this credential is told of its limits; None where the vendor keeps silent, as it does at first."""
        return self.limits.get(credential) or self.limits.get(EVERY_CREDENTIAL)

    def store_of(self, credential: SimCredential) -> BoundaryStore:
        """All that this caller and those who share its scope have stored."""
        return self.store(credential.boundary if self.options.store_scope == "boundary" else credential.name)

    def store(self, scope: str) -> BoundaryStore:
        """The store of a boundary, or of a credential's name where that is the scope of stores."""
        if scope not in self._stores:
            self._stores[scope] = BoundaryStore(self.options.stored)
        return self._stores[scope]

    def next_socket(self) -> int:
        self._sockets += 1
        return self._sockets

    def response_id(self, credential: SimCredential, memory: ConnectionMemory | None) -> str:
        """A fresh id, or the one id of this connection where the vendor reuses ids."""
        fresh = "resp_" + secrets.token_hex(24)
        reuses = self.options.reuse_response_ids or self.manner_of(credential).reuses_ids
        if memory is None or not reuses:
            return fresh
        memory.reused_id = memory.reused_id or fresh
        return memory.reused_id

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Let work go on that no connection carries; it ends with the vendor at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def stop(self) -> None:
        """End what runs by itself."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _check_idle(self) -> None:
        for socket in list(self.live.values()):
            socket.check_idle()
