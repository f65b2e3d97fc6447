"""Sessions in Redis: the pin, which moves by compare-and-set, and the transcript, which is only ever appended to.

There is no owner and no lease. A late node is answered what is true now, and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from broker.domain.session import Pin, Session, derive_rid
from broker.domain.transcript import Commit, StoredTurn, TurnItems, TurnMeta
from broker.store import keys, scripts
from broker.store.codec import CHUNK, THREAD_FROM, Codec, Unreadable
from broker.store.connection import BULKY, REFUSED, Command, Connection, StoreUnavailable, call, command
from broker.store.owners import Owner, OwnerStore

MAX_CHAIN = 100_000
"""Turns after which a chain is no longer followed."""

CHAIN_PAGE = 1000
FETCH_BYTES = 4 << 20
FETCH_FIELDS = 64
"""What one command may ask for at most, so that no answer holds up the server."""


class ChainBroken(Exception):
    """The input of a turn cannot be rebuilt; `reason` says why, and never holds anything of the content."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Moved(msgspec.Struct, frozen=True):
    """The pin is now this one."""

    pin: Pin


class Stale(msgspec.Struct, frozen=True):
    """Somebody else moved the pin first (None: there is none any more); nothing was changed."""

    pin: Pin | None
    incremental_disabled: bool


class Committed(msgspec.Struct, frozen=True):
    """A turn is written (`duplicate`: it already was), and this is the session's pin.

    `kept` is False where the items were not recorded: the turn can be continued, but never rebuilt.
    """

    status: Literal["ok", "duplicate"]
    pin: Pin
    incremental_disabled: bool
    kept: bool


class _Record(msgspec.Struct, omit_defaults=True):
    """The meta of a turn as it is stored; `chunks` and `size` say what there is to fetch."""

    response_id: str
    credential: str
    boundary: str
    parent: str | None = None
    store: bool = False
    kept: bool = True
    rooted: bool = True
    chunks: int = 0
    size: int = 0

    def meta(self, turn_id: str) -> TurnMeta:
        return TurnMeta(
            turn_id,
            self.parent,
            self.response_id,
            self.credential,
            self.boundary,
            self.store,
            kept=self.kept,
            rooted=self.rooted,
        )


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Record).decode


class SessionStore:
    """The sessions of all nodes. Every method may raise `StoreUnavailable`.

    `owners` hears of every response that its vendor stores. `idle_ttl` (seconds) is how long a session outlives its
    last sign of life, `max_transcript` how many bytes (as stored) its items may have.
    """

    def __init__(
        self,
        connection: Connection,
        codec: Codec,
        owners: OwnerStore | None = None,
        *,
        idle_ttl: float,
        max_transcript: int,
    ) -> None:
        self._connection = connection
        self._owners = owners
        self._codec = codec
        self._ttl = max(1, round(idle_ttl * 1000))
        self._max_transcript = max_transcript
        self._encoding: set[asyncio.Task[None]] = set()

    async def load(self, sid: str) -> Session | None:
        """The session as it is now, None if it is unknown. One round trip."""
        (answer,) = await self._connection.ask(command("HGETALL", keys.session(sid)), read=True)
        if not answer:
            return None
        fields = {_text(field): _text(value) for field, value in answer.items()}
        return Session(
            sid,
            fields["name"],
            fields["tenant"],
            pin=_pin(*(fields.get(field, "") for field in ("epoch", "nonce", "credential", "because"))),
            incremental_disabled=fields.get("incremental_disabled") == "1",
            boundaries=frozenset(field[2:] for field in fields if field.startswith("b:")),
            turns=int(fields.get("turns", 0)),
            closed=fields.get("closed") == "1",
            reuses_ids=fields.get("reuses_ids") == "1",
        )

    async def move_pin(self, sid: str, name: str, tenant: str, expected: Pin | None, to: Pin) -> Moved | Stale:
        """Bind the session to `to`, provided that its pin is still `expected` (None or epoch 0: that it has none).

        The store sets the epoch; `to.nonce` must be new. Safe to repeat after a lost answer. One round trip.
        """
        if expected is not None and expected.nonce == to.nonce:
            raise ValueError("a new pin needs a nonce of its own")
        epoch, nonce = (expected.epoch, expected.nonce) if expected is not None else (0, "")
        args = (self._ttl, name, tenant, epoch, nonce, to.nonce, to.credential, to.because)
        answer = [_text(field) for field in await self._connection.run(scripts.MOVE_PIN, keys.of_session(sid), args)]
        pin = _pin(*answer[1:5])
        if answer[0] == "moved" and pin is not None:
            return Moved(pin)
        return Stale(pin, answer[5] == "1")

    async def commit(self, commit: Commit) -> Committed:
        """Append a turn. Written twice it is written once, so it is safe to repeat. One round trip."""
        answer: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self.submit(commit, partial(_settle, answer))
        try:
            return await answer
        finally:
            del answer  # its exception holds this frame, and shall not be held by it

    def submit(self, commit: Commit, then: Callable[[Committed | Exception], None]) -> None:
        """The same for callers without a task: `then` is called from the loop, with `StoreUnavailable` if it failed."""
        meta = commit.meta
        if not meta.kept:
            self._write(commit, [], then)
        elif commit.items.size <= THREAD_FROM:
            self._write(commit, self._codec.encode(commit.sid, meta.turn_id, commit.items), then)
        else:
            encoding = asyncio.create_task(self._encode_large(commit, then))
            self._encoding.add(encoding)
            encoding.add_done_callback(self._encoding.discard)

    async def _encode_large(self, commit: Commit, then: Callable[[Committed | Exception], None]) -> None:
        try:
            chunks = await asyncio.to_thread(self._codec.encode, commit.sid, commit.meta.turn_id, commit.items)
            self._write(commit, chunks, then)
        except Exception as error:  # noqa: BLE001 - whoever waits shall hear of it
            then(error)

    def _write(self, commit: Commit, chunks: Sequence[bytes], then: Callable[[Committed | Exception], None]) -> None:
        size = sum(map(len, chunks))
        response_id = commit.meta.response_id
        rid = derive_rid(commit.tenant, response_id) if response_id else ""
        commands = [call(scripts.COMMIT, keys.of_session(commit.sid), self._commit_args(commit, rid, chunks, size))]
        if rid:
            commands.append(command("SET", keys.response(rid), commit.sid, "PX", self._ttl))
            if commit.meta.store and self._owners is not None:
                # the vendor keeps the response for longer than we keep the session
                owner = Owner(commit.meta.credential, commit.meta.boundary)
                commands.append(self._owners.noting(commit.tenant, response_id, owner))

        def answered(answers: list[Any] | StoreUnavailable) -> None:
            then(answers if isinstance(answers, StoreUnavailable) else _committed(answers[0]))

        self._connection.submit(commands, answered, bulky=size > BULKY)

    def _commit_args(
        self, commit: Commit, rid: str, chunks: Sequence[bytes], size: int
    ) -> tuple[str | bytes | int, ...]:
        meta, count = commit.meta, len(chunks)
        record = _Record(
            meta.response_id,
            meta.credential,
            meta.boundary,
            meta.parent,
            meta.store,
            meta.kept,
            meta.rooted,
            count,
            size,
        )
        return (
            self._ttl,
            commit.name,
            commit.tenant,
            meta.turn_id,
            _encode(record),
            size,
            self._max_transcript,
            meta.response_id,
            rid,
            int(meta.store),
            meta.boundary,
            commit.epoch,
            commit.nonce,
            meta.credential,
            commit.because,
            count,
            *chunks,
            *commit.minted,
        )

    async def find(self, sid: str, response_id: str) -> TurnMeta | None:
        """The newest turn of the session that answered under `response_id`. One round trip."""
        _, turns, ids = keys.of_session(sid)
        answer = await self._connection.run(scripts.FIND, (turns, ids), (response_id,), read=True)
        return _decode(answer[1]).meta(_text(answer[0])) if answer else None

    async def locate(self, tenant: str, response_id: str) -> str | None:
        """The session that a response of this tenant belongs to. One round trip."""
        key = keys.response(derive_rid(tenant, response_id))
        (sid,) = await self._connection.ask(command("GET", key), read=True)
        return None if sid is None else _text(sid)

    async def chain(self, sid: str, turn_id: str) -> list[StoredTurn]:
        """The turn and all that it builds on, root first; raises `ChainBroken` unless every one can be rebuilt."""
        records = await self._walk(sid, turn_id)
        if not records[-1][1].rooted:
            raise ChainBroken("its root is not known")
        turns = []
        for part in _portions(records[::-1]):
            turns += await self._fetch(sid, part)
        return turns

    async def _walk(self, sid: str, turn_id: str) -> list[tuple[str, _Record]]:
        found: dict[str, _Record] = {}
        at: str | None = turn_id
        while at is not None:
            if at in found:
                raise ChainBroken("it leads back to itself")
            if len(found) >= MAX_CHAIN:
                raise ChainBroken("too long")
            page = await self._connection.run(scripts.CHAIN, (keys.turns(sid),), (at, CHAIN_PAGE), read=True)
            for name, raw in zip(page[::2], page[1::2], strict=True):
                record = _sound(raw)
                found[_text(name)] = record
                at = record.parent
        return list(found.items())

    async def _fetch(self, sid: str, part: Sequence[tuple[str, _Record]]) -> list[StoredTurn]:
        wanted = [f"{turn_id}:{i}" for turn_id, record in part for i in range(record.chunks)]
        bulky = sum(record.size for _, record in part) > BULKY
        answers = await self._connection.ask(*_chunk_commands(keys.turns(sid), wanted), read=True, bulky=bulky)
        chunks = iter([chunk for answer in answers for chunk in answer])
        turns = []
        for turn_id, record in part:
            own = [next(chunks) for _ in range(record.chunks)]
            turns.append(StoredTurn(record.meta(turn_id), await self._read(sid, turn_id, own)))
        return turns

    async def _read(self, sid: str, turn_id: str, chunks: Sequence[bytes | None]) -> TurnItems:
        whole = [chunk for chunk in chunks if chunk is not None]
        if len(whole) < len(chunks):
            raise ChainBroken("items of a turn are missing")
        try:
            if sum(map(len, whole)) > THREAD_FROM:
                return await asyncio.to_thread(self._codec.decode, sid, turn_id, whole)
            return self._codec.decode(sid, turn_id, whole)
        except Unreadable as error:
            raise ChainBroken(f"unreadable: {error}") from error

    async def origins(self, sid: str) -> dict[str, str]:
        """Which boundary minted which reasoning ciphertext (digest -> boundary). One round trip."""
        (answer,) = await self._connection.ask(command("HGETALL", keys.ids(sid)), read=True)
        fields = ((_text(field), _text(value)) for field, value in answer.items())
        return {field[2:]: value for field, value in fields if field.startswith("e:")}

    async def close_cleanly(self, sid: str, last_turn: str = "") -> bool:
        """The client itself closed a session that has no name of its own; True if nothing is left of it.

        A session with stored responses stays, and is marked closed. Where `last_turn` is given and is no longer the
        last, another socket has gone on with the session, and nothing is changed. One round trip.
        """
        answer = await self._connection.run(scripts.CLOSE_SESSION, keys.of_session(sid), (last_turn,))
        return bool(answer == b"deleted")

    async def touch(self, sids: Iterable[str]) -> None:
        """A sign of life of these sessions: everything of them, and the index of their last response, lives on."""
        known = list(sids)
        if not known:
            return
        wanted = (command("HGET", keys.session(sid), "last_response") for sid in known)
        last = await self._connection.ask(*wanted, read=True)
        touched = [key for sid in known for key in keys.of_session(sid)]
        touched += [keys.response(_text(rid)) for rid in last if rid]
        await self._connection.ask(*(command("PEXPIRE", key, self._ttl) for key in touched), read=True)

    async def forget_response(self, tenant: str, response_id: str) -> None:
        """Nothing continues this response any more: its client has deleted it. Two round trips."""
        index = keys.response(derive_rid(tenant, response_id))
        (sid,) = await self._connection.ask(command("GET", index), read=True)
        if sid is not None:
            forgotten = command("HDEL", keys.ids(_text(sid)), f"r:{response_id}")
            await self._connection.ask(forgotten, command("UNLINK", index), read=True)

    async def delete(self, sid: str) -> None:
        """Forget a session at once."""
        await self._connection.ask(command("UNLINK", *keys.of_session(sid)))

    async def ping(self) -> None:
        """Returns if the store answers."""
        await self._connection.ping()


def _settle(answer: asyncio.Future[Committed], outcome: Committed | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _committed(answer: Any) -> Committed | StoreUnavailable:
    try:
        status, epoch, nonce, credential, because, disabled, kept = answer
        pin = Pin(credential.decode(), int(epoch), nonce.decode(), because.decode())
    except Exception:  # noqa: BLE001 - whatever it is, whoever waits shall hear of it
        # asked again it would say the same: nothing may wait for it
        return StoreUnavailable(REFUSED)
    return Committed("duplicate" if status == b"duplicate" else "ok", pin, disabled == b"1", kept == b"1")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pin(epoch: str, nonce: str, credential: str, because: str) -> Pin | None:
    return Pin(credential, int(epoch), nonce, because) if epoch else None


def _sound(raw: bytes) -> _Record:
    if not raw:
        raise ChainBroken("a turn is missing")
    record = _decode(raw)
    if not record.kept:
        raise ChainBroken("the items of a turn were not kept")
    return record


def _portions(records: Sequence[tuple[str, _Record]]) -> Iterator[Sequence[tuple[str, _Record]]]:
    """The turns in runs that fit into one round trip."""
    start = size = 0
    for at, (_, record) in enumerate(records):
        if at > start and size + record.size > FETCH_BYTES:
            yield records[start:at]
            start, size = at, 0
        size += record.size
    yield records[start:]


def _chunk_commands(key: str, fields: Sequence[str]) -> list[Command]:
    # a turn may be larger than a portion, so commands have a bound of their own
    step = min(FETCH_FIELDS, FETCH_BYTES // CHUNK) if len(fields) * CHUNK > FETCH_BYTES else FETCH_FIELDS
    return [command("HMGET", key, *fields[at : at + step]) for at in range(0, len(fields), step)]
