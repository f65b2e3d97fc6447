"""A real store for the nodes in front of the vendor of bare sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import engines


@pytest.fixture(scope="session")
def redis_server() -> Iterator[engines.Server]:
    with engines.server("valkey9") as server:
        yield server
