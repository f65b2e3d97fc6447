"""All metrics of the broker, in one place. Labels are bounded: names of credentials and kinds, never ids of clients."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The metrics of one process, in a registry of their own (several nodes can live in one process)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.turns = Counter("broker_turns", "Turns by how they ended.", ["outcome"], registry=self.registry)
        self.turn_seconds = Histogram(
            "broker_turn_duration_seconds",
            "Seconds from a create frame to the end of its turn.",
            buckets=(*_SECONDS, 60, 300, 1800),
            registry=self.registry,
        )
        self.sessions = Gauge(
            "broker_sessions",
            "Sessions with an open client socket.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.sockets = Gauge(
            "broker_sockets",
            "Open sockets by direction.",
            ["direction"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.links_ordinary = Gauge(
            "broker_links_ordinary",
            "Upstream sockets opened without the fast passage; 0 unless aiohttp is not as expected.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.pin_resets = Counter(
            "broker_pin_resets", "Pins moved to another credential, by reason.", ["reason"], registry=self.registry
        )
        self.pin_races = Counter(
            "broker_pin_races", "Pin changes that came late and changed nothing.", registry=self.registry
        )
        self.failovers = Counter(
            "broker_failovers",
            "Turns moved to another credential, by reason and by how far they had come.",
            ["reason", "phase"],
            registry=self.registry,
        )
        self.replays = Counter(
            "broker_replays", "Turns sent with the rebuilt conversation, by cause.", ["cause"], registry=self.registry
        )
        self.replay_bytes = Histogram(
            "broker_replay_bytes",
            "Bytes of a rebuilt frame.",
            buckets=(1e3, 1e4, 1e5, 1e6, 4e6, 16e6),
            registry=self.registry,
        )
        self.sends = Counter(
            "broker_dispatches",
            "Frames sent upstream, by credential and mode.",
            ["credential", "mode"],
            registry=self.registry,
        )
        self.repeats = Counter(
            "broker_ambiguous_replays",
            "Turns sent again although the first sending may have run (and may be billed).",
            registry=self.registry,
        )
        self.failures = Counter(
            "broker_upstream_failures",
            "Failures by credential and kind.",
            ["credential", "kind"],
            registry=self.registry,
        )
        self.boundary_drops = Counter(
            "broker_boundary_dropped_items",
            "Reasoning items left out because another boundary had encrypted them.",
            registry=self.registry,
        )
        self.commits = Counter("broker_commits", "Turns written, by result.", ["result"], registry=self.registry)
        self.commit_seconds = Histogram(
            "broker_commit_duration_seconds", "Seconds to write a turn.", buckets=_SECONDS, registry=self.registry
        )
        self.hold_seconds = Histogram(
            "broker_hold_seconds",
            "Seconds from the first held announcement to its release.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.round_trips = Counter(
            "broker_store_round_trips", "Round trips to Redis, by what for.", ["operation"], registry=self.registry
        )
        self.store_errors = Counter(
            "broker_store_errors", "Calls to Redis that failed, by reason.", ["reason"], registry=self.registry
        )
        self.journal = Gauge(
            "broker_journal_turns",
            "Turns waiting in memory to be written.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.health_state = Gauge(
            "broker_health_blocked",
            "1 while selection passes a credential over for its health.",
            ["credential", "state"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.health_reports = Counter(
            "broker_health_reports", "Reports to the shared health, by state.", ["state"], registry=self.registry
        )
        self.handshakes = Counter(
            "broker_handshakes", "Client handshakes by result.", ["result"], registry=self.registry
        )
        self.closes = Counter(
            "broker_socket_closes", "Client sockets closed, by code.", ["code"], registry=self.registry
        )
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    def render(self) -> bytes:
        """The exposition text: of this process, or of all processes that share a port."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self.registry)
