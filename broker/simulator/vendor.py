"""What all doors of the simulated vendor share: its callers, its settings, its stores, its faults and its records."""

import hmac
import secrets
from collections.abc import Sequence
from typing import Protocol

from broker.simulator.credentials import SimCredential, SimOptions
from broker.simulator.faults import EVERY_CREDENTIAL, Fault, FaultBoard
from broker.simulator.memory import BoundaryStore, ConnectionMemory
from broker.simulator.record import Recorder
from broker.simulator.telemetry import Telemetry


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
        self._stores: dict[str, BoundaryStore] = {}
        self._sockets = 0
        self.faults.listen(self._check_idle)

    def authenticate(self, authorization: str | None) -> SimCredential | None:
        """The credential of an `Authorization` header, or None."""
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        given = secret.strip().encode()
        return next((known for known in self.credentials if hmac.compare_digest(known.secret.encode(), given)), None)

    def told_limits(self, credential: str) -> Telemetry | None:
        """What this credential is told of its limits; None where the vendor keeps silent, as it does at first."""
        return self.limits.get(credential) or self.limits.get(EVERY_CREDENTIAL)

    def store_of(self, boundary: str) -> BoundaryStore:
        if boundary not in self._stores:
            self._stores[boundary] = BoundaryStore(self.options.stored)
        return self._stores[boundary]

    def next_socket(self) -> int:
        self._sockets += 1
        return self._sockets

    def response_id(self, memory: ConnectionMemory | None) -> str:
        """A fresh id, or the one id of this connection where the vendor reuses ids."""
        fresh = "resp_" + secrets.token_hex(24)
        if memory is None or not self.options.reuse_response_ids:
            return fresh
        memory.reused_id = memory.reused_id or fresh
        return memory.reused_id

    def _check_idle(self) -> None:
        for socket in list(self.live.values()):
            socket.check_idle()
