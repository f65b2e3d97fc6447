"""Ciphertext that only the boundary which minted it can read: reasoning and compaction items."""

import base64
import hashlib
import hmac
from typing import Any

import orjson

from broker.simulator.refusal import Refusal

PREFIX = "gAAAA"
_KEY = b"simulated vendor"  # the same in every process, so that two simulators can play one vendor
_MAC_BYTES = 16


def seal(kind: str, boundary: str, item_id: str, note: str = "") -> str:
    """Ciphertext bound to a boundary and to the id of the item that carries it."""
    plain = orjson.dumps([kind, boundary, item_id, note])
    sealed = base64.urlsafe_b64encode(_mac(plain) + plain).decode()
    return PREFIX + sealed.rstrip("=")


def check_sealed(item: dict[str, Any], boundary: str) -> None:
    """Refuse an item whose ciphertext is foreign, altered or moved to another item id.

    A reasoning item may come without its id; a compaction item may not.
    """
    ciphertext = item.get("encrypted_content")
    if ciphertext is None:
        return
    opened = _open(ciphertext)
    if opened is None:
        raise _invalid(item, "Encrypted content could not be decrypted or parsed.")
    kind, minted_by, minted_for, _ = opened
    if minted_by != boundary:
        raise _invalid(item, "Encrypted content organization_id did not match the target organization.")
    may_lack_id = kind == "reasoning" and "id" not in item
    if kind != item.get("type") or (item.get("id") != minted_for and not may_lack_id):
        raise _invalid(item, "Encrypted content item_id did not match the target item id.")


def _open(ciphertext: object) -> list[str] | None:
    if not isinstance(ciphertext, str) or not ciphertext.startswith(PREFIX):
        return None
    body = ciphertext[len(PREFIX) :]
    try:
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        return None
    plain = data[_MAC_BYTES:]
    if not hmac.compare_digest(_mac(plain), data[:_MAC_BYTES]):
        return None
    opened: list[str] = orjson.loads(plain)
    return opened


def _mac(plain: bytes) -> bytes:
    return hmac.digest(_KEY, plain, hashlib.sha256)[:_MAC_BYTES]


def _invalid(item: dict[str, Any], reason: str) -> Refusal:
    name = item.get("id") or "of the input"
    message = f"The encrypted content for item {name} could not be verified. Reason: {reason}"
    return Refusal(400, "invalid_encrypted_content", message)
