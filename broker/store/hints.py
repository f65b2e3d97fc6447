"""Hints: what changes in the health table is heard at once; the table itself stays the truth."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker.domain.health import AuthHealth
from broker.store import keys
from broker.store.reading import UNREADABLE
from broker.store.reasons import FOREIGN, reason_of

log = logging.getLogger(__name__)

_row = msgspec.json.Decoder(AuthHealth).decode

LONGEST_PAUSE = 5.0
"""Seconds between two tries to subscribe."""

LOOK_EVERY = 5.0
"""Seconds without a hint after which the server is asked whether it is still there."""


class Hints:
    """Calls `heard` with every row that changes anywhere, and `joined` after each (re)subscription.

    A hint can be lost with its socket; nothing here says so, for the table is read again within its refresh anyway.
    """

    def __init__(self, url: str, heard: Callable[[AuthHealth], None], joined: Callable[[], None]) -> None:
        self._url = url
        self._heard = heard
        self._joined = joined
        self._task: asyncio.Task[None] | None = None
        self.listening = False

    def start(self) -> None:
        """Subscribe, and again whenever the subscription is lost."""
        self._task = asyncio.create_task(self._run(), name="health-hints")

    async def stop(self) -> None:
        """Let go of the subscription, bounded."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=2.0)

    async def _run(self) -> None:
        pause = 0.1
        while True:
            try:
                await self._listen()
            except FOREIGN as error:
                log.debug("hints lost", extra={"reason": reason_of(error)})
            except Exception as error:  # noqa: BLE001 - a fault in what hears must not make the node deaf
                log.error("a hint could not be taken", extra={"kind": type(error).__name__})
            pause = 0.1 if self.listening else min(pause * 2, LONGEST_PAUSE)
            self.listening = False
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    async def _listen(self) -> None:
        client = Redis.from_url(
            self._url,
            protocol=2,
            socket_connect_timeout=1.0,
            socket_timeout=LOOK_EVERY,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        pubsub = client.pubsub()
        try:
            await pubsub.subscribe(keys.health_channel())
            asked = False
            while True:
                message = await pubsub.get_message(timeout=LOOK_EVERY)
                if message is not None:
                    asked = False
                    if message["type"] == "subscribe":
                        # not before: what changes until the server has said so is heard by nobody
                        self.listening = True
                        self._joined()
                    elif message["type"] == "message":
                        self._take(message["data"])
                elif asked:
                    return  # the socket is there, and nobody behind it
                else:
                    asked = True
                    await asyncio.wait_for(pubsub.ping(), 1.0)
        finally:
            with contextlib.suppress(*FOREIGN):
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            with contextlib.suppress(*FOREIGN):
                await client.aclose()

    def _take(self, data: bytes) -> None:
        try:
            row = _row(data)
        except UNREADABLE:
            return  # whatever it is, the table will tell
        self._heard(row)
