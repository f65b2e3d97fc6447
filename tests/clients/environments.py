"""Where each client lives: an environment of its own under `.envs/`, installed once, with pinned versions."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(__file__).parent / ".envs"
INSTALL_WITHIN = 300.0
"""Seconds for one step of an installation."""


class NotInstalled(Exception):
    """A client could not be installed; the text names the command and what it said."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One client's environment. `pins` are exact versions by the names of its registry; `heavy` is hundreds of MB."""

    name: str
    pins: Mapping[str, str]
    registry: str  # pypi | npm
    heavy: bool = False

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def version(self) -> str:
        """What is tested, in words."""
        return ", ".join(f"{package} {version}" for package, version in self.pins.items())

    def binary(self, name: str) -> str:
        """The path of a program in it."""
        below = "bin" if self.registry == "pypi" else "node_modules/.bin"
        return str(self.folder / below / name)

    def install(self) -> None:
        """Install it unless it is there with these versions. Raises `NotInstalled`; bounded in time."""
        ENVIRONMENTS.mkdir(exist_ok=True)
        with (ENVIRONMENTS / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may begin at once
            done = self.folder / ".installed"
            if done.exists() and json.loads(done.read_text()) == dict(self.pins):
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            for command in self._commands():
                _run(command)
            done.write_text(json.dumps(dict(self.pins)))

    def _commands(self) -> list[list[str]]:
        if self.registry == "pypi":
            pins = [f"{package}=={version}" for package, version in self.pins.items()]
            pip = [self.binary("python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            return [[sys.executable, "-m", "venv", str(self.folder)], [*pip, *pins]]
        pins = [f"{package}@{version}" for package, version in self.pins.items()]
        quietly = ["--no-audit", "--no-fund", "--no-progress", "--loglevel=error"]
        return [["npm", "install", "--prefix", str(self.folder), "--save-exact", *quietly, *pins]]


def _run(command: Sequence[str]) -> None:
    shown = " ".join(command)
    try:
        subprocess.run(
            command, check=True, capture_output=True, timeout=INSTALL_WITHIN, stdin=subprocess.DEVNULL, env=_plain()
        )
    except FileNotFoundError:
        raise NotInstalled(f"`{shown}`: there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"`{shown}` took longer than {INSTALL_WITHIN:.0f} s") from None
    except subprocess.CalledProcessError as failed:
        said = failed.stderr.decode(errors="replace").strip().splitlines()
        raise NotInstalled(f"`{shown}` failed: {' / '.join(said[-3:])}") from None


def _plain() -> dict[str, str]:
    """The environment of this process, without what would make an environment inside of it write no bytecode."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


PYTHON = Environment("python", {"openai[realtime]": "3.54.0", "openai-agents": "0.24.0"}, "pypi")
NODE = Environment("node", {"openai": "6.49.0", "ws": "8.23.0"}, "npm")
CODEX = Environment("codex", {"@openai/codex": "0.169.0"}, "npm", heavy=True)
OPENCODE = Environment("opencode", {"opencode-ai": "1.18.33"}, "npm", heavy=True)
