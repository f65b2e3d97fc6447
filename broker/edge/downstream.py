"""What a client is to its turns and its links, whichever way it is connected."""

from __future__ import annotations

import time

from broker.domain.presentation import Presentation
from broker.domain.session import Session
from broker.edge.access import Tenant
from broker.edge.links import Links
from broker.edge.wiring import Wiring


class Downstream:
    """One client: who it is, what it may see, and whether it keeps up with reading.

    `explicit`: it has named its session. `behind_since` is the time (`time.monotonic`) since which it is behind with
    reading, None while it is not; `left` says that it will read nothing any more. `presentation` is None where what it
    sees are no events of the Responses API.
    """

    __slots__ = ("behind_since", "explicit", "left", "links", "presentation", "session", "tenant", "wiring")

    links: Links

    def __init__(
        self, wiring: Wiring, tenant: Tenant, session: Session, presentation: Presentation | None, *, explicit: bool
    ) -> None:
        self.wiring = wiring
        self.tenant = tenant
        self.session = session
        self.presentation = presentation
        self.explicit = explicit
        self.behind_since: float | None = None
        self.left = False

    @property
    def keeps_transcript(self) -> bool:
        """Whether this client's turns may be recorded."""
        return self.tenant.transcript and self.wiring.bounds.transcript

    @property
    def behind(self) -> bool:
        """Whether the client is behind with reading, or will read nothing any more."""
        return self.behind_since is not None or self.left

    @property
    def slow_since(self) -> float | None:
        """Since when a client that is still there is behind (`time.monotonic`)."""
        return None if self.left else self.behind_since

    def fall_behind(self, behind: bool) -> None:
        """The client has fallen behind, or caught up: its upstream waits, nobody else's."""
        if behind:
            self.behind_since = time.monotonic()
            self.links.hold()
        else:
            self.behind_since = None
            self.links.resume()
