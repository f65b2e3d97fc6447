"""What the vendor saw: every turn and every handshake, bounded, for inspection."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from broker.simulator.context import Item

_SECRETS = frozenset({"authorization", "api-key"})


@dataclass(slots=True)
class TurnRecord:
    """One received create (or the successor of a steered response); `outcome` is "active" until it ends.

    Outcomes: completed, incomplete, failed, error (an error frame), lost (the connection went first), cancelled.
    """

    number: int
    credential: str
    socket: int | None
    transport: str  # websocket | sse | json
    lane: str | None
    previous_response_id: str | None
    input: list[Item]
    fields: dict[str, Any]  # the received frame without its input
    frame_keys: list[str]
    model: str | None
    store: bool
    path: str = "/v1/responses"  # without the query; the vendor's other endpoints are recorded alike
    response_id: str | None = None
    context: tuple[Item, ...] = ()
    context_digest: str | None = None
    outcome: str = "active"
    error_code: str | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None

    def end(self, outcome: str, error_code: str | None = None) -> None:
        """Settle the record; only the first ending counts."""
        if self.outcome == "active":
            self.outcome, self.error_code, self.ended = outcome, error_code, time.time()

    def as_json(self) -> dict[str, Any]:
        return {name.name: getattr(self, name.name) for name in fields(self)}


@dataclass(frozen=True, slots=True)
class Handshake:
    """One WebSocket upgrade or HTTP request; header names are lower case, keys and tokens are left out.

    The status is the door's: a request that was let in may still be refused, which is then in the record of its turn.
    """

    number: int
    credential: str | None
    transport: str  # websocket | http
    accepted: bool
    status: int | None
    headers: dict[str, str]
    time: float  # epoch seconds
    method: str
    path: str  # without the query, such as /v1/models
    port: int | None = None  # the caller's; requests over one connection have the same

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Recorder:
    """Bounded records, the newest kept, and the live sockets of every credential."""

    def __init__(self, limit: int) -> None:
        self.turns: deque[TurnRecord] = deque(maxlen=limit)
        self.handshakes: deque[Handshake] = deque(maxlen=limit)
        self.sockets: Counter[str] = Counter()
        self._turns = 0
        self._handshakes = 0

    def turn(self, **seen: Any) -> TurnRecord:
        """Open the record of a turn; numbers rise from 1."""
        self._turns += 1
        record = TurnRecord(number=self._turns, **seen)
        self.turns.append(record)
        return record

    def handshake(
        self,
        credential: str | None,
        transport: str,
        headers: Mapping[str, str],
        *,
        status: int | None,
        method: str,
        path: str,
        port: int | None = None,
    ) -> None:
        """Record an upgrade or request; status None means that it never got an answer."""
        self._handshakes += 1
        shown = {name.lower(): value for name, value in headers.items() if name.lower() not in _SECRETS}
        accepted = status is not None and status < 400
        self.handshakes.append(
            Handshake(
                self._handshakes,
                credential,
                transport,
                accepted,
                status,
                shown,
                time.time(),
                method=method,
                path=path,
                port=port,
            )
        )
