"""A client in a process of its own: it says what happens to it in lines of JSON, and waits for a line where it must."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

PROGRAMS = Path(__file__).parent / "programs"

Said = dict[str, Any]

_INHERITED = ("PATH", "LANG", "TMPDIR")
_MOST = 16 * 1024 * 1024


class Program:
    """One run of a client; `lines` is all that it has said so far, `errors` what went to its stderr."""

    def __init__(self, process: asyncio.subprocess.Process, command: Sequence[str]) -> None:
        self.lines: list[Said] = []
        self._process = process
        self._command = command
        self._errors = bytearray()
        self._reading = asyncio.create_task(self._read_errors())

    @classmethod
    async def start(cls, command: Sequence[str], folder: Path, *, waits: bool = True, **environ: str) -> Program:
        """Run it in a folder of its own, which is its home, with nothing of our environment but the path.

        Who does not wait for lines has no stdin: some would read all of it first.
        """
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**inherited, "HOME": str(folder), **_quiet(), **environ},
            stdin=asyncio.subprocess.PIPE if waits else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MOST,
            start_new_session=True,
        )
        return cls(process, command)

    @property
    def errors(self) -> str:
        return self._errors.decode(errors="replace")

    async def said(self, kind: str, within: float = 30.0) -> Said:
        """The next line of that kind, which it says under "type"; all others on the way are kept in `lines`."""
        async with asyncio.timeout(within):
            while (line := await self._line()) is not None:
                if line.get("type") == kind:
                    return line
        raise AssertionError(f"{self._about()} ended without {kind!r}")

    async def go_on(self) -> None:
        """Let it go on from where it waits."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()

    async def ended(self, within: float = 45.0) -> list[Said]:
        """All that it has said, when it has ended well."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        async with asyncio.timeout(within):
            while await self._line() is not None:
                pass
            await self._process.wait()
            await self._reading
        assert self._process.returncode == 0, self._about()
        return self.lines

    async def kill(self) -> None:
        """End it and all that it has started, whatever has ended of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own, in which there is nobody else
        await asyncio.wait_for(self._process.wait(), 5.0)
        await asyncio.wait_for(self._reading, 5.0)

    async def _line(self) -> Said | None:
        assert self._process.stdout is not None
        while raw := await self._process.stdout.readline():
            with contextlib.suppress(orjson.JSONDecodeError):
                line = orjson.loads(raw)
                if isinstance(line, dict):
                    self.lines.append(line)
                    return line
        return None

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while piece := await self._process.stderr.read(65536):
            self._errors += piece[: _MOST - len(self._errors)]

    def _about(self) -> str:
        shown = [str(line)[:400] for line in self.lines[-10:]]
        return "\n".join([" ".join(self._command), f"exit {self._process.returncode}", *shown, self.errors[-4000:]])


def _quiet() -> Mapping[str, str]:
    """What keeps clients from talking to anybody but us."""
    return {"OPENAI_AGENTS_DISABLE_TRACING": "1", "NO_COLOR": "1", "CI": "1", "DO_NOT_TRACK": "1"}
