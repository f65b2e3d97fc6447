"""What the vendor remembers: the newest responses of one connection, and everything stored by a boundary."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from broker.simulator.context import Context, Item
from broker.simulator.refusal import Refusal, unknown_parent


@dataclass(frozen=True, slots=True)
class Remembered:
    """A finished response that can be continued; steer input that still waits for tool outputs comes with it."""

    response_id: str
    context: Context
    stored: bool
    steers: tuple[Item, ...] = ()


@dataclass(slots=True)
class Archived:
    """A stored response as it can be fetched; its object is the one that its turn still writes to."""

    response: dict[str, Any]
    input: tuple[Item, ...]  # the whole effective context


class ConnectionMemory:
    """The newest response of every lane; all of it dies with the connection."""

    def __init__(self) -> None:
        self._newest: dict[str | None, Remembered] = {}
        self.reused_id: str | None = None  # for the manner in which one id names every response of a socket

    def find(self, response_id: str) -> Remembered | None:
        return next((kept for kept in self._newest.values() if kept.response_id == response_id), None)

    def keep(self, lane: str | None, remembered: Remembered) -> None:
        self._newest[lane] = remembered

    def evict(self, lane: str | None, response_id: str) -> None:
        """Forget a parent whose continuation on its own lane failed; what is stored can be had again."""
        kept = self._newest.get(lane)
        if kept is not None and kept.response_id == response_id and not kept.stored:
            del self._newest[lane]

    def forget(self) -> None:
        self._newest.clear()


@dataclass(slots=True)
class Conversation:
    """A conversation object; one turn at a time may hold it."""

    id: str
    context: Context = field(default_factory=Context)
    busy: bool = False
    created_at: int = field(default_factory=lambda: int(time.time()))
    metadata: dict[str, Any] = field(default_factory=dict)


class BoundaryStore:
    """Everything that one organisation has stored, oldest forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._responses: OrderedDict[str, Remembered] = OrderedDict()
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._conversations: dict[str, Conversation] = {}
        self._archive: OrderedDict[str, Archived] = OrderedDict()
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def find(self, response_id: str) -> Remembered | None:
        return self._responses.get(response_id)

    def archive(self, response_id: str, archived: Archived) -> None:
        """Let a response be fetched from now on; a reused id keeps its first state."""
        self._archive.setdefault(response_id, archived)
        if len(self._archive) > self._limit:
            self._archive.popitem(last=False)

    def fetch(self, response_id: str) -> Archived:
        """A response that can be fetched; raises Refusal for any other."""
        found = self._archive.get(response_id)
        if found is None:
            raise Refusal(404, None, f"Response with id '{response_id}' not found.", param="response_id")
        return found

    def delete(self, response_id: str) -> None:
        """Forget a response, for continuation too, on whatever connection that may still know it."""
        self.fetch(response_id)
        del self._archive[response_id]
        self._responses.pop(response_id, None)
        self._deleted[response_id] = None
        if len(self._deleted) > self._limit:
            self._deleted.popitem(last=False)

    def is_deleted(self, response_id: str) -> bool:
        return response_id in self._deleted

    def keep(self, remembered: Remembered, items: Iterable[Item]) -> None:
        """Store a response; a reused id keeps its first state, as seen at the vendor that reuses ids."""
        self._responses.setdefault(remembered.response_id, remembered)
        self.keep_items(items)
        if len(self._responses) > self._limit:
            self._responses.popitem(last=False)

    def keep_items(self, items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item.get("id"), str):
                self._items[item["id"]] = item
        while len(self._items) > self._limit:
            self._items.popitem(last=False)

    def item(self, item_id: object) -> Item:
        found = self._items.get(item_id) if isinstance(item_id, str) else None
        if found is None:
            message = f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false."
            raise Refusal(404, "item_not_found", message, param="input")
        return found

    def create_conversation(self, items: Iterable[Item] = (), metadata: dict[str, Any] | None = None) -> Conversation:
        given = list(items)
        self.keep_items(given)
        created = Conversation("conv_" + secrets.token_hex(16), Context().grown(given), metadata=metadata or {})
        self._conversations[created.id] = created
        return created

    def conversation(self, conversation_id: str) -> Conversation:
        found = self._conversations.get(conversation_id)
        if found is None:
            message = f"Conversation with id '{conversation_id}' not found."
            raise Refusal(404, "conversation_not_found", message, param="conversation")
        return found

    def delete_conversation(self, conversation_id: str) -> None:
        self.conversation(conversation_id)
        del self._conversations[conversation_id]


def resolve_parent(response_id: str, memory: ConnectionMemory | None, store: BoundaryStore) -> Remembered:
    """The response to continue: from the connection if it is newest there, else from the store, else refused."""
    found = (memory.find(response_id) if memory else None) or store.find(response_id)
    if found is None or store.is_deleted(response_id):
        raise unknown_parent(response_id)
    return found
