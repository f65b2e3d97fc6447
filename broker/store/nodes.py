"""Which nodes there are, and how busy: heartbeats on the store's clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.store import keys, scripts
from broker.store.connection import Connection, command
from broker.store.reading import readable


@dataclass(frozen=True, slots=True)
class NodeBeat:
    """The last sign of life of a node: `at` is the store's time, `age` how long ago that was, both in seconds.

    `role` says what it is: "edge" or "worker".
    """

    at: float
    age: float
    load: Mapping[str, Any]
    role: str = "edge"


class _Beat(msgspec.Struct):
    at: float
    load: dict[str, Any]
    role: str = "edge"


_beat = msgspec.json.Decoder(_Beat).decode


class NodeStore:
    """The heartbeats of all nodes. Every method may raise `StoreUnavailable`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def beat(self, node: str, load: Mapping[str, Any], role: str = "edge") -> None:
        """A sign of life. `load` is whatever msgspec can write as a JSON object."""
        encode = msgspec.json.encode
        await self._connection.run(scripts.BEAT, (keys.nodes(),), (node, encode(dict(load)), encode(role)), read=True)

    async def leave(self, node: str) -> None:
        """This node ends in good order; nobody shall count on it any more."""
        await self._connection.ask(command("HDEL", keys.nodes(), node), read=True)

    async def nodes(self) -> dict[str, NodeBeat]:
        """All nodes that were not yet removed. One round trip."""
        beats, (seconds, micros) = await self._connection.ask(
            command("HGETALL", keys.nodes()), command("TIME"), read=True
        )
        now = int(seconds) + int(micros) / 1e6
        found = readable(beats, _beat)
        return {name: NodeBeat(beat.at, now - beat.at, beat.load, beat.role) for name, beat in found.items()}

    async def remove_stale(self, older_than: float) -> list[str]:
        """Forget the nodes that were silent for longer than that many seconds; the answer is their names."""
        removed = await self._connection.run(scripts.REMOVE_STALE, (keys.nodes(),), (repr(older_than),))
        return [name.decode() for name in removed]
