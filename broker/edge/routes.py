"""What clients connect to: every address below `/v1`, and who may come in.

Three kinds of endpoints: those by which a request comes that any credential may serve (`domain/endpoints.py`), what
lives with the credential that made it (`owned.py`), and what is the broker's own to say, such as the list of models.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from broker.domain import errors, wire
from broker.domain.endpoints import PASSED_ON, RESPONSES, Endpoint
from broker.domain.errors import ErrorReply
from broker.domain.headers import without_turn_state
from broker.domain.presentation import PRESENTATION, ClientKind, kind_of
from broker.domain.session import Session
from broker.domain.turn import Request
from broker.edge.access import Tenant
from broker.edge.node import Node
from broker.edge.owned import forward
from broker.edge.request import ClientRequest, refusal
from broker.edge.websocket import ClientSocket, new_turn_id
from broker.store.connection import StoreUnavailable

log = logging.getLogger(__name__)

NODE: web.AppKey[Node] = web.AppKey("node", Node)

SESSION_HEADERS = ("x-session-id", "thread-id", "session-id", "session_id", "x-session-affinity")
"""Where a client may name its session, in the order in which they are believed."""

MAX_NAME = 256

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,255}"
_ID = f"{{id:{_NAME}}}"
_OWNED: Mapping[str, tuple[str, ...]] = {
    f"/v1/responses/{_ID}": ("GET", "DELETE"),
    f"/v1/responses/{_ID}/cancel": ("POST",),
    f"/v1/responses/{_ID}/input_items": ("GET",),
    f"/v1/conversations/{_ID}": ("GET", "POST", "DELETE"),
    f"/v1/conversations/{_ID}/items": ("GET", "POST"),
    f"/v1/conversations/{_ID}/items/{{item:{_NAME}}}": ("GET", "DELETE"),
}
"""What lives with the credential that made it."""

_ELSEWHERE = ("files", "uploads", "vector_stores", "containers", "batches", "fine_tuning", "assistants", "threads")
"""What would bind every turn that names it to one credential for ever."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def client_app(node: Node) -> web.Application:
    """What clients connect to."""
    app = web.Application(client_max_size=node.bounds.max_frame, middlewares=[_in_our_words])
    app[NODE] = node
    _route(app, "/v1/responses", {"GET": _socket, "POST": functools.partial(_request, RESPONSES)})
    for endpoint in PASSED_ON:
        _route(app, f"/v1/{endpoint.path}", {"POST": functools.partial(_request, endpoint)})
    _route(app, "/v1/models", {"GET": _models})
    _route(app, "/v1/models/{name:.+}", {"GET": _model})
    for path, methods in _OWNED.items():
        _route(app, path, dict.fromkeys(methods, _owned))
    for name in _ELSEWHERE:
        app.router.add_route("*", f"/v1/{name}{{rest:(/.*)?}}", _not_kept)
    app.router.add_route("*", "/{path:.*}", _nowhere)
    return app


def _route(app: web.Application, path: str, handlers: Mapping[str, Handler]) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        handler = handlers.get(request.method)
        if handler is None:
            return refusal(_WRONG_METHOD, {"Allow": ", ".join(handlers)})
        return await handler(request)

    app.router.add_route("*", path, handle)


@web.middleware
async def _in_our_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever is wrong with a request is said in the vendor's form, and counted."""
    node = request.app[NODE]
    try:
        response = await handler(request)
    except Away as away:
        response = refusal(away.reply)
        node.metrics.handshakes.inc(away.result)
    except wire.BadFrame as bad:
        response = refusal(errors.bad_request(bad.code, bad.message, bad.param))
    except StoreUnavailable as error:
        node.metrics.store_errors.inc(error.reason)
        response = refusal(errors.store_away())
    except web.HTTPException as refused:
        response = refusal(ErrorReply(refused.status, "bad_request", refused.reason, "invalid_request_error"))
    except TimeoutError:
        response = refusal(_SLOW)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception as error:
        if request.transport is None:
            raise
        log.exception("request broke")
        response = refusal(errors.broken(error, "request"))
    if not isinstance(response, web.WebSocketResponse):
        node.metrics.requests.inc(str(response.status))
    return response


class Away(Exception):
    """Somebody is not let in; `result` is the word under which that is counted."""

    def __init__(self, result: str, reply: ErrorReply) -> None:
        super().__init__(result)
        self.result = result
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Admitted:
    """A client that is let in: its tenant, and its session if it has named one."""

    tenant: Tenant
    name: str | None


def admit(request: web.Request) -> Admitted:
    """Who is asking (raises `Away`)."""
    node = request.app[NODE]
    tenant = node.access.tenant(request.headers.get("Authorization"))
    if tenant is None:
        raise Away("unauthorized", _UNKNOWN_KEY)
    if not node.ready or node.serving() >= node.bounds.max_sockets:
        raise Away("full", _NODE_BUSY)
    if tenant.max_sockets and node.serving(tenant) >= tenant.max_sockets:
        raise Away("tenant_full", _TENANT_FULL)
    return Admitted(tenant, _session_name(request.headers))


async def _session_of(request: web.Request, admitted: Admitted) -> Session:
    sessions, tenant = request.app[NODE].sessions, admitted.tenant.name
    return await sessions.claim(tenant, admitted.name) if admitted.name else sessions.mint(tenant)


async def _session_for(endpoint: Endpoint, http: web.Request, admitted: Admitted) -> Session:
    """The session of a request. What is passed on has none, but may hold what only its organisation can read."""
    if endpoint.conversing:
        return await _session_of(http, admitted)
    if admitted.name and endpoint.context:
        return (await _session_of(http, admitted)).aside()
    return http.app[NODE].sessions.mint(admitted.tenant.name)


def _session_name(headers: Mapping[str, str]) -> str | None:
    for header in SESSION_HEADERS:
        value = headers.get(header, "").strip()
        if value and len(value) <= MAX_NAME and value.isprintable():
            return value
    return None


# --- a socket ---


async def _socket(request: web.Request) -> web.StreamResponse:
    node = request.app[NODE]
    admitted = admit(request)
    if request.headers.get("Upgrade", "").lower() != "websocket":
        node.metrics.handshakes.inc("not_websocket")
        return refusal(_NO_WEBSOCKET, {"Allow": "GET, POST"})
    try:
        session = await _session_of(request, admitted)
    except StoreUnavailable as error:
        node.metrics.store_errors.inc(error.reason)
        raise Away("store_away", errors.store_away()) from None
    ws = web.WebSocketResponse(
        heartbeat=node.bounds.heartbeat,
        max_msg_size=node.bounds.max_frame,
        compress=False,
        decode_text=False,
        protocols=_offered(request),
    )
    ws.headers["x-session-id"] = session.name
    tap = node.tap(request.transport, request.protocol)
    try:
        async with asyncio.timeout(node.bounds.handshake):
            await ws.prepare(request)
    except BaseException as error:
        if tap is not None:
            tap.remove()
        if not isinstance(error, ConnectionError | TimeoutError):
            raise
        node.metrics.handshakes.inc("lost")
        return ws
    if request.transport is None:
        node.metrics.handshakes.inc("lost")
        return ws
    explicit = admitted.name is not None
    socket = ClientSocket(node.wiring, ws, admitted.tenant, session, explicit=explicit, request=request, tap=tap)
    node.metrics.handshakes.inc("accepted")
    node.enter(socket)
    try:
        await socket.serve()
    finally:
        node.leave(socket)
    return ws


def _offered(request: web.Request) -> tuple[str, ...]:
    """The sub-protocols a client asked for: echoed, never required."""
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    return tuple(part.strip() for part in offered.split(",") if part.strip())


# --- a request ---


async def _request(endpoint: Endpoint, http: web.Request) -> web.StreamResponse:
    """A request that any credential may serve."""
    node = http.app[NODE]
    admitted = admit(http)
    with node.slot(admitted.tenant):
        raw = await body_of(http)
    body = wire.read_client_body(raw)
    if endpoint.conversing:
        wire.check_fields(raw)
    session = await _session_for(endpoint, http, admitted)
    presentation = PRESENTATION[kind_of(http.headers)] if endpoint.conversing else None
    named = admitted.name is not None
    client = ClientRequest(
        node.wiring,
        http,
        admitted.tenant,
        session,
        endpoint,
        presentation=presentation,
        explicit=named,
        streamed=endpoint.streams and body.stream is True,
    )
    continuable = named and presentation is not None and not presentation.resends
    request = _turn_of(endpoint, body, raw, continuable=continuable)
    node.enter(client)
    try:
        return await client.serve(request)
    finally:
        node.leave(client)


async def body_of(http: web.Request) -> bytes:
    """The body of a request, bounded in size and time."""
    node = http.app[NODE]
    try:
        async with asyncio.timeout(node.bounds.request):
            return await http.read()
    except web.HTTPRequestEntityTooLarge:
        # Codex sends the same five times where it is told 413 (protocol.md 9.1.10)
        status = 400 if kind_of(http.headers) is ClientKind.CODEX else 413
        raise Away("too_large", _too_large(node.bounds.max_frame, status)) from None
    except web.RequestPayloadError:
        raise Away("unreadable", _UNREADABLE) from None


def _turn_of(endpoint: Endpoint, body: wire.ClientBody, raw: bytes, *, continuable: bool) -> Request:
    """The request as a turn. `continuable`: what is not stored can be continued in its session all the same.

    What nobody could continue is not recorded: what the vendor forgets at once (`store` false, over HTTP), in a session
    that has no name, or of a client that sends its whole context each time.
    """
    raw, binding = without_turn_state(raw), wire.binds(raw, body)
    background = endpoint.conversing and body.background is True
    asks_for_stream = body.stream is True or background or not endpoint.conversing
    continues = body.previous_response_id is not None
    recorded = endpoint.conversing and (continuable or continues or body.store is not False)
    return Request(
        turn_id=new_turn_id(),
        lane=None,
        raw=raw if asks_for_stream else wire.streaming(raw),
        items=wire.input_items(bytes(body.input)),
        model=body.model or "",
        previous_response_id=body.previous_response_id,
        store=endpoint.conversing and body.store is not False,
        binding=binding,
        needs=wire.owned(body, binding) if binding is not None else (),
        transport="http" if background or not endpoint.conversing else "",
        affinity=body.prompt_cache_key or "",
        streamed=endpoint.conversing or body.stream is True,
        background=background,
        whole=endpoint.conversing and not background and body.stream is not True,
        recorded=recorded,
        conversing=endpoint.conversing,
    )


# --- what is somebody's, and what is ours ---


async def _owned(request: web.Request) -> web.StreamResponse:
    admitted = admit(request)
    node = request.app[NODE]
    with node.slot(admitted.tenant):
        return await forward(request, node.wiring, admitted.tenant, await body_of(request))


async def _models(request: web.Request) -> web.StreamResponse:
    with request.app[NODE].slot(admit(request).tenant):
        listing = await request.app[NODE].models.listing()
    return web.Response(body=listing, content_type="application/json")


async def _model(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    with request.app[NODE].slot(admit(request).tenant):
        found = await request.app[NODE].models.one(name)
    if found is None:
        return refusal(errors.no_credential(name[: wire.MAX_MODEL]))
    return web.Response(body=found, content_type="application/json")


async def _not_kept(request: web.Request) -> web.StreamResponse:
    admit(request)
    return refusal(_NOT_KEPT)


async def _nowhere(request: web.Request) -> web.StreamResponse:
    raise Away("unknown_path", _NO_SUCH_PATH)


_UNKNOWN_KEY = ErrorReply(
    401,
    "invalid_api_key",
    "This broker does not know the API key. Send a client key of the broker as 'Authorization: Bearer ...'.",
    "invalid_request_error",
)
_NO_WEBSOCKET = ErrorReply(
    405,
    "websocket_required",
    "Connect to this address by WebSocket (GET with Upgrade), or send a POST.",
    "invalid_request_error",
)
_WRONG_METHOD = ErrorReply(
    405, "method_not_allowed", "This address does not take that method; see the Allow header.", "invalid_request_error"
)
_TENANT_FULL = ErrorReply(
    429,
    "connection_limit_reached",
    "This key has as many connections as it may have; close one first.",
    "rate_limit_error",
    retry_after=5.0,
)
_NO_SUCH_PATH = ErrorReply(
    404,
    "unknown_path",
    "This broker serves /v1/responses, /v1/conversations, /v1/chat/completions, /v1/embeddings and /v1/models.",
    "invalid_request_error",
)
_NOT_KEPT = ErrorReply(
    501,
    "not_served",
    "This broker does not keep files and the like: they live in one credential's project, and every request that names "
    "one would depend on that credential. Send the content itself (as data: URLs, for instance).",
    "invalid_request_error",
    again=False,
)
_NODE_BUSY = ErrorReply(
    503, "node_busy", "This node takes no more connections; connect again.", "server_error", retry_after=2.0
)
_UNREADABLE = errors.bad_request(
    "invalid_encoding", "The body is not what its Content-Encoding says; send it as it is."
)
_SLOW = ErrorReply(
    408, "request_timeout", "The request did not arrive in time; send it again.", "invalid_request_error"
)


def _too_large(most: int, status: int) -> ErrorReply:
    return ErrorReply(
        status, "payload_too_large", f"The body has more than {most} bytes; shorten the input.", "invalid_request_error"
    )
