"""The vendor's endpoints, under the base paths of the vendors it plays."""

import orjson
from aiohttp import web

from broker.simulator.background import BACKGROUND
from broker.simulator.chat import create_chat
from broker.simulator.embeddings import create_embeddings
from broker.simulator.handshake import VENDOR, Handler
from broker.simulator.http import compact, count_tokens, create_response, get_model, list_models
from broker.simulator.socket import open_socket
from broker.simulator.stored import (
    add_to_conversation,
    cancel_response,
    create_conversation,
    delete_conversation,
    delete_response,
    get_conversation,
    get_response,
    list_conversation,
    list_input,
    update_conversation,
)

_BASE_PATHS = ("/v1", "/openai/v1")
_ENDPOINTS: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/responses", open_socket),
    ("POST", "/responses", create_response),
    ("POST", "/responses/compact", compact),
    ("POST", "/responses/input_tokens", count_tokens),
    ("GET", "/responses/{id}", get_response),
    ("DELETE", "/responses/{id}", delete_response),
    ("POST", "/responses/{id}/cancel", cancel_response),
    ("GET", "/responses/{id}/input_items", list_input),
    ("POST", "/chat/completions", create_chat),
    ("POST", "/embeddings", create_embeddings),
    ("POST", "/conversations", create_conversation),
    ("GET", "/conversations/{id}", get_conversation),
    ("POST", "/conversations/{id}", update_conversation),
    ("DELETE", "/conversations/{id}", delete_conversation),
    ("GET", "/conversations/{id}/items", list_conversation),
    ("POST", "/conversations/{id}/items", add_to_conversation),
    ("GET", "/models", list_models),
    ("GET", "/models/{id:.+}", get_model),
)


def add_routes(app: web.Application) -> None:
    """Mount every endpoint."""
    app[BACKGROUND] = {}
    for base in _BASE_PATHS:
        for method, path, handler in _ENDPOINTS:
            app.router.add_route(method, base + path, handler)
    app.router.add_post("/{tenant}/oauth2/v2.0/token", _issue_token)


async def _issue_token(request: web.Request) -> web.StreamResponse:
    form = {name: str(value) for name, value in (await request.post()).items()}
    vendor = request.app[VENDOR]
    status, body = vendor.tokens.issue(request.match_info["tenant"], form)
    vendor.recorder.handshake(None, "http", request.headers, status=status, method="POST", path=request.path)
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
