"""Redis goes away in mid-session and comes back: what goes on, what is refused, and what is written afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from broker.edge.app import Listeners
from broker.simulator import SessionClient
from tests import engines
from tests.scenarios.house import House, counted, everything_in, wait_until


@pytest.fixture
def own_redis() -> Iterator[engines.Server]:
    """A server of this test's own, which keeps its data when it is killed."""
    with engines.server("valkey9", appendonly=True) as server:
        yield server


@pytest.fixture
async def house(build: Callable[..., Awaitable[House]], own_redis: engines.Server) -> House:
    """A house on that server."""
    made = await build()
    made.url = own_redis.url
    return made


@pytest.fixture(params=["paused", "killed"])
def manner(request: pytest.FixtureRequest) -> str:
    """How the server goes away."""
    return str(request.param)


def take_away(server: engines.Server, manner: str) -> None:
    server.pause() if manner == "paused" else server.kill()


def bring_back(server: engines.Server, manner: str) -> None:
    server.resume() if manner == "paused" else server.start()


async def readiness(node: Listeners) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{node.operations_port}/readyz"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def impatient(house: House) -> Listeners:
    """A node that does not wait long for the store."""
    return await house.node(timeout=0.3, connect_timeout=0.3)


def queued(node: Listeners) -> int:
    return len(node.node.journal)


async def test_live_sessions_go_on_and_every_turn_is_written_once_when_the_store_is_back(
    house: House, own_redis: engines.Server, manner: str
) -> None:
    one, two = await impatient(house), await impatient(house)
    client = await house.connected(one, session_id="agent-7")
    assert (await client.turn("one")).ok
    take_away(own_redis, manner)

    during = [await client.turn(f"turn {number}") for number in range(4)]

    assert all(turn.ok for turn in during), [turn.problems for turn in during]
    assert max(turn.duration for turn in during) < 4.0 and during[-1].duration < 1.0
    assert counted(one, "broker_commits_total", result="queued") == 4 and queued(one) == 4
    assert [turn.previous_response_id is None for turn in house.sim.turns] == [True, False, False, False, False]

    landed: list[str] = []
    one.node.journal.listen(lambda commit, _: landed.append(commit.meta.response_id))
    bring_back(own_redis, manner)
    await wait_until(lambda: queued(one) == 0 and len(landed) == 4, within=10.0)

    assert landed == [turn.response_id for turn in during], "oldest first"
    session = await house.session(client)
    assert session.turns == 5, "each exactly once"
    assert counted(one, "broker_commits_total", result="lost") == 0
    await client.kill()
    again = await house.connected(two, session_id="agent-7")
    house.sim.faults.set("A", "usage_limit_reached")
    after = await again.turn("after", parent=during[-1])
    assert after.ok, after.problems
    assert house.sim.turns[-1].credential != "A"


async def test_new_sessions_begin_and_named_ones_are_refused_while_the_store_is_away(
    house: House, own_redis: engines.Server, manner: str
) -> None:
    node = await impatient(house)
    take_away(own_redis, manner)

    anonymous = await house.connected(node)
    turns = [await anonymous.turn(text) for text in ("one", "two", "three")]
    named = house.agent(node, session_id="agent-7")
    refused = not await named.connect()

    assert all(turn.ok for turn in turns), [turn.problems for turn in turns]
    assert refused and named.handshake_status == 503
    assert int(named.handshake_headers["retry-after"]) >= 1
    assert counted(node, "broker_handshakes_total", result="store_away") == 1
    bring_back(own_redis, manner)
    await wait_until(lambda: queued(node) == 0, within=10.0)
    assert (await house.session(anonymous)).turns == 3
    assert await named.connect()
    assert (await named.turn("one")).ok


async def test_a_session_moves_to_another_credential_while_the_store_is_away(
    house: House, own_redis: engines.Server
) -> None:
    node = await impatient(house)
    take_away(own_redis, "killed")
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    house.sim.faults.set("A", "usage_limit_reached")

    moved = await client.turn("two")
    onward = await client.turn("three")

    assert moved.ok and onward.ok, (moved.error, moved.problems, onward.problems)
    assert house.sim.turns[-1].credential != "A"
    bring_back(own_redis, "killed")
    await wait_until(lambda: queued(node) == 0, within=10.0)
    assert (await house.session(client)).turns == 3


async def test_refuses_what_only_the_store_knows_and_serves_it_when_the_store_is_back(
    house: House, own_redis: engines.Server, manner: str
) -> None:
    one, two = await impatient(house), await impatient(house)
    client = await house.connected(one)
    first = await client.turn("one")
    await client.kill()
    again = await house.connected(two)
    take_away(own_redis, manner)

    unknown = await again.turn("two", parent=first)
    fresh = await again.turn("fresh", parent=None)
    bring_back(own_redis, manner)
    await wait_until(lambda: queued(two) == 0, within=10.0)
    known = await again.turn("two", parent=first)

    assert unknown.error is not None
    assert (unknown.error["status"], unknown.error["code"]) == (503, "session_store_unavailable")
    assert fresh.ok and known.ok, (fresh.problems, known.error, known.problems)
    assert [turn.previous_response_id for turn in house.sim.turns] == [None, None, None], "nothing was guessed"


async def test_a_lost_replay_is_refused_and_not_sent_bare_while_the_store_is_away(
    house: House, own_redis: engines.Server
) -> None:
    node = await impatient(house)
    client = await house.connected(node)
    assert (await client.turn("one")).ok
    take_away(own_redis, "killed")
    house.sim.faults.set("A", "usage_limit_reached")

    refused = await client.turn("two")
    bring_back(own_redis, "killed")
    await wait_until(lambda: queued(node) == 0, within=10.0)
    served = await client.retry()

    assert refused.error is not None and refused.error["status"] == 503, refused.error
    assert refused.error["code"] == "session_store_unavailable"
    assert served.ok, (served.error, served.problems)


async def test_writes_what_many_sessions_queued_oldest_first_and_exactly_once(
    house: House, own_redis: engines.Server
) -> None:
    node = await impatient(house)
    clients = [await house.connected(node) for _ in range(8)]
    landed: list[tuple[str, str]] = []
    node.node.journal.listen(lambda commit, _: landed.append((commit.sid, commit.meta.turn_id)))
    take_away(own_redis, "killed")

    async def conversation(client: SessionClient) -> None:
        for number in range(4):
            turn = await client.turn(f"turn {number}")
            assert turn.ok, turn.problems

    await asyncio.gather(*map(conversation, clients))
    assert queued(node) == 32
    bring_back(own_redis, "killed")
    await wait_until(lambda: queued(node) == 0 and len(landed) == 32, within=10.0)

    assert len({turn_id for _, turn_id in landed}) == 32
    for sid in {sid for sid, _ in landed}:
        own = [turn_id for at, turn_id in landed if at == sid]
        assert own == sorted(own), "of one session never a later turn before an earlier one"
    assert [(await house.session(client)).turns for client in clients] == [4] * 8


async def test_says_degraded_and_stays_ready_while_the_store_is_away(
    house: House, own_redis: engines.Server, manner: str
) -> None:
    node = await impatient(house)
    client = await house.connected(node)
    before = await readiness(node)
    take_away(own_redis, manner)
    turn = await client.turn("one")
    during = await readiness(node)
    bring_back(own_redis, manner)
    await wait_until(lambda: queued(node) == 0, within=10.0)
    after = await readiness(node)

    assert turn.ok, turn.problems
    assert (before[0], before[1]["degraded"], before[1]["store"]) == (200, False, "ok")
    assert (during[0], during[1]["degraded"], during[1]["store"], during[1]["journal"]) == (200, True, "away", 1)
    assert (after[0], after[1]["degraded"], after[1]["store"]) == (200, False, "ok")


async def test_gives_up_a_cleanly_closed_session_when_the_store_is_back(
    house: House, own_redis: engines.Server
) -> None:
    one, two = await impatient(house), await impatient(house)
    client = await house.connected(one)
    first = await client.turn("one")
    take_away(own_redis, "killed")
    second = await client.turn("two")
    await client.close()
    await wait_until(lambda: not one.node.sockets, within=8.0)
    bring_back(own_redis, "killed")
    await wait_until(lambda: queued(one) == 0, within=10.0)
    again = await house.connected(two)

    refused = await again.turn("three", parent=second)

    assert first.ok and second.ok, second.problems
    assert refused.error_code == "previous_response_not_found", refused.error
    assert not [key for key in await everything_in(own_redis.url) if b":turns" in key and b"sb:s" in key]
