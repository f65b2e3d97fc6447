"""Redis goes away under requests over HTTP: what is served, what is refused, and what is written afterwards."""

from __future__ import annotations

import time

import pytest

from broker.edge.app import Listeners
from tests import engines
from tests.scenarios.house import Answer, House, by, counted, wait_until
from tests.scenarios.test_store_away import bring_back, house, manner, own_redis, queued, take_away

__all__ = ["house", "manner", "own_redis"]  # fixtures

DOWNWARDS = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


async def impatient(house: House, *transports: str) -> Listeners:
    pool = by(house.credentials(), *(transports or ("websocket", "http")))
    return await house.node(credentials=pool, timeout=0.3, connect_timeout=0.3)


def assert_away(answer: Answer) -> None:
    assert (answer.status, answer.error_code) == (503, "session_store_unavailable"), (answer.status, answer.error)
    assert int(answer.headers["retry-after"]) >= 1


@DOWNWARDS
async def test_serves_what_needs_no_past_and_refuses_what_the_store_knows(
    house: House, own_redis: engines.Server, manner: str, stream: bool
) -> None:
    one, two = await impatient(house), await impatient(house)
    caller = house.caller(one, stream=stream)
    first = await caller.turn("one")
    take_away(own_redis, manner)

    caller.move(two)
    unknown = await caller.turn("two", parent=first)
    named = await house.caller(two, session_id="agent-7", stream=stream).turn("hello")
    begun = time.monotonic()
    fresh = [await house.caller(two, stream=stream).turn("fresh", store=store) for store in (True, False)]
    took = time.monotonic() - begun

    assert_away(unknown)
    assert_away(named)
    assert all(turn.ok for turn in fresh), [(turn.status, turn.error, turn.problems) for turn in fresh]
    assert took < 3.0
    assert len(house.sim.turns) == 3, "nothing was guessed"
    bring_back(own_redis, manner)
    await wait_until(lambda: queued(two) == 0, within=10.0)
    for parent in (first, fresh[0]):
        for node in (two, one):
            caller.move(node)
            turn = await caller.turn("again", parent=parent)
            assert turn.ok and turn.digest_ok, (turn.status, turn.error, turn.problems)
    assert counted(two, "broker_commits_total", result="lost") == 0


async def test_continues_on_the_same_node_what_it_could_not_write_yet(house: House, own_redis: engines.Server) -> None:
    node = await impatient(house)
    caller = house.caller(node)
    take_away(own_redis, "killed")
    first = await caller.turn("one")
    second = await caller.turn("two")
    bring_back(own_redis, "killed")
    await wait_until(lambda: queued(node) == 0, within=10.0)
    third = await caller.turn("three", parent=first)

    assert first.ok, first.error
    if not second.ok:
        assert_away(second)
    assert third.ok and third.digest_ok, (third.error, third.problems)


@pytest.mark.parametrize("method, path", [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")])
async def test_does_not_guess_whose_something_is(
    house: House, own_redis: engines.Server, method: str, path: str
) -> None:
    node = await impatient(house)
    caller = house.caller(node)
    first = await caller.turn("one")
    take_away(own_redis, "killed")
    async with caller.ask(f"responses/{first.response_id}{path}", method=method) as answer:
        said = await answer.json()
        assert (answer.status, said["error"]["code"]) == (503, "session_store_unavailable"), said
        assert int(answer.headers["Retry-After"]) >= 1


async def test_passes_requests_on_that_have_nothing_to_do_with_the_store(
    house: House, own_redis: engines.Server, manner: str
) -> None:
    node = await impatient(house)
    take_away(own_redis, manner)
    caller = house.caller(node)
    async with caller.ask("responses/compact", {"model": "sim-1", "input": "hello"}) as answer:
        assert answer.status == 200, await answer.read()
    async with caller.ask("models", method="GET") as answer:
        assert answer.status == 200
    bring_back(own_redis, manner)
