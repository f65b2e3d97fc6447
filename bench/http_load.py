"""A load for relays over HTTP: vendor and clients in one thread, so that one event can be in flight without a timer.

It knows what it has sent, so every byte is compared, both ways: an answer that is cut, doubled, out of order or changed
ends the run. It never sleeps while it measures, or the relay would be charged for waking it up.
"""

from __future__ import annotations

import base64
import hashlib
import re
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.stand import CLIENT_KEY, LoadFailed
from broker.domain.frames import text_header

PATIENCE = 30.0
"""Seconds in which something must arrive, or the relay stalls."""

READ = 256 * 1024
DELTAS = 200
HTTP, WEBSOCKET = "http", "websocket"

_MARK = re.compile(rb"mark-(\d{6})-(\d{6})")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_KEY = re.compile(rb"(?i)\r\nsec-websocket-key: *(\S+)")
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_GONE = b"\x88\x02\x03\xe8"


# --- what goes to and fro ---------------------------------------------------------------------------------------------


def _events(deltas: int) -> list[bytes]:
    """The events of one turn; a mark in them is written over, so its width never changes."""
    of = (
        b'"response":{"id":"resp_mark-SSSSSS-TTTTTT","object":"response","status":"%b","model":"gpt-bench",'
        b'"output":[%b]}'
    )
    text = b" word" * 5
    item = (
        b'{"id":"msg_mark-SSSSSS-TTTTTT","type":"message","role":"assistant","status":"completed",'
        b'"content":[{"type":"output_text","text":"%b","annotations":[]}]}'
    )
    item %= text * deltas
    begun = of % (b"in_progress", b"")
    events = [b'{"type":"response.created","sequence_number":0,%b}' % begun]
    if deltas > 1:
        events.append(b'{"type":"response.in_progress","sequence_number":1,%b}' % begun)
    for number in range(len(events), len(events) + deltas):
        events.append(
            b'{"type":"response.output_text.delta","content_index":0,"delta":"%b","item_id":"msg_mark-SSSSSS-TTTTTT",'
            b'"logprobs":[],"obfuscation":"d1Kz7mQx","output_index":0,"sequence_number":%d}' % (text, number)
        )
    events.append(
        b'{"type":"response.output_item.done","item":%b,"output_index":0,"sequence_number":%d}' % (item, len(events))
    )
    usage = b',"usage":{"input_tokens":1500,"output_tokens":%d,"total_tokens":%d}}' % (deltas, deltas + 1500)
    done = (of % (b"completed", item))[:-1] + usage
    events.append(b'{"type":"response.completed","sequence_number":%d,%b}' % (len(events), done))
    return events


def _stream(data: bytes) -> bytes:
    kind = data[9 : data.index(b'"', 9)]
    return b"event: %b\ndata: %b\n\n" % (kind, data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _frame(data: bytes) -> bytes:
    return text_header(len(data)) + data


class _Text:
    """Pieces with marks in them, and where each piece ends."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._joined = b"".join(pieces)
        self.ends = [sum(len(piece) for piece in pieces[: count + 1]) for count in range(len(pieces))]

    def of(self, session: int, turn: int) -> bytes:
        """The text of one turn."""
        return self._joined.replace(b"SSSSSS", b"%06d" % session).replace(b"TTTTTT", b"%06d" % turn)


class Script:
    """What a turn sends and gets, as a stream and as frames. `steps`: how many events there are after each step."""

    def __init__(self, deltas: int, *, stepped: bool) -> None:
        events = _events(deltas)
        self.events = len(events)
        self.first_output = self.events - deltas - 2
        # announcements are held until there is output, so they are no step of their own
        steps = range(self.first_output + 1, self.events + 1)
        self.steps = list(steps) if stepped else [self.events]
        self.shown = {
            HTTP: _Text([_stream(data) for data in events]),
            WEBSOCKET: _Text([_frame(data) for data in events]),
        }
        self.told = {HTTP: _Text([_chunk(_stream(data)) for data in events]), WEBSOCKET: self.shown[WEBSOCKET]}
        words = b"the quick brown fox jumps over the lazy dog, " * 130
        self.input = _Text(
            [
                b'[{"type":"message","role":"user","content":[{"type":"input_text","text":"mark-SSSSSS-TTTTTT %b"}]}]'
                % words
            ]
        )

    def body(self, session: int, turn: int, *, stored: bool) -> bytes:
        """A request over HTTP."""
        held = b'{"model":"gpt-bench","input":%b,"stream":true%b}'
        return held % (self.input.of(session, turn), b"" if stored else b',"store":false')

    def create(self, session: int, turn: int, *, stored: bool) -> bytes:
        """The same as a frame."""
        held = b'{"type":"response.create","model":"gpt-bench","input":%b%b}'
        data = held % (self.input.of(session, turn), b"" if stored else b',"store":false')
        # a mask of zeros is a mask, too
        return text_header(len(data), 0x80) + bytes(4) + data


# --- the two ends -----------------------------------------------------------------------------------------------------


@dataclass
class _End:
    """One socket. `out` is what it did not take yet."""

    socket: socket.socket
    buffer: bytes = b""
    out: bytes = b""
    upgraded: bool = False


@dataclass
class _Client(_End):
    """One session. `at` says how much of `expected` has come, `left` how much of a chunk is still to come."""

    number: int = 0
    turn: int = 0
    vendor: _End | None = None
    asked: bytes = b""
    expected: bytes = b""
    told: bytes = b""
    sent: int = 0
    step: int = 0
    at: int = 0
    left: int = -1
    in_body: bool = False
    idle: bool = True
    began: float = 0.0
    first: float = 0.0


@dataclass
class Result:
    """What was measured between the first request and the last answer. `first` has seconds."""

    events: int = 0
    turns: int = 0
    cpu: float = 0.0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)


class Load:
    """A vendor on `port`, and the clients of one relay. Use as a context manager."""

    def __init__(
        self,
        port: int,
        relay_port: int,
        pids: Sequence[int],
        script: Script,
        *,
        sessions: int,
        client: str = HTTP,
        vendor: str = HTTP,
        verbatim: bool = True,
        stored: bool = True,
    ) -> None:
        self._pids = pids
        self._script = script
        self._kind, self._vendor_kind = client, vendor
        self._verbatim, self._stored = verbatim, stored
        self._poll = select.epoll()
        self._vendors: dict[int, _End] = {}
        self._clients: dict[int, _Client] = {}
        self._result = Result()
        self._until = 0.0
        self._left = 0
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)
        self._sessions = [self._connect(number, relay_port) for number in range(sessions)]

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (*self._vendors.values(), *self._clients.values()):
            end.socket.close()
        self._listener.close()
        self._poll.close()

    def run(self, *, seconds: float = 0.0, turns: int = 0) -> Result:
        """All sessions have turns for so long, or so many together; raises `LoadFailed`."""
        self._result = result = Result()
        self._until, self._left = (time.perf_counter() + seconds if seconds else 0.0), turns
        cpu, began = cpu_of(self._pids), time.perf_counter()
        for client in self._sessions:
            self._next(client)
        self._serve()
        result.seconds, result.cpu = time.perf_counter() - began, cpu_of(self._pids) - cpu
        return result

    def _serve(self) -> None:
        heard = time.perf_counter()
        while self._working():
            found = self._poll.poll(0)
            if found:
                heard = time.perf_counter()
            elif time.perf_counter() - heard > PATIENCE:
                raise LoadFailed(f"nothing has come for {PATIENCE:g} s: {self._where()}")
            for number, _ in found:
                self._ready(number)

    def _working(self) -> bool:
        """Whether an answer is still to come, or the farewell of a socket that was opened for one request."""
        if not all(client.idle for client in self._sessions):
            return True
        return self._kind == HTTP and any(vendor.upgraded for vendor in self._vendors.values())

    def _where(self) -> str:
        return ", ".join(f"{c.number}: {c.at} of {len(c.expected)}" for c in self._sessions if not c.idle)

    def _ready(self, number: int) -> None:
        if (client := self._clients.get(number)) is not None:
            self._flush(client)
            self._read_client(client)
        elif (vendor := self._vendors.get(number)) is not None:
            self._flush(vendor)
            self._read_vendor(vendor)
        elif number == self._listener.fileno():
            self._accept()

    # --- sockets ---

    def _connect(self, number: int, port: int) -> _Client:
        client = _Client(_tuned(socket.create_connection(("127.0.0.1", port))), number=number)
        if self._kind == WEBSOCKET:
            client.socket.sendall(
                b"GET /v1/responses HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                b"Authorization: Bearer %b\r\n\r\n" % CLIENT_KEY.encode()
            )
            head = client.socket.recv(READ)
            if b" 101 " not in head[:16] or not head.endswith(b"\r\n\r\n"):
                raise LoadFailed(f"no upgrade: {head[:200]!r}")
        client.socket.setblocking(False)
        self._clients[client.socket.fileno()] = client
        self._poll.register(client.socket, select.EPOLLIN)
        return client

    def _accept(self) -> None:
        accepted = _tuned(self._listener.accept()[0])
        accepted.setblocking(False)
        self._vendors[accepted.fileno()] = _End(accepted)
        self._poll.register(accepted, select.EPOLLIN)

    def _send(self, end: _End, data: bytes) -> None:
        if end.out:
            end.out += data
            return
        try:
            sent = end.socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            end.out = data[sent:]
            self._poll.modify(end.socket, select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, end: _End) -> None:
        if end.out:
            data, end.out = end.out, b""
            self._poll.modify(end.socket, select.EPOLLIN)
            self._send(end, data)

    def _read(self, end: _End) -> bytes | None:
        try:
            return end.socket.recv(READ)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    # --- the vendor ---

    def _read_vendor(self, end: _End) -> None:
        data = self._read(end)
        if data == b"":
            self._lose(end)
        elif data is not None:
            end.buffer += data
            while self._take(end):
                pass

    def _lose(self, end: _End) -> None:
        del self._vendors[end.socket.fileno()]
        end.socket.close()

    def _take(self, end: _End) -> bool:
        """One request, one upgrade or one frame; False if it is not all there."""
        if end.upgraded:
            return self._take_frame(end)
        head = end.buffer.find(b"\r\n\r\n")
        if head < 0:
            return False
        if (key := _KEY.search(end.buffer, 0, head)) is not None:
            end.upgraded, end.buffer = True, end.buffer[head + 4 :]
            accept = base64.b64encode(hashlib.sha1(key.group(1) + _MAGIC, usedforsecurity=False).digest())
            self._send(
                end,
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept,
            )
            return True
        length = _LENGTH.search(end.buffer, 0, head + 2)
        size = head + 4 + (int(length.group(1)) if length else 0)
        if len(end.buffer) < size:
            return False
        body, end.buffer = end.buffer[head + 4 : size], end.buffer[size:]
        self._asked(end, body)
        return True

    def _take_frame(self, end: _End) -> bool:
        held = end.buffer
        if len(held) < 2:
            return False
        length, at = held[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(held[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(held[2:10], "big"), 10
        size = at + 4 + length
        if len(held) < size:
            return False
        end.buffer = held[size:]
        if held[0] & 15 == 8:
            self._send(end, _GONE)
        elif held[0] & 15 == 1:
            mask = (held[at : at + 4] * (length // 4 + 1))[:length]
            clear = int.from_bytes(held[at + 4 : size], "big") ^ int.from_bytes(mask, "big")
            self._asked(end, clear.to_bytes(length, "big"))
        return True

    def _asked(self, end: _End, body: bytes) -> None:
        mark = _MARK.search(body)
        client = self._sessions[int(mark.group(1))] if mark is not None else None
        if client is None or client.idle or client.vendor is not None:
            raise LoadFailed(f"a request that nobody has sent: {body[:200]!r}")
        input_items = self._script.input.of(client.number, client.turn)
        if (body != client.asked) if self._verbatim else (b'"input":' + input_items not in body):
            raise LoadFailed(f"session {client.number}: the request was changed: {body[:200]!r}")
        client.vendor = end
        if self._vendor_kind == HTTP:
            self._tell(client, _HEAD)
        else:
            self._tell(client, b"")

    def _tell(self, client: _Client, head: bytes) -> None:
        """The events of the next step."""
        script, kind = self._script, self._vendor_kind
        events = script.steps[client.step]
        client.step += 1
        end = script.told[kind].ends[events - 1]
        data = head + client.told[client.sent : end]
        client.sent = end
        if events == script.events and kind == HTTP:
            data += b"0\r\n\r\n"
        assert client.vendor is not None
        self._send(client.vendor, data)

    # --- the clients ---

    def _next(self, client: _Client) -> None:
        """Another turn, if there is to be one."""
        client.idle = not (self._left > 0 or time.perf_counter() < self._until)
        if client.idle:
            return
        self._left -= 1
        client.turn += 1
        turn, script = (client.number, client.turn), self._script
        client.expected = script.shown[self._kind].of(*turn)
        client.told = (
            client.expected
            if self._kind == self._vendor_kind == WEBSOCKET
            else script.told[self._vendor_kind].of(*turn)
        )
        client.sent = client.step = client.at = 0
        client.vendor, client.in_body, client.left, client.first = None, False, -1, 0.0
        if self._kind == WEBSOCKET:
            data = script.create(*turn, stored=self._stored)
        else:
            client.asked = script.body(*turn, stored=self._stored)
            data = (
                b"POST /v1/responses HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
                b"Accept: text/event-stream\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
                % (CLIENT_KEY.encode(), len(client.asked), client.asked)
            )
        client.began = time.perf_counter()
        self._send(client, data)

    def _read_client(self, client: _Client) -> None:
        data = self._read(client)
        if data is None:
            return
        if not data or client.idle:
            raise LoadFailed(f"session {client.number}: closed, or more than was asked for: {data[:200]!r}")
        if self._kind == WEBSOCKET:
            over = self._shown(client, data)
        else:
            over = self._chunks(client, data)
        script = self._script
        if over:
            if client.at != len(client.expected):
                raise LoadFailed(f"session {client.number}: an answer was cut at {client.at}")
            self._result.turns += 1
            self._result.events += script.events
            self._result.first.append(client.first - client.began)
            self._next(client)
        elif client.vendor is not None and client.step < len(script.steps):
            reached = script.steps[client.step - 1]
            if client.at == script.shown[self._kind].ends[reached - 1]:
                self._tell(client, b"")

    def _chunks(self, client: _Client, data: bytes) -> bool:
        """An answer or a part of it; True at its end."""
        data = client.buffer + data if client.buffer else data
        at, client.buffer = 0, b""
        if not client.in_body:
            head = data.find(b"\r\n\r\n")
            if head < 0:
                client.buffer = data
                return False
            if not data.startswith(b"HTTP/1.1 200 ") or b"chunked" not in data[:head].lower():
                raise LoadFailed(f"session {client.number}: {data[:600]!r}")
            client.in_body, at = True, head + 4
        while at < len(data):
            if client.left > 0:
                part = data[at : at + client.left]
                self._shown(client, part)
                client.left -= len(part)
                at += len(part)
                continue
            # the line before a chunk, and the end of the one before
            start = at + 2 if client.left == 0 else at
            line = data.find(b"\r\n", start)
            if line < 0 or (data[start:line] == b"0" and len(data) < line + 4):
                client.buffer = data[at:]
                return False
            client.left, at = int(data[start:line], 16), line + 2
            if client.left == 0:
                if len(data) > at + 2:
                    raise LoadFailed(f"session {client.number}: more than an answer: {data[at : at + 200]!r}")
                return True
        return False

    def _shown(self, client: _Client, data: bytes) -> bool:
        if not client.expected.startswith(data, client.at):
            wanted = client.expected[client.at : client.at + len(data)]
            raise LoadFailed(f"session {client.number}: {data[:300]!r} where this was sent: {wanted[:300]!r}")
        client.at += len(data)
        if not client.first and client.at >= self._script.shown[self._kind].ends[self._script.first_output]:
            client.first = time.perf_counter()
        return client.at == len(client.expected)


def _tuned(end: socket.socket) -> socket.socket:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return end


def cpu_of(pids: Sequence[int]) -> float:
    """Seconds on a CPU, of all threads of these processes."""
    tasks = [path for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
