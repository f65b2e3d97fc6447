"""The transcript: the committed turns of a session, each linked to the turn it continued.

Rules that hold here:
- A turn is written once and never rewritten. Its key is its own random id, so writing it twice changes nothing.
- A turn names its parent by turn id, not by response id: some vendors reuse response ids, turn ids make no cycles.
- Items are kept as the bytes that were on the wire; nothing is parsed to be written again.
- Only `.done` items of a response that ended well are part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from broker.domain.wire import COMPACTIONS, items_bind


class TurnMeta(msgspec.Struct, frozen=True):
    """What is known of a committed turn without its items.

    `kept` is False where the items were not recorded (transcripts off, or the session is over its cap): such a turn
    can be continued by the credential that served it, but never rebuilt.
    """

    turn_id: str
    parent: str | None
    response_id: str
    credential: str
    boundary: str
    store: bool
    kept: bool = True
    rooted: bool = True
    """False where the turn leans on a response the broker has never seen: its chain has no known root."""


class TurnItems(msgspec.Struct, frozen=True):
    """The items of one turn: two JSON arrays, as bytes that were on the wire."""

    inputs: bytes = b"[]"
    outputs: bytes = b"[]"

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.inputs) + len(self.outputs)


class StoredTurn(msgspec.Struct, frozen=True):
    """A committed turn with its items."""

    meta: TurnMeta
    items: TurnItems


class Commit(msgspec.Struct, frozen=True):
    """One turn on its way into the store, with all that changes along with it.

    `epoch` and `nonce` name the pin under which the turn ran: if it is still the session's pin,
    `incremental_disabled` is cleared. `minted` are the digests of reasoning ciphertext this turn brought forth.
    """

    sid: str
    name: str
    tenant: str
    meta: TurnMeta
    items: TurnItems
    epoch: int
    nonce: str
    because: str
    minted: tuple[str, ...] = ()


class _Peek(msgspec.Struct):
    type: str = ""
    encrypted_content: str | None = None
    id: str | None = None


_items = msgspec.json.Decoder(list[msgspec.Raw])
_peek = msgspec.json.Decoder(_Peek)


def split(array: bytes | msgspec.Raw) -> list[bytes]:
    """The elements of a JSON array as the bytes they are; raises `msgspec.DecodeError` where it is none."""
    return [bytes(raw) for raw in _items.decode(array)]


def mint_digest(encrypted_content: str) -> str:
    """A short name of a piece of ciphertext, so that its origin can be remembered without keeping it."""
    return hashlib.sha256(encrypted_content.encode()).hexdigest()[:16]


def minted(outputs: Iterable[bytes]) -> tuple[str, ...]:
    """The digests of all reasoning ciphertext among these items."""
    found = []
    for item in outputs:
        if b'"encrypted_content"' in item:
            peek = _peek.decode(item)
            if peek.encrypted_content:
                found.append(mint_digest(peek.encrypted_content))
    return tuple(found)


class Rebuilt(msgspec.Struct, frozen=True):
    """The whole input of a turn: a JSON array, and how many reasoning items could not come along."""

    input: bytes
    dropped: int
    turns: int


class Immovable(Exception):
    """This content cannot leave its boundary; the message says what binds it, `boundary` where it lives, if known."""

    def __init__(self, why: str, boundary: str | None) -> None:
        super().__init__(why)
        self.boundary = boundary


def rebuild(
    chain: Sequence[StoredTurn], own_input: bytes, *, boundary: str, origins: Mapping[str, str] | None = None
) -> Rebuilt:
    """The input that carries a whole conversation: the items of `chain`, root first, then `own_input`.

    Every item is there exactly once and in order. Reasoning whose ciphertext belongs to another boundary than
    `boundary` is left out whole, never only in part between a call and its output; for the client's own input
    `origins` (digest -> boundary) tells where a ciphertext came from, None meaning that nothing is foreign.
    Raises `Immovable` for what lives in the project of another boundary, a compaction item among it.
    """
    parts: list[bytes] = []
    dropped = 0
    for turn in chain:
        home = turn.meta.boundary
        for array in (turn.items.inputs, turn.items.outputs):
            if home != boundary and (why := items_bind(array)):
                raise Immovable(f"the conversation holds {why}", home)
            kept, lost = _carry(array, boundary, origins, home)
            parts.extend(kept)
            dropped += lost
    kept, lost = _carry(own_input, boundary, origins, boundary)
    parts.extend(kept)
    return Rebuilt(b"[" + b",".join(parts) + b"]", dropped + lost, len(chain))


def _carry(array: bytes, boundary: str, origins: Mapping[str, str] | None, home: str) -> tuple[list[bytes], int]:
    all_at_home = origins is None and home == boundary
    if all_at_home or not (b'"reasoning"' in array or b'"compaction' in array):
        inner = array.strip()[1:-1].strip()
        return ([inner] if inner else []), 0
    kept, lost = [], 0
    for item in split(array):
        if _is_foreign(item, boundary, origins, home):
            lost += 1
        else:
            kept.append(item)
    return kept, lost


def _is_foreign(item: bytes, boundary: str, origins: Mapping[str, str] | None, home: str | None) -> bool:
    peek = _peek.decode(item)
    if peek.type != "reasoning" and peek.type not in COMPACTIONS:
        return False
    if peek.encrypted_content and origins is not None:
        home = origins.get(mint_digest(peek.encrypted_content))
    if home != boundary and peek.type in COMPACTIONS:
        # its ciphertext *is* the context (protocol.md 8.7): leaving it out would be silent amnesia
        raise Immovable("the conversation holds a compaction item", home)
    return home != boundary
