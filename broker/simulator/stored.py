"""Stored responses and conversations over HTTP: fetched, listed, cancelled and deleted within their scope."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from broker.simulator.background import BACKGROUND
from broker.simulator.context import Item, input_items
from broker.simulator.credentials import SimCredential
from broker.simulator.handshake import VENDOR, body_of, door, json_response
from broker.simulator.memory import Archived, BoundaryStore, Conversation
from broker.simulator.refusal import Refusal

_PAGE = 20
_PAGE_LIMIT = 100


@door
async def get_response(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """GET /v1/responses/{id}; `?stream=true&starting_after=N` replays the events of one in the background."""
    response_id, archived, _ = _fetched(request, credential)
    if request.query.get("stream") != "true":
        return json_response(archived.response)
    background = request.app[BACKGROUND].get(response_id)
    if background is None:
        message = "Only responses that were created with background=true can be streamed."
        raise Refusal(400, "invalid_value", message, param="stream")
    after = request.query.get("starting_after", "-1")
    return await background.wire.follow(request, int(after) if after.isdigit() else -1, anew=True)


@door
async def delete_response(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """DELETE /v1/responses/{id}."""
    response_id, _, store = _fetched(request, credential)
    background = request.app[BACKGROUND].pop(response_id, None)
    if background is not None:
        background.cancel()
    store.delete(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@door
async def cancel_response(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/responses/{id}/cancel."""
    response_id, archived, _ = _fetched(request, credential)
    background = request.app[BACKGROUND].get(response_id)
    if background is None:
        raise Refusal(400, "invalid_value", "Cannot cancel a synchronous response.")
    background.cancel()
    return json_response(archived.response)


@door
async def list_input(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """GET /v1/responses/{id}/input_items: the whole context that the response was an answer to."""
    response_id, archived, _ = _fetched(request, credential)
    return json_response(_page(request, _with_ids(archived.input, response_id)))


def _fetched(request: web.Request, credential: SimCredential) -> tuple[str, Archived, BoundaryStore]:
    response_id = request.match_info["id"]
    store = request.app[VENDOR].store_of(credential)
    return response_id, store.fetch(response_id), store


@door
async def create_conversation(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/conversations."""
    body, _ = await body_of(request)
    items = _new_items(body.get("items"))
    return json_response(_shown(request.app[VENDOR].store_of(credential).create_conversation(items, _metadata(body))))


@door
async def get_conversation(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """GET /v1/conversations/{id}."""
    return json_response(_shown(_conversation(request, credential)))


@door
async def update_conversation(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/conversations/{id}."""
    conversation = _conversation(request, credential)
    conversation.metadata = _metadata((await body_of(request))[0])
    return json_response(_shown(conversation))


@door
async def delete_conversation(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """DELETE /v1/conversations/{id}."""
    conversation = _conversation(request, credential)
    request.app[VENDOR].store_of(credential).delete_conversation(conversation.id)
    return json_response({"id": conversation.id, "object": "conversation.deleted", "deleted": True})


@door
async def list_conversation(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """GET /v1/conversations/{id}/items."""
    conversation = _conversation(request, credential)
    return json_response(_page(request, _with_ids(conversation.context.items, conversation.id)))


@door
async def add_to_conversation(request: web.Request, credential: SimCredential) -> web.StreamResponse:
    """POST /v1/conversations/{id}/items."""
    conversation = _conversation(request, credential)
    items = _new_items((await body_of(request))[0].get("items"))
    conversation.context.check(items, credential.boundary)
    conversation.context = conversation.context.grown(items)
    added = _with_ids(conversation.context.items, conversation.id)[-len(items) :] if items else []
    return json_response(_list_of(added, more=False))


def _conversation(request: web.Request, credential: SimCredential) -> Conversation:
    return request.app[VENDOR].store_of(credential).conversation(request.match_info["id"])


def _new_items(value: object) -> list[Item]:
    if isinstance(value, str):
        raise Refusal(400, "invalid_type", "Invalid type for 'items': expected an array.", param="items")
    return input_items(value)


def _metadata(body: dict[str, Any]) -> dict[str, Any]:
    metadata = body.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _shown(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
    }


def _with_ids(items: Sequence[Item], owner: str) -> list[Item]:
    """The items as listed: all have an id, which follows from their place where they came without one."""
    tail = owner.rpartition("_")[2]
    return [item | {"id": item.get("id") or f"item_{at}_{tail}"} for at, item in enumerate(items)]


def _page(request: web.Request, items: list[Item]) -> dict[str, Any]:
    """A page of items, newest first unless asked otherwise."""
    ordered = items if request.query.get("order") == "asc" else items[::-1]
    after, limit = request.query.get("after"), request.query.get("limit", "")
    start = next((at + 1 for at, item in enumerate(ordered) if item["id"] == after), 0) if after else 0
    size = min(int(limit), _PAGE_LIMIT) if limit.isdigit() and int(limit) > 0 else _PAGE
    return _list_of(ordered[start : start + size], more=len(ordered) > start + size)


def _list_of(items: list[Item], *, more: bool) -> dict[str, Any]:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": more}
