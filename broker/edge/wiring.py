"""What a node's sockets and turns share."""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.domain.turn import Policy
from broker.edge.health import HealthBoard
from broker.edge.placement import Placement
from broker.edge.pulse import Pulse
from broker.edge.sessions import Sessions
from broker.metrics import Metrics
from broker.store.journal import Journal
from broker.store.sessions import SessionStore
from broker.upstream.dialer import Dialer


@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds a node's work: times in seconds, sizes in bytes. The configuration says what each is for."""

    hold: float = 3.0
    first_event: float = 60.0
    silence: float = 120.0
    answer: float = 600.0
    quiet: float = 15.0
    send_timeout: float = 30.0
    leave: float = 10.0
    heartbeat: float = 20.0
    handshake: float = 10.0
    request: float = 60.0
    max_frame: int = 16 * 1024 * 1024
    max_sockets: int = 2000
    lane_queue: int = 64
    transcript: bool = True
    tap: bool = True


@dataclass(frozen=True, slots=True)
class Wiring:
    """The rooms of one node, as its sockets and turns reach them."""

    policy: Policy
    bounds: Bounds
    metrics: Metrics
    health: HealthBoard
    placement: Placement
    sessions: Sessions
    store: SessionStore
    journal: Journal
    dialer: Dialer
    pulse: Pulse
    chance: random.Random
