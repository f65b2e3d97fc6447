"""The janitor: forgets who has died and what nobody will want again, and shows the cluster as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice

import msgspec

from broker.domain.credential import Credential
from broker.domain.health import (
    CALM,
    AuthHealth,
    HealthState,
    credential_subject,
    endpoint_subject,
    group_subject,
    model_subject,
    pause_subject,
    rate_subject,
)
from broker.store.nodes import NodeStore
from broker.store.sweep import SweepStore
from workers.cluster import Cluster

DAY = 86400.0
EVENTS_LIVE = 7 * DAY
"""Seconds after which an event of health is forgotten."""

LOOKED_AT = 500
"""About how many keys one step looks at."""

ROWS_EVERY, EVENTS_EVERY = 30, 1800
"""After how many steps the health table, and the events, are looked at again."""

Pool = Callable[[], Sequence[Credential]]

_row = msgspec.json.Decoder(AuthHealth).decode


class Janitor:
    """Cleans bit by bit, `every` so many seconds. No step does more for a store that is large.

    - Nodes that were silent for `silent_for` seconds are forgotten.
    - Index entries of responses whose session is gone are removed when two looks have found them so: what is being
      written just now may come in either order.
    - Keys of sessions and responses that have no end get one, `idle_ttl` seconds from now.
    - Rows of health that say nothing any more are removed (`outlived`).
    - Events of health older than a week are forgotten.
    `pool` is asked each time: which credentials there are may change.
    """

    name = "janitor"
    alone = True

    def __init__(
        self,
        nodes: NodeStore,
        sweep: SweepStore,
        pool: Pool,
        cluster: Cluster,
        *,
        idle_ttl: float,
        every: float = 2.0,
        silent_for: float = 10.0,
        looked_at: int = LOOKED_AT,
        rows_every: int = ROWS_EVERY,
        events_every: int = EVENTS_EVERY,
    ) -> None:
        self.every = every
        self._nodes = nodes
        self._sweep = sweep
        self._pool = pool
        self._cluster = cluster
        self._idle_ttl = idle_ttl
        self._silent_for = silent_for
        self._looked_at = looked_at
        self._rows_every = rows_every
        self._events_every = events_every
        self._steps = 0
        self._cursor = 0
        self._doubted: list[bytes] = []

    async def step(self) -> str:
        """Look once; the answer says what was removed."""
        removed = await self._nodes.remove_stale(self._silent_for)
        counts = await self._sweep_keys()
        raw, now = await self._sweep.health_rows()
        rows = _readable(raw)
        if self._steps % self._rows_every == 0:
            counts["health_row"] = await self._sweep_rows(raw, rows, now)
        if self._steps % self._events_every == 0:
            counts["event"] = await self._sweep.trim_events(EVENTS_LIVE)
        self._cluster.show(await self._nodes.nodes(), rows, self._pool(), now)
        self._cluster.swept({"node": len(removed), **counts})
        self._steps += 1
        done = [f"removed {', '.join(sorted(removed))}"] if removed else []
        return ", ".join([*done, *(f"{what} {count}" for what, count in counts.items() if count)])

    async def _sweep_keys(self) -> dict[str, int]:
        still = await self._sweep.orphans(self._doubted)
        removed = await self._sweep.forget_responses(still)
        self._doubted = []
        look = await self._sweep.look(self._cursor, self._looked_at)
        limited = await self._sweep.limit(look.endless, self._idle_ttl)
        # only now, so that a step that broke off looks at the same keys again
        self._cursor, self._doubted = look.cursor, list(look.orphans)
        return {"orphan": removed, "endless": limited}

    async def _sweep_rows(self, raw: Mapping[str, bytes], rows: Mapping[str, AuthHealth], now: float) -> int:
        pool = self._pool()
        old = (subject for subject, row in rows.items() if outlived(row, pool, now))
        return await self._sweep.forget_rows({subject: raw[subject] for subject in islice(old, self._looked_at)})


def _readable(raw: Mapping[str, bytes]) -> dict[str, AuthHealth]:
    """The rows; one that another version has written, and that cannot be read here, is left alone."""
    rows = {}
    for subject, text in raw.items():
        with suppress(msgspec.MsgspecError):
            rows[subject] = _row(text)
    return rows


def outlived(row: AuthHealth, pool: Sequence[Credential], now: float) -> bool:
    """Whether a row says nothing any more, at `now` on the store's clock in seconds.

    Of what is configured: when it has been healthy for a day; about one of its models also a day after its block, for
    models have any name that a client likes. Of what is not, or with another secret: an hour after its state has ended,
    when earlier blocks no longer count; a worker may well hear of a credential later than the edges.
    """
    if row.state is HealthState.HEALTHY:
        over = now - row.since
    elif row.holds(now):
        return False
    else:
        over = now - row.until
    whole, of_models = _configured(pool)
    if row.subject in whole:
        return row.state is HealthState.HEALTHY and over > DAY
    return over > (DAY if row.subject.startswith(of_models) else CALM)


def _configured(pool: Sequence[Credential]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The subjects of all that is configured, and how subjects about one of its models begin."""
    about = (credential_subject, pause_subject, group_subject, endpoint_subject)
    whole = frozenset(subject(credential) for credential in pool for subject in about)
    return whole, tuple(about(credential, "") for credential in pool for about in (rate_subject, model_subject))
