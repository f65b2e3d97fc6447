"""The OpenAI SDK for JavaScript, on Node: HTTP, streams, and its WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.clients import environments
from tests.clients.environments import Environment
from tests.clients.program import PROGRAMS, Program
from tests.clients.site import Site
from tests.clients.truth import check_chain, turns_of

CLIENT = f"OpenAI SDK for JavaScript ({environments.NODE.pins['openai']})"

Start = Callable[[str, Site], Awaitable[Program]]


@pytest.fixture
def start(installed: Callable[[Environment], Environment], run: Callable[..., Awaitable[Program]]) -> Start:
    """Start one case of the program."""
    folder = str(installed(environments.NODE).folder)
    return lambda case, at: run(["node", str(PROGRAMS / "openai_sdk.mjs"), case], at, MODULES=folder)


async def test_creates_and_continues_a_stored_response(start: Start, target: Site) -> None:
    turns = turns_of(await (await start("create", target)).ended())
    assert len(turns) == 2
    check_chain(turns)
    assert target.asked == ["POST /v1/responses"] * 2


@pytest.mark.parametrize("case", ["create_streamed", "stream"])
async def test_reads_a_stream(start: Start, target: Site, case: str) -> None:
    lines = await (await start(case, target)).ended()
    check_chain(turns_of(lines))
    (kinds,) = [line["kinds"] for line in lines if line["type"] == "events"]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds


async def test_continues_on_one_socket(start: Start, target: Site) -> None:
    program = await start("connect", target)
    for _ in range(3):
        await program.said("turn")
        await program.go_on()
    check_chain(turns_of(await program.ended()))
    assert target.asked == ["WS /v1/responses"]


@pytest.mark.parametrize("fault", ["usage_limit_reached", "token_revoked", "server_is_overloaded"])
async def test_does_not_notice_that_its_credential_is_lost(start: Start, broker: Site, fault: str) -> None:
    program = await start("connect", broker)
    for _ in range(3):
        await program.said("turn")
        broker.strike(broker.turns[-1].credential, fault)
        await program.go_on()
    turns = turns_of(await program.ended())
    assert len(turns) == 3
    check_chain(turns)
    assert broker.asked == ["WS /v1/responses"]
    assert len({turn.credential for turn in broker.turns if turn.outcome == "completed"}) == 3


async def test_comes_back_by_itself_when_its_node_is_killed_in_mid_turn(start: Start, processes: Site) -> None:
    program = await start("reconnect", processes)
    await program.said("begun")
    await processes.kill_node(0)
    lines = await program.ended()
    (reconnecting,) = [line for line in lines if line["type"] == "reconnecting"]
    assert reconnecting["code"] == 1006
    assert len(turns_of(lines)) == 3
    check_chain(turns_of(lines))
    assert processes.asked == ["WS /v1/responses"] * 2
