"""Nodes say that they are there, on the store's clock."""

from __future__ import annotations

import time

from broker.store.connection import Connection
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


async def test_the_silent_are_removed_and_nobody_else(connection: Connection) -> None:
    store = NodeStore(connection)
    await store.beat("silent", {})
    silent = (await store.nodes())["silent"]
    while (await store.nodes())["silent"].age < 0.05:
        pass
    await store.beat("alive", {})
    assert await store.remove_stale(60) == []
    assert await store.remove_stale(0.05) == ["silent"]
    beats = await store.nodes()
    assert set(beats) == {"alive"} and beats["alive"].at > silent.at
