"""What a vendor's own socket would remember, mirrored: the newest of each lane, and what the client has given up."""

from __future__ import annotations

from broker.domain.continuation import Parent
from broker.domain.memory import REMEMBERED, SocketMemory
from broker.domain.transcript import TurnMeta
from tests.domain.playbook import session

OURS = session()


def meta(response_id: str, *, store: bool = False) -> TurnMeta:
    return TurnMeta(f"turn of {response_id}", None, response_id, "a", "north", store)


def remembering(*responses: tuple[str, str | None], store: bool = False) -> SocketMemory:
    memory = SocketMemory()
    for response_id, lane in responses:
        memory.note(response_id, meta(response_id, store=store), OURS, lane)
    return memory


def recalled(memory: SocketMemory, response_id: str) -> Parent:
    found = memory.recall(response_id)
    assert found is not None
    assert found[1] is OURS
    return found[0]


def test_only_the_newest_of_a_lane_is_live() -> None:
    memory = remembering(("one", None), ("two", None), ("three", "fork"))
    assert [recalled(memory, response_id).live for response_id in ("one", "two", "three")] == [False, True, True]
    assert memory.recall("never") is None


def test_what_is_stored_stays_live() -> None:
    assert recalled(remembering(("one", None), ("two", None), store=True), "one").live


def test_knows_the_newest_of_each_lane() -> None:
    memory = remembering(("one", None), ("two", None), ("three", "fork"))
    newest = {lane: memory.newest(lane) for lane in (None, "fork", "other")}
    assert [found and found[0].response_id for found in newest.values()] == ["two", "three", None]


def test_a_failed_continuation_gives_its_parent_up() -> None:
    memory = remembering(("one", None))
    memory.evict(recalled(memory, "one"), None)
    assert memory.evicted("one")
    assert not memory.evicted("two")


def test_a_failed_fork_from_another_lane_keeps_the_shared_parent() -> None:
    memory = remembering(("one", None))
    memory.evict(recalled(memory, "one"), "fork")
    assert not memory.evicted("one")


def test_what_is_stored_or_unknown_is_never_given_up() -> None:
    memory = remembering(("one", None), store=True)
    memory.evict(recalled(memory, "one"), None)
    memory.evict(Parent("unknown", None), None)
    assert not memory.evicted("one")
    assert not memory.evicted("unknown")


def test_a_response_of_another_socket_can_be_given_up() -> None:
    memory = SocketMemory()
    memory.evict(Parent("elsewhere", meta("elsewhere")), None)
    assert memory.evicted("elsewhere")


def test_an_id_that_is_used_again_is_no_longer_given_up() -> None:
    memory = remembering(("one", None))
    memory.evict(recalled(memory, "one"), None)
    memory.note("one", meta("one"), OURS, None)
    assert not memory.evicted("one")


def test_remembers_no_more_than_it_may() -> None:
    memory = remembering(*((f"r{number}", None) for number in range(REMEMBERED + 1)))
    assert memory.recall("r0") is None
    assert memory.recall("r1") is not None
    for number in range(REMEMBERED + 1):
        memory.evict(Parent(f"e{number}", meta(f"e{number}")), None)
    assert not memory.evicted("e0")
    assert memory.evicted("e1")


def test_names_each_session_once() -> None:
    other = session()
    other.sid = "other"
    memory = remembering(("one", None), ("two", None))
    memory.note("three", meta("three"), other, None)
    assert [found for found, _ in memory.sessions()] == [OURS, other]
