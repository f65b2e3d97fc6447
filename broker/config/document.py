"""Configuration text as a tree whose every node knows its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
# Deeper than any setting: a document that refers to itself would otherwise never end.
DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the document: a dict of nodes, a list of nodes or a scalar; `line` counts from 1."""

    value: Any
    line: int


class DocumentError(Exception):
    """The text is not a document at all; `line` is where that was noticed."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def read_yaml(text: str) -> Node:
    """The tree of a YAML document. Raises DocumentError."""
    try:
        return _compose(yaml.SafeLoader(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # The parser's own text quotes the line; a line may hold a secret, so only the problem is told.
        raise DocumentError(mark.line + 1 if mark else 1, f"not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(line, "not YAML: a character that is not allowed") from None


def _compose(loader: yaml.SafeLoader) -> Node:
    try:
        root = loader.get_single_node()
        return Node(None, 1) if root is None else _yaml_node(loader, root, 0)
    finally:
        loader.dispose()


def _yaml_node(loader: yaml.SafeLoader, node: yaml.Node, depth: int) -> Node:
    line = node.start_mark.line + 1
    if depth > DEEPEST:
        raise DocumentError(line, "nested too deeply")
    if isinstance(node, yaml.MappingNode):
        return Node(_yaml_mapping(loader, node, depth), line)
    if isinstance(node, yaml.SequenceNode):
        return Node([_yaml_node(loader, item, depth + 1) for item in node.value], line)
    return Node(_yaml_scalar(loader, node), line)


def _yaml_scalar(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    try:
        return loader.construct_object(node)
    except ValueError:
        line = node.start_mark.line + 1
        raise DocumentError(line, "not YAML: a value that does not exist, such as the date 2026-02-31") from None


def _yaml_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
    _refuse_repeated_keys(node)
    loader.flatten_mapping(node)
    found: dict[str, Node] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        child = _yaml_node(loader, value, depth + 1)
        found[str(key.value)] = Node(child.value, line)
    return found


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise DocumentError(line, "a key must be a plain word")
        if key.value in seen:
            raise DocumentError(line, f"the key {str(key.value)[:64]!r} stands here a second time")
        seen.add(key.value)


_TOML_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_TOML_KEY = re.compile(r"\s*([A-Za-z0-9_\-.\"' ]+?)\s*=")
_TOML_ERROR = re.compile(r"\(at line (\d+), column \d+\)")


def read_toml(text: str) -> Node:
    """The tree of a TOML document; lines are those of the key or table a value stands under. Raises DocumentError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = _TOML_ERROR.search(str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        raise DocumentError(line, f"not TOML: {_TOML_ERROR.sub('', str(error)).strip()}") from None
    return _toml_node(table, (), _toml_lines(text), 1)


def _toml_node(value: Any, path: Path, lines: dict[Path, int], above: int) -> Node:
    line = lines.get(path, above)
    if isinstance(value, dict):
        return Node({key: _toml_node(item, (*path, key), lines, line) for key, item in value.items()}, line)
    if isinstance(value, list):
        return Node([_toml_node(item, (*path, i), lines, line) for i, item in enumerate(value)], line)
    return Node(value, line)


@dataclass(slots=True)
class _TomlScan:
    """Where the reading of the lines stands: the open table, and how many items each array of tables has."""

    table: Path = ()
    items: dict[Path, int] = field(default_factory=dict)

    def enter(self, array: bool, keys: Path) -> Path:
        resolved: Path = ()
        for i, key in enumerate(keys):
            resolved = (*resolved, key)
            if array and i == len(keys) - 1:
                self.items[resolved] = self.items.get(resolved, 0) + 1
            if resolved in self.items:
                resolved = (*resolved, self.items[resolved] - 1)
        self.table = resolved
        return resolved


def _toml_lines(text: str) -> dict[Path, int]:
    """The line of every table and key, read off the text: the standard parser does not tell."""
    lines: dict[Path, int] = {}
    scan = _TomlScan()
    for number, line in _lines_outside_texts(text):
        if header := _TOML_HEADER.fullmatch(line):
            lines.setdefault(scan.enter(header[1] == "[[", _toml_keys(header[2])), number)
        elif key := _TOML_KEY.match(line):
            lines.setdefault((*scan.table, *_toml_keys(key[1])), number)
    return lines


def _toml_keys(text: str) -> Path:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _lines_outside_texts(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not inside a text of several lines."""
    closing = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            closing = "" if closing in line else closing
            continue
        yield number, line
        for quotes in ('"""', "'''"):
            if line.count(quotes) % 2:
                closing = quotes
