"""One connection: joins the parser to a handler, keeps the clock, and never holds more than a bounded number of bytes.

Requests are answered one after the other, each by one task. Host, Origin and the app's `precheck` are judged before
the body is read. EOF in the middle of a request means that the client has left. EOF behind a complete one may mean that
only its sending half is closed: it is answered, while the machine is asked whether the client is there at all, or a
probe finds it out within moments; if not, the handler is cancelled. A client that does not read its stream is cut; one
that sends slowly gets 408. Where the client may be sending still, the socket is half-closed and drained for a moment, or
a reset could destroy an answer, or a request that came when its time was up.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from functools import lru_cache
from math import inf
from typing import Any, Final, cast

from ..errors import HttpError, InternalError, LmError, ShuttingDown, let_go
from ..records import dataclass
from . import forwarded, guard, http1, peer
from .http1 import CONTINUE, LAST_CHUNK, Headers
from .inflate import inflate

JSON = "application/json; charset=utf-8"


@dataclass(slots=True, frozen=True)
class Limits:
    """What one client may take. Times are seconds."""

    head_s: float = 10.0
    """From a head's first byte (or the connection's start) to its end: a head fits one packet."""
    body_s: float = 30.0
    """From one piece of a body to the next."""
    idle_s: float = 5.0
    """Between requests, as LM Studio says in its Keep-Alive header."""
    grace_s: float = 5.0
    """What is waited beyond that: a client that reuses the connection in time must not meet its end on the way."""
    probe_s: float = 0.02
    """From a probe to the look at what came of it, and ..."""
    probe_again_s: float = 0.2
    """... to each further one: an answer must not be computed for long for nobody."""
    stall_s: float = 30.0
    """A reader that is this long behind has gone or does not mean it; its stream holds a place in a model."""
    linger_s: float = 2.0
    """For the client to see an answer that was given before its request was read."""
    write_buffer: int = 1 << 20
    """Bytes of a stream that a reader may be behind: minutes of generated text."""
    backlog: int = 64 << 10
    """Bytes of pipelined requests to hold while one is answered; then the socket is not read (nor its EOF seen)."""
    max_body: int = http1.MAX_BODY


USUAL: Final = Limits()


@dataclass(slots=True)
class Request:
    """Header names are in lower case; `path` is decoded, `target` as sent; `peer` is the socket's peer name. Its head comes
    first; its caller and its body are filled in, and nothing else is ever changed."""

    method: str
    target: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes | bytearray
    peer: Any
    caller: Any = None
    """Who asks, as the app found out."""
    client: str = ""
    """The address of who asks, which the peer tells if it is a trusted proxy; "" through a socket file."""


class Response:
    """The answer to one request: `whole`, or `start`, `write`..., `finish`. Writes for a client that left do nothing."""

    __slots__ = (
        "_blank",
        "_chunked",
        "_connection",
        "_send",
        "_silent",
        "began",
        "complete",
        "extra_headers",
        "keep_alive",
        "paused",
        "route",
        "started",
        "status",
    )

    def __init__(self, connection: Connection, head: http1.Head | None, began: float) -> None:
        self._connection = connection
        self.began = began
        """The loop's time when the request's head had come."""
        self.route = ""
        """What the app calls requests of this kind, once it knows."""
        self.status = 0
        """0 until an answer has begun."""
        self._send: Callable[[bytes], None] = refuse_write
        self._silent = head is not None and head.method == "HEAD"
        self._chunked = head is not None and head.http_version == "1.1"
        self._blank = b""
        self.keep_alive = head is not None and head.keep_alive
        self.extra_headers: guard.CorsHeaders = ()
        self.started = False
        self.complete = False
        self.paused = False
        """The client is a write buffer behind: `await drain()` before producing more."""

    def start(self, status: int, headers: Headers, blank: bytes = b"", first: bytes = b"") -> None:
        """Begins an answer of unknown length: chunked, or for HTTP/1.0 ended by the connection's end. `blank` is what its
        readers skip wherever it stands; it finds out whether they are there. `first` leaves in the head's packet."""
        self._blank = blank
        self._expect_unstarted()
        self.status = status
        framing = (("Transfer-Encoding", "chunked"),) if self._chunked else ()
        self.keep_alive = self.keep_alive and self._chunked
        head = http1.head(status, (*headers, *framing, *self._persistence(), *self.extra_headers))
        self.started = True
        send = self._connection.send
        send(head if self._silent else head + self._framed(first))
        self._send = ignore_write if self._silent else send

    def write(self, data: bytes) -> None:
        if data:
            self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def drain(self) -> None:
        """Returns at once, unless the client is a write buffer behind."""
        if self.paused:
            await self._connection.writable()

    def finish(self, last: bytes = b"") -> None:
        """Ends a started answer, after the bytes `last`, which leave in the same packet as the end."""
        self._send(self._framed(last) + LAST_CHUNK if self._chunked else last)
        self.complete = True
        self._send = refuse_write

    def whole(self, status: int, body: bytes, headers: Headers = (), content_type: str = JSON) -> None:
        self._expect_unstarted()
        self.status = status
        bodiless = status in http1.BODILESS
        framing = () if bodiless else (("Content-Type", content_type),)
        lines = (*framing, *headers, *self._persistence(), *self.extra_headers)
        head = http1.head(status, lines, None if bodiless else len(body))
        self.started = self.complete = True
        self._connection.send(head if self._silent or bodiless else head + body)

    def probe(self) -> None:
        """Says what a client must take and skips: before the answer an interim one, where it speaks HTTP/1.1."""
        if not self.started:
            if self._chunked:
                self._connection.send(CONTINUE)
        elif self._blank and not self.complete and not self.paused:
            self.write(self._blank)

    def _framed(self, data: bytes) -> bytes:
        return http1.chunk(data) if self._chunked else data

    def detach(self) -> None:
        """The client has left."""
        self._send = ignore_write
        self.paused = False

    def _expect_unstarted(self) -> None:
        if self.started:
            raise RuntimeError("the answer has begun already")

    def _persistence(self) -> guard.CorsHeaders:
        return self._connection.persistent if self.keep_alive else self._connection.last


def refuse_write(data: bytes) -> None:
    raise RuntimeError("the answer has not begun, or is finished")


def ignore_write(data: bytes) -> None:
    pass


Handler = Callable[[Request, Response], "Awaitable[None] | None"]
"""None where the answer was given already: what has nothing to wait for costs no task, and no turn of the loop."""
OnError = Callable[["Request | None", Exception], tuple[int, Headers, bytes]]


def no_precheck(request: Request) -> None:
    return None


def no_bookkeeping(connection: Connection) -> None:
    pass


def no_record(request: Request | None, response: Response) -> None:
    pass


@dataclass(slots=True, frozen=True)
class Hooks:
    """What a connection asks of the app; one for all connections."""

    handler: Handler
    on_error: OnError
    """Spells an error that nothing was sent for yet, as (status, headers, JSON). The request is None where it never
    became clear. Exceptions other than LmError are bugs: they are its to log."""
    precheck: Callable[[Request], Any] = no_precheck
    """Called with a request whose body (b"") was not read; an exception refuses it. What it returns is the caller."""
    on_open: Callable[[Connection], None] = no_bookkeeping
    on_close: Callable[[Connection], None] = no_bookkeeping
    """Called once the connection is lost and its handler has ended."""
    on_answer: Callable[[Request | None, Response], None] = no_record
    """Called once per request, when its answer has ended, was cut, or nobody is there to have it."""


ANSWERS_PER_TURN = 16
"""That are given at once to requests which came together: a packet has room for thousands, and others want their turn, too."""


def settle(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


async def refuse_later(refusal: Exception) -> None:
    await asyncio.sleep(refusal.wait_s if isinstance(refusal, HttpError) else 0)
    raise refusal


def is_compressed(request: Request) -> bool:
    return request.headers.get("content-encoding", "identity").lower() != "identity"


class Phase(Enum):
    OPENING = auto()  # nothing received yet
    HEAD = auto()  # part of a head received
    BODY = auto()  # part of a body received
    BUSY = auto()  # a handler runs
    FLUSHING = auto()  # answered, but the client is a write buffer behind
    IDLE = auto()  # between requests
    LINGERING = auto()  # our side is ended, theirs is read and dropped
    CLOSING = auto()  # the transport sends what it has, then closes


NO_MORE_REQUESTS = frozenset((Phase.LINGERING, Phase.CLOSING))


@lru_cache(maxsize=8)  # a server's connections have the same
def times(limits: Limits) -> Mapping[Phase, float]:
    """How long each phase may last."""
    return {
        Phase.OPENING: limits.head_s,
        Phase.HEAD: limits.head_s,
        Phase.BODY: limits.body_s,
        Phase.BUSY: inf,
        Phase.FLUSHING: limits.stall_s,
        Phase.IDLE: limits.idle_s + limits.grace_s,
        Phase.LINGERING: limits.linger_s,
        Phase.CLOSING: limits.stall_s,
    }


class Connection(asyncio.Protocol):
    def __init__(
        self,
        hooks: Hooks,
        policy: guard.Policy,
        limits: Limits = USUAL,
        loop: asyncio.AbstractEventLoop | None = None,
        headers: Headers = (),
    ) -> None:
        """`headers` are those of every answer."""
        # for the connection's life
        self._hooks = hooks
        self._policy = policy
        self._limits = limits
        self._loop = loop or asyncio.get_running_loop()
        self._parser = http1.Parser(limits.max_body)
        self._transport: asyncio.Transport
        self.send: Callable[[bytes], None] = refuse_write
        self._peer: Any = None
        self._secure = False  # it speaks TLS
        self.persistent = (("Connection", "keep-alive"), ("Keep-Alive", f"timeout={limits.idle_s:.0f}"), *headers)
        self.last = (("Connection", "close"), *headers)
        self._times = times(limits)
        self._phase = Phase.OPENING
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._lost = False
        self._half_closed = False  # the client sends no more, but may be reading
        self._next_look: asyncio.TimerHandle | None = None  # at whether it does
        self._reading = True
        self._writable: asyncio.Event | None = None  # there while the write buffer is above its high-water mark
        self._unsent = 0  # bytes in the write buffer when progress was last looked for
        # for one request
        self._client = ""
        self._request: Request | None = None  # read up to its head at least; None while its handler runs
        self._body = bytearray()
        self._response: Response | None = None
        self._refusal: Exception | None = None
        self._task: asyncio.Future[None] | None = None
        self._n_this_turn = 0  # answers given within one turn of the loop

    # ---- for the server

    @property
    def busy(self) -> bool:
        """A handler runs."""
        return self._task is not None

    def retire(self) -> None:
        """Closes after the next answer, which says so: its client loses no request."""
        self._stopping = True
        if self._response is not None:
            self._response.keep_alive = False

    def shutdown(self) -> None:
        """No further requests: closes now, or after the answer that is under way."""
        self.retire()
        if self._task is None and self._phase not in NO_MORE_REQUESTS:
            self._close(unread=False)

    def cancel(self) -> None:
        """Cancels the handler; a client that was sent nothing yet gets ShuttingDown, another sees its answer cut."""
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """Ends the connection now, whatever it was about to send."""
        self._abort()

    # ---- for the response

    async def writable(self) -> None:
        if self._writable is not None:
            await self._writable.wait()

    # ---- asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # by what it does: not every loop's has this base
        self.send = self._transport.write
        self._peer = transport.get_extra_info("peername")
        self._secure = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer)
        self._enter(Phase.OPENING)
        self._hooks.on_open(self)

    def data_received(self, data: bytes) -> None:
        if self._phase in NO_MORE_REQUESTS:
            return
        self._n_this_turn = 0
        self._parser.feed(data)
        if self._phase is Phase.BUSY or self._phase is Phase.FLUSHING:
            if self._parser.buffered > self._limits.backlog:
                self._reading = False
                self._transport.pause_reading()
        else:
            self._read()

    def eof_received(self) -> bool:
        """False: the transport then closes itself, after sending what it has."""
        if self._phase is Phase.BUSY or self._phase is Phase.FLUSHING:
            self._half_closed = True
            self._probe()
            return True
        self._unsent = self._transport.get_write_buffer_size()
        self._enter(Phase.CLOSING)
        self._abandon()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._phase = Phase.CLOSING
        for timer in (self._timer, self._next_look):
            if timer is not None:
                timer.cancel()
        if self._task is None:
            self._response = None  # which refers to this one: no circle is left for the collector
            self._hooks.on_close(self)
        else:
            self._abandon()

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()
        if self._response is not None:
            self._response.paused = True
        if self._phase is Phase.BUSY:
            self._expect_within(self._limits.stall_s)

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None
        if self._response is not None:
            self._response.paused = False
        if self._phase is Phase.BUSY:
            self._expect_within(inf)
        elif self._phase is Phase.FLUSHING:
            self._enter(Phase.IDLE)
            self._n_this_turn = 0
            self._read()

    # ---- requests

    def _read(self) -> None:
        """Takes events up to the next complete request, then leaves the rest in the parser until it is answered."""
        try:
            while (event := self._parser.next_event()) is not None:
                match event:
                    case http1.Data(data=data):
                        self._body += data
                    case http1.End():
                        if not self._dispatch():
                            return
                    case http1.Head():
                        self._admit(event)
        except Exception as error:  # noqa: BLE001 - the app's precheck may raise anything
            self._refuse(error)
            return
        self._resume_reading()
        if self._request is not None:
            self._enter(Phase.BODY)
        elif not self._parser.between_requests and self._phase is not Phase.HEAD:
            self._enter(Phase.HEAD)

    def _admit(self, head: http1.Head) -> None:
        """Judges a request by its head. Raises what refuses it, or keeps that for its end where it has no body."""
        asking = forwarded.look(self._policy.proxies, self._peer, head.headers, self._secure)
        self._client = asking.client
        self._request = request = self._bodyless(head)
        self._response = response = Response(self, head, self._loop.time())
        try:
            response.extra_headers = guard.check(self._policy, asking.headers, head.has_body, asking.secure)
            request.caller = self._hooks.precheck(request)
        except Exception as error:
            if head.has_body:
                raise
            self._refusal = error
            if isinstance(error, HttpError) and error.status == 400:
                response.keep_alive = False  # as after all that was not understood
        if head.expect_continue and head.has_body and not self._parser.buffered:
            self.send(CONTINUE)

    def _bodyless(self, head: http1.Head) -> Request:
        return Request(head.method, head.target, head.path, head.query, head.headers, b"", self._peer, None, self._client)

    def _dispatch(self) -> bool:
        """Hands the complete request to the handler; True if it is answered already and the next one can be read."""
        request, response, refusal = self._request, self._response, self._refusal
        assert request is not None and response is not None
        if self._body:
            request.body = self._body  # a copy of a large one would stop the loop for a while
            self._body = bytearray()
        self._request = self._refusal = None
        if self._stopping:
            response.keep_alive = False
        self._n_this_turn += 1
        if self._n_this_turn <= ANSWERS_PER_TURN and not (isinstance(refusal, HttpError) and refusal.wait_s):
            if refusal is not None:
                return self._settle(request, response, refusal)
            if not is_compressed(request):
                try:
                    work = self._hooks.handler(request, response)
                except Exception as error:  # noqa: BLE001 - as from a task
                    return self._settle(request, response, error)
                if work is None:
                    return self._settle(request, response, None)
                return self._begin(work, request, response)
        return self._begin(refuse_later(refusal) if refusal else self._handle_later(request, response), request, response)

    def _begin(self, work: Awaitable[None], request: Request, response: Response) -> bool:
        self._enter(Phase.BUSY)
        self._task = asyncio.ensure_future(work, loop=self._loop)
        self._task.add_done_callback(lambda task: self._answered(task, request, response))
        return False

    async def _handle_later(self, request: Request, response: Response) -> None:
        if is_compressed(request):
            request.body = await asyncio.to_thread(inflate, request.body, self._limits.max_body)
        work = self._hooks.handler(request, response)
        if work is not None:
            await work

    def _refuse(self, error: Exception) -> None:
        """Answers a request that cannot or need not be read to its end, as the last one of this connection."""
        if isinstance(error, HttpError) and error.wait_s:
            self._enter(Phase.BUSY)
            self._task = waiting = self._loop.create_future()
            timer = self._loop.call_later(error.wait_s, settle, waiting)
            waiting.add_done_callback(lambda _: timer.cancel())
            waiting.add_done_callback(lambda _: self._refuse_after(waiting, error))
        else:
            self._refuse_now(error)

    def _refuse_after(self, waiting: asyncio.Future[None], error: Exception) -> None:
        self._task = None
        if self._phase is not Phase.CLOSING:
            self._refuse_now(ShuttingDown() if waiting.cancelled() else error)
            return
        response, self._response = self._response, None
        assert response is not None
        self._hooks.on_answer(self._request, response)
        if self._lost:
            self._hooks.on_close(self)

    def _refuse_now(self, error: Exception) -> None:
        head = self._parser.head
        request = self._request or (None if head is None else self._bodyless(head))
        response = self._response or Response(self, head, self._loop.time())
        response.keep_alive = False
        self._spell_error(response, request, error)
        let_go(error)
        self._hooks.on_answer(request, response)
        self._close(unread=not self._parser.has_all)

    # ---- answers

    def _answered(self, task: asyncio.Future[None], request: Request, response: Response) -> None:
        self._task = None
        failure = ShuttingDown() if task.cancelled() else task.exception()
        if self._phase is Phase.CLOSING:
            self._report(None if task.cancelled() else failure)
            let_go(failure)
            self._response = None
            self._hooks.on_answer(request, response)
            if self._lost:
                self._hooks.on_close(self)
            return
        self._n_this_turn = 0
        if self._settle(request, response, failure):
            self._read()

    def _settle(self, request: Request, response: Response, failure: BaseException | None) -> bool:
        """The handler has ended, as `failure` says; True if the next request can be read."""
        if failure is None and not response.complete:
            failure = RuntimeError(f"the handler of {request.method} {request.path} left its answer unfinished")
        if failure is not None and not response.started:
            self._spell_error(response, request, failure if isinstance(failure, Exception) else InternalError())
        else:
            self._report(failure)
        let_go(failure)
        self._hooks.on_answer(request, response)
        if response.complete:
            return self._after_answer(response)
        self._abort()
        return False

    def _after_answer(self, response: Response) -> bool:
        """Leaves the connection as the answer promised; True if the next request can be read."""
        self._response = None
        if not response.keep_alive or (self._half_closed and not self._parser.buffered):
            self._close(unread=self._parser.buffered > 0 and not self._half_closed)
            return False
        if self._writable is not None:
            self._unsent = self._transport.get_write_buffer_size()
            self._enter(Phase.FLUSHING)
            return False
        self._enter(Phase.IDLE)
        return True

    def _spell_error(self, response: Response, request: Request | None, error: Exception) -> None:
        try:
            status, headers, body = self._hooks.on_error(request, error)
            response.whole(status, body, headers)
        except Exception as bug:  # noqa: BLE001 - the last line of defence: nothing is left that could be said
            self._report(bug)
            self._abort()

    def _report(self, failure: BaseException | None) -> None:
        """Bugs go where asyncio's own go; errors that were raised on purpose, after the answer began, say nothing new."""
        if failure is not None and not isinstance(failure, LmError):
            context = {"message": "a request's handler failed", "exception": failure, "protocol": self}
            self._loop.call_exception_handler(context)

    # ---- a client that sends no more: is it there?

    def _probe(self) -> None:
        """A client that has left resets the connection when it is sent something; whom this machine knows is sent nothing."""
        held = self._held()
        if held is None and self._response is not None:
            self._response.probe()
        self._look_again(held, self._limits.probe_s)

    def _look(self) -> None:
        if self._phase is not Phase.CLOSING:
            self._look_again(self._held(), self._limits.probe_again_s)

    def _look_again(self, held: bool | None, after_s: float) -> None:
        if held is False:
            self._abort()
        else:
            self._next_look = self._loop.call_later(after_s, self._look)

    def _held(self) -> bool | None:
        """Whether the client is there; None while that is unknown."""
        sock = self._transport.get_extra_info("socket")
        if sock is None:
            return None
        return False if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else peer.is_held(sock)

    # ---- the end

    def _close(self, unread: bool) -> None:
        if self._phase is Phase.CLOSING:
            return
        if unread and self._transport.can_write_eof() and not self._transport.is_closing():
            self._enter(Phase.LINGERING)
            self._resume_reading()
            self._transport.write_eof()
        else:
            self._unsent = self._transport.get_write_buffer_size()
            self._enter(Phase.CLOSING)
            self._transport.close()

    def _abort(self) -> None:
        self._enter(Phase.CLOSING)
        self._abandon()
        self._transport.abort()

    def _abandon(self) -> None:
        """The client has left: nobody waits for the answer."""
        if self._response is not None:
            self._response.detach()
        if self._task is not None:
            self._task.cancel()

    def _resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    # ---- the clock: one timer per connection, moved only when a deadline comes nearer than it

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._expect_within(self._times[phase])

    def _expect_within(self, seconds: float) -> None:
        if seconds == inf or self._lost:
            self._deadline = inf
            return
        self._deadline = deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline <= self._loop.time():
            self._expire()
        elif self._deadline < inf:
            self._timer = self._loop.call_at(self._deadline, self._tick)

    def _expire(self) -> None:
        match self._phase:
            case Phase.HEAD | Phase.BODY:
                self._refuse(HttpError(408, "the request came too slowly"))
            case Phase.IDLE:
                self._close(unread=True)  # a request may be on its way
            case Phase.OPENING | Phase.LINGERING:
                self._close(unread=False)
            case Phase.BUSY:
                self._abort()
            case Phase.FLUSHING | Phase.CLOSING:
                unsent = self._transport.get_write_buffer_size()
                if unsent < self._unsent:
                    self._unsent = unsent
                    self._enter(self._phase)
                else:
                    self._abort()
