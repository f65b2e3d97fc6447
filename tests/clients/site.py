"""What clients are pointed at: the simulated vendor itself, nodes in this process, or nodes that can be killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from broker.simulator import Fault, SimCredential, Simulator
from broker.simulator.record import TurnRecord
from broker.stage import CLIENT_KEY, Stage
from tests.balancer import Balancer
from tests.scenarios.house import KEY, House, wait_until

BOUNDARIES = {"A": "org-a", "B": "org-a", "C": "org-a"}
TRANSPORTS = ("websocket", "http")
VENDOR_KEY = "sk-sim-A"


@dataclass
class Site:
    """One address for clients, and all that is known of what they did there."""

    name: str
    sim: Simulator
    balancer: Balancer
    key: str
    stage: Stage | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.balancer.port}/v1"

    @property
    def asked(self) -> list[str]:
        """What clients have asked, such as "WS /v1/responses"."""
        return self.balancer.asked

    @property
    def turns(self) -> list[TurnRecord]:
        """What the vendor has received."""
        return self.sim.turns

    def strike(self, credential: str, fault: Fault | str, **changes: Any) -> None:
        """From now on this credential has this fault, and no other."""
        self.faults.append(fault if isinstance(fault, str) else f"{fault.do} {fault.at}")
        self.sim.faults.set(credential, fault, **changes)

    async def kill_node(self, at: int) -> None:
        """SIGKILL for a node; when this returns its clients have been told, and the next connection goes elsewhere."""
        assert self.stage is not None
        node = self.stage.nodes[at]
        self.faults.append("node killed")
        node.kill()
        await wait_until(lambda: not self.balancer.open[node.port])

    async def start_node(self, at: int) -> None:
        """Start a killed node again, where it was; ready when this returns."""
        assert self.stage is not None
        self.stage.nodes[at].launch()
        await self.stage.ready(self.stage.nodes[at])


@asynccontextmanager
async def vendor() -> AsyncIterator[Site]:
    """The vendor itself: what fails there is a fault of the test."""
    sim = Simulator([SimCredential(name, f"sk-sim-{name}", boundary) for name, boundary in BOUNDARIES.items()])
    await sim.start()
    balancer = await Balancer([int(sim.base_url.rsplit(":", 1)[1].split("/")[0])]).start()
    try:
        yield Site("vendor", sim, balancer, VENDOR_KEY)
    finally:
        await balancer.stop()
        await sim.stop()


@asynccontextmanager
async def nodes(url: str, *transports: str) -> AsyncIterator[Site]:
    """Two nodes in this process, on the Redis at `url`; they reach their vendor over these transports."""
    house = await House(url, BOUNDARIES).start()
    pool = [replace(credential, transports=transports or TRANSPORTS) for credential in house.credentials()]
    listeners = [await house.node(credentials=pool) for _ in range(2)]
    balancer = await Balancer([node.client_port for node in listeners]).start()
    try:
        yield Site(f"broker, {'+'.join(transports or TRANSPORTS)} upstream", house.sim, balancer, KEY)
    finally:
        await balancer.stop()
        await house.stop()


@asynccontextmanager
async def processes() -> AsyncIterator[Site]:
    """Two nodes in processes of their own, for those who kill."""
    callers = [SimCredential(name, f"sk-sim-{name}", boundary) for name, boundary in BOUNDARIES.items()]
    async with Stage(callers, workers=0, each={"transports": list(TRANSPORTS)}) as stage:
        balancer = await Balancer([node.port for node in stage.nodes]).start()
        try:
            yield Site("broker processes", stage.sim, balancer, CLIENT_KEY, stage)
        finally:
            await balancer.stop()
