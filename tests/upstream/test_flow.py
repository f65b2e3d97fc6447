"""A client that does not read stops its own upstream, and nobody else's; what it reads later is whole."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests import engines
from tests.scenarios.house import counted, wait_until
from tests.upstream.bench import Bench, Plan, RawClient, bench
from tests.upstream.frames import Frame, delta, encoded, event, messages

MIB = 1 << 20
KERNEL = 24 * MIB
"""More than the sockets on the way can hold between them."""

CREATED = Frame(event("response.created", response={"id": "big"}))
COMPLETED = Frame(event("response.completed", response={"id": "big", "status": "completed", "output": []}))
MIXTURES = {
    "plain": [Frame(delta("x" * 1000))] * 1000,
    "a look at some": [*[Frame(delta("x" * 1000))] * 20, Frame(event("response.novelty", text="y" * 500))] * 50,
    "a look at the last": [Frame(event("response.novelty")), Frame(delta("x" * 20_000))] * 50,
    "large ones between": [*[Frame(delta("x" * 1000))] * 400, Frame(event("response.novelty", text="y" * 700_000))],
}


async def stalled(plan: Plan, still: float = 0.5) -> int:
    """Wait until the upstream cannot write any more; the answer is how much it has written."""
    since, sent = time.monotonic(), -1

    def still_for_long() -> bool:
        nonlocal since, sent
        if plan.sent != sent:
            since, sent = time.monotonic(), plan.sent
        return time.monotonic() - since > still

    await wait_until(still_for_long, within=20.0)
    return sent


async def deaf(built: Bench, path: str, body: list[Frame], size: int) -> tuple[RawClient, Plan, bytes]:
    """A client that has asked for `size` bytes and reads none of them."""
    chunk = encoded(body)
    data = encoded([CREATED]) + chunk * (size // len(chunk)) + encoded([COMPLETED])
    plan = built.upstream.plans["big"] = Plan([data[at : at + 65_536] for at in range(0, len(data), 65_536)])
    client = await built.client(path, f"deaf-{path}", receive=4096)
    client.create("big")
    return client, plan, data


async def short_turn(built: Bench, path: str) -> None:
    built.upstream.plans["short"] = Plan([encoded([CREATED, Frame(delta()), COMPLETED])])
    client = await built.client(path, f"short-{path}")
    client.create("short")
    assert await client.until_ended() == [CREATED.payload, delta(), COMPLETED.payload]
    await client.abort()


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("path", ["fast", "ordinary"])
async def test_a_client_that_does_not_read_stops_its_upstream_and_loses_nothing(
    redis_server: engines.Server, path: str, mixture: str
) -> None:
    async with bench(redis_server.url) as built:
        client, plan, data = await deaf(built, path, MIXTURES[mixture], 48 * MIB)
        assert await stalled(plan) < KERNEL
        await asyncio.gather(*(short_turn(built, path) for _ in range(3)))

        got = bytearray()
        async with asyncio.timeout(20.0):
            while len(got) < len(data):
                more = await client.raw_bytes()
                assert more, "the socket ended"
                got += more
        assert got == data
        await client.abort()


@pytest.mark.parametrize("path", ["fast", "ordinary"])
@pytest.mark.parametrize("mixture", ["plain", "a look at some", "a look at the last"])
async def test_cuts_off_a_client_that_takes_nothing_and_blames_no_credential(
    redis_server: engines.Server, path: str, mixture: str
) -> None:
    async with bench(redis_server.url, send_timeout=1.0, silence=2.5, first_event=2.5) as built:
        client, plan, _ = await deaf(built, path, MIXTURES[mixture], 48 * MIB)
        await stalled(plan)
        node = built.nodes[path]
        await wait_until(lambda: not node.node.sockets or counted(node, "broker_upstream_failures_total"), within=8.0)
        assert counted(node, "broker_upstream_failures_total") == 0
        assert counted(node, "broker_socket_closes_total", code="slow") == 1
        await client.abort()


async def test_what_a_client_is_sent_meanwhile_falls_between_frames(redis_server: engines.Server) -> None:
    """Answers to the client itself, pongs and refusals, while its output passes."""
    async with bench(redis_server.url) as built:
        body = encoded([Frame(delta("x" * 300))] * 20_000)
        built.upstream.plans["big"] = Plan(
            [encoded([CREATED]), *(body[at : at + 5003] for at in range(0, len(body), 5003)), encoded([COMPLETED])]
        )
        client = await built.client("fast", "chatty")
        client.create("big")
        texts: list[bytes] = []
        async with asyncio.timeout(20.0):
            while COMPLETED.payload not in texts[-3:]:
                client.send(Frame(b"still there?", 9, mask=b"\0\0\0\0"))
                client.send(Frame(b"no JSON", mask=b"\0\0\0\0"))
                texts += messages(await client.more())
        deltas = [text for text in texts if text.startswith(b'{"type":"response.output_text')]
        assert len(deltas) == 20_000
        refusals = [text for text in texts if text.startswith(b'{"type":"error","status":400')]
        assert refusals and len(texts) == len(deltas) + len(refusals) + 2
        await client.abort()
