"""Probes against the simulated vendor: one request each, and the failure as what it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from broker.domain.credential import Credential, Secret
from broker.domain.failure import Failure, FailureKind
from broker.simulator import Fault, SimCredential, Simulator
from broker.upstream.probe import MODELS, OFF, RESPONSE, WARMUP, Prober, plan
from tests.scenarios.house import wait_until
from tests.serving import serving
from tests.upstream.directory import SECRET as TOKEN_SECRET
from tests.upstream.directory import Directory

K = FailureKind
SECRET = "sk-sim-of-the-probed"
KINDS = (MODELS, WARMUP, RESPONSE)
both = pytest.mark.parametrize("kind", [WARMUP, RESPONSE])
each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    simulator = Simulator([SimCredential("A", SECRET, "org-a"), SimCredential("B", "sk-sim-b", "org-b")])
    await simulator.start()
    yield simulator
    await simulator.stop()


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    made = Prober(clock=time.time, timeout=3.0, connect=1.0)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def credential(sim: Simulator) -> Credential:
    return Credential("A", sim.base_url, Secret(SECRET), headers={"OpenAI-Project": "proj"})


Vendor = Callable[..., Awaitable[str]]


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    """Start a vendor that answers everything with what `answer` returns; the answer is its base_url."""
    async with AsyncExitStack() as running:

        async def start(answer: Callable[[web.Request], web.StreamResponse | Awaitable[web.StreamResponse]]) -> str:
            async def handle(request: web.Request) -> web.StreamResponse:
                made = answer(request)
                return made if isinstance(made, web.StreamResponse) else await made

            route = web.route("*", "/{path:.*}", handle)
            return await running.enter_async_context(serving(route, cancels=True)) + "/v1"

        yield start


async def failed(prober: Prober, credential: Credential, kind: str) -> Failure:
    failure = await prober.probe(credential, "sim-1", kind)
    assert failure is not None
    # no client's request was part of it, and nobody needs the vendor's own words
    assert failure.independent and failure.raw is None and SECRET not in repr(failure)
    return failure


# --- what is sent ---


@each
async def test_a_credential_that_serves_has_no_failure_and_one_request_is_sent(
    sim: Simulator, prober: Prober, credential: Credential, kind: str
) -> None:
    assert await prober.probe(credential, "sim-1", kind) is None
    (request,) = sim.handshakes
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert request.credential == "A" and headers["openai-project"] == "proj"
    assert len(sim.turns) == (0 if kind == MODELS else 1)
    if kind == MODELS:
        assert (request.method, request.path) == ("GET", "/v1/models")
        return
    (turn,) = sim.turns
    assert turn.fields["store"] is False and turn.model == "sim-1" and "previous_response_id" not in turn.frame_keys
    assert turn.fields.get("generate") is (False if kind == WARMUP else None)
    assert turn.fields.get("max_output_tokens") == (16 if kind == RESPONSE else None)
    await wait_until(lambda: not any(sim.sockets.values()))


async def test_what_stands_behind_the_address_of_an_endpoint_stays_there(prober: Prober, vendor: Vendor) -> None:
    asked: list[str] = []

    def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        return web.json_response({"object": "list", "data": []})

    base = await vendor(answer)
    credential = Credential("A", base + "/?api-version=a%2Fb", Secret(SECRET))
    assert await prober.probe(credential, "", MODELS) is None
    assert await prober.probe(credential, "m", RESPONSE) is None
    assert asked == ["/v1/models?api-version=a%2Fb", "/v1/responses?api-version=a%2Fb"]


async def test_a_warm_up_that_only_begins_is_enough_where_the_vendor_says_no_more(
    prober: Prober, vendor: Vendor
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        await socket.send_str('{"type":"codex.rate_limits"}')
        await socket.send_str('{"type":"response.created","response":{"id":"r","status":"in_progress"}}')
        await socket.receive()
        return socket

    credential = Credential("A", await vendor(answer), Secret(SECRET), vendor="xai")
    assert await prober.probe(credential, "m", WARMUP) is None
    brief = Prober(clock=time.time, timeout=0.3)
    await brief.start()
    silent = await failed(brief, replace(credential, vendor="openai"), WARMUP)
    await brief.stop()
    assert (silent.kind, silent.code) == (K.TRANSPORT_LOST, "silent")


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_response_that_was_cut_short_serves_as_well(prober: Prober, vendor: Vendor, status: str) -> None:
    base = await vendor(lambda _: web.json_response({"id": "r", "status": status, "error": None}))
    assert await prober.probe(Credential("A", base, Secret(SECRET)), "m", RESPONSE) is None


# --- what fails ---


@each
async def test_a_key_that_the_vendor_does_not_know_is_rejected(
    prober: Prober, credential: Credential, kind: str
) -> None:
    failure = await failed(prober, replace(credential, secret=Secret("sk-nobodys")), kind)
    assert failure.kind is K.AUTH_REJECTED and failure.names_key and failure.status == 401


@both
@pytest.mark.parametrize(
    ("preset", "kind_of"),
    [
        ("invalid_api_key", K.AUTH_REJECTED),
        ("token_revoked", K.AUTH_REJECTED),
        ("account_deactivated", K.AUTH_REJECTED),
        ("insufficient_quota", K.QUOTA_EXHAUSTED),
        ("rate_limit_exceeded", K.RATE_LIMITED),
        ("server_is_overloaded", K.OVERLOADED),
        ("capacity_400", K.OVERLOADED),
        ("model_not_found", K.UNSUPPORTED),
        ("content_policy", K.REQUEST_FAULT),
    ],
)
async def test_a_refusal_is_the_failure_that_it_would_be_for_a_turn(
    sim: Simulator, prober: Prober, credential: Credential, kind: str, preset: str, kind_of: FailureKind
) -> None:
    sim.faults.set("A", preset)
    assert (await failed(prober, credential, kind)).kind is kind_of
    sim.faults.clear()
    assert await prober.probe(credential, "sim-1", kind) is None


@both
async def test_a_quota_tells_when_it_is_free_again(
    sim: Simulator, prober: Prober, credential: Credential, kind: str
) -> None:
    resets = float(int(time.time()) + 1234)
    sim.faults.set("A", "usage_limit_reached", resets_at=resets)
    failure = await failed(prober, credential, kind)
    assert failure.kind is K.QUOTA_EXHAUSTED and failure.until == resets


async def test_the_list_of_models_proves_the_key_and_not_the_quota(
    sim: Simulator, prober: Prober, credential: Credential
) -> None:
    sim.faults.set("A", "insufficient_quota")
    assert await prober.probe(credential, "", MODELS) is None


@pytest.mark.parametrize("preset", ["server_error", "invalid_api_key"])
async def test_a_warm_up_that_fails_after_it_began_is_a_failure(
    sim: Simulator, prober: Prober, credential: Credential, preset: str
) -> None:
    sim.faults.set("A", preset, at="after_created", do="failed")
    kind = {"server_error": K.OVERLOADED, "invalid_api_key": K.AUTH_REJECTED}[preset]
    assert (await failed(prober, credential, WARMUP)).kind is kind


async def test_a_response_that_failed_inside_a_good_answer_is_a_failure(prober: Prober, vendor: Vendor) -> None:
    error = {"code": "server_is_overloaded", "message": "busy"}
    base = await vendor(lambda _: web.json_response({"id": "r", "status": "failed", "error": error}))
    failure = await failed(prober, Credential("A", base, Secret(SECRET)), RESPONSE)
    assert failure.kind is K.OVERLOADED and failure.status == 503


@each
async def test_a_refusal_at_the_door_is_read_alike_for_every_kind(
    sim: Simulator, prober: Prober, credential: Credential, kind: str
) -> None:
    sim.faults.set("A", "account_deactivated", at="handshake", do="refuse")
    failure = await failed(prober, credential, kind)
    assert failure.kind is K.AUTH_REJECTED and failure.names_key and failure.code == "account_deactivated"


@each
async def test_a_page_for_people_is_held_against_no_key(
    sim: Simulator, prober: Prober, credential: Credential, kind: str
) -> None:
    sim.faults.set("A", "cloudflare_html")
    failure = await failed(prober, credential, kind)
    assert failure.kind is K.OVERLOADED and failure.status == 403 and not failure.names_key


@pytest.mark.parametrize("kind", [MODELS, RESPONSE])
@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"[1]", b"", b'{"half":'])
async def test_a_good_answer_that_is_no_document_is_garbage(
    prober: Prober, vendor: Vendor, kind: str, body: bytes
) -> None:
    base = await vendor(lambda _: web.Response(body=body, content_type="text/html"))
    failure = await failed(prober, Credential("A", base, Secret(SECRET)), kind)
    assert (failure.kind, failure.code) == (K.TRANSPORT_LOST, "garbage")


@both
async def test_garbage_loses_the_transport(sim: Simulator, prober: Prober, credential: Credential, kind: str) -> None:
    sim.faults.set("A", Fault(at="handshake", do="garbage"))
    assert (await failed(prober, credential, kind)).kind is K.TRANSPORT_LOST
    sim.faults.set("A", Fault(at="after_created", do="garbage"))
    assert (await failed(prober, credential, WARMUP)).kind is K.TRANSPORT_LOST


@each
async def test_a_connection_that_is_cut_loses_the_transport(
    sim: Simulator, prober: Prober, credential: Credential, kind: str
) -> None:
    sim.faults.set("A", Fault(at="handshake", do="reset"))
    assert (await failed(prober, credential, kind)).kind is K.TRANSPORT_LOST
    if kind != MODELS:
        sim.faults.set("A", Fault(at="before_created", do="reset"))
        assert (await failed(prober, credential, kind)).kind is K.TRANSPORT_LOST


@each
async def test_a_port_where_nobody_listens_loses_the_transport(
    sim: Simulator, prober: Prober, credential: Credential, kind: str
) -> None:
    await sim.stop()
    assert (await failed(prober, credential, kind)).kind is K.TRANSPORT_LOST


@each
async def test_silence_is_bounded(sim: Simulator, credential: Credential, kind: str) -> None:
    brief = Prober(clock=time.time, timeout=0.2, connect=5.0)
    await brief.start()
    for at in ("handshake", "before_created", "after_created") if kind != MODELS else ("handshake",):
        sim.faults.set("A", Fault(at=at, do="silence"))
        began = time.monotonic()
        failure = await failed(brief, credential, kind)
        assert (failure.kind, failure.code) == (K.TRANSPORT_LOST, "silent")
        assert time.monotonic() - began < 1.5
    await brief.stop()
    await wait_until(lambda: not any(sim.sockets.values()))


@each
async def test_a_redirect_is_not_followed(sim: Simulator, prober: Prober, vendor: Vendor, kind: str) -> None:
    def answer(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": sim.base_url + request.path.removeprefix("/v1")})

    base = await vendor(answer)
    failure = await failed(prober, Credential("A", base, Secret(SECRET)), kind)
    assert failure.kind is K.OVERLOADED and not sim.handshakes


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_an_end_is_not_read_to_the_end(prober: Prober, vendor: Vendor, status: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        while True:
            await response.write(b'{"a":' * 100_000)

    base = await vendor(answer)
    failure = await failed(prober, Credential("A", base, Secret(SECRET)), RESPONSE)
    assert failure.kind is (K.TRANSPORT_LOST if status == 200 else K.OVERLOADED) and failure.code != "silent"


async def test_a_probe_that_is_given_up_leaves_no_socket(sim: Simulator, credential: Credential) -> None:
    prober = Prober(clock=time.time)
    await prober.start()
    sim.faults.set("A", Fault(at="before_created", do="silence"))
    probing = asyncio.create_task(prober.probe(credential, "sim-1", WARMUP))
    await wait_until(lambda: sim.turns)
    probing.cancel()
    await asyncio.wait([probing], timeout=5.0)
    assert probing.cancelled()
    await wait_until(lambda: not any(sim.sockets.values()))
    await prober.stop()


@each
async def test_the_secret_reaches_no_log(
    sim: Simulator, prober: Prober, credential: Credential, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for fault in ("cloudflare_html", "invalid_api_key", Fault(at="handshake", do="reset"), "server_error"):
        sim.faults.set("A", fault)
        await prober.probe(credential, "sim-1", kind)
    assert SECRET not in caplog.text and not [r for r in caplog.records if SECRET in repr(r.__dict__)]


# --- who asks ---


@pytest.fixture
async def directory() -> AsyncIterator[Directory]:
    made = Directory()
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("kind", [MODELS, RESPONSE])
async def test_a_key_is_shown_where_it_belongs(prober: Prober, vendor: Vendor, kind: str) -> None:
    seen: list[dict[str, str]] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.json_response({})

    shown = Credential("A", await vendor(answer), Secret(SECRET), auth="api_key", project="p", headers={"X-A": "b"})
    assert await prober.probe(shown, "m", kind) is None
    (headers,) = seen
    assert headers["api-key"] == SECRET and "Authorization" not in headers
    assert (headers["OpenAI-Project"], headers["X-A"]) == ("p", "b")


@each
async def test_a_token_that_has_run_out_is_renewed_once(
    prober: Prober, vendor: Vendor, directory: Directory, kind: str
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] != f"Bearer {directory.made[-1]}" or len(directory.made) < 2:
            return web.json_response({"error": {"message": "expired"}}, status=401)
        if kind != WARMUP:
            return web.json_response({})
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str('{"type":"response.completed","response":{"id":"r","status":"completed"}}')
        await socket.receive()
        return socket

    application = Credential("A", await vendor(answer), TOKEN_SECRET, auth="entra", entra=directory.entra)
    assert await prober.probe(application, "m", kind) is None
    assert len(directory.made) == 2


@each
async def test_a_credential_whose_new_tokens_are_refused_too_is_refused(
    prober: Prober, vendor: Vendor, directory: Directory, kind: str
) -> None:
    asked: list[str] = []

    def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"error": {"message": "no"}}, status=401)

    application = Credential("A", await vendor(answer), TOKEN_SECRET, auth="entra", entra=directory.entra)
    assert (await failed(prober, application, kind)).kind is K.AUTH_REJECTED
    assert len(asked) == len(directory.made) == 2


@each
async def test_an_application_without_a_token_asks_nobody(
    prober: Prober, vendor: Vendor, directory: Directory, kind: str
) -> None:
    asked: list[str] = []

    def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({})

    application = Credential("A", await vendor(answer), Secret("wrong"), auth="entra", entra=directory.entra)
    failure = await failed(prober, application, kind)
    assert (failure.kind, failure.code, failure.names_key) == (K.AUTH_REJECTED, "invalid_client", True)
    assert not asked and len(directory.asked) == 1


# --- which probe a credential gets ---


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"vendor": "openai", "probe_model": "m"}, (WARMUP, "m")),
        ({"vendor": "azure", "probe_model": "m"}, (WARMUP, "m")),
        ({"vendor": "xai", "probe_model": "m"}, (RESPONSE, "m")),
        ({"vendor": "vercel", "probe_model": "m"}, (RESPONSE, "m")),
        ({"vendor": "custom", "probe_model": "m"}, (RESPONSE, "m")),
        ({"vendor": "openai"}, (MODELS, "")),
        ({"vendor": "custom", "probe_kind": "warmup"}, (MODELS, "")),
        ({"vendor": "openai", "models": frozenset({"b", "a"})}, (WARMUP, "a")),
        ({"vendor": "azure", "models": frozenset({"a"}), "aliases": {"a": "a-prod"}}, (WARMUP, "a-prod")),
        ({"vendor": "openai", "models": frozenset({"a"}), "probe_model": "m"}, (WARMUP, "m")),
        ({"vendor": "openai", "probe_kind": "models", "probe_model": "m"}, (MODELS, "m")),
        ({"vendor": "openai", "probe_kind": "response", "probe_model": "m"}, (RESPONSE, "m")),
        ({"vendor": "openai", "probe_kind": "off", "probe_model": "m"}, (OFF, "m")),
    ],
)
def test_the_kind_of_probe_follows_the_vendor_and_the_settings(
    settings: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert plan(Credential("A", "http://a.example", Secret(SECRET), **settings)) == expected
