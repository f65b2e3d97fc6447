"""Duties on a real server: who does them, when they stop, and what is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker.metrics import WorkerMetrics
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.leases import LeaseStore
from tests import engines
from tests.scenarios.house import wait_until
from workers.__main__ import make_progress, run_until
from workers.duties import Duty, Progress
from workers.leadership import Lead, LeaseEnded, while_leading

TTL = 0.6


@dataclass
class Acts:
    """A duty whose steps act again and again, and remember when."""

    connection: Connection
    acts: list[tuple[str, float]]
    worker: str = "one"
    name: str = "act"
    every: float = 0.02
    alone: bool = True
    length: int = 5
    unwound: list[str] = field(default_factory=list)

    async def step(self) -> str:
        try:
            for _ in range(self.length):
                self.acts.append((self.worker, time.monotonic()))
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.unwound.append(self.worker)
            raise
        await self.connection.ping()
        return "acted"


@asynccontextmanager
async def working(
    server: engines.Server, *make: Callable[[Connection], Duty], worker: str = "one", ttl: float = TTL
) -> AsyncIterator[tuple[list[Progress], asyncio.Task[None], WorkerMetrics]]:
    """A worker with these duties; it ends in good order behind the block, if it has not before."""
    connection, stopping, metrics = Connection(server.url, timeout=0.3, connect_timeout=0.2), asyncio.Event(), None
    metrics = WorkerMetrics()
    progress = make_progress([each(connection) for each in make], LeaseStore(connection), worker, metrics, ttl=ttl)
    task = asyncio.create_task(run_until(stopping, progress))
    try:
        yield progress, task, metrics
    finally:
        stopping.set()
        await asyncio.wait([task], timeout=6.0)
        await connection.close()


def interleaved(acts: Sequence[tuple[str, float]]) -> list[str]:
    """Who acted, one entry for each time that it went over to another."""
    turns: list[str] = []
    for worker, _ in acts:
        if not turns or turns[-1] != worker:
            turns.append(worker)
    return turns


async def test_one_of_two_acts_and_the_other_takes_over_at_once_when_it_ends(server: engines.Server) -> None:
    acts: list[tuple[str, float]] = []
    async with working(server, lambda c: Acts(c, acts, "two"), worker="two", ttl=30.0) as (_, two, _):
        await wait_until(lambda: acts)
        async with working(server, lambda c: Acts(c, acts, "one"), worker="one", ttl=6.0) as (progress, _, _):
            known = len(acts)
            await wait_until(lambda: len(acts) > known + 20)
            assert interleaved(acts) == ["two"] and not progress[0].leading
            two.cancel()
            began = time.monotonic()
            await wait_until(lambda: acts[-1][0] == "one")
            assert time.monotonic() - began < 1.5 and progress[0].leading
    assert interleaved(acts) == ["two", "one"]


async def test_what_is_not_to_be_done_alone_is_done_by_all(server: engines.Server) -> None:
    acts: list[tuple[str, float]] = []
    async with (
        working(server, lambda c: Acts(c, acts, "one", alone=False), worker="one") as (progress, _, _),
        working(server, lambda c: Acts(c, acts, "two", alone=False), worker="two"),
    ):
        await wait_until(lambda: len(interleaved(acts)) > 3)
        assert progress[0].leading


def test_a_duty_to_be_done_alone_needs_a_lead(server: engines.Server) -> None:
    with pytest.raises(ValueError, match="alone"):
        Progress(Acts(Connection(server.url), []))


async def test_stops_in_mid_step_before_its_lease_can_have_ended_when_the_store_is_silent(
    server: engines.Server, caplog: pytest.LogCaptureFixture
) -> None:
    acts: list[tuple[str, float]] = []
    duties: list[Acts] = []

    def endless(connection: Connection) -> Acts:
        duties.append(Acts(connection, acts, length=10**9))
        return duties[0]

    async with working(server, endless) as (progress, _, _):
        await wait_until(lambda: len(acts) > 10)
        server.pause()
        silent = time.monotonic()
        await wait_until(lambda: duties[0].unwound)
        assert not progress[0].leading
        known = len(acts)
        assert 0 < acts[-1][1] - silent < TTL
        await wait_until(lambda: "duty stopped, its lease has ended" in caplog.text)
        await wait_until(lambda: "duty waits for the store" in caplog.text)
        assert len(acts) == known
        server.resume()
        await wait_until(lambda: len(acts) > known)


async def test_a_step_that_waits_for_something_is_stopped_in_time_as_well(server: engines.Server) -> None:
    waits: list[float] = []

    @dataclass
    class Waits(Acts):
        async def step(self) -> str:
            try:
                waits.append(time.monotonic())
                await asyncio.Event().wait()
            finally:
                self.unwound.append(self.worker)
            return ""

    duties: list[Waits] = []

    def endless(connection: Connection) -> Waits:
        duties.append(Waits(connection, []))
        return duties[0]

    async with working(server, endless):
        await wait_until(lambda: waits)
        server.pause()
        silent = time.monotonic()
        await wait_until(lambda: duties[0].unwound)
        assert time.monotonic() - silent < TTL
        server.resume()


async def test_goes_on_in_mid_step_when_the_lease_is_kept(server: engines.Server) -> None:
    acts: list[tuple[str, float]] = []
    duties: list[Acts] = []

    def endless(connection: Connection) -> Acts:
        duties.append(Acts(connection, acts, length=10**9))
        return duties[0]

    async with working(server, endless) as (progress, _, _):
        await wait_until(lambda: acts)
        began = time.monotonic()
        await wait_until(lambda: time.monotonic() - began > 2.5 * TTL)
        assert not duties[0].unwound and progress[0].leading
    assert duties[0].unwound == ["one"]


async def test_stops_in_mid_step_when_the_lease_is_anothers(server: engines.Server, connection: Connection) -> None:
    acts: list[tuple[str, float]] = []
    duties: list[Acts] = []

    def endless(made: Connection) -> Acts:
        duties.append(Acts(made, acts, length=10**9))
        return duties[0]

    async with working(server, endless):
        await wait_until(lambda: acts)
        await connection.ask(command("SET", keys.lease("duty:act"), "another", "PX", 60_000))
        await wait_until(lambda: duties[0].unwound)
        known = len(acts)
        await connection.ask(command("DEL", keys.lease("duty:act")))
        await wait_until(lambda: len(acts) > known)


async def test_gives_nothing_back_that_is_anothers(server: engines.Server, connection: Connection) -> None:
    acts: list[tuple[str, float]] = []
    async with working(server, lambda c: Acts(c, acts)):
        await wait_until(lambda: acts)
        await connection.ask(command("SET", keys.lease("duty:act"), "another", "PX", 60_000))
    (holder,) = await connection.ask(command("GET", keys.lease("duty:act")))
    assert holder == b"another"


async def test_says_once_that_it_waits_for_a_store_that_is_away_and_goes_on(
    server: engines.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    acts: list[tuple[str, float]] = []
    async with working(server, lambda c: Acts(c, acts)) as (progress, task, metrics):
        await wait_until(lambda: acts)
        server.kill()
        await wait_until(lambda: "duty waits for the store" in caplog.text)
        away = time.monotonic()
        await wait_until(lambda: time.monotonic() - away > 3.0)
        assert not task.done() and not progress[0].leading and progress[0].age > 2.5
        known = len(acts)
        server.start()
        await wait_until(lambda: len(acts) > known, within=15.0)
        await wait_until(lambda: progress[0].age < 1.0)
        assert caplog.text.count("duty waits for the store") == caplog.text.count("duty goes on") == 1
    assert b'broker_duty_steps_total{duty="act",result="done"}' in metrics.render()


async def test_a_duty_that_breaks_takes_the_worker_with_it_and_lets_others_go_on_at_once(
    server: engines.Server, connection: Connection
) -> None:
    @dataclass
    class Breaks(Acts):
        name: str = "break"

        async def step(self) -> str:
            raise ZeroDivisionError

    acts: list[tuple[str, float]] = []
    async with working(server, lambda c: Acts(c, acts), lambda c: Breaks(c, [])) as (_, task, _):
        await asyncio.wait([task], timeout=5.0)
        with pytest.raises(ExceptionGroup) as broken:
            task.result()
        assert broken.group_contains(ZeroDivisionError)
        assert await connection.ask(*(command("EXISTS", keys.lease(f"duty:{n}")) for n in ("act", "break"))) == [0, 0]


# --- the lead by itself, on a clock of the test ---


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def leading(connection: Connection, clock: Clock) -> AsyncIterator[Lead]:
    lead = Lead(LeaseStore(connection), "act", "token", ttl=TTL, clock=clock)
    keeping = asyncio.create_task(lead.keep(lambda _: None))
    try:
        await asyncio.wait_for(lead.won(), 5.0)
        yield lead
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


async def test_a_process_that_stood_still_acts_no_more_even_where_its_answer_is_there_already(
    connection: Connection,
) -> None:
    clock, acted = Clock(), []
    async with leading(connection, clock) as lead:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def step() -> str:
            acted.append("before")
            await answer
            acted.append("after")
            return "done"

        running: Coroutine[Any, Any, str] = while_leading(lead, step)
        task = asyncio.create_task(running)
        await wait_until(lambda: acted)
        clock.now += TTL
        answer.set_result("there")
        with pytest.raises(LeaseEnded):
            await task
        assert acted == ["before"]


async def test_what_began_in_one_term_does_not_go_on_in_the_next(connection: Connection) -> None:
    clock = Clock()
    async with leading(connection, clock) as lead:
        term = lead.term
        assert lead.holds(term) and lead.left(term) > 0
        clock.now += TTL
        assert not lead.leading and not lead.holds(term) and lead.left(term) == 0
        await wait_until(lambda: lead.leading)
        assert not lead.holds(term) and lead.left(term) == 0 and lead.holds(lead.term)


async def test_an_answer_that_comes_too_late_wins_nothing(connection: Connection, server: engines.Server) -> None:
    clock, after_answers = Clock(), []
    lead = Lead(LeaseStore(connection), "act", "token", ttl=TTL, clock=clock)
    server.pause()
    keeping = asyncio.create_task(lead.keep(lambda _: after_answers.append(lead.leading)))
    await wait_until(lambda: connection.round_trips > 0)
    clock.now += TTL
    server.resume()
    await wait_until(lambda: lead.leading)
    assert after_answers[0] is False and lead.term == 1
    keeping.cancel()
    await asyncio.wait([keeping])
