"""The asyncio client of one engine: commands out, typed answers in, over one end of a socketpair.

No request hangs: each ends with its answer, with an `LmError`, or, if the engine dies, babbles or falls silent, with
`EngineGone`. A request that its caller leaves (early exit, cancelled task) is cancelled in the engine too, without
waiting for it. `Line` knows frames, requests and death; `Engine` knows what the frames mean (csrc/protocol.md).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar, get_args

from ..errors import (
    ContextOverflow,
    EngineError,
    EngineGone,
    InvalidRequest,
    LmError,
    LoadFailed,
    QueueFull,
    WrongModelType,
)
from ..events import Event, Finished, PromptProgress, Stats, StopReason, TextDelta, TokenLogprob, TopToken
from ..request import Chat, Embed, Embedding, Generate, Sampling, Text, Tokens
from .frames import HEADER, MAX_PAYLOAD, Kind, pack
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
FATE_S: Final = 0.5
"""A dying process closes its socket a moment before it can be asked how it died."""
LOGPROB_FLOOR: Final = -9999.0
"""Stands for a probability of zero, whose logarithm JSON cannot say; the value that OpenAI's API uses too."""

# Plain ints and bound methods: this is the path of every token.
_HEADER_SIZE: Final = HEADER.size
_unpack_header: Final = HEADER.unpack_from
_TEXT: Final = int(Kind.TEXT)
_HEARTBEAT: Final = int(Kind.HEARTBEAT)
_ERROR: Final = int(Kind.ERROR)
_FINAL: Final = frozenset(map(int, (Kind.LOADED, Kind.FINISHED, Kind.TOKENS, Kind.RESULT, Kind.REPORT, Kind.ERROR)))
_MALFORMED: Final = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError)
"""What reading a payload raises when it is not what the protocol says."""

T = TypeVar("T")


class Clock(Protocol):
    """The part of an event loop that tells and keeps time; a test brings its own."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> asyncio.TimerHandle | Timer: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


# ---- what an engine is told and what it reports ----------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class LoadSettings:
    """How models are loaded; zeros and None leave the choice to the engine (csrc/protocol.md, LOAD)."""

    context_length: int = 4096  # tokens; 0: what the model was trained for
    parallel: int = 4
    kv_cells: int = 0
    eval_batch_size: int = 512
    threads: int = 0
    gpu_layers: int = -1  # -1: all that fit
    flash_attention: bool | None = None


@dataclass(slots=True, frozen=True)
class LoadSpec:
    """`paths` is the model's file, or all its split parts in order."""

    paths: tuple[Path, ...]
    settings: LoadSettings = LoadSettings()
    vocab_only: bool = False


@dataclass(slots=True, frozen=True)
class Loaded:
    """The effective settings and the facts of the model, as the engine reported them."""

    type: str  # "llm", "embedding", "vocab"
    arch: str
    context_length: int
    train_context_length: int
    parallel: int
    kv_cells: int
    eval_batch_size: int
    flash_attention: bool
    gpu_layers: int
    n_params: int
    n_embd: int
    vocab_size: int
    size_bytes: int
    load_ms: float
    has_chat_template: bool
    runtime_name: str
    runtime_version: str


@dataclass(slots=True, frozen=True)
class Report:
    """The engine's counters: the first four of this moment, the rest since the load."""

    running: int
    queued: int
    cells: int
    cells_used: int
    decode_steps: int
    decoded_tokens: int
    prompt_tokens: int
    cached_tokens: int


# ---- the engine ------------------------------------------------------------------------------------------------------


class Engine:
    """One engine; `open` it, `load` once, then any number of requests at once, then `close`. For one event loop.

    Every method that asks the engine something raises `EngineGone` if it is, or goes meanwhile.
    """

    def __init__(self, line: Line):
        self._line = line

    @classmethod
    async def open(
        cls,
        placement: Placement,
        name: str,
        *,
        clock: Clock | None = None,
        on_gone: Callable[[], None] | None = None,
    ) -> Engine:
        """Starts an engine for the model `name`. `on_gone` is called once if it ends before it is closed, at the
        first sign of that; `gone` tells the reason when it is known. Raises OSError or `BuildError`."""
        loop = asyncio.get_running_loop()
        sock = await placement.start()
        try:
            line = Line(name, placement, clock or loop, on_gone)
            await loop.create_connection(lambda: line, sock=sock)
        except BaseException:
            sock.close()
            placement.kill()
            raise
        return cls(line)

    @property
    def name(self) -> str:
        return self._line.name

    @property
    def gone(self) -> str | None:
        """Why the engine is of no use any more; None while it lives."""
        return self._line.gone

    async def load(self, spec: LoadSpec, on_progress: Callable[[float], None] | None = None) -> Loaded:
        """`on_progress` gets fractions 0..1. Raises `LoadFailed`. A load is given up by closing the engine."""
        return await self._line.ask(Kind.LOAD, encode(load_object(spec)), _Load(on_progress))

    def run(self, generate: Generate) -> Run:
        """Starts when it is first iterated over. See `Run`."""
        return Run(self._line, generate)

    async def embed(self, embed: Embed) -> list[Embedding]:
        """One vector per input, in order. Raises `ContextOverflow` with the index of an input that is too long."""
        payload = encode({"inputs": [text if isinstance(text, str) else list(text) for text in embed.inputs]})
        return await self._line.ask(Kind.EMBED, payload, _Vectors(len(embed.inputs)))

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        """The ids, and the exact bytes of each."""
        payload = encode({"text": text, "add_special": add_special, "parse_special": parse_special})
        return await self._line.ask(Kind.TOKENIZE, payload, _Answer(Kind.TOKENS, read_tokens))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._line.ask(Kind.DETOKENIZE, encode({"tokens": list(ids)}), _Answer(Kind.RESULT, read_text))

    async def render(self, chat: Chat) -> str:
        """The prompt that the model's template makes of `chat`."""
        return await self._line.ask(Kind.RENDER, encode(chat_object(chat)), _Answer(Kind.RESULT, read_text))

    async def stats(self) -> Report:
        return await self._line.ask(Kind.STATS, b"", _Answer(Kind.REPORT, read_report))

    async def close(self, error: LmError | None = None) -> None:
        """Ends the engine, and its requests with `error`; returns when its memory is free."""
        await self._line.close(error)


class Run:
    """The events of one `Generate`, ending with `Finished` or an `LmError`. Iterate once, over this or over `batches`.

    Leaving early cancels the request. A loop that is left by `break` leaves its iterator to the garbage collector;
    `contextlib.aclosing(run.batches())` makes the moment exact.
    """

    __slots__ = ("_generate", "_line")

    def __init__(self, line: Line, generate: Generate):
        self._line, self._generate = line, generate

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """All that has arrived since the last batch, never empty; texts that arrived together are one `TextDelta`."""
        line = self._line
        stream = _Stream(line.loop)
        request_id = line.send(Kind.GENERATE, encode(generate_object(self._generate)), stream)
        try:
            while not stream.over:
                arrival = stream.arrival()
                if arrival is not None:
                    await arrival
                if batch := stream.take():
                    yield batch
            if stream.error is not None:
                raise stream.error
        finally:
            line.leave(request_id, stream)

    async def __aiter__(self) -> AsyncIterator[Event]:
        batches = self.batches()
        try:
            async for batch in batches:
                for event in batch:
                    yield event
        finally:
            await batches.aclose()  # now, not when it is collected


# ---- sinks: where the frames of one request go -----------------------------------------------------------------------


class _Sink(Protocol):
    def frame(self, kind: int, payload: bytes) -> None:
        """Raises one of `_MALFORMED` for a frame that this request cannot have."""
        ...

    def fail(self, error: LmError) -> None: ...


class _Reply(_Sink, Protocol[T]):
    future: asyncio.Future[T]


class _Abandoned:
    """A request whose caller has left; it stays known until the engine has ended it."""

    __slots__ = ()

    def frame(self, kind: int, payload: bytes) -> None:
        pass

    def fail(self, error: LmError) -> None:
        pass


class _Answer(Generic[T]):
    """One frame of one kind."""

    __slots__ = ("_kind", "_read", "future")

    def __init__(self, kind: Kind, read: Callable[[bytes], T]):
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._kind, self._read = kind, read

    def frame(self, kind: int, payload: bytes) -> None:
        if kind != self._kind:
            raise ValueError(f"kind {kind}")
        answer = self._read(payload)
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: LmError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Load(_Answer[Loaded]):
    __slots__ = ("_on_progress",)

    def __init__(self, on_progress: Callable[[float], None] | None):
        super().__init__(Kind.LOADED, read_loaded)
        self._on_progress = on_progress

    def frame(self, kind: int, payload: bytes) -> None:
        if kind != Kind.LOAD_PROGRESS:
            super().frame(kind, payload)
            return
        fraction = float(read_object(payload)["progress"])
        if self._on_progress is not None:
            self._on_progress(min(max(fraction, 0.0), 1.0))


class _Vectors(_Answer[list[Embedding]]):
    __slots__ = ("_expected", "_vectors")

    def __init__(self, expected: int):
        super().__init__(Kind.FINISHED, self._join)
        self._expected = expected
        self._vectors: list[bytes] = []

    def frame(self, kind: int, payload: bytes) -> None:
        if kind != Kind.EMBEDDING:
            super().frame(kind, payload)
            return
        if not payload or len(payload) % 4 or len(self._vectors) == self._expected:
            raise ValueError("not a vector that was asked for")
        self._vectors.append(payload)

    def _join(self, payload: bytes) -> list[Embedding]:
        counts = read_object(payload)["prompt_tokens"]
        if not len(counts) == len(self._vectors) == self._expected:
            raise ValueError("another number of vectors than inputs")
        return [Embedding(vector, int(count)) for vector, count in zip(self._vectors, counts, strict=True)]


class _Stream:
    """The events of one generation, between the arrival of their frames and the moment their reader runs."""

    __slots__ = ("_ahead", "_arrival", "_events", "_logprobs", "_loop", "_text", "ended", "error")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._events: list[Event] = []
        self._text: list[bytes] = []  # of the delta that is still open
        self._logprobs: list[TokenLogprob] = []  # of the same delta
        self._ahead: list[TokenLogprob] = []  # of tokens whose text has not come yet
        self._arrival: asyncio.Future[None] | None = None
        self.error: LmError | None = None
        self.ended = False

    # the connection's side

    def frame(self, kind: int, payload: bytes) -> None:
        if kind == _TEXT:
            self._text.append(payload)
            if self._ahead:
                self._logprobs += self._ahead
                self._ahead.clear()
        elif kind == Kind.LOGPROBS:
            self._ahead += read_logprobs(payload)
            return  # nothing to see before its text
        elif kind == Kind.PROMPT_PROGRESS:
            progress = read_object(payload)
            self._close_delta()
            self._events.append(PromptProgress(int(progress["done"]), int(progress["total"])))
        elif kind == Kind.FINISHED:
            finished = read_finished(payload)
            self._logprobs += self._ahead  # tokens that never made a text, or one that was cut
            self._close_delta()
            self._events.append(finished)
            self.ended = True
        else:
            raise ValueError(f"kind {kind}")
        self._wake()

    def fail(self, error: LmError) -> None:
        self.error, self.ended = error, True
        self._wake()

    def _wake(self) -> None:
        arrival = self._arrival
        if arrival is not None:
            self._arrival = None
            if not arrival.done():
                arrival.set_result(None)

    # the reader's side

    @property
    def over(self) -> bool:
        """Nothing is left to take, nor to wait for."""
        return self.ended and not self._text and not self._events

    def arrival(self) -> asyncio.Future[None] | None:
        """What to await before there is something to take; None if there is something, or the end."""
        if self._text or self._events or self.ended:
            return None
        self._arrival = self._loop.create_future()
        return self._arrival

    def take(self) -> list[Event]:
        self._close_delta()
        events, self._events = self._events, []
        return events

    def _close_delta(self) -> None:
        if self._text or self._logprobs:
            text = b"".join(self._text).decode("utf-8", "replace")
            self._events.append(TextDelta(text, tuple(self._logprobs)))
            self._text.clear()
            self._logprobs.clear()


# ---- the line: frames, requests, death -------------------------------------------------------------------------------


class Line(asyncio.BufferedProtocol):
    """The near end of the socket: sends commands, hands each frame to its request's sink, notices the end.

    It ends once, in one of three ways: the far end closes (the placement knows why), the line condemns it (silence,
    nonsense), or `close`.
    """

    def __init__(self, name: str, placement: Placement, clock: Clock, on_gone: Callable[[], None] | None):
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.gone: str | None = None
        self._placement, self._clock, self._on_gone = placement, clock, on_gone
        self._transport: asyncio.Transport | None = None
        # requests
        self._sinks: dict[int, _Sink] = {}
        self._last_id = 0
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
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    # -- requests

    def send(self, kind: Kind, payload: bytes, sink: _Sink) -> int:
        """Sends a command whose events go to `sink`; returns its request id."""
        if self.gone is not None:
            raise EngineGone(self.name, self.gone)
        request_id = self._next_id()
        if self._ended or self._transport is None:
            self._sinks[request_id] = sink  # fails when the reason is known
            return request_id
        if not self._sinks:
            self._heard_at = self._clock.time()
        self._sinks[request_id] = sink
        if self._watch_timer is None:
            self._watch_timer = self._clock.call_later(HANG_S, self._watch)
        self._transport.write(pack(kind, request_id, payload))
        return request_id

    async def ask(self, kind: Kind, payload: bytes, reply: _Reply[T]) -> T:
        """Sends a command and waits for its one answer."""
        request_id = self.send(kind, payload, reply)
        try:
            return await reply.future
        finally:
            self.leave(request_id, reply)

    def leave(self, request_id: int, sink: _Sink) -> None:
        """Cancels the request in the engine, unless it has ended. Never waits."""
        if self._sinks.get(request_id) is sink:
            self._sinks[request_id] = _Abandoned()
            if self._transport is not None and not self._ended:
                self._transport.write(pack(Kind.CANCEL, request_id))

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % 0xFFFFFFFF + 1  # u32; 0 means no request
            if self._last_id not in self._sinks:
                return self._last_id

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
        except _MALFORMED:
            self._condemn("it sent a malformed frame")
        else:
            self._filled -= used
            if self._filled or len(self._buffer) != BUFFER_SIZE:
                self._keep(self._buffer[used : used + self._filled])

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

    def _finish(self, sink: _Sink, kind: int, request_id: int, payload: bytes) -> None:
        if kind == _ERROR:
            sink.fail(read_error(self.name, payload))
        else:
            sink.frame(kind, payload)
        del self._sinks[request_id]  # not before: if the frame is malformed, this request fails with the others

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
            self._fail_all(error or EngineGone(self.name, self.gone))
            self._burial = self.loop.create_task(self._placement.close())
        if self._burial is not None:
            await asyncio.shield(self._burial)

    def _end(self) -> None:
        self._ended = True
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
        self.gone = self._placement.fate() or "it closed its socket"
        self._fail_all(EngineGone(self.name, self.gone))
        await self._placement.close()

    def _fail_all(self, error: LmError) -> None:
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.fail(error)


# ---- commands as JSON ------------------------------------------------------------------------------------------------


def encode(command: Mapping[str, Any]) -> bytes:
    """Raises `InvalidRequest` for what no frame can carry: lone surrogates, numbers that are not finite, sheer size."""
    try:
        payload = json.dumps(command, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("text is not valid Unicode") from None
    except (ValueError, RecursionError):
        raise InvalidRequest("a value is not a finite number, or is nested too deeply") from None
    if len(payload) > MAX_PAYLOAD:
        raise InvalidRequest(f"the request is larger than {MAX_PAYLOAD} bytes")
    return payload


def load_object(spec: LoadSpec) -> dict[str, Any]:
    settings = {field.name: getattr(spec.settings, field.name) for field in fields(LoadSettings)}
    command = {"path": str(spec.paths[0]), **settings, "vocab_only": spec.vocab_only}
    if len(spec.paths) > 1:
        command["splits"] = [str(path) for path in spec.paths]
    return command


def chat_object(chat: Chat) -> dict[str, Any]:
    return {"messages": [dict(message) for message in chat.messages], "template_kwargs": dict(chat.template_kwargs)}


def sampling_object(sampling: Sampling) -> dict[str, Any]:
    return {
        **{field.name: getattr(sampling, field.name) for field in fields(Sampling)},
        "logit_bias": [[token, None if bias == float("-inf") else bias] for token, bias in sampling.logit_bias],
    }


def generate_object(generate: Generate) -> dict[str, Any]:
    match generate.prompt:
        case Chat() as chat:
            prompt = chat_object(chat)
        case Text(text):
            prompt = {"text": text}
        case Tokens(ids):
            prompt = {"tokens": ids}
    grammar = generate.grammar
    return {
        **prompt,
        "max_tokens": generate.max_tokens,
        "stop": generate.stop,
        "echo": generate.echo,
        "ignore_eos": generate.ignore_eos,
        "top_logprobs": generate.top_logprobs,
        **({"grammar": {"kind": grammar.kind, "text": grammar.text}} if grammar else {}),
        "sampling": sampling_object(generate.sampling),
    }


# ---- payloads as values; each raises one of _MALFORMED for what the protocol does not allow --------------------------


def read_object(payload: bytes) -> dict[str, Any]:
    value = json.loads(payload)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def read_text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace")


def read_tokens(payload: bytes) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    value = read_object(payload)
    return tuple(map(int, value["tokens"])), tuple(map(bytes, value["pieces"]))


def read_loaded(payload: bytes) -> Loaded:
    value = read_object(payload)
    return Loaded(
        type=str(value["type"]),
        arch=str(value["arch"]),
        context_length=int(value["context_length"]),
        train_context_length=int(value["train_context_length"]),
        parallel=int(value["parallel"]),
        kv_cells=int(value["kv_cells"]),
        eval_batch_size=int(value["eval_batch_size"]),
        flash_attention=bool(value["flash_attention"]),
        gpu_layers=int(value["gpu_layers"]),
        n_params=int(value["n_params"]),
        n_embd=int(value["n_embd"]),
        vocab_size=int(value["vocab_size"]),
        size_bytes=int(value["size_bytes"]),
        load_ms=float(value["load_ms"]),
        has_chat_template=bool(value["has_chat_template"]),
        runtime_name=str(value["runtime"]["name"]),
        runtime_version=str(value["runtime"]["version"]),
    )


def read_report(payload: bytes) -> Report:
    value = read_object(payload)
    return Report(**{field.name: int(value[field.name]) for field in fields(Report)})


def read_logprobs(payload: bytes) -> list[TokenLogprob]:
    found = []
    for token in read_object(payload)["tokens"]:
        raw = bytes(token["b"])
        top = tuple(TopToken(read_text(piece), piece, read_logprob(p)) for piece, p in read_top(token["top"]))
        found.append(TokenLogprob(read_text(raw), raw, read_logprob(token["p"]), top))
    return found


def read_top(pairs: list[Any]) -> list[tuple[bytes, float | None]]:
    return [(bytes(piece), logprob) for piece, logprob in pairs]


def read_logprob(value: float | None) -> float:
    return LOGPROB_FLOOR if value is None else max(float(value), LOGPROB_FLOOR)


def read_finished(payload: bytes) -> Finished:
    value = read_object(payload)
    reason: StopReason = value["reason"]
    if reason not in get_args(StopReason):
        raise ValueError(f"stop reason {reason!r}")
    stop_string = value["stop_string"]
    stats = Stats(
        prompt_tokens=int(value["prompt_tokens"]),
        cached_tokens=int(value["cached_tokens"]),
        generated_tokens=int(value["generated_tokens"]),
        queue_ms=float(value["queue_ms"]),
        first_token_ms=float(value["first_token_ms"]),
        generation_ms=float(value["generation_ms"]),
    )
    return Finished(reason, stats, None if stop_string is None else str(stop_string))


# -- errors: the engine's code chooses the class


def _context_overflow(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    index = details.get("index")
    return ContextOverflow(int(details["needed"]), int(details["limit"]), None if index is None else int(index))


def _queue_full(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return QueueFull(int(details["limit"]))


def _load_failed(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return LoadFailed(name, message)


def _model_type(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return WrongModelType(name, str(details["needs"]))


def _invalid_request(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    param = details.get("param")
    return InvalidRequest(message, None if param is None else str(param))


def _out_of_memory(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return EngineError("out_of_memory", message, status=503)


def _internal(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return EngineError("internal", message)


_ERRORS: Final[Mapping[str, Callable[[str, str, Mapping[str, Any]], LmError]]] = {
    "context_overflow": _context_overflow,
    "queue_full": _queue_full,
    "load_failed": _load_failed,
    "model_type": _model_type,
    "invalid_request": _invalid_request,
    "out_of_memory": _out_of_memory,
    "internal": _internal,
}


def read_error(name: str, payload: bytes) -> LmError:
    """A code that is not in the table is no error of this protocol."""
    value = read_object(payload)
    details = value.get("details") or {}
    if not isinstance(details, dict):
        raise TypeError("details are not an object")
    return _ERRORS[value["code"]](name, str(value["message"]), details)
