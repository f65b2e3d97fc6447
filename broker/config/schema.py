"""Every setting of the broker, with its unit and its default; this is the one screen to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

from broker.config.units import (
    Address,
    Bytes,
    Count,
    CountOrNone,
    Digest,
    EnvName,
    FilePath,
    HeaderValue,
    HttpUrl,
    Listen,
    Name,
    ProbeKind,
    RedisUrl,
    Seconds,
    Text,
    Tier,
    WebhookUrl,
    Weight,
    WorkerLease,
)
from broker.domain.vendors import VENDORS

Vendor = Literal["openai", "azure", "xai", "vercel", "custom"]
Transport = Literal["websocket", "http"]
AuthKind = Literal["bearer", "api_key", "entra"]
BadState = Literal["suspect", "cooling", "exhausted", "revoked", "paused"]


class TenantConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may connect. Sessions of one tenant do not exist for another."""

    name: Name
    keys: tuple[Digest, ...]  # digests of the client keys, at least one; `broker mint-key` makes both
    transcript: bool = True  # False: nothing of a turn is kept, and a session stays with one credential for life
    max_sockets: CountOrNone = 0  # client sockets per process; 0 = only limits.max_sockets counts


class ProbeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a worker finds out whether a blocked credential serves again."""

    kind: ProbeKind = "auto"  # auto = by vendor: a warm-up for openai and azure, else the shortest response
    model: Text = ""  # what to ask for; default: the first of models, and without any the list of models is asked for


class AuthConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a credential shows the vendor who it is."""

    # bearer = the secret in the header authorization | api_key = in the header api-key (azure, custom)
    # entra = the secret of an application, exchanged for tokens (azure, custom)
    kind: AuthKind = "bearer"
    tenant: Name = ""  # entra: the directory, by its id or its domain,
    client_id: Name = ""  # and the application
    scope: Text = ""  # entra: what tokens are asked for; default https://ai.azure.com/.default
    authority: HttpUrl = "https://login.microsoftonline.com"  # entra: who makes tokens


class CredentialConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One upstream identity. After loading, what the vendor or another field decides is always filled."""

    name: Name
    vendor: Vendor
    base_url: HttpUrl = ""  # default by vendor; azure and custom must name it
    secret_env: EnvName | None = None  # exactly one of: the variable that holds the secret,
    secret_file: FilePath | None = None  # or the file that holds it
    auth: AuthConfig = AuthConfig()
    organization: Name = ""  # openai, custom: whose quota and data; default = the key's own
    project: Name = ""  # openai, custom: default = the key's own
    models: tuple[Text, ...] = ()  # what it serves; empty = any
    aliases: Mapping[str, Text] = field(default_factory=dict)  # the client's model name -> the upstream's
    weight: Weight = 1.0  # share within its tier
    priority: Tier = 0  # tier; the lowest tier that has a usable credential is used
    limit_group: Name = ""  # credentials that share quota; default = its own name
    boundary: Name = ""  # credentials that read each other's encrypted reasoning; default = limit_group
    transports: tuple[Transport, ...] = ()  # what the endpoint speaks, the preferred first; default [websocket, http]
    max_age: Seconds = 0.0  # of an upstream socket; default openai, azure, custom 55m, xai 18m, vercel 12m
    max_in_flight: CountOrNone = 0  # turns at once, of all nodes together; 0 = no cap
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)  # extra static headers; never authorization
    probe: ProbeConfig = ProbeConfig()

    def __post_init__(self) -> None:
        """Fill what the vendor or another field decides, wherever the record is made."""
        limit_group, vendor = self.limit_group or self.name, VENDORS[self.vendor]
        filled = {
            "base_url": self.base_url or vendor.base_url,
            "limit_group": limit_group,
            "boundary": self.boundary or limit_group,
            "transports": self.transports or vendor.transports,
            "max_age": self.max_age or vendor.max_age,
        }
        for name, value in filled.items():
            force_setattr(self, name, value)


class SessionConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long and how a conversation is kept."""

    idle_ttl: Seconds = 3600.0  # 1h after its last turn a session is forgotten
    owner_ttl: Seconds = 2592000.0  # 30d, as vendors keep them: who made a stored response or a conversation
    transcript: bool = True  # False: off for every tenant
    max_transcript: Bytes = 64 * 1024**2  # 64MiB per session
    encryption_key_env: EnvName | None = None  # at most one of: the variable that holds the key (32 bytes,
    encryption_key_file: FilePath | None = None  # base64 or hex), or its file; neither = not encrypted


class TurnConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long a turn may take, and how often it may be placed."""

    hold: Seconds = 3.0  # 3s: how long announcements are held back, so that a late overload can still move
    first_event: Seconds = 60.0  # 60s from sending to the first upstream event
    silence: Seconds = 120.0  # 120s between two upstream events
    answer: Seconds = 600.0  # 10m for an answer that comes in one piece (chat completions that are not streamed)
    placing: Seconds = 30.0  # 30s within which a turn may still be placed anew
    placements: Count = 3  # placements at most
    connect: Seconds = 5.0  # 5s to open an upstream connection
    wait: Seconds = 10.0  # 10s for a credential that is busy, cooling for a moment, or just coming back


class SelectionConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which credential takes a new session, among those of the best tier that are equally healthy."""

    # the less loaded of two | drawn by weight | in turns | the first until it is full | by the session
    strategy: Literal["least_loaded", "weighted", "round_robin", "fill_first", "stable_hash"] = "least_loaded"


class LimitsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one process accepts."""

    max_frame: Bytes = 16 * 1024**2  # 16MiB in one message of a client
    max_upstream_frame: Bytes = 64 * 1024**2  # 64MiB in one message of a vendor
    max_sockets: Count = 2000  # client sockets and requests over HTTP
    lane_queue: Count = 64  # creates that wait on one socket
    heartbeat: Seconds = 20.0  # 20s between pings to a client
    send_timeout: Seconds = 30.0  # 30s for a client to take what is sent
    handshake: Seconds = 10.0  # 10s for a client to finish its handshake
    request: Seconds = 60.0  # 60s for the body of a request to arrive


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How Redis is used."""

    timeout: Seconds = 1.0  # 1s for an answer
    connect_timeout: Seconds = 0.5  # 500ms for a connection
    journal: Count = 1000  # turns kept in memory while Redis is away
    journal_bytes: Bytes = 64 * 1024**2  # 64MiB of them at most
    refresh: Seconds = 1.0  # 1s between refreshes of the health snapshot


class WorkerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The process that does what belongs to no request."""

    operations_listen: Listen = Address("127.0.0.1", 9091)  # its metrics, livez, readyz; never public
    lease: WorkerLease = 6.0  # 6s after which another worker takes over from one that was killed


class WebhookConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where workers tell changes of health to."""

    name: Name
    url: WebhookUrl | None = None  # exactly one of: the address, unless it is a secret as Slack's are,
    url_env: EnvName | None = None  # the variable that holds it,
    url_file: FilePath | None = None  # or the file that holds it
    secret_env: EnvName | None = None  # at most one of: the variable that holds the secret for signatures,
    secret_file: FilePath | None = None  # or its file; neither = not signed
    states: tuple[BadState, ...] = ("revoked", "exhausted")  # who comes into one of these, or leaves it, is told
    per_minute: Count = 30  # changes told in one minute; of more only how many


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration of a node."""

    listen: Listen = Address("127.0.0.1", 8080)  # clients
    operations_listen: Listen = Address("127.0.0.1", 9090)  # metrics, livez, readyz; never public
    redis_url: RedisUrl | None = None  # at most one of: redis://, rediss:// or unix:// address,
    redis_url_env: EnvName | None = None  # the variable that holds it,
    redis_url_file: FilePath | None = None  # or the file; none = an embedded server in data_dir
    data_dir: FilePath = "./data"  # of the embedded server, from the working directory
    node: Name = ""  # default: the host's name
    tenants: tuple[TenantConfig, ...]  # at least one
    credentials: tuple[CredentialConfig, ...]  # at least one
    session: SessionConfig = SessionConfig()
    turn: TurnConfig = TurnConfig()
    selection: SelectionConfig = SelectionConfig()
    limits: LimitsConfig = LimitsConfig()
    store: StoreConfig = StoreConfig()
    worker: WorkerConfig = WorkerConfig()
    webhooks: tuple[WebhookConfig, ...] = ()
    log: LogConfig = LogConfig()
