"""Where faults meet a request: what a request sees of its transport, and the fault of this moment let loose on it."""

from dataclasses import dataclass
from typing import Protocol

from broker.simulator.credentials import SimCredential
from broker.simulator.events import Outlet
from broker.simulator.faults import Fault
from broker.simulator.memory import ConnectionMemory
from broker.simulator.refusal import Refusal
from broker.simulator.vendor import Vendor


class Gone(Exception):
    """The connection is no more, or pretends not to be."""


class FailedByFault(Exception):
    """The response has to end as failed, with the words of this fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Wire(Outlet, Protocol):
    """A transport as a turn sees it."""

    async def flush(self) -> None:
        """Send everything put so far; raises Gone."""

    def refuse(self, refusal: Refusal, lane: str | None, sequence: int | None = None) -> None:
        """Put an error in the transport's own form; a sequence number makes it part of the stream."""

    async def hang(self) -> None:
        """Return when the connection has gone."""

    async def cut(self, fault: Fault) -> None:
        """Reset, close or garble the connection as the fault says."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and over what; `memory` is None where there is no connection to remember anything."""

    credential: SimCredential
    transport: str
    socket: int | None = None
    memory: ConnectionMemory | None = None
    background: bool = False  # the response runs on when its client has left


async def strike(
    vendor: Vendor, caller: Caller, wire: Wire, point: str, *, raw: bytes, model: str | None, deltas: int = 0
) -> None:
    """Let the fault of this moment act, if there is one; raises Refusal, FailedByFault or Gone."""
    fault = vendor.faults.take(caller.credential.name, point, raw=raw, model=model, deltas=deltas)
    if fault is None:
        return
    await wire.flush()
    if fault.do in ("error", "refuse"):
        raise fault.refusal()
    if fault.do in ("failed", "double"):
        raise FailedByFault(fault)
    if fault.do == "silence":
        await wire.hang()
        raise Gone
    if fault.do == "drop_continuation":
        if caller.memory is not None:
            caller.memory.forget()
        return
    await wire.cut(fault)
