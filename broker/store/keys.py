"""Every key the broker has in Redis, one function each.

| key                    | type   | holds                                                           | lives            |
|------------------------|--------|-----------------------------------------------------------------|------------------|
| `sb:s:{sid}`           | hash   | name, tenant, pin (epoch, nonce, credential, because), flags,   | TTL, idle        |
|                        |        | counters, `b:<boundary>` for each boundary that served a turn   |                  |
| `sb:s:{sid}:turns`     | hash   | `<turn_id>` -> meta, `<turn_id>:<i>` -> i-th chunk of its items | TTL, idle        |
| `sb:s:{sid}:ids`       | hash   | `r:<response_id>` -> turn id, `e:<digest>` -> boundary          | TTL, idle        |
| `sb:r:{rid}`           | string | sid of the session that a response belongs to                   | TTL, idle        |
| `sb:o:{own}`           | string | credential and boundary that own a thing at a vendor            | TTL, 30 days     |
| `sb:t:{token}`         | string | token of an application, sealed with the application's secret   | TTL, its life    |
| `sb:t:{token}:lease`   | string | node that asks for a new one                                    | TTL, seconds     |
| `sb:h:{health}:rows`   | hash   | subject -> AuthHealth row                                       | permanent        |
| `sb:h:{health}:events` | stream | what happened to the rows, about the last 10,000                | permanent        |
| `sb:h:{health}:limits` | hash   | limit group -> what its vendor said about its limits            | TTL, one day     |
| `sb:h:{health}:licence:<subject>` | string | token of the one who may try it                      | TTL, seconds     |
| `sb:h:{health}:slots:<credential>` | hash | node -> how many turns it may run at once             | TTL, seconds     |
| `sb:h:{health}:recorder` | hash | how many events recorders were given, and how many they missed  | TTL, 30 days     |
| `sb:h:{health}:timeline:<subject>` | zset | the newest events of one subject                      | TTL, seven days  |
| `sb:h:{health}:counts` | hash   | `<state> <subject>` -> how often it came to that                | TTL, 30 days     |
| `sb:h:{health}:owed:<hook>` | zset | id -> when a webhook is to be told of it (ms)                | TTL, one day     |
| `sb:h:{health}:owed:<hook>:events` | hash | id -> the event                                       | TTL, one day     |
| `sb:h:{health}:pace:<hook>` | hash | how much a webhook was told of late, and what was left out   | TTL, one day     |
| `sb:h:{health}:told:<hook>:<id>` | string | token of who is telling it, or `done`                 | TTL, one day     |
| `sb:n:{nodes}`         | hash   | node -> heartbeat                                               | permanent, swept |
| `sb:w:{workers}:lease:<name>` | string | token of the worker that does it alone                   | TTL, seconds     |

What stands in `{...}` is the hash tag: all keys that one script touches share a slot. `sid`, `rid` and `own` are
digests, so no text of a client is ever part of a key; so is `token`, which tells nothing of a secret.
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


def owner(own: str) -> str:
    """Who owns one thing that lives at a vendor."""
    return f"sb:o:{{{own}}}"


def token(name: str) -> str:
    """The token of one application with one secret."""
    return f"sb:t:{{{name}}}"


def token_lease(name: str) -> str:
    """Who asks for a new token."""
    return f"sb:t:{{{name}}}:lease"


def health_rows() -> str:
    """The health table."""
    return "sb:h:{health}:rows"


def health_events() -> str:
    """The audit stream of the health table."""
    return "sb:h:{health}:events"


def health_limits() -> str:
    """What vendors said about limits, by limit group."""
    return "sb:h:{health}:limits"


def health_licence(subject: str) -> str:
    """Who may try the subject of a row whose block has run out."""
    return f"sb:h:{{health}}:licence:{subject}"


def health_slots(credential: str) -> str:
    """How many turns each node may run at once on a credential with a cap."""
    return f"sb:h:{{health}}:slots:{credential}"


def health_recorder() -> str:
    """How far the recorders have come in the audit stream."""
    return "sb:h:{health}:recorder"


def health_timeline(subject: str) -> str:
    """What happened to one subject lately."""
    return f"sb:h:{{health}}:timeline:{subject}"


def health_counts() -> str:
    """How often which subject came into which state."""
    return "sb:h:{health}:counts"


def health_owed(hook: str) -> tuple[str, str]:
    """What one webhook is to be told: when, and what."""
    return f"sb:h:{{health}}:owed:{hook}", f"sb:h:{{health}}:owed:{hook}:events"


def health_pace(hook: str) -> str:
    """How much one webhook was told of late."""
    return f"sb:h:{{health}}:pace:{hook}"


def health_told(hook: str, event: str) -> str:
    """Whether one webhook was told one event, or who is telling it."""
    return f"sb:h:{{health}}:told:{hook}:{event}"


def health_channel() -> str:
    """The channel (no key) on which every change of a row is told at once."""
    return "sb:h:{health}:hints"


def nodes() -> str:
    """The heartbeats."""
    return "sb:n:{nodes}"


def lease(name: str) -> str:
    """Who does alone what only one worker in the cluster may do."""
    return f"sb:w:{{workers}}:lease:{name}"


PERMANENT = frozenset({health_rows(), health_events(), nodes()})
"""The only keys that have no TTL."""

RESPONSES = b"sb:r:"
"""How every index entry of a response begins."""

SWEPT = "sb:[rs]:*"
"""The pattern of all keys of sessions and responses; each of them has a TTL."""
