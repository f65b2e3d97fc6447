"""The table of endpoints: what holds for all of them."""

from __future__ import annotations

from broker.domain import endpoints
from broker.domain.endpoints import DONE, PASSED_ON, RESPONSES, Endpoint
from broker.domain.wire import EventKind, event_kind, event_type

ALL = [each for each in vars(endpoints).values() if isinstance(each, Endpoint)]


def test_the_table_holds_every_endpoint_once() -> None:
    assert {each.path for each in ALL} == {RESPONSES.path, *(each.path for each in PASSED_ON)}
    assert len({each.path for each in ALL}) == len(ALL) == len(PASSED_ON) + 1


def test_only_responses_are_turns_of_a_session() -> None:
    assert [each for each in ALL if each.conversing] == [RESPONSES]


def test_paths_stand_below_the_root_of_an_endpoint() -> None:
    assert all(each.path.strip("/") == each.path and each.path.isascii() for each in ALL)


def test_the_end_of_a_stream_by_chunks_is_an_event_that_ends_nothing_of_the_responses_api() -> None:
    assert (event_type(DONE), event_kind(DONE)) == ("[DONE]", EventKind.OUTPUT)
