"""The heartbeat: a worker says that it is there, and what it leads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.store.nodes import NodeStore


class Heartbeat:
    """Beats `every` so many seconds under the name of this worker; `leads` is asked each time."""

    name = "heartbeat"
    alone = False

    def __init__(self, nodes: NodeStore, node: str, leads: Callable[[], Sequence[str]], *, every: float = 1.0) -> None:
        self.every = every
        self._nodes = nodes
        self._node = node
        self._leads = leads

    async def step(self) -> str:
        """Beat once."""
        await self._nodes.beat(self._node, {"leads": list(self._leads())}, role="worker")
        return ""
