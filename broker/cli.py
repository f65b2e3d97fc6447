"""The command line: what an operator types."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from broker import __version__

# Everything else is imported by the command that needs it, so that `--help` and `--version` answer at once.
if TYPE_CHECKING:
    from broker.config import Address, Config, ResolvedSecrets
    from broker.domain.credential import Secret
    from broker.simulator.credentials import SimCredential

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_SIMULATED = ("red:sk-red:org-a", "blue:sk-blue:org-a", "green:sk-green:org-b")

_OVERVIEW = """\
Keeps long-lived LLM agent sessions alive across credentials, sockets and nodes.

examples:
  broker mint-key --tenant agents           make a client's key and the digest for the configuration
  broker check-config broker.yaml           say everything that is wrong with a configuration
  broker serve --config broker.yaml         run a node (with an embedded server when redis_url is not set)
  broker serve --config broker.yaml --processes 4
  broker simulate --listen 127.0.0.1:8100   run an upstream to try things on

exit status: 0 done, 1 failed, 2 wrong usage or configuration
"""
_SERVE = """\
Run a node until SIGTERM or SIGINT; turns that run are ended first.

examples:
  broker serve --config broker.yaml
  broker serve --config /etc/broker/broker.toml --processes 4    one port, four processes

Clients connect to `listen`; metrics, livez and readyz are on `operations_listen`. Without redis_url an embedded
server keeps the data in data_dir; one node at a time can do that.
"""
_CHECK = """\
Read a configuration and report every finding as file:line: setting: what is wrong.

examples:
  broker check-config broker.yaml             the file alone; no variable or secret is read
  broker check-config broker.yaml --secrets   also that every secret it points to is there
"""
_SIMULATE = """\
Run an upstream that speaks the Responses API over WebSocket and HTTP, for trying things out.

examples:
  broker simulate
  broker simulate --listen 127.0.0.1:8100 --credential red:sk-red:org-a --credential blue:sk-blue:org-b

A credential is NAME:SECRET:BOUNDARY; credentials of one boundary can read each other's encrypted reasoning.
These are made-up secrets: never give it a real one.
"""
_WORKER = """\
Run the duties that belong to no request until SIGTERM or SIGINT: probes of blocked credentials, the record of what
happened to them with webhooks, cleaning.

example:
  broker worker --config broker.yaml

Any number may run: what one must do alone is done by one at a time, and another takes over when that one ends or dies.
It needs the Redis that the nodes use. Metrics, livez and readyz are on worker.operations_listen.
"""
_MINT = """\
Make a new client key. The key is shown once and kept nowhere; the digest goes into the configuration.

examples:
  broker mint-key
  broker mint-key --tenant agents    also print the lines to paste under `tenants:`
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status; raises SystemExit only where argparse does."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except _Refused as refused:
        return _complain(refused.lines, REFUSED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; what is left to write has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


class _Refused(Exception):
    """Wrong usage or configuration: its lines go to standard error, without a traceback."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(*lines)
        self.lines = lines


def _parser() -> argparse.ArgumentParser:
    parser = _described(argparse.ArgumentParser, _OVERVIEW, prog="broker")
    parser.add_argument("--version", action="version", version=f"broker {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = _described(commands.add_parser, _SERVE, name="serve", help="run a node")
    serve.add_argument("--config", required=True, metavar="FILE", help="configuration in YAML or TOML")
    serve.add_argument("--processes", type=_process_count, default=1, metavar="N", help="processes (default 1)")
    serve.add_argument("--child", type=int, help=argparse.SUPPRESS)
    serve.set_defaults(command=_serve)

    check = _described(commands.add_parser, _CHECK, name="check-config", help="check a configuration")
    check.add_argument("config", metavar="FILE", help="configuration in YAML or TOML")
    check.add_argument("--secrets", action="store_true", help="also read the secrets it points to")
    check.set_defaults(command=_check_config)

    simulate = _described(commands.add_parser, _SIMULATE, name="simulate", help="run a simulated upstream")
    simulate.add_argument("--listen", default="127.0.0.1:8100", metavar="HOST:PORT", help="(default 127.0.0.1:8100)")
    simulate.add_argument(
        "--credential", action="append", default=[], metavar="NAME:SECRET:BOUNDARY", help="repeatable"
    )
    simulate.set_defaults(command=_simulate)

    worker = _described(commands.add_parser, _WORKER, name="worker", help="run the duties beside the nodes")
    worker.add_argument("--config", required=True, metavar="FILE", help="configuration in YAML or TOML")
    worker.set_defaults(command=_worker)

    mint = _described(commands.add_parser, _MINT, name="mint-key", help="make a client key")
    mint.add_argument("--tenant", metavar="NAME", help="print the lines for this tenant")
    mint.set_defaults(command=_mint_key)
    return parser


def _described(make: Callable[..., argparse.ArgumentParser], description: str, **names: str) -> argparse.ArgumentParser:
    return make(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **names)


def _process_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError("must be between 1 and 256")
    return count


def _complain(lines: Sequence[str], status: int) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return status


def _load(path: str) -> Config:
    from broker.config import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        raise _Refused(error.lines()) from None


def _resolve(config: Config, path: str) -> ResolvedSecrets:
    from broker.config import ConfigError, resolve_secrets

    try:
        return resolve_secrets(config, os.environ, source=path)
    except ConfigError as error:
        raise _Refused(error.lines()) from None


def _check_config(options: argparse.Namespace) -> int:
    config = _load(options.config)
    if options.secrets:
        _resolve(config, options.config)
    print(f"{options.config}: good: {len(config.tenants)} tenant(s), {len(config.credentials)} credential(s)")
    return OK


def _serve(options: argparse.Namespace) -> int:
    from broker import logs

    # it asks for a reload; one that comes before the node can do that is covered by its first look at the files
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config = _load(options.config)
    secrets = _resolve(config, options.config)
    logs.setup(config.log.level, config.log.format)
    if options.child is not None:
        return _serve_child(options, config, secrets)
    if secrets.redis_url is not None:
        return _serve_all(options, config, secrets, secrets.redis_url)
    return _serve_embedded(options, config, secrets)


def _serve_embedded(options: argparse.Namespace, config: Config, secrets: ResolvedSecrets) -> int:
    from broker.domain.credential import Secret
    from broker.embedded import EmbeddedServer, EmbeddedServerError

    server = EmbeddedServer(config.data_dir)
    try:
        server.start()
    except EmbeddedServerError as error:
        return _complain([str(error)], FAILED)
    try:
        return _serve_all(options, config, secrets, Secret(server.url))
    finally:
        server.stop()


def _serve_all(options: argparse.Namespace, config: Config, secrets: ResolvedSecrets, redis_url: Secret) -> int:
    if options.processes > 1:
        return _supervise(options, redis_url)
    return _run_node(options, config, secrets, redis_url, reuse_port=False, process_index=0)


def _supervise(options: argparse.Namespace, redis_url: Secret) -> int:
    from broker.processes import Supervisor, metrics_folder

    def command(index: int) -> list[str]:
        return [sys.executable, "-m", "broker", "serve", "--config", options.config, "--child", str(index)]

    with metrics_folder() as folder:
        environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        return Supervisor(command, options.processes, errand=redis_url.reveal().encode(), environ=environ).run()


def _serve_child(options: argparse.Namespace, config: Config, secrets: ResolvedSecrets) -> int:
    """One of several processes; the address of Redis, which can hold a password, comes through standard input."""
    from broker.domain.credential import Secret

    redis_url = Secret(sys.stdin.read())
    return _run_node(options, config, secrets, redis_url, reuse_port=True, process_index=options.child)


def _run_node(
    options: argparse.Namespace,
    config: Config,
    secrets: ResolvedSecrets,
    redis_url: Secret,
    *,
    reuse_port: bool,
    process_index: int,
) -> int:
    from broker.config.reload import Source
    from broker.edge.app import run_node

    source = Source(options.config, os.environ)
    try:
        run_node(config, secrets, redis_url, source, reuse_port=reuse_port, process_index=process_index)
    except OSError as error:
        # An address that cannot be had is the operator's to change; anything else is a fault that needs its traceback.
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        return _complain([f"{config.listen}, {config.operations_listen}: cannot listen: {error.strerror}"], FAILED)
    return OK


def _simulate(options: argparse.Namespace) -> int:
    import asyncio

    from broker.config.units import parse_address
    from broker.simulator.credentials import parse_credentials

    try:
        listen = parse_address(options.listen)
    except ValueError:
        raise _Refused([f"--listen: expected HOST:PORT, such as 127.0.0.1:8100, found {options.listen!r}"]) from None
    try:
        credentials = parse_credentials(options.credential or _SIMULATED)
    except ValueError as error:
        raise _Refused([f"--credential: {error}"]) from None
    try:
        asyncio.run(_simulate_until_told(listen, credentials))
    except OSError as error:
        return _complain([f"{listen}: {error.strerror}"], FAILED)
    return OK


async def _simulate_until_told(listen: Address, credentials: Sequence[SimCredential]) -> None:
    import asyncio

    from broker.simulator.upstream import Simulator

    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    simulator = Simulator(credentials)
    await simulator.start(listen.host, listen.port)
    print(f"base_url {simulator.base_url}\nfaults and records {simulator.control_url}/state", flush=True)
    for known in credentials:
        print(f"credential {known.name}: secret {known.secret}, boundary {known.boundary}", flush=True)
    await told.wait()
    await simulator.stop()


def _worker(options: argparse.Namespace) -> int:
    from broker import logs

    # until the worker listens for it, a signal that asks for the configuration to be read anew must not end it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config = _load(options.config)
    secrets = _resolve(config, options.config)
    logs.setup(config.log.level, config.log.format)
    if secrets.redis_url is None:
        raise _Refused([f"{options.config}: redis_url: is missing; a worker needs the Redis that the nodes share"])
    from broker.config.reload import Source
    from workers.__main__ import run

    try:
        run(config, secrets, secrets.redis_url, Source(options.config, os.environ))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        return _complain([f"{config.worker.operations_listen}: cannot listen: {error.strerror}"], FAILED)
    return OK


def _mint_key(options: argparse.Namespace) -> int:
    import hashlib
    import secrets

    from broker.config.units import NAME

    if options.tenant is not None:
        try:
            NAME.parse(options.tenant)
        except ValueError:
            raise _Refused([f"--tenant: expected {NAME.allowed}"]) from None
    key = f"sbk_{secrets.token_urlsafe(32)}"
    digest = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    print(f"key (shown once; give it to the client):\n  {key}")
    if options.tenant is None:
        print(f"digest (for tenants[].keys in the configuration):\n  {digest}")
    else:
        print(f"lines for the configuration:\ntenants:\n  - name: {options.tenant}\n    keys:\n      - {digest}")
    return OK
