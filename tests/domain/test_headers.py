"""What crosses the broker: the table of headers both ways, and the routing token within frames."""

from __future__ import annotations

import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from broker.domain.headers import (
    MAX_VALUE,
    TABLE,
    down,
    row_of,
    up,
    without_account,
    without_turn_state,
)
from broker.domain.wire import BadFrame, Garbage

both = pytest.mark.parametrize("websocket", [True, False])


def names(text: str) -> list[str]:
    return text.split()


UP = names("""openai-beta originator version x-client-request-id session-id session_id thread-id x-codex-window-id
    x-codex-turn-metadata x-codex-beta-features x-codex-routing-hint x-codex-parent-thread-id x-openai-subagent
    x-responsesapi-include-timing-metrics x-grok-conv-id traceparent tracestate x-codex-of-tomorrow""")

NOT_UP = names("""authorization openai-organization openai-project chatgpt-account-id x-openai-fedramp x-oai-attestation
    x-codex-installation-id x-codex-turn-state x-openai-actor-authorization x-api-key api-key cookie proxy-authorization
    connection keep-alive te trailer transfer-encoding upgrade proxy-connection sec-websocket-key sec-websocket-protocol
    sec-websocket-extensions forwarded x-forwarded-for x-forwarded-proto x-forwarded-anything x-real-ip via
    true-client-ip cf-connecting-ip cf-ray x-stainless-lang x-stainless-retry-count host content-length content-type
    content-encoding user-agent accept accept-encoding x-session-id x-session-affinity origin referer expect
    x-nobody-knows-it x-request-id openai-model x-amzn-trace-id""")

DOWN = names("x-request-id openai-processing-ms openai-version openai-model x-reasoning-included")

NOT_DOWN = names("""set-cookie openai-organization openai-project x-ratelimit-limit-requests
    x-ratelimit-remaining-tokens x-codex-turn-state x-codex-primary-used-percent x-codex-plan-type
    x-codex-credits-balance x-models-etag cf-ray cf-cache-status server date transfer-encoding connection
    content-length content-type content-encoding retry-after retry-after-ms x-should-retry authorization via
    alt-svc strict-transport-security openai-beta session-id x-session-id x-nobody-knows-it""")


@both
@pytest.mark.parametrize("name", UP)
def test_goes_up(name: str, websocket: bool) -> None:
    assert up({name.title(): "value"}, websocket=websocket) == {name: "value"}


@both
@pytest.mark.parametrize("name", NOT_UP)
def test_does_not_go_up(name: str, websocket: bool) -> None:
    assert up({name: "value", name.upper(): "value"}, websocket=websocket) == {}


def test_a_key_of_one_request_goes_up_by_http_only() -> None:
    assert up({"Idempotency-Key": "k"}, websocket=False) == {"idempotency-key": "k"}
    assert up({"Idempotency-Key": "k"}, websocket=True) == {}


@pytest.mark.parametrize("name", DOWN)
def test_comes_down(name: str) -> None:
    assert down({name.title(): "value"}) == {name: "value"}


@pytest.mark.parametrize("name", NOT_DOWN)
def test_does_not_come_down(name: str) -> None:
    assert down({name: "value", name.upper(): "value"}) == {}


def test_nothing_comes_down_that_the_vendor_has_not_said() -> None:
    assert down({}) == {}


def test_every_row_is_found_by_its_own_name() -> None:
    for name, row in TABLE.items():
        assert name == name.lower() and row_of(name.replace("*", "anything")) is row


def test_the_whole_name_comes_before_its_beginning() -> None:
    assert row_of("X-OpenAI-Subagent") is TABLE["x-openai-subagent"]
    assert row_of("x-codex-installation-id-of-old") is TABLE["x-codex-*"]
    assert row_of("x-codex") is row_of("x-nobody-knows-it")


@both
@pytest.mark.parametrize(
    "value",
    [
        "a\r\nAuthorization: Bearer x",
        "a\nb",
        "a\rb",
        "a\0b",
        "a\x7fb",
        "x" * (MAX_VALUE + 1),
        "é" * MAX_VALUE,
        "\udcff",
    ],
)
def test_what_cannot_be_written_as_one_line_does_not_cross(value: str, websocket: bool) -> None:
    kept = {"version": "1"}
    assert up({"x-codex-turn-metadata": value, **kept}, websocket=websocket) == kept
    assert down({"x-request-id": value, "openai-version": "v"}) == {"openai-version": "v"}


@both
@pytest.mark.parametrize("name", ["x-codex-a\r\nb", "x-codex-a: b", "x-codex-a b", "x-codex-é", "x-codex-" + "a" * 200])
def test_what_is_no_name_does_not_cross(name: str, websocket: bool) -> None:
    assert up({name: "value"}, websocket=websocket) == {}


@both
def test_values_cross_as_they_are(websocket: bool) -> None:
    for value in ("", "x" * MAX_VALUE, "a\tb", '{"turn_id":"t","sandbox":"none"}', "naïve"):
        assert up({"x-codex-turn-metadata": value}, websocket=websocket) == {"x-codex-turn-metadata": value}


def test_fields_of_one_name_are_one_list_in_their_order() -> None:
    told = CIMultiDict([("OpenAI-Beta", "a=1"), ("version", "1"), ("openai-beta", "b=2")])
    assert up(CIMultiDictProxy(told), websocket=True) == {"openai-beta": "a=1, b=2", "version": "1"}


def test_a_list_that_grows_too_long_does_not_cross() -> None:
    told = CIMultiDict([("OpenAI-Beta", "x" * 5000), ("OpenAI-Beta", "y" * 5000)])
    assert up(told, websocket=True) == {}


def test_what_a_connection_names_ends_with_it() -> None:
    told = {"Connection": "Upgrade, X-Codex-Window-Id ", "x-codex-window-id": "w", "version": "1"}
    assert up(told, websocket=True) == {"version": "1"}
    assert down({"connection": "x-request-id", "x-request-id": "r"}) == {}


# --- within frames ---

CREATE = (
    b'{"type":"response.create", "model":"m","client_metadata":{"session_id":"s","x-codex-turn-state":"tok",'
    b'"x-codex-turn-metadata":"{\\"a\\":1.0}"},"input":[{"x-codex-turn-state":"said", "n":1.50}],"top_p":1e0}'
)


def test_takes_the_token_and_nothing_else_out_of_a_create() -> None:
    cut = without_turn_state(CREATE)
    wanted = orjson.loads(CREATE)
    del wanted["client_metadata"]["x-codex-turn-state"]
    assert orjson.loads(cut) == wanted and list(orjson.loads(cut)) == list(wanted)
    assert b'"input":[{"x-codex-turn-state":"said", "n":1.50}],"top_p":1e0}' in cut
    assert b'"x-codex-turn-metadata":"{\\"a\\":1.0}"' in cut and b"tok" not in cut


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"response.create","client_metadata":{"session_id":"s"}}',
        b'{"type":"response.create","input":"what is x-codex-turn-state?"}',
        b'{"client_metadata":{"note":"x-codex-turn-state"}}',
        b'{"client_metadata":{"inner":{"x-codex-turn-state":"t"}}}',
        b'{"client_metadata":null,"x-codex-turn-state":"t"}',
        b'{"client_metadata":["x-codex-turn-state"]}',
        b"not JSON",
    ],
)
def test_a_create_without_the_token_comes_back_as_the_very_object(raw: bytes) -> None:
    assert without_turn_state(raw) is raw


def test_takes_the_token_in_any_of_its_spellings() -> None:
    assert without_turn_state(b'{"client_metadata":{"X-Codex-Turn-State":"t"}}') == b'{"client_metadata":{}}'
    told = b'{"type":"response.metadata","headers":{"X-Codex-Turn-State":["t"],"openai-model":"b"}}'
    assert without_account(told) == b'{"type":"response.metadata","headers":{"openai-model":"b"}}'


@pytest.mark.parametrize("kind", ["response.metadata", "codex.response.metadata", "response.created"])
def test_takes_the_token_out_of_the_headers_of_an_event_and_of_its_response(kind: str) -> None:
    headers = b'{"x-codex-turn-state":"tok","openai-model":"m"}'
    told = b'{"type":"%b","sequence_number":1.0,"headers":%b,"response":{"headers":%b,"id":"r"}}'
    cut = without_account(told % (kind.encode(), headers, headers))
    assert cut == told % (kind.encode(), b'{"openai-model":"m"}', b'{"openai-model":"m"}')


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"response.metadata","headers":{"openai-model":"m"}}',
        b'{"type":"response.created","response":{"instructions":"x-codex-turn-state"}}',
        b'{"type":"response.metadata","headers":null,"note":"x-codex-turn-state"}',
        b"not JSON",
    ],
)
def test_an_event_without_the_token_comes_back_as_the_very_object(raw: bytes) -> None:
    assert without_account(raw) is raw


@pytest.mark.parametrize(
    "raw",
    [b'["x-codex-turn-state"]', b'{"x-codex-turn-state', b'{"a\xff":"x-codex-turn-state"}', b'"x-codex-turn-state"'],
)
def test_what_holds_the_token_and_cannot_be_read_is_not_passed_on(raw: bytes) -> None:
    with pytest.raises(BadFrame):
        without_turn_state(raw)
    with pytest.raises(Garbage):
        without_account(raw)


DEEP = b'{"type":"error","status":400,"error":{"headers":{"set-cookie":"a"},"x":' + b"[" * 2000 + b"]" * 2000 + b"}}"


def test_headers_in_what_cannot_be_cut_are_not_passed_on() -> None:
    with pytest.raises(Garbage):
        without_account(DEEP)


def test_only_what_may_cross_stays_in_the_headers_of_a_refusal() -> None:
    headers = b'{"set-cookie":"a","Retry-After":"2","x-ratelimit-limit-tokens":"1","x-request-id":"r"}'
    told = b'{"type":"error","headers":%b,"error":{"code":"c","headers":%b}}'
    kept = b'{"Retry-After":"2","x-request-id":"r"}'
    assert without_account(told % (headers, headers)) == told % (kept, kept)
