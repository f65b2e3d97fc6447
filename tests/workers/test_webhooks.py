"""Webhooks on a real store, posted to a real receiver."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from broker.config import Config, ResolvedSecrets, WebhookConfig, WebhookSecrets
from broker.domain.credential import Secret
from broker.metrics import Count
from broker.store import keys
from broker.store.connection import Connection, command
from broker.store.events import HealthEvent
from broker.store.tellings import TellingStore
from tests.scenarios.house import wait_until
from tests.workers.receiver import Receiver, receiving
from workers.telling import chosen, line_of
from workers.webhooks import AT_ONCE, ATTEMPTS, Webhook, Webhooks, webhooks_of

START = int(time.time() * 1000)
SUBJECT = "credential:openai-main@12345678"
STATES = ("revoked", "exhausted")


def event(number: int, **said: Any) -> HealthEvent:
    fields = {"subject": SUBJECT, "from_": "healthy", "state": "revoked", "because": "invalid_api_key"}
    return HealthEvent(f"{START + number}-0", (START + number) / 1000, **{**fields, **said})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


class Fixture:
    """A worker's webhooks, whose steps are asked for until something comes true."""

    def __init__(self, connection: Connection, *hooks: Webhook, token: str = "one", **settings: Any) -> None:
        store = {name: settings.pop(name) for name in ("claim", "window", "most_owed") if name in settings}
        self.hooks = Webhooks(hooks, TellingStore(connection, token, **store), **{"first_pause": 0.01, **settings})

    @property
    def results(self) -> dict[tuple[str, str], int]:
        return dict(self.hooks.results)

    async def until(self, predicate: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not predicate():
                await self.hooks.step()
                await asyncio.sleep(0.002)

    async def settled(self) -> None:
        """Nothing is under way, and the store knows how everything ended."""
        await self.until(lambda: not self.hooks.under_way)
        await self.hooks.step()


Make = Callable[..., Fixture]


@pytest.fixture
async def make(connection: Connection) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def made(*hooks: Webhook, **settings: Any) -> Fixture:
            fixture = Fixture(connection, *hooks, **settings)
            stack.push_async_callback(fixture.hooks.close, 0.05)
            return fixture

        yield made


# --- what is told ---


@pytest.mark.parametrize(
    ("subject", "from_", "state", "told"),
    [
        (SUBJECT, "healthy", "revoked", True),
        (SUBJECT, "revoked", "revoked", False),
        (SUBJECT, "revoked", "suspect", True),
        (SUBJECT, "revoked", "healthy", True),
        (SUBJECT, "suspect", "healthy", False),
        (SUBJECT, "healthy", "cooling", False),
        ("group:acme", "healthy", "exhausted", True),
        ("group:acme", "exhausted", "healthy", True),
        ("group:openai-main@12345678", "healthy", "exhausted", True),
        ("group:acme:gpt-5", "healthy", "exhausted", False),
        ("group:acme:gpt-5", "exhausted", "healthy", False),
        ("group:acme:gpt-5", "healthy", "revoked", True),
        ("model:openai-main@12345678:gpt-5", "cooling", "exhausted", False),
        ("", "", "", False),
    ],
)
def test_tells_who_comes_into_a_chosen_state_or_leaves_it(subject: str, from_: str, state: str, told: bool) -> None:
    assert chosen(event(1, subject=subject, from_=from_, state=state), STATES) is told


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"until": 1_795_000_000.0}, "credential openai-main is revoked (invalid_api_key) until 2026-11-18T11:06:40Z"),
        ({"because": "", "until": 1e17}, "credential openai-main is revoked"),
        ({"subject": "group:acme", "state": "exhausted"}, "limit group acme is exhausted (invalid_api_key)"),
        ({"from_": "revoked", "state": "healthy"}, "credential openai-main is healthy again (was revoked)"),
        ({"from_": "revoked", "state": "suspect"}, "credential openai-main is back on trial (was revoked)"),
        ({"state": "suspect", "because": "lost"}, "credential openai-main is suspect (lost)"),
        ({"subject": "credential:red", "state": "paused", "because": ""}, "credential red is paused"),
        ({"subject": "group:red@12345678", "because": ""}, "limit group of credential red is revoked"),
        ({"subject": "group:acme:gpt-5", "because": ""}, "limit group acme, model gpt-5 is revoked"),
        ({"subject": "model:red@1:a:b", "because": ""}, "credential red, model a:b is revoked"),
        ({"subject": "endpoint:https://a.example:1/v1", "because": ""}, "endpoint https://a.example:1/v1 is revoked"),
        ({"because": "<!channel> a\nb&c"}, "credential openai-main is revoked (&lt;!channel&gt; a b&amp;c)"),
        ({"subject": "odd", "because": ""}, "odd is revoked"),
    ],
)
def test_says_it_in_one_line(said: dict[str, Any], line: str) -> None:
    assert line_of(event(1, **said)) == f"session-broker: {line}"


def test_webhooks_are_made_from_the_configuration() -> None:
    items = (
        WebhookConfig(name="slack", url_env="U", states=("cooling",), per_minute=3),
        WebhookConfig(name="unknown", url_env="V"),
    )
    config = Config(tenants=(), credentials=(), webhooks=items)
    told = WebhookSecrets(Secret("https://a.example/secret"), Secret("key"))
    (hook,) = webhooks_of(config, ResolvedSecrets({}, None, None, {"slack": told}))
    assert hook == Webhook("slack", told.url, told.signing, ("cooling",), 3)
    assert "secret" not in repr(hook).replace("Secret", "") and "key" not in repr(hook)


# --- how it is told ---


async def test_a_post_holds_the_event_and_a_line(make: Make, receiver: Receiver) -> None:
    fixture = make(Webhook("slack", receiver.url()))
    await fixture.hooks.owe([event(1, version=7), event(2, state="cooling")])
    await fixture.until(lambda: fixture.results.get(("slack", "sent")))
    await fixture.settled()
    (post,) = receiver.posts
    assert post.path == "/hook" and post.headers["Content-Type"] == "application/json" and post.id == event(1).id
    assert post.json["event"] == {
        **post.json["event"],
        "id": post.id,
        "from": "healthy",
        "state": "revoked",
        "version": 7,
    }
    assert post.json["text"] == "session-broker: credential openai-main is revoked (invalid_api_key)"
    assert "X-Broker-Signature" not in post.headers


async def test_a_signature_can_be_verified(make: Make, receiver: Receiver) -> None:
    fixture = make(Webhook("slack", receiver.url(), signing=Secret("key")), clock=lambda: START / 1000)
    await fixture.hooks.owe([event(1)])
    await fixture.until(lambda: receiver.posts)
    (post,) = receiver.posts
    told = dict(part.split("=") for part in post.headers["X-Broker-Signature"].split(","))
    assert told["t"] == str(START // 1000)
    signed = f"{told['t']}.".encode() + post.body
    assert told["v1"] == hmac.new(b"key", signed, hashlib.sha256).hexdigest()


async def test_each_webhook_is_told_what_it_wants_to_hear(make: Make, receiver: Receiver) -> None:
    fixture = make(Webhook("a", receiver.url("/a")), Webhook("b", receiver.url("/b"), states=("cooling",)))
    await fixture.hooks.owe([event(1), event(2, state="cooling")])
    await fixture.until(lambda: len(receiver.posts) == 2)
    assert {(post.path, post.id) for post in receiver.posts} == {("/a", event(1).id), ("/b", event(2).id)}


@pytest.mark.parametrize("first", [500, 503, 408, 429])
async def test_tries_again_until_it_is_taken(make: Make, receiver: Receiver, first: int) -> None:
    receiver.answers = [first, 500]
    fixture = make(Webhook("slack", receiver.url()))
    await fixture.hooks.owe([event(1)])
    await fixture.until(lambda: fixture.results)
    assert receiver.ids == [event(1).id] * 3 and fixture.results == {("slack", "sent"): 1}


@pytest.mark.parametrize("status", [302, 307, 400, 404, 410])
async def test_gives_up_at_once_what_would_fail_again_and_follows_nobody(
    make: Make, receiver: Receiver, status: int
) -> None:
    receiver.answers = [status]
    fixture = make(Webhook("slack", receiver.url()))
    await fixture.hooks.owe([event(1)])
    await fixture.until(lambda: fixture.results)
    await fixture.settled()
    assert [post.path for post in receiver.posts] == ["/hook"] and fixture.results == {("slack", "failed"): 1}


async def test_gives_up_after_some_attempts_and_says_so_without_the_address(
    make: Make, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [500] * 20
    counts = Count(CollectorRegistry(), "posts", "Posts.", ["hook", "result"])
    fixture = make(Webhook("slack", receiver.url("/secret-path")), counts=counts)
    await fixture.hooks.owe([event(1)])
    await fixture.until(lambda: fixture.results)
    await fixture.settled()
    assert len(receiver.posts) == ATTEMPTS and fixture.results == {("slack", "failed"): 1}
    (record,) = [record for record in caplog.records if record.message == "a webhook could not be told"]
    assert vars(record)["kind"] == "slack" and vars(record)["reason"] == "status 500"
    assert "secret-path" not in caplog.text + str([vars(each) for each in caplog.records])


async def test_a_receiver_that_is_away_or_silent_is_tried_again(make: Make, receiver: Receiver) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = Secret(f"http://127.0.0.1:{nobody.getsockname()[1]}/")
        receiver.open.clear()
        fixture = make(Webhook("away", url), Webhook("silent", receiver.url()), timeout=0.1)
        await fixture.hooks.owe([event(1)])
        await fixture.until(lambda: len(fixture.results) == 2)
    assert fixture.results == {("away", "failed"): 1, ("silent", "failed"): 1}
    assert len(receiver.posts) == ATTEMPTS


async def test_what_is_long_past_is_no_news(make: Make, receiver: Receiver) -> None:
    fixture = make(Webhook("slack", receiver.url()), clock=lambda: START / 1000 + 3700)
    await fixture.hooks.owe([event(1)])
    await fixture.settled()
    assert receiver.posts == [] and fixture.results == {("slack", "late"): 1}


async def test_follows_a_changed_configuration(make: Make, receiver: Receiver) -> None:
    fixture = make(Webhook("a", receiver.url("/a")), Webhook("b", receiver.url("/b")))
    await fixture.hooks.owe([event(1)])
    fixture.hooks.follow([Webhook("b", receiver.url("/new")), Webhook("c", receiver.url("/c"))])
    await fixture.hooks.owe([event(2)])
    await fixture.until(lambda: len(receiver.posts) == 3)
    await fixture.settled()
    wanted = [("/c", event(2).id), ("/new", event(1).id), ("/new", event(2).id)]
    assert sorted((post.path, post.id) for post in receiver.posts) == wanted


# --- once, by one of several, and not too often ---


async def test_of_two_workers_one_posts(make: Make, receiver: Receiver) -> None:
    one, two = (make(Webhook("slack", receiver.url()), token=token) for token in ("one", "two"))
    events = [event(i) for i in range(20)]

    async def work(fixture: Fixture) -> None:
        await fixture.hooks.owe(events)
        await fixture.until(lambda: len(receiver.posts) >= 20)

    await asyncio.gather(work(one), work(two))
    for fixture in (one, two):
        await fixture.settled()
        await fixture.hooks.owe(events)
        await fixture.settled()
    assert sorted(receiver.ids) == sorted(each.id for each in events)


async def test_another_worker_takes_over_from_one_that_died_in_mid_post(make: Make, receiver: Receiver) -> None:
    receiver.open.clear()
    dead = make(Webhook("slack", receiver.url()), token="dead", claim=0.2)
    other = make(Webhook("slack", receiver.url()), token="other")
    await dead.hooks.owe([event(1)])
    await dead.until(lambda: receiver.posts)
    await other.hooks.step()
    assert not other.hooks.under_way
    await other.until(lambda: len(receiver.posts) == 2)
    receiver.open.set()
    await other.until(lambda: other.results)
    assert receiver.ids == [event(1).id] * 2


async def test_a_worker_that_ends_lets_another_post_at_once(make: Make, receiver: Receiver) -> None:
    receiver.open.clear()
    ending, other = (make(Webhook("slack", receiver.url()), token=token) for token in ("ending", "other"))
    await ending.hooks.owe([event(1)])
    await ending.until(lambda: receiver.posts)
    await ending.hooks.close(0.05)
    receiver.open.set()
    await other.until(lambda: other.results)
    assert receiver.ids == [event(1).id] * 2 and other.results == {("slack", "sent"): 1}


async def test_beyond_the_cap_only_the_number_is_told_when_the_minute_is_over(make: Make, receiver: Receiver) -> None:
    fixture = make(Webhook("slack", receiver.url(), per_minute=3), window=0.6)
    await fixture.hooks.owe([event(i) for i in range(20)])
    await fixture.until(lambda: fixture.results.get(("slack", "capped")) == 17)
    await fixture.until(lambda: len(receiver.posts) == 3)
    assert receiver.ids != [] and all(post.json["event"]["state"] == "revoked" for post in receiver.posts)
    await fixture.until(lambda: len(receiver.posts) > 3)
    await fixture.settled()
    summary = receiver.posts[3]
    assert summary.json["event"] == {"id": summary.id, "more": 17}
    assert summary.json["text"] == "session-broker: 17 more changes"
    await fixture.hooks.owe([event(30)])
    await fixture.until(lambda: len(receiver.posts) == 5)
    assert receiver.posts[4].id == event(30).id


async def test_a_slow_webhook_takes_a_bounded_share(make: Make, receiver: Receiver) -> None:
    async with receiving() as slow:
        slow.open.clear()
        fixture = make(Webhook("slow", slow.url(), per_minute=99), Webhook("slack", receiver.url(), per_minute=99))
        await fixture.hooks.owe([event(i) for i in range(20)])
        await fixture.until(lambda: fixture.results.get(("slack", "sent")) == 20)
        assert slow.most_at_once == AT_ONCE // 2 and receiver.most_at_once <= AT_ONCE // 2
        slow.open.set()
        await fixture.until(lambda: fixture.results.get(("slow", "sent")) == 20)


async def test_one_webhook_alone_has_all_posts(make: Make, receiver: Receiver) -> None:
    receiver.open.clear()
    fixture = make(Webhook("slack", receiver.url(), per_minute=99))
    await fixture.hooks.owe([event(i) for i in range(20)])
    await fixture.until(lambda: receiver.at_once == AT_ONCE)
    await fixture.hooks.step()
    assert fixture.hooks.under_way == AT_ONCE
    receiver.open.set()
    await fixture.until(lambda: fixture.results.get(("slack", "sent")) == 20)


async def test_many_more_webhooks_than_posts_are_all_told_in_turns(make: Make, receiver: Receiver) -> None:
    names = [f"hook-{i}" for i in range(AT_ONCE + 2)]
    fixture = make(*(Webhook(name, receiver.url(f"/{name}")) for name in names))
    receiver.open.clear()
    await fixture.hooks.owe([event(i) for i in range(5)])
    await fixture.until(lambda: receiver.at_once == AT_ONCE)
    await fixture.hooks.step()
    assert fixture.hooks.under_way == AT_ONCE
    receiver.open.set()
    await fixture.until(lambda: len(receiver.posts) == 5 * len(names))
    assert {post.path for post in receiver.posts[: 3 * len(names)]} == {f"/{name}" for name in names}


async def test_what_there_is_no_room_for_is_counted(
    make: Make, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    fixture = make(Webhook("slack", receiver.url()), most_owed=2)
    await fixture.hooks.owe([event(i) for i in range(5)])
    assert fixture.results == {("slack", "full"): 3} and "a webhook is owed too much" in caplog.text


async def test_a_store_that_is_away_when_a_post_ends_is_told_later(
    make: Make, receiver: Receiver, connection: Connection
) -> None:
    receiver.open.clear()
    fixture = make(Webhook("slack", receiver.url()))
    await fixture.hooks.owe([event(1)])
    await fixture.until(lambda: receiver.posts)
    receiver.open.set()
    await wait_until(lambda: not fixture.hooks.under_way)
    assert await done(connection) is False
    await fixture.hooks.step()
    assert await done(connection) is True


async def test_everything_flushed_in_mid_post_is_no_trouble(
    make: Make, receiver: Receiver, connection: Connection
) -> None:
    receiver.open.clear()
    fixture = make(Webhook("slack", receiver.url()))
    await fixture.hooks.owe([event(1), event(2)])
    await fixture.until(lambda: len(receiver.posts) == 2)
    await connection.ask(command("FLUSHALL"))
    receiver.open.set()
    await fixture.until(lambda: fixture.results.get(("slack", "sent")) == 2)
    await fixture.hooks.owe([event(1), event(3)])
    await fixture.until(lambda: event(3).id in receiver.ids)
    await fixture.settled()
    assert sorted(receiver.ids) == [event(i).id for i in (1, 2, 3)]


async def test_without_webhooks_nothing_is_asked_of_the_store(make: Make, connection: Connection) -> None:
    fixture = make()
    await fixture.hooks.owe([event(1)])
    await fixture.hooks.step()
    assert connection.round_trips == 0


async def done(connection: Connection) -> bool:
    (found,) = await connection.ask(command("GET", keys.health_told("slack", event(1).id)))
    return bool(found == b"done")
