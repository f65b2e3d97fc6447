"""Simulators, clients and raw sockets for the tests of the simulator."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import aiohttp
import orjson
import pytest

from broker.simulator import HttpClient, SessionClient, SimCredential, Simulator

CREDENTIALS = [
    SimCredential("A", "sk-sim-a", "org-a"),
    SimCredential("A2", "sk-sim-a2", "org-a"),
    SimCredential("B", "sk-sim-b", "org-b", ["sim-2"]),
    SimCredential("C", "sk-sim-c", "org-c"),
]
PATIENCE = 5.0


class Raw:
    """A plain WebSocket to the vendor that knows nothing of the protocol but its frames."""

    def __init__(self, ws: "aiohttp.ClientWebSocketResponse[Any]") -> None:
        self.ws = ws

    async def send(self, frame: dict[str, Any]) -> None:
        await self.ws.send_bytes(b"") if frame is None else await self.ws.send_str(orjson.dumps(frame).decode())

    async def create(self, text: Any = "hello", **fields: Any) -> None:
        await self.send({"type": "response.create", "model": "sim-1", "input": text, **fields})

    async def receive(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self.ws.receive()

    async def event(self) -> dict[str, Any]:
        message = await self.receive()
        assert message.type is aiohttp.WSMsgType.TEXT, message
        event: dict[str, Any] = orjson.loads(message.data)
        return event

    async def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Events up to and including the first of a kind."""
        seen = [await self.event()]
        while seen[-1]["type"] not in kinds:
            seen.append(await self.event())
        return seen

    async def answer(self, text: Any = "hello", **fields: Any) -> list[dict[str, Any]]:
        """Create and read up to the end, whatever it is."""
        await self.create(text, **fields)
        return await self.until("response.completed", "response.incomplete", "response.failed", "error")

    async def completed(self, text: Any = "hello", **fields: Any) -> dict[str, Any]:
        """The response object of a turn that must complete."""
        last = (await self.answer(text, **fields))[-1]
        assert last["type"] == "response.completed", last
        response: dict[str, Any] = last["response"]
        return response

    async def refused(self, text: Any = "hello", **fields: Any) -> dict[str, Any]:
        """The error event of a turn that must be refused."""
        last = (await self.answer(text, **fields))[-1]
        assert last["type"] == "error", last
        return last


class WaitUntil(Protocol):
    def __call__(self, predicate: Callable[[], object]) -> Awaitable[None]: ...


class NewSimulator(Protocol):
    def __call__(self, credentials: Sequence[SimCredential] = CREDENTIALS, **options: Any) -> Awaitable[Simulator]: ...


class Dial(Protocol):
    def __call__(self, sim: Simulator, secret: str = "sk-sim-a") -> Awaitable[Raw]: ...


class Ask(Protocol):
    def __call__(
        self, sim: Simulator, method: str, path: str, body: Any = None, *, secret: str = "sk-sim-a", **headers: str
    ) -> Awaitable[tuple[int, Any]]: ...


class Stream(Protocol):
    def __call__(
        self, sim: Simulator, method: str, path: str, body: Any = None, *, secret: str = "sk-sim-a"
    ) -> Awaitable[list[dict[str, Any]]]: ...


class NewAgent(Protocol):
    def __call__(self, sim: Simulator, secret: str = "sk-sim-a", **settings: Any) -> Awaitable[HttpClient]: ...


class NewClient(Protocol):
    def __call__(self, sim: Simulator, secret: str = "sk-sim-a", **settings: Any) -> Awaitable[SessionClient]: ...


@pytest.fixture
def wait_until() -> WaitUntil:
    async def wait(predicate: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not predicate():
            assert time.monotonic() < end, "waited in vain"
            await asyncio.sleep(0.002)

    return wait


@pytest.fixture
async def new_simulator() -> AsyncIterator[NewSimulator]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(credentials: Sequence[SimCredential] = CREDENTIALS, **options: Any) -> Simulator:
            sim = Simulator(credentials, **options)
            await sim.start()
            stack.push_async_callback(sim.stop)
            return sim

        yield start


@pytest.fixture
async def sim(new_simulator: NewSimulator) -> Simulator:
    return await new_simulator()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
        yield session


@pytest.fixture
def ask(http: aiohttp.ClientSession) -> Ask:
    async def request(
        sim: Simulator, method: str, path: str, body: Any = None, *, secret: str = "sk-sim-a", **headers: str
    ) -> tuple[int, Any]:
        named = {"Authorization": f"Bearer {secret}"} | {name.replace("_", "-"): told for name, told in headers.items()}
        async with http.request(method, sim.base_url + path, headers=named, json=body) as answer:
            return answer.status, await answer.json()

    return request


@pytest.fixture
def stream(http: aiohttp.ClientSession) -> Stream:
    async def read(
        sim: Simulator, method: str, path: str, body: Any = None, *, secret: str = "sk-sim-a"
    ) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {secret}"}
        async with http.request(method, sim.base_url + path, headers=headers, json=body) as answer:
            assert answer.status == 200 and answer.content_type == "text/event-stream", await answer.text()
            blocks = (await answer.read()).decode().split("\n\n")
        lines = [line for block in blocks for line in block.split("\n") if line.startswith("data: ")]
        return [orjson.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]

    return read


@pytest.fixture
async def new_agent() -> AsyncIterator[NewAgent]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(sim: Simulator, secret: str = "sk-sim-a", **settings: Any) -> HttpClient:
            agent = HttpClient(sim.base_url, secret, **{"timeout": PATIENCE, **settings})
            stack.push_async_callback(agent.close)
            await agent.connect()
            return agent

        yield start


@pytest.fixture
def dial(http: aiohttp.ClientSession) -> Dial:
    async def connect(sim: Simulator, secret: str = "sk-sim-a") -> Raw:
        headers = {"Authorization": f"Bearer {secret}"}
        return Raw(await http.ws_connect(sim.base_url + "/responses", headers=headers, max_msg_size=0))

    return connect


@pytest.fixture
async def raw(sim: Simulator, dial: Dial) -> Raw:
    return await dial(sim)


@pytest.fixture
async def new_client() -> AsyncIterator[NewClient]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(sim: Simulator, secret: str = "sk-sim-a", **settings: Any) -> SessionClient:
            client = SessionClient(sim.base_url, secret, **{"timeout": PATIENCE, **settings})
            stack.push_async_callback(client.close)
            await client.connect()
            return client

        yield start
