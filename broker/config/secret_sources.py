"""Fetches what the configuration only points to: secrets from variables and files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker.config.binding import Finding
from broker.config.failure import ConfigError
from broker.config.schema import Config, WebhookConfig
from broker.config.units import parse_redis_url, parse_webhook_url
from broker.domain.credential import Secret

# More than any vendor's key; a file beyond it is the wrong file.
_LONGEST_SECRET = 16 * 1024


@dataclass(frozen=True, slots=True)
class WebhookSecrets:
    """The address of a webhook, and the secret its posts are signed with, None when they are not."""

    url: Secret
    signing: Secret | None


@dataclass(frozen=True, slots=True)
class ResolvedSecrets:
    """All secrets of a node. `encryption_key` holds 64 hex digits, whatever form it came in."""

    credentials: Mapping[str, Secret]
    encryption_key: Secret | None
    redis_url: Secret | None
    webhooks: Mapping[str, WebhookSecrets] = field(default_factory=dict)

    def encryption_key_bytes(self) -> bytes | None:
        """The 32 bytes of the transcript key, or None when transcripts are not encrypted."""
        return None if self.encryption_key is None else bytes.fromhex(self.encryption_key.reveal())


def resolve_secrets(config: Config, environ: Mapping[str, str], *, source: str = "") -> ResolvedSecrets:
    """Read every secret once. Raises ConfigError that names each missing variable or file, and never a value."""
    reader = _Reader(environ)
    credentials = {
        item.name: secret
        for i, item in enumerate(config.credentials)
        if (secret := reader.read(f"credentials[{i}].secret", item.secret_env, item.secret_file)) is not None
    }
    session = config.session
    path = "session.encryption_key"
    key = reader.key(path, reader.read(path, session.encryption_key_env, session.encryption_key_file))
    url = config.redis_url or reader.url(reader.read("redis_url", config.redis_url_env, config.redis_url_file))
    webhooks = {
        item.name: secrets
        for i, item in enumerate(config.webhooks)
        if (secrets := reader.webhook(f"webhooks[{i}]", item)) is not None
    }
    if reader.findings:
        raise ConfigError(source, reader.findings)
    return ResolvedSecrets(credentials, key, url, webhooks)


class _Reader:
    """Reads from variables and files and notes what is missing or unusable."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.findings: list[Finding] = []

    def read(self, path: str, variable: str | None, file: str | None) -> Secret | None:
        if variable is not None:
            return self._variable(f"{path}_env", variable)
        if file is not None:
            return self._file(f"{path}_file", file)
        return None

    def _variable(self, path: str, name: str) -> Secret | None:
        value = self._environ.get(name)
        if value is None:
            self._fault(path, f"the environment variable {name} is not set")
            return None
        return self._secret(path, value, f"the environment variable {name}")

    def _file(self, path: str, name: str) -> Secret | None:
        try:
            with Path(name).open("rb") as file:
                content = file.read(_LONGEST_SECRET + 1)
            value = content.decode("ascii")
        except OSError as error:
            self._fault(path, f"the file {name} cannot be read: {error.strerror}")
            return None
        except UnicodeDecodeError:
            self._fault(path, f"the file {name} holds something else than one line of text")
            return None
        return self._secret(path, value, f"the file {name}")

    def _secret(self, path: str, value: str, origin: str) -> Secret | None:
        value = value.strip()
        if not value:
            self._fault(path, f"{origin} is empty")
            return None
        # It goes into a header: a line break in it would end the header.
        if len(value) > _LONGEST_SECRET or not value.isascii() or not value.isprintable():
            self._fault(path, f"{origin} holds something else than one line of text")
            return None
        return Secret(value)

    def key(self, path: str, secret: Secret | None) -> Secret | None:
        if secret is None:
            return None
        key = _key_bytes(secret.reveal())
        if key is None:
            self._fault(path, "is not 32 bytes in base64 or hex; `openssl rand -base64 32` makes one")
            return None
        return Secret(key.hex())

    def url(self, secret: Secret | None) -> Secret | None:
        if secret is None:
            return None
        try:
            return parse_redis_url(secret.reveal())
        except ValueError:
            self._fault("redis_url", "is not a redis://, rediss:// or unix:// address")
            return None

    def webhook(self, path: str, item: WebhookConfig) -> WebhookSecrets | None:
        url = item.url or self.read(f"{path}.url", item.url_env, item.url_file)
        signing = self.read(f"{path}.secret", item.secret_env, item.secret_file)
        if url is None:
            return None
        try:
            return WebhookSecrets(parse_webhook_url(url.reveal()), signing)
        except ValueError:
            self._fault(f"{path}.url", "is not an http:// or https:// address without user, password or '#'")
            return None

    def _fault(self, path: str, message: str) -> None:
        self.findings.append(Finding(0, path, message))


def _key_bytes(text: str) -> bytes | None:
    """The 32 bytes that hex or base64 (either alphabet) stands for."""
    try:
        # 64 hex digits are also valid base64 (of 48 bytes), so hex is asked first.
        key = bytes.fromhex(text) if len(text) == 64 else _base64(text)
    except (ValueError, binascii.Error):
        return None
    return key if len(key) == 32 else None


def _base64(text: str) -> bytes:
    standard = text.replace("-", "+").replace("_", "/")
    return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
