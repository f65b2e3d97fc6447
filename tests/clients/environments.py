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
REQUIREMENTS = Path(__file__).parents[2] / "requirements"
INSTALL_WITHIN = 300.0
"""Seconds for one step of an installation."""


class NotInstalled(Exception):
    """A client could not be installed; the text names the command and what it said."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One client's environment. `pins` are exact versions by the names of its registry; `heavy` is hundreds of MB.

    What comes from PyPI is installed from `locked`, a file that pins what the clients need, too, with hashes.
    """

    name: str
    pins: Mapping[str, str]
    locked: Path | None = None
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
        below = "bin" if self.locked is not None else "node_modules/.bin"
        return str(self.folder / below / name)

    def install(self) -> None:
        """Install it unless it is there with these versions. Raises `NotInstalled`; bounded in time."""
        ENVIRONMENTS.mkdir(exist_ok=True)
        with (ENVIRONMENTS / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may begin at once
            done = self.folder / ".installed"
            if done.exists() and done.read_text() == self._wanted():
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            for command in self._commands():
                _run(command)
            done.write_text(self._wanted())

    def _wanted(self) -> str:
        return json.dumps(dict(self.pins)) if self.locked is None else self.locked.read_text()

    def _commands(self) -> list[list[str]]:
        if self.locked is not None:
            pip = [self.binary("python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            venv = [sys.executable, "-m", "venv", str(self.folder)]
            return [venv, [*pip, "--require-hashes", "-r", str(self.locked)]]
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


def _pinned(path: Path) -> dict[str, str]:
    """The versions that a file of requirements names."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


PYTHON = Environment("python", _pinned(REQUIREMENTS / "clients.in"), locked=REQUIREMENTS / "clients.txt")
NODE = Environment("node", {"openai": "6.49.0", "ws": "8.23.0"})
CODEX = Environment("codex", {"@openai/codex": "0.169.0"}, heavy=True)
OPENCODE = Environment("opencode", {"opencode-ai": "1.18.33"}, heavy=True)
