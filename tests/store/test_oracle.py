"""The scripts against a plain Python model, through every order of moves, commits, repetitions and closings."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from broker.domain.session import Pin
from broker.domain.transcript import Commit, TurnItems
from broker.store.codec import Codec
from broker.store.connection import Connection, command
from broker.store.sessions import ChainBroken, Committed, Moved, SessionStore, Stale
from tests.store.turns import IDLE_TTL, SID, TENANT, ServerOf, pin, turn

T = TypeVar("T")

CAP = 400
CREDENTIALS = ("alpha", "beta", "gamma")


@dataclass
class Oracle:
    """What a session must be, in as few words as possible."""

    pin: Pin | None = None
    disabled: bool = False
    closed: bool = False
    stored: bool = False
    bytes: int = 0
    turns: dict[str, Commit] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def move(self, expected: Pin | None, to: Pin) -> Moved | Stale:
        seen = (expected.epoch, expected.nonce) if expected is not None and expected.epoch else None
        mine = (self.pin.epoch, self.pin.nonce) if self.pin is not None else None
        if seen != mine:
            return Stale(self.pin, self.disabled)
        self.disabled = self.disabled or self.pin is not None
        self.pin = replace(to, epoch=(self.pin.epoch if self.pin else 0) + 1)
        return Moved(self.pin)

    def commit(self, commit: Commit, size: int) -> Committed:
        fresh = commit.meta.turn_id not in self.turns
        if fresh:
            self._append(commit, size)
        assert self.pin is not None
        kept = self.turns[commit.meta.turn_id].meta.kept
        return Committed("ok" if fresh else "duplicate", self.pin, self.disabled, kept)

    def _append(self, commit: Commit, size: int) -> None:
        meta = commit.meta
        if self.bytes + size > CAP:
            meta = replace(meta, kept=False)
        else:
            self.bytes += size
        self.turns[meta.turn_id] = replace(commit, meta=meta)
        self.ids[meta.response_id] = meta.turn_id
        self.origins |= dict.fromkeys(commit.minted, meta.boundary)
        self.closed, self.stored = False, self.stored or meta.store
        if self.pin is None:
            self.pin = Pin(meta.credential, 1, commit.nonce, commit.because)
        elif (self.pin.epoch, self.pin.nonce) == (commit.epoch, commit.nonce):
            self.disabled = False

    def chain(self, turn_id: str) -> list[TurnItems] | None:
        found: list[TurnItems] = []
        at: str | None = turn_id
        while at is not None:
            commit = self.turns.get(at)
            if commit is None or not commit.meta.kept or len(found) > len(self.turns):
                return None
            found.append(commit.items)
            if commit.meta.parent is None and not commit.meta.rooted:
                return None
            at = commit.meta.parent
        return found[::-1]


class Nodes(RuleBasedStateMachine):
    """Several nodes that all know old pins and old turns, and use them at the wrong time."""

    connection: Connection
    loop: asyncio.AbstractEventLoop

    pins = Bundle("pins")
    commits = Bundle("commits")

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(target=pins)
    def begin(self) -> Any:
        self.do(self.connection.ask(command("FLUSHALL")))
        self.codec = Codec()
        self.store = SessionStore(self.connection, self.codec, idle_ttl=IDLE_TTL, max_transcript=CAP)
        self.oracle = Oracle()
        self.minted = 0
        return multiple(pin(0, "wish"), pin(0, "other wish"), pin(1, "never"))

    def nonce(self) -> str:
        self.minted += 1
        return f"n{self.minted}"

    @rule(target=pins, expected=pins, credential=st.sampled_from(CREDENTIALS), unbound=st.booleans())
    def move_pin(self, expected: Pin, credential: str, unbound: bool) -> Any:
        asked = None if unbound else expected
        to = pin(0, self.nonce(), credential, "because")
        answer = self.do(self.store.move_pin(SID, "name", TENANT, asked, to))
        assert answer == self.oracle.move(asked, to)
        if isinstance(answer, Moved):
            # its answer got lost, and the node asks again
            assert self.do(self.store.move_pin(SID, "name", TENANT, asked, to)) == answer
        return multiple(*([answer.pin, replace(answer.pin, nonce="forged")] if answer.pin else []))

    @rule(target=pins, expected=pins)
    def move_pin_twice_at_once(self, expected: Pin) -> Any:
        wishes = [pin(0, self.nonce(), credential, "race") for credential in CREDENTIALS]

        async def race() -> list[Moved | Stale]:
            moves = (self.store.move_pin(SID, "name", TENANT, expected, wish) for wish in wishes)
            return list(await asyncio.gather(*moves))

        assert self.do(race()) == [self.oracle.move(expected, wish) for wish in wishes]
        return multiple(*([self.oracle.pin] if self.oracle.pin else []))

    @rule(
        target=commits,
        under=pins,
        parent=st.none() | commits,
        response=st.sampled_from(["r1", "r2", "r3"]),
        size=st.sampled_from([4, 60]),
        store=st.booleans(),
        rooted=st.booleans(),
        boundary=st.sampled_from(["org", "elsewhere"]),
        minted=st.lists(st.sampled_from(["d1", "d2"]), unique=True),
    )
    def commit(
        self,
        under: Pin,
        parent: Commit | None,
        response: str,
        size: int,
        store: bool,
        rooted: bool,
        boundary: str,
        minted: list[str],
    ) -> Commit:
        name = f"t{self.nonce()}"
        made = turn(
            name,
            parent.meta.turn_id if parent else None,
            under=under,
            response_id=response,
            items=TurnItems(f'["{name}{"x" * size}"]'.encode()),
            boundary=boundary,
            store=store,
            rooted=rooted,
            minted=tuple(minted),
        )
        self.write(made)
        return made

    @rule(commit=commits)
    def commit_again(self, commit: Commit) -> None:
        self.write(commit)

    def write(self, commit: Commit) -> None:
        size = sum(map(len, self.codec.encode(SID, commit.meta.turn_id, commit.items)))
        assert self.do(self.store.commit(commit)) == self.oracle.commit(commit, size)

    @rule()
    def close_cleanly(self) -> None:
        assert self.do(self.store.close_cleanly(SID)) is not self.oracle.stored
        if self.oracle.stored:
            self.oracle.closed = True
        else:
            self.oracle = Oracle()

    @rule(commit=commits)
    def rebuild(self, commit: Commit) -> None:
        wanted = self.oracle.chain(commit.meta.turn_id)
        try:
            chain = self.do(self.store.chain(SID, commit.meta.turn_id))
        except ChainBroken:
            assert wanted is None
        else:
            assert [stored.items for stored in chain] == wanted

    @invariant()
    def the_session_is_what_it_must_be(self) -> None:
        session = self.do(self.store.load(SID))
        if session is None:
            assert self.oracle == Oracle()
            return
        seen = (session.pin, session.incremental_disabled, session.closed, session.turns)
        assert seen == (self.oracle.pin, self.oracle.disabled, self.oracle.closed, len(self.oracle.turns))
        assert session.boundaries == {commit.meta.boundary for commit in self.oracle.turns.values()}

    @invariant()
    def every_response_is_its_newest_turn(self) -> None:
        for response in ("r1", "r2", "r3"):
            found = self.do(self.store.find(SID, response))
            assert (found.turn_id if found else None) == self.oracle.ids.get(response)
            assert found is None or found == self.oracle.turns[found.turn_id].meta
        assert self.do(self.store.origins(SID)) == self.oracle.origins


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that the machine drives itself: its steps are not coroutines."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("name", ["valkey9"])
def test_the_scripts_do_what_the_oracle_says(name: str, server_of: ServerOf, loop: asyncio.AbstractEventLoop) -> None:
    connection = Connection(server_of(name).url)
    machine = type("Machine", (Nodes,), {"connection": connection, "loop": loop})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    loop.run_until_complete(connection.close())
