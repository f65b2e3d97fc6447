"""The table of vendors: what each can do, and that every credential finds its row."""

from __future__ import annotations

import pytest

from broker.domain.credential import Credential, Secret
from broker.domain.vendors import VENDORS, Vendor


def having(name: str, value: object = True) -> set[str]:
    return {vendor for vendor, manners in VENDORS.items() if getattr(manners, name) == value}


def test_who_has_an_address_for_all_customers() -> None:
    assert {vendor: manners.base_url for vendor, manners in VENDORS.items() if manners.base_url} == {
        "openai": "https://api.openai.com/v1",
        "xai": "https://api.x.ai/v1",
        "vercel": "https://ai-gateway.vercel.sh/v1",
    }


@pytest.mark.parametrize(
    ("vendor", "minutes"), [("openai", 60), ("azure", 60), ("xai", 25), ("vercel", 13), ("custom", 60)]
)
def test_a_socket_is_left_before_its_vendor_ends_it(vendor: str, minutes: int) -> None:
    assert 0.5 * minutes * 60 < VENDORS[vendor].max_age <= minutes * 60 - 60


def test_who_has_which_manners() -> None:
    # protocol.md 5: one turn at a time on a socket
    assert having("lanes", False) == having("strict") == {"azure", "xai", "vercel"}
    # protocol.md 2.2, 4.7
    assert having("warmup", "created_only") == having("reuses_ids") == {"xai"}
    assert having("warmup", "full") == set(VENDORS) - {"xai"}
    assert having("probe", "warmup") == {"openai", "azure"}
    assert having("projects") == {"openai", "custom"}


def test_everybody_takes_a_bearer_token_and_who_takes_more_has_a_scope_for_it() -> None:
    for manners in VENDORS.values():
        assert manners.auth[0] == "bearer" and manners.transports == ("websocket", "http")
        assert ("entra" in manners.auth) is bool(manners.scope)
    assert having("auth", ("bearer", "api_key", "entra")) == {"azure", "custom"}


def test_a_credential_knows_the_manners_of_its_vendor() -> None:
    for vendor, manners in VENDORS.items():
        assert Credential("k", "u", Secret("s"), vendor=vendor).manners is manners
    assert Credential("k", "u", Secret("s"), vendor="nobody").manners is VENDORS["custom"]


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        VENDORS["mine"] = Vendor()  # type: ignore[index]
    with pytest.raises(AttributeError):
        VENDORS["openai"].lanes = False  # type: ignore[misc]
