"""All metrics of the broker, in one place. Labels are bounded: names of credentials and kinds, never ids of clients.

What a turn counts, it counts in plain integers: a counter of the library costs as much as relaying a frame. The library
hears of it when somebody scrapes, and once a second for the other processes that share a port.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)


class Count:
    """A counter; `inc` takes the values of its labels, in their order."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._counter = Counter(name, text, labels, registry=registry)
        self._new: dict[tuple[str, ...], int] = {}

    def inc(self, *labels: str, by: int = 1) -> None:
        """Count `by` more."""
        self._new[labels] = self._new.get(labels, 0) + by

    def flush(self) -> None:
        """Tell the library."""
        new, self._new = self._new, {}
        for labels, by in new.items():
            (self._counter.labels(*labels) if labels else self._counter).inc(by)


class _Histogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """As many observations as `counts` says for each bucket, the last being all beyond, and their sum."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class Spread:
    """A histogram without labels; `bounds` are the upper ends of its buckets."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, bounds: Sequence[float]) -> None:
        self._histogram = _Histogram(name, text, buckets=bounds, registry=registry)
        self._bounds = [float(bound) for bound in bounds]
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def flush(self) -> None:
        """Tell the library."""
        if any(self._counts):
            self._histogram.add(self._counts, self._total)
            self._counts, self._total = [0] * len(self._counts), 0.0


class Metrics:
    """The metrics of one process, in a registry of their own (several nodes can live in one process)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.turns = Count(self.registry, "broker_turns", "Turns by how they ended.", ["outcome"])
        self.turn_seconds = Spread(
            self.registry,
            "broker_turn_duration_seconds",
            "Seconds from a create frame to the end of its turn.",
            (*_SECONDS, 60, 300, 1800),
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
        self.untapped = Gauge(
            "broker_sockets_untapped",
            "Sockets ever opened that go frame by frame through aiohttp; 0 unless aiohttp is not as expected.",
            ["direction"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.pin_resets = Count(
            self.registry, "broker_pin_resets", "Pins moved to another credential, by reason.", ["reason"]
        )
        self.pin_races = Count(self.registry, "broker_pin_races", "Pin changes that came late and changed nothing.")
        self.failovers = Count(
            self.registry,
            "broker_failovers",
            "Turns moved to another credential, by reason and by how far they had come.",
            ["reason", "phase"],
        )
        self.replays = Count(
            self.registry, "broker_replays", "Turns sent with the rebuilt conversation, by cause.", ["cause"]
        )
        self.replay_bytes = Spread(
            self.registry, "broker_replay_bytes", "Bytes of a rebuilt frame.", (1e3, 1e4, 1e5, 1e6, 4e6, 16e6)
        )
        self.sends = Count(
            self.registry, "broker_dispatches", "Frames sent upstream, by credential and mode.", ["credential", "mode"]
        )
        self.repeats = Count(
            self.registry,
            "broker_ambiguous_replays",
            "Turns sent again although the first sending may have run (and may be billed).",
        )
        self.failures = Count(
            self.registry, "broker_upstream_failures", "Failures by credential and kind.", ["credential", "kind"]
        )
        self.boundary_drops = Count(
            self.registry,
            "broker_boundary_dropped_items",
            "Reasoning items left out because another boundary had encrypted them.",
        )
        self.commits = Count(self.registry, "broker_commits", "Turns written, by result.", ["result"])
        self.commit_seconds = Spread(
            self.registry, "broker_commit_duration_seconds", "Seconds to write a turn.", _SECONDS
        )
        self.hold_seconds = Spread(
            self.registry, "broker_hold_seconds", "Seconds from the first held announcement to its release.", _SECONDS
        )
        self.round_trips = Count(
            self.registry, "broker_store_round_trips", "Round trips to Redis, by what for.", ["operation"]
        )
        self.store_errors = Count(
            self.registry, "broker_store_errors", "Calls to Redis that failed, by reason.", ["reason"]
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
        self.health_reports = Count(
            self.registry, "broker_health_reports", "Reports to the shared health, by state.", ["state"]
        )
        self.hints = Count(self.registry, "broker_health_hints", "Changes of the shared health heard from other nodes.")
        self.waits = Count(self.registry, "broker_placement_waits", "Turns that waited for a credential.")
        self.licences = Count(
            self.registry, "broker_trial_licences", "Licences asked for, to try who was out, by result.", ["result"]
        )
        self.config_reloads = Count(
            self.registry,
            "broker_config_reloads",
            "Readings of the configuration while serving, by result.",
            ["result"],
        )
        self.handshakes = Count(self.registry, "broker_handshakes", "Client handshakes by result.", ["result"])
        self.requests = Count(
            self.registry, "broker_http_requests", "Requests of clients over HTTP that were answered.", ["status"]
        )
        self.requests_open = Gauge(
            "broker_http_requests_open",
            "Requests of clients over HTTP that are being served.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.closes = Count(self.registry, "broker_socket_closes", "Client sockets closed, by code.", ["code"])
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    def flush(self) -> None:
        """Tell the library what was counted since."""
        _flush(self)

    def render(self) -> bytes:
        """The exposition text: of this process, or of all processes that share a port."""
        self.flush()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self.registry)


class WorkerMetrics:
    """The metrics of a worker. Those of the whole cluster are shown by the one that leads the janitor alone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.duty_age = Gauge(
            "broker_duty_age_seconds",
            "Seconds since a step of the duty last went well in this worker; of all workers, the smallest counts.",
            ["duty"],
            registry=self.registry,
        )
        self.duty_leader = Gauge(
            "broker_duty_leader",
            "1 where this worker does the duty; of one that is done alone, the sum of all workers is 1.",
            ["duty"],
            registry=self.registry,
        )
        self.duty_steps = Count(self.registry, "broker_duty_steps", "Steps of duties by result.", ["duty", "result"])
        self.cluster_nodes = Gauge(
            "broker_cluster_nodes", "Processes that beat, by role.", ["role"], registry=self.registry
        )
        self.cluster_sockets = Gauge(
            "broker_cluster_sockets", "Open sockets of all edges, by direction.", ["direction"], registry=self.registry
        )
        self.cluster_in_flight = Gauge(
            "broker_cluster_in_flight", "Turns in flight on all edges.", ["credential"], registry=self.registry
        )
        self.cluster_states = Gauge(
            "broker_cluster_credential_state",
            "1 for the state in which a credential is, for all its models.",
            ["credential", "state"],
            registry=self.registry,
        )
        self.probes = Count(
            self.registry, "broker_probes", "Probes sent upstream, by credential and result.", ["credential", "result"]
        )
        self.health_events = Count(
            self.registry, "broker_health_events", "Changes of health: recorded, again, missed.", ["result"]
        )
        self.webhook_posts = Count(
            self.registry,
            "broker_webhook_posts",
            "Changes owed to webhooks: sent, failed, capped, full, late.",
            ["hook", "result"],
        )
        self.removed = Count(self.registry, "broker_janitor_removed", "What the janitor has put right.", ["what"])
        self.config_reloads = Count(
            self.registry,
            "broker_config_reloads",
            "Readings of the configuration, by result.",
            ["result"],
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def flush(self) -> None:
        """Tell the library what was counted since."""
        _flush(self)

    def render(self) -> bytes:
        """The exposition text."""
        self.flush()
        return generate_latest(self.registry)


def _flush(metrics: object) -> None:
    for metric in vars(metrics).values():
        if isinstance(metric, Count | Spread):
            metric.flush()
