"""A configuration that changes under a running node: keys come, go and are rotated, and no turn notices."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker.config import load, resolve_secrets
from broker.config.reload import Reloaded, Reloader, Source
from broker.domain.credential import Secret
from broker.edge.app import Listeners, build_node, taken_over
from broker.edge.reload import reloader
from broker.simulator import SessionClient, SimCredential, TurnResult
from broker.stage import NodeProcess, Stage
from tests.scenarios.house import KEY, OTHER_KEY, House, counted, digest_of, wait_until

Build = Callable[..., Awaitable[House]]

LONG: dict[str, Any] = {"delay": 0.02, "deltas": 12}
"""Options of a vendor whose answers take a quarter of a second."""


class Followed:
    """A node that follows a file, in which each credential has its secret in a file of its own."""

    def __init__(self, house: House, folder: Path) -> None:
        self.house = house
        self.folder = folder
        self.file = folder / "broker.yaml"
        self.keys = {"team-a": [KEY]}
        self.more: dict[str, Any] = {}
        self.listeners: Listeners
        self.reloader: Reloader

    def secret(self, name: str) -> Path:
        return self.folder / f"secret-{name}"

    def rotate(self, name: str, secret: str, boundary: str = "org-a") -> None:
        """Another secret for a credential; the vendor knows it by the last part of its text."""
        self.house.sim.vendor.credentials.append(SimCredential(secret.rpartition("-")[2], secret, boundary))
        write(self.secret(name), secret)

    def revoke(self, secret: str) -> None:
        """The vendor opens no socket for it any more."""
        known = self.house.sim.vendor.credentials
        known[:] = [credential for credential in known if credential.secret != secret]

    def configure(self, *names: str, **changes: dict[str, Any]) -> None:
        """The configuration with these credentials, the first of them preferred; `changes` by the name of one."""
        for name in names:
            if not self.secret(name).exists():
                write(self.secret(name), f"sk-sim-{name}")
        write(self.file, json.dumps(self._document(names, changes)))

    def _document(self, names: tuple[str, ...], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {
            "node": "followed",
            "listen": "127.0.0.1:0",
            "operations_listen": "127.0.0.1:0",
            "tenants": [
                {"name": tenant, "keys": [f"sha256:{digest_of(key).hex()}" for key in keys]}
                for tenant, keys in self.keys.items()
            ],
            "credentials": [
                {
                    "name": name,
                    "vendor": "custom",
                    "base_url": self.house.sim.base_url,
                    "secret_file": str(self.secret(name)),
                    "boundary": self.house.boundaries[name],
                    "priority": at,
                    **changes.get(name, {}),
                }
                for at, name in enumerate(names)
            ],
            "store": {"refresh": "100ms"},
            **self.more,
        }

    async def start(self) -> Followed:
        config = load(self.file)
        secrets = resolve_secrets(config, {}, source=str(self.file))
        self.listeners = Listeners(build_node(config, secrets, Secret(self.house.url)))
        await self.listeners.start(("127.0.0.1", 0), ("127.0.0.1", 0))
        self.house.nodes.append(self.listeners)
        source = Source(str(self.file), {})
        node = self.listeners.node
        self.reloader = reloader(node, (config, secrets), source, taken_over, every=0.05, settle=0.02)
        return self

    async def reload(self) -> Reloaded:
        return await self.reloader.reload()

    @asynccontextmanager
    async def following(self, **patience: float) -> Any:
        """The node follows its files by itself, and has looked at them once."""
        node, started = self.listeners.node, (load(self.file), resolve_secrets(load(self.file), {}))
        patience = {"every": 0.05, "settle": 0.02, **patience}
        self.reloader = reloader(node, started, Source(str(self.file), {}), taken_over, **patience)
        running = asyncio.create_task(self.reloader.run())
        before = self.reloads("unchanged")
        await wait_until(lambda: self.reloads("unchanged") == before + 1)
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])

    def reloads(self, result: str) -> float:
        return counted(self.listeners, "broker_config_reloads_total", result=result)

    async def detail(self) -> dict[str, Any]:
        return await readiness(self.listeners.operations_port)

    async def agents(self, count: int) -> list[SessionClient]:
        return [await self.house.connected(self.listeners) for _ in range(count)]

    def pins(self) -> dict[str, int]:
        """By credential, how many sessions with an open socket are pinned to it."""
        return Counter(s.session.pin.credential for s in self.listeners.node.sockets if s.session.pin is not None)

    def moved(self) -> tuple[float, ...]:
        """Turns that failed over, pins that moved, failures of the upstream."""
        metrics = ("broker_failovers_total", "broker_pin_resets_total", "broker_upstream_failures_total")
        return tuple(counted(self.listeners, metric) for metric in metrics)


@pytest.fixture
def follow(build: Build, tmp_path: Path) -> Callable[..., Awaitable[Followed]]:
    """Start a node that follows a file with these credentials."""

    async def start(*names: str, boundaries: dict[str, str] | None = None, **options: Any) -> Followed:
        followed = Followed(await build(boundaries, **options), tmp_path)
        followed.configure(*names)
        return await followed.start()

    return start


Follow = Callable[..., Awaitable[Followed]]


def write(file: Path, text: str) -> None:
    """As one should: nobody ever sees half of it."""
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(text)
    fresh.replace(file)


async def readiness(port: int) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as response:
        detail: dict[str, Any] = await response.json()
        return detail


def active(house: House) -> int:
    return sum(turn.outcome == "active" for turn in house.sim.turns)


async def running(house: House, clients: list[SessionClient], text: str) -> list[asyncio.Task[TurnResult]]:
    """A turn of each client, all under way at the vendor."""
    before = active(house)
    turns = [asyncio.create_task(client.turn(text)) for client in clients]
    await wait_until(lambda: active(house) == before + len(clients))
    return turns


def assert_well(turns: list[TurnResult]) -> None:
    assert [(turn.problems, turn.error) for turn in turns if not (turn.ok and turn.digest_ok)] == []


def served_by(house: House, since: int) -> Counter[str]:
    return Counter(turn.credential for turn in house.sim.turns[since:])


# --- rotated ---


async def test_rotated_key_is_used_from_the_next_turn_on_and_no_turn_notices(follow: Follow) -> None:
    """All turns run on old sockets, and the old key is revoked as soon as the new one is there."""
    node = await follow("A", "B", **LONG)
    house = node.house
    clients = await node.agents(12)
    assert_well(await asyncio.gather(*(client.turn("hello") for client in clients)))
    before = await house.session(clients[0])
    turns = await running(house, clients, "a long one")
    node.rotate("A", "sk-sim-A2")
    assert await node.reload() is Reloaded.ADOPTED
    node.revoke("sk-sim-A")
    assert active(house) == 12
    assert_well(await asyncio.gather(*turns))
    assert served_by(house, 0) == {"A": 24}
    assert_well(await asyncio.gather(*(client.turn("next") for client in clients)))
    assert_well(await asyncio.gather(*(client.turn("and on") for client in clients)))
    assert served_by(house, 24) == {"A2": 24}
    assert Counter(shake.credential for shake in house.sim.handshakes) == {"A": 12, "A2": 12}
    await wait_until(lambda: house.sim.vendor.recorder.sockets == {"A": 0, "A2": 12})
    assert node.moved() == (0, 0, 0)
    assert (await house.session(clients[0])).pin == before.pin
    assert all(turn.previous_response_id is not None for turn in house.sim.turns[-12:])


async def test_rotated_key_is_not_blamed_for_what_the_old_one_did(follow: Follow) -> None:
    node = await follow("A", "B")
    house = node.house
    house.sim.faults.set("A", "invalid_api_key", at="handshake", do="refuse")
    assert_well([await (await node.agents(1))[0].turn("hello")])
    assert served_by(house, 0) == {"B": 1}
    assert (await node.detail())["credentials_usable"] == 1
    node.rotate("A", "sk-sim-A2")
    assert await node.reload() is Reloaded.ADOPTED
    assert (await node.detail())["credentials_usable"] == 2
    assert_well([await (await node.agents(1))[0].turn("hello")])
    assert served_by(house, 1) == {"A2": 1}


# --- removed ---


async def test_removed_credential_ends_its_turns_and_gets_no_more(follow: Follow) -> None:
    node = await follow("A", "B", **LONG)
    house = node.house
    clients = await node.agents(8)
    assert_well(await asyncio.gather(*(client.turn("hello") for client in clients)))
    before = (await house.session(clients[0])).pin
    turns = await running(house, clients, "a long one")
    node.configure("B")
    assert await node.reload() is Reloaded.ADOPTED
    assert active(house) == 8
    assert_well(await asyncio.gather(*turns))
    assert served_by(house, 0) == {"A": 16}
    assert_well(await asyncio.gather(*(client.turn("next") for client in clients)))
    assert_well(await asyncio.gather(*(client.turn("and on") for client in clients)))
    assert_well([await (await node.agents(1))[0].turn("a new session")])
    assert served_by(house, 16) == {"B": 17}
    await wait_until(lambda: house.sim.sockets["A"] == 0)
    assert node.pins() == {"B": 9}
    assert node.moved() == (0, 8, 0)
    after = (await house.session(clients[0])).pin
    assert before is not None and after is not None
    assert (after.credential, after.epoch) == ("B", before.epoch + 1)


async def test_removed_credential_is_shown_as_blocked_no_more(follow: Follow) -> None:
    node = await follow("A", "B")
    node.house.sim.faults.set("A", "invalid_api_key", at="handshake", do="refuse")
    assert_well([await (await node.agents(1))[0].turn("hello")])
    await wait_until(lambda: counted(node.listeners, "broker_health_blocked", credential="A") == 1)
    node.configure("B")
    await node.reload()
    assert counted(node.listeners, "broker_health_blocked", credential="A") == 0
    assert (await node.detail())["credentials"] == 1


async def test_reasoning_of_a_boundary_that_is_gone_is_no_fault_of_the_client(follow: Follow) -> None:
    """A client without a session that sends its whole context: only the pool tells that we may have made it foreign."""
    node = await follow("A", boundaries={"A": "org-a", "B": "org-b"})
    first = await node.house.connected(node.listeners)
    assert_well([await first.turn("look")])
    node.configure("B")
    assert await node.reload() is Reloaded.ADOPTED
    second = await node.house.connected(node.listeners)
    second.heads = first.heads
    told = await second.turn("and?", incremental=False)
    assert_well([told])
    assert [turn.outcome for turn in node.house.sim.turns] == ["completed", "error", "completed"]


# --- added ---


async def test_added_credential_takes_new_sessions_and_moves_nobody(follow: Follow) -> None:
    node = await follow("B")
    house = node.house
    clients = await node.agents(4)
    assert_well(await asyncio.gather(*(client.turn("hello") for client in clients)))
    node.configure("A", "B", B={"priority": 0})
    assert await node.reload() is Reloaded.ADOPTED
    newcomers = await node.agents(4)
    assert_well([await client.turn("hello") for client in newcomers])
    assert served_by(house, 4)["A"] > 0
    since = len(house.sim.turns)
    assert_well([await client.turn("next") for client in clients])
    assert [(turn.credential, turn.socket) for turn in house.sim.turns[since:]] == [
        (turn.credential, turn.socket) for turn in house.sim.turns[:4]
    ]
    assert node.moved() == (0, 0, 0)


async def test_turn_that_waits_for_a_credential_is_served_by_one_that_is_added(follow: Follow) -> None:
    node = await follow("A", **LONG)
    node.configure("A", A={"max_in_flight": 1})
    assert await node.reload() is Reloaded.ADOPTED
    clients = await node.agents(2)
    turns = await running(node.house, clients[:1], "a long one")
    waiting = asyncio.create_task(clients[1].turn("waits"))
    await wait_until(lambda: counted(node.listeners, "broker_placement_waits_total") == 1)
    node.configure("A", "B", A={"max_in_flight": 1})
    await node.reload()
    assert_well([await waiting])
    assert served_by(node.house, 1) == {"B": 1}
    assert_well(await asyncio.gather(*turns))


# --- unchanged ---


async def test_unchanged_configuration_keeps_every_link(follow: Follow) -> None:
    node = await follow("A", "B")
    house = node.house
    clients = await node.agents(3)
    assert_well(await asyncio.gather(*(client.turn("hello") for client in clients)))
    before = await node.detail()
    write(node.file, "# a remark\n" + node.file.read_text().replace(",", ", "))
    write(node.secret("A"), "  sk-sim-A\n")
    assert await node.reload() is Reloaded.UNCHANGED
    assert await node.detail() == before
    node.configure("A", "C", "B")
    node.rotate("B", "sk-sim-B2")
    assert await node.reload() is Reloaded.ADOPTED
    assert_well([await client.turn("next") for client in clients])
    assert len(house.sim.handshakes) == 3
    assert [turn.previous_response_id is not None for turn in house.sim.turns] == [False] * 3 + [True] * 3
    assert (node.reloads("unchanged"), node.reloads("adopted"), node.reloads("refused")) == (1, 1, 0)


# --- refused ---


async def test_broken_configuration_keeps_the_old_one_and_says_so(
    follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    node = await follow("A", "B")
    before = await node.detail()
    good = node.file.read_text()
    broken = {
        "credentials[0].weight": good.replace('"priority"', '"weight": "heavy", "priority"'),
        "credentials[1].secret_file": good.replace("secret-B", "secret-nowhere"),
        "not YAML": good[: len(good) // 2],
        "credentials: ": json.dumps({**json.loads(good), "credentials": []}),
    }
    for number, (said, text) in enumerate(broken.items(), 1):
        caplog.clear()
        write(node.file, text)
        assert await node.reload() is Reloaded.REFUSED
        assert said in caplog.text and str(node.file) in caplog.text
        assert node.reloads("refused") == number
        assert not any(secret in caplog.text for secret in ("sk-sim-A", "sk-sim-B", KEY))
    assert await node.detail() == before
    assert_well([await (await node.agents(1))[0].turn("hello")])
    node.file.unlink()
    assert await node.reload() is Reloaded.REFUSED
    write(node.file, good)
    assert await node.reload() is Reloaded.UNCHANGED


async def test_secret_that_comes_behind_its_configuration_is_waited_for(follow: Follow) -> None:
    node = await follow("A")
    async with node.following():
        node.configure("A", "B")
        node.secret("B").rename(node.folder / "aside")
        await wait_until(lambda: node.reloads("refused") == 1)
        (node.folder / "aside").rename(node.secret("B"))
        await wait_until(lambda: node.reloads("adopted") == 1)
    assert (await node.detail())["credentials"] == 2


async def test_says_what_only_a_restart_takes_over(follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    node = await follow("A")
    write(node.folder / "key", "ab" * 32)
    session = {"encryption_key_file": str(node.folder / "key")}
    node.more = {"listen": "127.0.0.1:1", "turn": {"hold": "1s"}, "session": session}
    node.configure("A", "B")
    assert await node.reload() is Reloaded.ADOPTED
    (line,) = [record.getMessage() for record in caplog.records if "restart" in record.getMessage()]
    wanted = ("listen", "session.encryption_key_file", "turn.hold", "session.encryption_key")
    assert line == f"restart to take over: {', '.join(wanted)}"
    assert "ab" * 32 not in caplog.text


# --- when ---


async def test_follows_its_files_by_itself_and_the_last_change_wins(follow: Follow) -> None:
    node = await follow("A", **LONG)
    clients = await node.agents(4)
    async with node.following():
        assert_well(await asyncio.gather(*(client.turn("hello") for client in clients)))
        turns = await running(node.house, clients, "a long one")
        node.rotate("A", "sk-sim-A2")
        await wait_until(lambda: node.listeners.node.placement.pool[0].secret != Secret("sk-sim-A"))
        node.rotate("A", "sk-sim-A3")
        node.rotate("A", "sk-sim-A4")
        await wait_until(lambda: node.listeners.node.placement.pool[0].secret == Secret("sk-sim-A4"))
        assert_well(await asyncio.gather(*turns))
        assert_well([await client.turn("next") for client in clients])
    assert served_by(node.house, 8) == {"A4": 4}
    assert node.moved() == (0, 0, 0)


async def test_file_that_is_still_being_written_is_adopted_once(follow: Follow) -> None:
    node = await follow("A")
    written = 1

    def write_more() -> bool:
        nonlocal written
        written += 1
        node.configure("A", A={"weight": written})
        return time.monotonic() > until

    async with node.following(every=0.01, settle=0.25):
        until = time.monotonic() + 0.6
        await wait_until(write_more)
        await wait_until(lambda: node.listeners.node.placement.pool[0].weight == written)
        assert node.reloads("adopted") == 1


async def test_asking_during_a_reload_leads_to_one_more_behind_it(follow: Follow) -> None:
    """The secret is in a pipe, so a reload lasts until somebody writes."""
    node = await follow("A")
    pipe: list[int] = []

    def is_read() -> bool:
        try:
            pipe.append(os.open(node.secret("A"), os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    def tell(secret: bytes) -> None:
        os.write(pipe[-1], secret)
        os.close(pipe.pop())

    async with node.following():
        node.secret("A").unlink()
        os.mkfifo(node.secret("A"))
        node.reloader.ask()
        await wait_until(is_read)
        for _ in range(3):
            node.reloader.ask()
            await node.detail()
        node.house.sim.vendor.credentials.append(SimCredential("A2", "sk-sim-A2", "org-a"))
        tell(b"sk-sim-A2")
        await wait_until(lambda: node.reloads("adopted") == 1)
        await wait_until(is_read)
        tell(b"sk-sim-A2")
        await wait_until(lambda: node.reloads("unchanged") == 2)
        assert_well([await (await node.agents(1))[0].turn("hello")])
        assert not is_read()
        # two readers of one pipe: one of them would have found nothing in it
        assert node.reloads("refused") == 0
    assert served_by(node.house, 0) == {"A2": 1}


async def test_many_sessions_go_on_while_keys_come_and_go(follow: Follow) -> None:
    """Sessions that never rest, under a pool that never rests: nothing fails, nothing is lost, the last pool serves."""
    node = await follow("A", "B", "C", delay=0.005)
    house = node.house
    clients = await node.agents(16)
    over = asyncio.Event()
    chance = random.Random(1)

    async def talk(client: SessionClient) -> list[TurnResult]:
        turns = [await client.turn("hello")]
        while not over.is_set():
            turns.append(await client.turn(f"more of it, {len(turns)}"))
        return turns

    talks = [asyncio.create_task(talk(client)) for client in clients]
    async with node.following(every=0.02, settle=0.01):
        rotated = {"A": 0, "B": 0, "C": 0}
        for number in range(14):
            pool = chance.sample("ABC", chance.choice((1, 2, 3)))
            name = chance.choice(pool)
            rotated[name] += 1
            secret = f"sk-sim-{name}x{number}"
            node.rotate(name, secret)
            node.configure(*pool, **{name: {"weight": number + 2} for name in pool})
            wanted = [(name, float(number + 2)) for name in pool]
            await wait_until(lambda: [(c.name, c.weight) for c in node.listeners.node.placement.pool] == wanted)  # noqa: B023
            await wait_until(
                lambda: Secret(secret) in [c.secret for c in node.listeners.node.placement.pool]  # noqa: B023
            )
            served = len(house.sim.turns)
            await wait_until(lambda: len(house.sim.turns) > served + 24)  # noqa: B023
    over.set()
    turns = [turn for talked in await asyncio.gather(*talks) for turn in talked]
    assert_well(turns)
    assert len(turns) > 14 * 24
    assert counted(node.listeners, "broker_failovers_total") == 0
    assert counted(node.listeners, "broker_upstream_failures_total") == 0
    since = len(house.sim.turns)
    assert_well([await client.turn("the last one") for client in clients])
    last = {c.secret.reveal().rpartition("-")[2] for c in node.listeners.node.placement.pool}
    assert set(served_by(house, since)) <= last
    assert served_by(house, since).total() == 16


# --- tenants ---


async def test_client_keys_are_taken_over_and_live_sockets_stay(follow: Follow) -> None:
    node = await follow("A")
    (client,) = await node.agents(1)
    assert_well([await client.turn("hello")])
    node.keys = {"team-a": [OTHER_KEY]}
    node.configure("A")
    assert await node.reload() is Reloaded.ADOPTED
    assert not await node.house.agent(node.listeners).connect()
    fresh = await node.house.connected(node.listeners, key=OTHER_KEY)
    assert_well([await client.turn("next"), await fresh.turn("hello")])
    assert len(node.house.sim.handshakes) == 2


async def test_setting_of_a_tenant_holds_for_its_live_sockets(follow: Follow) -> None:
    node = await follow("A")
    (client,) = await node.agents(1)
    node.more = {"tenants": [{"name": "team-a", "keys": [f"sha256:{digest_of(KEY).hex()}"], "max_sockets": 1}]}
    node.configure("A")
    assert await node.reload() is Reloaded.ADOPTED
    refused = node.house.agent(node.listeners)
    assert not await refused.connect() and refused.handshake_status == 429
    node.more["tenants"][0]["transcript"] = False
    node.configure("A")
    assert await node.reload() is Reloaded.ADOPTED
    assert_well([await client.turn("hello")])
    (socket,) = node.listeners.node.sockets
    assert not socket.keeps_transcript


async def test_second_tenant_waits_for_a_restart(follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    """With one tenant, responses that nobody has seen are asked of the vendor: they could be the other's."""
    node = await follow("A")
    node.keys = {"team-a": [KEY], "team-b": [OTHER_KEY]}
    node.configure("A")
    assert await node.reload() is Reloaded.UNCHANGED
    assert "restart to take over: tenants" in caplog.text
    assert not await node.house.agent(node.listeners, key=OTHER_KEY).connect()


# --- what operators see ---


async def test_readiness_tells_which_configuration_is_in_force(follow: Follow, tmp_path: Path) -> None:
    node = await follow("A", "B")
    (tmp_path / "other").mkdir()
    other = Followed(node.house, tmp_path / "other")
    other.more = {"node": "other", "turn": {"hold": "1s"}}
    other.configure("A", "B")
    await other.start()
    before, adopted_at = await node.detail(), node.listeners.node.adopted_at
    assert (before["credentials"], len(before["config"])) == (2, 12)
    assert (await other.detail())["config"] == before["config"]
    seen = {before["config"]}
    for change in (
        lambda each: write(each.secret("A"), "sk-sim-A2"),
        lambda each: each.configure("A"),
        lambda each: each.configure("A", A={"aliases": {"x": "sim-1"}}),
        lambda each: each.configure("A", A={"models": ["sim-1"]}),
        lambda each: each.keys.update({"team-a": [OTHER_KEY]}) or each.configure("A"),
    ):
        change(node)
        await node.reload()
        assert (await node.detail())["config"] not in seen
        seen.add((await node.detail())["config"])
        change(other)
        await other.reload()
        assert (await other.detail())["config"] == (await node.detail())["config"]
    assert node.listeners.node.adopted_at > adopted_at
    assert (await node.detail())["config_since"] >= before["config_since"]
    text = json.dumps(await node.detail())
    assert "sk-sim" not in text and hashlib.sha256(b"sk-sim-A2").hexdigest()[:12] not in text


# --- as processes ---


async def test_processes_follow_a_signal_and_a_mounted_secret(tmp_path: Path) -> None:
    """A rewritten file and SIGHUP; then a secret that is swapped as Kubernetes does it, and nobody says a word."""

    def mount(version: str, secret: str) -> None:
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "key").write_text(secret)
        (tmp_path / "..fresh").symlink_to(f"..{version}")
        (tmp_path / "..fresh").replace(tmp_path / "..data")

    def rewrite(node: NodeProcess) -> None:
        config = json.loads(node.config.read_text())
        (red,) = config["credentials"]
        del red["secret_env"]
        config["credentials"] = [red | {"secret_file": str(tmp_path / "key")}]
        write(node.config, json.dumps(config))

    async def until(node: NodeProcess, result: str, count: int) -> None:
        name = f"broker_config_reloads_total{{result={result}}}"
        while (await stage.counters()).get(name, 0) < count:
            assert node.running, node.log.read_text()

    async with Stage([SimCredential("RED", "sk-red-1")], nodes=1, workers=0, **LONG) as stage, asyncio.timeout(20):
        for number in (2, 3):
            stage.sim.vendor.credentials.append(SimCredential(f"red-{number}", f"sk-red-{number}"))
        (node,) = stage.nodes
        assert node.process is not None
        await until(node, "unchanged", 1)
        node.process.send_signal(signal.SIGHUP)
        await until(node, "unchanged", 2)
        clients = [stage.client(node) for _ in range(4)]
        for client in clients:
            assert await client.connect()
        turns = [asyncio.create_task(client.turn("a long one")) for client in clients]
        await wait_until(lambda: len(stage.sim.turns) == 4)
        mount("two", "sk-red-2")
        (tmp_path / "key").symlink_to("..data/key")
        rewrite(node)
        node.process.send_signal(signal.SIGHUP)
        await until(node, "adopted", 1)
        assert_well(await asyncio.gather(*turns))
        assert_well([await client.turn("next") for client in clients])
        before = (await readiness(node.operations_port))["config"]
        mount("three", "sk-red-3")
        await until(node, "adopted", 2)
        assert_well([await client.turn("and on") for client in clients])
        assert [turn.credential for turn in stage.sim.turns] == ["RED"] * 4 + ["red-2"] * 4 + ["red-3"] * 4
        assert (await readiness(node.operations_port))["config"] != before
        counters = await stage.counters()
        assert not any(counters.get(name) for name in counters if name.startswith("broker_failovers_total"))
        for client in clients:
            await client.close()
        assert "sk-red" not in node.log.read_text()
