"""Canaries: what is secret is looked for wherever it might turn up, after a day on which everything went wrong."""

from __future__ import annotations

import io
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from broker import logs
from broker.edge.app import Listeners
from broker.edge.wiring import Bounds
from broker.simulator import Fault, SessionClient
from broker.store import keys
from tests import engines
from tests.scenarios.house import KEY, OTHER_KEY, PRIVATE_KEY, House, everything_in, plain, wait_until

Build = Callable[..., Awaitable[House]]

VENDOR_KEYS = ("sk-sim-A", "sk-sim-B", "sk-sim-C")
CLIENT_KEYS = (KEY, OTHER_KEY, PRIVATE_KEY, "sbk_wrong-key-canary")
SESSION_NAME = "canary-session-3f1d"
PROMPTS = ("canary-prompt-71ac", "canary-tool-9e20", "canary-instructions-55b1", "canary-cache-key-0d4e", "lorem ipsum")
BINARY_KEY = b"canary-of-32-bytes-for-the-codec"

KEY_IN_WORDS = "Incorrect API key provided: sk-sim-A. Also seen: sk-sim-B, sk-sim-C."


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """All that the process logs, at the finest level and in both formats, as an operator would have it."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    for formatter in (logs.JsonFormatter(), logs.TextFormatter(), logging.Formatter("%(message)s %(args)s")):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


async def scraped(node: Listeners) -> str:
    texts = []
    async with aiohttp.ClientSession() as session:
        for path in ("metrics", "readyz", "livez"):
            async with session.get(f"http://127.0.0.1:{node.operations_port}/{path}") as response:
                texts.append(await response.text())
    return "\n".join(texts)


async def everything_goes_wrong(house: House, node: Listeners) -> str:
    """Turns with all kinds of failures; answers everything that a client was told besides its answers."""
    told: list[Any] = []
    faults = house.sim.faults

    async def turn(client: SessionClient, text: str = "more of canary-prompt-71ac") -> None:
        result = await client.turn(text, extra=extra)
        told.append((result.error, result.problems, client.notices, client.handshake_headers))
        if not result.ok:
            told.append((await client.turn(text, parent=None, extra=extra)).error)

    extra = {"instructions": "canary-instructions-55b1", "prompt_cache_key": "canary-cache-key-0d4e"}
    client = await house.connected(node, session_id=SESSION_NAME)
    stranger = await house.connected(node, key=OTHER_KEY)
    private = await house.connected(node, key=PRIVATE_KEY)
    await turn(client, "canary-prompt-71ac [[call:canary-tool-9e20]]")
    answered = await client.tool_turn()
    assert answered.ok, answered.problems
    await turn(stranger)
    await turn(private)
    # upgrades that are refused, by all, in the words of a careless vendor
    faults.set("*", "invalid_api_key", at="handshake", do="refuse", message=KEY_IN_WORDS)
    fresh = await house.connected(node)
    await turn(fresh)
    await house.sim.end_sockets()
    await turn(client)
    faults.clear()
    await forgiven(house, node)
    # refusals of one key and of all of them, on live sockets
    for preset in ("invalid_api_key", "forbidden_generic", "usage_limit_reached", "server_error", "slow_down"):
        for whom, times in (("A", None), ("*", None)):
            for deed in ("error", "failed", "double"):
                faults.set(whom, preset, do=deed, message=KEY_IN_WORDS, times=times)
                await turn(client)
                faults.clear()
                await forgiven(house, node)
    # sockets that break before and behind the first output, and frames that are none
    for at in ("before_created", "after_created", "after_deltas"):
        for deed in ("reset", "close", "garbage"):
            faults.set("*", Fault(at=at, do=deed, message=KEY_IN_WORDS, times=1))
            await turn(client)
            faults.clear()
            await forgiven(house, node)
    # what is no turn at all
    async with plain(node) as bare:
        for frame in ("canary-prompt-71ac {", '{"type":"canary-prompt-71ac"}', '{"type":"response.create","model":7}'):
            await bare.ws.send_str(frame)
            await bare.event()
    wrong = house.agent(node, key="sbk_wrong-key-canary", session_id=SESSION_NAME)
    assert not await wrong.connect()
    told.append(wrong.handshake_headers)
    return repr(told)


async def forgiven(house: House, node: Listeners) -> None:
    """As if an operator had put every credential right."""
    async with Redis.from_url(house.url) as redis:
        await redis.delete(keys.health_rows())
    await node.node.health.refresh()
    await wait_until(lambda: node.node.placement.usable() == 3)


def found(words: tuple[str, ...], *places: str) -> list[str]:
    return [word for word in words for place in places if word in place]


async def test_no_secret_turns_up_anywhere(build: Build, written: io.StringIO) -> None:
    house = await build()
    node = await house.node(key=BINARY_KEY)

    told = await everything_goes_wrong(house, node)
    stored = await everything_in(house.url)
    log, shown = written.getvalue(), await scraped(node)

    names, values = repr(list(stored)), repr(list(stored.values()))
    assert "turn ended" in log and "broker_turns_total" in shown and len(stored) > 5, "there was something to look at"
    secrets = (*VENDOR_KEYS, *CLIENT_KEYS, BINARY_KEY.decode())
    assert found(secrets, log, shown, names, values, told) == []
    assert found(PROMPTS, log, shown, names, values) == []
    assert found((SESSION_NAME,), log, shown, names) == []
    headers = repr([handshake.headers for handshake in house.sim.handshakes])
    assert found((*CLIENT_KEYS, SESSION_NAME), headers) == [], "nothing of the client's identity goes up"


async def test_prompts_would_be_found_without_a_key(build: Build) -> None:
    """The control: the search above finds what is there to be found."""
    house = await build()
    node = await house.node()
    client = await house.connected(node, session_id=SESSION_NAME)
    assert (await client.turn("canary-prompt-71ac [[call:canary-tool-9e20]]")).ok
    assert (await client.tool_turn()).ok

    values = repr(list((await everything_in(house.url)).values()))

    assert set(found(PROMPTS, values)) == {"canary-prompt-71ac", "canary-tool-9e20", "lorem ipsum"}


async def test_no_secret_turns_up_when_a_turn_is_too_big_or_the_store_breaks(
    build: Build, written: io.StringIO
) -> None:
    house = await build()
    with engines.server("valkey9") as server:
        house.url = server.url.replace("unix://", "unix://:canary-redis-password@")
        server.execute("CONFIG", "SET", "requirepass", "canary-redis-password")
        bounds = Bounds(hold=1.0, first_event=5.0, silence=5.0, leave=3.0, max_frame=65536)
        node = await house.node(key=BINARY_KEY, bounds=bounds, timeout=0.3, connect_timeout=0.3)
        client = await house.connected(node)
        assert (await client.turn("canary-prompt-71ac")).ok
        large = house.agent(node)
        assert await large.connect()
        too_large = await large.turn("canary-prompt-71ac" * 10000)
        server.kill()
        assert (await client.turn("more of canary-prompt-71ac")).ok
        named = house.agent(node, session_id=SESSION_NAME)
        assert not await named.connect()
        shown = await scraped(node)
        server.start()
        server.execute("CONFIG", "SET", "requirepass", "another-password")
        refused = await client.turn("still more of canary-prompt-71ac")
        server.kill()
        server.start()
        server.execute("CONFIG", "SET", "requirepass", "canary-redis-password")
        await wait_until(lambda: len(node.node.journal) == 0, within=8.0)

    told = repr((too_large.error, refused.error, named.handshake_headers))
    secrets = (*VENDOR_KEYS, *CLIENT_KEYS, BINARY_KEY.decode(), "canary-redis-password")
    assert found((*secrets, *PROMPTS, SESSION_NAME), written.getvalue(), shown) == []
    assert found(secrets, told) == []


async def test_a_credential_shows_its_secret_in_no_text(house: House) -> None:
    credentials = house.credentials()
    node = await house.node(credentials=[replace(c, headers={"x-project": "p"}) for c in credentials])

    texts = [
        repr(credentials),
        str(credentials),
        f"{credentials}",
        repr(node.node.placement.pool),
        repr(vars(node.node)),
    ]

    assert found(VENDOR_KEYS, *texts) == []
