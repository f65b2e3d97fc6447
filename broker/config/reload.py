"""Takes over a changed configuration while a process runs: sees the change, reads it, hands over what is good."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from broker.config import Config, ConfigError, ResolvedSecrets, load, resolve_secrets
from broker.config.watch import Look, Watch, files_of

log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two looks at the files."""

SETTLE = 0.25
"""Seconds for which a change must have stood still before it is taken over."""

MAX_FINDINGS = 20
"""Findings of one refused configuration that are logged."""


class Reloaded(StrEnum):
    """How a reload ended."""

    ADOPTED = "adopted"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration comes from: its file, and the variables it may point to. `read` blocks."""

    path: str
    environ: Mapping[str, str]

    def read(self, watch: Watch) -> tuple[Config, ResolvedSecrets]:
        """The configuration as it is now; `watch` follows it to its files. Raises `ConfigError` with every finding."""
        config = load(self.path)
        watch.follow(files_of(self.path, config))
        return config, resolve_secrets(config, self.environ, source=self.path)


Take = Callable[[Config, ResolvedSecrets], Reloaded]
"""Takes over what has changed; is not called with a configuration that is broken."""


class Reloader:
    """Keeps a process at what its configuration says; `run` it beside the rest.

    One that is broken changes nothing. There is never more than one reload at a time; who asks during one gets another
    behind it. A file system that hangs holds up this task and its thread, and nobody else. `counted` hears how each
    ended.
    """

    def __init__(
        self,
        take: Take,
        source: Source,
        config: Config,
        *,
        counted: Callable[[str], None],
        every: float = EVERY,
        settle: float = SETTLE,
    ) -> None:
        self._take = take
        self._source = source
        self._counted = counted
        self._every = every
        self._settle = settle
        self._asked = asyncio.Event()
        self._watch = Watch(files_of(source.path, config))

    def ask(self) -> None:
        """Reload now, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Reload when asked and when the files have changed, until cancelled."""
        # what was written between the start and here is found by the first looks, to which every file is new
        pause = 0.0
        while True:
            asked = await self._pause(pause)
            if asked:
                await asyncio.to_thread(self._watch.accept)
                await self.reload()
            look = await asyncio.to_thread(self._watch.look)
            if look is Look.CHANGED:
                await self.reload()
            pause = self._settle if look is Look.MOVING else self._every

    async def _pause(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    async def reload(self) -> Reloaded:
        """Read the configuration and take it over, if it is good; says and counts how that ended."""
        try:
            config, secrets = await asyncio.to_thread(self._source.read, self._watch)
            result = self._take(config, secrets)
        except ConfigError as error:
            result = _refused(error.lines())
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the old one is still good
            result = _refused([type(error).__name__])
        self._counted(result.value)
        return result


def _refused(lines: Sequence[str]) -> Reloaded:
    log.error("configuration refused, the old one stays in force", extra={"count": len(lines)})
    for line in lines[:MAX_FINDINGS]:
        log.error("configuration refused: %s", line)
    return Reloaded.REFUSED


def kept(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """The new ones, each as the old object where it says the same: what is the same object keeps what it has open."""
    by_name = {item.name: item for item in old}
    return [by_name[item.name] if item == by_name.get(item.name) else item for item in new]


def same(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether these are the very same objects in the same order."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def differing(before: Config, had: ResolvedSecrets, after: Config, has: ResolvedSecrets) -> list[str]:
    """The settings that are other than at the start, and that only a restart takes over."""
    names = [name for name in _differing(before, after) if name not in ("credentials", "tenants")]
    if had.redis_url != has.redis_url:
        names.append("redis_url")
    if had.encryption_key != has.encryption_key:
        names.append("session.encryption_key")
    return list(dict.fromkeys(names))


def _differing(before: msgspec.Struct, after: msgspec.Struct, under: str = "") -> list[str]:
    names: list[str] = []
    for setting in msgspec.structs.fields(before):
        old, new = getattr(before, setting.name), getattr(after, setting.name)
        if isinstance(old, msgspec.Struct) and type(old) is type(new):
            names += _differing(old, new, f"{under}{setting.name}.")
        elif old != new:
            names.append(under + setting.name)
    return names
