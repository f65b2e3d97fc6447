"""What can go wrong with a turn, and the one table that says what is done about it.

How to add a kind: a member of `FailureKind`, a row in `TABLE`, a line in the classifier's tables, a case in the
tests' corpus, a fault in the simulator. Nothing else decides anything about a failure.
Source of codes and classes: protocol.md 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto

from broker.domain.limits import Limits

NOT_OFFERED = "not_offered"
"""The code of a failure that is an endpoint's, which is not there at all."""


class FailureKind(StrEnum):
    """What kind of failure it is; the evidence decides, not the place that noticed it."""

    REQUEST_FAULT = "request_fault"
    UNSUPPORTED = "unsupported"
    AUTH_REJECTED = "auth_rejected"
    QUOTA_EXHAUSTED = "quota_exhausted"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TRANSPORT_LOST = "transport_lost"
    CONNECTION_EXPIRED = "connection_expired"
    CONTINUATION_LOST = "continuation_lost"
    CIPHERTEXT_FOREIGN = "ciphertext_foreign"


class Phase(StrEnum):
    """How far a turn had come: nothing sent, sent but nothing shown to the client, or something shown."""

    BEFORE_SEND = "before_send"
    SENT = "sent"
    SHOWN = "shown"


class Action(StrEnum):
    """What a turn does about a failure."""

    SURFACE = auto()
    """The client is told."""
    FAILOVER = auto()
    """Placed anew on another credential."""
    REPLAY = auto()
    """Sent again with the full context; the credential is not to blame and may serve it again."""


class Effect(StrEnum):
    """What a failure does to the shared health."""

    NONE = auto()
    EXCLUDE_MODEL = auto()
    REVOKE = auto()
    EXHAUST = auto()
    COOL = auto()
    COOL_ENDPOINT = auto()
    SUSPECT_BY_STREAK = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """What is done about one kind of failure, by phase, and what it does to health.

    `mutual`: credentials that refuse one request alike make it the request's own fault; see `Failure.witnesses`.
    `executed`: the turn may have run upstream, so sending it again may be billed twice and needs a movable turn.
    `verbatim`: the vendor's words concern the request and go to the client; all other words may name an account.
    """

    before_send: Action
    sent: Action
    shown: Action
    effect: Effect
    mutual: bool = False
    executed: bool = False
    verbatim: bool = False

    def action(self, phase: Phase) -> Action:
        """The column of a phase."""
        return {Phase.BEFORE_SEND: self.before_send, Phase.SENT: self.sent, Phase.SHOWN: self.shown}[phase]


_S, _F, _R = Action.SURFACE, Action.FAILOVER, Action.REPLAY

TABLE: dict[FailureKind, Row] = {
    FailureKind.REQUEST_FAULT: Row(_S, _S, _S, Effect.NONE, verbatim=True),
    FailureKind.UNSUPPORTED: Row(_F, _F, _S, Effect.EXCLUDE_MODEL, mutual=True, verbatim=True),
    FailureKind.AUTH_REJECTED: Row(_F, _F, _S, Effect.REVOKE, mutual=True),
    FailureKind.QUOTA_EXHAUSTED: Row(_F, _F, _S, Effect.EXHAUST),
    FailureKind.RATE_LIMITED: Row(_F, _F, _S, Effect.COOL),
    FailureKind.OVERLOADED: Row(_F, _F, _S, Effect.COOL_ENDPOINT),
    FailureKind.TRANSPORT_LOST: Row(_F, _F, _S, Effect.SUSPECT_BY_STREAK, executed=True),
    FailureKind.CONNECTION_EXPIRED: Row(_R, _R, _S, Effect.NONE),
    FailureKind.CONTINUATION_LOST: Row(_R, _R, _S, Effect.NONE),
    FailureKind.CIPHERTEXT_FOREIGN: Row(_S, _R, _S, Effect.NONE, verbatim=True),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure as it was understood.

    `until` is an absolute time (epoch seconds) that the vendor named itself, `retry_after` a span in seconds;
    `names_key` says that the vendor speaks of the key itself; `independent` that no request was part of the evidence
    (a refused handshake), so it can never be the request's own doing. `orderly` is a close that is no sign of
    trouble, `unsent` that the request never left. `raw` is the vendor's event, where there was one, `limits` what its
    headers say about limits.
    """

    kind: FailureKind
    status: int = 0
    code: str = ""
    type: str = ""
    until: float | None = None
    retry_after: float | None = None
    names_key: bool = False
    independent: bool = False
    orderly: bool = False
    unsent: bool = False
    raw: bytes | None = None
    limits: Limits | None = None

    @property
    def row(self) -> Row:
        """Its row in the table."""
        return TABLE[self.kind]

    @property
    def witnesses(self) -> int:
        """How many credentials must refuse a request alike before it is the request's own fault; 0: never.

        Two; three where the vendor names the key, for two keys of one organisation may well be revoked together.
        """
        if not self.row.mutual or self.independent:
            return 0
        return 3 if self.names_key else 2

    @property
    def fingerprint(self) -> tuple[FailureKind, int, str]:
        """What makes two refusals the same refusal."""
        return self.kind, self.status, self.code
