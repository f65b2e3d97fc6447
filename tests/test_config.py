"""Settings: what loads, what every finding says, and where secrets come from."""

import base64
from pathlib import Path
from typing import get_args

import pytest

from broker.config import Config, ConfigError, CredentialConfig, WebhookConfig, load, resolve_secrets, schema
from broker.config.pool import pool
from broker.domain.credential import Credential, Entra, Secret
from broker.domain.vendors import VENDORS

DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32
TENANTS = f"tenants:\n  - name: agents\n    keys: [{DIGEST}]\n"
CREDENTIALS = "credentials:\n  - {name: red, vendor: openai, secret_env: RED_KEY}\n"
MINIMAL = TENANTS + CREDENTIALS


def read(tmp_path: Path, text: str, name: str = "broker.yaml") -> Config:
    file = tmp_path / name
    file.write_text(text)
    return load(file)


def findings(tmp_path: Path, text: str, name: str = "broker.yaml") -> list[str]:
    """The lines of the error, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, name)
    return [line.removeprefix(f"{tmp_path}/") for line in caught.value.lines()]


def credential(tmp_path: Path, settings: str) -> CredentialConfig:
    return read(tmp_path, f"{TENANTS}credentials:\n  - {{name: red, {settings}}}\n").credentials[0]


def test_loads_a_minimal_file_with_every_default(tmp_path: Path) -> None:
    config = read(tmp_path, MINIMAL)
    assert str(config.listen) == "127.0.0.1:8080"
    assert (config.operations_listen.host, config.operations_listen.port) == ("127.0.0.1", 9090)
    assert config.redis_url is None
    assert config.data_dir == "./data"
    assert config.node
    assert config.tenants[0].transcript is True
    assert config.session.idle_ttl == 3600.0
    assert (config.turn.hold, config.turn.placements, config.turn.placing) == (3.0, 3, 30.0)
    assert (config.limits.max_frame, config.limits.max_upstream_frame) == (16 * 1024**2, 64 * 1024**2)
    assert (config.store.timeout, config.store.connect_timeout, config.store.journal) == (1.0, 0.5, 1000)
    assert (config.log.level, config.log.format) == ("info", "text")


def test_loads_toml_to_the_same_configuration_as_yaml(tmp_path: Path) -> None:
    toml = f"""
node = "n1"
[[tenants]]
name = "agents"
keys = ["{DIGEST}"]
[[credentials]]
name = "red"
vendor = "openai"
secret_env = "RED_KEY"
[turn]
hold = "250ms"
"""
    yaml = MINIMAL + "node: n1\nturn: {hold: 250ms}\n"
    assert read(tmp_path, toml, "broker.toml") == read(tmp_path, yaml)


def test_example_in_deploy_loads() -> None:
    config = load(Path(__file__).parent.parent / "deploy" / "broker.example.yaml")
    assert [item.vendor for item in config.credentials] == [
        *("openai", "openai", "azure", "azure", "xai", "vercel", "custom", "custom"),
    ]
    assert [item.auth.kind for item in config.credentials if item.vendor == "azure"] == ["api_key", "entra"]
    assert config.credentials[-1].transports == ("http",)


@pytest.mark.parametrize(
    ("vendor", "base_url", "max_age"),
    [
        ("openai", "https://api.openai.com/v1", 3300.0),
        ("xai", "https://api.x.ai/v1", 1080.0),
        ("vercel", "https://ai-gateway.vercel.sh/v1", 720.0),
    ],
)
def test_vendor_decides_address_and_age(tmp_path: Path, vendor: str, base_url: str, max_age: float) -> None:
    item = credential(tmp_path, f"vendor: {vendor}, secret_env: K")
    assert (item.base_url, item.max_age) == (base_url, max_age)


def test_credential_stands_alone_by_default(tmp_path: Path) -> None:
    item = credential(tmp_path, "vendor: openai, secret_env: K")
    assert (item.limit_group, item.boundary) == ("red", "red")
    assert (item.transports, item.weight, item.priority, item.max_in_flight) == (("websocket", "http"), 1.0, 0, 0)


def test_boundary_follows_the_limit_group(tmp_path: Path) -> None:
    item = credential(tmp_path, "vendor: openai, secret_env: K, limit_group: org")
    assert (item.limit_group, item.boundary) == ("org", "org")


def test_base_url_loses_its_last_slash_and_keeps_its_query(tmp_path: Path) -> None:
    item = credential(tmp_path, "vendor: azure, secret_env: K, base_url: 'https://a.example/openai/v1/?api-version=x'")
    assert item.base_url == "https://a.example/openai/v1?api-version=x"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("250ms", 0.25), ("1.5 s", 1.5), ("7", None), ("30d", 2592000)],
)
def test_duration_is_read(tmp_path: Path, written: str, seconds: float | None) -> None:
    text = f"{MINIMAL}session: {{idle_ttl: {written}}}\n"
    assert read(tmp_path, text).session.idle_ttl == (7.0 if seconds is None else seconds)


@pytest.mark.parametrize(
    "written", ["5 minutes", "-1s", "0", "0s", "true", ".inf", ".nan", "31d", "[1s]", "1h30m", "''"]
)
def test_duration_is_refused(tmp_path: Path, written: str) -> None:
    (line,) = findings(tmp_path, f"{MINIMAL}session: {{idle_ttl: {written}}}\n")
    assert line.startswith("broker.yaml:6: session.idle_ttl: found ")
    assert "'90s', '5m', '1h'" in line


@pytest.mark.parametrize(
    ("written", "size"), [("16MiB", 16 * 1024**2), ("256KiB", 256 * 1024), ("1GiB", 1024**3), (9, 9)]
)
def test_size_is_read(tmp_path: Path, written: object, size: int) -> None:
    assert read(tmp_path, f"{MINIMAL}limits: {{max_frame: {written}}}\n").limits.max_frame == size


@pytest.mark.parametrize("written", ["16MB", "1.5MiB", "0", "-1", "1.5", "true", "2048GiB"])
def test_size_is_refused(tmp_path: Path, written: str) -> None:
    (line,) = findings(tmp_path, f"{MINIMAL}limits: {{max_frame: {written}}}\n")
    assert line.startswith("broker.yaml:6: limits.max_frame: found ")


@pytest.mark.parametrize(
    "written", ["8080", "'8080'", "'host:'", "'host:70000'", "':8080'", "'http://a:1'", "'::1:80'"]
)
def test_address_is_refused(tmp_path: Path, written: str) -> None:
    (line,) = findings(tmp_path, f"{MINIMAL}listen: {written}\n")
    assert line.startswith("broker.yaml:6: listen: found ")


def test_address_in_brackets_is_read(tmp_path: Path) -> None:
    listen = read(tmp_path, f"{MINIMAL}listen: '[::1]:8080'\n").listen
    assert (listen.host, listen.port, str(listen)) == ("::1", 8080, "[::1]:8080")


def test_every_finding_is_listed_with_its_line(tmp_path: Path) -> None:
    text = f"""\
listne: 127.0.0.1:1
tenants:
  - name: "a b"
    keys: [{DIGEST}]
credentials:
  - name: red
    vendor: opneai
    secret_env: RED_KEY
  - name: blue
    vendor: azure
    secret_env: BLUE_KEY
    wieght: 2
turn:
  placements: 0
log: {{level: loud}}
"""
    lines = findings(tmp_path, text)
    assert [line.split(": ")[:2] for line in lines] == [
        ["broker.yaml:1", "listne"],
        ["broker.yaml:3", "tenants[0].name"],
        ["broker.yaml:7", "credentials[0].vendor"],
        ["broker.yaml:9", "credentials[1].base_url"],
        ["broker.yaml:12", "credentials[1].wieght"],
        ["broker.yaml:14", "turn.placements"],
        ["broker.yaml:15", "log.level"],
    ]
    assert "did you mean 'listen'?" in lines[0]
    assert "found 'opneai', expected one of openai, azure, xai, vercel, custom (did you mean 'openai'?)" in lines[2]
    assert "did you mean 'weight'?" in lines[4]
    assert "found 0, expected a whole number of at least 1" in lines[5]


def test_findings_in_toml_name_their_lines(tmp_path: Path) -> None:
    text = f"""\
listen = "nowhere"

[[tenants]]
name = "agents"
keys = ["{DIGEST}"]

[[credentials]]
name = "red"
vendor = "openai"
secret_env = "RED_KEY"

[[credentials]]
name = "blue"
vendor = "nobody"
secret_env = "BLUE_KEY"

[turn]
hold = "soon"
sielnce = 3
"""
    lines = findings(tmp_path, text, "broker.toml")
    assert [line.split(": ")[:2] for line in lines] == [
        ["broker.toml:1", "listen"],
        ["broker.toml:14", "credentials[1].vendor"],
        ["broker.toml:18", "turn.hold"],
        ["broker.toml:19", "turn.sielnce"],
    ]


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (CREDENTIALS, "tenants", "is missing"),
        (TENANTS, "credentials", "is missing"),
        ("tenants: []\n" + CREDENTIALS, "tenants", "at least one"),
        (TENANTS + "credentials: []\n", "credentials", "at least one"),
        (MINIMAL.replace(f"[{DIGEST}]", "[]"), "tenants[0].keys", "at least one"),
        (MINIMAL.replace("ab" * 32, "ab" * 31), "tenants[0].keys[0]", "64 small hex digits"),
        (MINIMAL.replace("ab" * 32, "AB" * 32), "tenants[0].keys[0]", "64 small hex digits"),
        (MINIMAL.replace(", secret_env: RED_KEY", ""), "credentials[0].secret_env", "is missing"),
        (MINIMAL.replace("RED_KEY", "K, secret_file: f"), "credentials[0].secret_file", "only one of"),
        (MINIMAL.replace("openai", "custom"), "credentials[0].base_url", "is missing"),
        (MINIMAL.replace("RED_KEY", "K, base_url: ftp://a"), "credentials[0].base_url", "http://"),
        (MINIMAL.replace("RED_KEY", "K, base_url: 'http://u:p@a'"), "credentials[0].base_url", "without user"),
        (MINIMAL.replace("RED_KEY", "K, weight: 0"), "credentials[0].weight", "above 0"),
        (MINIMAL.replace("RED_KEY", "K, priority: -1"), "credentials[0].priority", "at least 0"),
        (MINIMAL.replace("RED_KEY", "K, transports: []"), "credentials[0].transports", "at least one"),
        (MINIMAL.replace("RED_KEY", "K, transports: [websocket, websocket]"), "credentials[0].transports", "each once"),
        (MINIMAL.replace("RED_KEY", "K, transports: [grpc]"), "credentials[0].transports[0]", "websocket, http"),
        (MINIMAL.replace("RED_KEY", "K, headers: {Authorization: x}"), "credentials[0].headers", "'authorization'"),
        (MINIMAL.replace("RED_KEY", "K, headers: {'a b': x}"), "credentials[0].headers", "not a header's name"),
        (MINIMAL.replace("RED_KEY", 'K, headers: {a: "x\\ny"}'), "credentials[0].headers.a", "without line breaks"),
        (MINIMAL.replace("RED_KEY", "K, models: gpt"), "credentials[0].models", "expected a list"),
        (MINIMAL.replace("RED_KEY", "K, aliases: {'': a}"), "credentials[0].aliases", "must not be empty"),
        (MINIMAL.replace("name: red", "name: no"), "credentials[0].name", "found false"),
        (MINIMAL + "redis_url: http://x\n", "redis_url", "redis://"),
        (MINIMAL + "redis_url: redis://a\nredis_url_env: B\n", "redis_url_env", "only one of"),
        (MINIMAL + "operations_listen: 127.0.0.1:8080\n", "operations_listen", "the same address"),
        (MINIMAL + "turn: {connect: 31s}\n", "turn.connect", "longer than placing"),
        (MINIMAL + "session: {encryption_key_env: A, encryption_key_file: b}\n", "session.encryption_key_file", "only"),
        (MINIMAL + "session: 3\n", "session", "expected settings"),
        (MINIMAL + "session: {transcript: 1}\n", "session.transcript", "true or false"),
    ],
)
def test_broken_rule_is_reported_once_and_at_its_place(tmp_path: Path, text: str, path: str, words: str) -> None:
    (line,) = findings(tmp_path, text)
    assert line.split(": ")[1] == path
    assert words in line


def test_names_are_unique(tmp_path: Path) -> None:
    text = TENANTS + f"  - {{name: agents, keys: [{OTHER_DIGEST}]}}\n" + CREDENTIALS
    text += "  - {name: red, vendor: xai, secret_env: OTHER_KEY}\n"
    assert findings(tmp_path, text) == [
        "broker.yaml:4: tenants[1].name: 'agents' is already the name of tenants[0]",
        "broker.yaml:7: credentials[1].name: 'red' is already the name of credentials[0]",
    ]


def test_key_belongs_to_one_tenant(tmp_path: Path) -> None:
    (line,) = findings(tmp_path, TENANTS + f"  - {{name: b, keys: [{DIGEST}]}}\n" + CREDENTIALS)
    assert line.startswith("broker.yaml:4: tenants[1].keys: ")
    assert "tenants[0]" in line


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("broker.yaml", "a: 1\nb: [\n", "broker.yaml:3: not YAML"),
        ("broker.yaml", "a: 1\na: 2\n", "broker.yaml:2: the key 'a' stands here a second time"),
        ("broker.yaml", "a: &a [*a]\n", "broker.yaml:1: "),
        ("broker.yaml", "a: 1\nb: 2026-02-31\n", "broker.yaml:2: not YAML"),
        ("broker.yaml", "? [a]\n: 1\n", "broker.yaml:1: a key must be a plain word"),
        ("broker.yaml", "", "broker.yaml:1: expected settings"),
        ("broker.yaml", "a: \x07\n", "broker.yaml:1: not YAML"),
        ("broker.toml", "a = 1\nb = \n", "broker.toml:2: not TOML"),
        ("broker.json", "{}", "broker.json: the name must end in"),
    ],
)
def test_text_that_is_no_document_is_refused_with_its_line(tmp_path: Path, name: str, text: str, where: str) -> None:
    (line,) = findings(tmp_path, text, name)
    assert line.startswith(where)


def test_missing_file_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")


def test_anchors_share_settings(tmp_path: Path) -> None:
    text = TENANTS + "credentials:\n  - &red {name: red, vendor: xai, secret_env: A}\n  - {<<: *red, name: blue}\n"
    assert [item.vendor for item in read(tmp_path, text).credentials] == ["xai", "xai"]


def test_no_finding_shows_what_may_be_a_secret(tmp_path: Path) -> None:
    canary = "canary-7f3a"
    text = f"""\
redis_url: http://:{canary}@host
tenants: [{{name: agents, keys: [sbk_{canary}]}}]
credentials:
  - {{name: red, vendor: openai, secret_env: sk-{canary}, secret: {canary}, base_url: "https://u:{canary}@h"}}
  - {{name: blue, vendor: openai, secret_env: K, headers: {{x-extra: "{canary}\\n"}}}}
session: {{encryption_key_env: {canary}}}
"""
    lines = findings(tmp_path, text)
    assert len(lines) == 7
    assert canary not in "\n".join(lines)


def test_password_of_redis_is_not_in_a_repr(tmp_path: Path) -> None:
    config = read(tmp_path, MINIMAL + "redis_url: 'redis://:canary@host:6379/0'\n")
    secrets = resolve_secrets(config, {"RED_KEY": "sk-canary"})
    assert "canary" not in repr(config) + repr(secrets)
    assert secrets.redis_url is not None
    assert secrets.redis_url.reveal() == "redis://:canary@host:6379/0"


def test_secrets_come_from_variables_and_files(tmp_path: Path) -> None:
    (tmp_path / "blue").write_text("sk-blue\n")
    text = f"{MINIMAL}  - {{name: blue, vendor: xai, secret_file: '{tmp_path}/blue'}}\nredis_url_env: REDIS\n"
    secrets = resolve_secrets(read(tmp_path, text), {"RED_KEY": " sk-red ", "REDIS": "rediss://u:p@h"})
    assert {name: secret.reveal() for name, secret in secrets.credentials.items()} == {
        "red": "sk-red",
        "blue": "sk-blue",
    }
    assert secrets.redis_url is not None
    assert secrets.redis_url.reveal() == "rediss://u:p@h"
    assert secrets.encryption_key_bytes() is None


def test_every_missing_secret_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "lines").write_text("a\nb\n")
    text = f"""{MINIMAL}  - {{name: a, vendor: xai, secret_file: '{tmp_path}/none'}}
  - {{name: b, vendor: xai, secret_file: '{tmp_path}/empty'}}
  - {{name: c, vendor: xai, secret_file: '{tmp_path}/lines'}}
redis_url_env: REDIS
session: {{encryption_key_env: KEY}}
"""
    with pytest.raises(ConfigError) as caught:
        resolve_secrets(read(tmp_path, text), {"KEY": "short", "REDIS": "nothing"}, source="broker.yaml")
    assert [line.replace(f"{tmp_path}/", "") for line in caught.value.lines()] == [
        "broker.yaml: credentials[0].secret_env: the environment variable RED_KEY is not set",
        "broker.yaml: credentials[1].secret_file: the file none cannot be read: No such file or directory",
        "broker.yaml: credentials[2].secret_file: the file empty is empty",
        "broker.yaml: credentials[3].secret_file: the file lines holds something else than one line of text",
        "broker.yaml: redis_url: is not a redis://, rediss:// or unix:// address",
        "broker.yaml: session.encryption_key: is not 32 bytes in base64 or hex; `openssl rand -base64 32` makes one",
    ]


@pytest.mark.parametrize(
    "written",
    [
        bytes(range(224, 256)).hex(),
        base64.b64encode(bytes(range(224, 256))).decode(),
        base64.urlsafe_b64encode(bytes(range(224, 256))).decode().rstrip("="),
    ],
)
def test_encryption_key_is_read_in_every_form(tmp_path: Path, written: str) -> None:
    config = read(tmp_path, MINIMAL + "session: {encryption_key_env: KEY}\n")
    secrets = resolve_secrets(config, {"RED_KEY": "k", "KEY": written})
    assert secrets.encryption_key_bytes() == bytes(range(224, 256))


@pytest.mark.parametrize("written", ["00" * 31, "zz" * 32, base64.b64encode(b"x" * 31).decode(), "!"])
def test_encryption_key_of_another_length_is_refused(tmp_path: Path, written: str) -> None:
    config = read(tmp_path, MINIMAL + "session: {encryption_key_env: KEY}\n")
    with pytest.raises(ConfigError, match="32 bytes"):
        resolve_secrets(config, {"RED_KEY": "k", "KEY": written})


def test_the_worker_has_a_listener_of_its_own_and_a_lease(tmp_path: Path) -> None:
    config = read(tmp_path, MINIMAL)
    assert (str(config.worker.operations_listen), config.worker.lease) == ("127.0.0.1:9091", 6.0)
    config = read(tmp_path, f"{MINIMAL}worker: {{operations_listen: '0.0.0.0:7000', lease: 10s}}\n")
    assert (str(config.worker.operations_listen), config.worker.lease) == ("0.0.0.0:7000", 10.0)


@pytest.mark.parametrize("taken", ["127.0.0.1:8080", "127.0.0.1:9090"])
def test_the_workers_listener_is_none_of_a_nodes(tmp_path: Path, taken: str) -> None:
    (line,) = findings(tmp_path, f"{MINIMAL}worker: {{operations_listen: '{taken}'}}\n")
    assert line.startswith("broker.yaml:6: worker.operations_listen: is the same address as ") and taken in line
    read(tmp_path, f"{MINIMAL}listen: 127.0.0.1:9091\n")  # a node alone may have the worker's default


@pytest.mark.parametrize("written", ["500ms", "2m", "6 seconds", "0"])
def test_a_lease_that_is_too_short_or_too_long_is_refused(tmp_path: Path, written: str) -> None:
    (line,) = findings(tmp_path, f"{MINIMAL}worker: {{lease: {written}}}\n")
    assert "worker.lease: found" in line and "from 1 to 60 seconds" in line


@pytest.mark.parametrize("kind", ["auto", "models", "warmup", "response", "off"])
def test_a_credential_says_how_it_is_probed(tmp_path: Path, kind: str) -> None:
    item = credential(tmp_path, f"vendor: openai, secret_env: K, probe: {{kind: {kind}, model: m-small}}")
    assert (item.probe.kind, item.probe.model) == (kind, "m-small")
    default = credential(tmp_path, "vendor: openai, secret_env: K").probe
    assert (default.kind, default.model) == ("auto", "")


@pytest.mark.parametrize("written", ["true", "always", "1", "on", "[off]"])
def test_a_kind_of_probe_that_is_none_is_refused(tmp_path: Path, written: str) -> None:
    lines = findings(
        tmp_path, f"{TENANTS}credentials:\n  - {{name: red, vendor: xai, secret_env: K, probe: {{kind: {written}}}}}\n"
    )
    assert lines == [line for line in lines if "probe.kind" in line] and "auto, models, warmup" in lines[0]


def test_the_pool_holds_every_credential_with_all_that_is_configured(tmp_path: Path) -> None:
    text = """
  - {name: red, vendor: openai, secret_env: RED, models: [b, a], aliases: {c: b}, weight: 2, priority: 3,
     limit_group: g, boundary: org, max_age: 5m, max_in_flight: 7, headers: {X-A: b}, probe: {kind: models}}
  - {name: blue, vendor: xai, secret_env: BLUE, probe: {model: p}}
"""
    config = read(tmp_path, f"{TENANTS}credentials:{text}")
    red, blue = pool(config, resolve_secrets(config, {"RED": "sk-red", "BLUE": "sk-blue"}))
    assert red == Credential(
        "red",
        "https://api.openai.com/v1",
        Secret("sk-red"),
        vendor="openai",
        transports=("websocket", "http"),
        models=frozenset("ab"),
        aliases={"c": "b"},
        headers={"X-A": "b"},
        weight=2.0,
        priority=3,
        limit_group="g",
        boundary="org",
        max_age=300.0,
        max_in_flight=7,
        probe_kind="models",
        probe_model="b",
    )
    assert (blue.name, blue.secret, blue.probe_kind, blue.probe_model) == ("blue", Secret("sk-blue"), "auto", "p")


@pytest.mark.parametrize("written", ["[http]", "[websocket]", "[http, websocket]"])
def test_transports_are_what_the_endpoint_speaks(tmp_path: Path, written: str) -> None:
    item = credential(tmp_path, f"vendor: openai, secret_env: K, transports: {written}")
    assert f"[{', '.join(item.transports)}]" == written


def test_every_vendor_of_the_table_can_be_named(tmp_path: Path) -> None:
    assert tuple(VENDORS) == get_args(schema.Vendor)
    for vendor, manners in VENDORS.items():
        item = credential(tmp_path, f"vendor: {vendor}, secret_env: K, base_url: 'https://a.example'")
        assert (item.transports, item.max_age) == (manners.transports, manners.max_age)


AZURE = "vendor: azure, secret_env: K, base_url: 'https://a.example/openai/v1?api-version=preview'"
APPLICATION = "kind: entra, tenant: acme.example, client_id: c-1"


def test_a_credential_shows_its_secret_as_a_bearer_token_by_default(tmp_path: Path) -> None:
    for written in ("", ", auth: {}", ", auth: {kind: bearer}"):
        config = read(tmp_path, f"{TENANTS}credentials: [{{name: red, {AZURE}{written}}}]\n")
        (made,) = pool(config, resolve_secrets(config, {"K": "s"}))
        assert (made.auth, made.entra, made.organization, made.project) == ("bearer", None, "", "")
        assert made.base_url == "https://a.example/openai/v1?api-version=preview"


@pytest.mark.parametrize("vendor", ["azure", "custom"])
def test_the_pool_knows_how_a_credential_shows_who_it_is(tmp_path: Path, vendor: str) -> None:
    def made(auth: str) -> Credential:
        text = f"{AZURE.replace('azure', vendor)}, auth: {{{auth}}}"
        config = read(tmp_path, f"{TENANTS}credentials: [{{name: red, {text}}}]\n")
        return pool(config, resolve_secrets(config, {"K": "s"}))[0]

    assert (made("kind: api_key").auth, made("kind: api_key").entra) == ("api_key", None)
    assert made(APPLICATION).auth == "entra"
    assert made(APPLICATION).entra == Entra(
        "acme.example", "c-1", "https://ai.azure.com/.default", "https://login.microsoftonline.com"
    )
    other = made(f"{APPLICATION}, scope: api://x/.default, authority: 'https://login.microsoftonline.us/'")
    assert other.entra == Entra("acme.example", "c-1", "api://x/.default", "https://login.microsoftonline.us")


def test_a_key_that_is_shown_in_another_way_is_another_generation(tmp_path: Path) -> None:
    def generation(auth: str) -> str:
        config = read(tmp_path, f"{TENANTS}credentials: [{{name: red, {AZURE}, auth: {{{auth}}}}}]\n")
        return pool(config, resolve_secrets(config, {"K": "s"}))[0].generation

    other = APPLICATION.replace("c-1", "c-2")
    assert len({generation(auth) for auth in ("kind: bearer", "kind: api_key", APPLICATION, other)}) == 4
    assert generation("") == generation("kind: bearer") == Credential("red", "", Secret("s")).generation


@pytest.mark.parametrize("vendor", ["openai", "custom"])
def test_an_organisation_and_a_project_are_named(tmp_path: Path, vendor: str) -> None:
    text = f"{AZURE.replace('azure', vendor)}, organization: org-1, project: proj_2"
    config = read(tmp_path, f"{TENANTS}credentials: [{{name: red, {text}}}]\n")
    (made,) = pool(config, resolve_secrets(config, {"K": "s"}))
    assert (made.organization, made.project) == ("org-1", "proj_2")


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        ("vendor: openai, secret_env: K, auth: {kind: api_key}", "auth.kind", "openai does not take 'api_key', but b"),
        (f"vendor: xai, secret_env: K, auth: {{{APPLICATION}}}", "auth.kind", "xai does not take 'entra', but bearer"),
        (f"{AZURE}, auth: api_key", "auth", "expected settings"),
        (f"{AZURE}, auth: {{kind: oauth}}", "auth.kind", "expected one of bearer, api_key, entra"),
        (f"{AZURE}, auth: {{kind: entra, client_id: c}}", "auth.tenant", "is missing"),
        (f"{AZURE}, auth: {{kind: entra, tenant: t}}", "auth.client_id", "is missing"),
        (f"{AZURE}, auth: {{kind: entra, tenant: a/b, client_id: c}}", "auth.tenant", "1 to 64 letters"),
        (f"{AZURE}, auth: {{tenant: t}}", "auth.tenant", "only with kind: entra"),
        (f"{AZURE}, auth: {{kind: api_key, scope: s}}", "auth.scope", "only with kind: entra"),
        (f"{AZURE}, auth: {{{APPLICATION}, authority: 'http://a.example'}}", "auth.authority", "must be an https://"),
        (f"{AZURE}, auth: {{{APPLICATION}, authority: 'https://a.example/?b=c'}}", "auth.authority", "not hold a '?'"),
        (f"{AZURE}, organization: org", "organization", "has no meaning for the vendor 'azure'"),
        ("vendor: xai, secret_env: K, project: p", "project", "has no meaning for the vendor 'xai'"),
        ("vendor: openai, secret_env: K, project: ''", "project", "1 to 64 letters"),
        (
            "vendor: openai, secret_env: K, project: p, headers: {OpenAI-Project: q}",
            "project",
            "stands beside 'openai-project' in headers",
        ),
        (
            "vendor: openai, secret_env: K, organization: o, headers: {openai-organization: o}",
            "organization",
            "give only one",
        ),
    ],
)
def test_a_way_to_show_who_one_is_is_refused(tmp_path: Path, settings: str, path: str, words: str) -> None:
    (line,) = findings(tmp_path, f"{TENANTS}credentials:\n  - {{name: red, {settings}}}\n")
    assert line.split(": ")[1] == f"credentials[0].{path}"
    assert words in line


def test_tokens_of_this_host_may_come_in_clear(tmp_path: Path) -> None:
    item = credential(tmp_path, f"{AZURE}, auth: {{{APPLICATION}, authority: 'http://127.0.0.1:8/x'}}")
    assert item.auth.authority == "http://127.0.0.1:8/x"


def webhooks(*lines: str) -> str:
    return MINIMAL + "webhooks:\n" + "".join(f"  - {{{line}}}\n" for line in lines)


def test_webhooks_are_none_by_default_and_have_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL).webhooks == ()
    (hook,) = read(tmp_path, webhooks("name: slack, url: 'https://a.example/hook/?x=1'")).webhooks
    assert hook.url is not None and hook.url.reveal() == "https://a.example/hook/?x=1", "as it was given"
    assert (hook.states, hook.per_minute) == (("revoked", "exhausted"), 30)
    (hook,) = read(tmp_path, webhooks("name: b, url_env: U, states: [cooling, paused], per_minute: 5")).webhooks
    assert hook == WebhookConfig(name="b", url_env="U", states=("cooling", "paused"), per_minute=5)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("name: a", "webhooks[0].url: is missing"),
        ("name: a, url: 'https://h', url_env: U", "webhooks[0].url_env: stands beside url"),
        ("name: a, url_env: U, url_file: /f", "webhooks[0].url_file: stands beside url_env"),
        ("name: a, url_env: U, secret_env: S, secret_file: /f", "webhooks[0].secret_file: stands beside secret_env"),
        ("name: a, url_env: U, states: []", "webhooks[0].states: must hold at least one entry"),
        ("name: a, url_env: U, states: [revoked, revoked]", "webhooks[0].states: must name each state once"),
        ("name: a, url_env: U, states: [healthy]", "webhooks[0].states[0]: found 'healthy', expected one of suspect"),
        ("name: a, url_env: U, per_minute: 0", "webhooks[0].per_minute: found 0"),
        ("name: a, url: 'ftp://canary'", "webhooks[0].url: expected an http:// or https:// address"),
        ("name: a, url: 'https://user:canary@h'", "webhooks[0].url: expected an http:// or https:// address"),
    ],
)
def test_a_webhook_is_refused(tmp_path: Path, settings: str, what: str) -> None:
    (line,) = findings(tmp_path, webhooks(settings))
    assert line.startswith(f"broker.yaml:7: {what}") and "canary" not in line


def test_names_of_webhooks_are_unique(tmp_path: Path) -> None:
    (line,) = findings(tmp_path, webhooks("name: a, url_env: U", "name: a, url_env: V"))
    assert line == "broker.yaml:8: webhooks[1].name: 'a' is already the name of webhooks[0]"


def test_addresses_and_secrets_of_webhooks_come_from_variables_and_files(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://b.example/canary\n")
    text = webhooks(
        "name: a, url_env: U, secret_env: S", f"name: b, url_file: '{tmp_path}/url'", "name: c, url: 'https://canary'"
    )
    config = read(tmp_path, text)
    secrets = resolve_secrets(config, {"RED_KEY": "k", "U": " https://a.example ", "S": "canary"})
    assert {name: told.url.reveal() for name, told in secrets.webhooks.items()} == {
        "a": "https://a.example",
        "b": "https://b.example/canary",
        "c": "https://canary",
    }
    assert secrets.webhooks["a"].signing == Secret("canary") and secrets.webhooks["b"].signing is None
    assert "canary" not in repr(secrets) + repr(config.webhooks)


def test_what_is_missing_of_a_webhook_is_named_and_not_shown(tmp_path: Path) -> None:
    config = read(tmp_path, webhooks("name: a, url_env: U, secret_env: S", "name: b, url_env: V"))
    with pytest.raises(ConfigError) as caught:
        resolve_secrets(config, {"RED_KEY": "k", "V": "canary"}, source="broker.yaml")
    assert caught.value.lines() == [
        "broker.yaml: webhooks[0].secret_env: the environment variable S is not set",
        "broker.yaml: webhooks[0].url_env: the environment variable U is not set",
        "broker.yaml: webhooks[1].url: is not an http:// or https:// address without user, password or '#'",
    ]
