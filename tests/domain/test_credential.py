"""A credential never shows its secret."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import traceback
from collections.abc import Callable

import orjson
import pytest

from broker.domain.commands import Open
from broker.domain.credential import Credential, Secret
from broker.domain.turn import Request, Turn
from tests.domain.playbook import session

HIDDEN = "sk-very-secret"
SECRET = Secret(HIDDEN)
KEY = Credential("k", "https://k.example", SECRET)
TURN = Turn(Request("t", None, b"", b""), session(), credential=KEY)

SHOWN: list[Callable[[object], str]] = [
    repr,
    str,
    ascii,
    format,
    lambda it: f"{it}",
    lambda it: f"{it!r}",
    lambda it: f"{it!s:>40}",
    lambda it: f"{it:>40}" if isinstance(it, Secret) else "",
    lambda it: "%s %r" % (it, it),  # noqa: UP031
    "{0} {0!r}".format,
    lambda it: repr([it]) + str({"k": it}) + repr((it,)),
    lambda it: "".join(traceback.format_exception(ValueError(it))),
]


@pytest.mark.parametrize("show", SHOWN)
@pytest.mark.parametrize(
    "holder", [SECRET, KEY, Open(KEY), Turn(Request("t", None, b"", b""), session(), credential=KEY)]
)
def test_shows_nothing(holder: object, show: Callable[[object], str]) -> None:
    assert HIDDEN not in show(holder)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("holder", [SECRET, KEY])
def test_is_not_pickled(holder: object, protocol: int) -> None:
    with pytest.raises(TypeError, match="not serialised"):
        pickle.dumps(holder, protocol)


@pytest.mark.parametrize("write", [json.dumps, orjson.dumps, copy.deepcopy, copy.copy])
def test_is_not_serialised(write: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        write(SECRET)


def test_is_not_turned_into_a_dict() -> None:
    with pytest.raises(TypeError):
        dataclasses.asdict(KEY)
    assert not hasattr(SECRET, "__dict__")


def test_gives_the_secret_away_on_demand_alone() -> None:
    assert SECRET.reveal() == HIDDEN
    assert bool(SECRET)
    assert not Secret("")


def test_compares_by_value_and_only_with_its_like() -> None:
    assert Secret("x") == Secret("x") != Secret("y")
    assert len({Secret("x"), Secret("x"), Secret("y")}) == 2
    assert Secret("x") != "x"
    assert hash(Secret("x")) != hash("x")


def test_knows_models_by_alias() -> None:
    key = Credential("k", "u", SECRET, models=frozenset({"m"}), aliases={"fast": "m-2026"})
    assert [key.serves(model) for model in ("m", "fast", "other", "")] == [True, True, False, True]
    assert [key.upstream_model(model) for model in ("m", "fast")] == ["m", "m-2026"]
