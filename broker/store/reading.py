"""Reads what other processes have written: what cannot be read is left out, and makes nobody blind to the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

log = logging.getLogger(__name__)

T = TypeVar("T")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What is raised by bytes that nobody of ours has written."""


def readable(entries: Mapping[bytes, bytes], decode: Callable[[bytes], T]) -> dict[str, T]:
    """The entries of a hash that can be read, by name."""
    found = {}
    for name, raw in entries.items():
        try:
            found[name.decode()] = decode(raw)
        except UNREADABLE:
            log.warning("an entry in the store cannot be read")
    return found
