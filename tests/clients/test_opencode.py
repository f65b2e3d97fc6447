"""opencode: an agent with a real shell, over its experimental WebSocket and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.environments import Environment
from tests.clients.program import Program, Said
from tests.clients.site import Site
from tests.clients.truth import running_behind, said_by_vendor
from tests.scenarios.house import wait_until

CLIENT = f"opencode ({environments.OPENCODE.pins['opencode-ai']})"

Start = Callable[..., Awaitable[Program]]

over_both = pytest.mark.parametrize("websockets", [True, False], ids=["websocket", "http"])


@pytest.fixture
def start(
    installed: Callable[[Environment], Environment], run: Callable[..., Awaitable[Program]], tmp_path: Path
) -> Start:
    """Start `opencode run` with these arguments; all runs of a test have one home."""
    opencode = installed(environments.OPENCODE).binary("opencode")

    async def started(at: Site, websockets: bool, *arguments: str) -> Program:
        (tmp_path / "opencode.json").write_text(json.dumps(config(at)))
        # without a key of its own beside the configuration it stays with HTTP, whatever the other variable says
        auth = json.dumps({"openai": {"type": "api", "key": at.key}})
        wanted = {"OPENCODE_EXPERIMENTAL_WEBSOCKETS": "1", "OPENCODE_AUTH_CONTENT": auth} if websockets else {}
        quiet = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}
        command = [opencode, "run", "--format", "json", *arguments]
        return await run(command, at, waits=False, **quiet, **wanted)

    return started


def config(at: Site) -> dict[str, object]:
    """What a user writes into opencode.json."""
    model = {"name": "sim-1", "tool_call": True, "reasoning": True, "limit": {"context": 200_000, "output": 10_000}}
    provider = {"models": {"sim-1": model}, "options": {"baseURL": at.base_url, "apiKey": at.key}}
    return {
        "model": "openai/sim-1",
        "small_model": "openai/sim-1",
        "autoupdate": False,
        "share": "disabled",
        "permission": {"*": "allow"},
        "provider": {"openai": provider},
    }


def commands(lines: list[Said]) -> list[str]:
    """What its tool printed, in the order in which it ended."""
    states = [line["part"]["state"] for line in lines if line["type"] == "tool_use"]
    return [str(state.get("output", state.get("error"))).strip() for state in states]


def numbered(calls: int) -> list[str]:
    """What the calls print that the vendor asks for."""
    return [f"sim-{number}" for number in range(1, calls + 1)]


def check_end(at: Site, lines: list[Said], calls: int) -> None:
    """It has ended with what the vendor said last, from a context that holds each call with its output, once."""
    texts = [line["part"]["text"] for line in lines if line["type"] == "text"]
    last = next(turn for turn in reversed(at.turns) if "tools" in turn.fields)  # titles are asked for without tools
    assert texts[-1].startswith(said_by_vendor(last)) and f"tools={calls} " in texts[-1]
    made = [item["call_id"] for item in last.context if item.get("type") == "function_call"]
    answered = [item["call_id"] for item in last.context if item.get("type") == "function_call_output"]
    assert made == answered and len(set(made)) == len(made)


def check_asked(at: Site, websockets: bool, *, requests: int | None = None) -> None:
    """Its turns came over what it was told; the title is always asked for over HTTP.

    With a number of requests: it had no reason to connect or to ask again.
    """
    posts, sockets = at.asked.count("POST /v1/responses"), at.asked.count("WS /v1/responses")
    assert (posts == 1 and sockets > 0) if websockets else (posts > 1 and sockets == 0), at.asked
    assert requests is None or (sockets == 1 if websockets else posts == 1 + requests), at.asked


@over_both
async def test_works_with_its_shell(start: Start, target: Site, websockets: bool) -> None:
    lines = await (await start(target, websockets, "work [[tools:3:bash]]")).ended()
    assert commands(lines) == numbered(3)
    check_end(target, lines, 3)
    check_asked(target, websockets, requests=4)


@over_both
@pytest.mark.parametrize("fault", ["usage_limit_reached", "token_revoked", "server_is_overloaded"])
async def test_does_not_notice_that_its_credential_is_lost(
    start: Start, broker: Site, fault: str, websockets: bool
) -> None:
    broker.strike("A", fault, when="function_call_output")
    lines = await (await start(broker, websockets, "work [[tools:3:bash]]")).ended()
    assert commands(lines) == numbered(3)
    check_end(broker, lines, 3)
    check_asked(broker, websockets, requests=4)
    assert {turn.credential for turn in broker.turns if turn.outcome == "completed"} >= {"A", "B"}


@over_both
async def test_works_on_while_nodes_are_killed_and_come_back(start: Start, processes: Site, websockets: bool) -> None:
    program = await start(processes, websockets, "work [[tools:6:bash]][[slow:150]]")
    for node, calls in ((0, 1), (1, 3)):
        await wait_until(lambda calls=calls: running_behind(processes, calls), within=30.0)  # type: ignore[misc]
        await processes.kill_node(node)
        await processes.start_node(node)
    lines = await program.ended()
    assert commands(lines) == numbered(6)
    check_end(processes, lines, 6)
    check_asked(processes, websockets)
