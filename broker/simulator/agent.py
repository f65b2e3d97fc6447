"""What agents have in common, whatever they speak over: a transcript of their own, and the turns that continue it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from broker.simulator.context import Item, input_items
from broker.simulator.observed import TurnResult


class Head:
    """The type of HEAD."""


HEAD: Final = Head()  # continue the newest good turn of the lane


class Agent:
    """One agent: any number of lanes, and a transcript that outlives connections.

    Nothing that the other side does wrong raises; it stands in `TurnResult.problems`, and in `notices` where it
    belongs to no turn. `timeout` (seconds) bounds the connection attempt and the silence between two events.
    """

    def __init__(
        self,
        key: str,
        *,
        session_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        model: str = "sim-1",
    ) -> None:
        self.session_id = session_id
        self.timeout = timeout
        self.model = model
        self.heads: dict[str | None, TurnResult] = {}  # the newest good turn of every lane
        self.results: dict[str | None, TurnResult] = {}  # the newest turn of every lane, good or not
        self.notices: list[dict[str, Any]] = []  # what belongs to no turn
        self._headers = {"Authorization": f"Bearer {key}", **(headers or {})}
        self._locks: dict[str | None, asyncio.Lock] = {}

    async def turn(
        self,
        text: str | list[Item],
        *,
        lane: str | None = None,
        store: bool = False,
        model: str | None = None,
        incremental: bool = True,
        parent: TurnResult | Head | None = HEAD,
        extra: Mapping[str, Any] | None = None,
    ) -> TurnResult:
        """Ask and wait for the end. `parent` None starts afresh, another result forks from it.

        Not incremental sends the whole transcript instead of `previous_response_id`. `extra` are further fields of
        the request.
        """
        before = self.heads.get(lane) if isinstance(parent, Head) else parent
        settings = {"model": model or self.model, "store": store, **(extra or {})}
        return await self._ask(TurnResult(lane, before, input_items(text), incremental, settings))

    async def tool_turn(
        self, *, lane: str | None = None, incremental: bool = True, extra: Mapping[str, Any] | None = None
    ) -> TurnResult:
        """Answer all open calls of the lane's head, with its settings."""
        head = self.heads.get(lane)
        if head is None:
            raise ValueError("there is no turn whose calls could be answered")
        settings = head.settings | dict(extra or {})
        return await self._ask(TurnResult(lane, head, tool_outputs(head), incremental, settings))

    async def retry(self, *, lane: str | None = None, incremental: bool | None = None) -> TurnResult:
        """Send the lane's newest turn once more, from the same parent; as before or as told."""
        last = self.results.get(lane)
        if last is None:
            raise ValueError("there is no turn to send again")
        way = last.incremental if incremental is None else incremental
        return await self._ask(TurnResult(lane, last.parent, last.input, way, last.settings))

    def request_of(self, result: TurnResult) -> dict[str, Any]:
        """The fields that ask for a turn on any transport."""
        if result.parent is None or not result.incremental:
            before = result.parent.transcript() if result.parent is not None else []
            return {**result.settings, "input": before + result.input}
        return {**result.settings, "previous_response_id": result.parent.response_id, "input": result.input}

    async def _ask(self, result: TurnResult) -> TurnResult:
        async with self._locks.setdefault(result.lane, asyncio.Lock()):
            result.started = time.monotonic()
            self.results[result.lane] = result
            await self._perform(result)
            self._advance(result)
        return result

    async def _perform(self, result: TurnResult) -> None:
        """Send a turn and see it to its end."""
        raise NotImplementedError

    def _advance(self, result: TurnResult | None) -> None:
        while result is not None and result.ok:
            self.heads[result.lane] = result
            result = result.successor


def tool_outputs(result: TurnResult) -> list[Item]:
    """An output for every call of a turn."""
    return [
        {
            "type": f"{call['type']}_output",
            "call_id": call.get("call_id"),
            "output": f"result of {call.get('name')}",
        }
        for call in result.calls
    ]
