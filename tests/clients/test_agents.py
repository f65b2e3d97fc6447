"""An agent of the OpenAI Agents SDK that loses a credential and a node in the middle of its work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import pytest

from broker.simulator import context_digest
from tests.clients import environments
from tests.clients.environments import Environment
from tests.clients.program import PROGRAMS, Program, Said
from tests.clients.site import Site
from tests.clients.truth import running_behind, said_by_vendor
from tests.scenarios.house import wait_until

CLIENT = f"OpenAI Agents SDK ({environments.PYTHON.pins['openai-agents']})"
CALLS = 20
ASKED = {"websocket": {"WS /v1/responses"}, "http": {"POST /v1/responses"}}

Start = Callable[..., Awaitable[Program]]


@pytest.fixture
def start(installed: Callable[[Environment], Environment], run: Callable[..., Awaitable[Program]]) -> Start:
    """Start an agent over a transport, in a manner, with messages, and with variables."""
    python = installed(environments.PYTHON).binary("python")
    program = str(PROGRAMS / "agents_sdk.py")
    return lambda at, *arguments, **environ: run([python, program, *arguments], at, **environ)


async def works(
    program: Program, calls: int, between: Mapping[int, Callable[[], Awaitable[None]]] | None = None
) -> list[Said]:
    """Let it make its calls, with something done within some of them; all that it has said in the end."""
    for number in range(1, calls + 1):
        assert (await program.said("call"))["number"] == number
        if between and number in between:
            await between[number]()
        await program.go_on()
    lines = await program.ended()
    assert sum(line["type"] == "call" for line in lines) == calls
    return lines


def check_answer(at: Site, lines: list[Said], calls: int) -> None:
    """The last word was said from all that the agent knows, in its order, once."""
    (answer,) = [line for line in lines if line["type"] == "answer"]
    *before, last = answer["said"]
    assert (last["type"], last["role"]) == ("message", "assistant")
    assert [item["output"] for item in before if item.get("type") == "function_call_output"] == [
        f"seen {number}" for number in range(1, calls + 1)
    ]
    assert answer["text"].startswith(f"ctx={context_digest(before)[:32]} ")
    assert answer["text"].startswith(said_by_vendor(at.turns[-1]))


def completed(at: Site) -> int:
    return sum(turn.outcome == "completed" for turn in at.turns)


@pytest.mark.parametrize("at", ["vendor", "broker-over-http"])
@pytest.mark.parametrize("how", ["websocket resend", "websocket continue", "http resend"])
async def test_calls_its_tool(start: Start, build: Callable[[str], Awaitable[Site]], at: str, how: str) -> None:
    site = await build(at)
    lines = await works(await start(site, *how.split(), "look [[tools:3]]"), 3)
    check_answer(site, lines, 3)
    assert set(site.asked) == ASKED[how.split()[0]]


@pytest.mark.parametrize("how", ["websocket resend", "websocket continue", "http resend", "http continue"])
async def test_finishes_as_if_nothing_had_happened(start: Start, processes: Site, how: str) -> None:
    async def revoke() -> None:
        processes.strike(processes.turns[-1].credential, "token_revoked")

    between = {7: revoke, 14: lambda: processes.kill_node(0)}
    # over HTTP only a named session remembers what the vendor was told not to store
    named = {"SESSION": "agent-7"} if how == "http continue" else {}
    program = await start(processes, *how.split(), f"look [[tools:{CALLS}]]", **named)
    lines = await works(program, CALLS, between)
    check_answer(processes, lines, CALLS)
    assert completed(processes) == CALLS + 1
    served = {turn.credential for turn in processes.turns if turn.outcome == "completed"}
    # who resends all has a new session with each new socket, or with each request
    assert len(served) == 2 or (len(served) == 3 and "resend" in how)
    assert set(processes.asked) == ASKED[how.split()[0]]


@pytest.mark.parametrize("how", ["websocket resend", "websocket continue", "http resend"])
async def test_asks_again_when_its_node_is_killed_in_mid_turn(start: Start, processes: Site, how: str) -> None:
    async def kill_in_mid_turn() -> None:
        await program.go_on()
        await wait_until(lambda: running_behind(processes, 2), within=10.0)
        await processes.kill_node(0)

    program = await start(processes, *how.split(), "look [[tools:4]][[slow:100]]", RETRIES="3")
    lines = await works(program, 4, {2: kill_in_mid_turn})
    check_answer(processes, lines, 4)
    assert completed(processes) == 5
    assert set(processes.asked) == ASKED[how.split()[0]]
