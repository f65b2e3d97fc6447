"""The vendor's door: authentication, faults at the handshake, and errors as HTTP responses."""

import asyncio
import socket
import struct
import time

import orjson
from aiohttp import web

from broker.simulator.credentials import SimCredential
from broker.simulator.faults import Fault
from broker.simulator.refusal import Refusal, unauthorized
from broker.simulator.vendor import Vendor

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
    credential = vendor.authenticate(request.headers.get("Authorization"))
    if credential is None:
        _record(request, None, transport, 401)
        raise TurnedAway(error_response(unauthorized()))
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


def _record(request: web.Request, credential: SimCredential | None, transport: str, status: int | None) -> None:
    name = credential.name if credential is not None else None
    recorder = request.app[VENDOR].recorder
    recorder.handshake(name, transport, request.headers, status=status, method=request.method, path=request.path)


async def tell_limits(request: web.Request, response: web.StreamResponse) -> None:
    """Put the told limits into the head of an answer; who is turned away as a stranger hears nothing of them."""
    vendor = request.app[VENDOR]
    if not vendor.limits or response.status in (401, 403):
        return
    credential = vendor.authenticate(request.headers.get("Authorization"))
    told = vendor.told_limits(credential.name) if credential is not None else None
    if told is not None:
        response.headers.update(told.headers(time.time()))


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
