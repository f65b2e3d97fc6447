"""Clients that we did not write, each in an environment of its own, and what they are pointed at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import engines
from tests.clients import environments, site
from tests.clients.environments import Environment, NotInstalled
from tests.clients.program import Program
from tests.clients.site import Site

HERE = Path(__file__).parent
RUN_WITHIN = 120
"""Seconds for one test; the first one of a client also waits for its installation."""


@dataclass
class Row:
    """What one client went through, for the table at the end of the run."""

    client: str
    site: str
    runs: int = 0
    turns: int = 0
    asked: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    failures: int = 0


ROWS = pytest.StashKey[dict[tuple[str, str], Row]]()
FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if isinstance(item, pytest.Function) and HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.timeout(RUN_WITHIN + environments.INSTALL_WITHIN))
    if not config.getoption("--clients"):
        proofs = {item for item in ours if hasattr(item, "callspec") and "vendor" in item.callspec.params.values()}
        items[:] = [item for item in items if item not in proofs]
        config.hook.pytest_deselected(items=list(proofs))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


# --- environments ---


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest) -> Callable[[Environment], Environment]:
    """Install a client once; where that cannot be done the test is skipped, and says what failed."""
    refused: dict[str, str] = {}

    def install(client: Environment) -> Environment:
        if client.heavy and not request.config.getoption("--clients"):
            pytest.skip(f"{client.version} is some 400 MB: run `make clients`, or pytest with --clients")
        if client.name not in refused:
            try:
                client.install()
            except NotInstalled as failed:
                refused[client.name] = f"!!! {client.version} IS NOT TESTED: {failed} !!!"
        if client.name in refused:
            pytest.skip(refused[client.name])
        return client

    return install


# --- what they are pointed at ---


@pytest.fixture(scope="session")
def redis_server() -> Iterator[engines.Server]:
    with engines.server("valkey9") as server:
        yield server


@pytest.fixture
async def build(
    redis_server: engines.Server, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[[str], Awaitable[Site]]]:
    """Make what clients are pointed at, by name; it is torn down behind the test, and told of in the table."""
    redis_server.execute("FLUSHALL")
    makers = {
        "vendor": site.vendor,
        "broker": lambda: site.nodes(redis_server.url),
        "broker-over-http": lambda: site.nodes(redis_server.url, "http"),
        "processes": site.processes,
    }
    made: list[Site] = []
    async with AsyncExitStack() as stack:

        async def make(name: str) -> Site:
            made.append(await stack.enter_async_context(makers[name]()))
            return made[-1]

        yield make
        for each in made:
            _tell(request, each)


@pytest.fixture(params=["vendor", "broker", "broker-over-http"])
async def target(request: pytest.FixtureRequest, build: Callable[[str], Awaitable[Site]]) -> Site:
    """Each of them. What fails at the vendor is a fault of the test, which is looked at with --clients."""
    return await build(request.param)


@pytest.fixture
async def broker(build: Callable[[str], Awaitable[Site]]) -> Site:
    """Two nodes in this process."""
    return await build("broker")


@pytest.fixture
async def processes(build: Callable[[str], Awaitable[Site]]) -> Site:
    """Two nodes that can be killed."""
    return await build("processes")


Run = Callable[..., Awaitable[Program]]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Start a client in a process of its own; what has not ended behind the test is ended."""
    started: list[Program] = []

    async def start(command: Sequence[str], at: Site, *, waits: bool = True, **environ: str) -> Program:
        where = {"BASE_URL": at.base_url, "KEY": at.key}
        started.append(await Program.start(command, tmp_path, waits=waits, **where, **environ))
        return started[-1]

    yield start
    for program in started:
        await program.kill()


# --- the table at the end ---


def _tell(request: pytest.FixtureRequest, each: Site) -> None:
    failed = request.node.stash.get(FAILED, False)
    if not each.asked and not failed:
        return  # it was skipped
    rows = request.config.stash.setdefault(ROWS, {})
    client = str(getattr(request.module, "CLIENT", request.module.__name__.rpartition(".")[2]))
    row = rows.setdefault((client, each.name), Row(client, each.name))
    row.runs += 1
    row.turns += len(each.turns)
    row.asked |= set(each.asked)
    row.faults += each.faults
    row.failures += failed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, {})
    if not rows:
        return
    terminalreporter.section("clients")
    for row in sorted(rows.values(), key=lambda row: (row.client, row.site)):
        transports = {"WebSocket" if asked.startswith("WS") else "HTTP" for asked in row.asked}
        faults = ", ".join(f"{kind} x{row.faults.count(kind)}" for kind in dict.fromkeys(row.faults)) or "none"
        terminalreporter.write_line(
            f"{row.client}, at the {row.site}: {row.runs} tests over {' and '.join(sorted(transports)) or 'nothing'}, "
            f"{row.turns} turns; faults: {faults}; failures: {row.failures}"
        )
