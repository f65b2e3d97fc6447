"""Tokens of a directory: asked for once, renewed in time, shared by nodes, shown to nobody else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from broker.domain.credential import Entra, Secret, Token
from broker.domain.failure import Failure, FailureKind
from broker.store.connection import Connection
from broker.store.tokens import TokenShelf
from broker.upstream.tokens import ANSWER_BYTES, DROPPED_EVERY, PAUSE, Shelf, Tokens
from tests import engines
from tests.scenarios.house import wait_until
from tests.upstream.directory import CLIENT, HIDDEN, SCOPE, SECRET, TENANT, Directory

K = FailureKind
MANY = 50


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


Make = Callable[..., Awaitable[Tokens]]


@pytest.fixture
async def directory() -> AsyncIterator[Directory]:
    made = Directory()
    await made.start()
    yield made
    made.gate.set()
    await made.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(clock: Clock) -> AsyncIterator[Make]:
    """Make the tokens of another node."""
    running: list[Tokens] = []

    async def start(shelf: Shelf | None = None, timeout: float = 10.0) -> Tokens:
        made = Tokens(shelf, clock=clock, chance=lambda: 0.0, timeout=timeout)
        await made.start()
        running.append(made)
        return made

    yield start
    for each in running:
        await each.stop()


@pytest.fixture
async def tokens(make: Make) -> Tokens:
    return await make()


async def got(tokens: Tokens, directory: Directory, secret: Secret = SECRET) -> str:
    """A token in clear."""
    value = await tokens.token(directory.entra, secret)
    assert isinstance(value, Secret), value
    return value.reveal()


async def failed(tokens: Tokens, directory: Directory, secret: Secret = SECRET) -> Failure:
    failure = await tokens.token(directory.entra, secret)
    assert isinstance(failure, Failure)
    # nothing was sent to the vendor, and no request of a client was part of it
    assert failure.independent and failure.unsent and failure.raw is None
    assert HIDDEN[:9] not in repr(failure) and CLIENT not in repr(failure)
    return failure


# --- one node ---


async def test_asks_in_the_name_of_the_application(tokens: Tokens, directory: Directory) -> None:
    assert await got(tokens, directory) == directory.made[0]
    assert directory.asked == [
        {
            "tenant": TENANT,
            "grant_type": "client_credentials",
            "client_id": CLIENT,
            "client_secret": HIDDEN,
            "scope": SCOPE,
        }
    ]


async def test_asks_once_for_all_that_wait(tokens: Tokens, directory: Directory) -> None:
    assert set(await asyncio.gather(*(got(tokens, directory) for _ in range(MANY)))) == {directory.made[0]}
    assert len(directory.asked) == 1


async def test_who_leaves_takes_nothing_away_from_the_others(tokens: Tokens, directory: Directory) -> None:
    directory.gate.clear()
    leaving, staying = (asyncio.create_task(got(tokens, directory)) for _ in range(2))
    await wait_until(lambda: directory.asked)
    leaving.cancel()
    await asyncio.wait([leaving], timeout=5.0)
    directory.gate.set()
    assert await staying == directory.made[0]
    assert leaving.cancelled() and len(directory.asked) == 1


async def test_renews_a_token_while_it_still_serves(tokens: Tokens, directory: Directory, clock: Clock) -> None:
    first = await got(tokens, directory)
    clock.now += 0.79 * 3600
    assert await got(tokens, directory) == first
    clock.now += 0.02 * 3600
    directory.gate.clear()
    for _ in range(MANY):
        assert await got(tokens, directory) == first
    await wait_until(lambda: len(directory.asked) == 2)
    directory.gate.set()
    await wait_until(lambda: len(directory.made) == 2)
    async with asyncio.timeout(5.0):
        while await got(tokens, directory) == first:  # noqa: ASYNC110 - the answer has no event
            await asyncio.sleep(0.005)
    assert await got(tokens, directory) == directory.made[1]
    assert len(directory.asked) == 2


async def test_a_token_serves_as_long_as_it_lives_while_there_is_no_other(
    tokens: Tokens, directory: Directory, clock: Clock
) -> None:
    first = await got(tokens, directory)
    await directory.stop()
    for part in (0.81, 0.9, 0.99):
        clock.now = 1000.0 + part * 3600
        assert await got(tokens, directory) == first
    clock.now = 1000.0 + 3600
    assert (await failed(tokens, directory)).kind is K.TRANSPORT_LOST
    await directory.start()
    clock.now += 2 * PAUSE
    assert await got(tokens, directory) == directory.made[1]


async def test_asks_again_only_after_a_pause(tokens: Tokens, directory: Directory, clock: Clock) -> None:
    directory.fails(503, "temporarily_unavailable")
    for _ in range(MANY):
        await failed(tokens, directory)
    assert len(directory.asked) == 1
    clock.now += PAUSE
    directory.answer = None
    await got(tokens, directory)
    assert len(directory.asked) == 2


async def test_waits_as_long_as_it_was_told_but_no_longer_than_a_minute(
    tokens: Tokens, directory: Directory, clock: Clock
) -> None:
    directory.fails(429, "too_many", Retry_After="20")
    failure = await failed(tokens, directory)
    assert (failure.kind, failure.status, failure.retry_after) == (K.OVERLOADED, 429, 20.0)
    directory.fails(429, "too_many", Retry_After="7000")
    for seconds, asked in ((19.0, 1), (2.0, 2), (59.0, 2), (2.0, 3)):
        clock.now += seconds
        await failed(tokens, directory)
        assert len(directory.asked) == asked


@pytest.mark.parametrize(
    ("status", "word", "kind", "code"),
    [
        (401, "invalid_client", K.AUTH_REJECTED, "invalid_client"),
        (400, "unauthorized_client", K.AUTH_REJECTED, "unauthorized_client"),
        (403, "access_denied", K.AUTH_REJECTED, "access_denied"),
        (400, "invalid_scope", K.AUTH_REJECTED, "invalid_scope"),
        (400, "invalid_request", K.AUTH_REJECTED, "invalid_request"),
        (400, HIDDEN, K.AUTH_REJECTED, "no_token"),
        (400, "temporarily_unavailable", K.OVERLOADED, "no_token"),
        (400, 7, K.OVERLOADED, "no_token"),
        (429, "invalid_client", K.OVERLOADED, "no_token"),
        (408, "x", K.OVERLOADED, "no_token"),
        (500, "server_error", K.OVERLOADED, "no_token"),
        (503, "invalid_client", K.OVERLOADED, "no_token"),
        (307, "invalid_client", K.OVERLOADED, "no_token"),
        (201, "invalid_client", K.OVERLOADED, "no_token"),
    ],
)
async def test_a_refusal_is_the_applications_or_the_directorys(
    tokens: Tokens, directory: Directory, status: int, word: object, kind: FailureKind, code: str
) -> None:
    directory.fails(status, word, Location=directory.entra.authority + "/elsewhere/oauth2/v2.0/token")
    failure = await failed(tokens, directory)
    assert (failure.kind, failure.code) == (kind, code)
    assert failure.names_key is (kind is K.AUTH_REJECTED)
    assert [each["tenant"] for each in directory.asked] == [TENANT], "a redirect would take the secret elsewhere"


async def test_a_wrong_secret_is_the_applications_fault(tokens: Tokens, directory: Directory) -> None:
    failure = await failed(tokens, directory, Secret("wrong"))
    assert (failure.kind, failure.names_key, failure.status) == (K.AUTH_REJECTED, True, 401)


GOOD = b'{"access_token":"abc","token_type":"Bearer","expires_in":60%s}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"<html>",
        b'{"token_type":"Bearer","expires_in":60}',
        b'{"access_token":"","token_type":"Bearer","expires_in":60}',
        b'{"access_token":7,"token_type":"Bearer","expires_in":60}',
        b'{"access_token":"a\\r\\nb: c","token_type":"Bearer","expires_in":60}',
        b'{"access_token":"a b","token_type":"Bearer","expires_in":60}',
        b'{"access_token":"\xc3\xa4","token_type":"Bearer","expires_in":60}',
        b'{"access_token":"abc","expires_in":60}',
        b'{"access_token":"abc","token_type":"pop","expires_in":60}',
        *(b'{"access_token":"abc","token_type":"Bearer","expires_in":%b}' % n for n in (b"0", b"-1", b"true", b'"x"')),
        b'{"access_token":"' + b"a" * 33_000 + b'","token_type":"Bearer","expires_in":60}',
        GOOD % (b',"x":"' + b"a" * ANSWER_BYTES + b'"'),
    ],
)
async def test_a_good_answer_without_a_good_token_is_garbage(tokens: Tokens, directory: Directory, body: bytes) -> None:
    directory.says(body)
    failure = await failed(tokens, directory)
    assert (failure.kind, failure.code) == (K.TRANSPORT_LOST, "garbage")


@pytest.mark.parametrize(
    ("life", "seconds"), [(b"60", 57), (b'"60"', 57), (b"60.5", 57), (b"null", None), (b"1e9", 86_370)]
)
async def test_a_token_lives_as_long_as_it_was_told(
    tokens: Tokens, directory: Directory, clock: Clock, life: bytes, seconds: float | None
) -> None:
    directory.says(b'{"access_token":"abc","token_type":"bearer","expires_in":%b}' % life)
    if seconds is None:
        await failed(tokens, directory)
        return
    await got(tokens, directory)
    await directory.stop()
    clock.now += seconds - 0.1
    assert await got(tokens, directory) == "abc"
    clock.now += 1.0
    await failed(tokens, directory)


async def test_a_directory_that_says_nothing_is_not_waited_for(make: Make, directory: Directory) -> None:
    brief = await make(timeout=0.2)
    directory.gate.clear()
    began = time.monotonic()
    failures = await asyncio.gather(*(failed(brief, directory) for _ in range(MANY)))
    assert {(each.kind, each.code) for each in failures} == {(K.TRANSPORT_LOST, "silent")}
    assert time.monotonic() - began < 2.0


async def test_an_answer_without_an_end_is_not_read_to_the_end(tokens: Tokens, directory: Directory) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b'{"a":' * 10_000)

    directory.answer = answer
    assert (await failed(tokens, directory)).code == "garbage"


async def test_nobody_waits_for_tokens_that_were_stopped(make: Make, directory: Directory) -> None:
    stopped = await make()
    directory.gate.clear()
    waiting = asyncio.create_task(failed(stopped, directory))
    await wait_until(lambda: directory.asked)
    await stopped.stop()
    assert (await asyncio.wait_for(waiting, 5.0)).code == "stopped"


async def test_a_token_that_was_refused_is_replaced_but_not_all_the_time(
    tokens: Tokens, directory: Directory, clock: Clock
) -> None:
    assert not tokens.drop(directory.entra, SECRET), "there is none"
    first = await got(tokens, directory)
    assert tokens.drop(directory.entra, SECRET)
    second = await got(tokens, directory)
    assert second != first
    clock.now += 1.0
    assert tokens.drop(directory.entra, SECRET), "a late refusal of the first one"
    clock.now += DROPPED_EVERY - 2.0
    assert not tokens.drop(directory.entra, SECRET), "new ones are refused as well"
    assert await got(tokens, directory) == second
    clock.now += 1.0
    assert tokens.drop(directory.entra, SECRET)
    assert await got(tokens, directory) == directory.made[2]


async def test_secrets_that_were_replaced_are_forgotten(tokens: Tokens, directory: Directory, clock: Clock) -> None:
    for i in range(MANY):
        await failed(tokens, directory, Secret(f"wrong-{i}"))
        clock.now += 2 * PAUSE
    assert len(tokens._known) == 1


async def test_no_log_tells_a_token_or_a_secret(
    tokens: Tokens, directory: Directory, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await got(tokens, directory)
    tokens.drop(directory.entra, SECRET)
    directory.fails(401, "invalid_client")
    await failed(tokens, directory)
    clock.now += 2 * PAUSE
    await directory.stop()
    await failed(tokens, directory)
    told = caplog.text + "".join(repr(record.__dict__) for record in caplog.records) + repr(tokens._known)
    assert "no new token" in told and "token renewed" in told
    assert "canary" not in told


# --- several nodes ---


@pytest.fixture(scope="module")
def redis_here() -> Iterator[Callable[[], engines.Server]]:
    """Start a server of one's own, which a test may kill."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(engines.server("valkey9"))


@pytest.fixture
async def shelf(redis_server: engines.Server) -> AsyncIterator[Callable[[], TokenShelf]]:
    """The shelf as another node sees it."""
    redis_server.execute("FLUSHALL")
    connections: list[Connection] = []

    def connect() -> TokenShelf:
        connections.append(Connection(redis_server.url))
        return TokenShelf(connections[-1])

    yield connect
    for each in connections:
        await each.close()


async def of_all(nodes: list[Tokens], directory: Directory) -> set[str]:
    return set(await asyncio.gather(*(got(node, directory) for node in nodes for _ in range(MANY))))


async def everything(server: engines.Server) -> bytes:
    """All that lies in Redis, keys and values."""
    client: Any = Redis.from_url(server.url)
    try:
        keys = await client.keys("*")
        return b"|".join([*keys, *[await client.get(key) or b"" for key in keys]])
    finally:
        await client.aclose()


async def test_nodes_ask_once_for_all_of_them(
    make: Make, directory: Directory, shelf: Callable[[], TokenShelf], clock: Clock, redis_server: engines.Server
) -> None:
    nodes = [await make(shelf()) for _ in range(3)]
    assert await of_all(nodes, directory) == {directory.made[0]}
    assert len(directory.asked) == 1
    clock.now += 0.9 * 3600  # due on each of them
    assert await of_all(nodes, directory) <= set(directory.made)
    async with asyncio.timeout(10.0):
        while await of_all(nodes, directory) != {directory.made[-1]} or len(directory.made) == 1:
            pass
    assert len(directory.asked) == 2
    lying = await everything(redis_server)
    assert b"sb:t:{" in lying and b"canary" not in lying and CLIENT.encode() not in lying


async def test_a_token_that_ran_out_is_asked_for_once(
    directory: Directory, shelf: Callable[[], TokenShelf], redis_server: engines.Server
) -> None:
    directory.life = 1
    nodes = [Tokens(shelf()) for _ in range(3)]
    for node in nodes:
        await node.start()
    first = await of_all(nodes, directory)
    await wait_until(lambda: redis_server.execute("DBSIZE") == b":0")
    directory.life = 3600
    (second,) = await of_all(nodes, directory)
    assert first == {directory.made[0]} and second == directory.made[1]
    assert len(directory.asked) == 2
    for node in nodes:
        await node.stop()


async def test_a_node_that_starts_takes_what_lies_there(
    make: Make, directory: Directory, shelf: Callable[[], TokenShelf]
) -> None:
    first = await got(await make(shelf()), directory)
    await directory.stop()
    assert await got(await make(shelf()), directory) == first
    other = await make(shelf())
    assert (await failed(other, directory, Secret("wrong"))).kind is K.TRANSPORT_LOST, "not without the secret"


async def test_a_token_that_is_due_is_better_than_none(
    make: Make, directory: Directory, shelf: Callable[[], TokenShelf]
) -> None:
    await shelf().put(directory.entra, SECRET, Token(Secret("old"), 3600.0, 300.0))
    await directory.stop()
    node = await make(shelf())
    assert await got(node, directory) == "old"
    await directory.start()
    assert await got(await make(shelf()), directory) == directory.made[0]


class Overtaken(TokenShelf):
    """A shelf on which another node lays a token just before the lease can be had."""

    other: Tokens

    async def lock(self, entra: Entra, secret: Secret, holder: str, ttl: float) -> bool:
        await self.other.token(entra, secret)
        return await super().lock(entra, secret, holder, ttl)


async def test_who_was_overtaken_on_the_way_to_the_lease_does_not_ask(
    make: Make, directory: Directory, shelf: Callable[[], TokenShelf], redis_server: engines.Server
) -> None:
    connection = Connection(redis_server.url)
    overtaken = Overtaken(connection)
    overtaken.other = await make(shelf())
    assert await got(await make(overtaken), directory) == directory.made[0]
    assert len(directory.asked) == 1
    await connection.close()


async def test_who_dies_while_it_asks_holds_nobody_up(
    make: Make, directory: Directory, shelf: Callable[[], TokenShelf]
) -> None:
    assert await shelf().lock(directory.entra, SECRET, "dead", 0.3)
    nodes = [await make(shelf()) for _ in range(3)]
    assert await of_all(nodes, directory) == {directory.made[0]}
    assert len(directory.asked) == 1


async def test_who_failed_lets_the_others_ask_at_once(
    make: Make, directory: Directory, shelf: Callable[[], TokenShelf]
) -> None:
    one, other = await make(shelf()), await make(shelf())
    directory.fails(503, "server_error")
    await failed(one, directory)
    directory.answer = None
    began = time.monotonic()
    assert await got(other, directory) == directory.made[0]
    assert time.monotonic() - began < 2.0


async def test_a_refused_token_is_replaced_once_for_all_nodes(
    make: Make, directory: Directory, shelf: Callable[[], TokenShelf]
) -> None:
    nodes = [await make(shelf()) for _ in range(3)]
    await of_all(nodes, directory)
    for node in nodes:
        assert node.drop(directory.entra, SECRET)
    assert await of_all(nodes, directory) == {directory.made[1]}
    assert len(directory.asked) == 2


async def test_every_node_helps_itself_while_the_store_is_away(
    make: Make, directory: Directory, redis_here: Callable[[], engines.Server]
) -> None:
    server = redis_here()
    connections = [Connection(server.url, timeout=0.2, connect_timeout=0.2) for _ in range(3)]
    nodes = [await make(TokenShelf(each)) for each in connections]
    server.pause()
    began = time.monotonic()
    await of_all(nodes[:1], directory)
    assert time.monotonic() - began < 3.0
    server.resume()
    server.kill()
    await of_all(nodes[1:], directory)
    assert len(directory.asked) == 3
    for each in connections:
        await each.close()
