"""The links behind one client: one in steady state, more while turns move, or where a vendor has no lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from broker.domain.credential import Credential
from broker.domain.endpoints import RESPONSES, Endpoint
from broker.domain.failure import Failure, FailureKind
from broker.domain.turn import Request
from broker.upstream.dialer import Dialer, Refused
from broker.upstream.exchange import Exchanges
from broker.upstream.link import NOBODY, Host, Link

IDLE = 8
"""Sockets that may wait for their lanes, where a vendor has none; beyond that the oldest is used again."""

AnyLink = Link | Exchanges


class Links:
    """Opens, reuses and retires the links of one client.

    One upstream socket for one client socket keeps the vendor's semantics exact. When a turn moves to another
    credential, or a link has reached its age, turns still in flight on the old one finish there. A vendor without lanes
    runs one turn on a socket, so there each lane in flight has one. `frames`: the client speaks by WebSocket.
    """

    __slots__ = (
        "_all",
        "_chance",
        "_closing",
        "_current",
        "_dialer",
        "_dials",
        "_endpoint",
        "_frames",
        "_headers",
        "_host",
    )

    def __init__(
        self,
        dialer: Dialer,
        headers: Mapping[str, str],
        host: Host,
        *,
        chance: Callable[[], float],
        endpoint: Endpoint = RESPONSES,
        frames: bool = True,
    ) -> None:
        self._dialer = dialer
        self._headers = headers
        self._host = host
        self._chance = chance
        self._endpoint = endpoint
        self._frames = frames
        self._current: AnyLink | None = None
        self._all: list[AnyLink] = []
        self._dials: dict[tuple[str, str | None], asyncio.Task[AnyLink]] = {}
        self._closing: list[asyncio.Task[None]] = []

    def ready(self, credential: Credential, request: Request) -> AnyLink | None:
        """The link of `credential` that is there, if it will do; of several who holds its parent, or its lane's own."""
        link = self._current
        if link is None or link.credential is not credential:
            return None
        if not link.lanes:
            link = self._free(credential, request)
        if link is None or not link.usable:
            return None
        return link if asyncio.get_running_loop().time() < link.expires else None

    def _free(self, credential: Credential, request: Request) -> AnyLink | None:
        """One that makes no other lane lose what the vendor remembers for it: one response of a socket."""
        free = [
            link
            for link in self._all
            if link.credential is credential and link.usable and not link.busy and link.model in ("", request.model)
        ]
        parent = request.previous_response_id
        holding = (link for link in free if parent is not None and link.holds(parent))
        own = (link for link in free if link.blank or link.last_lane == request.lane)
        return next(holding, next(own, free[0] if len(free) >= IDLE else None))

    async def dial(self, credential: Credential, request: Request) -> AnyLink:
        """A fresh link of `credential`, which takes the place of the one there is. Raises `Refused`."""
        if self._host is NOBODY:
            raise Refused(Failure(FailureKind.TRANSPORT_LOST, code="client_left", orderly=True))
        # a dial with an old secret is no use to who was given the new one
        key = credential.key, None if credential.manners.lanes else request.lane
        dial = self._dials.get(key)
        if dial is None:
            # lanes that need the same socket wait for one dial, and hear of its refusal together
            dial = asyncio.create_task(self._replace(credential, request.model), name=f"dial:{credential.name}")
            self._dials[key] = dial
            dial.add_done_callback(lambda done: self._dialled(key, done))
        try:
            return await asyncio.shield(dial)
        finally:
            del dial  # its exception holds this frame, and shall not be held by it

    def _dialled(self, key: tuple[str, str | None], dial: asyncio.Task[AnyLink]) -> None:
        del self._dials[key]
        if not dial.cancelled():
            dial.exception()  # whoever waited was told; where nobody did, there is nobody to tell

    async def _replace(self, credential: Credential, model: str) -> AnyLink:
        fresh = await self._dialer.open(credential, self._headers, self._host, self._endpoint, frames=self._frames)
        now = asyncio.get_running_loop().time()
        for link in self._all:
            # beside its like it may stay where each turn needs one of its own
            link.retired = link.retired or link.credential is not credential or credential.manners.lanes
            link.retired = link.retired or now >= link.expires
        self._all.append(fresh)
        self._current = fresh
        if isinstance(fresh, Link):
            fresh.model = model if credential.manners.one_model else ""
            # sockets opened together shall not all end together
            fresh.expires = now + credential.max_age * (0.9 + 0.1 * self._chance())
        self.settle()
        return fresh

    def keep_alive(self) -> None:
        """The client is still behind."""
        for link in self._all:
            link.keep_alive()

    def hold(self) -> None:
        """The client is behind."""
        for link in self._all:
            link.hold()

    def resume(self) -> None:
        """The client has caught up."""
        for link in list(self._all):
            link.resume()

    def settle(self) -> None:
        """Close what is retired and has no turn in flight."""
        done = [link for link in self._all if link.retired and not link.busy]
        for link in done:
            self._all.remove(link)
            task = asyncio.create_task(link.close(), name="link-close")
            self._closing.append(task)
            task.add_done_callback(self._closing.remove)

    async def close(self) -> None:
        """Close everything, bounded."""
        for dial in self._dials.values():
            dial.cancel()
        closing = [asyncio.create_task(link.close(), name="link-close") for link in self._all]
        self._all.clear()
        self._current = None
        self._host = NOBODY
        if closing := [*closing, *self._closing]:
            await asyncio.wait(closing, timeout=5.0)
