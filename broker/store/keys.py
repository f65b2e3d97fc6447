"""Every key the broker has in Redis, one function each.

| key                    | type   | holds                                                           | lives            |
|------------------------|--------|-----------------------------------------------------------------|------------------|
| `sb:s:{sid}`           | hash   | name, tenant, pin (epoch, nonce, credential, because), flags,   | TTL, idle        |
|                        |        | counters, `b:<boundary>` for each boundary that served a turn   |                  |
| `sb:s:{sid}:turns`     | hash   | `<turn_id>` -> meta, `<turn_id>:<i>` -> i-th chunk of its items | TTL, idle        |
| `sb:s:{sid}:ids`       | hash   | `r:<response_id>` -> turn id, `e:<digest>` -> boundary          | TTL, idle        |
| `sb:r:{rid}`           | string | sid of the session that a response belongs to                   | TTL, idle        |
| `sb:h:{health}:rows`   | hash   | subject -> AuthHealth row                                       | permanent        |
| `sb:h:{health}:events` | stream | what happened to the rows, about the last 10,000                | permanent        |
| `sb:n:{nodes}`         | hash   | node -> heartbeat                                               | permanent, swept |

What stands in `{...}` is the hash tag: all keys that one script touches share a slot. `sid` and `rid` are digests,
so no text of a client is ever part of a key.
"""

from __future__ import annotations


def session(sid: str) -> str:
    """The session itself."""
    return f"sb:s:{{{sid}}}"


def turns(sid: str) -> str:
    """The transcript of a session."""
    return f"sb:s:{{{sid}}}:turns"


def ids(sid: str) -> str:
    """What a session knows about response ids and reasoning ciphertext."""
    return f"sb:s:{{{sid}}}:ids"


def of_session(sid: str) -> tuple[str, str, str]:
    """All keys of one session, in the order in which every script takes them."""
    return session(sid), turns(sid), ids(sid)


def response(rid: str) -> str:
    """The tenant-wide index entry of one response."""
    return f"sb:r:{{{rid}}}"


def health_rows() -> str:
    """The health table."""
    return "sb:h:{health}:rows"


def health_events() -> str:
    """The audit stream of the health table."""
    return "sb:h:{health}:events"


def nodes() -> str:
    """The heartbeats."""
    return "sb:n:{nodes}"


PERMANENT = frozenset({health_rows(), health_events(), nodes()})
"""The only keys that have no TTL."""
