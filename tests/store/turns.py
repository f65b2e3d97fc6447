"""Turns, pins and waiting, as the tests of the store need them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker.domain.session import Pin
from broker.domain.transcript import Commit, TurnItems, TurnMeta
from broker.store.journal import Journal, Landed, Queued
from broker.store.sessions import Committed
from tests.engines import Server

ServerOf = Callable[[str], Server]

IDLE_TTL = 3600.0
SID = "5e55" * 8
TENANT = "tenant"


def pin(epoch: int = 0, nonce: str = "n0", credential: str = "alpha", because: str = "placed") -> Pin:
    """A pin."""
    return Pin(credential, epoch, nonce, because)


def turn(
    turn_id: str,
    parent: str | None = None,
    *,
    sid: str = SID,
    response_id: str | None = None,
    under: Pin | None = None,
    items: TurnItems | None = None,
    boundary: str = "org",
    store: bool = False,
    kept: bool = True,
    rooted: bool = True,
    minted: tuple[str, ...] = (),
) -> Commit:
    """A commit; by default under a provisional pin, with items that name the turn."""
    under = under or pin()
    rid = f"resp-{turn_id}" if response_id is None else response_id
    meta = TurnMeta(turn_id, parent, rid, under.credential, boundary, store, kept=kept, rooted=rooted)
    items = items or TurnItems(f'["{turn_id} in"]'.encode(), f'["{turn_id} out"]'.encode())
    return Commit(sid, "name", TENANT, meta, items, under.epoch, under.nonce, under.because, minted)


async def wait_until(predicate: Callable[[], bool], within: float = 10.0) -> None:
    """Return as soon as it holds; fails after `within` seconds."""
    async with asyncio.timeout(within):
        while not predicate():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def landed(journal: Journal, commit: Commit) -> Committed | Queued:
    """What becomes of a turn that is given to the journal (raises `JournalFull`)."""
    answer: asyncio.Future[Landed] = asyncio.get_running_loop().create_future()
    journal.submit(commit, answer.set_result)
    outcome = await asyncio.shield(answer)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
