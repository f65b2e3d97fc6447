"""The whole house for scenarios: a real Redis, the simulated vendor, edge nodes, and agents that check every answer."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from broker.domain.credential import Credential, Secret
from broker.domain.health import HealthState
from broker.domain.session import Session, derive_sid
from broker.domain.turn import Policy
from broker.edge.access import Tenant
from broker.edge.app import Listeners
from broker.edge.node import Node, StoreSettings
from broker.edge.placement import Placing
from broker.edge.wiring import Bounds
from broker.simulator import SessionClient, SimCredential, Simulator, TurnResult
from broker.simulator.client import tool_outputs
from broker.simulator.context import Item, input_items
from broker.simulator.manners import Manner
from broker.simulator.record import TurnRecord
from broker.upstream.dialer import DialSettings

KEY = "sbk_test-key-of-team-a"
OTHER_KEY = "sbk_test-key-of-team-b"
PRIVATE_KEY = "sbk_test-key-of-team-private"


async def wait_until(predicate: Callable[[], Any], within: float = 5.0) -> None:
    """Wait for a condition, with a deadline; nothing sleeps for a fixed time."""
    deadline = time.monotonic() + within
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {within} s")
        await asyncio.sleep(0.005)


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


TENANTS = [
    Tenant("team-a", (digest_of(KEY),)),
    Tenant("team-b", (digest_of(OTHER_KEY),)),
    Tenant("team-private", (digest_of(PRIVATE_KEY),), transcript=False),
]


class House:
    """Nodes in this process over real sockets; `boundaries` gives each credential its organisation, `manners` the ways
    of its vendor."""

    def __init__(
        self, url: str, boundaries: dict[str, str], manners: Mapping[str, str | Manner] | None = None, **options: Any
    ) -> None:
        self.url = url
        self.boundaries = boundaries
        self.passage = True
        self.sim = Simulator(
            [
                SimCredential(name, f"sk-sim-{name}", boundary, manner=(manners or {}).get(name))
                for name, boundary in boundaries.items()
            ],
            **options,
        )
        self.nodes: list[Listeners] = []
        self.clients: list[SessionClient] = []
        self.callers: list[Caller] = []

    async def start(self) -> House:
        await self.sim.start()
        return self

    async def stop(self) -> None:
        for client in self.clients:
            await client.kill()
        for caller in self.callers:
            await caller.stop()
        for listeners in self.nodes:
            await listeners.stop()
        await self.sim.stop()

    def credentials(self) -> list[Credential]:
        return [
            Credential(
                name, self.sim.base_url, Secret(f"sk-sim-{name}"), limit_group=name, boundary=boundary, priority=index
            )
            for index, (name, boundary) in enumerate(self.boundaries.items())
        ]

    async def node(
        self,
        name: str = "",
        *,
        credentials: Sequence[Credential] | None = None,
        bounds: Bounds | None = None,
        policy: Policy | None = None,
        url: str | None = None,
        alone: bool = False,
        placing: Placing | None = None,
        **store: Any,
    ) -> Listeners:
        pool = list(credentials or self.credentials())
        bounds = bounds or Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=3.0)
        node = Node(
            name or f"node-{len(self.nodes) + 1}",
            tenants=TENANTS[:1] if alone else TENANTS,
            credentials=pool,
            store=StoreSettings(url or self.url, refresh=store.pop("refresh", 0.1), **store),
            bounds=bounds if self.passage else replace(bounds, tap=False),
            policy=policy,
            dial=DialSettings(connect=2.0, heartbeat=5.0),
            placing=placing,
        )
        listeners = Listeners(node)
        await listeners.start(("127.0.0.1", 0), ("127.0.0.1", 0))
        self.nodes.append(listeners)
        return listeners

    def agent(self, node: Listeners, *, key: str = KEY, session_id: str | None = None, **more: Any) -> SessionClient:
        client = SessionClient(f"http://127.0.0.1:{node.client_port}/v1", key, session_id=session_id, **more)
        self.clients.append(client)
        return client

    def caller(self, node: Listeners, **more: Any) -> Caller:
        """An agent that speaks HTTP."""
        caller = Caller(node, **more)
        self.callers.append(caller)
        return caller

    async def connected(self, node: Listeners, **more: Any) -> SessionClient:
        client = self.agent(node, **more)
        assert await client.connect(), client.handshake_status
        return client

    def sent_to(self, credential: str) -> list[TurnRecord]:
        """What the vendor received under this credential."""
        return [turn for turn in self.sim.turns if turn.credential == credential]

    async def session(self, client: SessionClient, tenant: str = "team-a") -> Session:
        """The truth about a session, as the store has it."""
        name = client.handshake_headers["x-session-id"]
        found = await self.nodes[0].node.store.load(derive_sid(tenant, name))
        assert found is not None
        return found


@dataclass(slots=True, eq=False)
class Answer(TurnResult):
    """One turn over HTTP, checked like any other; `body` holds the bytes of an answer that came in one piece."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Caller:
    """An agent over HTTP: each turn is a request, checked against its own transcript. `head` is the newest good one."""

    def __init__(
        self,
        node: Listeners,
        *,
        key: str = KEY,
        session_id: str | None = None,
        stream: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.head: TurnResult | None = None
        self.stream = stream
        self.headers = {"Authorization": f"Bearer {key}", **({"x-session-id": session_id} if session_id else {})}
        self.headers |= headers or {}
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20.0))
        self.move(node)

    def move(self, node: Listeners) -> None:
        """From now on ask this node."""
        self.url = f"http://127.0.0.1:{node.client_port}/v1"

    async def stop(self) -> None:
        """Let go of the connections."""
        await self.http.close()

    def ask(self, path: str, body: Any = None, method: str = "POST", **more: Any) -> Any:
        """One request, whatever it is, as aiohttp makes it."""
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": "application/json", **self.headers, **more.pop("headers", {})}
        return self.http.request(method, f"{self.url}/{path}", data=data, headers=headers, **more)

    async def turn(
        self,
        text: str | list[Item],
        *,
        parent: TurnResult | str | None = "head",
        incremental: bool = True,
        stream: bool | None = None,
        store: bool = True,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        """Ask and wait for the end. `parent` None starts afresh; `more` are further fields of the body."""
        before = self.head if isinstance(parent, str) else parent
        settings = {"model": "sim-1", "store": store, "stream": self.stream if stream is None else stream, **more}
        answer = Answer(None, before, input_items(text), incremental, settings, started=time.monotonic())
        async with self.ask("responses", body_of(answer), headers=headers or {}) as response:
            answer.status, answer.headers = response.status, {n.lower(): v for n, v in response.headers.items()}
            if response.content_type == "text/event-stream":
                await self._read(response, answer)
            else:
                answer.body = await response.read()
                take_whole(answer)
        if answer.ok:
            self.head = answer
        return answer

    async def answer_calls(self, **more: Any) -> Answer:
        """Answer all open function calls of the newest turn."""
        assert self.head is not None
        return await self.turn(tool_outputs(self.head), **more)

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        try:
            async for event in server_sent(response):
                if event["type"] == "error":
                    assert "error" not in event, "over HTTP an error in a stream is flat"
                    event = {"type": "error", "sequence_number": event["sequence_number"], "error": event}
                answer.observe(event, time.monotonic())
        except aiohttp.ClientError as failure:
            answer.give_up(f"the connection was lost ({failure!r})", time.monotonic())
        answer.give_up("the stream ended without a terminal event", time.monotonic())


async def server_sent(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; the name of each must be the type in its data."""
    name, data = "", list[str]()
    async for line in response.content:
        said, _, value = line.decode().rstrip("\n").partition(": ")
        if said == "event":
            name = value
        elif said == "data":
            data.append(value)
        elif said == "" and data:
            event: dict[str, Any] = orjson.loads("\n".join(data))
            data.clear()
            assert event["type"] == name, (name, event["type"])
            yield event


def body_of(answer: TurnResult) -> dict[str, Any]:
    """The request that asks for a turn."""
    if answer.parent is None:
        return {**answer.settings, "input": answer.input}
    if not answer.incremental:
        return {**answer.settings, "input": answer.parent.transcript() + answer.input}
    return {**answer.settings, "previous_response_id": answer.parent.response_id, "input": answer.input}


def take_whole(answer: Answer) -> None:
    """Check an answer in one piece as if its events had come one by one."""
    said = orjson.loads(answer.body)
    if answer.status != 200:
        events: list[dict[str, Any]] = [{"type": "error", "status": answer.status, "error": said["error"]}]
    else:
        events = [{"type": "response.created", "response": said}]
        for item in said["output"]:
            parts = [part["text"] for part in item.get("content") or [] if part.get("type") == "output_text"]
            events += [{"type": "response.output_text.delta", "delta": part} for part in parts]
            events.append({"type": "response.output_item.done", "item": item})
        events.append({"type": f"response.{said['status']}", "response": said})
    for number, event in enumerate(events):
        answer.observe({**event, "sequence_number": number}, time.monotonic())
    answer.give_up(f"it ends as {said.get('status')}", time.monotonic())


class Plain:
    """A client socket without an agent: it sends what the test says, and shows every event."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse[Any]) -> None:
        self.ws = ws

    async def create(self, text: str, lane: str | None = None, **more: Any) -> None:
        frame = {"type": "response.create", "model": "sim-1", "store": False, "input": text, **more}
        await self.ws.send_str(orjson.dumps(frame if lane is None else frame | {"stream_id": lane}).decode())

    async def event(self, within: float = 5.0) -> dict[str, Any]:
        message = await self.ws.receive(timeout=within)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        event: dict[str, Any] = orjson.loads(message.data)
        return event

    async def until(self, ends: int) -> list[dict[str, Any]]:
        """All events up to the given number of terminal ones."""
        events: list[dict[str, Any]] = []
        while sum(event["type"] in ("response.completed", "error") for event in events) < ends:
            events.append(await self.event())
        return events


@asynccontextmanager
async def plain(node: Listeners, key: str = KEY, **headers: str) -> AsyncIterator[Plain]:
    """A socket for frames that no agent would send."""
    url = f"http://127.0.0.1:{node.client_port}/v1/responses"
    wanted = {"Authorization": f"Bearer {key}", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers=wanted, decode_text=False, max_msg_size=0) as ws,
    ):
        yield Plain(ws)


async def everything_in(url: str) -> dict[bytes, bytes]:
    """Every key of a Redis with all that it holds, as text."""
    async with Redis.from_url(url) as redis:
        read: dict[Any, Any] = {b"hash": redis.hgetall, b"string": redis.get, b"stream": redis.xrange}
        return {key: repr(await read[await redis.type(key)](key)).encode() async for key in redis.scan_iter()}


def counted(node: Listeners, metric: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, as a scrape would read it."""
    total = 0.0
    for family in text_string_to_metric_families(node.node.metrics.render().decode()):
        for sample in family.samples:
            if sample.name == metric and all(sample.labels.get(k) == v for k, v in labels.items()):
                total += sample.value
    return total


def by(pool: Sequence[Credential], *transports: str) -> list[Credential]:
    """The same credentials, whose endpoints speak these transports; the first one is preferred."""
    return [replace(credential, transports=transports) for credential in pool]


def only(pool: list[Credential], *names: str) -> list[Credential]:
    return [credential for credential in pool if credential.name in names]


def shared_quota(pool: list[Credential], group: str) -> list[Credential]:
    return [replace(credential, limit_group=group) for credential in pool]


def own_endpoints(pool: list[Credential]) -> list[Credential]:
    """The same addresses, spelt so that each counts as an endpoint of its own."""
    return [replace(credential, base_url=credential.base_url + "/" * at) for at, credential in enumerate(pool)]


def conversation(result: TurnResult) -> list[dict[str, Any]]:
    """All that a vendor must have before it when it answers this turn, by the client's own transcript."""
    return [*(result.parent.transcript() if result.parent is not None else []), *result.input]


def held_against(node: Listeners) -> dict[str, str]:
    """The health that a node sees: the state of every row of the table, without the generations of secrets."""
    rows = node.node.health.snapshot.rows
    return {
        re.sub("@[0-9a-f]{8}", "", subject): row.state.value
        for subject, row in rows.items()
        if row.state is not HealthState.HEALTHY
    }
