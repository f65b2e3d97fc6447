"""`response.steer`: user input for a response that is still being generated, accepted or refused with a code."""

import secrets
from collections import deque
from typing import Any, Protocol

from broker.simulator.context import Item, input_items, item_type
from broker.simulator.memory import ConnectionMemory
from broker.simulator.refusal import Refusal
from broker.simulator.turn import Turn
from broker.simulator.vendor import Vendor

_FIELDS = {"type", "previous_response_id", "input"}


class Steerable(Protocol):
    """The part of a connection that steering needs."""

    vendor: Vendor
    memory: ConnectionMemory
    active: dict[str | None, Turn]
    finished: deque[str]


def steer(connection: Steerable, frame: dict[str, Any]) -> dict[str, Any]:
    """The acknowledgement of a steer; an accepted one waits in its turn for the next delta boundary."""
    parent = frame.get("previous_response_id")
    turn = next((turn for turn in connection.active.values() if turn.response_id == parent), None)
    items = _user_messages(frame)
    if items is None or not isinstance(parent, str):
        return _failed(frame, "invalid_input", "A steer takes previous_response_id and user input, nothing else.")
    if turn is None:
        if parent in connection.finished or connection.memory.find(parent) is not None:
            return _failed(frame, "response_already_completed", f"Response '{parent}' has already completed.")
        return _failed(frame, "response_not_found", f"Response '{parent}' not found.")
    if turn.final is not None:
        return _failed(frame, "response_already_completed", f"Response '{parent}' has already completed.")
    if turn.create.frame.get("conversation") or turn.create.frame.get("context_management"):
        return _failed(frame, "steering_not_supported", "Steering is not supported for this response.")
    if len(turn.output.steers) + len(items) > connection.vendor.options.pending_steers:
        return _failed(frame, "too_many_pending_steers", "Too many pending steers.")
    turn.output.steers.extend(items)
    return _accepted(turn, parent)


def _user_messages(frame: dict[str, Any]) -> list[Item] | None:
    if frame.keys() - _FIELDS or not frame.get("input"):
        return None
    try:
        items = input_items(frame["input"])
    except Refusal:
        return None
    only_users = all(item_type(item) == "message" and item.get("role") == "user" for item in items)
    return items if only_users else None


def _accepted(turn: Turn, parent: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "type": "response.steer.accepted",
        "steer": {"id": "steer_" + secrets.token_hex(16), "previous_response_id": parent},
        "sequence_number": turn.writer.sequence,
    }
    turn.writer.sequence += 1
    if turn.create.lane is not None:
        event["stream_id"] = turn.create.lane
    return event


def _failed(frame: dict[str, Any], code: str, message: str) -> dict[str, Any]:
    return {
        "type": "response.steer.failed",
        "error": {"type": "invalid_request_error", "code": code, "message": message},
        "steer": {"previous_response_id": frame.get("previous_response_id"), "input": frame.get("input")},
        "sequence_number": 0,
    }
