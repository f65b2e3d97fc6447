"""Tokens for applications: an endpoint that issues them for a client id and secret, and what they are worth later."""

import hmac
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from broker.simulator.credentials import SimCredential
from broker.simulator.refusal import expired_token


class Tokens:
    """Issued tokens. `lifetime` (seconds) counts for those still to come; `requests` counts by client id.

    `fault` makes every request fail: "invalid_client" (401) or any other error word of OAuth, or an HTTP status.
    """

    def __init__(self, credentials: Sequence[SimCredential], lifetime: float) -> None:
        self.lifetime = lifetime
        self.fault: str | int | None = None
        self.requests: Counter[str] = Counter()
        self._credentials = credentials
        self._issued: dict[str, tuple[SimCredential, float]] = {}

    def issue(self, tenant: str, form: Mapping[str, str]) -> tuple[int, dict[str, object]]:
        """The status and body that answer a request for a token."""
        self.requests[form.get("client_id", "")] += 1
        if isinstance(self.fault, int):
            return self.fault, {"error": "temporarily_unavailable", "error_description": "Try again later."}
        if self.fault is not None:
            return 401, {"error": self.fault, "error_description": "The request was refused."}
        if form.get("grant_type") != "client_credentials":
            return 400, {"error": "unsupported_grant_type", "error_description": "Only client_credentials is known."}
        if not form.get("scope", "").endswith("/.default"):
            return 400, {"error": "invalid_scope", "error_description": "The scope must end in /.default."}
        owner = next((known for known in self._credentials if _is(known, tenant, form)), None)
        if owner is None:
            return 401, {"error": "invalid_client", "error_description": "Unknown application, or a wrong secret."}
        token = "eyJ." + secrets.token_urlsafe(32)
        self._issued[token] = owner, time.monotonic() + self.lifetime
        return 200, {"token_type": "Bearer", "expires_in": int(self.lifetime), "access_token": token}

    def owner(self, token: str) -> SimCredential | None:
        """Whose token this is, None if nobody's; raises Refusal if it has expired."""
        found = self._issued.get(token)
        if found is not None and time.monotonic() >= found[1]:
            raise expired_token()
        return found[0] if found is not None else None

    def expire(self) -> None:
        """Let all tokens that have been issued so far expire now."""
        self._issued = {token: (owner, 0.0) for token, (owner, _) in self._issued.items()}


def _is(known: SimCredential, tenant: str, form: Mapping[str, str]) -> bool:
    application = known.application
    return (
        application is not None
        and (application.tenant, application.client_id) == (tenant, form.get("client_id"))
        and hmac.compare_digest(application.client_secret.encode(), form.get("client_secret", "").encode())
    )
