"""What a node takes over of a changed configuration while it serves: its credentials and its tenants."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from broker.config import Config, ResolvedSecrets
from broker.config.reload import EVERY, SETTLE, Reloaded, Reloader, Source, differing, kept, same
from broker.domain.credential import Credential
from broker.edge.access import Tenant
from broker.edge.node import Node

log = logging.getLogger(__name__)

Build = Callable[[Config, ResolvedSecrets], tuple[Sequence[Credential], Sequence[Tenant]]]
"""Makes of a configuration what a node takes over."""


def reloader(
    node: Node,
    started: tuple[Config, ResolvedSecrets],
    source: Source,
    build: Build,
    *,
    every: float = EVERY,
    settle: float = SETTLE,
) -> Reloader:
    """Keeps a node at what its configuration says.

    Credentials that are the same before and after stay the same objects, and so keep their links.
    """
    counted = node.metrics.config_reloads
    for result in Reloaded:
        counted.inc(result.value, by=0)

    def take(config: Config, secrets: ResolvedSecrets) -> Reloaded:
        return _take(node, build(config, secrets), differing(*started, config, secrets))

    return Reloader(take, source, started[0], counted=counted.inc, every=every, settle=settle)


def _take(node: Node, built: tuple[Sequence[Credential], Sequence[Tenant]], later: list[str]) -> Reloaded:
    credentials, tenants = kept(node.placement.pool, built[0]), kept(node.tenants, built[1])
    if len(tenants) > 1 and not node.shared:
        # what is unknown to us is passed on where there is one tenant, and that is settled at the start
        later.append("tenants (a second one)")
        tenants = list(node.tenants)
    if later:
        log.warning("restart to take over: %s", ", ".join(later))
    if same(credentials, node.placement.pool) and same(tenants, node.tenants):
        log.info("configuration unchanged", extra={"node": node.name})
        return Reloaded.UNCHANGED
    told = _difference("credentials", node.placement.pool, credentials)
    told += _difference("tenants", node.tenants, tenants)
    node.adopt(credentials, tenants)
    log.info("configuration adopted: %s", "; ".join(told), extra={"node": node.name, "count": len(credentials)})
    return Reloaded.ADOPTED


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
