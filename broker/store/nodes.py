"""Which nodes there are, and how busy: heartbeats on the store's clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from broker.store import keys, scripts
from broker.store.connection import Connection, command


@dataclass(frozen=True, slots=True)
class NodeBeat:
    """The last sign of life of a node: `at` is the store's time, `age` how long ago that was, both in seconds."""

    at: float
    age: float
    load: Mapping[str, int]


class _Beat(msgspec.Struct):
    at: float
    load: dict[str, int]


_beat = msgspec.json.Decoder(_Beat).decode


class NodeStore:
    """The heartbeats of all nodes. Every method may raise `StoreUnavailable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def beat(self, node: str, load: Mapping[str, int]) -> None:
        """A sign of life."""
        await self._connection.run(scripts.BEAT, (keys.nodes(),), (node, msgspec.json.encode(dict(load))), read=True)

    async def nodes(self) -> dict[str, NodeBeat]:
        """All nodes that were not yet removed. One round trip."""
        beats, (seconds, micros) = await self._connection.ask(
            command("HGETALL", keys.nodes()), command("TIME"), read=True
        )
        now = int(seconds) + int(micros) / 1e6
        found = {name.decode(): _beat(raw) for name, raw in beats.items()}
        return {name: NodeBeat(beat.at, now - beat.at, beat.load) for name, beat in found.items()}

    async def remove_stale(self, older_than: float) -> list[str]:
        """Forget the nodes that were silent for longer than that many seconds; the answer is their names."""
        removed = await self._connection.run(scripts.REMOVE_STALE, (keys.nodes(),), (repr(older_than),))
        return [name.decode() for name in removed]
