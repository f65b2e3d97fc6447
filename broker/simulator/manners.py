"""The manners of vendors: in what the simulated vendor differs from OpenAI while nothing is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Manner:
    """One vendor's ways; the defaults are OpenAI's. Times are seconds, sizes bytes, None means no limit."""

    name: str = "openai"
    lanes: bool = True  # else `stream_id` is refused, and one turn after the other runs on a socket
    steers: bool = True
    strict: bool = False  # refuses stream, stream_options and background in a WebSocket create
    reuses_ids: bool = False  # one response id for all turns of a socket
    warmup_ends: bool = True  # a warm-up ends with response.completed, not with response.created
    bare_unknown_parent: bool = False  # an unknown parent is told in words only, without code and param
    api_key_header: bool = False  # `api-key: KEY` is taken beside `Authorization: Bearer KEY`
    deployments: bool = False  # models are the names of deployments
    one_model: bool = False  # a second model on a socket ends it
    frame_limit: int | None = None
    age_limit: float | None = None
    upgrade_status: int | None = None  # refuses every upgrade with it
    closed_schema: bool = False  # refuses `type` in a POST as a field that it does not know
    stateless: bool = False  # stores nothing, and finds nothing that it is asked for
    request_ids: bool = True  # x-request-id and openai-processing-ms on every HTTP answer


MANNERS: Mapping[str, Manner] = {
    manner.name: manner
    for manner in (
        Manner(),
        Manner("azure", lanes=False, steers=False, api_key_header=True, deployments=True),
        Manner(
            "xai",
            lanes=False,
            steers=False,
            strict=True,
            reuses_ids=True,
            warmup_ends=False,
            bare_unknown_parent=True,
            age_limit=25 * 60,
            request_ids=False,
        ),
        Manner("vercel", lanes=False, steers=False, one_model=True, frame_limit=4 * _MIB, age_limit=13 * 60),
        Manner(
            "http_only",
            lanes=False,
            steers=False,
            upgrade_status=404,
            closed_schema=True,
            stateless=True,
            request_ids=False,
        ),
        Manner("strict", lanes=False, steers=False, strict=True),
    )
}


def manner_of(name: "str | Manner", **changes: Any) -> Manner:
    """A manner by its name, with some of its ways changed; raises KeyError for an unknown name."""
    chosen = MANNERS[name] if isinstance(name, str) else name
    return replace(chosen, **changes) if changes else chosen
