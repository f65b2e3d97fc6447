"""What a WebSocket offers beyond the suite: lanes, steering, warm-ups and errors (protocol.md 10.8), on every target.

Every event is checked by its shape, as in the suite. What needs faults of the vendor stands among the scenarios.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from broker.simulator import context_digest
from tests.compliance.cases import TOOL, answers, output_of
from tests.compliance.target import ENDS, Event, Socket, Target, in_order, text_of, user

LONG = "A long story. [[deltas:60]] [[slow:10]]"


# --- lanes ---


async def test_says_on_every_event_of_a_lane_which_it_is_and_on_none_of_the_default_lane(target: Target) -> None:
    lanes = ("left", "right.of-it_2", None)
    async with target.socket() as socket:
        for lane in lanes:
            named = {} if lane is None else {"stream_id": lane}
            await socket.create([user(f"For {lane}. [[deltas:8]] [[slow:5]]")], **named)
        events = await socket.until(*ENDS, times=3)

    assert {event.get("stream_id") for event in events} == set(lanes)
    assert all(("stream_id" in event) == (event.get("stream_id") is not None) for event in events)
    changes = sum(a.get("stream_id") != b.get("stream_id") for a, b in pairwise(events))
    assert changes > 5, "the lanes took turns"
    for lane in lanes:
        mine = in_order([event for event in events if event.get("stream_id") == lane])
        answers(mine[-1]["response"], [user(f"For {lane}. [[deltas:8]] [[slow:5]]")])


async def test_answers_what_was_sent_without_waiting_one_after_the_other(target: Target) -> None:
    async with target.socket() as socket:
        for number in range(4):
            await socket.create([user(f"Number {number}.")])
        events = await socket.until(*ENDS, times=4)

    ends = [at for at, event in enumerate(events) if event["type"] in ENDS]
    for number, (start, end) in enumerate(zip([-1, *ends], ends, strict=False)):
        answers(in_order(events[start + 1 : end + 1])[-1]["response"], [user(f"Number {number}.")])


async def test_begins_afresh_on_a_lane_when_no_previous_response_is_named(target: Target) -> None:
    async with target.socket() as socket:
        first = await socket.completed([user("One.")], stream_id="lane")
        again = await socket.completed([user("Two.")], stream_id="lane")
        null = await socket.completed([user("Three.")], stream_id="lane", previous_response_id=None)
        forked = await socket.completed([user("Four.")], stream_id="fork", previous_response_id=null["id"])

    assert first["id"] != again["id"]
    answers(again, [user("Two.")])
    answers(null, [user("Three.")])
    answers(forked, [user("Three."), *null["output"], user("Four.")])


async def test_says_an_error_on_the_lane_that_it_belongs_to(target: Target) -> None:
    async with target.socket() as socket:
        (named,) = await socket.turn("Go on.", stream_id="lane", previous_response_id="resp_of_nobody")
        (plain,) = await socket.turn("Go on.", previous_response_id="resp_of_nobody")
        good = await socket.turn("Good.", stream_id="lane")

    assert named["stream_id"] == "lane" and "stream_id" not in plain
    assert good[-1]["type"] == "response.completed" and good[-1]["stream_id"] == "lane"


# --- what a create may hold ---


@pytest.mark.parametrize("more", [{"stream": True}, {"stream": False}, {"background": False}], ids=str)
async def test_tolerates_what_belongs_to_http(target: Target, more: dict[str, Any]) -> None:
    async with target.socket() as socket:
        answers(await socket.completed([user("Hello.")], **more), [user("Hello.")])


async def test_inherits_items_and_nothing_else(target: Target) -> None:
    settings = {"instructions": "Be short.", "metadata": {"a": "b"}, "temperature": 0.5, "tools": [TOOL]}
    async with target.socket() as socket:
        first = await socket.completed([user("One.")], **settings)
        second = await socket.completed([user("Two.")], previous_response_id=first["id"])

    assert {name: first[name] for name in settings} == settings
    assert {name: second[name] for name in settings} == {
        "instructions": None,
        "metadata": {},
        "temperature": 1.0,
        "tools": [],
    }


async def test_ends_as_incomplete_and_goes_on_from_there(target: Target) -> None:
    async with target.socket() as socket:
        cut = (await socket.turn([user("Much. [[incomplete]]")], store=True))[-1]
        more = await socket.completed([user("Go on.")], previous_response_id=cut["response"]["id"])

    assert cut["type"] == "response.incomplete"
    assert cut["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert more["previous_response_id"] == cut["response"]["id"]


# --- warm-ups ---


@pytest.mark.parametrize("lane", [None, "lane"])
@pytest.mark.parametrize("store", [True, False])
async def test_warms_up_with_two_events_and_an_id_to_go_on_from(target: Target, lane: str | None, store: bool) -> None:
    named = {} if lane is None else {"stream_id": lane}
    async with target.socket() as socket:
        warm = await socket.turn([user("Read this.")], generate=False, store=store, **named)
        first = warm[-1]["response"]
        second = await socket.completed([user("And this.")], previous_response_id=first["id"], store=store, **named)

    assert [event["type"] for event in warm] == ["response.created", "response.completed"]
    assert first["output"] == [] and first["usage"]["output_tokens"] == 0
    answers(second, [user("Read this."), user("And this.")])


async def test_warms_up_twice_in_a_row(target: Target) -> None:
    async with target.socket() as socket:
        first = await socket.completed([user("One.")], generate=False)
        second = await socket.completed([user("Two.")], generate=False, previous_response_id=first["id"])
        third = await socket.completed([user("Three.")], previous_response_id=second["id"])
    answers(third, [user("One."), user("Two."), user("Three.")])


async def test_forgets_a_warm_up_with_its_socket_when_it_is_not_stored(target: Target) -> None:
    async with target.socket() as socket:
        warm = await socket.completed([user("Read this.")], generate=False)
    async with target.socket() as socket:
        error = await socket.refused([user("And this.")], previous_response_id=warm["id"])
    assert error["code"] == "previous_response_not_found"


# --- errors ---

BAD_FRAMES: dict[str, tuple[str, str, str | None]] = {
    "an unknown type": ('{"type":"response.cancel","response_id":"resp_1"}', "unsupported_event_type", "type"),
    "no type": ('{"model":"sim-1"}', "unsupported_event_type", "type"),
    "no JSON": ("this is not JSON {", "invalid_json", None),
    "an array": ('[{"type":"response.create"}]', "invalid_json", None),
}


@pytest.mark.parametrize(("frame", "code", "param"), BAD_FRAMES.values(), ids=list(BAD_FRAMES))
async def test_refuses_a_frame_in_the_envelope_and_keeps_the_socket(
    target: Target, frame: str, code: str, param: str | None
) -> None:
    async with target.socket() as socket:
        await socket.send(frame)
        refused = await socket.event()
        good = await socket.completed([user("Good.")])

    assert (refused["type"], refused["status"]) == ("error", 400)
    assert (refused["error"]["code"], refused["error"].get("param")) == (code, param)
    assert refused["error"]["type"] == "invalid_request_error" and refused["error"]["message"]
    assert "sequence_number" not in refused and "stream_id" not in refused, "it belongs to no response"
    answers(good, [user("Good.")])


REFUSALS: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "an unknown parent": (
        {"previous_response_id": "resp_of_nobody"},
        400,
        "previous_response_not_found",
        "previous_response_id",
    ),
    "no model": ({"model": None}, 400, "missing_required_parameter", "model"),
}


@pytest.mark.parametrize(("fields", "status", "code", "param"), REFUSALS.values(), ids=list(REFUSALS))
async def test_refuses_a_create_as_the_vendor_does_and_keeps_the_socket(
    target: Target, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    async with target.socket() as socket:
        (refused,) = await socket.turn("Words.", **fields)
        good = await socket.completed([user("Good.")])

    assert refused["status"] == status
    assert (refused["error"]["code"], refused["error"].get("param")) == (code, param)
    assert "sequence_number" not in refused
    answers(good, [user("Good.")])


async def test_refuses_a_parent_and_a_conversation_together(target: Target) -> None:
    async with target.socket() as socket:
        first = await socket.completed([user("One.")])
        error = await socket.refused("Two.", previous_response_id=first["id"], conversation="conv_1")
    assert error["code"] == "mutually_exclusive_parameters"


async def test_does_not_know_a_conversation_of_nobody(target: Target) -> None:
    async with target.socket() as socket:
        (refused,) = await socket.turn("Words.", conversation="conv_of_nobody")
        answers(await socket.completed([user("Good.")]), [user("Good.")])
    assert refused["status"] == 404 and "conv_of_nobody" in refused["error"]["message"]


# --- steering ---

STEERABLE = pytest.mark.parametrize("target", ["simulator", "broker"], indirect=True)
"""Over HTTP there is no way to say anything to a response that is under way."""


async def begun(socket: Socket, text: str = LONG, **fields: Any) -> tuple[str, list[Event]]:
    """A response that has begun to speak, and its events so far."""
    await socket.create([user(text)], **fields)
    events = await socket.until("response.output_text.delta", "response.function_call_arguments.delta")
    response_id: str = events[0]["response"]["id"]
    return response_id, events


async def steered(socket: Socket, target_id: object, words: object, **more: Any) -> None:
    await socket.send({"type": "response.steer", "previous_response_id": target_id, "input": words, **more})


BAD_STEERS: dict[str, dict[str, Any]] = {
    "nothing": {"input": ""},
    "no items": {"input": []},
    "a number": {"input": 7},
    "words of the assistant": {"input": [{"type": "message", "role": "assistant", "content": "no"}]},
    "a lane": {"input": "Shorter.", "stream_id": "lane"},
    "a model": {"input": "Shorter.", "model": "sim-1"},
}


@STEERABLE
@pytest.mark.parametrize("fields", BAD_STEERS.values(), ids=list(BAD_STEERS))
async def test_refuses_a_steer_that_is_none_and_goes_on_speaking(target: Target, fields: dict[str, Any]) -> None:
    async with target.socket(steering=True) as socket:
        response_id, events = await begun(socket)
        await socket.send({"type": "response.steer", "previous_response_id": response_id, **fields})
        events += await socket.until(*ENDS)

    (failed,) = [event for event in events if event["type"] == "response.steer.failed"]
    assert failed["error"]["code"] == "invalid_input"
    assert events[-1]["type"] == "response.completed"


async def test_names_what_it_refused_when_a_steer_fails(target: Target) -> None:
    async with target.socket(steering=True) as socket:
        await steered(socket, "resp_of_nobody", "Shorter.")
        failed = await socket.event()
    assert failed["error"]["code"] == "response_not_found"
    assert failed["steer"] == {"previous_response_id": "resp_of_nobody", "input": "Shorter."}


@STEERABLE
async def test_refuses_a_steer_for_a_response_that_has_ended(target: Target) -> None:
    async with target.socket(steering=True) as socket:
        first = await socket.completed([user("Short.")])
        await steered(socket, first["id"], "Shorter.")
        failed = await socket.event()
    assert failed["error"]["code"] == "response_already_completed"


@STEERABLE
async def test_does_not_steer_a_response_that_compacts(target: Target) -> None:
    async with target.socket(steering=True) as socket:
        compaction = [{"type": "compaction", "compact_threshold": 1_000_000}]
        response_id, events = await begun(socket, context_management=compaction)
        await steered(socket, response_id, "Shorter.")
        events += await socket.until(*ENDS)
    (failed,) = [event for event in events if event["type"] == "response.steer.failed"]
    assert failed["error"]["code"] == "steering_not_supported"


@STEERABLE
@pytest.mark.parametrize("lane", [None, "lane"])
async def test_goes_on_by_itself_when_it_is_steered(target: Target, lane: str | None) -> None:
    named = {} if lane is None else {"stream_id": lane}
    async with target.socket(steering=True) as socket:
        response_id, events = await begun(socket, **named)
        await steered(socket, response_id, "Shorter.")
        events += await socket.until(*ENDS)
        following = in_order(await socket.until(*ENDS))

    assert {event.get("stream_id") for event in (*events, *following)} == {lane}
    (accepted,) = [event for event in events if event["type"] == "response.steer.accepted"]
    assert accepted["steer"]["previous_response_id"] == response_id
    cut = events[-1]
    assert (cut["type"], cut["response"]["incomplete_details"]) == ("response.incomplete", {"reason": "steered"})
    successor = following[-1]["response"]
    assert successor["id"] != successor["previous_response_id"] == response_id
    answers(successor, [user(LONG), *cut["response"]["output"], user("Shorter.")])


@STEERABLE
async def test_takes_a_steer_along_that_waits_for_the_output_of_a_tool(target: Target) -> None:
    async with target.socket(steering=True) as socket:
        response_id, events = await begun(socket, "[[call:get_weather]] " + LONG, tools=[TOOL])
        await steered(socket, response_id, "In Lisbon.")
        events += await socket.until("response.steer.pending")
        called = next(event["response"] for event in events if event["type"] == "response.completed")
        (call,) = [item for item in called["output"] if item["type"] == "function_call"]
        last = await socket.completed([output_of(call, "blue")], previous_response_id=response_id)

    (pending,) = [event for event in events if event["type"] == "response.steer.pending"]
    assert pending["required_input"] == [{name: call[name] for name in ("type", "call_id", "name")}]
    context = [user("[[call:get_weather]] " + LONG), *called["output"], output_of(call, "blue"), user("In Lisbon.")]
    assert text_of(last).startswith(f"ctx={context_digest(context)[:32]} ")


@pytest.mark.parametrize("target", ["broker_over_http"], indirect=True)
async def test_says_that_it_cannot_steer_when_the_vendor_is_reached_over_http(target: Target) -> None:
    async with target.socket(steering=True) as socket:
        response_id, events = await begun(socket)
        await steered(socket, response_id, "Shorter.")
        events += await socket.until(*ENDS)

    (failed,) = [event for event in events if event["type"] == "response.steer.failed"]
    assert failed["error"]["code"] == "steering_not_supported"
    answers(events[-1]["response"], [user(LONG)])
