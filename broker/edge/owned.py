"""What lives with the credential that made it: its requests go there and nowhere else, if it is the tenant's."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import aiohttp
from aiohttp import web

from broker.domain import errors, headers
from broker.domain.classify import classify_answer
from broker.domain.credential import Credential
from broker.domain.failure import NOT_OFFERED, Failure, FailureKind
from broker.edge.access import Tenant
from broker.edge.request import answer_to, refusal
from broker.edge.wiring import Wiring
from broker.store.connection import StoreUnavailable
from broker.upstream.bodies import TooLarge, bounded
from broker.upstream.exchange import Unsent

REFUSAL_BYTES = 64 * 1024


async def forward(request: web.Request, wiring: Wiring, tenant: Tenant, body: bytes) -> web.StreamResponse:
    """The owner's answer. What this tenant has not made is unknown, whoever else has. Raises `StoreUnavailable`."""
    thing = request.match_info["id"]
    owner = await wiring.sessions.owner_of(tenant.name, thing)
    credential = wiring.placement.named(owner.credential) if owner is not None else None
    if credential is None:
        return refusal(errors.not_found(thing))
    up = headers.up(request.headers, websocket=False)
    url = request.rel_url
    path = url.raw_path.removeprefix("/v1/")
    try:
        async with asyncio.timeout(wiring.bounds.first_event):
            answer = await wiring.dialer.ask(credential, path, body, up, request.method, url.raw_query_string)
            told = await bounded(answer, REFUSAL_BYTES) if answer.status >= 300 else b""
    except Unsent as unsent:
        return _failed(wiring, credential, unsent.failure)
    except (aiohttp.ClientError, OSError, TimeoutError, TooLarge) as error:
        failure = Failure(FailureKind.TRANSPORT_LOST, code=type(error).__name__)
        lost = _failed(wiring, credential, failure)
        # what adds to a conversation may have done so, and only that can tell
        return refusal(errors.outcome_unknown()) if request.method == "POST" else lost
    async with answer:
        if answer.status >= 300:
            failure = classify_answer(answer.status, answer.headers, told, now=wiring.health.now())
            return _failed(wiring, credential, failure)
        if request.method == "DELETE" and "item" not in request.match_info:
            with contextlib.suppress(StoreUnavailable):  # it is gone at the vendor, whatever we remember
                await wiring.sessions.forget(tenant.name, thing)
        return await _relay(request, answer, wiring)


def _failed(wiring: Wiring, credential: Credential, failure: Failure) -> web.Response:
    """The vendor's words where they concern the request; ours where they concern the credential."""
    now = wiring.health.now()
    wiring.metrics.failures.inc(credential.name, failure.kind.value)
    ours = failure.row.verbatim or failure.kind is FailureKind.CONTINUATION_LOST
    if ours and failure.raw is not None:
        return answer_to(errors.verbatim(failure, None))
    if failure.code != NOT_OFFERED:
        evidence = secrets.token_hex(16)
        wiring.health.blame(credential, failure, "", confirmed=False, evidence=evidence, began=now)
    if failure.kind is FailureKind.QUOTA_EXHAUSTED:
        return refusal(errors.all_exhausted(failure.until, now))
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
            async with asyncio.timeout(wiring.bounds.send_timeout):
                await response.write(piece)
        await response.write_eof()
    except (aiohttp.ClientError, OSError, TimeoutError):
        # what has begun cannot be mended: an answer that is cut off must not look whole
        if request.transport is not None:
            request.transport.abort()
    return response
