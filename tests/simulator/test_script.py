"""Scripted tool calls for agents that bring their own prompt and tools."""

from typing import Any

import aiohttp
import orjson
import pytest

from broker.simulator import Script, Simulator
from broker.simulator.script import SCRIPTS, Step, step_of


def function(name: str, required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required or list(properties)}
    return {"type": "function", "name": name, "parameters": parameters}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


ADD = function("add", a={"type": "integer"}, b={"type": "integer"})
COMMAND = {"type": "array", "items": {"type": "string"}}
SHELL = function("shell", ["command"], command=COMMAND, workdir={"type": "string"})
EXEC = function("exec_command", ["cmd"], cmd={"type": "string"}, yield_time_ms={"type": "number"})
PATCH = {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}


def arguments(tool: dict[str, Any], number: int = 1) -> Any:
    step = step_of([user("[[tools:9]]"), *[OUTPUT] * (number - 1)], [tool], SCRIPTS)
    assert step is not None and step.tool == tool["name"] and not step.custom
    return orjson.loads(step.payload)


@pytest.mark.parametrize(
    ("tool", "given"),
    [
        (SHELL, {"command": ["echo", "sim-2"]}),
        (EXEC, {"cmd": "echo sim-2"}),
        (ADD, {"a": 2, "b": 2}),
        (function("s", text={"type": "string"}, on={"type": "boolean"}), {"text": "sim-2", "on": False}),
        (function("e", kind={"enum": ["x", "y"]}, fixed={"const": 7}), {"kind": "x", "fixed": 7}),
        (function("n", note={"anyOf": [{"type": "string"}, {"type": "null"}]}), {"note": None}),
        (function("l", note={"type": ["string", "null"]}), {"note": None}),
        (function("c", command={"type": ["string", "null"]}), {"command": "echo sim-2"}),
        (function("o", box=function("x", a={"type": "string"})["parameters"]), {"box": {"a": "sim-2"}}),
        (function("a", many={"type": "array", "minItems": 2, "items": {"type": "string"}}), {"many": ["sim-2"] * 2}),
        ({"type": "function", "name": "bare"}, {}),
    ],
)
def test_arguments_follow_from_the_schema(tool: dict[str, Any], given: Any) -> None:
    assert arguments(tool, 2) == given


def test_references_in_a_schema_are_followed() -> None:
    tool = function("r", box={"$ref": "#/$defs/Box"})
    tool["parameters"]["$defs"] = {"Box": function("x", cmd={"type": "string"})["parameters"]}
    assert arguments(tool) == {"box": {"cmd": "echo sim-1"}}


def test_schema_that_refers_to_itself_comes_to_an_end() -> None:
    tool = function("r", box={"$ref": "#/properties/box"}, more={"$ref": "#"})
    assert set(arguments(tool)) == {"box", "more"}


@pytest.mark.parametrize(
    ("tools", "chosen"),
    [
        ([ADD, PATCH, EXEC], "exec_command"),
        ([PATCH, ADD], "add"),
        ([{"type": "web_search"}, PATCH], "apply_patch"),
    ],
)
def test_tool_is_a_shell_else_a_function_else_any(tools: Any, chosen: str) -> None:
    step = step_of([user("[[tools:1]]")], tools, SCRIPTS)
    assert step is not None and step.tool == chosen


def test_tool_can_be_named_in_the_prompt() -> None:
    assert step_of([user("do [[tools:1:add]]")], [EXEC, ADD], SCRIPTS) == Step("tools", 0, "add", '{"a":1,"b":1}')
    assert step_of([user("do [[tools:1:gone]]")], [EXEC, ADD], SCRIPTS) is None


@pytest.mark.parametrize("tools", [None, [], "x", [1], [{"type": "function"}]])
def test_without_a_tool_there_is_no_script(tools: Any) -> None:
    assert step_of([user("[[tools:1]]")], tools, SCRIPTS) is None


def test_only_the_newest_user_message_counts() -> None:
    assert step_of([user("[[tools:2]]"), user("now something else")], [ADD], SCRIPTS) is None
    again = step_of([user("[[tools:1]]"), OUTPUT, user("[[tools:1]]")], [ADD], SCRIPTS)
    assert again is not None and again.made == 0


async def test_agent_makes_its_calls_one_after_the_other(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    result = await client.turn("work [[tools:3]]", extra={"tools": [SHELL]})
    called = []
    while result.calls:
        assert result.ok, result.problems
        called += [orjson.loads(call["arguments"])["command"] for call in result.calls]
        result = await client.tool_turn()
    assert result.ok and "| tools=3 " in result.text, result.problems
    assert called == [["echo", f"sim-{number}"] for number in (1, 2, 3)]


async def test_other_credential_goes_on_where_the_script_was(sim: Simulator, new_client: Any) -> None:
    client, other = await new_client(sim), await new_client(sim, "sk-sim-c")
    first = await client.turn("work [[tools:2]]", extra={"tools": [ADD]})
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "1"} for call in first.calls]
    whole = [*first.input, *first.calls, *outputs]
    second = await other.turn(whole, parent=None, extra={"tools": [ADD]})
    assert second.ok and [call["arguments"] for call in second.calls] == ['{"a":2,"b":2}'], second.problems


async def test_custom_tool_is_called_with_text(sim: Simulator, new_client: Any, raw: Any) -> None:
    client = await new_client(sim)
    first = await client.turn("patch [[tools:1]]", extra={"tools": [PATCH]})
    (call,) = first.calls
    assert first.ok and (call["type"], call["input"]) == ("custom_tool_call", "echo sim-1"), first.problems
    assert "response.custom_tool_call_input.delta" in first.events
    assert "response.custom_tool_call_input.done" in first.events
    second = await client.tool_turn()
    assert second.ok and "tools=1" in second.text, second.problems
    assert second.input[0]["type"] == "custom_tool_call_output"


async def test_client_notices_a_call_from_another_context(sim: Simulator, new_client: Any) -> None:
    client = await new_client(sim)
    first = await client.turn("one")
    first.after = first.after.grown([user("never said")])
    result = await client.turn("[[tools:1]]", extra={"tools": [ADD]})
    assert "answered from context of another call" in result.problems[0]


async def test_script_can_be_given(sim: Simulator, ask: Any) -> None:
    sim.script([Script("plan", tool="update_plan", arguments={"step": "number {n}"}), Script("note", "note", "n {n}")])
    tools = [EXEC, function("update_plan", step={"type": "string"}), {"type": "custom", "name": "note"}]
    for mark, given in (("plan", '{"step":"number 1"}'), ("note", "n 1"), ("tools", '{"cmd":"echo sim-1"}')):
        body = {"model": "sim-1", "input": f"[[{mark}:1]]", "tools": tools}
        (call,) = [item for item in (await ask(sim, "POST", "/responses", body))[1]["output"] if "call_id" in item]
        assert call.get("arguments", call.get("input")) == given


async def test_script_is_given_from_outside(sim: Simulator, http: aiohttp.ClientSession) -> None:
    script = {"marker": "tools", "tool": "add", "arguments": {"a": 5}}
    async with http.put(sim.control_url + "/scripts", json={"scripts": [script]}) as answer:
        assert (await answer.json())["scripts"] == [script]
    assert sim.vendor.scripts == {"tools": Script("tools", "add", {"a": 5})}
    async with http.put(sim.control_url + "/scripts", json={"scripts": []}) as answer:
        assert sim.vendor.scripts == dict(SCRIPTS)
    bodies: list[Any] = [{"scripts": [{"colour": "red"}]}, [], {}]
    for nonsense in bodies:
        async with http.put(sim.control_url + "/scripts", json=nonsense) as answer:
            assert answer.status == 400
