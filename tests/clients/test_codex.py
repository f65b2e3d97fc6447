"""Codex CLI: an agent with a real shell, over its WebSocket and over HTTP; it never falls back to the other."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from broker.simulator import context_digest
from tests.clients import environments
from tests.clients.environments import Environment
from tests.clients.program import Program, Said
from tests.clients.site import Site
from tests.clients.truth import running_behind, said_by_vendor
from tests.scenarios.house import wait_until

CLIENT = f"Codex CLI ({environments.CODEX.pins['@openai/codex']})"

CONFIG = """\
model = "sim-1"
model_provider = "broker"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.broker]
name = "broker"
base_url = "{base_url}"
wire_api = "responses"
env_key = "KEY"
supports_websockets = {websockets}
"""

ASKED = {True: "WS /v1/responses", False: "POST /v1/responses"}

Start = Callable[..., Awaitable[Program]]

over_both = pytest.mark.parametrize("websockets", [True, False], ids=["websocket", "http"])


@pytest.fixture
def start(
    installed: Callable[[Environment], Environment], run: Callable[..., Awaitable[Program]], tmp_path: Path
) -> Start:
    """Start `codex exec` with these arguments; all runs of a test have one home."""
    codex = installed(environments.CODEX).binary("codex")
    home = tmp_path / ".codex"
    home.mkdir()

    async def started(at: Site, websockets: bool, *arguments: str) -> Program:
        config = CONFIG.format(base_url=at.base_url, websockets=str(websockets).lower())
        (home / "config.toml").write_text(config)
        options = ("--skip-git-repo-check", "--json", "--sandbox", "danger-full-access")
        return await run([codex, "exec", *options, *arguments], at, waits=False, CODEX_HOME=str(home))

    return started


def commands(lines: list[Said]) -> list[str]:
    """What its tool printed, in the order in which it ended."""
    done = [line["item"] for line in lines if line["type"] == "item.completed"]
    return [item["aggregated_output"].strip() for item in done if item["type"] == "command_execution"]


def known_to(home: Path) -> list[dict[str, Any]]:
    """All items of its newest conversation, as it keeps them in its own files."""
    newest = max((home / ".codex").rglob("rollout-*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    return [line["payload"] for line in lines if line["type"] == "response_item"]


def check_context(at: Site, home: Path) -> None:
    """The vendor's last answer was said from all that the agent knows, in order, behind the agent's instructions."""
    *known, last = [item for item in known_to(home) if item["type"] != "reasoning"]
    seen = [item for item in at.turns[-1].context if item["type"] != "reasoning"]
    assert last["role"] == "assistant"
    assert [item["role"] for item in seen[: -len(known)]] == ["developer"]
    assert context_digest(seen[-len(known) :]) == context_digest(known)
    assert last["content"][0]["text"].startswith(said_by_vendor(at.turns[-1]))


def check_asked(at: Site, websockets: bool, *, runs: int, requests: int) -> None:
    """It had no reason to connect or to ask again: one socket for each run, or one request for each answer."""
    asked = [what for what in at.asked if what != "GET /v1/models"]
    assert asked == (["WS /v1/responses"] * runs if websockets else ["POST /v1/responses"] * requests)


def numbered(calls: int) -> list[str]:
    """What the calls print that the vendor asks for."""
    return [f"sim-{number}" for number in range(1, calls + 1)]


@over_both
async def test_works_with_its_shell(start: Start, target: Site, tmp_path: Path, websockets: bool) -> None:
    lines = await (await start(target, websockets, "work [[tools:3]]")).ended()
    assert commands(lines) == numbered(3)
    assert lines[-1]["type"] == "turn.completed"
    check_context(target, tmp_path)
    check_asked(target, websockets, runs=1, requests=4)


@over_both
@pytest.mark.parametrize("fault", ["usage_limit_reached", "token_revoked", "server_is_overloaded"])
async def test_does_not_notice_that_its_credential_is_lost(
    start: Start, broker: Site, tmp_path: Path, fault: str, websockets: bool
) -> None:
    broker.strike("A", fault, when="function_call_output")
    lines = await (await start(broker, websockets, "work [[tools:3]]")).ended()
    assert commands(lines) == numbered(3)
    check_context(broker, tmp_path)
    check_asked(broker, websockets, runs=1, requests=4)
    assert {turn.credential for turn in broker.turns if turn.outcome == "completed"} >= {"A", "B"}


@over_both
async def test_resumes_on_another_credential(start: Start, broker: Site, tmp_path: Path, websockets: bool) -> None:
    await (await start(broker, websockets, "work [[tools:1]]")).ended()
    broker.strike("A", "usage_limit_reached")
    lines = await (await start(broker, websockets, "resume", "--last", "and on [[tools:1]]")).ended()
    assert commands(lines) == numbered(1)
    assert sum(item["type"] == "function_call_output" for item in known_to(tmp_path)) == 2
    check_context(broker, tmp_path)
    check_asked(broker, websockets, runs=2, requests=4)


@over_both
async def test_works_on_while_nodes_are_killed_and_come_back(
    start: Start, processes: Site, tmp_path: Path, websockets: bool
) -> None:
    program = await start(processes, websockets, "work [[tools:6]][[slow:150]]")
    for node, calls in ((0, 1), (1, 3)):
        await wait_until(lambda calls=calls: running_behind(processes, calls), within=20.0)  # type: ignore[misc]
        await processes.kill_node(node)
        await processes.start_node(node)
    lines = await program.ended()
    assert commands(lines) == numbered(6)
    check_context(processes, tmp_path)
    assert set(processes.asked) - {"GET /v1/models"} == {ASKED[websockets]}
