"""What is counted in plain integers reads like what the library would have counted itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

from broker.metrics import Count, Metrics, Spread

BOUNDS = (0.001, 0.5, 1, 10)

BRIEF = """
import asyncio
from broker.domain.credential import Credential, Secret
from broker.edge.access import Tenant
from broker.edge.node import Node, StoreSettings

async def main():
    credential = Credential("A", "http://127.0.0.1:1", Secret("sk-A"), boundary="org-a")
    store = StoreSettings("unix:///nowhere/at/all")
    node = Node("n", tenants=[Tenant("t", (b"x" * 32,))], credentials=[credential], store=store)
    await node.start()
    node.metrics.turns.inc("completed", by=7)
    node.metrics.commit_seconds.observe(0.2)
    await node.stop()

asyncio.run(main())
"""
"""A process whose node counts something, and stops at once."""


def samples(registry: CollectorRegistry) -> list[str]:
    """The exposition without the times at which metrics were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS), max_size=20), max_size=4))
def test_a_spread_reads_like_a_histogram(rounds: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spread, histogram = Spread(ours, "s", "text", BOUNDS), Histogram("s", "text", buckets=BOUNDS, registry=theirs)
    total = 0.0
    for values in rounds:
        for value in values:
            spread.observe(value)
        spread.flush()
        # summed in the same order: the last digits depend on it
        total += sum(values)
        for value in values:
            histogram.observe(value)
    got = [line for line in samples(ours) if not line.startswith("s_sum")]
    assert got == [line for line in samples(theirs) if not line.startswith("s_sum")]
    (line,) = [line for line in samples(ours) if line.startswith("s_sum")]
    assert abs(float(line.split()[1]) - total) < 1e-6


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 3)), max_size=30))
def test_a_count_reads_like_a_counter(counted: list[tuple[str, str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    count, counter = Count(ours, "c", "text", ["one", "two"]), Counter("c", "text", ["one", "two"], registry=theirs)
    for number, (one, two, by) in enumerate(counted):
        count.inc(one, two, by=by)
        counter.labels(one, two).inc(by)
        if number % 7 == 0:
            count.flush()
    count.flush()
    assert sorted(samples(ours)) == sorted(samples(theirs))


def test_rendering_shows_what_was_counted_a_moment_ago_and_counts_it_once() -> None:
    metrics = Metrics()
    metrics.turns.inc("completed")
    metrics.turn_seconds.observe(0.2)
    metrics.pin_races.inc()
    for _ in range(2):
        text = metrics.render().decode()
        assert 'broker_turns_total{outcome="completed"} 1.0' in text
        assert "broker_turn_duration_seconds_count 1.0" in text
        assert "broker_pin_races_total 1.0" in text


def test_what_a_process_counted_last_is_there_when_its_node_has_stopped(tmp_path: Path) -> None:
    # the library chooses where it keeps its values when it is imported, so this needs a process of its own
    environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", BRIEF], env=environ, check=True, timeout=20)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
    text = generate_latest(registry).decode()
    assert 'broker_turns_total{outcome="completed"} 7.0' in text
    assert "broker_commit_duration_seconds_count 1.0" in text
