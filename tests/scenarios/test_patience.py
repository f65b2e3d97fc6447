"""An upstream that thinks in silence: who would lose patience is told that the turn goes on, and nobody else is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import pytest

from broker.edge.wiring import Bounds
from broker.simulator import Fault
from tests.scenarios.house import KEY, House, plain, wait_until

BOUNDS = Bounds(hold=0.2, first_event=1.2, silence=1.2, leave=3.0, quiet=0.2)
CODEX = {"originator": "codex_exec", "User-Agent": "codex_exec/0.169.0"}
SDK = {"User-Agent": "OpenAI/Python 3.54.0", "X-Stainless-Lang": "python"}
KEPT = "codex.keepalive"


async def test_keeps_codex_patient_before_anything_is_shown_and_moves_the_turn_all_the_same(house: House) -> None:
    node = await house.node(bounds=BOUNDS)
    house.sim.faults.set("A", Fault(at="before_created", do="silence"))
    async with plain(node, **CODEX) as client:
        await client.create("think")
        events = await client.until(1)
    kinds = [event["type"] for event in events]
    assert kinds.count(KEPT) >= 2 and kinds[0] == KEPT, "A thinks for more than a second"
    assert kinds.count("response.created") == 1 and kinds[-1] == "response.completed"
    numbers = [event["sequence_number"] for event in events if event["type"] != KEPT]
    assert numbers == list(range(len(numbers))), "one response, of the one who took over"
    assert [turn.credential for turn in house.sim.turns] == ["A", "B"]


async def test_keeps_codex_patient_in_the_midst_of_output(house: House) -> None:
    node = await house.node(bounds=BOUNDS)
    house.sim.faults.set("A", Fault(at="after_deltas", after=2, do="silence"))
    async with plain(node, **CODEX) as client:
        await client.create("think")
        kinds = [event["type"] for event in await client.until(1)]
    first = kinds.index("response.output_text.delta")
    assert KEPT in kinds[first:] and kinds[-1] == "error"


@pytest.mark.parametrize("headers", [SDK, {}], ids=["an SDK", "nobody known"])
async def test_shows_no_foreign_events_to_other_clients(house: House, headers: dict[str, str]) -> None:
    node = await house.node(bounds=BOUNDS)
    house.sim.faults.set("A", Fault(at="before_created", do="silence"))
    async with plain(node, **headers) as client:
        await client.create("think")
        kinds = {event["type"] for event in await client.until(1)}
    assert "response.completed" in kinds and all(kind.startswith("response.") for kind in kinds)


@pytest.mark.parametrize(
    ("headers", "kept"), [(SDK, b": keep-alive\n\n"), (CODEX, b"event: codex.keepalive\n")], ids=["an SDK", "Codex"]
)
@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_keeps_a_stream_over_http_open(
    house: House, headers: dict[str, str], kept: bytes, transport: str
) -> None:
    pool = [replace(credential, transports=(transport,)) for credential in house.credentials()]
    node = await house.node(bounds=BOUNDS, credentials=pool)
    house.sim.faults.set("A", Fault(at="after_deltas", after=2, do="silence"))
    body = {"model": "sim-1", "input": "think", "stream": True}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}", **headers}) as session,
        session.post(f"http://127.0.0.1:{node.client_port}/v1/responses", json=body) as answer,
    ):
        read = await asyncio.wait_for(answer.read(), 5.0)
    assert read.count(kept) >= 2, read[-2000:]
    assert read.index(kept) > read.index(b"event: response.output_text.delta")
    assert b"upstream_interrupted" in read


async def test_a_turn_that_waits_for_a_credential_is_kept_alive_too(house: House) -> None:
    only = [replace(credential, max_in_flight=1) for credential in house.credentials()[:1]]
    node = await house.node(bounds=BOUNDS, credentials=only)
    house.sim.faults.set("A", Fault(at="before_created", do="silence"))
    async with plain(node, **CODEX) as first, plain(node, **CODEX) as second:
        await first.create("one")
        await wait_until(lambda: len(house.sim.turns) == 1)
        await second.create("two")
        assert (await second.event())["type"] == KEPT
        assert len(house.sim.turns) == 1, "it has not been sent yet"
