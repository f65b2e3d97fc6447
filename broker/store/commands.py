"""Commands as they are asked of Redis."""

from __future__ import annotations

from collections.abc import Sequence

import hiredis
import msgspec

from broker.store.scripts import Script

Arg = str | bytes | int | float


class Command(msgspec.Struct, frozen=True):
    """One command, and the script behind it if it calls one."""

    args: tuple[Arg, ...]
    script: Script | None = None

    def in_full(self) -> Command:
        """The same call with the text of the script, which also teaches it to the server."""
        return Command(("EVAL", self.script.text, *self.args[2:])) if self.script is not None else self

    def packed(self) -> bytes:
        """The bytes that go to the server."""
        packed: bytes = hiredis.pack_command(self.args)  # type: ignore[arg-type]
        return packed


def command(name: str, *args: Arg) -> Command:
    """A plain command; its name may be of two words."""
    return Command((*name.split(), *args))


def call(script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Command:
    """A call of a script."""
    return Command(("EVALSHA", script.sha, len(keys), *keys, *args), script)
