"""What lives with the credential that made it: its requests go there and nowhere else, if it is the tenant's."""

from __future__ import annotations

import asyncio
import re
import secrets

import aiohttp
from aiohttp import web

from broker.domain import errors, headers
from broker.domain.classify import classify_answer
from broker.domain.credential import Credential
from broker.domain.failure import Failure, FailureKind
from broker.edge.access import Tenant
from broker.edge.request import answer_to, refusal
from broker.edge.wiring import Wiring
from broker.upstream.exchange import Unsent

REFUSAL_BYTES = 64 * 1024
_BELOW = re.compile(r"/v1/")


async def forward(request: web.Request, wiring: Wiring, tenant: Tenant, body: bytes) -> web.StreamResponse:
    """The owner's answer. What this tenant has not made is unknown, whoever else has. Raises `StoreUnavailable`."""
    thing = request.match_info["id"]
    owner = await wiring.sessions.owner_of(tenant.name, thing)
    credential = wiring.placement.named(owner.credential) if owner is not None else None
    if credential is None:
        return refusal(errors.not_found(thing))
    path = _BELOW.sub("", request.raw_path, count=1)
    up = headers.up(request.headers, websocket=False)
    try:
        async with asyncio.timeout(wiring.bounds.first_event):
            answer = await wiring.dialer.ask(credential, path, body, up, request.method)
    except Unsent as unsent:
        return _failed(wiring, credential, unsent.failure)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return _failed(wiring, credential, Failure(FailureKind.TRANSPORT_LOST, code=type(error).__name__))
    async with answer:
        if answer.status >= 300:
            told = await answer.content.read(REFUSAL_BYTES)
            failure = classify_answer(answer.status, answer.headers, told, now=wiring.health.now())
            return _failed(wiring, credential, failure)
        if request.method == "DELETE":
            await wiring.sessions.forget(tenant.name, thing)
        return await _relay(request, answer, wiring)


def _failed(wiring: Wiring, credential: Credential, failure: Failure) -> web.Response:
    """The vendor's words where they concern the request; ours where they concern the credential."""
    wiring.metrics.failures.inc(credential.name, failure.kind.value)
    if failure.row.verbatim and failure.raw is not None:
        return answer_to(failure.raw)
    wiring.health.blame(
        credential, failure, "", confirmed=False, evidence=secrets.token_hex(16), began=wiring.health.now()
    )
    return refusal(errors.unserved(failure))


async def _relay(request: web.Request, answer: aiohttp.ClientResponse, wiring: Wiring) -> web.StreamResponse:
    told = {"Content-Type": answer.headers.get("Content-Type", "application/json"), **headers.down(answer.headers)}
    response = web.StreamResponse(status=answer.status, headers=told)
    await response.prepare(request)
    try:
        while True:
            async with asyncio.timeout(wiring.bounds.silence):
                piece = await answer.content.readany()
            if not piece:
                break
            await response.write(piece)
        await response.write_eof()
    except (aiohttp.ClientError, OSError, TimeoutError):
        # what has begun cannot be mended: an answer that is cut off must not look whole
        if request.transport is not None:
            request.transport.abort()
    return response
