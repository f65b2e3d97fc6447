"""The upstream sockets behind one client socket: one in steady state, more while turns move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from broker.domain.credential import Credential
from broker.upstream.connection import Dialer, Link


class Links:
    """Opens, reuses and retires the links of one client socket.

    One upstream socket for one client socket keeps the vendor's semantics exact. When a turn moves to another
    credential, or a link has reached its age, turns still in flight on the old one finish there.
    """

    def __init__(
        self,
        dialer: Dialer,
        headers: Mapping[str, str],
        aside: Callable[[Link, bytes, str | None], object],
        *,
        chance: Callable[[], float],
    ) -> None:
        self._dialer = dialer
        self._headers = headers
        self._aside = aside
        self._chance = chance
        self._current: Link | None = None
        self._expires = 0.0
        self._all: set[Link] = set()
        self._dialing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> Link | None:
        """The link on which turns start."""
        return self._current

    async def open(self, credential: Credential) -> Link:
        """A usable link of `credential`, the one there is if it will do. Raises `Refused`."""
        async with self._dialing:
            now = asyncio.get_running_loop().time()
            link = self._current
            if link is not None and link.credential is credential and link.usable and now < self._expires:
                return link
            fresh = await self._dial(credential)
            if link is not None:
                link.retired = True
            self._current = fresh
            # sockets opened together shall not all end together
            self._expires = now + credential.max_age * (0.9 + 0.1 * self._chance())
            self.settle()
            return fresh

    async def _dial(self, credential: Credential) -> Link:
        def aside(raw: bytes, lane: str | None) -> object:
            return self._aside(link, raw, lane)

        link = await self._dialer.dial(credential, self._headers, aside)
        self._all.add(link)
        return link

    def settle(self) -> None:
        """Close what is retired and has no turn in flight."""
        for link in [link for link in self._all if link.retired and not link.busy]:
            self._all.discard(link)
            task = asyncio.create_task(link.close(), name="link-close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close everything, bounded."""
        closing = [asyncio.create_task(link.close(), name="link-close") for link in self._all]
        self._all.clear()
        if closing := [*closing, *self._closing]:
            await asyncio.wait(closing, timeout=5.0)
