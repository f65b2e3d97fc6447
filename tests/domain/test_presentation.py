"""Clients by their headers, as they were seen on the wire (parts.md 6), and what each of them may see."""

from __future__ import annotations

import orjson
import pytest

from broker.domain.presentation import PRESENTATION, ClientKind, Presentation, kind_of

K = ClientKind

CLIENTS: list[tuple[ClientKind, dict[str, str]]] = [
    (K.CODEX, {"originator": "codex_exec", "User-Agent": "codex_exec/0.169.0 (Debian 12; x86_64) unknown"}),
    (K.CODEX, {"Originator": "codex_cli_rs"}),
    (K.CODEX, {"ORIGINATOR": "Codex Desktop"}),
    (K.CODEX, {"originator": "codex"}),
    (K.CODEX, {"user-agent": "codex_cli_rs/0.80.0 (Mac OS 15.1; arm64)"}),
    (K.CODEX, {"originator": "an-editor", "User-Agent": "an-editor/1.0", "x-codex-window-id": "w"}),
    (K.OPENCODE, {"originator": "opencode", "User-Agent": "opencode/1.18.33 ai-sdk/provider-utils"}),
    (K.OPENCODE, {"User-Agent": "opencode/1.18.33"}),
    (K.OPENCODE, {"originator": "opencode", "x-codex-window-id": "w", "X-Stainless-Lang": "js"}),
    (K.SDK, {"User-Agent": "OpenAI/Python 3.54.0", "X-Stainless-Lang": "python"}),
    (K.SDK, {"User-Agent": "AsyncOpenAI/Python 3.54.0"}),
    (K.SDK, {"User-Agent": "AsyncAzureOpenAI/Python 3.54.0"}),
    (K.SDK, {"User-Agent": "OpenAI/JS 6.49.0"}),
    (K.SDK, {"User-Agent": "Agents/Python 0.24.0"}),
    (K.SDK, {"User-Agent": "my-program", "x-stainless-runtime": "CPython"}),
    (K.PLAIN, {}),
    (K.PLAIN, {"User-Agent": "python-requests/2.32", "Authorization": "Bearer codex_exec"}),
    (K.PLAIN, {"User-Agent": "codexcellent/1.0", "originator": "opencoder"}),
    (K.PLAIN, {"User-Agent": "Mozilla/5.0 codex"}),
    (K.PLAIN, {"originator": "", "User-Agent": ""}),
]


@pytest.mark.parametrize(("kind", "headers"), CLIENTS)
def test_knows_a_client_by_its_headers(kind: ClientKind, headers: dict[str, str]) -> None:
    assert kind_of(headers) is kind


def test_every_kind_has_its_row() -> None:
    assert set(PRESENTATION) == set(ClientKind)


EVENTS = {
    "response.created": set(K),
    "response.output_text.delta": set(K),
    "response.steer.accepted": set(K),
    "response.something.new": set(K),
    "error": set(K),
    "response.metadata": {K.CODEX},
    "codex.response.metadata": {K.CODEX},
    "codex.keepalive": {K.CODEX},
    "responsesapi.websocket_timing": {K.CODEX},
    "vendor.something": {K.CODEX},
    "": {K.CODEX},
    "codex.rate_limits": set(),
}


@pytest.mark.parametrize("event", EVENTS)
def test_shows_an_event_to_those_who_understand_it(event: str) -> None:
    assert {kind for kind in ClientKind if PRESENTATION[kind].shows(event)} == EVENTS[event]


def test_hides_the_limits_of_one_credential_whatever_a_row_says() -> None:
    assert not Presentation(vendor_events=True, metadata=True).shows("codex.rate_limits")


def test_keeps_only_those_awake_who_would_fall_asleep_and_with_what_they_may_see() -> None:
    frames = {kind: row.keep_alive for kind, row in PRESENTATION.items() if row.keep_alive is not None}
    assert set(frames) == {K.CODEX}
    for kind, frame in frames.items():
        assert PRESENTATION[kind].shows(orjson.loads(frame)["type"])
