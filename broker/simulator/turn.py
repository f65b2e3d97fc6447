"""One response from its create to its terminal event, on any transport, with the faults that strike in between."""

import time
from typing import Any

from broker.simulator.answer import Answer, answer_to
from broker.simulator.context import Context, input_items
from broker.simulator.events import EventWriter, ResponseDraft, usage_of
from broker.simulator.faults import Fault
from broker.simulator.intake import Create, Intake, accept
from broker.simulator.memory import Archived, Remembered
from broker.simulator.output import Output
from broker.simulator.record import TurnRecord
from broker.simulator.refusal import Refusal
from broker.simulator.strike import Caller, FailedByFault, Gone, Wire, strike
from broker.simulator.vendor import Vendor

_REASONING_TOKENS = 16


class Turn:
    """Run it once. Afterwards `final` is the response object, if it came to one."""

    def __init__(self, vendor: Vendor, caller: Caller, create: Create, wire: Wire) -> None:
        self.create = create
        self.response_id: str | None = None
        self.final: dict[str, Any] | None = None
        self.writer = EventWriter(wire, create.lane)
        self._vendor = vendor
        self._caller = caller
        self._wire = wire
        self._parent_id = create.parent_id
        self._inherited: Context | None = None  # set for the successor of a steered response
        self.output = Output(vendor, caller.credential.boundary, wire.flush, self.writer, self._strike)
        self._record: TurnRecord | None = None
        self._draft: ResponseDraft | None = None
        self._intake: Intake | None = None

    # -- the course of a turn ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer the create; every ending is recorded, none but cancellation escapes."""
        record = self._record = self._open_record()
        try:
            await self._strike("before_created")
            await self._answer()
        except Refusal as refusal:
            await self._refused(refusal)
        except FailedByFault as failed:
            await self._failed(failed.fault)
        except Gone:
            pass  # recorded below, as is the cancellation that comes with a closed socket
        finally:
            record.end("lost")
            if self._intake and self._intake.conversation:
                self._intake.conversation.busy = False

    def successor(self) -> "Turn | None":
        """The response that follows a steered one by itself, or None."""
        if not self.output.steers or self.final is None or self.final["status"] == "failed" or self.output.open_calls:
            return None
        frame = self.create.frame | {"input": list(self.output.steers), "generate": True}
        create = Create(frame, self.create.raw, self.create.lane)
        turn = Turn(self._vendor, self._caller, create, self._wire)
        turn._parent_id = self.response_id
        turn._inherited = self._context_after()
        return turn

    def _open_record(self) -> TurnRecord:
        frame = self.create.frame
        given = frame.get("input")
        try:
            received = input_items(given)
        except Refusal:
            received = []
        return self._vendor.recorder.turn(
            credential=self._caller.credential.name,
            socket=self._caller.socket,
            transport=self._caller.transport,
            lane=self.create.lane,
            previous_response_id=self._parent_id,
            input=received,
            fields={name: value for name, value in frame.items() if name != "input"},
            frame_keys=list(frame),
            model=self.create.model,
            store=self.create.stored,
        )

    def _accept(self) -> Intake:
        if self._inherited is None:
            return accept(self._vendor, self._caller.credential, self.create, self._caller.memory)
        added = input_items(self.create.frame["input"])
        self._inherited.check(added, self._caller.credential.boundary)
        return Intake(self._inherited, added)

    async def _answer(self) -> None:
        intake = self._intake = self._accept()
        context = intake.context
        self.response_id = self._new_id()
        assert self._record is not None
        self._record.response_id = self.response_id
        self._record.context, self._record.context_digest = context.items, context.digest
        draft = self._draft = ResponseDraft(self.response_id, self.create, intake, self._parent_id)
        self._announce(draft)
        await self._wire.flush()
        await self._strike("after_created")
        if not self.create.generates:
            await self._warmed_up(context)
            return
        answer = answer_to(context, self._vendor.options, self.create.frame.get("tools"), self._vendor.scripts)
        self.output.compact(context, self.create.frame.get("context_management"))
        self.output.reason()
        await (self.output.call(answer) if answer.calls else self.output.speak(answer))
        await self._conclude(answer, context)

    def _new_id(self) -> str:
        return self._vendor.response_id(self._caller.credential, self._caller.memory)

    def _announce(self, draft: ResponseDraft) -> None:
        if self._caller.background:
            draft.stand("queued")
            self._archive(draft)
        self.writer.say("response.created", response=draft.now())
        self._tell_limits()
        if self._caller.background:
            self.writer.say("response.queued", response=draft.now())
            draft.stand("in_progress")
        if self.create.generates:
            self.writer.say("response.in_progress", response=draft.now())

    async def _warmed_up(self, context: Context) -> None:
        if self._vendor.manner_of(self._caller.credential).warmup_ends:
            await self._complete("completed", context, 0)
            return
        assert self._record is not None
        self._keep()
        self._record.end("completed")

    def _tell_limits(self) -> None:
        told = self._vendor.told_limits(self._caller.credential.name)
        if told is not None and told.frames:
            self.writer.aside("codex.rate_limits", told.event(time.time()))

    async def _conclude(self, answer: Answer, context: Context) -> None:
        spoken = len(answer.text) // 4
        if self.output.steers and self.output.cut_short:
            await self._complete("incomplete", context, spoken, incomplete_details={"reason": "steered"})
        elif answer.incomplete:
            await self._complete("incomplete", context, spoken, incomplete_details={"reason": "max_output_tokens"})
        else:
            await self._complete("completed", context, spoken)

    async def _complete(self, status: str, context: Context, spoken: int, **more: Any) -> None:
        assert self._draft is not None and self._intake is not None and self._record is not None
        thought = _REASONING_TOKENS if any(item["type"] == "reasoning" for item in self.output.items) else 0
        usage = usage_of(context.tokens, self._intake.before.tokens, spoken if self.output.items else 0, thought)
        self.final = self._draft.ended(status, self.output.items, usage, **more)
        # Kept before it is said, so that a client that answers at once finds it.
        self._keep()
        self.writer.say(f"response.{status}", response=self.final)
        self._announce_waiting_steers()
        self._record.end(status)
        await self._wire.flush()

    # -- endings that are not answers --------------------------------------------------------------------------

    async def _refused(self, refusal: Refusal) -> None:
        assert self._record is not None
        self._evict_parent()
        self._record.end("error", refusal.code or refusal.error_type)
        if self._caller.background and self._draft is not None:
            # There is nobody whom an error could reach for certain, so the response itself tells of it.
            told = {"code": refusal.code or refusal.error_type, "message": refusal.message}
            self.final = self._draft.ended("failed", [], None, error=told)
        self._wire.refuse(refusal, self.create.lane, self.writer.sequence if self.writer.sequence else None)
        await self._flush_last()

    def cancel(self) -> None:
        """End a response in the background as its client wishes; it can still be fetched."""
        if self.final is not None or self._draft is None or self._record is None:
            return
        self._record.end("cancelled")
        self.final = self._draft.ended("cancelled", self.output.items, None)

    async def _failed(self, fault: Fault) -> None:
        assert self._record is not None
        self._evict_parent()
        self._record.end("failed", fault.code or fault.error_type)
        if fault.do == "double":
            # The vendor's own oddity: a stream-level error without status, then the same once more as an event.
            self._wire.refuse(fault.but(omit_status=True).refusal(), self.create.lane, self.writer.sequence)
            self.writer.sequence += 1
        self.response_id = self.response_id or self._new_id()
        draft = self._draft or ResponseDraft(self.response_id, self.create, self._intake, self._parent_id)
        error = fault.response_error()
        self.final = draft.ended("failed", [], None, error=error)
        self._archive(draft)
        if isinstance(fault.body, dict):
            self._wire.refuse(fault.refusal(), self.create.lane)
        else:
            self.writer.say("response.failed", response=self.final)
        await self._flush_last()

    async def _flush_last(self) -> None:
        try:
            await self._wire.flush()
        except Gone:
            return

    async def _strike(self, point: str) -> None:
        """Let the fault of this moment act, if there is one."""
        await strike(
            self._vendor,
            self._caller,
            self._wire,
            point,
            raw=self.create.raw,
            model=self.create.model,
            deltas=self.output.deltas,
        )

    # -- what the vendor remembers -----------------------------------------------------------------------------

    def _context_after(self) -> Context:
        assert self._intake is not None
        return self._intake.context.grown(self.output.items)

    def _keep(self) -> None:
        assert self.response_id is not None and self._intake is not None
        waiting = tuple(self.output.steers) if self.output.open_calls else ()
        remembered = Remembered(self.response_id, self._context_after(), self.create.stored, waiting)
        if self._caller.memory is not None:
            self._caller.memory.keep(self.create.lane, remembered)
        store = self._vendor.store_of(self._caller.credential)
        if self.create.stored and not self._vendor.manner_of(self._caller.credential).stateless:
            store.keep(remembered, (*self._intake.added, *self.output.items))
            if self._draft is not None:
                self._archive(self._draft)
        if self._intake.conversation is not None:
            self._intake.conversation.context = remembered.context
            store.keep_items(self.output.items)

    def _archive(self, draft: ResponseDraft) -> None:
        """Let a stored response be fetched."""
        manner = self._vendor.manner_of(self._caller.credential)
        if not self.create.stored or manner.stateless or self._intake is None:
            return
        archived = Archived(draft.now(), self._intake.context.items)
        self._vendor.store_of(self._caller.credential).archive(draft.now()["id"], archived)

    def _evict_parent(self) -> None:
        if self._caller.memory is not None and self._parent_id is not None:
            self._caller.memory.evict(self.create.lane, self._parent_id)

    def _announce_waiting_steers(self) -> None:
        calls = self.output.open_calls
        if self.output.steers and calls:
            required = [{"type": call["type"], "call_id": call["call_id"], "name": call["name"]} for call in calls]
            pending = {"reason": "waiting_for_required_input", "required_input": required}
            self.writer.say("response.steer.pending", **pending)
