"""A connection without a socket: a loop whose clock stands still until it is moved, and a transport made of lists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from lmlite.errors import LmError
from lmlite.wire.connection import Connection, Handler, Hooks, Limits, Request, Response
from lmlite.wire.guard import Policy
from lmlite.wire.http1 import Headers

POLICY = Policy.of(["127.0.0.1"])
DEFAULT = Limits()
PEER = ("127.0.0.1", 50000)


class StillLoop(asyncio.SelectorEventLoop):
    """Timers fire when `advance` says so."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Runs until all that can happen now has happened."""

        async def turns() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self.run_until_complete(turns())

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.settle()


class FakeSocket:
    """The one question that is asked of it: `error` is what the peer's reset left there."""

    error = 0

    def getsockopt(self, level: int, name: int) -> int:
        return self.error


class FakeTransport(asyncio.Transport):
    """`taken` is what the client has read. While `stuck`, it reads nothing and bytes stay in the write buffer."""

    def __init__(self, loop: StillLoop) -> None:
        self.socket = FakeSocket()
        super().__init__({"peername": PEER, "socket": self.socket})
        self.loop = loop
        self.protocol: Connection
        self.taken = b""
        self.writes: list[bytes] = []
        self.stuck = False
        self.reading = True
        self.ended = False  # write_eof
        self.closing = False
        self.aborted = False
        self.lost = False
        self._buffer = b""
        self._high = 0
        self._paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "written after write_eof"
        self.writes.append(bytes(data))
        self._buffer += bytes(data)
        if not self.stuck:
            self.take(len(self._buffer))
        elif len(self._buffer) > self._high and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def take(self, count: int) -> None:
        """The client reads some bytes."""
        self.taken, self._buffer = self.taken + self._buffer[:count], self._buffer[count:]
        if self._paused and len(self._buffer) <= self._high // 4:
            self._paused = False
            self.protocol.resume_writing()
        self._end_if_flushed()

    def _end_if_flushed(self) -> None:
        if self.closing and not self._buffer and not self.lost:
            self.lost = True
            self.loop.call_soon(self.protocol.connection_lost, None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or 0

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        self._end_if_flushed()

    def abort(self) -> None:
        self.aborted = self.closing = True
        self._buffer = b""
        self._end_if_flushed()

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


def spell_error(request: Request | None, error: Exception) -> tuple[int, Headers, bytes]:
    status = error.status if isinstance(error, LmError) else 500
    path = None if request is None else request.path
    return status, (), json.dumps({"error": type(error).__name__, "path": path}).encode()


async def echo(request: Request, response: Response) -> None:
    response.whole(200, f"{request.method} {request.target} {request.body.decode()}".encode())


class Client:
    """The client's end of one connection, and what the app saw."""

    def __init__(
        self,
        handler: Handler = echo,
        limits: Limits = DEFAULT,
        policy: Policy = POLICY,
        precheck: Callable[[Request], None] = lambda request: None,
        on_error: Any = spell_error,
    ) -> None:
        self.loop = StillLoop()
        self.bugs: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.bugs.append(context))
        self.handled: list[Request] = []
        self.prechecked: list[Request] = []
        self.cancelled: list[str] = []
        self.opened = self.closed = 0

        def observed(request: Request, response: Response) -> Awaitable[None] | None:
            self.handled.append(request)
            work = handler(request, response)
            return None if work is None else watched(work, request)

        async def watched(work: Awaitable[None], request: Request) -> None:
            try:
                await work
            except asyncio.CancelledError:
                self.cancelled.append(request.target)
                raise

        def check(request: Request) -> None:
            self.prechecked.append(replace(request))
            precheck(request)

        def count_open(connection: Connection) -> None:
            self.opened += 1

        def count_close(connection: Connection) -> None:
            self.closed += 1

        hooks = Hooks(observed, on_error, check, count_open, count_close)
        self.connection = Connection(hooks, policy, limits, self.loop)
        self.transport = FakeTransport(self.loop)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    def send(self, data: bytes, *, settle: bool = True) -> bytes:
        """What the server answered to `data` so far."""
        before = len(self.transport.taken)
        self.connection.data_received(data)
        if settle:
            self.loop.settle()
        return self.transport.taken[before:]

    def send_eof(self) -> None:
        """As asyncio does: the transport closes itself where `eof_received` does not return True."""
        if not self.connection.eof_received():
            self.transport.close()
        self.loop.settle()

    def close(self) -> None:
        """The whole connection: EOF, and a reset as soon as something comes."""
        self.send_eof()
        self.transport.socket.error = 104
        self.loop.advance(0.05)

    def lose(self) -> None:
        self.transport.closing = self.transport.lost = True
        self.connection.connection_lost(ConnectionResetError())
        self.loop.settle()

    def end(self) -> None:
        """What must be true after every test: the connection ends once, and leaves no task, timer or bug behind."""
        if not self.transport.lost:
            self.lose()
        self.loop.settle()
        assert (self.opened, self.closed) == (1, 1)
        assert self.bugs == []
        assert not asyncio.all_tasks(self.loop)
        assert [timer for timer in self.loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]
        self.loop.close()


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post(target: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answers(raw: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and decoded body of each answer; fails on bytes that are none."""
    found = []
    while raw:
        head, separator, raw = raw.partition(b"\r\n\r\n")
        assert separator, head
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body, raw = dechunk(raw)
        else:
            length = int(headers.get("content-length", 0))
            body, raw = raw[:length], raw[length:]
            assert len(body) == length
        found.append((int(status), headers, body))
    return found


def dechunk(raw: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line, 16)
        body, ending, raw = body + raw[:size], raw[size : size + 2], raw[size + 2 :]
        assert ending == b"\r\n"
        if not size:
            return body, raw
