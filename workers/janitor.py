"""The janitor: forgets nodes that have died, so that nobody counts on them."""

from __future__ import annotations

from broker.store.nodes import NodeStore


class Janitor:
    """Removes the heartbeats of nodes that were silent for `silent_for` seconds; looks every `every` seconds."""

    name = "janitor"

    def __init__(self, nodes: NodeStore, *, every: float = 2.0, silent_for: float = 10.0) -> None:
        self.every = every
        self._nodes = nodes
        self._silent_for = silent_for

    async def step(self) -> str:
        """Look once; the answer names the nodes that were removed."""
        removed = await self._nodes.remove_stale(self._silent_for)
        return f"removed {', '.join(sorted(removed))}" if removed else ""
