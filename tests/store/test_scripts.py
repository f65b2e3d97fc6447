"""What holds for every script and every key."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from broker.domain.health import HealthReport, HealthState
from broker.store import keys, scripts
from broker.store.codec import Codec
from broker.store.connection import Connection, StoreUnavailable, command
from broker.store.events import EventStore, HealthEvent
from broker.store.health import HealthStore
from broker.store.leases import LeaseStore
from broker.store.nodes import NodeStore
from broker.store.sessions import SessionStore
from broker.store.sweep import SweepStore
from broker.store.tellings import Ended, TellingStore
from broker.store.timeline import TimelineStore
from tests import engines
from tests.store.turns import IDLE_TTL, SID, TENANT, pin, turn, wait_until

ALL = {value.name: value for value in vars(scripts).values() if isinstance(value, scripts.Script)}


async def use_every_script(connection: Connection) -> None:
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    await store.move_pin(SID, "name", TENANT, None, pin(nonce="a"))
    await store.commit(turn("t1", minted=("d",)))
    await store.find(SID, "resp-t1")
    await store.chain(SID, "t1")
    await store.touch([SID])
    health, sweep = HealthStore(connection), SweepStore(connection)
    ruling = await health.report(HealthReport("credential:a", HealthState.COOLING, lasting=1))
    await health.table()
    await health.license(ruling.row, "token", 5.0)
    await health.claim("a", "node", 1, used=0, cap=2, lasting=5.0)
    await LeaseStore(connection).acquire("duty:a", "token", 5.0)
    await sweep.forget_rows({"credential:none": b"{}"})
    await sweep.forget_responses({keys.response("none").encode(): b"gone"})
    await sweep.trim_events(86400.0)
    events = EventStore(connection)
    await events.read("one", 10)
    batch = await events.reclaim("two", 0.0, 10)
    await TimelineStore(connection).record(batch.events)
    tellings = TellingStore(connection, "one")
    for event in (HealthEvent("1-0", 0.001), HealthEvent("1-1", 0.001)):
        await tellings.owe([("hook", event)])
        claimed = await tellings.claim([(*owed, 1) for owed in await tellings.owed([("hook", 10)])])
        await tellings.end([Ended(telling, done=True) for telling in claimed.tellings])
    await NodeStore(connection).beat("node", {})
    await NodeStore(connection).remove_stale(60)
    await store.close_cleanly(SID)
    await store.delete(SID)


def test_every_script_file_is_loaded() -> None:
    named = {entry.name.removesuffix(".lua") for entry in files("broker.store").joinpath("lua").iterdir()}
    assert named == set(ALL)


@pytest.mark.parametrize("script", ALL.values(), ids=ALL)
def test_every_script_states_its_contract(script: scripts.Script) -> None:
    head = script.text.split("\n\n", 1)[0] + script.text.split("\n\n", 2)[1]
    contract = [line for line in script.text.splitlines() if line.startswith("--")]
    assert script.text.startswith(f"-- {script.name}: ") and head
    stated = "\n".join(contract)
    code = script.text.replace(stated, "")
    for array in ("KEYS", "ARGV"):
        used = {int(i) for i in re.findall(rf"{array}\[(\d+)\]", code)}
        told = {int(i) for i in re.findall(rf"{array}\[(\d+)\]", stated)}
        assert used <= told and (told or f"{array} (none)" in stated), array


@pytest.mark.parametrize("name", engines.NAMES)
async def test_all_keys_of_a_script_share_a_slot(name: str) -> None:
    """A server in cluster mode refuses a script that leaves its slot, declared or not."""
    if engines.binary(name) is None:
        pytest.skip(f"no binary of {name} is installed")
    with engines.server(name, options=("--cluster-enabled", "yes"), tcp=True) as server:
        server.execute("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        connection = Connection(server.url)
        await wait_until(lambda: cluster_is_up(server))
        with pytest.raises(StoreUnavailable):
            await connection.ask(command("UNLINK", "a", "b"))
        await use_every_script(connection)
        (known,) = await connection.ask(command("SCRIPT EXISTS", *(script.sha for script in ALL.values())))
        assert all(known)
        await connection.close()


def cluster_is_up(server: engines.Server) -> bool:
    # a write that no test needs: while the cluster forms it is answered CLUSTERDOWN
    return server.execute("DEL", "nothing").startswith(b":")


async def test_only_the_listed_keys_are_permanent(connection: Connection) -> None:
    await use_every_script(connection)
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    await store.commit(turn("t1", store=True, minted=("d",)))
    (found,) = await connection.ask(command("KEYS", "*"))
    ttls = await connection.ask(*(command("PTTL", key) for key in found))
    assert {key.decode() for key, ttl in zip(found, ttls, strict=True) if ttl == -1} == keys.PERMANENT
    assert all(ttl == -1 or 0 < ttl <= 30 * 86_400_000 for ttl in ttls)


async def test_a_script_that_the_server_lost_is_taught_again(connection: Connection) -> None:
    store = SessionStore(connection, Codec(), idle_ttl=IDLE_TTL, max_transcript=1 << 20)
    await store.commit(turn("t1"))
    await connection.ask(command("SCRIPT FLUSH"))
    before = connection.round_trips
    assert (await store.commit(turn("t2", "t1"))).status == "ok"
    assert connection.round_trips == before + 2
    await store.commit(turn("t3", "t2"))
    assert connection.round_trips == before + 3
