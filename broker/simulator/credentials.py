"""Who may call the simulated vendor, and how that vendor behaves when nothing is wrong with it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.simulator.manners import Manner


@dataclass(frozen=True, slots=True)
class Application:
    """An application of a tenant, which can have tokens for its client id and secret."""

    tenant: str
    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SimCredential:
    """One caller of the vendor; credentials of the same boundary (organisation) share stored state and ciphertext.

    `manner` is the vendor that this caller meets, None the simulator's. A request that names another organization or
    project than those given here is refused. An `application` may call with tokens that the simulator has issued.
    """

    name: str
    secret: str = field(repr=False)
    boundary: str = "org"
    models: list[str] | None = None
    manner: str | Manner | None = None
    organization: str | None = None
    project: str | None = None
    application: Application | None = None

    def serves(self, model: str) -> bool:
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class SimOptions:
    """The vendor's settings; all times are seconds."""

    deltas: int = 4  # text deltas of an answer whose request does not say
    delay: float = 0.0  # between deltas; 0 writes a whole answer at once
    reasoning: bool = True
    age_limit: float | None = None  # of one WebSocket
    age_interrupts: bool = False  # announce the age limit in the middle of responses, not after them
    reuse_response_ids: bool = False  # one response id for all turns of a socket, as xAI does
    manner: str | Manner = "openai"  # of callers that have none of their own
    store_scope: str = "boundary"  # who shares what is stored: "boundary" (an organisation) or "credential"
    token_lifetime: float = 3600.0  # of the tokens of applications
    keep_alive: float = 75.0  # how long an HTTP connection may be idle before the vendor closes it
    in_flight: int = 16
    lane_names: int = 32
    pending_steers: int = 32
    models: tuple[str, ...] = ("sim-1", "sim-2")
    records: int = 10_000  # turns and handshakes remembered for inspection
    stored: int = 100_000  # responses and items kept per boundary
    seed: int = 0  # of the chance in faults


def parse_credentials(specs: Iterable[str]) -> list[SimCredential]:
    """Read `name:secret[:boundary[:model,model]]`; raises ValueError for anything else and for doubled names."""
    found: dict[str, SimCredential] = {}
    for spec in specs:
        name, _, rest = spec.partition(":")
        secret, _, rest = rest.partition(":")
        boundary, _, models = rest.partition(":")
        if not name or not secret or name in found:
            raise ValueError(f"not a credential of the form name:secret[:boundary[:models]], or named twice: {name!r}")
        found[name] = SimCredential(name, secret, boundary or "org", models.split(",") if models else None)
    return list(found.values())
