"""Answers over HTTP: runs of plain output pass in one go, all else is looked at, and nothing overtakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import aiohttp
import pytest

from broker.domain import sse
from broker.domain.credential import Credential, Secret
from broker.domain.endpoints import RESPONSES
from broker.domain.failure import Failure
from broker.domain.wire import EventKind
from broker.upstream.exchange import Exchanges
from tests.scenarios.house import wait_until
from tests.upstream.frames import delta, event

CREATED = event("response.created", response={"id": "resp_1"})
ITEM = event("response.output_item.done", output_index=0, item={"type": "message", "id": "msg_1"})
UNKNOWN = event("response.novelty", text="never heard of")
FOREIGN = event("codex.rate_limits", primary={"used_percent": 3})
COMPLETED = event("response.completed", response={"id": "resp_1", "status": "completed", "output": []})
DELTAS = [delta(f"word {number}") for number in range(40)]
TURN = [CREATED, *DELTAS[:10], ITEM, *DELTAS[10:20], UNKNOWN, *DELTAS[20:30], FOREIGN, *DELTAS[30:], ITEM, COMPLETED]


class Told:
    """A client and its turn: keeps what it is told, in order. It shows from its first output on, as a turn does."""

    def __init__(self, *, shows: bool = True, refuses_items: bool = False) -> None:
        self.behind = self.full = False
        self.link: Exchanges | None = None
        self.told: list[bytes] = []
        self.looked_at: list[bytes] = []
        self.items: list[bytes] = []
        self.ends = 0
        self.stop_after = len(TURN) * 10
        self._shows = shows
        self._refuses = refuses_items

    # --- the turn ---

    def receive(self, raw: bytes, kind: EventKind) -> None:
        assert self.link is not None
        self.told.append(sse.named("?", raw) if b'"stream_id"' in raw else sse.named(_kind(raw), raw))
        self.looked_at.append(raw)
        if kind is EventKind.ITEM:
            self.items.append(raw)
        if kind in (EventKind.OUTPUT, EventKind.ITEM) and self._shows:
            self.link.open(self)
        self.ends += kind is EventKind.TERMINAL
        self.behind = self.behind or len(self.looked_at) >= self.stop_after

    def note_item(self, raw: bytes) -> bool:
        if not self._refuses:
            self.items.append(raw)
        return not self._refuses

    def take_over(self, events: object) -> None: ...

    def answered(self, headers: Mapping[str, str]) -> None: ...

    def lost(self, failure: Failure) -> None:
        self.told.append(failure.code.encode())

    def expired(self) -> None: ...

    # --- the client ---

    def write(self, data: bytes | memoryview) -> None:
        self.told.append(bytes(data))

    direct = write

    def gather(self) -> None: ...

    def flush(self) -> None: ...

    def aside(self, link: object, raw: bytes, lane: str | None) -> None: ...


def _kind(raw: bytes) -> str:
    return raw[9 : raw.index(b'"', 9)].decode()


def stream(events: Sequence[bytes]) -> bytes:
    return b"".join(sse.named(_kind(raw), raw) for raw in events)


@asynccontextmanager
async def exchange(
    told: Told, pieces: Sequence[bytes], *, frames: bool = False, lane: str | None = None, together: bool = False
) -> AsyncIterator[Exchanges]:
    """A vendor that answers with these pieces, each a chunk of HTTP, and a link whose turn is under way there."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}" if not frames else b"}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in [*pieces, b""]:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            for _ in range(0 if together else 4):
                await asyncio.sleep(0)  # so that pieces come one by one, for the most part
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    credential = Credential(name="A", vendor="custom", base_url=address, secret=Secret("s"), boundary="b")
    async with server, aiohttp.ClientSession() as session:

        async def ask(of: Credential, path: str, body: bytes, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
            return await session.post(address, data=body)

        told.link = link = Exchanges(
            credential, RESPONSES, ask, {}, told, ended=lambda: None, clock=lambda: 0.0, largest=1 << 20, frames=frames
        )
        link.attach(lane, told)
        link.send(b"{}", lane)
        try:
            yield link
        finally:
            await link.close()


def cut(whole: bytes, size: int) -> list[bytes]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


@pytest.mark.parametrize("together", [True, False], ids=["together", "one-by-one"])
@pytest.mark.parametrize("size", [7, 100, 333, 1000, 1 << 20])
async def test_every_byte_passes_in_order_wherever_the_stream_is_cut(size: int, together: bool) -> None:
    told = Told()
    async with exchange(told, cut(stream(TURN), size), together=together) as link:
        await wait_until(lambda: told.ends)
        assert b"".join(told.told) == stream(TURN)
        assert told.items == [ITEM, ITEM]
        assert {CREATED, UNKNOWN, FOREIGN, COMPLETED} <= set(told.looked_at)
        if size >= 1000 or together:
            assert len(told.looked_at) < len(TURN) / 2, "most of it passes"
            assert link.passed() and not link.passed()


async def test_every_event_is_looked_at_while_the_turn_does_not_show() -> None:
    told = Told(shows=False)
    async with exchange(told, [stream(TURN)]) as link:
        await wait_until(lambda: told.ends)
        assert told.looked_at == TURN
        assert not link.passed()


async def test_an_item_that_cannot_be_read_is_looked_at() -> None:
    told = Told(refuses_items=True)
    async with exchange(told, [stream(TURN)]):
        await wait_until(lambda: told.ends)
        assert told.looked_at.count(ITEM) == 2
        assert b"".join(told.told) == stream(TURN)


async def test_lines_may_end_in_cr_and_lf() -> None:
    told = Told()
    async with exchange(told, cut(stream(TURN).replace(b"\n", b"\r\n"), 50)):
        await wait_until(lambda: told.ends)
        assert told.looked_at == TURN


OTHER_LINES = {
    "before it, and cut": [b"id: 7\n", stream(DELTAS[:1])],
    "behind a CR": [stream(DELTAS[:1])[:-2] + b"\rid: 7\n\n"],
    "behind a CR that was cut": [b"event: response.output_text.delta\r", b"data: %b\n\n" % DELTAS[0]],
}


@pytest.mark.parametrize("other", OTHER_LINES.values(), ids=list(OTHER_LINES))
async def test_an_event_with_other_lines_is_looked_at(other: list[bytes]) -> None:
    told = Told()
    async with exchange(told, [stream([CREATED, DELTAS[9]]), *other, stream([COMPLETED])]):
        await wait_until(lambda: told.ends)
        assert told.looked_at == [CREATED, DELTAS[9], DELTAS[0], COMPLETED]


async def test_events_on_a_lane_get_its_name_each() -> None:
    told = Told()
    async with exchange(told, [stream(TURN)], lane="left"):
        await wait_until(lambda: told.ends)
        assert len(told.looked_at) == len(TURN)
        assert all(b'"stream_id":"left"' in raw for raw in told.looked_at)


async def test_nothing_comes_to_a_client_that_is_behind_until_it_has_caught_up() -> None:
    told = Told()
    told.stop_after = 2  # the announcement, and the output with which it shows
    async with exchange(told, [stream(TURN)]) as link:
        await wait_until(lambda: told.behind)
        before = list(told.told)
        for _ in range(20):
            await asyncio.sleep(0)
        assert told.told == before and len(told.looked_at) == 2
        told.behind, told.stop_after = False, len(TURN) * 10
        link.resume()
        await wait_until(lambda: told.ends)
        assert b"".join(told.told) == stream(TURN)


async def test_a_turn_that_has_left_gets_nothing_more() -> None:
    told = Told()
    told.stop_after = 2
    async with exchange(told, [stream(TURN)]) as link:
        await wait_until(lambda: told.behind)
        before = list(told.told)
        link.detach(None, told)
        told.behind = False
        link.resume()
        await wait_until(lambda: not link.busy)
        for _ in range(20):
            await asyncio.sleep(0)
        assert told.told == before


async def test_a_client_by_websocket_gets_frames() -> None:
    told = Told()
    async with exchange(told, [stream(TURN)], frames=True):
        await wait_until(lambda: told.ends)
        runs = [piece for piece in told.told if not piece.startswith(b"event: ")]
        passed = [raw for raw in TURN if raw not in told.looked_at or raw == ITEM]
        assert b"".join(runs) == sse.as_frames(stream(passed)) and len(passed) > 30
