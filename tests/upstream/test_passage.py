"""Both ways through the broker, fast and ordinary, are one to whoever looks at what comes out and what is kept.

Where they may differ, and why a client cannot mind:
- A frame whose length is written with more bytes than it needs passes as it came; the ordinary way writes it anew.
- Behind the frame with which an upstream breaks the protocol, whole plain output that came in the same moment may still
  be shown on the fast way, before the turn ends in the same error; nothing of it is kept either way.
- An event of a lane that nobody has named on this socket passes; the ordinary way drops it. No vendor sends such a one.
- Of the pings in front of the end of a socket, either way may leave some without an answer.
Texts that are no UTF-8 pass verbatim on both: neither decodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import engines
from tests.scenarios.house import wait_until
from tests.upstream.bench import Bench, Plan, bench
from tests.upstream.frames import (
    BROKEN,
    LAWLESS,
    PING,
    Frame,
    boundaries,
    cut,
    cuts,
    delta,
    encoded,
    event,
    item,
    lawful,
)

SETTINGS = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

HEALTHY = ("completed", "done", "incomplete", "refused")
ENDINGS: dict[str, bytes] = {
    "completed": event("response.completed", response={"id": "ID", "status": "completed", "output": [{"type": "m"}]}),
    "done": event("response.done", response={"id": "ID", "status": "completed"}),
    "incomplete": event("response.incomplete", response={"id": "ID", "status": "incomplete", "output": []}),
    "refused": event("error", status=400, error={"type": "invalid_request_error", "code": "invalid_prompt"}),
    "failed": event("response.failed", response={"id": "ID", "error": {"code": "server_is_overloaded"}}),
}


@dataclass(frozen=True)
class Script:
    """One turn: what the vendor writes, cut into chunks, and how it ends."""

    name: str
    response: str
    chunks: list[bytes]
    ending: str
    pings: list[bytes]
    frames: list[Frame]

    @property
    def healthy(self) -> bool:
        return self.ending in HEALTHY

    def __repr__(self) -> str:
        return f"{self.ending}: {self.frames} in {[len(chunk) for chunk in self.chunks]}"


_numbers = count()


@st.composite
def scripts(draw: st.DrawFn, endings: tuple[str, ...]) -> Script:
    name = f"turn-{next(_numbers):06}"
    created = event("response.created", response={"id": name})
    frames = [Frame(created)] * draw(st.sampled_from((1, 1, 1, 0))) + draw(lawful)
    ending, tail = draw(st.sampled_from(endings)), b""
    if ending in ENDINGS:
        frames.append(Frame(ENDINGS[ending].replace(b'"ID"', b'"%b"' % name.encode())))
        frames += [Frame(b"late", PING)] * draw(st.integers(0, 1)) if ending in HEALTHY else []
    elif ending in LAWLESS:
        frames += LAWLESS[ending]
    else:
        tail = BROKEN[ending]
    data = encoded(frames) + tail
    at = draw(cuts(data, boundaries(frames)))
    pings = [frame.payload for frame in frames if frame.opcode == PING and frame.fin and len(frame.payload) < 126]
    return Script(name, name, cut(data, at), ending, pings, frames)


sessions = st.lists(scripts((*HEALTHY, *HEALTHY, "failed", *LAWLESS, *BROKEN)), min_size=1, max_size=3)


@dataclass
class Seen:
    """What was seen of one turn."""

    texts: list[bytes]
    kept: tuple[bytes, bytes] | None
    pongs: list[bytes]


async def live(bench: Bench, path: str, session: str, turns: list[Script]) -> tuple[list[Seen], bytes]:
    """Let a client have these turns on one socket."""
    client, seen = await bench.client(path, session), []
    for script in turns:
        name = f"{script.name}-{path}"
        plan = bench.upstream.plans[name] = Plan(
            script.chunks, end=len(script.pings) if script.ending in BROKEN else None
        )
        client.create(name)
        texts = await client.until_ended()
        if script.healthy:
            await wait_until(partial(plan.answered, len(script.pings)))
            texts += await client.settled()
        kept = await bench.kept(path, session, script.response)
        seen.append(Seen(texts, kept and (b"", kept[1]), plan.pongs))
        del bench.upstream.plans[name]
    return seen, await client.leave()


@pytest.fixture(scope="module", params=(asyncio.new_event_loop, uvloop.new_event_loop), ids=("asyncio", "uvloop"))
def stage(request: pytest.FixtureRequest, redis_server: engines.Server) -> Iterator[tuple[asyncio.Runner, Bench]]:
    """One vendor and two nodes for all examples, on either kind of loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = request.param
    with asyncio.Runner(loop_factory=factory) as runner:
        context = bench(redis_server.url)
        built = runner.run(context.__aenter__())
        yield runner, built
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.timeout(300)
def test_both_paths_show_and_keep_the_same(stage: tuple[asyncio.Runner, Bench]) -> None:
    runner, bench = stage

    async def compare(turns: list[Script]) -> None:
        session = f"s-{next(_numbers):06}"
        (fast, fast_close), (ordinary, ordinary_close) = await asyncio.gather(
            live(bench, "fast", f"{session}-fast", turns), live(bench, "ordinary", f"{session}-ordinary", turns)
        )
        assert fast_close == ordinary_close
        for script, one, other in zip(turns, fast, ordinary, strict=True):
            assert one.texts == other.texts, script.ending
            assert one.kept == other.kept, script.ending
            if script.healthy:
                assert one.pongs == other.pongs == script.pings
            else:
                assert set(one.pongs) | set(other.pongs) <= set(script.pings)

    @SETTINGS
    @given(sessions)
    def search(turns: list[Script]) -> None:
        runner.run(compare(turns))

    search()


@dataclass(frozen=True)
class Duet:
    """Two turns at once on lanes of one socket; `frames` of both are mixed."""

    lanes: tuple[str | None, str | None]
    names: tuple[str, str]
    chunks: list[bytes]
    pings: list[bytes]

    def __repr__(self) -> str:
        return f"{self.lanes}: {b''.join(self.chunks)!r} in {[len(chunk) for chunk in self.chunks]}"


def of_lane(payload: bytes, lane: str | None) -> bytes:
    return payload if lane is None else payload[:-1] + b',"stream_id":"%b"}' % lane.encode()


_events = st.one_of(
    st.text(max_size=5).map(delta),
    st.text(max_size=5).map(delta),
    st.integers(0, 3).map(item),
    st.sampled_from(("response.novelty", "codex.rate_limits", "response.steer.pending")).map(event),
)


@st.composite
def _part(draw: st.DrawFn, lane: str | None, name: str) -> list[Frame]:
    ending = draw(st.sampled_from(("completed", "incomplete", "refused")))
    texts = [
        event("response.created", response={"id": name}),
        *draw(st.lists(_events, max_size=8)),
        ENDINGS[ending].replace(b'"ID"', b'"%b"' % name.encode()),
    ]
    return [Frame(of_lane(text, lane), width=draw(st.sampled_from((0, 0, 2)))) for text in texts]


@st.composite
def duets(draw: st.DrawFn) -> Duet:
    lanes = draw(st.sampled_from(((None, "a"), ("a", "b"), ("b", None))))
    names = (f"duet-{next(_numbers):06}", f"duet-{next(_numbers):06}")
    parts = [draw(_part(lane, name)) for lane, name in zip(lanes, names, strict=True)]
    frames: list[Frame] = []
    pings: list[bytes] = []
    while any(parts):
        frames.append(draw(st.sampled_from([part for part in parts if part])).pop(0))
        if draw(st.integers(0, 9)) == 0:
            pings.append(b"p%d" % len(pings))
            frames.append(Frame(pings[-1], PING))
    data = encoded(frames)
    return Duet(lanes, names, cut(data, draw(cuts(data, boundaries(frames)))), pings)


async def live_together(bench: Bench, path: str, session: str, duet: Duet) -> list[object]:
    """Two turns at once, and behind them one alone; what each lane saw, and what was kept of each."""
    client, name = await bench.client(path, session), f"{duet.names[0]}-{path}"
    plan = bench.upstream.plans[name] = Plan(duet.chunks, creates=2)
    for lane in duet.lanes:
        client.create(name, lane)
    texts = await client.until_ended(2)
    await wait_until(partial(plan.answered, len(duet.pings)))
    lane = duet.lanes[0]
    alone = [event("response.created", response={"id": name}), *(delta(str(n)) for n in range(5)), item(0)]
    alone.append(ENDINGS["completed"].replace(b'"ID"', b'"%b"' % name.encode()))
    bench.upstream.plans[name] = Plan([encoded([Frame(of_lane(text, lane)) for text in alone])])
    client.create(name, lane)
    texts += await client.until_ended()
    named = [[text for text in texts if (b'"stream_id":"%b"' % lane.encode()) in text] for lane in ("a", "b")]
    unnamed = [text for text in texts if b'"stream_id"' not in text]
    kept = [await bench.kept(path, session, response) for response in (*duet.names, name)]
    await client.leave()
    return [named, unnamed, [part and part[1] for part in kept], plan.pongs]


@pytest.mark.timeout(300)
def test_both_paths_show_and_keep_the_same_on_two_lanes(stage: tuple[asyncio.Runner, Bench]) -> None:
    runner, bench = stage

    async def compare(duet: Duet) -> None:
        session = f"s-{next(_numbers):06}"
        fast, ordinary = await asyncio.gather(
            live_together(bench, "fast", f"{session}-fast", duet),
            live_together(bench, "ordinary", f"{session}-ordinary", duet),
        )
        assert repr(fast).replace("-fast", "") == repr(ordinary).replace("-ordinary", "")

    @settings(SETTINGS, max_examples=100)
    @given(duets())
    def search(duet: Duet) -> None:
        runner.run(compare(duet))

    search()


# --- one thing at a time ----------------------------------------------------------------------------------------------

CREATED = Frame(event("response.created", response={"id": "r"}))
COMPLETED = Frame(ENDINGS["completed"].replace(b'"ID"', b'"r"'))


async def answered(bench: Bench, path: str, chunks: list[bytes], *, end: int | None = None) -> list[bytes]:
    """What a client sees of one turn."""
    session = f"s-{next(_numbers):06}"
    bench.upstream.plans[session] = Plan(chunks, end=end)
    client = await bench.client(path, session)
    client.create(session)
    texts = await client.until_ended()
    await client.abort()
    return texts


@pytest.mark.parametrize("what", LAWLESS)
def test_shows_at_most_more_plain_output_behind_a_breach_of_the_protocol(
    stage: tuple[asyncio.Runner, Bench], what: str
) -> None:
    runner, bench = stage
    behind = [Frame(delta("b")), Frame(item(0)), Frame(event("response.novelty")), COMPLETED]
    data = encoded([CREATED, Frame(delta("a")), *LAWLESS[what], *behind])
    fast = runner.run(answered(bench, "fast", [data]))
    ordinary = runner.run(answered(bench, "ordinary", [data]))

    assert fast[:2] == ordinary[:2] == [CREATED.payload, delta("a")]
    assert fast[-1] == ordinary[-1]
    assert b"upstream_interrupted" in ordinary[-1]
    surplus = fast[2:-1][len(ordinary[2:-1]) :]
    assert fast[2:-1] == ordinary[2:-1] + surplus
    assert surplus == [frame.payload for frame in behind[: len(surplus)]] and len(surplus) <= 2


@pytest.mark.parametrize("path", ["fast", "ordinary"])
def test_a_turn_is_whole_when_the_upstream_ends_at_once_behind_it(
    stage: tuple[asyncio.Runner, Bench], path: str
) -> None:
    """Pings among them: nobody waits for the answer any more, and it must not cost what came behind."""
    runner, bench = stage
    frames = [CREATED, Frame(delta("a")), Frame(b"", PING), Frame(delta("b")), Frame(item(0)), COMPLETED]
    texts = [frame.payload for frame in frames if frame.opcode != PING]
    assert runner.run(answered(bench, path, [encoded(frames)], end=0)) == texts


def test_plain_output_passes_as_the_bytes_it_came_in(stage: tuple[asyncio.Runner, Bench]) -> None:
    """So the fast way is what the others were compared with; a length in too many bytes tells."""
    runner, bench = stage

    async def bytes_of(path: str) -> bytes:
        session = f"s-{next(_numbers):06}"
        bench.upstream.plans[session] = Plan([encoded([CREATED, Frame(delta("a")), wide, COMPLETED])])
        client = await bench.client(path, session)
        client.create(session)
        await client.until_ended()
        await client.abort()
        return bytes(client.raw)

    wide = Frame(delta("wide"), width=8)
    assert wide.encode() in runner.run(bytes_of("fast"))
    assert wide.encode() not in runner.run(bytes_of("ordinary"))
    assert bench.nodes["fast"].node.dialer.ordinary == 0


@pytest.mark.parametrize("early", [Frame(b"hello", PING), Frame(event("codex.rate_limits"))], ids=("ping", "notice"))
def test_serves_on_the_ordinary_path_when_something_comes_with_the_handshake(
    stage: tuple[asyncio.Runner, Bench], early: Frame
) -> None:
    runner, bench = stage
    dialer = bench.nodes["fast"].node.dialer
    before = dialer.ordinary
    bench.upstream.early = early.encode()
    try:
        frames = [CREATED, *(Frame(delta(str(n))) for n in range(9)), COMPLETED]
        texts = runner.run(answered(bench, "fast", [encoded(frames)]))
    finally:
        bench.upstream.early = b""
    assert texts[-11:] == [frame.payload for frame in frames]
    assert dialer.ordinary - before in (0, 1)
    dialer.ordinary = before


def test_a_lane_that_has_ended_speaks_no_more(stage: tuple[asyncio.Runner, Bench]) -> None:
    """Its late output belongs to nobody, least of all to the turn that is left alone on the socket."""
    runner, bench = stage

    async def tell(path: str) -> tuple[list[bytes], bytes]:
        session = f"s-{next(_numbers):06}"
        frames = [
            *(Frame(of_lane(event("response.created", response={"id": lane}), lane)) for lane in "ab"),
            *(Frame(of_lane(delta("first"), lane)) for lane in "ab"),
            Frame(of_lane(ENDINGS["refused"], "b")),
        ]
        late = [Frame(of_lane(delta("late"), "b")), Frame(of_lane(item(7), "b"))]
        rest = [Frame(of_lane(item(0), "a")), Frame(of_lane(ENDINGS["completed"].replace(b'"ID"', b'"a"'), "a"))]
        bench.upstream.plans[session] = Plan([encoded(frames), *([b""] * 20), encoded(late + rest)], creates=2)
        client = await bench.client(path, session)
        for lane in "ab":
            client.create(session, lane)
        texts = await client.until_ended(2)
        kept = await bench.kept(path, session, "a")
        assert kept is not None
        await client.abort()
        return texts, kept[1]

    for path in ("fast", "ordinary"):
        texts, kept = runner.run(tell(path))
        assert not [text for text in texts if b"late" in text or b"msg_7" in text], path
        assert b"msg_0" in kept and b"msg_7" not in kept, path
