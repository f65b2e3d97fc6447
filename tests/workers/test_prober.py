"""The prober against the simulated vendor and a real server: one question at a time, and its answer to the table."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from broker.domain.credential import Credential, Secret
from broker.domain.health import (
    AuthHealth,
    HealthReport,
    HealthState,
    credential_subject,
    group_subject,
)
from broker.simulator import SimCredential, Simulator
from broker.store.connection import Connection, StoreUnavailable
from broker.store.health import HealthStore
from broker.upstream import probe
from tests import engines
from workers.prober import Prober

S = HealthState


@pytest.fixture
def server() -> Iterator[engines.Server]:
    with engines.server("valkey9") as started:
        yield started


@dataclass
class Bench:
    """A vendor, a table, and as many probers as a test wants, each with a connection of its own."""

    url: str
    sim: Simulator
    pool: list[Credential]
    store: HealthStore
    asks: probe.Prober
    results: Counter[tuple[str, str]] = field(default_factory=Counter)

    def prober(self, connection: Connection) -> Prober:
        def counted(credential: str, result: str) -> None:
            self.results[credential, result] += 1

        return Prober(HealthStore(connection), self.asks, lambda: self.pool, counted=counted)

    async def block(self, subject: str, state: HealthState, lasting: float = 0.05, **more: object) -> AuthHealth:
        """Put a row into the table whose block runs out at once."""
        report = HealthReport(subject, state, lasting, because="test", **more)  # type: ignore[arg-type]
        return (await self.store.report(report)).row

    async def row(self, subject: str) -> AuthHealth | None:
        return (await self.store.table()).rows.get(subject)

    @property
    def asked(self) -> int:
        """How many questions the vendor was asked."""
        return len(self.sim.turns)


@asynccontextmanager
async def bench(server: engines.Server, count: int = 1) -> AsyncIterator[tuple[Bench, list[Prober]]]:
    sim = Simulator([SimCredential("A", "sk-a"), SimCredential("B", "sk-b")])
    await sim.start()
    pool = [
        Credential(
            name,
            sim.base_url,
            Secret(f"sk-{name.lower()}"),
            limit_group="team",
            probe_kind="response",
            probe_model="sim-1",
        )
        for name in ("A", "B")
    ]
    asks = probe.Prober(clock=time.time, timeout=3.0)
    await asks.start()
    connections = [Connection(server.url) for _ in range(count + 1)]
    made = Bench(server.url, sim, pool, HealthStore(connections[-1]), asks)
    probers = [made.prober(connection) for connection in connections[:-1]]
    try:
        yield made, probers
    finally:
        for prober in probers:
            await prober.stop()
        for connection in connections:
            await connection.close()
        await asks.stop()
        await sim.stop()


async def steps(probers: list[Prober], seconds: float) -> None:
    """All of them look again and again, as their loops would."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.gather(*(prober.step() for prober in probers))
        await asyncio.sleep(0.02)


async def test_a_good_answer_ends_the_block_for_everybody(server: engines.Server) -> None:
    async with bench(server) as (made, probers):
        subject = group_subject(made.pool[0])
        await made.block(subject, S.EXHAUSTED)
        await steps(probers, 0.4)
        row = await made.row(subject)
        assert row is not None and row.state in (S.SUSPECT, S.HEALTHY) and row.because == "probed"
        assert row.returned > 0
        assert made.asked == 1
        assert made.results == {("A", "served"): 1}


async def test_a_refusal_blocks_again_and_longer(server: engines.Server) -> None:
    async with bench(server) as (made, probers):
        subject = group_subject(made.pool[0])
        made.sim.faults.set("A", "insufficient_quota")
        first = await made.block(subject, S.EXHAUSTED)
        await steps(probers, 0.5)
        row = await made.row(subject)
        assert row is not None and row.state is S.EXHAUSTED
        assert row.until - row.since > 500, "twice the usual span: it failed again when it was tried"
        assert row.version == first.version + 1
        assert made.asked == 1


async def test_another_fault_is_told_of_the_credential_that_has_it(server: engines.Server) -> None:
    async with bench(server) as (made, probers):
        made.sim.faults.set("A", "token_revoked")
        await made.block(group_subject(made.pool[0]), S.EXHAUSTED)
        await steps(probers, 0.3)
        revoked = await made.row(credential_subject(made.pool[0]))
        assert revoked is not None and revoked.state is S.REVOKED
        await wait_for_served(made, probers, group_subject(made.pool[0]))
        assert made.sim.turns[-1].credential == "B", "the other one of the group was asked"


async def wait_for_served(made: Bench, probers: list[Prober], subject: str) -> None:
    deadline = time.monotonic() + 8.0
    while (row := await made.row(subject)) is None or row.because != "probed":
        assert time.monotonic() < deadline
        await steps(probers, 0.05)


async def test_many_probers_ask_once(server: engines.Server) -> None:
    async with bench(server, 4) as (made, probers):
        subject = credential_subject(made.pool[0])
        await made.block(subject, S.REVOKED)
        await steps(probers, 0.5)
        assert made.asked == 1


async def test_asks_nobody_while_somebody_else_holds_the_licence(server: engines.Server) -> None:
    async with bench(server) as (made, probers):
        subject = credential_subject(made.pool[0])
        row = await made.block(subject, S.COOLING)
        assert await made.store.license(row, "a turn somewhere", 0.6)
        await steps(probers, 0.4)
        assert made.asked == 0
        await steps(probers, 0.6)
        assert made.asked == 1, "a licence that was lost ends by itself"


async def test_an_answer_that_changes_nothing_is_not_asked_for_again_at_once(server: engines.Server) -> None:
    async with bench(server) as (made, probers):
        made.sim.faults.set("A", "server_error")
        await made.block(credential_subject(made.pool[0]), S.COOLING)
        await steps(probers, 1.0)
        assert made.asked == 1, "an overload says nothing about the key"
        assert made.results == {("A", "overloaded"): 1}


async def test_asks_nobody_where_it_is_told_not_to(server: engines.Server) -> None:
    async with bench(server) as (made, probers):
        made.pool[:] = [replace(credential, probe_kind="off") for credential in made.pool]
        await made.block(credential_subject(made.pool[0]), S.COOLING)
        await steps(probers, 0.2)
        made.pool[:] = [replace(credential, probe_kind="models") for credential in made.pool]
        await made.block(group_subject(made.pool[0]), S.EXHAUSTED)
        before = len(made.sim.handshakes)
        await steps(probers, 0.4)
        assert made.asked == 0
        paths = [seen.path for seen in list(made.sim.handshakes)[before:]]
        assert paths == ["/v1/models"], "the list of models speaks of the key, and never of a quota"
        row = await made.row(group_subject(made.pool[0]))
        assert row is not None and row.state is S.EXHAUSTED


async def test_waits_for_the_store_and_goes_on(server: engines.Server) -> None:
    async with bench(server) as (made, probers):
        subject = credential_subject(made.pool[0])
        await made.block(subject, S.COOLING, lasting=0.3)
        server.pause()
        with pytest.raises(StoreUnavailable):
            await probers[0].step()
        server.resume()
        await steps(probers, 0.8)
        assert made.asked == 1
