"""Nodes that die without a word: real processes, killed in mid-session, and clients that only send increments."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from broker.simulator import Fault, SessionClient
from tests import engines
from tests.scenarios.house import KEY, House, conversation, digest_of, wait_until

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A `broker serve`, which dies by SIGKILL or not at all."""

    def __init__(self, running: asyncio.subprocess.Process, port: int, operations_port: int, log: Path) -> None:
        self._running = running
        self.port = port
        self._operations_port = operations_port
        self._log = log

    async def wait_ready(self) -> Process:
        await wait_until(lambda: self._running.returncode is not None or self._is_ready(), within=20.0)
        assert self._running.returncode is None, self._log.read_text()
        return self

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._operations_port}/readyz", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    async def kill(self) -> None:
        """SIGKILL for the node; nothing is written or said any more."""
        with contextlib.suppress(ProcessLookupError):
            self._running.kill()
        await asyncio.wait_for(self._running.wait(), 5.0)

    async def kill_all(self) -> None:
        """SIGKILL for its embedded server and for the node, so that neither notices the other's end."""
        (embedded,) = self._children()
        self._running.send_signal(signal.SIGSTOP)
        os.kill(embedded, signal.SIGKILL)
        await self.kill()

    def _children(self) -> list[int]:
        pid = self._running.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


Serve = Callable[..., Awaitable[Process]]


@pytest.fixture
async def house(build: Callable[..., Awaitable[House]]) -> House:
    return await build({"A": "org-a", "B": "org-a"})


@pytest.fixture
async def serve(house: House, tmp_path: Path) -> AsyncIterator[Serve]:
    """Start `broker serve` in a process of its own, ready when this returns; all are killed behind the test."""
    started: list[Process] = []
    numbers = itertools.count(1)

    async def start(**settings: str) -> Process:
        number = next(numbers)
        port, operations_port = free_port(), free_port()
        config = {
            "listen": f"127.0.0.1:{port}",
            "operations_listen": f"127.0.0.1:{operations_port}",
            "node": f"node-{number}",
            "tenants": [{"name": "team-a", "keys": [f"sha256:{digest_of(KEY).hex()}"]}],
            "credentials": [
                {
                    "name": name,
                    "vendor": "custom",
                    "base_url": house.sim.base_url,
                    "secret_env": f"SECRET_{name}",
                    "boundary": boundary,
                    "priority": at,
                }
                for at, (name, boundary) in enumerate(house.boundaries.items())
            ],
            **settings,
        }
        file, log = tmp_path / f"node-{number}.yaml", tmp_path / f"node-{number}.log"
        file.write_text(yaml.safe_dump(config))
        with log.open("wb") as output:
            running = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "broker", "serve", "--config", str(file)),
                cwd=ROOT,
                env={**os.environ, **{f"SECRET_{name}": f"sk-sim-{name}" for name in house.boundaries}},
                stdout=output,
                stderr=output,
            )
        process = Process(running, port, operations_port, log)
        started.append(process)
        return await process.wait_ready()

    yield start
    for process in started:
        await process.kill()


async def connect(house: House, process: Process, name: str | None) -> SessionClient:
    client = SessionClient(f"http://127.0.0.1:{process.port}/v1", KEY, session_id=name)
    house.clients.append(client)
    assert await client.connect(), client.handshake_status
    return client


async def reconnect(house: House, process: Process, before: SessionClient) -> SessionClient:
    """The same agent, with all that it knows, at this node."""
    client = await connect(house, process, before.session_id)
    client.heads, client.results = before.heads, before.results
    return client


async def goes_on(house: House, client: SessionClient) -> None:
    """The next increment is answered with the whole context, and so is the one behind it."""
    known = len(house.sim.turns)
    assert client.heads[None].settings["store"] is False
    turn = await client.tool_turn()
    assert turn.ok and turn.incremental and turn.digest_ok, (turn.problems, turn.error)
    served = house.sim.turns[-1]
    assert len(house.sim.turns) == known + 1 and "previous_response_id" not in served.frame_keys
    assert served.input == conversation(turn) == list(served.context)
    following = await client.turn("and on")
    assert following.ok, (following.problems, following.error)
    assert house.sim.turns[-1].previous_response_id == turn.response_id
    assert house.sim.turns[-1].socket == served.socket


named = pytest.mark.parametrize("name", [None, "thread-7"], ids=["without-a-session-id", "with-a-session-id"])


@named
async def test_goes_on_at_another_node_when_its_own_was_killed(
    house: House, serve: Serve, redis_server: engines.Server, name: str | None
) -> None:
    one, two = await asyncio.gather(serve(redis_url=redis_server.url), serve(redis_url=redis_server.url))
    client = await connect(house, one, name)
    assert (await client.turn("one")).ok
    assert (await client.turn("two [[call:look]]")).ok

    await one.kill()
    await wait_until(lambda: not client.connected)

    await goes_on(house, await reconnect(house, two, client))


async def test_serves_the_retry_at_another_node_when_its_own_was_killed_in_mid_turn(
    house: House, serve: Serve, redis_server: engines.Server
) -> None:
    one, two = await asyncio.gather(serve(redis_url=redis_server.url), serve(redis_url=redis_server.url))
    client = await connect(house, one, None)
    assert (await client.turn("one [[call:look]]")).ok
    before = await client.tool_turn()
    assert before.ok, before.problems
    turn = asyncio.create_task(client.turn("two [[slow:100]][[deltas:50]]"))
    await wait_until(lambda: client.results[None] is not before and client.results[None].text)

    await one.kill()
    broken = await turn
    assert broken.terminal is None and broken.text != ""
    again = await (await reconnect(house, two, client)).turn("two, shorter")

    assert again.ok, (again.problems, again.error)
    assert house.sim.turns[-1].input == conversation(again), "nothing of the broken turn, all of those before it"


async def test_keeps_the_pin_of_a_named_session_when_its_node_was_killed(
    house: House, serve: Serve, redis_server: engines.Server
) -> None:
    one, two = await asyncio.gather(serve(redis_url=redis_server.url), serve(redis_url=redis_server.url))
    client = await connect(house, one, "thread-7")
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", Fault(do="reset"), times=1)
    assert (await client.turn("two")).ok
    assert [turn.credential for turn in house.sim.turns] == ["A", "A", "B"]

    await one.kill()
    again = await (await reconnect(house, two, client)).turn("three", incremental=False)

    assert again.ok, (again.problems, again.error)
    assert house.sim.turns[-1].credential == "B", "A is the first choice of a session that nobody knows"


@named
async def test_goes_on_after_a_restart_when_every_process_was_killed(
    house: House, serve: Serve, tmp_path: Path, name: str | None
) -> None:
    folder = str(tmp_path / "data")
    node = await serve(data_dir=folder)
    client = await connect(house, node, name)
    assert (await client.turn("one")).ok
    assert (await client.turn("two [[call:look]]")).ok

    await node.kill_all()
    await wait_until(lambda: not client.connected)
    again = await serve(data_dir=folder)

    await goes_on(house, await reconnect(house, again, client))
