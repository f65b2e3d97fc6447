"""Responses in the background: they run by themselves, their events are kept, and anybody who asks hears them."""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from broker.simulator.faults import Fault
from broker.simulator.handshake import VENDOR, error_response, json_response, reset
from broker.simulator.http_wire import as_event, flat_error, open_stream
from broker.simulator.intake import Create
from broker.simulator.refusal import Refusal
from broker.simulator.strike import Caller, Gone
from broker.simulator.turn import Turn


@dataclass(frozen=True, slots=True)
class _Said:
    kind: str
    payload: bytes
    number: int | None


class BackgroundWire:
    """The way out of a response that no connection carries; a fault that cuts hits those who listen at that moment."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None  # before anything was said
        self._said: list[_Said | Fault] = []
        self._out: list[_Said] = []
        self._ended = False
        self._news = asyncio.Event()
        self._asking: web.Request | None = None  # who has asked for the response, until it is announced

    # -- the turn's side ---------------------------------------------------------------------------------------

    def put(self, kind: str, payload: bytes) -> None:
        self._out.append(_Said(kind, payload, orjson.loads(payload).get("sequence_number")))

    async def flush(self) -> None:
        if self._out:
            self._said += self._out
            self._out = []
            self._tell()

    def refuse(self, refusal: Refusal, lane: str | None, sequence: int | None = None) -> None:
        if self._said:
            self._out.append(_Said("error", flat_error(refusal, sequence), sequence))
        else:
            self.refusal = self.refusal or refusal

    async def hang(self) -> None:
        await asyncio.Event().wait()  # cancelled with the response, or when the vendor stops

    async def cut(self, fault: Fault) -> None:
        if not self._said:
            reset(self._asking.transport if self._asking is not None else None)
            raise Gone  # who has no id for it yet has no way back to it
        self._said.append(fault)
        self._tell()

    def end(self) -> None:
        """Nothing more will be said."""
        self._said += self._out
        self._out = []
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # -- the listeners' side -----------------------------------------------------------------------------------

    async def begun(self, request: web.Request) -> dict[str, Any] | None:
        """The response as it was announced, once that has happened; None if it was refused."""
        self._asking = request
        while not self._said and not self._ended:
            await self._news.wait()
        self._asking = None
        first = next((said for said in self._said if isinstance(said, _Said)), None)
        return orjson.loads(first.payload)["response"] if first is not None else None

    async def follow(self, request: web.Request, after: int, *, anew: bool = False) -> web.StreamResponse:
        """Stream every event with a number above `after` to the end; `anew` lets cuts of the past be past."""
        at, past = 0, len(self._said) if anew else 0
        try:
            response = await open_stream(request)
            while True:
                news = self._news
                for index in range(at, len(self._said)):
                    said = self._said[index]
                    if isinstance(said, Fault):
                        if index >= past:
                            await _cut(request, response, said)
                    elif said.number is None or said.number > after:
                        await response.write(as_event(said.kind, said.payload))
                    at = index + 1
                if at == len(self._said):
                    if self._ended:
                        return response
                    await news.wait()
        except ConnectionError:
            return web.Response()  # the listener has left, which is nothing to the response


async def _cut(request: web.Request, response: web.StreamResponse, fault: Fault) -> None:
    if fault.do == "garbage" and fault.variant != "half":
        await response.write(as_event("response.created", b"this is not JSON {"))
        return
    if fault.do == "garbage":
        await response.write(b'event: response.output_text.delta\ndata: {"type":"resp')
    if fault.do == "close" and request.transport is not None:
        request.transport.close()
    else:
        reset(request.transport)
    raise ConnectionResetError


class Background:
    """A response that runs by itself."""

    def __init__(self, turn: Turn, wire: BackgroundWire) -> None:
        self.wire = wire
        self._turn = turn
        self._task: asyncio.Task[None] | None = None

    def start(self, request: web.Request) -> None:
        self._task = request.app[VENDOR].run(self._run())

    def cancel(self) -> None:
        """End it unless it has ended; who listens hears no more."""
        self._turn.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._turn.run()
        finally:
            self.wire.end()


BACKGROUND = web.AppKey("background", dict[str, Background])


async def run_in_background(request: web.Request, caller: Caller, create: Create) -> web.StreamResponse:
    """Start a response and answer with what it was announced as, or with its events as long as the client listens."""
    wire = BackgroundWire()
    vendor = request.app[VENDOR]
    turn = Turn(vendor, caller, create, wire)
    background = Background(turn, wire)
    background.start(request)
    announced = await wire.begun(request)
    if announced is None:
        return error_response(wire.refusal or Refusal(500, None, "Nobody hears this."))
    running = request.app[BACKGROUND]
    running[announced["id"]] = background
    if len(running) > vendor.options.stored:
        del running[next(iter(running))]
    if caller.transport == "sse":
        return await wire.follow(request, -1)
    return json_response(announced)
