"""The vendors, and what is peculiar to each: one table, and nothing else knows a vendor by its name.

Sources: protocol.md 1.1 (addresses, keys), 2.2 (warm-ups, fields that only HTTP has), 4.7 (ids), 5 (ages, lanes).
A server that merely speaks the API (a gateway, vLLM, Ollama) is `custom`; what it cannot do is left out of its
credential's `transports`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

BEARER, API_KEY, ENTRA = "bearer", "api_key", "entra"
"""How a credential shows who it is: its secret as a bearer token, in the header `api-key`, or exchanged for tokens."""

ENTRA_SCOPE = "https://ai.azure.com/.default"


class Vendor(msgspec.Struct, frozen=True):
    """How one vendor behaves; the defaults are those of a server of which nothing is known.

    `base_url` is empty where each customer has an address of its own. `max_age` is in seconds, below the vendor's own
    cap for a socket, so that a turn still fits in. `transports` and `auth` hold what the vendor takes, the preferred
    first; `scope` is what Entra's tokens are asked for. `projects`: whether headers name an organisation and a project.
    `probe` is the least that shows whether it serves: a warm-up costs no output, but only some make one without running
    the model. `lanes`: whether several named lanes run on one socket. `warmup`: "full", or "created_only" where a
    warm-up ends with `response.created`. `strict`: a create by WebSocket must not hold what only HTTP has.
    `reuses_ids`: one response id may name several turns. `one_model`: a socket asks for one model alone.
    """

    base_url: str = ""
    max_age: float = 3300.0
    transports: tuple[str, ...] = ("websocket", "http")
    auth: tuple[str, ...] = (BEARER,)
    scope: str = ""
    projects: bool = False
    probe: str = "response"
    lanes: bool = True
    warmup: str = "full"
    strict: bool = False
    reuses_ids: bool = False
    one_model: bool = False


VENDORS: Mapping[str, Vendor] = MappingProxyType(
    {
        "openai": Vendor(base_url="https://api.openai.com/v1", probe="warmup", projects=True),
        "azure": Vendor(auth=(BEARER, API_KEY, ENTRA), scope=ENTRA_SCOPE, probe="warmup", lanes=False, strict=True),
        "xai": Vendor(
            base_url="https://api.x.ai/v1",
            max_age=1080.0,
            lanes=False,
            warmup="created_only",
            strict=True,
            reuses_ids=True,
        ),
        "vercel": Vendor(
            base_url="https://ai-gateway.vercel.sh/v1", max_age=720.0, lanes=False, strict=True, one_model=True
        ),
        # it may be a gateway in front of any of the others
        "custom": Vendor(auth=(BEARER, API_KEY, ENTRA), scope=ENTRA_SCOPE, projects=True),
    }
)
