"""Identities: which headers show a vendor who asks, where, and when it is worth asking once more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker import __version__
from broker.domain.credential import Credential, Secret
from broker.domain.failure import FailureKind
from broker.upstream.identity import Identity, NoIdentity
from tests.upstream.directory import HIDDEN, SECRET, Directory

AGENT = {"User-Agent": f"session-broker/{__version__}"}
KEY = Secret("sk-key")


@pytest.fixture
async def directory() -> AsyncIterator[Directory]:
    made = Directory()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def identity() -> AsyncIterator[Identity]:
    made = Identity()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def application(directory: Directory) -> Credential:
    return Credential("A", "http://a.example", SECRET, vendor="azure", auth="entra", entra=directory.entra)


async def test_a_secret_is_shown_as_a_bearer_token(identity: Identity) -> None:
    assert await identity.headers(Credential("A", "u", KEY)) == {**AGENT, "Authorization": "Bearer sk-key"}


async def test_a_secret_is_shown_as_an_api_key_and_in_no_other_way(identity: Identity) -> None:
    shown = await identity.headers(Credential("A", "u", KEY, vendor="azure", auth="api_key"))
    assert shown == {**AGENT, "api-key": "sk-key"}


async def test_an_application_shows_a_token_and_never_its_secret(
    identity: Identity, directory: Directory, application: Credential
) -> None:
    shown = await identity.headers(application)
    assert shown == {**AGENT, "Authorization": f"Bearer {directory.made[0]}"}
    assert await identity.headers(application) == shown and len(directory.asked) == 1


async def test_applications_of_one_secret_share_a_token(
    identity: Identity, directory: Directory, application: Credential
) -> None:
    other = Credential("B", "http://b.example", SECRET, vendor="azure", auth="entra", entra=directory.entra)
    assert await identity.headers(application) == await identity.headers(other)
    assert len(directory.asked) == 1


@pytest.mark.parametrize(("organization", "project"), [("org-1", ""), ("", "proj-2"), ("org-1", "proj-2")])
async def test_an_organisation_and_a_project_are_named_where_there_are_any(
    identity: Identity, organization: str, project: str
) -> None:
    shown = await identity.headers(Credential("A", "u", KEY, organization=organization, project=project))
    named = {"OpenAI-Organization": organization, "OpenAI-Project": project}
    assert shown == {**AGENT, "Authorization": "Bearer sk-key", **{k: v for k, v in named.items() if v}}


async def test_there_is_no_identity_without_a_token(
    identity: Identity, directory: Directory, application: Credential
) -> None:
    directory.fails(401, "invalid_client")
    with pytest.raises(NoIdentity) as caught:
        await identity.headers(application)
    failure = caught.value.failure
    assert (failure.kind, failure.names_key, failure.independent) == (FailureKind.AUTH_REJECTED, True, True)
    assert HIDDEN not in repr(caught.value) and HIDDEN not in repr(failure)
    assert not await identity.renewed(application, 401, ""), "there is nothing else to show"
    assert len(directory.asked) == 1


@pytest.mark.parametrize("code", ["", "401", "token_expired", "Unauthorized"])
async def test_a_token_that_is_refused_is_renewed(
    identity: Identity, directory: Directory, application: Credential, code: str
) -> None:
    first = await identity.headers(application)
    assert await identity.renewed(application, 401, code)
    assert await identity.headers(application) != first
    assert len(directory.asked) == 2


@pytest.mark.parametrize(("status", "code"), [(403, ""), (429, ""), (200, ""), (401, "account_deactivated")])
async def test_what_no_new_token_would_mend_renews_nothing(
    identity: Identity, directory: Directory, application: Credential, status: int, code: str
) -> None:
    first = await identity.headers(application)
    assert not await identity.renewed(application, status, code)
    assert await identity.headers(application) == first and len(directory.asked) == 1


@pytest.mark.parametrize("auth", ["bearer", "api_key"])
async def test_a_key_cannot_be_renewed(identity: Identity, auth: str) -> None:
    assert not await identity.renewed(Credential("A", "u", KEY, auth=auth), 401, "")


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("https://a.example/v1", "https://a.example/v1/responses"),
        ("https://a.example/v1/", "https://a.example/v1/responses"),
        ("https://a.example", "https://a.example/responses"),
        ("https://a.example/v1?api-version=a%2Fb", "https://a.example/v1/responses?api-version=a%2Fb"),
        ("https://a.example/v1/?api-version=preview", "https://a.example/v1/responses?api-version=preview"),
    ],
)
def test_an_address_keeps_what_stands_behind_its_question_mark(base_url: str, address: str) -> None:
    assert str(Identity().url(Credential("A", base_url, KEY), "responses")) == address
