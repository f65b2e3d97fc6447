"""Settings: `load` reads a file against the schema, `resolve_secrets` fetches what the file only points to."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import msgspec

from broker.config.binding import Finding, read
from broker.config.document import DocumentError, Node, read_toml, read_yaml
from broker.config.failure import ConfigError
from broker.config.rules import check
from broker.config.schema import (
    AuthConfig,
    Config,
    CredentialConfig,
    LimitsConfig,
    LogConfig,
    ProbeConfig,
    SelectionConfig,
    SessionConfig,
    StoreConfig,
    TenantConfig,
    TurnConfig,
    WebhookConfig,
    WorkerConfig,
)
from broker.config.secret_sources import ResolvedSecrets, WebhookSecrets, resolve_secrets
from broker.config.units import Address

__all__ = [
    "Address",
    "AuthConfig",
    "Config",
    "ConfigError",
    "CredentialConfig",
    "Finding",
    "LimitsConfig",
    "LogConfig",
    "ProbeConfig",
    "ResolvedSecrets",
    "SelectionConfig",
    "SessionConfig",
    "StoreConfig",
    "TenantConfig",
    "TurnConfig",
    "WebhookConfig",
    "WebhookSecrets",
    "WorkerConfig",
    "load",
    "resolve_secrets",
]

_READERS = {".yaml": read_yaml, ".yml": read_yaml, ".toml": read_toml}


def load(path: str | Path) -> Config:
    """The configuration in a YAML or TOML file, by its ending. Raises ConfigError with every finding."""
    source = str(path)
    draft, findings = read(Config, _document(Path(path), source))
    if draft is not None:
        findings = [*findings, *check(draft)]
    if draft is None or findings:
        raise ConfigError(source, findings)
    config: Config = draft.build()
    return config if config.node else msgspec.structs.replace(config, node=_host_name())


def _document(path: Path, source: str) -> Node:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(source, [Finding(0, "", f"the name must end in one of {', '.join(_READERS)}")])
    try:
        return reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(source, [Finding(0, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigError(source, [Finding(0, "", "is not a text in UTF-8")]) from None
    except DocumentError as error:
        raise ConfigError(source, [Finding(error.line, "", error.message)]) from None


def _host_name() -> str:
    """The host's name, in the letters a node's name may have."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "node"
