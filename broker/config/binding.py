"""From a document's tree to the schema's records, with every finding on the way."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from broker.config.document import Node
from broker.config.units import Kind

_SHOWN = 60


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong: where, at which setting, and what would be right."""

    line: int
    path: str
    message: str


@dataclass(slots=True)
class Draft:
    """A record that is not made yet: its values as far as they are valid, for the rules to look at."""

    record: type[msgspec.Struct]
    path: str
    node: Node
    values: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field as it was given, or `default` when it is absent or invalid."""
        return self.values.get(name, default)

    def effective(self, name: str) -> Any:
        """The value of a field that has a default: as given when that is valid, else the default."""
        defaults = {setting.name: setting.default for setting in msgspec.structs.fields(self.record)}
        return self.values.get(name, defaults[name])

    def given(self, name: str) -> bool:
        """Whether the document names the field, valid or not."""
        child = self.node.value.get(name)
        return child is not None and child.value is not None

    def fault(self, name: str, message: str) -> Finding:
        """A finding at a field, or at the record when the field is absent."""
        child = self.node.value.get(name)
        return Finding(child.line if child else self.node.line, _join(self.path, name), message)

    def drafts(self) -> Iterator[Draft]:
        """This draft and all below it."""
        yield self
        for value in self.values.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Draft):
                    yield from item.drafts()

    def build(self) -> Any:
        """The record; only to be asked for when there are no findings."""
        return self.record(**{name: _built(value) for name, value in self.values.items()})


def _built(value: Any) -> Any:
    if isinstance(value, Draft):
        return value.build()
    if isinstance(value, tuple):
        return tuple(_built(item) for item in value)
    return value


class _Invalid(Exception):
    """The value was reported and has no meaning."""


class Binder:
    """Reads a tree against the schema; `findings` holds what was wrong."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def record(self, kind: type[msgspec.Struct], node: Node, path: str = "") -> Draft:
        """A draft of one record, with the fields that could be read."""
        if not isinstance(node.value, dict):
            self._report(node, path, "expected settings, one 'name: value' each", shown=node.value)
            raise _Invalid
        draft = Draft(kind, path, node)
        # The schema's comments are its documentation, its annotations are what is read here.
        hints = typing.get_type_hints(kind, include_extras=True)
        self._unknown_keys(node, path, list(hints))
        for setting in msgspec.structs.fields(kind):
            self._field(draft, setting.name, hints[setting.name], required=setting.required)
        return draft

    def _field(self, draft: Draft, name: str, hint: Any, *, required: bool) -> None:
        if not draft.given(name):
            if required:
                self.findings.append(draft.fault(name, "is missing and has no default"))
            return
        try:
            draft.values[name] = self._value(hint, draft.node.value[name], _join(draft.path, name))
        except _Invalid:
            return

    def _unknown_keys(self, node: Node, path: str, allowed: list[str]) -> None:
        for key, child in node.value.items():
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"allowed here: {', '.join(allowed)}"
                self._report(child, _join(path, key[:_SHOWN]), f"unknown setting; {hint}")

    def _value(self, hint: Any, node: Node, path: str) -> Any:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self._scalar(arguments[1], node, path)
        if origin in (Union, types.UnionType):
            # The schema has no union but "or nothing", and nothing never comes this far.
            return self._value(next(a for a in arguments if a is not type(None)), node, path)
        if origin is Literal:
            return self._choice(arguments, node, path)
        if origin is tuple:
            return self._list(arguments[0], node, path)
        if origin is Mapping:
            return self._mapping(arguments[1], node, path)
        if hint is bool:
            return self._boolean(node, path)
        return self.record(hint, node, path)

    def _scalar(self, kind: Kind, node: Node, path: str) -> Any:
        try:
            return kind.parse(node.value)
        except ValueError:
            shown = _HIDDEN if kind.private else node.value
            self._report(node, path, f"expected {kind.allowed}", shown=shown)
            raise _Invalid from None

    def _choice(self, choices: tuple[Any, ...], node: Node, path: str) -> Any:
        if node.value not in choices:
            near = difflib.get_close_matches(str(node.value), choices, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            self._report(node, path, f"expected one of {', '.join(choices)}{hint}", shown=node.value)
            raise _Invalid
        return node.value

    def _boolean(self, node: Node, path: str) -> bool:
        if not isinstance(node.value, bool):
            self._report(node, path, "expected true or false", shown=node.value)
            raise _Invalid
        return node.value

    def _list(self, hint: Any, node: Node, path: str) -> tuple[Any, ...]:
        if not isinstance(node.value, list):
            self._report(node, path, "expected a list", shown=_HIDDEN)
            raise _Invalid
        items = []
        for i, item in enumerate(node.value):
            try:
                items.append(self._value(hint, item, f"{path}[{i}]"))
            except _Invalid:
                continue
        return tuple(items)

    def _mapping(self, hint: Any, node: Node, path: str) -> dict[str, Any]:
        if not isinstance(node.value, dict):
            self._report(node, path, "expected 'name: value' pairs", shown=_HIDDEN)
            raise _Invalid
        pairs = {}
        for key, item in node.value.items():
            try:
                pairs[key] = self._value(hint, item, _join(path, key[:_SHOWN]))
            except _Invalid:
                continue
        return pairs

    def _report(self, node: Node, path: str, message: str, *, shown: Any = None) -> None:
        found = "" if shown is None or shown is _HIDDEN else f"found {_show(shown)}, "
        self.findings.append(Finding(node.line, path, found + message))


_HIDDEN = object()


def read(kind: type[msgspec.Struct], root: Node) -> tuple[Draft | None, list[Finding]]:
    """The draft of the whole document, None when it is not even a set of settings, and all findings."""
    binder = Binder()
    try:
        return binder.record(kind, root), binder.findings
    except _Invalid:
        return None, binder.findings


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a group of settings"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, str | int | float) else repr(str(value))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "...'"
