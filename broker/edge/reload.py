"""Takes over a changed configuration while the node serves: its credentials and its tenants."""

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
from broker.domain.credential import Credential
from broker.edge.access import Tenant
from broker.edge.node import Node

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


Build = Callable[[Config, ResolvedSecrets], tuple[Sequence[Credential], Sequence[Tenant]]]
"""Makes of a configuration what a node takes over."""


class Reloader:
    """Keeps a node at what its configuration says; `run` it beside the node.

    One that is broken changes nothing. Credentials that are the same before and after stay the same objects, and so
    keep their links. There is never more than one reload at a time; who asks during one gets another behind it. A file
    system that hangs holds up this task and its thread, and no turn.
    """

    def __init__(
        self,
        node: Node,
        started: tuple[Config, ResolvedSecrets],
        source: Source,
        build: Build,
        *,
        every: float = EVERY,
        settle: float = SETTLE,
    ) -> None:
        self._node = node
        self._started = started
        self._source = source
        self._build = build
        self._every = every
        self._settle = settle
        self._asked = asyncio.Event()
        self._watch = Watch(files_of(source.path, started[0]))
        for result in Reloaded:
            node.metrics.config_reloads.inc(result.value, by=0)

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
        self._node.metrics.config_reloads.inc(result.value)
        return result

    def _take(self, config: Config, secrets: ResolvedSecrets) -> Reloaded:
        node = self._node
        new_credentials, new_tenants = self._build(config, secrets)
        credentials = _kept(node.health.pool, new_credentials)
        tenants = _kept(node.tenants, new_tenants)
        later = differing(*self._started, config, secrets)
        if len(tenants) > 1 and not node.shared:
            # what is unknown to us is passed on where there is one tenant, and that is settled at the start
            later.append("tenants (a second one)")
            tenants = list(node.tenants)
        if later:
            log.warning("restart to take over: %s", ", ".join(later))
        if _same(credentials, node.health.pool) and _same(tenants, node.tenants):
            log.info("configuration unchanged", extra={"node": node.name})
            return Reloaded.UNCHANGED
        told = _difference("credentials", node.health.pool, credentials)
        told += _difference("tenants", node.tenants, tenants)
        node.adopt(credentials, tenants)
        log.info("configuration adopted: %s", "; ".join(told), extra={"node": node.name, "count": len(credentials)})
        return Reloaded.ADOPTED


def _refused(lines: Sequence[str]) -> Reloaded:
    log.error("configuration refused, the old one stays in force", extra={"count": len(lines)})
    for line in lines[:MAX_FINDINGS]:
        log.error("configuration refused: %s", line)
    return Reloaded.REFUSED


def _kept(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """The new ones, each as the old object where it says the same."""
    by_name = {item.name: item for item in old}
    return [by_name[item.name] if item == by_name.get(item.name) else item for item in new]


def _same(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _difference(what: str, old: Sequence[Any], new: Sequence[Any]) -> list[str]:
    """In words: who has come, who is gone, who is not as before."""
    before, after = ({item.name: item for item in items} for items in (old, new))
    both = sorted(before.keys() & after.keys())
    rotated = [n for n in both if _secret(before[n]) != _secret(after[n])]
    named = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "rotated": rotated,
        "changed": [n for n in both if before[n] is not after[n] and n not in rotated],
    }
    return [f"{what} {verb}: {', '.join(names)}" for verb, names in named.items() if names] or [f"{what} as before"]


def _secret(item: Credential | Tenant) -> object:
    return item.generation if isinstance(item, Credential) else item.digests


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
