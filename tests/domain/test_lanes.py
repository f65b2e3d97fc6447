"""Lanes against a plain oracle: FIFO, 16 in flight, 32 names, bounded waiting, nobody overtaken."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.lanes import MAX_IN_FLIGHT, MAX_NAMES, Lanes, LanesFull
from broker.domain.wire import BadFrame


def test_runs_one_create_of_a_lane_at_a_time_in_order() -> None:
    lanes = Lanes[int]()
    assert [lanes.admit("x", turn) for turn in range(4)] == [True, False, False, False]
    assert [lanes.finished("x") for _ in range(4)] == [[1], [2], [3], []]
    assert lanes.running("x") is None


def test_runs_different_lanes_side_by_side() -> None:
    lanes = Lanes[str]()
    assert lanes.admit(None, "default")
    assert lanes.admit("x", "one")
    assert lanes.all_running() == ["default", "one"]
    assert (lanes.running(None), lanes.running("x"), lanes.running("y")) == ("default", "one", None)


def test_queues_the_17th_and_runs_it_when_any_lane_is_free() -> None:
    lanes = Lanes[int]()
    assert [lanes.admit(f"l{turn}", turn) for turn in range(MAX_IN_FLIGHT + 2)] == [True] * 16 + [False] * 2
    assert lanes.finished("l7") == [16]
    assert lanes.finished("l3") == [17]


def test_nobody_overtakes_who_waits_for_a_free_place() -> None:
    lanes = Lanes[int]()
    for turn in range(MAX_IN_FLIGHT):
        lanes.admit(f"l{turn}", turn)
    lanes.admit("waiting", 100)
    lanes.admit("l0", 101)
    assert lanes.finished("l0") == [100]
    assert lanes.finished("l1") == [101]


def test_refuses_the_33rd_name_and_nothing_else() -> None:
    lanes = Lanes[int]()
    for number in range(MAX_NAMES):
        lanes.admit(f"l{number}", number)
        lanes.finished(f"l{number}")
    with pytest.raises(BadFrame) as refused:
        lanes.admit("one-more", 0)
    assert (refused.value.code, refused.value.param) == ("websocket_stream_limit_reached", "stream_id")
    assert lanes.admit(None, 1)
    assert lanes.admit("l0", 2)


@pytest.mark.parametrize("name", ["", " ", "a b", "ü", "x" * 257, "a\n", "a/b"])
def test_refuses_a_name_that_is_none(name: str) -> None:
    with pytest.raises(BadFrame) as refused:
        Lanes[int]().admit(name, 0)
    assert refused.value.code == "invalid_stream_id"


@pytest.mark.parametrize("name", ["x", "x" * 256, string.ascii_letters + string.digits + "_.-"])
def test_takes_every_valid_name(name: str) -> None:
    assert Lanes[int]().admit(name, 0)


def test_keeps_no_more_waiting_than_it_may() -> None:
    lanes = Lanes[int](max_waiting=2)
    assert [lanes.admit(None, turn) for turn in range(3)] == [True, False, False]
    with pytest.raises(LanesFull):
        lanes.admit(None, 3)
    assert lanes.admit("x", 4)
    assert lanes.finished(None) == [1]
    assert not lanes.admit(None, 5)


def test_nothing_waits_at_a_socket_that_is_gone() -> None:
    lanes = Lanes[int]()
    for turn in range(3):
        lanes.admit(None, turn)
    assert lanes.abandon() == [1, 2]
    assert lanes.abandon() == []
    assert lanes.finished(None) == []
    assert lanes.all_running() == []


def test_a_turn_the_upstream_began_runs_on_its_lane() -> None:
    lanes = Lanes[str]()
    lanes.adopt("x", "successor")
    assert lanes.running("x") == "successor"
    assert not lanes.admit("x", "next")
    assert lanes.finished("x") == ["next"]


def test_a_successor_takes_the_place_of_the_one_that_has_ended() -> None:
    lanes = Lanes[str]()
    lanes.admit("x", "steered")
    lanes.admit("x", "next")
    lanes.adopt("x", "successor")
    assert lanes.all_running() == ["successor"]
    assert lanes.finished("x") == ["next"]


class Oracle:
    """The rules, with no thought for cost: one list of creates in the order they came, and a set of busy lanes."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str | None, int]] = []
        self.busy: dict[str | None, int] = {}

    def admit(self, name: str | None, turn: int) -> bool:
        self.waiting.append((name, turn))
        return turn in self.advance()

    def finished(self, name: str | None) -> list[int]:
        self.busy.pop(name, None)
        return self.advance()

    def advance(self) -> list[int]:
        started = []
        for name, turn in list(self.waiting):
            if name not in self.busy and len(self.busy) < MAX_IN_FLIGHT:
                self.busy[name] = turn
                self.waiting.remove((name, turn))
                started.append(turn)
        return started


NAMES: list[str | None] = [None, *(f"l{number}" for number in range(20))]


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["admit", "admit", "finish"]), st.sampled_from(NAMES)), max_size=120))
def test_does_what_a_plain_oracle_does(steps: list[tuple[str, str | None]]) -> None:
    lanes, oracle = Lanes[int](max_waiting=1000), Oracle()
    for turn, (step, name) in enumerate(steps):
        if step == "admit":
            assert lanes.admit(name, turn) is oracle.admit(name, turn)
        elif name in oracle.busy:
            assert lanes.finished(name) == oracle.finished(name)
        assert {running: lanes.running(running) for running in oracle.busy} == oracle.busy
        assert len(lanes.all_running()) == len(oracle.busy) <= MAX_IN_FLIGHT
    while oracle.busy:
        name = next(iter(oracle.busy))
        assert lanes.finished(name) == oracle.finished(name)
    assert oracle.waiting == []
    assert lanes.abandon() == []
