"""Requests that are no responses, but work for the vendor all the same: recorded, and open to faults, like turns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from broker.simulator.context import Item
from broker.simulator.handshake import VENDOR
from broker.simulator.intake import Create
from broker.simulator.record import TurnRecord
from broker.simulator.refusal import Refusal
from broker.simulator.strike import Caller, FailedByFault, Gone, Wire, strike


@asynccontextmanager
async def recorded(
    request: web.Request, caller: Caller, create: Create, wire: Wire, items: list[Item]
) -> AsyncIterator[TurnRecord]:
    """The record of a request that is no response, but work for the vendor all the same, and may meet faults.

    Raises Refusal for those, and TurnedAway where the fault leaves nobody to answer.
    """
    vendor = request.app[VENDOR]
    record = vendor.recorder.turn(
        credential=caller.credential.name,
        socket=None,
        transport=caller.transport,
        lane=None,
        previous_response_id=create.parent_id,
        input=items,
        fields={name: value for name, value in create.frame.items() if name not in ("input", "messages")},
        frame_keys=list(create.frame),
        model=create.model,
        store=create.stored,
        path=request.path,
    )
    try:
        await strike(vendor, caller, wire, "before_created", raw=create.raw, model=create.model)
        yield record
        record.end("completed")
    except FailedByFault as failed:
        record.end("failed", failed.fault.code)
        raise failed.fault.refusal() from None
    except Refusal as refusal:
        record.end("error", refusal.code or refusal.error_type)
        raise
    except Gone:
        raise Refusal(500, None, "Nobody hears this.") from None
    finally:
        record.end("lost")
