"""The transcript: a rebuilt conversation holds every item once, in order, and nothing that cannot be read there."""

from __future__ import annotations

import json
from collections.abc import Iterable

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.transcript import (
    Immovable,
    Rebuilt,
    StoredTurn,
    TurnItems,
    TurnMeta,
    mint_digest,
    minted,
    rebuild,
    split,
)


def array(*items: bytes) -> bytes:
    return b"[" + b",".join(items) + b"]"


def turn(inputs: Iterable[bytes] = (), outputs: Iterable[bytes] = (), boundary: str = "north") -> StoredTurn:
    meta = TurnMeta("t", None, "resp", "a", boundary, False)
    return StoredTurn(meta, TurnItems(array(*inputs), array(*outputs)))


def message(text: str) -> bytes:
    return b'{"type": "message","n":1.0,"content":%b}' % orjson.dumps(text)


def reasoning(ciphertext: str | None = None) -> bytes:
    fields: dict[str, object] = {"type": "reasoning", "id": "rs_1", "summary": []}
    return orjson.dumps(fields if ciphertext is None else {**fields, "encrypted_content": ciphertext})


def compaction(ciphertext: str, type: str = "compaction") -> bytes:
    return orjson.dumps({"type": type, "id": "cmp_1", "encrypted_content": ciphertext})


CALL = b'{"type":"function_call","call_id":"c1","arguments":"{}"}'
OUTPUT = b'{"type":"function_call_output","call_id":"c1","output":"\\"reasoning\\""}'
ONE, TWO, THREE = message("one"), message("two"), message("three")


def test_carries_everything_once_and_in_order() -> None:
    chain = [turn([ONE], [CALL]), turn([OUTPUT], [TWO])]
    assert rebuild(chain, array(THREE), boundary="north") == Rebuilt(array(ONE, CALL, OUTPUT, TWO, THREE), 0, 2)


def test_a_conversation_of_nothing_is_an_empty_array() -> None:
    assert rebuild([], b"[]", boundary="north") == Rebuilt(b"[]", 0, 0)
    assert rebuild([turn(), turn()], b" [ ] ", boundary="north").input == b"[]"


def test_a_warm_up_contributes_its_input_alone() -> None:
    assert rebuild([turn([ONE]), turn([], [TWO])], b"[]", boundary="north").input == array(ONE, TWO)


def test_keeps_reasoning_inside_its_boundary() -> None:
    chain = [turn([ONE], [reasoning("secret"), CALL])]
    rebuilt = rebuild(chain, array(OUTPUT), boundary="north")
    assert rebuilt == Rebuilt(array(ONE, reasoning("secret"), CALL, OUTPUT), 0, 1)


def test_drops_foreign_reasoning_whole_and_nothing_else() -> None:
    chain = [
        turn([ONE], [reasoning("n1"), reasoning(), CALL], "north"),
        turn([OUTPUT], [reasoning("s1"), TWO], "south"),
    ]
    assert rebuild(chain, array(THREE), boundary="south") == Rebuilt(
        array(ONE, CALL, OUTPUT, reasoning("s1"), TWO, THREE), 2, 2
    )
    assert rebuild(chain, array(THREE), boundary="west") == Rebuilt(array(ONE, CALL, OUTPUT, TWO, THREE), 3, 2)


@pytest.mark.parametrize("type", ["compaction", "compaction_summary"])
def test_a_compaction_item_cannot_leave_its_boundary(type: str) -> None:
    for chain in ([turn([ONE], [compaction("x", type)])], [turn([compaction("x", type)], [ONE])]):
        assert rebuild(chain, b"[]", boundary="north").dropped == 0
        with pytest.raises(Immovable):
            rebuild(chain, b"[]", boundary="south")


@pytest.mark.parametrize(
    "item", [b'{"type":"item_reference","id":"m"}', b'{"type":"message","content":[{"file_id":"f"}]}']
)
def test_what_lives_in_a_project_cannot_leave_its_boundary(item: bytes) -> None:
    assert rebuild([turn([item])], b"[]", boundary="north").input == array(item)
    with pytest.raises(Immovable):
        rebuild([turn([item])], b"[]", boundary="south")


# --- the client's own input, whose origin only its ciphertext tells ---

ORIGINS = {mint_digest("n"): "north", mint_digest("s"): "south"}


def test_keeps_own_reasoning_when_nothing_is_foreign() -> None:
    own = array(ONE, reasoning("anything"), TWO)
    assert rebuild([], own, boundary="north", origins=None) == Rebuilt(own, 0, 0)


def test_drops_own_reasoning_of_another_boundary() -> None:
    own = array(ONE, reasoning("n"), CALL, OUTPUT, reasoning("s"), TWO)
    north = rebuild([], own, boundary="north", origins=ORIGINS)
    assert north == Rebuilt(array(ONE, reasoning("n"), CALL, OUTPUT, TWO), 1, 0)
    assert rebuild([], own, boundary="south", origins=ORIGINS).input == array(ONE, CALL, OUTPUT, reasoning("s"), TWO)


def test_drops_all_ciphertext_when_no_origin_is_trusted() -> None:
    own, chain = array(reasoning("n"), ONE), [turn([TWO], [reasoning("n"), THREE])]
    assert rebuild(chain, own, boundary="north", origins={}) == Rebuilt(array(TWO, THREE, ONE), 2, 1)


def test_own_compaction_of_another_boundary_is_immovable() -> None:
    own = array(compaction("n"), ONE)
    assert rebuild([], own, boundary="north", origins=ORIGINS).input == own
    with pytest.raises(Immovable):
        rebuild([], own, boundary="south", origins=ORIGINS)


def test_trusts_an_origin_more_than_the_turn_it_came_in() -> None:
    chain = [turn([reasoning("n"), ONE], [reasoning("s"), TWO], "south")]
    assert rebuild(chain, b"[]", boundary="north", origins=ORIGINS).input == array(reasoning("n"), ONE, TWO)


# --- the bytes ---


def test_splits_an_array_into_the_bytes_it_is_made_of() -> None:
    assert split(b'[ {"a":1.0} , 2e5,"x" ]') == [b'{"a":1.0}', b"2e5", b'"x"']


def test_minted_names_every_piece_of_ciphertext_and_keeps_none() -> None:
    items = [ONE, reasoning("x"), reasoning(), CALL, compaction("y"), b'{"encrypted_content":null}']
    assert minted(items) == (mint_digest("x"), mint_digest("y"))
    assert "x" not in mint_digest("x" * 40)
    assert mint_digest("x") != mint_digest("y")


ITEMS = [
    ONE,
    TWO,
    CALL,
    OUTPUT,
    reasoning("n"),
    reasoning("s"),
    reasoning(),
    b'{"odd":1e400, "s":"\\u00e9 \\"reasoning\\""}',
    b'{"type":"unknown_to_all","x":[ ]}',
]
turns = st.tuples(
    st.lists(st.sampled_from(ITEMS), max_size=4),
    st.lists(st.sampled_from(ITEMS), max_size=4),
    st.sampled_from(["north", "south"]),
)


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(st.lists(turns, max_size=5), st.lists(st.sampled_from(ITEMS), max_size=3), st.sampled_from(["north", "south"]))
def test_whatever_is_rebuilt_is_the_chain_less_foreign_reasoning(
    chain: list[tuple[list[bytes], list[bytes], str]], own: list[bytes], boundary: str
) -> None:
    def stays(item: bytes, where: str) -> bool:
        return b'"type":"reasoning"' not in item or where == boundary

    everything = [(item, where) for inputs, outputs, where in chain for item in [*inputs, *outputs]]
    kept = [item for item, where in everything if stays(item, where)] + own
    rebuilt = rebuild([turn(*each) for each in chain], array(*own), boundary=boundary)
    assert rebuilt.input == array(*kept)
    assert rebuilt.dropped == len(everything) + len(own) - len(kept)
    assert split(rebuilt.input) == kept


def test_odd_arrays_from_the_wire_are_joined_as_they_are() -> None:
    stored = StoredTurn(TurnMeta("t", None, "r", "a", "north", False), TurnItems(b' [ {"a" : 1} ,2 ] ', b"[\n]"))
    rebuilt = rebuild([stored], b'[{"b":1}]', boundary="north")
    assert json.loads(rebuilt.input) == [{"a": 1}, 2, {"b": 1}]
