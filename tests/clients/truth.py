"""What a client must have been told, by its own account of what it asked and what it got."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from broker.simulator import context_digest
from broker.simulator.record import TurnRecord
from tests.clients.program import Said
from tests.clients.site import Site


def turns_of(lines: Iterable[Said]) -> list[Said]:
    """The turns that a program has told of."""
    return [line for line in lines if line["type"] == "turn"]


def check_chain(turns: Iterable[Said]) -> None:
    """Each turn of one conversation was answered from all that was said before it, once, and from nothing else."""
    history: list[dict[str, Any]] = []
    for turn in turns:
        asked = turn["asked"]
        history += [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        assert turn["status"] == "completed", turn
        assert turn["text"].startswith(f"ctx={context_digest(history)[:32]} "), (turn, history)
        history += turn["items"]


def said_by_vendor(turn: TurnRecord) -> str:
    """How the text begins that a vendor answers from the context of this turn."""
    return f"ctx={(turn.context_digest or '')[:32]} "


def running_behind(at: Site, calls: int) -> bool:
    """Whether the vendor is in the middle of an answer behind at least so many calls of the tool."""
    last = at.turns[-1] if at.turns else None
    made = sum(item.get("type") == "function_call_output" for item in last.context) if last is not None else 0
    return last is not None and last.outcome == "active" and made >= calls
