"""The OpenAI SDK for Python: every way in that it has, and its own way of coming back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from broker.simulator import Fault
from tests.clients import environments
from tests.clients.environments import Environment
from tests.clients.program import PROGRAMS, Program, Said
from tests.clients.site import Site
from tests.clients.truth import check_chain, turns_of

CLIENT = f"OpenAI SDK for Python ({environments.PYTHON.pins['openai[realtime]']})"

Start = Callable[[str, Site], Awaitable[Program]]


@pytest.fixture
def start(installed: Callable[[Environment], Environment], run: Callable[..., Awaitable[Program]]) -> Start:
    """Start one case of the program."""
    python = installed(environments.PYTHON).binary("python")
    return lambda case, at: run([python, str(PROGRAMS / "openai_sdk.py"), case], at)


async def said_by(start: Start, case: str, at: Site) -> list[Said]:
    """All that a case says that needs nothing of us."""
    return await (await start(case, at)).ended()


def only(lines: list[Said], kind: str) -> Said:
    (found,) = [line for line in lines if line["type"] == kind]
    return found


# --- over HTTP ---


async def test_creates_and_continues_a_stored_response(start: Start, target: Site) -> None:
    turns = turns_of(await said_by(start, "create", target))
    assert len(turns) == 2
    check_chain(turns)
    assert target.asked == ["POST /v1/responses"] * 2


@pytest.mark.parametrize("case", ["create_streamed", "stream"])
async def test_reads_a_stream(start: Start, target: Site, case: str) -> None:
    lines = await said_by(start, case, target)
    check_chain(turns_of(lines))
    kinds = only(lines, "events")["kinds"]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds


@pytest.mark.parametrize("fault", ["usage_limit_reached", "token_revoked", "server_is_overloaded"])
async def test_resends_its_context_while_credentials_are_lost(start: Start, broker: Site, fault: str) -> None:
    program = await start("resend", broker)
    for _ in range(3):
        await program.said("turn")
        broker.strike(broker.turns[-1].credential, fault)
        await program.go_on()
    turns = turns_of(await program.ended())
    assert len(turns) == 3
    check_chain(turns)
    assert broker.asked == ["POST /v1/responses"] * 3, "it had no reason to ask again"
    assert len({turn.credential for turn in broker.turns if turn.outcome == "completed"}) == 3


@pytest.mark.parametrize(
    ("case", "path"),
    [("chat", "/v1/chat/completions"), ("chat_streamed", "/v1/chat/completions"), ("embeddings", "/v1/embeddings")],
)
async def test_is_served_by_another_credential(start: Start, broker: Site, case: str, path: str) -> None:
    broker.strike("A", "usage_limit_reached")
    await said_by(start, case, broker)
    assert broker.asked == [f"POST {path}"], "it had no reason to ask again"
    assert [(turn.credential, turn.outcome) for turn in broker.turns] == [("A", "error"), ("B", "completed")]


async def test_chats(start: Start, target: Site) -> None:
    chat = only(await said_by(start, "chat", target), "chat")
    assert chat["text"] and chat["finish"] == "stop"


async def test_reads_the_stream_of_a_chat(start: Start, target: Site) -> None:
    chat = only(await said_by(start, "chat_streamed", target), "chat")
    assert chat["text"] and chat["finish"] == "stop" and chat["chunks"] > 2


async def test_gets_embeddings(start: Start, target: Site) -> None:
    dimensions = only(await said_by(start, "embeddings", target), "embeddings")["dimensions"]
    assert len(dimensions) == 2 and dimensions[0] == dimensions[1] > 0


async def test_lists_models(start: Start, target: Site) -> None:
    assert "sim-1" in only(await said_by(start, "models", target), "models")["names"]


async def test_reads_and_deletes_what_is_stored(start: Start, target: Site) -> None:
    lines = await said_by(start, "stored", target)
    (made,) = turns_of(lines)
    again = only(lines, "retrieved")
    assert (again["id"], again["text"]) == (made["id"], made["text"])
    assert only(lines, "inputs")["texts"] == ["hello"]
    assert only(lines, "gone")["status"] == 404


async def test_cancels_what_runs_in_the_background(start: Start, target: Site) -> None:
    lines = await said_by(start, "cancelled", target)
    assert only(lines, "begun")["status"] in ("queued", "in_progress")
    assert only(lines, "cancelled")["status"] == "cancelled"
    assert only(lines, "cancelled")["id"] == only(lines, "begun")["id"]


# --- over a WebSocket ---


@pytest.mark.parametrize("case", ["connect", "connect_asynchronously"])
async def test_continues_on_one_socket(start: Start, target: Site, case: str) -> None:
    program = await start(case, target)
    for _ in range(3):
        await program.said("turn")
        await program.go_on()
    check_chain(turns_of(await program.ended()))
    assert target.asked == ["WS /v1/responses"]


@pytest.mark.parametrize("fault", ["usage_limit_reached", "token_revoked", "server_is_overloaded"])
@pytest.mark.parametrize("case", ["connect", "connect_asynchronously"])
async def test_does_not_notice_that_its_credential_is_lost(start: Start, broker: Site, case: str, fault: str) -> None:
    program = await start(case, broker)
    for _ in range(3):
        await program.said("turn")
        broker.strike(broker.turns[-1].credential, fault)
        await program.go_on()
    turns = turns_of(await program.ended())
    assert len(turns) == 3
    check_chain(turns)
    assert broker.asked == ["WS /v1/responses"]
    assert len({turn.credential for turn in broker.turns if turn.outcome == "completed"}) == 3


async def test_speaks_on_two_lanes_at_once(start: Start, target: Site) -> None:
    turns = turns_of(await said_by(start, "lanes", target))
    for name in ("left", "right"):
        mine = [turn for turn in turns if turn["asked"].startswith(name)]
        assert len(mine) == 3
        check_chain(mine)
    assert target.asked == ["WS /v1/responses"]


async def test_comes_back_by_itself_when_its_node_is_killed_in_mid_turn(start: Start, processes: Site) -> None:
    program = await start("reconnect", processes)
    await program.said("begun")
    await processes.kill_node(0)
    lines = await program.ended()
    assert only(lines, "reconnecting")["code"] == 1006
    assert len(turns_of(lines)) == 3
    check_chain(turns_of(lines))


async def test_is_told_of_an_interrupted_turn_and_goes_on(start: Start, broker: Site) -> None:
    broker.strike("A", Fault(at="after_deltas", do="reset"), times=1)
    lines = await said_by(start, "interrupted", broker)
    assert only(lines, "error")["code"] == "upstream_interrupted"
    check_chain(turns_of(lines))
