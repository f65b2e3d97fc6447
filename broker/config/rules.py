"""What must hold between settings, beyond what each of them may be on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

from broker.config.binding import Draft, Finding
from broker.config.schema import (
    AuthConfig,
    Config,
    CredentialConfig,
    SessionConfig,
    TenantConfig,
    TurnConfig,
    WebhookConfig,
)
from broker.config.units import HEADER_NAME
from broker.domain.vendors import ENTRA, VENDORS, Vendor

# The broker writes these itself, or they would carry a secret past the secret's own place.
RESERVED_HEADERS = frozenset(
    {
        *("authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"),
        *("host", "connection", "upgrade", "keep-alive", "te", "trailer"),
        *("transfer-encoding", "content-length", "content-type", "expect"),
    }
)


LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def check(root: Draft) -> list[Finding]:
    """Every broken rule in the draft of the whole document."""
    findings: list[Finding] = []
    for draft in root.drafts():
        for rule in _RULES.get(draft.record, ()):
            findings.extend(rule(draft))
    return findings


def _at_most_one(draft: Draft, names: tuple[str, ...]) -> Iterator[Finding]:
    given = [name for name in names if draft.given(name)]
    for name in given[1:]:
        yield draft.fault(name, f"stands beside {given[0]}; give only one of {', '.join(names)}")


def _secret_source(draft: Draft) -> Iterator[Finding]:
    names = ("secret_env", "secret_file")
    if not any(draft.given(name) for name in names):
        yield draft.fault("secret_env", "is missing: name the variable or, as secret_file, the file with the secret")
    yield from _at_most_one(draft, names)


def _webhook_url(draft: Draft) -> Iterator[Finding]:
    names = ("url", "url_env", "url_file")
    if not any(draft.given(name) for name in names):
        yield draft.fault("url", "is missing: give it here, or name its variable as url_env or its file as url_file")
    yield from _at_most_one(draft, names)


def _states(draft: Draft) -> Iterator[Finding]:
    states = draft.get("states", ())
    if len(set(states)) != len(states):
        yield draft.fault("states", "must name each state once")


def _base_url(draft: Draft) -> Iterator[Finding]:
    vendor = _vendor(draft)
    if vendor is not None and not vendor.base_url and not draft.given("base_url"):
        yield draft.fault("base_url", f"is missing: the vendor {draft.get('vendor')!r} has no address of its own")


def _vendor(draft: Draft) -> Vendor | None:
    """The manners of a credential's vendor, None where the document names none."""
    return VENDORS.get(draft.get("vendor", ""))


def _auth_of_vendor(draft: Draft) -> Iterator[Finding]:
    vendor, auth = _vendor(draft), draft.get("auth")
    if vendor is None or auth is None:
        return
    kind = auth.effective("kind")
    if kind not in vendor.auth:
        yield auth.fault("kind", f"{draft.get('vendor')} does not take {kind!r}, but {', '.join(vendor.auth)}")


def _entra(draft: Draft) -> Iterator[Finding]:
    needed, more = ("tenant", "client_id"), ("scope", "authority")
    if draft.effective("kind") == ENTRA:
        for name in needed:
            if not draft.given(name):
                yield draft.fault(name, "is missing: who has an application in Entra ID knows it")
    elif "kind" in draft.values or not draft.given("kind"):
        for name in (*needed, *more):
            if draft.given(name):
                yield draft.fault(name, "has a meaning only with kind: entra")


def _authority(draft: Draft) -> Iterator[Finding]:
    authority = urlsplit(draft.effective("authority"))
    if authority.query:
        yield draft.fault("authority", "must not hold a '?': the path to the tokens is added behind it")
    if authority.scheme != "https" and authority.hostname not in LOOPBACK:
        yield draft.fault("authority", "must be an https:// address: the secret is sent there")


def _projects(draft: Draft) -> Iterator[Finding]:
    vendor = _vendor(draft)
    headers = {name.lower() for name in draft.get("headers", {})}
    for name in ("organization", "project"):
        if not draft.given(name):
            continue
        if vendor is not None and not vendor.projects:
            yield draft.fault(name, f"has no meaning for the vendor {draft.get('vendor')!r}")
        if (header := f"openai-{name}") in headers:
            yield draft.fault(name, f"stands beside {header!r} in headers; give only one of them")


def _headers(draft: Draft) -> Iterator[Finding]:
    for name in draft.get("headers", {}):
        lowered = name.lower()
        if lowered in RESERVED_HEADERS or lowered.startswith("sec-websocket-"):
            yield draft.fault("headers", f"must not contain {lowered!r}: the broker sets it")
        elif not _is_header_name(name):
            yield draft.fault("headers", f"{name[:64]!r} is not a header's name")


def _is_header_name(name: str) -> bool:
    try:
        HEADER_NAME.parse(name)
    except ValueError:
        return False
    return True


def _transports(draft: Draft) -> Iterator[Finding]:
    transports = draft.get("transports", ())
    if len(set(transports)) != len(transports):
        yield draft.fault("transports", "must name websocket, http or both, each once")


def _not_empty(draft: Draft, name: str) -> Iterator[Finding]:
    # Entries that could not be read are reported on their own lines; this is about a list that has none.
    if draft.given(name) and draft.node.value[name].value == []:
        yield draft.fault(name, "must hold at least one entry")


def _unique_names(draft: Draft, of: str) -> Iterator[Finding]:
    seen: dict[str, Draft] = {}
    for item in draft.get(of, ()):
        first = seen.setdefault(item.get("name", item.path), item)
        if first is not item:
            yield item.fault("name", f"{item.get('name')!r} is already the name of {first.path}")


def _unique_keys(draft: Draft) -> Iterator[Finding]:
    owners: dict[str, Draft] = {}
    for tenant in draft.get("tenants", ()):
        for digest in tenant.get("keys", ()):
            if digest in owners:
                yield tenant.fault("keys", f"a key stands here that is already listed in {owners[digest].path}")
            owners[digest] = tenant


def _listeners(draft: Draft) -> Iterator[Finding]:
    listen = draft.effective("listen")
    if listen.port != 0 and listen == draft.effective("operations_listen"):
        yield draft.fault("operations_listen", f"is the same address as listen, {listen}")


def _worker_listener(draft: Draft) -> Iterator[Finding]:
    worker = draft.get("worker")
    if worker is None or not worker.given("operations_listen"):
        return
    listen = worker.effective("operations_listen")
    for name in ("listen", "operations_listen"):
        if listen.port != 0 and listen == draft.effective(name):
            yield worker.fault("operations_listen", f"is the same address as {name} of a node, {listen}")


def _aliases(draft: Draft) -> Iterator[Finding]:
    if "" in draft.get("aliases", {}):
        yield draft.fault("aliases", "a model's name must not be empty")


def _connect_within_placing(draft: Draft) -> Iterator[Finding]:
    connect, placing = draft.effective("connect"), draft.effective("placing")
    if connect > placing:
        yield draft.fault(
            "connect", f"{connect:g}s is longer than placing, {placing:g}s, so no turn could be placed anew"
        )


_RULES: dict[type, tuple[Callable[[Draft], Iterator[Finding]], ...]] = {
    Config: (
        partial(_at_most_one, names=("redis_url", "redis_url_env", "redis_url_file")),
        partial(_not_empty, name="tenants"),
        partial(_not_empty, name="credentials"),
        partial(_unique_names, of="tenants"),
        partial(_unique_names, of="credentials"),
        partial(_unique_names, of="webhooks"),
        _unique_keys,
        _listeners,
        _worker_listener,
    ),
    TenantConfig: (partial(_not_empty, name="keys"),),
    AuthConfig: (_entra, _authority),
    CredentialConfig: (
        _secret_source,
        _base_url,
        _auth_of_vendor,
        _projects,
        _aliases,
        _transports,
        _headers,
        partial(_not_empty, name="transports"),
    ),
    SessionConfig: (partial(_at_most_one, names=("encryption_key_env", "encryption_key_file")),),
    TurnConfig: (_connect_within_placing,),
    WebhookConfig: (
        _webhook_url,
        partial(_at_most_one, names=("secret_env", "secret_file")),
        _states,
        partial(_not_empty, name="states"),
    ),
}
