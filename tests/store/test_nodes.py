"""Nodes say that they are there, on the store's clock."""

from __future__ import annotations

import time
from collections import Counter

from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.nodes import NodeStore


async def test_a_beat_tells_the_load_and_its_age(connection: Connection) -> None:
    store = NodeStore(connection)
    assert await store.nodes() == {}
    await store.beat("one", {"sessions": 1})
    await store.beat("one", {"sessions": 2, "turns": 3})
    await store.beat("two", {})
    beats = await store.nodes()
    assert {name: dict(beat.load) for name, beat in beats.items()} == {"one": {"sessions": 2, "turns": 3}, "two": {}}
    assert all(0 <= beat.age < 30 and abs(beat.at - time.time()) < 30 for beat in beats.values())
    assert beats["one"].at <= beats["two"].at


async def test_a_beat_carries_any_load_and_the_role(connection: Connection) -> None:
    store = NodeStore(connection)
    await store.beat("edge", {"sockets": 2, "in_flight": Counter(red=3), "bound": {"blue": 1}})
    await store.beat("work", {"leads": ["janitor", 'a "name"\\']}, role="worker")
    beats = await store.nodes()
    assert {name: beat.role for name, beat in beats.items()} == {"edge": "edge", "work": "worker"}
    assert dict(beats["edge"].load) == {"sockets": 2, "in_flight": {"red": 3}, "bound": {"blue": 1}}
    assert dict(beats["work"].load) == {"leads": ["janitor", 'a "name"\\']}


async def test_who_leaves_is_gone_at_once_and_nobody_else(connection: Connection) -> None:
    store = NodeStore(connection)
    await store.beat("one", {})
    await store.beat("two", {})
    await store.leave("one")
    await store.leave("never there")
    assert set(await store.nodes()) == {"two"}


async def test_the_silent_are_removed_and_nobody_else(connection: Connection) -> None:
    store = NodeStore(connection)
    await store.beat("silent", {})
    silent = (await store.nodes())["silent"]
    while (await store.nodes())["silent"].age < 0.05:
        pass
    await store.beat("alive", {}, role="worker")
    assert await store.remove_stale(60) == []
    assert await store.remove_stale(0.05) == ["silent"]
    beats = await store.nodes()
    assert set(beats) == {"alive"} and beats["alive"].at > silent.at


async def test_a_heartbeat_that_cannot_be_read_hides_no_other(connection: Connection) -> None:
    nodes = NodeStore(connection)
    await nodes.beat("good", {"sockets": 1})
    for name, garbage in (("one", b"not json"), ("two", b"[]"), ("three", b'{"at":"soon","load":{}}')):
        await connection.ask(command("HSET", keys.nodes(), name, garbage))
    assert list(await nodes.nodes()) == ["good"]
