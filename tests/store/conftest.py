"""Every contract test of the store runs on every engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import fakeredis
import pytest

from broker.store.codec import Codec
from broker.store.connection import Connection
from broker.store.sessions import SessionStore
from tests import engines
from tests.store.turns import IDLE_TTL, ServerOf


@pytest.fixture(scope="session")
def server_of() -> Iterator[ServerOf]:
    """The one server of each engine that all tests share; started when it is first wanted."""
    running: dict[str, engines.Server] = {}
    with ExitStack() as stack:

        def find(name: str) -> engines.Server:
            if name not in running:
                try:
                    running[name] = stack.enter_context(engines.server(name))
                except LookupError as missing:
                    pytest.skip(str(missing))
            running[name].execute("FLUSHALL")
            return running[name]

        yield find


@pytest.fixture(params=(*engines.NAMES, "fakeredis"))
def engine(request: pytest.FixtureRequest) -> str:
    """The name of the engine that a test runs on."""
    return str(request.param)


@pytest.fixture
async def connection(engine: str, server_of: ServerOf) -> AsyncIterator[Connection]:
    """A connection to an empty engine."""
    if engine == "fakeredis":
        client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        yield Connection.over(client)
        await client.aclose()
        return
    made = Connection(server_of(engine).url)
    yield made
    await made.close()


@pytest.fixture
def store(connection: Connection) -> SessionStore:
    """A store without a key and with much room."""
    return SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=64 << 20)
