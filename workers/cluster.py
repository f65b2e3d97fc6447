"""The cluster as its leading worker sees it: who beats, what runs, and how the credentials stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from prometheus_client import Gauge

from broker.domain.credential import Credential
from broker.domain.health import AuthHealth, HealthState, credential_subject, group_subject, pause_subject
from broker.metrics import WorkerMetrics
from broker.store.nodes import NodeBeat


class Cluster:
    """Shows the whole in the metrics of this worker, and takes it away again when another one does."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._shown = False

    def swept(self, counts: Mapping[str, int]) -> None:
        """Count what was removed."""
        for what, count in counts.items():
            self._metrics.removed.inc(what, by=count)

    def show(
        self,
        beats: Mapping[str, NodeBeat],
        rows: Mapping[str, AuthHealth],
        pool: Sequence[Credential],
        now: float,
    ) -> None:
        """Show it. `now` is the store's time in seconds."""
        self._shown = True
        metrics = self._metrics
        edges = [beat.load for beat in beats.values() if beat.role == "edge"]
        roles = Counter(beat.role for beat in beats.values())
        _set(metrics.cluster_nodes, {"edge": roles["edge"], "worker": roles["worker"]})
        sockets = {"client": _total(edges, "sockets"), "upstream": _total(edges, "links")}
        _set(metrics.cluster_sockets, sockets)
        in_flight = Counter({credential.name: 0 for credential in pool})
        for load in edges:
            in_flight.update({name: count for name, count in _counts(load).items() if name in in_flight})
        _set(metrics.cluster_in_flight, in_flight)
        metrics.cluster_states.clear()
        for credential in pool:
            held = state_of(credential, rows, now)
            for state in HealthState:
                metrics.cluster_states.labels(credential.name, state.value).set(state is held)

    def hide(self) -> None:
        """Another worker shows it now."""
        shown, self._shown = self._shown, False
        metrics = self._metrics
        gauges = (metrics.cluster_nodes, metrics.cluster_sockets, metrics.cluster_in_flight, metrics.cluster_states)
        for gauge in gauges if shown else ():
            gauge.clear()


def state_of(credential: Credential, rows: Mapping[str, AuthHealth], now: float) -> HealthState:
    """The gravest state that holds for a credential whatever the model."""
    subjects = (credential_subject(credential), pause_subject(credential), group_subject(credential))
    held = [row.state for subject in subjects if (row := rows.get(subject)) is not None and row.holds(now)]
    return max(held, key=lambda state: state.severity, default=HealthState.HEALTHY)


def _set(gauge: Gauge, values: Mapping[str, int]) -> None:
    gauge.clear()
    for label, value in values.items():
        gauge.labels(label).set(value)


def _total(loads: Sequence[Mapping[str, object]], name: str) -> int:
    return sum(value for load in loads if isinstance(value := load.get(name, 0), int))


def _counts(load: Mapping[str, object]) -> Mapping[str, int]:
    counts = load.get("in_flight")
    return counts if isinstance(counts, Mapping) else {}
