"""Webhooks: tells others of changes of health, each change to each of them once, and never holds the recorder up."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import aiohttp
import msgspec

from broker.config import Config, ResolvedSecrets
from broker.domain.credential import Secret
from broker.metrics import Count
from broker.store.connection import StoreUnavailable
from broker.store.events import HealthEvent
from broker.store.tellings import Claims, Ended, Telling, TellingStore
from workers.telling import body_of, chosen

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Posts under way at most in one worker."""

ATTEMPTS, FIRST_PAUSE = 5, 0.5
"""Attempts at one post, and the seconds before the second; before each further one twice as many, spread by half.
With `TIMEOUT` all of them end within 37 seconds, well before the claim does."""

TIMEOUT = 5.0
"""Seconds for one attempt."""

OLDEST = 3600.0
"""Seconds after which a change is no news: a worker that comes back after days tells nobody the history."""

ROUNDS = 5
"""How often one step claims anew where what it claimed went into summaries."""

AGAIN = frozenset({408, 429})


class Webhook(msgspec.Struct, frozen=True):
    """One webhook: where, signed with what, and what of. `per_minute` events at most."""

    name: str
    url: Secret
    signing: Secret | None = None
    states: tuple[str, ...] = ("revoked", "exhausted")
    per_minute: int = 30


def webhooks_of(config: Config, secrets: ResolvedSecrets) -> list[Webhook]:
    """The webhooks of a configuration."""
    return [
        Webhook(item.name, told.url, told.signing, tuple(item.states), item.per_minute)
        for item in config.webhooks
        if (told := secrets.webhooks.get(item.name)) is not None
    ]


def signature(signing: Secret, at: int, body: bytes) -> str:
    """What `X-Broker-Signature` holds: HMAC-SHA256 of `<at>.<body>`, with `at` in seconds of Unix time."""
    digest = hmac.new(signing.reveal().encode(), b"%d.%b" % (at, body), hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Webhooks:
    """Tells these webhooks. What they are owed is in the store; posts run in at most `AT_ONCE` tasks of this worker.

    Of all workers one posts; if it dies, another one posts when its claim has ended. So a webhook hears of a change at
    least once, and twice only where a worker or the store went away between its answer and the note of it. Order is not
    promised: an event carries its id and its version. A post that could not be made is counted and logged.
    `results` counts by webhook: sent, failed, capped (went into a summary), full (was owed too much), late.
    """

    def __init__(
        self,
        webhooks: Sequence[Webhook],
        store: TellingStore,
        *,
        counts: Count | None = None,
        first_pause: float = FIRST_PAUSE,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.results: Counter[tuple[str, str]] = Counter()
        self.follow(webhooks)
        self._store = store
        self._counts = counts
        self._first_pause = first_pause
        self._timeout = timeout
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._posts: dict[asyncio.Task[None], Telling] = {}
        self._ended: list[Ended] = []

    def follow(self, webhooks: Sequence[Webhook]) -> None:
        """Tell these from now on. What others are owed is kept for a day, should they come back."""
        self._hooks = {hook.name: hook for hook in webhooks}
        self._turns = deque(self._hooks)

    @property
    def under_way(self) -> int:
        """How many posts are under way."""
        return len(self._posts)

    async def owe(self, events: Sequence[HealthEvent]) -> None:
        """Let those be told who want to hear of these. Raises `StoreUnavailable`; asked again, nothing changes."""
        wanted = []
        for event in events:
            late = self._clock() - event.at > OLDEST
            for hook in self._hooks.values():
                if not chosen(event, hook.states):
                    continue
                if late:
                    self._note(hook.name, "late")
                else:
                    wanted.append((hook.name, event))
        lost = Counter(await self._store.owe(wanted))
        for hook_name, count in lost.items():
            self._note(hook_name, "full", count)
            log.error("a webhook is owed too much", extra={"kind": hook_name, "count": count})

    async def step(self) -> int:
        """Note which posts have ended, and start those that are owed; how many. Raises `StoreUnavailable`.

        A few round trips, and no waiting for any webhook.
        """
        ended = list(self._ended)
        await self._store.end(ended)
        # one that was added meanwhile stays
        del self._ended[: len(ended)]
        started = 0
        for _ in range(ROUNDS):
            claims = await self._claim()
            started += len(claims.tellings)
            if not claims.capped:
                break
        return started

    async def _claim(self) -> Claims:
        hooks = self._hooks
        owed = (await self._store.owed(self._room()))[: AT_ONCE - len(self._posts)]
        claims = await self._store.claim([(hook, id_, hooks[hook].per_minute) for hook, id_ in owed])
        for telling in claims.tellings:
            self._start(hooks[telling.hook], telling)
        for hook_name, count in claims.capped.items():
            self._note(hook_name, "capped", count)
        return claims

    async def close(self, within: float = 1.0) -> None:
        """Wait so many seconds for the posts under way; others shall make those that are not done by then."""
        if self._posts:
            await asyncio.wait(self._posts, timeout=within)
        unfinished = dict(self._posts)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=within)
        try:
            async with asyncio.timeout(within):
                await self._store.end(self._ended)
        except (StoreUnavailable, TimeoutError):
            log.warning("webhooks are told again when the claims have ended", extra={"count": len(self._ended)})
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- which, and how many ---

    def _room(self) -> list[tuple[str, int]]:
        """How many posts may be started now for each webhook: one that is slow leaves room for others. Each comes first
        in its turn."""
        free, share = AT_ONCE - len(self._posts), max(1, AT_ONCE // max(1, len(self._hooks)))
        busy = Counter(telling.hook for telling in self._posts.values())
        self._turns.rotate(-1)
        return [(name, count) for name in self._turns if (count := min(free, share - busy[name])) > 0]

    def _start(self, hook: Webhook, telling: Telling) -> None:
        task = asyncio.create_task(self._tell(hook, telling), name=f"webhook:{telling.hook}")
        self._posts[task] = telling
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        telling = self._posts.pop(task)
        given_up = task.cancelled()
        if not given_up and (error := task.exception()) is not None:
            self._failed(telling, type(error).__name__)
        self._ended.append(Ended(telling, done=not given_up))

    # --- one post ---

    async def _tell(self, hook: Webhook, telling: Telling) -> None:
        body, reason = body_of(telling), ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._first_pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            reason, final = await self._attempt(hook, telling.id, body)
            if not reason:
                self._note(hook.name, "sent")
                return
            if final:
                break
        self._failed(telling, reason)

    async def _attempt(self, hook: Webhook, id_: str, body: bytes) -> tuple[str, bool]:
        """Why it failed, empty if it did not, and whether it would fail again. No word of what came, or of the address:
        both may be secrets."""
        headers = {"Content-Type": "application/json", "X-Broker-Event": id_}
        if hook.signing is not None:
            headers["X-Broker-Signature"] = signature(hook.signing, int(self._clock()), body)
        try:
            async with self._client().post(
                hook.url.reveal(), data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return type(error).__name__, False
        if 200 <= status < 300:
            return "", True
        return f"status {status}", 300 <= status < 500 and status not in AGAIN

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _failed(self, telling: Telling, reason: str) -> None:
        self._note(telling.hook, "failed")
        log.error("a webhook could not be told", extra={"kind": telling.hook, "reason": reason})

    def _note(self, hook: str, result: str, by: int = 1) -> None:
        self.results[hook, result] += by
        if self._counts is not None:
            self._counts.inc(hook, result, by=by)
