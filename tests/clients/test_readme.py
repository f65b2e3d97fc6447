"""What README.md gives users to paste is pasted here: each block runs as it stands, but for the address and the key."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.environments import Environment
from tests.clients.program import Program
from tests.clients.site import Site

CLIENT = "README.md"

README = Path(__file__).parents[2] / "README.md"
SECTION = re.compile(r"^#+ Point your clients at it$(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = re.compile(r"http://127\.0\.0\.1:8080/v1")
KEY = re.compile(r"sbk_\.\.\.|sbk_[A-Za-z0-9_-]+")

Run = Callable[..., Awaitable[Program]]
Install = Callable[[Environment], Environment]


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block of the section."""
    found = SECTION.search(README.read_text())
    return BLOCK.findall(found[1]) if found is not None else []


def pasted(text: str, at: Site) -> str:
    """The block with our address and key."""
    return KEY.sub(at.key, ADDRESS.sub(at.base_url, text))


def of(*languages: str) -> pytest.MarkDecorator:
    """One case for each block in these languages."""
    texts = [text for language, text in blocks() if language in languages]
    return pytest.mark.parametrize("text", texts, ids=[f"{languages[0]}-{at}" for at in range(1, len(texts) + 1)])


def check_served(at: Site) -> None:
    """Something was asked, and all of it was answered to its end."""
    assert at.asked and at.turns
    assert {turn.outcome for turn in at.turns} == {"completed"}


def test_finds_blocks_for_both_sdks_and_codex() -> None:
    assert {"python", "toml"} <= {language for language, _ in blocks()}


@of("python")
async def test_runs_what_is_given_for_python(
    installed: Install, run: Run, broker: Site, tmp_path: Path, text: str
) -> None:
    python = installed(environments.PYTHON).binary("python")
    (tmp_path / "pasted.py").write_text(pasted(text, broker))
    await (await run([python, "pasted.py"], broker, waits=False)).ended()
    check_served(broker)


@of("js", "javascript", "ts")
async def test_runs_what_is_given_for_javascript(
    installed: Install, run: Run, broker: Site, tmp_path: Path, text: str
) -> None:
    modules = installed(environments.NODE).folder / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "pasted.mjs").write_text(pasted(text, broker))
    await (await run(["node", "pasted.mjs"], broker, waits=False)).ended()
    check_served(broker)


@of("toml")
async def test_configures_codex_with_what_is_given(
    installed: Install, run: Run, broker: Site, tmp_path: Path, text: str
) -> None:
    codex = installed(environments.CODEX).binary("codex")
    home = tmp_path / ".codex"
    home.mkdir()
    (home / "config.toml").write_text(pasted(text, broker))
    command = [codex, "exec", "--skip-git-repo-check", "--json", "hello"]
    await (await run(command, broker, waits=False, BROKER_KEY=broker.key)).ended()
    check_served(broker)
    assert broker.asked == ["WS /v1/responses"]


@of("json", "jsonc")
async def test_configures_opencode_with_what_is_given(
    installed: Install, run: Run, broker: Site, tmp_path: Path, text: str
) -> None:
    opencode = installed(environments.OPENCODE).binary("opencode")
    (tmp_path / "opencode.json").write_text(pasted(text, broker))
    # without a key of its own beside the configuration it stays with HTTP, whatever the other variable says
    auth = json.dumps({"openai": {"type": "api", "key": broker.key}})
    websockets = {"OPENCODE_EXPERIMENTAL_WEBSOCKETS": "1", "OPENCODE_AUTH_CONTENT": auth}
    quiet = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}
    await (await run([opencode, "run", "hello"], broker, waits=False, **quiet, **websockets)).ended()
    check_served(broker)
    assert broker.asked.count("WS /v1/responses") == 1
