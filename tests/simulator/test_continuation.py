"""What a previous_response_id resolves to, where, and until when."""

import asyncio
from typing import Any

from broker.simulator import Simulator

UNKNOWN = {
    "type": "invalid_request_error",
    "code": "previous_response_not_found",
    "message": "Previous response with id 'resp_nowhere' not found.",
    "param": "previous_response_id",
}


def shown(response: dict[str, Any]) -> str:
    text: str = response["output"][-1]["content"][0]["text"]
    return text.split("|")[0]


async def test_unknown_id_is_refused_and_the_socket_survives(sim: Simulator, raw: Any) -> None:
    event = await raw.refused(previous_response_id="resp_nowhere", store=False)
    assert event == {"type": "error", "status": 400, "error": UNKNOWN}
    await raw.completed()


async def test_unstored_response_continues_on_its_own_socket_only(sim: Simulator, raw: Any, dial: Any) -> None:
    first = await raw.completed("one", store=False)
    other = await dial(sim)
    refused = await other.refused("two", previous_response_id=first["id"], store=False)
    assert refused["error"]["code"] == "previous_response_not_found"
    assert "items=3" in shown(await raw.completed("two", previous_response_id=first["id"], store=False))


async def test_only_the_newest_unstored_response_of_a_lane_continues(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    await raw.completed("two", previous_response_id=first["id"], store=False)
    refused = await raw.refused("three", previous_response_id=first["id"], store=False)
    assert refused["error"]["code"] == "previous_response_not_found"


async def test_lane_without_a_previous_id_starts_afresh(sim: Simulator, raw: Any) -> None:
    await raw.completed("one", store=False)
    assert "items=1" in shown(await raw.completed("two", store=False))


async def test_stored_response_continues_anywhere_in_its_boundary(sim: Simulator, raw: Any, dial: Any) -> None:
    first = await raw.completed("one")
    await raw.completed("two", previous_response_id=first["id"])
    sibling, stranger = await dial(sim, "sk-sim-a2"), await dial(sim, "sk-sim-c")
    assert "items=3" in shown(await sibling.completed("three", previous_response_id=first["id"]))
    refused = await stranger.refused("three", previous_response_id=first["id"])
    assert refused["error"]["code"] == "previous_response_not_found"


async def test_failed_continuation_evicts_its_unstored_parent(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    orphan = [{"type": "function_call_output", "call_id": "call_nowhere", "output": "x"}]
    refused = await raw.refused(orphan, previous_response_id=first["id"], store=False)
    assert refused["status"] == 400 and "call_nowhere" in refused["error"]["message"]
    again = await raw.refused("two", previous_response_id=first["id"], store=False)
    assert again["error"]["code"] == "previous_response_not_found"


async def test_failed_continuation_keeps_its_stored_parent(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one")
    sim.faults.set("A", "server_error", times=1)
    await raw.refused("two", previous_response_id=first["id"])
    await raw.completed("two", previous_response_id=first["id"])


async def test_failed_fork_on_another_lane_keeps_the_parent(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    sim.faults.set("A", "server_error", times=1)
    failed = await raw.refused("fork", previous_response_id=first["id"], store=False, stream_id="f")
    assert failed["stream_id"] == "f"
    await raw.completed("two", previous_response_id=first["id"], store=False)


async def test_failed_fork_keeps_what_its_own_lane_remembers(sim: Simulator, raw: Any) -> None:
    source = await raw.completed("one", store=False)
    own = await raw.completed("other", store=False, stream_id="f")
    sim.faults.set("A", "server_error", times=1)
    await raw.refused("fork", previous_response_id=source["id"], store=False, stream_id="f")
    await raw.completed("on", previous_response_id=own["id"], store=False, stream_id="f")


async def test_response_failed_evicts_the_parent(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    sim.faults.set("A", "server_error", do="failed", at="after_created", times=1)
    assert (await raw.answer("two", previous_response_id=first["id"], store=False))[-1]["type"] == "response.failed"
    refused = await raw.refused("two", previous_response_id=first["id"], store=False)
    assert refused["error"]["code"] == "previous_response_not_found"


async def test_fork_on_another_lane_shares_the_past(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    fork = await raw.completed("fork", previous_response_id=first["id"], store=False, stream_id="f")
    trunk = await raw.completed("trunk", previous_response_id=first["id"], store=False)
    assert "items=3" in shown(fork) and "items=3" in shown(trunk) and shown(fork) != shown(trunk)


async def test_replay_of_the_whole_context_gives_the_same_answer(sim: Simulator, raw: Any, dial: Any) -> None:
    first = await raw.completed("one", store=False)
    chained = await raw.completed("two", previous_response_id=first["id"], store=False)
    user = {"role": "user", "content": "one"}
    replay = [user, *first["output"], {"role": "user", "content": "two"}]
    without_reasoning = [item for item in replay if item.get("type") != "reasoning"]
    stranger = await dial(sim, "sk-sim-c")
    assert shown(await (await dial(sim)).completed(replay, store=False)) == shown(chained)
    assert shown(await stranger.completed(without_reasoning, store=False)) == shown(chained)


async def test_replay_gives_another_answer_when_anything_changed(sim: Simulator, raw: Any) -> None:
    items = [{"role": "user", "content": text} for text in ("one", "two", "three")]
    whole = shown(await raw.completed(items))
    lost, doubled, swapped = items[:2], [*items, items[2]], [items[1], items[0], items[2]]
    texts = [shown(await raw.completed(changed)) for changed in (lost, doubled, swapped)]
    assert len({whole, *texts}) == 4


async def test_previous_id_and_conversation_exclude_each_other(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one")
    refused = await raw.refused("two", previous_response_id=first["id"], conversation="conv_x")
    assert refused["status"] == 400 and "previous_response_id" in refused["error"]["message"]


async def test_conversation_remembers_within_its_boundary(sim: Simulator, raw: Any, dial: Any) -> None:
    conversation = sim.create_conversation("org-a")
    await raw.completed("one", conversation=conversation)
    sibling, stranger = await dial(sim, "sk-sim-a2"), await dial(sim, "sk-sim-c")
    assert "items=3" in shown(await sibling.completed("two", conversation={"id": conversation}))
    refused = await stranger.refused("three", conversation=conversation)
    assert refused["status"] == 404 and refused["error"]["code"] == "conversation_not_found"


async def test_conversation_serves_one_turn_at_a_time(sim: Simulator, raw: Any, dial: Any) -> None:
    conversation = sim.create_conversation("org-a")
    await raw.create("one [[slow:20]] [[deltas:100]]", conversation=conversation)
    await raw.until("response.output_text.delta")
    other = await dial(sim)
    refused = await other.refused("two", conversation=conversation)
    assert refused["status"] == 409 and refused["error"]["code"] == "conversation_locked"


async def test_lost_turn_frees_its_conversation(sim: Simulator, raw: Any, dial: Any, wait_until: Any) -> None:
    conversation = sim.create_conversation("org-a")
    await raw.create("one [[slow:20]] [[deltas:500]]", conversation=conversation)
    await raw.until("response.output_text.delta")
    await raw.ws.close()
    await wait_until(lambda: sim.turns[0].outcome == "lost")
    other = await dial(sim)
    assert "items=1" in shown(await other.completed("two", conversation=conversation))


async def test_incomplete_response_can_be_continued(sim: Simulator, raw: Any) -> None:
    last = (await raw.answer("one [[incomplete]]", store=False))[-1]
    await raw.completed("two", previous_response_id=last["response"]["id"], store=False)


async def test_fork_must_start_before_the_source_advances(sim: Simulator, raw: Any) -> None:
    first = await raw.completed("one", store=False)
    await asyncio.gather(
        raw.create("on [[slow:5]]", previous_response_id=first["id"], store=False),
        raw.create("fork", previous_response_id=first["id"], store=False, stream_id="f"),
    )
    events = [*await raw.until("response.completed"), *await raw.until("response.completed")]
    assert not any(event["type"] == "error" for event in events)
    late = await raw.refused("late", previous_response_id=first["id"], store=False, stream_id="g")
    assert late["error"]["code"] == "previous_response_not_found"


async def test_reused_id_means_its_first_state_after_a_reconnect(new_simulator: Any, dial: Any) -> None:
    sim = await new_simulator(reuse_response_ids=True)
    raw = await dial(sim)
    first = await raw.completed("one")
    second = await raw.completed("two", previous_response_id=first["id"])
    assert "items=5" in shown(await raw.completed("three", previous_response_id=second["id"]))
    assert "items=3" in shown(await (await dial(sim)).completed("two", previous_response_id=second["id"]))
