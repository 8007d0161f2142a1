"""One engine's socket: commands go out, each frame that comes goes to its request, and the end is noticed.

No request hangs: each ends with its answer, with an `LmError`, or, if the engine dies, babbles or falls silent, with
`EngineGone`. A request whose caller leaves is cancelled in the engine too, without waiting for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar, cast

from ...errors import EngineGone, LmError
from ...messages import MediaPart
from .frames import HEADER, MAX_PAYLOAD, Kind, pack
from .payloads import MALFORMED, read_error, read_object
from .worker import Placement

HANG_S: Final = 60.0
"""An engine with work pending says something each second; one that is silent this long will not speak again."""
STEP_MS: Final = 60_000.0
"""The longest believable decode step: a full batch of a large model on a slow machine takes seconds."""
PREPARE_MS: Final = 10_000.0
"""The budget of a template, tokenizer or grammar; some inputs keep one busy for ever (hostile, or unlucky)."""
BUFFER_SIZE: Final = 64 << 10
"""Holds what a decode step of many streams says. It is kept, because asyncio's own way allocates 256 KiB for each read,
whose page faults cost more than all else that happens to a token here."""
PIECE: Final = 128 << 10
PIECES: Final = 8
"""What of a large frame is written at once, and in one turn of the loop: a millisecond."""
FATE_S: Final = 0.5
"""A dying process closes its socket a moment before it can be asked how it died."""

# Plain ints and bound methods: this is the path of every token.
_HEADER_SIZE: Final = HEADER.size
_unpack_header: Final = HEADER.unpack_from
_HEARTBEAT: Final = int(Kind.HEARTBEAT)
_ERROR: Final = int(Kind.ERROR)
_JUDGED: Final = frozenset((Kind.GENERATE, Kind.EMBED, Kind.RERANK, Kind.TOKENIZE, Kind.DETOKENIZE, Kind.RENDER))
"""Commands with something of a client's inside, which may be what an engine ends of."""
_FINAL: Final = frozenset(
    map(int, (Kind.LOADED, Kind.ESTIMATED, Kind.FINISHED, Kind.TOKENS, Kind.RESULT, Kind.REPORT, Kind.ERROR))
)

T = TypeVar("T")


class Clock(Protocol):
    """The part of an event loop that tells and keeps time; a test brings its own."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> asyncio.TimerHandle | Timer: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


class Sink(Protocol):
    @property
    def speaks(self) -> bool:
        """What was asked has been taken in: its answer comes."""
        ...

    def frame(self, kind: int, payload: bytes) -> None:
        """Raises one of `MALFORMED` for a frame that this request cannot have."""
        ...

    def fail(self, error: LmError) -> None: ...


class Waiting(Sink, Protocol[T]):
    future: asyncio.Future[T]


class Abandoned:
    """A request whose caller has left; it stays known until the engine has ended it."""

    __slots__ = ()
    speaks = False

    def frame(self, kind: int, payload: bytes) -> None:
        pass

    def fail(self, error: LmError) -> None:
        pass


class Line(asyncio.BufferedProtocol):
    """The near end of the socket: sends commands, hands each frame to its request's sink, notices the end.

    It ends once, in one of three ways: the far end closes (the placement knows why), the line condemns it (silence,
    nonsense), or `close`.
    """

    def __init__(
        self,
        name: str,
        placement: Placement,
        clock: Clock,
        on_gone: Callable[[], None] | None,
        judge: Callable[[int], None] | None = None,
        verdict: Callable[[], Awaitable[LmError | None]] | None = None,
    ):
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.gone: str | None = None
        self._last_word: LmError | None = None  # for requests that come when `gone` is known
        self._placement, self._clock, self._on_gone, self._judge = placement, clock, on_gone, judge
        self._verdict = verdict
        self._transport: asyncio.Transport | None = None
        # requests
        self._sinks: dict[int, Sink] = {}
        self._marks: dict[int, int] = {}  # of what clients asked, by the same ids
        self._last_id = 0
        self._deferred: list[Callable[[], None]] = []
        # what is still to be written, once something large is
        self._unsent: deque[memoryview] = deque()
        self._held_up = self._pumping = False
        # what has arrived and is not handed out: less than one frame, which needs so many bytes
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._filled = 0
        self._need = _HEADER_SIZE
        # life and death
        self._heard_at = 0.0
        self._watch_timer: asyncio.TimerHandle | Timer | None = None
        self._ended = False
        self._burial: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # by what it does: not every loop's has this base

    @property
    def pid(self) -> int | None:
        return self._placement.pid

    # -- requests

    def send(self, kind: Kind, payload: bytes, sink: Sink, media: Sequence[MediaPart] = ()) -> int:
        """Sends a command, and before it the `media` that it speaks of; its events go to `sink`. Returns its request id."""
        if self.gone is not None:
            raise self._last_word or EngineGone(self.name, self.gone)
        mark = None
        if kind in _JUDGED:
            mark = hash((payload, *(part.digest for part in media))) if media else hash(payload)
        if mark is not None and self._judge is not None:
            self._judge(mark)
        request_id = self._next_id()
        if self._ended or self._transport is None:
            self._sinks[request_id] = sink  # fails when the reason is known
            return request_id
        if not self._sinks:
            self._heard_at = self._clock.time()
        self._sinks[request_id] = sink
        if mark is not None:
            self._marks[request_id] = mark
        if self._watch_timer is None:
            self._watch_timer = self._clock.call_later(HANG_S, self._watch)
        for part in media:
            self._write(HEADER.pack(len(part.data), Kind.MEDIA, request_id))
            self._write(part.data)
        self._write(pack(kind, request_id, payload))
        return request_id

    async def ask(self, kind: Kind, payload: bytes, reply: Waiting[T], media: Sequence[MediaPart] = ()) -> T:
        """Sends a command as `send` does and waits for its one answer."""
        request_id = self.send(kind, payload, reply, media)
        try:
            return await reply.future
        finally:
            self.leave(request_id, reply)

    def leave(self, request_id: int, sink: Sink, heir: Sink | None = None) -> None:
        """Cancels the request in the engine, unless it has ended. Never waits; what still comes goes to `heir`."""
        if self._sinks.get(request_id) is sink:
            self._sinks[request_id] = heir or Abandoned()
            if self._transport is not None and not self._ended:
                self._write(pack(Kind.CANCEL, request_id))

    def pending(self) -> Iterable[Sink]:
        """Whose requests have not ended; those of callers that left among them."""
        return self._sinks.values()

    def suspects(self) -> frozenset[int]:
        """The marks of those requests of which the engine may have ended, if it has ended now: of those that it had not
        taken in yet, because most that does harm does it there; if there are none, of all."""
        unheard = frozenset(mark for id, mark in self._marks.items() if not self._sinks[id].speaks)
        return unheard or frozenset(self._marks.values())

    def defer(self, call: Callable[[], None]) -> None:
        """For sinks: runs `call` once all frames of this read are handed out."""
        self._deferred.append(call)

    def _run_deferred(self) -> None:
        calls, self._deferred = self._deferred, []
        for call in calls:
            call()

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % 0xFFFFFFFF + 1  # u32; 0 means no request
            if self._last_id not in self._sinks:
                return self._last_id

    # -- what goes out

    def _write(self, data: bytes) -> None:
        """Whole frames follow each other. Of what is large a piece goes out at a time: the transport would copy all of it,
        which takes 30 ms for 20 MB, and everybody else's frames would wait."""
        assert self._transport is not None
        if not self._unsent and len(data) <= PIECE:
            self._transport.write(data)
            return
        self._unsent.append(memoryview(data))
        if not self._pumping and not self._held_up:
            self._pump()

    def _pump(self) -> None:
        """For a moment; then the loop has its turn."""
        self._pumping = False
        for _ in range(PIECES):
            if not self._unsent or self._held_up or self._ended or self._transport is None:
                return
            first = self._unsent[0]
            self._transport.write(first[:PIECE])
            if len(first) > PIECE:
                self._unsent[0] = first[PIECE:]
            else:
                self._unsent.popleft()
        if self._unsent:
            self._pumping = True
            self.loop.call_soon(self._pump)

    def pause_writing(self) -> None:
        """The engine does not read as fast."""
        self._held_up = True

    def resume_writing(self) -> None:
        self._held_up = False
        if self._unsent and not self._pumping:
            self._pump()

    # -- frames

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :] if self._filled else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_at = self._clock.time()
        self._filled += nbytes
        if self._filled < self._need or self._ended:
            return
        try:
            used = self._dispatch(self._buffer[: self._filled])
        except MALFORMED:
            self._condemn("it sent a malformed frame")
        else:
            self._filled -= used
            if self._filled or len(self._buffer) != BUFFER_SIZE:
                self._keep(self._buffer[used : used + self._filled])
        if self._deferred:
            self._run_deferred()

    def _keep(self, rest: memoryview) -> None:
        """Moves the part of a frame that has arrived to the front of a buffer that can hold the whole."""
        size = max(self._need, BUFFER_SIZE)
        if size != len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        self._buffer[: len(rest)] = rest  # a move: the two may overlap

    def _dispatch(self, data: memoryview) -> int:
        """Hands out the whole frames in `data`; returns the bytes that they took, and notes how many the next needs."""
        used, available = 0, len(data)
        while available - used >= _HEADER_SIZE:
            length, kind, request_id = _unpack_header(data, used)
            start = used + _HEADER_SIZE
            end = start + length
            if end > available:
                if length > MAX_PAYLOAD:
                    raise ValueError(f"a frame of {length} bytes")
                self._need = end - used
                return used
            used = end
            sink = self._sinks.get(request_id)
            payload = bytes(data[start:end])
            if sink is None:
                self._unclaimed(kind, request_id, payload)
                if self._ended:
                    return available
            elif kind in _FINAL:
                self._finish(sink, kind, request_id, payload)
            else:
                sink.frame(kind, payload)
        self._need = _HEADER_SIZE
        return used

    def _finish(self, sink: Sink, kind: int, request_id: int, payload: bytes) -> None:
        if kind == _ERROR:
            sink.fail(read_error(self.name, payload))
        else:
            sink.frame(kind, payload)
        del self._sinks[request_id]  # not before: if the frame is malformed, this request fails with the others
        self._marks.pop(request_id, None)

    def _unclaimed(self, kind: int, request_id: int, payload: bytes) -> None:
        if kind == _HEARTBEAT and request_id == 0:
            beat = read_object(payload)
            if float(beat["prepare_ms"]) > PREPARE_MS:
                self._condemn("preparation took too long")
            elif float(beat["step_ms"]) > STEP_MS:
                self._condemn("hung")
        elif request_id == 0 or request_id > self._last_id:
            raise ValueError(f"kind {kind} for nobody")

    # -- life and death

    def _watch(self) -> None:
        """One timer, alive only while requests are: it costs a frame nothing but the note of its time."""
        self._watch_timer = None
        if self._ended or not self._sinks:
            return
        left = self._heard_at + HANG_S - self._clock.time()
        if left <= 0:
            self._condemn("hung")
        else:
            self._watch_timer = self._clock.call_later(left, self._watch)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended:
            self._end()
            self._burial = self.loop.create_task(self._bury_the_dead())

    def _condemn(self, reason: str) -> None:
        """The engine lives but is of no use: its requests fail now, and it is killed where that can be done."""
        if not self._ended:
            self._end()
            self.gone = reason
            self._fail_all(EngineGone(self.name, reason))
            self._placement.kill()
            self._burial = self.loop.create_task(self._placement.close())

    async def close(self, error: LmError | None) -> None:
        if not self._ended:
            self._on_gone = None
            self._end()
            self.gone = "unloaded"
            self._last_word = error
            self._fail_all(error or EngineGone(self.name, self.gone))
            self._burial = self.loop.create_task(self._placement.close())
        if self._burial is not None:
            await asyncio.shield(self._burial)

    def _end(self) -> None:
        self._ended = True
        self._unsent.clear()
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if self._transport is not None:
            self._transport.abort()  # not `close`: an engine that does not read would keep what is buffered for ever
        if self._on_gone is not None:
            self._on_gone()

    async def _bury_the_dead(self) -> None:
        """The far end has closed. Its requests learn why, which a process can tell a moment later."""
        if not await self._placement.wait(FATE_S):
            self._placement.kill()
        fate = self._placement.fate() or "it closed its socket"
        self._last_word = await self._verdict() if self._verdict is not None else None
        self.gone = fate
        self._fail_all(self._last_word or EngineGone(self.name, fate))
        await self._placement.close()

    def _fail_all(self, error: LmError) -> None:
        sinks, self._sinks = self._sinks, {}
        self._marks.clear()
        for sink in sinks.values():
            sink.fail(error)
        self._run_deferred()
