"""What a client observed of one turn, checked against its own truth."""

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from broker.simulator.answer import call_id
from broker.simulator.context import Context, Item

GOOD_ENDINGS = frozenset({"response.completed", "response.incomplete"})
ENDINGS = GOOD_ENDINGS | {"response.failed", "error"}
_AFTER_THE_END = frozenset({"response.steer.pending", "response.steer.failed"})
_UNNUMBERED = frozenset({"codex.rate_limits"})
_CLAIM = re.compile(r"ctx=([0-9a-f]{32}) items=(\d+) \|")


@dataclass(slots=True, eq=False)
class TurnResult:
    """One turn as its client saw it. `problems` says everything that was wrong, in words; empty is good."""

    lane: str | None
    parent: "TurnResult | None"
    input: list[Item]
    incremental: bool
    settings: dict[str, Any]
    response_id: str | None = None
    text: str = ""
    events: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)  # from response.output_item.done, in order
    response: dict[str, Any] | None = None  # the object of the terminal event
    error: dict[str, Any] | None = None  # of an `error` event (with its status) or of response.failed
    terminal: str | None = None
    problems: list[str] = field(default_factory=list)
    digest_ok: bool = False
    duration: float = 0.0
    started: float = 0.0
    first_output: float | None = None  # seconds from the start to the first output event
    after: Context = field(default_factory=Context, repr=False)  # the client's own truth once this turn has ended well
    successor: "TurnResult | None" = None  # the response that followed by itself after a steer
    status: int | None = None  # of the answer over HTTP
    headers: dict[str, str] = field(default_factory=dict)  # of that answer, names in lower case
    _sequence: int = -1
    _ended: bool = False

    @property
    def ok(self) -> bool:
        """The turn ended well and nothing about it was wrong."""
        return self.terminal in GOOD_ENDINGS and not self.problems

    @property
    def error_code(self) -> str | None:
        """The code of the error, or its type where it has none."""
        return (self.error.get("code") or self.error.get("type")) if self.error else None

    @property
    def reasoning_items(self) -> list[Item]:
        return [item for item in self.items if item.get("type") == "reasoning"]

    @property
    def calls(self) -> list[Item]:
        """The calls that wait for an output."""
        return [item for item in self.items if item.get("type") in ("function_call", "custom_tool_call")]

    def transcript(self) -> list[Item]:
        """Every item of the chain up to and including this turn."""
        return [item for turn in self.chain() for item in (*turn.input, *turn.items)]

    def chain(self) -> "list[TurnResult]":
        """The turns from the root to this one."""
        chain: list[TurnResult] = [self]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        return chain[::-1]

    # -- observing ---------------------------------------------------------------------------------------------

    def observe(self, event: dict[str, Any], at: float) -> bool:
        """Take one event of this turn; True when it was the last."""
        kind = str(event.get("type"))
        if self._ended:
            if kind not in _AFTER_THE_END:
                self.problems.append(f"{kind} after {self.terminal}")
            return False
        self.events.append(kind)
        self._check_sequence(kind, event)
        if kind == "response.created":
            self._created(event)
        elif kind == "response.output_item.done":
            self.items.append(event["item"])
        elif kind == "response.output_text.delta":
            self.text += event["delta"]
        if self.first_output is None and (".delta" in kind or "output_item" in kind):
            self.first_output = at - self.started
        if kind in ENDINGS:
            self.duration = at - self.started
            self._end(kind, event)
        return self._ended

    def give_up(self, reason: str, at: float) -> None:
        """End the turn without a terminal event."""
        if not self._ended:
            self._ended = True
            self.duration = at - self.started
            self.problems.append(reason)

    def _check_sequence(self, kind: str, event: dict[str, Any]) -> None:
        number = event.get("sequence_number")
        if number is None:
            if kind != "error" and kind not in _UNNUMBERED:
                self.problems.append(f"{kind} without sequence_number")
            return
        if self._sequence < 0 and number != 0 and not kind.startswith("response.steer"):
            self.problems.append(f"{kind} starts at sequence_number {number}")
        if number <= self._sequence:
            self.problems.append(f"sequence_number {number} after {self._sequence}")
        self._sequence = number

    def _created(self, event: dict[str, Any]) -> None:
        if self.response_id is not None:
            self.problems.append("a second response.created")
        self.response_id = event["response"]["id"]

    def _end(self, kind: str, event: dict[str, Any]) -> None:
        self._ended = True
        self.terminal = kind
        if kind == "error":
            self.error = {"status": event.get("status"), **(event.get("error") or {})}
            return
        self.response = event.get("response") or {}
        if kind == "response.failed":
            self.error = self.response.get("error")
        elif self.response_id is None:
            self.problems.append(f"{kind} without response.created")
        if self.response_id is not None and self.response.get("id") != self.response_id:
            self.problems.append(f"{kind} names {self.response.get('id')}, created named {self.response_id}")
        if kind in GOOD_ENDINGS:
            self._check_output(self.response)
            self._check_digest()

    def _check_output(self, response: dict[str, Any]) -> None:
        listed = [item.get("id") for item in response.get("output") or []]
        if listed and listed != [item.get("id") for item in self.items]:
            self.problems.append("the terminal event lists other items than were sent")

    def _check_digest(self) -> None:
        before = self.parent.after if self.parent is not None else Context()
        context = before.grown(self.input)
        self.after = context.grown(self.items)
        claims = self._claims(context.digest)
        cut_short = self.terminal == "response.incomplete"
        if not claims and self.settings.get("generate") is not False:
            if not cut_short:
                self.problems.append("the answer says nothing of its context")
            return
        wrong = [
            claim for claim in claims if claim not in (context.digest[:32], f"{context.digest[:32]}/{context.counted}")
        ]
        for claim in wrong:
            self.problems.append(f"answered from context {claim}, not {context.digest[:32]}/{context.counted}")
        self.digest_ok = not wrong

    def _claims(self, digest: str) -> list[str]:
        """What the answer says of its context: in its text, in arguments, and in the ids of calls that say nothing."""
        claims = ["/".join(found) for found in _CLAIM.findall(self.text)]
        for at, call in enumerate(self.calls):
            told = _told(call)
            if told is None:
                made_here = call.get("call_id") == call_id(digest, at, str(call.get("name")))
                told = digest[:32] if made_here else f"of another call {call.get('call_id')}"
            claims.append(told)
        return claims


def _told(call: Item) -> str | None:
    """The context that the arguments of a call name, if they name one."""
    if call["type"] != "function_call":
        return None
    try:
        arguments = orjson.loads(call["arguments"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "unreadable arguments"
    return str(arguments["ctx"]) if isinstance(arguments, dict) and "ctx" in arguments else None
