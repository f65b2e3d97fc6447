"""The vendor's door: authentication, faults at the handshake, and errors as HTTP responses."""

import asyncio
import functools
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from broker.simulator.credentials import SimCredential
from broker.simulator.faults import Fault
from broker.simulator.refusal import Refusal, unauthorized
from broker.simulator.vendor import Vendor

_CALLER = web.RequestKey("caller", SimCredential)
VENDOR = web.AppKey("vendor", Vendor)


class TurnedAway(Exception):
    """The request ends here, with this response."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


async def admit(request: web.Request, transport: str) -> tuple[SimCredential, Fault | None]:
    """The caller of a request, and the fault that must act right after the upgrade; raises TurnedAway.

    Every request of a caller comes by here, so a fault at the handshake refuses all of them alike.
    """
    vendor = request.app[VENDOR]
    try:
        credential = _identify(request)
    except Refusal as refusal:
        _record(request, None, transport, refusal.status)
        raise TurnedAway(error_response(refusal)) from None
    request[_CALLER] = credential
    refused = vendor.manner_of(credential).upgrade_status if transport == "websocket" else None
    if refused is not None:
        _record(request, credential, transport, refused)
        raise TurnedAway(error_response(Refusal(refused, None, "Not here.", body={"detail": "Not here."})))
    fault = vendor.faults.take(credential.name, "handshake")
    if fault is None or (fault.do == "close" and transport == "websocket"):
        _record(request, credential, transport, 101 if fault else 200)
        return credential, fault
    answered = fault.do in ("refuse", "error", "failed", "double")
    status = (fault.status or 500) if answered else None
    _record(request, credential, transport, status)
    if answered:
        raise TurnedAway(error_response(fault.refusal()))
    await _no_answer(request, fault)
    raise TurnedAway(web.Response(status=500))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def door(handle: Callable[[web.Request, SimCredential], Awaitable[web.StreamResponse]]) -> Handler:
    """A handler that admits the caller first, and answers what is refused with the vendor's error."""

    @functools.wraps(handle)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            credential, _ = await admit(request, "http")
            return await handle(request, credential)
        except TurnedAway as away:
            return away.response
        except Refusal as refusal:
            return error_response(refusal)

    return answer


async def body_of(request: web.Request) -> tuple[dict[str, Any], bytes]:
    """The JSON object of a request and its bytes, nothing being an empty object; raises Refusal."""
    raw = await request.read()
    try:
        body = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "invalid_json", "The body is not a JSON object.")
    return body, raw


def json_response(body: Any) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


def _identify(request: web.Request) -> SimCredential:
    """Whose request this is; raises Refusal for strangers, old tokens and foreign organizations or projects."""
    credential = request.app[VENDOR].authenticate(request.headers)
    if credential is None:
        raise unauthorized()
    for name, own in (("organization", credential.organization), ("project", credential.project)):
        given = request.headers.get(f"openai-{name}")
        if own is not None and given is not None and given != own:
            raise Refusal(401, f"mismatched_{name}", f"OpenAI-{name.title()} header should match {name} for API key.")
    return credential


def _record(request: web.Request, credential: SimCredential | None, transport: str, status: int | None) -> None:
    name = credential.name if credential is not None else None
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    request.app[VENDOR].recorder.handshake(
        name,
        transport,
        request.headers,
        status=status,
        method=request.method,
        path=request.path,
        port=peer[1] if peer else None,
    )


async def tell_limits(request: web.Request, response: web.StreamResponse) -> None:
    """Put the told limits into the head of an answer; who is turned away as a stranger hears nothing of them."""
    credential = request.get(_CALLER)
    if credential is None or response.status in (401, 403):
        return
    told = request.app[VENDOR].told_limits(credential.name)
    if told is not None:
        response.headers.update(told.headers(time.time()))


async def name_request(request: web.Request, response: web.StreamResponse) -> None:
    """Give an answer the id that its request is known by; an upgrade carries none."""
    manner = request.app[VENDOR].manner_of(request.get(_CALLER))
    if manner.request_ids and response.status != 101 and not request.path.startswith("/_sim/"):
        response.headers["x-request-id"] = "req_" + secrets.token_hex(16)
        response.headers["openai-processing-ms"] = "7"


async def _no_answer(request: web.Request, fault: Fault) -> None:
    if fault.do == "silence":
        await asyncio.Event().wait()  # cancelled when the client leaves or the vendor stops
    if fault.do == "garbage" and request.transport is not None:
        request.transport.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    reset(request.transport)


def reset(transport: asyncio.BaseTransport | None) -> None:
    """End a TCP connection with RST; what the peer already has stays readable for it."""
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "abort"):
        transport.abort()


def error_response(refusal: Refusal) -> web.Response:
    """A refusal as an HTTP response; a text body is HTML, as a proxy in front of the vendor would send."""
    status = refusal.status or 500
    if isinstance(refusal.body, str):
        return web.Response(status=status, text=refusal.body, content_type="text/html", headers=refusal.headers)
    body = refusal.body if refusal.body is not None else {"error": refusal.error()}
    return web.Response(
        status=status, body=orjson.dumps(body), content_type="application/json", headers=refusal.headers
    )
