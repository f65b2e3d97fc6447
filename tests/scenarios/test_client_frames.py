"""What a client writes is understood alike by a node that taps its socket and by one that reads it through aiohttp.

Frames of every lawful form, cut in every way, and those with which a client may surprise: the answers are the same in
the same order, and the vendor has got the very same bytes. Pongs, refusals and output come from different places, so
each kind is compared by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import orjson
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import engines
from tests.scenarios.house import wait_until
from tests.upstream.bench import WITHIN, Bench, Plan, RawClient, bench, loop_turn
from tests.upstream.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    boundaries,
    cut,
    cuts,
    delta,
    encoded,
    event,
    messages,
)

SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LARGEST = 1 << 20
PATHS = ("fast", "ordinary")
MASKS = (b"\0\0\0\0", b"\x01\x02\x03\x04", b"\xff\x80\x7f\x00", b"abca")
_numbers = count()


def create(name: str, pad: int = 0, **fields: object) -> bytes:
    more = {"metadata": {"pad": "p" * pad}} if pad else {}
    return orjson.dumps({"type": "response.create", "model": "sim-1", "store": False, "input": name, **more, **fields})


def answer(name: str) -> list[Frame]:
    return [
        Frame(event("response.created", response={"id": name})),
        Frame(delta(f"for {name}")),
        Frame(event("response.completed", response={"id": name, "status": "completed", "output": []})),
    ]


@pytest.fixture(scope="module", params=(asyncio.new_event_loop, uvloop.new_event_loop), ids=("asyncio", "uvloop"))
def stage(request: pytest.FixtureRequest, redis_server: engines.Server) -> Iterator[tuple[asyncio.Runner, Bench]]:
    """A vendor, a node that taps and one that does not, on either kind of loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = request.param
    redis_server.execute("FLUSHALL")  # what others hold against a credential of the same name
    with asyncio.Runner(loop_factory=factory) as runner:
        context = bench(redis_server.url, max_frame=LARGEST)
        built = runner.run(context.__aenter__())
        yield runner, built
        runner.run(context.__aexit__(None, None, None))


@dataclass(frozen=True, repr=False)
class Talk:
    """What a client writes on one socket; `names` are the turns that it asks for, `ends` all that has an ending."""

    frames: list[Frame]
    chunks: list[bytes]
    names: list[str]
    ends: int

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        return f"{self.frames} in {[len(chunk) for chunk in self.chunks]}"


def talk(frames: list[Frame], names: list[str], *, refused: int = 0, at: list[int] | None = None) -> Talk:
    data = encoded(frames)
    return Talk(frames, cut(data, at or []), names, len(names) + refused)


@dataclass
class Seen:
    """What came back, and what the vendor got."""

    output: list[bytes]
    refusals: list[bytes]
    pongs: list[bytes]
    requests: list[bytes]
    close: bytes


async def live(bench: Bench, path: str, told: Talk) -> Seen:
    """Let a client say all this and read what it gets."""
    bench.upstream.seen.clear()
    for name in told.names:
        bench.upstream.plans[name] = Plan([encoded(answer(name))])
    client = await bench.client(path, f"c-{next(_numbers):06}-{path}")
    for chunk in told.chunks:
        client.send_raw(chunk)
        await loop_turn()
    texts = await client.until_ended(told.ends)
    close = await client.leave()
    refusals = [text for text in texts if text.startswith(b'{"type":"error"')]
    return Seen(
        [text for text in texts if text not in refusals],
        refusals,
        # the last one answers the word by which the client knows that nothing more comes
        [frame.payload for frame in client.frames if frame.opcode == PONG][:-1],
        list(bench.upstream.seen),
        close,
    )


async def both(bench: Bench, told: Talk) -> Seen:
    """The same on both nodes; the answer is what was the same."""
    tapped, ordinary = [await live(bench, path, told) for path in PATHS]
    assert tapped == ordinary
    expected = [frame.payload for name in told.names for frame in answer(name)]
    assert tapped.output == expected
    assert tapped.pongs == [frame.payload for frame in told.frames if frame.opcode == PING]
    assert len(tapped.requests) == len(told.names)
    return tapped


async def both_end(bench: Bench, chunks: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The same on both nodes, which end the socket; the answer are the closes, and what the vendor got."""
    told: list[tuple[list[bytes], list[bytes]]] = []
    for path in PATHS:
        bench.upstream.seen.clear()
        client = await bench.client(path, f"c-{next(_numbers):06}-{path}")
        # read from the beginning: what comes before a reset is lost to whoever asks for it later
        reading = asyncio.create_task(ending(client))
        for chunk in chunks:
            if not (reading.done() or client.over):
                client.send_raw(chunk)
                await loop_turn()
        told.append((await reading, list(bench.upstream.seen)))
        assert not messages(client.frames), "something behind the end was answered"
        node = bench.nodes[path].node
        await wait_until(lambda node=node: not node.sockets)  # type: ignore[misc]
    assert told[0] == told[1]
    return told[0]


async def ending(client: RawClient) -> list[bytes]:
    """Read to the end; the answer are the close frames."""
    async with asyncio.timeout(WITHIN):
        try:
            while await client.more():
                pass
        except ConnectionResetError:
            # what the client has written was not all read when the socket was closed
            pass
    await client.abort()
    return [frame.payload for frame in client.frames if frame.opcode == CLOSE]


# --- everything at once -----------------------------------------------------------------------------------------------

_pings = st.builds(Frame, st.binary(max_size=125), st.just(PING))


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    frames: list[Frame] = []
    names: list[str] = []
    refused = 0
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(("create", "create", "create", "parts", "parts", "large", "bare", "odd", "ping")))
        if kind == "ping":
            frames.append(draw(_pings))
            continue
        if kind == "odd":
            odd = draw(st.sampled_from((Frame(b"no JSON"), Frame(b"{}", BINARY), Frame(b""), Frame(b"\xff\xfe"))))
            frames.append(odd)
            refused += 1
            continue
        names.append(f"t-{next(_numbers):06}")
        pad = draw(st.sampled_from((0, 0, 1, 10, 100, 1000)))
        if kind == "large":
            pad = draw(st.sampled_from((65_300, 65_400, 65_536, 70_000, 300_000)))
        payload = create(names[-1], pad)
        if kind == "parts":
            at = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
            parts = [payload[start:end] for start, end in zip([0, *at], [*at, len(payload)], strict=True)]
            for part in range(len(parts)):
                last = part == len(parts) - 1
                frames.append(Frame(parts[part], CONTINUATION if part else TEXT, fin=last))
                if not last:
                    frames += draw(st.lists(_pings, max_size=1))
        else:
            frames.append(Frame(payload, width=draw(st.sampled_from((0, 0, 2, 8)))))
        if kind == "bare":
            frames[-1] = replace(frames[-1], rsv=0, mask=b"bare")
    masked = [replace(frame, mask=draw(st.sampled_from(MASKS))) for frame in frames]
    # what was to be bare has no mask: no client may send it so, aiohttp takes it
    frames = [replace(new, mask=b"") if old.mask == b"bare" else new for old, new in zip(frames, masked, strict=True)]
    starts = boundaries(frames)
    data = encoded(frames)
    if draw(st.integers(0, 2)):
        at = draw(cuts(data, starts))
    else:
        at = [start for start in starts if 0 < start < len(data)]
    return Talk(frames, cut(data, at), names, len(names) + refused)


@pytest.mark.timeout(120)
def test_a_tapped_client_is_understood_like_any_other(stage: tuple[asyncio.Runner, Bench]) -> None:
    runner, built = stage

    @SETTINGS
    @given(talks())
    def search(told: Talk) -> None:
        runner.run(both(built, told))

    search()


# --- one thing at a time ----------------------------------------------------------------------------------------------


def run(stage: tuple[asyncio.Runner, Bench], told: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    runner, built = stage
    runner.run(told(built))


def of_client(*frames: Frame) -> list[Frame]:
    return [replace(frame, mask=MASKS[at % len(MASKS)]) for at, frame in enumerate(frames)]


SINGLE: dict[str, list[Frame]] = {
    "short": [Frame(create("n"))],
    "blanks around": [Frame(b" " + create("n") + b" \n")],
    "a length in two bytes": [Frame(create("n", 200))],
    "a length in more bytes than it needs": [Frame(create("n"), width=8)],
    "just below what is taken": [Frame(create("n", 65_536 - 14 - len(create("n", 1))))],
    "larger than what is taken": [Frame(create("n", 65_536))],
    "much larger": [Frame(create("n", 900_000))],
    "in parts": [Frame(create("n")[:20], fin=False), Frame(create("n")[20:], CONTINUATION)],
    "in empty parts": [Frame(b"", fin=False), Frame(create("n"), CONTINUATION, fin=False), Frame(b"", CONTINUATION)],
    "in parts with a ping between": [
        Frame(create("n")[:20], fin=False),
        Frame(b"?", PING),
        Frame(create("n")[20:], CONTINUATION),
    ],
}


@pytest.mark.parametrize("form", SINGLE)
@pytest.mark.parametrize("how", ["at once", "byte by byte", "frame by frame"])
def test_a_request_in_any_form_reaches_the_vendor(stage: tuple[asyncio.Runner, Bench], form: str, how: str) -> None:
    async def told(built: Bench) -> None:
        # behind it one in a usual form, which must not overtake
        frames = of_client(*SINGLE[form], Frame(create("behind")))
        data = encoded(frames)
        at = {"at once": [], "byte by byte": list(range(1, min(len(data), 300))), "frame by frame": boundaries(frames)}
        seen = await both(built, talk(frames, ["n", "behind"], at=[cut for cut in at[how] if 0 < cut < len(data)]))
        assert [orjson.loads(request)["input"] for request in seen.requests] == ["n", "behind"]

    run(stage, told)


def test_many_requests_in_one_segment_are_answered_in_order(stage: tuple[asyncio.Runner, Bench]) -> None:
    async def told(built: Bench) -> None:
        names = [f"many-{at}" for at in range(20)]
        frames = [frame for name in names for frame in (Frame(create(name, 10)), Frame(name.encode(), PING))]
        await both(built, talk(of_client(*frames), names))

    run(stage, told)


@pytest.mark.parametrize(
    "odd",
    [Frame(create("x"), BINARY), Frame(b"no JSON"), Frame(b""), Frame(b'{"type":"response.create'), Frame(b"\xff")],
    ids=["binary", "no JSON", "empty", "half a JSON", "no UTF-8"],
)
def test_a_message_of_no_use_is_refused_and_the_next_is_served(stage: tuple[asyncio.Runner, Bench], odd: Frame) -> None:
    async def told(built: Bench) -> None:
        frames = of_client(Frame(create("before")), odd, odd, Frame(create("behind")))
        seen = await both(built, talk(frames, ["before", "behind"], refused=2))
        assert len(seen.refusals) == 2

    run(stage, told)


def test_an_unmasked_message_is_taken_like_any_other(stage: tuple[asyncio.Runner, Bench]) -> None:
    """No client may send one (RFC 6455 5.1); aiohttp does not mind, and a tap must not make a difference."""

    async def told(built: Bench) -> None:
        frames = [Frame(create("bare")), *of_client(Frame(create("masked"))), Frame(create("bare again"))]
        await both(built, talk(frames, ["bare", "masked", "bare again"]))

    run(stage, told)


@pytest.mark.parametrize("parts", [1, 3])
def test_closes_with_1009_when_a_message_is_too_large(stage: tuple[asyncio.Runner, Bench], parts: int) -> None:
    async def told(built: Bench) -> None:
        payload = create("large", LARGEST)
        size = -(-len(payload) // parts)
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        frames = [Frame(piece, CONTINUATION if at else TEXT, fin=at == parts - 1) for at, piece in enumerate(pieces)]
        frames = of_client(*frames)
        # a header is enough to know it by; what nobody reads any more would cost us the answer
        data = encoded(frames)[: boundaries(frames)[-2] + 100]
        closes, seen = await both_end(built, [data[at : at + 65_536] for at in range(0, len(data), 65_536)])
        assert [close[:2] for close in closes] == [(1009).to_bytes(2, "big")] and not seen

    run(stage, told)


BREACHES: dict[str, list[Frame]] = {
    "compressed": [Frame(create("x"), rsv=4)],
    "a reserved bit": [Frame(create("x"), rsv=1)],
    "a reserved opcode": [Frame(create("x"), 3)],
    "a continuation of nothing": [Frame(create("x"), CONTINUATION)],
    "a fragmented ping": [Frame(b"x", PING, fin=False)],
    "a long ping": [Frame(b"x" * 126, PING)],
    "a text within another": [Frame(b"{", fin=False), Frame(create("x"))],
}


@pytest.mark.parametrize("breach", BREACHES)
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
def test_nothing_behind_a_breach_of_the_protocol_is_served(
    stage: tuple[asyncio.Runner, Bench], breach: str, apart: bool
) -> None:
    async def told(built: Bench) -> None:
        frames = of_client(*BREACHES[breach], Frame(b"no JSON"), Frame(create("behind")))
        chunks = [frame.encode() for frame in frames] if apart else [encoded(frames)]
        closes, seen = await both_end(built, chunks)
        assert [close[:2] for close in closes] == [(1002).to_bytes(2, "big")] and not seen

    run(stage, told)


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
def test_nothing_behind_a_close_is_served(stage: tuple[asyncio.Runner, Bench], apart: bool) -> None:
    async def told(built: Bench) -> None:
        frames = of_client(
            Frame(b"?", PING), Frame((1000).to_bytes(2, "big"), CLOSE), Frame(b"no JSON"), Frame(create("x"))
        )
        chunks = [frame.encode() for frame in frames] if apart else [encoded(frames)]
        closes, seen = await both_end(built, chunks)
        assert [close[:2] for close in closes] == [(1000).to_bytes(2, "big")] and not seen

    run(stage, told)


def test_a_close_in_the_midst_of_parts_ends_the_socket(stage: tuple[asyncio.Runner, Bench]) -> None:
    async def told(built: Bench) -> None:
        parts = [Frame(create("x")[:20], fin=False), Frame(b"", CLOSE), Frame(create("x")[20:], CONTINUATION)]
        closes, seen = await both_end(built, [encoded(of_client(*parts))])
        assert len(closes) == 1 and not seen

    run(stage, told)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 30, 300])
def test_half_a_request_is_none(stage: tuple[asyncio.Runner, Bench], size: int) -> None:
    async def told(built: Bench) -> None:
        data = encoded(of_client(Frame(create("half", 300))))[:size]
        for path in PATHS:
            built.upstream.seen.clear()
            client = await built.client(path, f"c-{next(_numbers):06}-{path}")
            client.send_raw(data)
            await loop_turn()
            await client.abort()
            node = built.nodes[path].node
            await wait_until(lambda node=node: not node.sockets)  # type: ignore[misc]
            assert not built.upstream.seen

    run(stage, told)


def test_both_nodes_are_what_they_are_called(stage: tuple[asyncio.Runner, Bench]) -> None:
    """So that something was compared."""
    _, built = stage
    assert built.nodes["fast"].node.bounds.tap and not built.nodes["fast"].node.untapped
    assert not built.nodes["ordinary"].node.bounds.tap
