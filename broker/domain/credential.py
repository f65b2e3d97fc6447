"""A credential: one upstream identity, and the type that keeps its secret out of sight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from broker.domain.vendors import BEARER, VENDORS, Vendor


class Secret:
    """A string that only `reveal()` gives away; `repr`, `str` and `format` show `***`, and it cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself. Call it where the bytes leave the process, and nowhere else."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> str:
        raise TypeError("a secret is not serialised")


_UNKNOWN = VENDORS["custom"]


@dataclass(frozen=True, slots=True)
class Entra:
    """An application in a directory of Entra ID: `authority` exchanges its secret for tokens that open `scope`."""

    tenant: str
    client_id: str
    scope: str
    authority: str


@dataclass(frozen=True, slots=True)
class Token:
    """What a secret was exchanged for: it lives `left` seconds from when it was got, of `life` it was made for."""

    value: Secret
    life: float
    left: float


@dataclass(frozen=True, slots=True)
class Credential:
    """One upstream identity the operator owns.

    `models` empty means any model; `aliases` maps the client's model name to the upstream's. `weight` is relative,
    a lower `priority` is used first, `max_in_flight` 0 means no cap, `max_age` is in seconds. `limit_group` names
    what shares its quota, `boundary` what can read its encrypted reasoning and stored responses. `generation` changes
    with the secret: what was learnt about a key says nothing about the one that replaced it. `transports` is what the
    endpoint speaks (websocket, http), the preferred one first. `auth` is how it shows who it is (bearer, api_key,
    entra), with `entra` for the latter; `organization` and `project` are named to the vendor where not empty.
    `probe_kind` and `probe_model` say how it is probed; what they leave open is decided there. `key` tells it apart
    from all others, and from itself with another secret; `manners` say how its vendor behaves.
    """

    name: str
    base_url: str
    secret: Secret
    vendor: str = "custom"
    models: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    weight: float = 1.0
    priority: int = 0
    limit_group: str = ""
    boundary: str = ""
    max_age: float = 3300.0
    max_in_flight: int = 0
    transports: tuple[str, ...] = ("websocket",)
    auth: str = BEARER
    entra: Entra | None = None
    organization: str = ""
    project: str = ""
    probe_kind: str = "auto"
    probe_model: str = ""
    generation: str = field(init=False, default="")
    key: str = field(init=False, default="", repr=False)
    manners: Vendor = field(init=False, default=_UNKNOWN, repr=False)

    def __post_init__(self) -> None:
        """Name the generation: 32 bits of a digest, enough to tell keys apart and too little to find one."""
        shown = f"generation\0{self.name}\0{self.secret.reveal()}"
        if self.auth != BEARER or self.entra is not None:
            # the same secret shown in another way, or by another application, is another key
            entra = self.entra
            shown += f"\0{self.auth}" + (f"\0{entra.tenant}\0{entra.client_id}\0{entra.scope}" if entra else "")
        object.__setattr__(self, "generation", hashlib.sha256(shown.encode()).hexdigest()[:8])
        object.__setattr__(self, "key", f"{self.name}@{self.generation}")
        object.__setattr__(self, "manners", VENDORS.get(self.vendor, _UNKNOWN))

    def serves(self, model: str) -> bool:
        """Whether this credential may be asked for `model` (an unnamed model is the vendor's to refuse)."""
        return not self.models or not model or model in self.models or model in self.aliases

    def upstream_model(self, model: str) -> str:
        """The name under which the vendor knows `model`."""
        return self.aliases.get(model, model)
