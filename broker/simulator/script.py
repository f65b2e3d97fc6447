"""Scripted tool calls for agents that bring their own prompt and tools: who asks for them is the newest user message.

`[[tools:3]]` there asks for three calls, one after the other, and then for an ordinary answer that also states the
count. `[[tools:3:NAME]]` names the tool. What comes next follows from the context alone, so any credential goes on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from broker.simulator.context import Item, item_type, message_text

_MARK = re.compile(r"\[\[([a-z_]+):(\d{1,4})(?::([A-Za-z0-9_.-]+))?\]\]")
_SHELLS = frozenset(
    {"shell", "shell_command", "exec_command", "local_shell", "container.exec", "bash", "run_command", "terminal"}
)
_COMMANDS = frozenset({"command", "cmd", "script", "shell_command"})
_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Script:
    """What a marker asks for: calls of a tool (the most suitable, unless named) with arguments (from its schema,
    unless given). `{n}` in given arguments stands for the number of the call, from 1.
    """

    marker: str
    tool: str | None = None
    arguments: dict[str, Any] | str | None = None


SCRIPTS: Mapping[str, Script] = {"tools": Script("tools")}


@dataclass(frozen=True, slots=True)
class Step:
    """Where a script stands: the call to make now, or none if all are made."""

    marker: str
    made: int
    tool: str | None = None
    payload: str = ""  # the arguments of a function, the input of a custom tool
    custom: bool = False


def step_of(items: Sequence[Item], tools: object, scripts: Mapping[str, Script]) -> Step | None:
    """The step that the newest user message asks for; None without a marker or without a tool to call."""
    request, made = _newest_request(items)
    for name, wanted, tool_name in _MARK.findall(request):
        script = scripts.get(name)
        tool = _choose(tools, tool_name or script.tool) if script is not None else None
        if script is None or tool is None:
            continue
        if made >= int(wanted):
            return Step(name, made)
        custom = tool.get("type") == "custom"
        return Step(name, made, str(tool["name"]), _payload(script, tool, custom, made + 1), custom)
    return None


def _newest_request(items: Sequence[Item]) -> tuple[str, int]:
    made = 0
    for item in reversed(items):
        if item_type(item) == "message" and item.get("role") == "user":
            return message_text(item), made
        made += item_type(item).endswith("_output")
    return "", made


def _choose(tools: object, wanted: str | None) -> dict[str, Any] | None:
    """The tool of that name, else a shell, else the first function, else the first custom tool."""
    named = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    usable = [tool for tool in named if tool.get("type") in ("function", "custom") and tool.get("name")]
    if wanted is not None:
        return next((tool for tool in usable if tool["name"] == wanted), None)
    functions = [tool for tool in usable if tool["type"] == "function"]
    shells = [tool for tool in functions if tool["name"] in _SHELLS]
    return next(iter([*shells, *functions, *usable]), None)


def _payload(script: Script, tool: dict[str, Any], custom: bool, number: int) -> str:
    given = script.arguments
    if given is not None:
        text = given if isinstance(given, str) else orjson.dumps(given).decode()
        return text.replace("{n}", str(number))
    if custom:
        return f"echo sim-{number}"
    schema = tool.get("parameters")
    return orjson.dumps(_object(schema if isinstance(schema, dict) else {}, schema, number, _DEPTH)).decode()


def _object(schema: dict[str, Any], root: Any, number: int, depth: int) -> dict[str, Any]:
    """What the schema requires, and a command wherever it has a place for one."""
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    names = [name for name in properties if name in required or name in _COMMANDS]
    return {name: _value(name, properties[name], root, number, depth - 1) for name in names}


def _value(name: str, schema: Any, root: Any, number: int, depth: int) -> Any:
    schema = _plain(schema, root, depth, nullable=name not in _COMMANDS)
    kind = schema.get("type")
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if name in _COMMANDS and kind == "array":
        return ["echo", f"sim-{number}"]
    if name in _COMMANDS and kind in ("string", None):
        return f"echo sim-{number}"
    if kind == "object" and depth > 0:
        return _object(schema, root, number, depth)
    if kind == "array":
        least = schema.get("minItems", 0) if depth > 0 else 0
        return [_value("", schema.get("items"), root, number, depth - 1) for _ in range(min(least, 10))]
    if kind in ("integer", "number"):
        return max(number, schema.get("minimum", number)) if "maximum" not in schema else schema["maximum"]
    return {"boolean": False, "null": None, "object": {}}.get(str(kind), f"sim-{number}")


def _plain(schema: Any, root: Any, depth: int, *, nullable: bool) -> dict[str, Any]:
    """The schema without references and choices; where null may be, it is null or never null, as told."""
    for _ in range(max(depth, 1)):
        if not isinstance(schema, dict):
            return {}
        if isinstance(schema.get("$ref"), str):
            schema = _referred(schema["$ref"], root)
            continue
        choices = schema.get("anyOf") or schema.get("oneOf")
        kinds = schema.get("type")
        if isinstance(choices, list) and choices:
            fitting = [choice for choice in choices if _is_null(choice) is nullable]
            schema = (fitting or choices)[0]
        elif isinstance(kinds, list) and kinds:
            fitting = [kind for kind in kinds if (kind == "null") is nullable]
            return schema | {"type": (fitting or kinds)[0]}
        else:
            return schema
    return {}


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _referred(reference: str, root: Any) -> Any:
    found = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found
