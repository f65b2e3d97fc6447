"""How the demonstration looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class SessionLine:
    """One session as a person sees it."""

    name: str
    node: str
    credential: str
    turns: int
    saw: str
    good: bool


@dataclass(frozen=True, slots=True)
class CredentialLine:
    """One credential as a person sees it."""

    name: str
    organisation: str
    state: str
    turns: int
    sessions: int


_COLOURS = {"healthy": "green", "exhausted": "red", "revoked": "red", "suspect": "yellow", "cooling": "yellow"}


class Screen:
    """Prints acts, tables and the verdict."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def act(self, title: str, words: str) -> None:
        """What happens next."""
        self.console.print()
        self.console.rule(Text(title, style="bold"), align="left")
        self.console.print(words)

    def credentials(self, lines: Sequence[CredentialLine]) -> None:
        """The pool."""
        table = Table("credential", "organisation", "state", "turns served", "sessions pinned", title="credentials")
        for line in lines:
            state = Text(line.state, style=_COLOURS.get(line.state, ""))
            table.add_row(line.name, line.organisation, state, str(line.turns), str(line.sessions))
        self.console.print(table)

    def sessions(self, lines: Sequence[SessionLine]) -> None:
        """The sessions, and what each client saw of the last turn."""
        table = Table("session", "node", "credential", "turns", "what the client saw", title="sessions")
        for line in lines:
            saw = Text(line.saw, style="green" if line.good else "bold red")
            table.add_row(line.name, line.node, line.credential, str(line.turns), saw)
        self.console.print(table)

    def moved(self, before: Mapping[str, float], after: Mapping[str, float], names: Sequence[str]) -> None:
        """The counters that moved."""
        table = Table("counter", "moved by", title="counters that moved", title_justify="left")
        for key in sorted(after):
            step = after[key] - before.get(key, 0.0)
            if step > 0 and key.startswith(tuple(names)):
                table.add_row(key, f"+{step:g}")
        if table.row_count:
            self.console.print(table)

    def verdict(self, kept: bool, lines: Sequence[str]) -> None:
        """Whether the promise was kept."""
        title = "PROMISE KEPT" if kept else "PROMISE BROKEN"
        self.console.print()
        self.console.print(Panel("\n".join(lines), title=title, border_style="green" if kept else "bold red"))

    def hold(self, base_url: str, control_url: str, metrics_url: str, key: str) -> None:
        """How to go on by hand."""
        example = (
            "import asyncio, json, aiohttp\n\n"
            "async def main():\n"
            "    async with aiohttp.ClientSession() as http:\n"
            f'        ws = await http.ws_connect("{base_url}/responses",\n'
            f'                                   headers={{"Authorization": "Bearer {key}"}})\n'
            '        await ws.send_json({"type": "response.create", "model": "sim-1", "store": False,\n'
            '                            "input": "hello"})\n'
            "        async for message in ws:\n"
            "            event = json.loads(message.data)\n"
            '            print(event["type"], event.get("delta", ""))\n'
            '            if event["type"] in ("response.completed", "error"):\n'
            "                break\n\n"
            "asyncio.run(main())"
        )
        self.console.print()
        self.console.rule(Text("everything is still up", style="bold"), align="left")
        self.console.print(f"clients    {base_url}   (key {key})", soft_wrap=True)
        self.console.print(f"metrics    {metrics_url}")
        self.console.print(
            f'faults     curl -X PUT {control_url}/faults -d \'{{"credential": "A", "preset": '
            '"usage_limit_reached", "at": "before_created"}\'',
            highlight=False,
            soft_wrap=True,
        )
        self.console.print("\na client, ready to paste (.venv/bin/python):\n", style="bold")
        self.console.print(example, highlight=False, soft_wrap=True, markup=False)
        self.console.print("\nCtrl-C ends it.")
