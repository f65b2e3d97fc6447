"""From a configuration to the credentials that a process works with."""

from __future__ import annotations

from broker.config.schema import Config, CredentialConfig
from broker.config.secret_sources import ResolvedSecrets
from broker.domain.credential import Credential, Entra
from broker.domain.vendors import ENTRA, VENDORS


def pool(config: Config, secrets: ResolvedSecrets) -> list[Credential]:
    """All credentials, in the order of the configuration."""
    return [_credential(item, secrets) for item in config.credentials]


def _credential(item: CredentialConfig, secrets: ResolvedSecrets) -> Credential:
    return Credential(
        name=item.name,
        base_url=item.base_url,
        secret=secrets.credentials[item.name],
        vendor=item.vendor,
        transports=item.transports,
        auth=item.auth.kind,
        entra=_entra(item),
        organization=item.organization,
        project=item.project,
        models=frozenset(item.models),
        aliases=item.aliases,
        headers=item.headers,
        weight=item.weight,
        priority=item.priority,
        limit_group=item.limit_group,
        boundary=item.boundary,
        max_age=item.max_age,
        max_in_flight=item.max_in_flight,
        probe_kind=item.probe.kind,
        probe_model=item.probe.model or next(iter(item.models), ""),
    )


def _entra(item: CredentialConfig) -> Entra | None:
    auth = item.auth
    if auth.kind != ENTRA:
        return None
    return Entra(auth.tenant, auth.client_id, auth.scope or VENDORS[item.vendor].scope, auth.authority)
