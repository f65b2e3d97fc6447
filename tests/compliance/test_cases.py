"""The compliance suite: each case by itself, and all of them at once, as the suite runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tests.compliance.cases import BOTH, HTTP, WEBSOCKET, Case, tool_calling_with_defaults
from tests.compliance.stage import VENDOR_KEY
from tests.compliance.target import Target
from tests.scenarios.house import House


async def all_at_once(target: Target, cases: Mapping[str, Case]) -> None:
    results = await asyncio.gather(*(case(target) for case in cases.values()), return_exceptions=True)
    failed = {name: result for name, result in zip(cases, results, strict=True) if result is not None}
    assert not failed, failed


@pytest.mark.parametrize("name", WEBSOCKET)
async def test_passes_over_a_websocket(target: Target, name: str) -> None:
    await WEBSOCKET[name](target)


@pytest.mark.parametrize("name", HTTP)
async def test_passes_over_http(target: Target, name: str) -> None:
    await HTTP[name](target)


@pytest.mark.parametrize("name", BOTH)
async def test_passes_over_both(target: Target, name: str) -> None:
    await BOTH[name](target)


async def test_echoes_a_tool_with_the_fields_that_were_left_out(target: Target) -> None:
    await tool_calling_with_defaults(target)


async def test_passes_all_websocket_cases_at_once(target: Target) -> None:
    await all_at_once(target, WEBSOCKET)


async def test_passes_all_cases_at_once(target: Target) -> None:
    await all_at_once(target, {**HTTP, **WEBSOCKET, **BOTH})


@pytest.mark.parametrize("target", ["broker", "broker_over_http"], indirect=True)
async def test_shows_a_strict_client_no_event_of_the_vendors_own(house: House, target: Target) -> None:
    house.sim.tell_limits("*", 50)
    await all_at_once(target, {**HTTP, **WEBSOCKET, **BOTH})
    async with Target(house.sim.base_url, VENDOR_KEY, target.http).socket() as socket:
        with pytest.raises(AssertionError, match=r"codex\.rate_limits"):
            await socket.turn("the vendor itself does show one")
