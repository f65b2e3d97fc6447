"""From a received create to the context it is answered from, or to the refusal it deserves."""

from dataclasses import dataclass
from typing import Any

from broker.simulator.context import Context, Item, input_items, item_type
from broker.simulator.credentials import SimCredential
from broker.simulator.manners import Manner
from broker.simulator.memory import BoundaryStore, ConnectionMemory, Conversation, Remembered, resolve_parent
from broker.simulator.refusal import (
    Refusal,
    unknown_deployment,
    unknown_model,
    unknown_parent_in_words,
    unknown_parent_of_server,
)
from broker.simulator.vendor import Vendor


@dataclass(frozen=True, slots=True)
class Create:
    """A request for a response as it was received; WebSocket-only and HTTP-only fields included."""

    frame: dict[str, Any]
    raw: bytes
    lane: str | None = None

    @property
    def model(self) -> str | None:
        model = self.frame.get("model")
        return model if isinstance(model, str) else None

    @property
    def parent_id(self) -> str | None:
        parent = self.frame.get("previous_response_id")
        return parent if isinstance(parent, str) else None

    @property
    def stored(self) -> bool:
        return self.frame.get("store") is not False

    @property
    def background(self) -> bool:
        return self.frame.get("background") is True

    @property
    def generates(self) -> bool:
        return self.frame.get("generate") is not False


@dataclass(frozen=True, slots=True)
class Intake:
    """An accepted create: what went before, what is new, and both together."""

    before: Context
    added: list[Item]
    conversation: Conversation | None = None

    @property
    def context(self) -> Context:
        return self.before.grown(self.added)


def accept(vendor: Vendor, credential: SimCredential, create: Create, memory: ConnectionMemory | None) -> Intake:
    """Resolve a create against everything that this credential may see; raises Refusal."""
    manner = vendor.manner_of(credential)
    _check_fields(credential, create, manner)
    store = vendor.store_of(credential)
    conversation = _conversation(create, store)
    before = conversation.context if conversation else Context()
    waiting: tuple[Item, ...] = ()
    if create.parent_id is not None:
        parent = _parent(create.parent_id, memory, store, manner)
        before, waiting = parent.context, parent.steers
    added = [_resolve(item, store) for item in input_items(create.frame.get("input"))] + list(waiting)
    before.check(added, credential.boundary)
    if conversation is not None:
        if conversation.busy:
            message = "Another process is currently operating on this conversation. Please retry in a few seconds."
            raise Refusal(409, "conversation_locked", message)
        conversation.busy = True
    return Intake(before, added, conversation)


def _parent(parent_id: str, memory: ConnectionMemory | None, store: BoundaryStore, manner: Manner) -> Remembered:
    try:
        return resolve_parent(parent_id, memory, store)
    except Refusal:
        if manner.bare_unknown_parent:
            raise unknown_parent_in_words(parent_id) from None
        if manner.stateless:
            raise unknown_parent_of_server(parent_id) from None
        raise


def _check_fields(credential: SimCredential, create: Create, manner: Manner) -> None:
    check_model(credential, create.model, manner)
    parent = create.frame.get("previous_response_id")
    if parent is not None and not isinstance(parent, str):
        raise Refusal(400, "invalid_type", "Invalid type for 'previous_response_id'.", param="previous_response_id")
    if parent is not None and create.frame.get("conversation") is not None:
        message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Give one of them."
        raise Refusal(400, "mutually_exclusive_parameters", message)


def check_model(credential: SimCredential, model: str | None, manner: Manner) -> None:
    """Refuse a request that names no model, or one that this caller may not use."""
    if model is None:
        raise Refusal(400, "missing_required_parameter", "Missing required parameter: 'model'.", param="model")
    if not credential.serves(model):
        raise unknown_deployment() if manner.deployments else unknown_model(model)


def _conversation(create: Create, store: BoundaryStore) -> Conversation | None:
    wanted = create.frame.get("conversation")
    if wanted is None:
        return None
    return store.conversation(str(wanted.get("id") if isinstance(wanted, dict) else wanted))


def _resolve(item: Item, store: BoundaryStore) -> Item:
    return store.item(item.get("id")) if item_type(item) == "item_reference" else item
