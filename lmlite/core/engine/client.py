"""The asyncio client of one engine: requests as methods, what its frames mean as values and events.

The socket, the requests' ends and the engine's death are `line.Line`'s work; the payloads are `payloads`'.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from ...beside import beside
from ...errors import LmError, MediaRefused
from ...events import (
    Event,
    Finished,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    TextDelta,
    TextEnd,
    TextStart,
    TokenLogprob,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from ...forks import KEPT_FROM_CHILDREN
from ...messages import MediaPart
from ...records import dataclass
from ...request import Chat, Embed, Embedding, Generate, Grammar, Prompt, Rerank, Score
from .frames import Kind
from .line import Abandoned, Clock, Line
from .payloads import (
    INLINE_BYTES_MAX,
    Loaded,
    LoadSpec,
    Measured,
    Report,
    chat_object,
    choice_object,
    embed_object,
    encode,
    generate_object,
    grammar_object,
    is_large,
    load_object,
    media_files,
    paths_object,
    read_counted,
    read_estimated,
    read_finished,
    read_loaded,
    read_logprobs,
    read_notice,
    read_object,
    read_progress,
    read_report,
    read_score,
    read_text,
    read_tokens,
    read_tool_call,
)
from .tool_names import given_names
from .webp import WebP
from .worker import Placement

log = logging.getLogger(__name__)

_TEXT: Final = int(Kind.TEXT)
_REASONING: Final = int(Kind.REASONING)
_TOOL_CALL: Final = int(Kind.TOOL_CALL)

DIGEST_BYTES_MAX: Final = 1 << 20
"""Media up to here are digested at once: within two milliseconds."""

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Work:
    """The runs that an engine has, and whether any of them is past its prompt."""

    n_runs: int
    generates: bool


class Engine:
    """One engine; `open` it, `load` once, then any number of requests at once, then `close`. For one event loop.

    Every method that asks the engine something raises `EngineGone` if it is, or goes meanwhile.
    """

    def __init__(self, line: Line):
        self._line = line
        self._webp = WebP()

    @classmethod
    async def open(
        cls,
        placement: Placement,
        name: str,
        *,
        clock: Clock | None = None,
        on_gone: Callable[[], None] | None = None,
        judge: Callable[[int], None] | None = None,
        verdict: Callable[[], Awaitable[LmError | None]] | None = None,
    ) -> Engine:
        """Starts an engine for the model `name`. `on_gone` is called once if it ends before it is closed, at the
        first sign of that; `gone` tells the reason when it is known. `judge` gets a mark of each request of a client, which
        equal ones share, before it is sent, and may raise. `verdict` is what its requests are told instead of `EngineGone`, if
        it knows better. Raises OSError or `BuildError`."""
        loop = asyncio.get_running_loop()
        sock = KEPT_FROM_CHILDREN.include(await placement.start())
        try:
            line = Line(name, placement, clock or loop, on_gone, judge, verdict)
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

    @property
    def pid(self) -> int | None:
        """Of the process that it runs in; None: this one."""
        return self._line.pid

    def suspects(self) -> frozenset[int]:
        """For `on_gone`: the marks of the requests of which it may have ended."""
        return self._line.suspects()

    def work(self) -> Work:
        """What there is to do at this moment."""
        runs = [sink.speaks for sink in self._line.pending() if isinstance(sink, (_Stream, _Rows))]
        return Work(len(runs), any(runs))

    async def load(self, spec: LoadSpec, on_progress: Callable[[float], None] | None = None) -> Loaded:
        """`on_progress` gets fractions 0..1. Raises `LoadFailed`. A load is given up by closing the engine."""
        return await self._line.ask(Kind.LOAD, encode(load_object(spec)), _Load(on_progress))

    async def measure(self, spec: LoadSpec) -> Measured:
        """What `load` would take, without taking it; for an engine without a model. Raises as `load` does."""
        payload = encode(load_object(spec))
        return await self._line.ask(Kind.ESTIMATE, payload, _Answer(Kind.ESTIMATED, read_estimated))

    async def attach_draft(self, paths: Sequence[Path], host_memory: int = 0) -> None:
        """The model at `paths` (its file, or all split parts) drafts for this one from now on, instead of any before;
        `host_memory` as in `LoadSpec`.
        Raises `InvalidRequest` if it cannot for this model, `LoadFailed` if its file is refused. Cancelling gives up the
        load; whether the old one still drafts is then unknown."""
        payload = encode({**paths_object(paths), "host_memory": host_memory})
        await self._line.ask(Kind.ATTACH_DRAFT, payload, _Answer(Kind.RESULT, read_text))

    def run(self, generate: Generate, on_finished: Callable[[Finished], None] | None = None) -> Run:
        """Starts when it is first iterated over. See `Run`. `on_finished` is told the end of a run that does not fail, and
        also of one that was left, once the engine has ended it."""
        return Run(self._line, generate, on_finished, self._webp)

    async def embed(self, embed: Embed) -> list[Embedding]:
        """One vector per input, in order. Raises `ContextOverflow` with the index of an input that is too long."""
        payload = await written(sum(map(len, embed.inputs)) > INLINE_BYTES_MAX, lambda: embed_object(embed))
        return await self._line.ask(Kind.EMBED, payload, _Rows(len(embed.inputs), Embedding))

    async def rerank(self, rerank: Rerank) -> list[Score]:
        """One score per document, in order. Raises `ContextOverflow` with the index of a document that is too long."""
        command = {"query": rerank.query, "documents": list(rerank.documents)}
        n_chars = len(rerank.query) + sum(map(len, rerank.documents))
        payload = await written(n_chars > INLINE_BYTES_MAX, lambda: command)
        return await self._line.ask(Kind.RERANK, payload, _Rows(len(rerank.documents), read_score))

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        """The ids, and the exact bytes of each."""
        command = {"text": text, "add_special": add_special, "parse_special": parse_special}
        payload = await written(len(text) > INLINE_BYTES_MAX, lambda: command)
        return await self._line.ask(Kind.TOKENIZE, payload, _Answer(Kind.TOKENS, read_tokens))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._line.ask(Kind.DETOKENIZE, encode({"tokens": list(ids)}), _Answer(Kind.RESULT, read_text))

    async def render(self, chat: Chat) -> str:
        """The prompt that the model's template makes of `chat`."""
        return await self._render(chat, choice_object(chat), read_text)

    async def count(self, chat: Chat, grammar: Grammar | None = None, large: bool = False) -> tuple[str, int]:
        """The prompt of a generation by that grammar, and how many tokens it is, even if they are too many; `large` as in
        `Generate`. Raises `ContextOverflow` for far too many."""
        rules = {**choice_object(chat), **grammar_object(grammar), "count": True}
        return await self._render(chat, rules, read_counted, large)

    async def _render(self, chat: Chat, rules: Mapping[str, Any], read: Callable[[bytes], T], large: bool = False) -> T:
        payload, media = await written_with_media(chat, lambda: {**chat_object(chat), **rules}, self._webp, large)
        try:
            return await self._line.ask(Kind.RENDER, payload, _Answer(Kind.RESULT, read), media)
        except MediaRefused as error:
            raise placed(error, media) from None

    async def stats(self) -> Report:
        return await self._line.ask(Kind.STATS, b"", _Answer(Kind.REPORT, read_report))

    async def close(self, error: LmError | None = None) -> None:
        """Ends the engine, and its requests with `error`; returns when its memory is free."""
        await self._line.close(error)


async def written(large: bool, command: Callable[[], Mapping[str, Any]]) -> bytes:
    """The payload of a command: a large one is written in a thread, where the loop can come between its steps."""
    return await beside(lambda: encode(command(), in_steps=large), large)


async def written_with_media(
    prompt: Prompt, command: Callable[[], Mapping[str, Any]], webp: WebP, large: bool
) -> tuple[bytes, tuple[MediaPart, ...]]:
    """The payload of a command about `prompt`, and the media that belong to it, whose digests are known then."""
    media = await webp.replaced(media_files(prompt))
    if sum(len(part.data) for part in media) > DIGEST_BYTES_MAX:
        await asyncio.to_thread(lambda: [part.digest for part in media])
    return await written(large or is_large(prompt), command), media


def placed(error: Exception, media: Sequence[MediaPart]) -> Exception:
    """An error of the engine's, told of the place that the medium has in its request."""
    if isinstance(error, MediaRefused) and error.index < len(media):
        return error.at(media[error.index].where)
    return error


class Run:
    """The events of one `Generate`, ending with `Finished` or an `LmError`. Use once: iterate over this or over
    `batches`, or `feed` them.

    Leaving early cancels the request. A loop that is left by `break` leaves its iterator to the garbage collector;
    `contextlib.aclosing(run.batches())` makes the moment exact.
    """

    __slots__ = ("_generate", "_line", "_names", "_on_finished", "_webp")

    def __init__(
        self, line: Line, generate: Generate, on_finished: Callable[[Finished], None] | None, webp: WebP
    ):
        self._line, self._generate, self._on_finished, self._webp = line, generate, on_finished, webp
        self._names = given_names(generate.prompt.tools) if isinstance(generate.prompt, Chat) else {}

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """All that has arrived since the last batch, never empty; texts that arrived together are one `TextDelta`, and so
        with the other deltas."""
        line = self._line
        stream = _Stream(line, self._generate.whole, self._names, self._on_finished)
        generate = self._generate
        command = partial(generate_object, generate)
        payload, media = await written_with_media(generate.prompt, command, self._webp, generate.large)
        request_id = line.send(Kind.GENERATE, payload, stream, media)
        try:
            while not stream.over:
                arrival = stream.arrival()
                if arrival is not None:
                    await arrival
                if batch := stream.take():
                    yield batch
            if stream.error is not None:
                raise placed(stream.take_error(), media)
        finally:
            line.leave(request_id, stream, self._heir())

    async def feed(self, take: Callable[[list[Event]], bool], drained: Callable[[], Awaitable[None]]) -> None:
        """The same batches, each handed to `take` in the very turn of the loop that read it, without a task in between.

        `take` returns whether it can take more; if not, what comes is kept until `drained` has returned. Returns after
        the last batch.
        """
        line = self._line
        stream = _Stream(line, self._generate.whole, self._names, self._on_finished, take)
        generate = self._generate
        command = partial(generate_object, generate)
        payload, media = await written_with_media(generate.prompt, command, self._webp, generate.large)
        request_id = line.send(Kind.GENERATE, payload, stream, media)
        try:
            while not stream.over:
                await stream.halt()
                if stream.held:
                    await drained()
                    stream.release()
            if stream.error is not None:
                raise placed(stream.take_error(), media)
        finally:
            line.leave(request_id, stream, self._heir())

    def _heir(self) -> _Left | None:
        return None if self._on_finished is None else _Left(self._line.name, self._names, self._on_finished)

    async def __aiter__(self) -> AsyncIterator[Event]:
        batches = self.batches()
        try:
            async for batch in batches:
                for event in batch:
                    yield event
        finally:
            await batches.aclose()  # now, not when it is collected


# ---- sinks: where the frames of one request go -----------------------------------------------------------------------


class _Answer(Generic[T]):
    """One frame of one kind."""

    __slots__ = ("_kind", "_read", "future")
    speaks = False  # until it is answered, which is the end of it

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


class _Rows(_Answer[list[T]]):
    """One frame per input, then their token counts; `make` makes an answer of a frame and its count."""

    __slots__ = ("_expected", "_make", "_rows")

    def __init__(self, expected: int, make: Callable[[bytes, int], T]):
        super().__init__(Kind.FINISHED, self._join)
        self._expected, self._make = expected, make
        self._rows: list[bytes] = []

    def frame(self, kind: int, payload: bytes) -> None:
        if kind != Kind.EMBEDDING:
            super().frame(kind, payload)
            return
        if not payload or len(self._rows) == self._expected:
            raise ValueError("not a row that was asked for")
        self._rows.append(payload)

    def _join(self, payload: bytes) -> list[T]:
        counts = read_object(payload)["prompt_tokens"]
        if not len(counts) == len(self._rows) == self._expected:
            raise ValueError("another number of rows than inputs")
        return [self._make(row, int(count)) for row, count in zip(self._rows, counts, strict=True)]


class _Left(Abandoned):
    """A generation whose reader has left: what it had cost is still told."""

    __slots__ = ("_name", "_names", "_on_finished")

    def __init__(self, name: str, names: Mapping[str, str], on_finished: Callable[[Finished], None]):
        self._name, self._names, self._on_finished = name, names, on_finished

    def frame(self, kind: int, payload: bytes) -> None:
        if kind == Kind.FINISHED:
            finished = read_finished(payload, self._names)
            tell_loosened(self._name, finished)
            self._on_finished(finished)


def tell_loosened(name: str, finished: Finished) -> None:
    for tool in finished.loosened:
        log.warning("%s: the schema of tool %s has parts that no grammar can be made of; calls may stray from it", name, tool)


class _Stream:
    """The events of one generation, between the arrival of their frames and the moment their reader takes them.

    The reader either waits for an `arrival`, or is called: `take` gets each read's events at its end.
    """

    __slots__ = ("_ahead", "_arrival", "_deferred", "_events", "_line", "_logprobs", "_n_calls", "_names", "_on_finished",
                 "_open", "_prompted", "_take", "_text", "_whole", "ended", "error", "held")  # fmt: skip

    def __init__(
        self,
        line: Line,
        whole: bool,
        names: Mapping[str, str],
        on_finished: Callable[[Finished], None] | None,
        take: Callable[[list[Event]], bool] | None = None,
    ):
        self._line, self._whole, self._on_finished, self._take = line, whole, on_finished, take
        self._names = names  # those that the client gave to tools, by what stands for them
        self._events: list[Event] = []
        self._open = 0  # the kind of the part that is open; 0: there was none
        self._text: list[bytes] = []  # of its last delta, which may still grow
        self._logprobs: list[TokenLogprob] = []  # of the same delta, if it is of the content
        self._ahead: list[TokenLogprob] = []  # of the content's tokens whose text has not come yet
        self._n_calls = 0
        self._arrival: asyncio.Future[None] | None = None
        self._deferred = False
        self._prompted = False
        self.error: Exception | None = None
        self.ended = False
        self.held = False

    # the connection's side

    def frame(self, kind: int, payload: bytes) -> None:
        if kind == _TEXT:
            if self._open != _TEXT:
                self._begin_part(_TEXT)
            self._text.append(payload)
            if self._ahead:
                self._logprobs += self._ahead
                self._ahead.clear()
        elif kind == _REASONING:
            if self._open != _REASONING:
                self._begin_part(_REASONING)
            self._text.append(payload)
        elif kind == _TOOL_CALL:
            self._call_tool(*read_tool_call(payload))
        elif kind == Kind.LOGPROBS:
            self._ahead += read_logprobs(payload)
            return  # nothing to see before its text
        elif kind == Kind.PROMPT_PROGRESS:
            progress = read_progress(payload)
            self._prompted = progress.done >= progress.total
            if self._whole:
                return  # for `speaks` alone
            self._close_delta()
            self._events.append(progress)
        elif kind == Kind.NOTICE:
            notice = read_notice(payload)
            for part in notice.unenforced:
                log.warning("%s: the schema of an answer has a part that is not enforced: %s", self._line.name, part)
            self._events.append(notice)
        elif kind == Kind.FINISHED:
            finished = read_finished(payload, self._names)
            tell_loosened(self._line.name, finished)
            if self._ahead and self._open in (0, _TEXT):  # of tokens that never made a text, or one that was cut
                if not self._open:
                    self._begin_part(_TEXT)
                self._logprobs += self._ahead
            self._end_part()
            self._events.append(finished)
            self.ended = True
            if self._on_finished is not None:
                self._on_finished(finished)
        else:
            raise ValueError(f"kind {kind}")
        self._notify()

    def _call_tool(self, index: int, name: str | None, arguments: str) -> None:
        if index != (self._n_calls - 1 if name is None else self._n_calls):
            raise ValueError(f"tool call {index} out of turn")
        if name is not None:
            self._begin_part(_TOOL_CALL)
            self._n_calls += 1
            self._events.append(ToolCallStart(index, self._names.get(name, name)))
        elif self._open != _TOOL_CALL:
            raise ValueError(f"arguments of tool call {index} after its end")
        if arguments:
            self._text.append(arguments.encode())

    def fail(self, error: LmError) -> None:
        self.error, self.ended = error, True
        self._notify()

    def _notify(self) -> None:
        if self._take is None:
            self._wake()
        elif not self._deferred:
            self._deferred = True
            self._line.defer(self._deliver)

    def _deliver(self) -> None:
        self._deferred = False
        if self._take is not None and not self.held and (self._text or self._events):
            try:
                self.held = not self._take(self.take())
            except Exception as error:  # noqa: BLE001 - the reader's own fault, and nobody else's
                self.error, self.ended = error, True
                self.take()
        if self.held or self.ended:
            self._wake()

    def _wake(self) -> None:
        arrival = self._arrival
        if arrival is not None:
            self._arrival = None
            if not arrival.done():
                arrival.set_result(None)

    # the reader's side

    @property
    def speaks(self) -> bool:
        """The prompt is done."""
        return self._prompted or self._open != 0

    @property
    def over(self) -> bool:
        """Nothing is left to take, nor to wait for."""
        return self.ended and not self._text and not self._events

    def arrival(self) -> asyncio.Future[None] | None:
        """What to await before there is something to take; None if there is something, or the end."""
        if self._text or self._events or self.ended:
            return None
        self._arrival = self._line.loop.create_future()
        return self._arrival

    def take_error(self) -> Exception:
        """To be raised: it will hold a frame that holds this, and must not be held by it."""
        error, self.error = self.error, None
        assert error is not None
        return error

    async def halt(self) -> None:
        """Returns when the reader cannot take more, or nothing more comes."""
        if not self.held and not self.ended:
            self._arrival = self._line.loop.create_future()
            await self._arrival

    def release(self) -> None:
        """The reader can take again, and gets what was kept."""
        self.held = False
        self._deliver()

    def take(self) -> list[Event]:
        self._close_delta()
        events, self._events = self._events, []
        return events

    def _begin_part(self, kind: int) -> None:
        """A tool call's start is told by who knows its name."""
        self._end_part()
        self._open = kind
        if kind == _TEXT:
            self._events.append(TextStart())
        elif kind == _REASONING:
            self._events.append(ReasoningStart())

    def _end_part(self) -> None:
        self._close_delta()
        if self._open == _TEXT:
            self._events.append(TextEnd())
        elif self._open == _REASONING:
            self._events.append(ReasoningEnd())
        elif self._open == _TOOL_CALL:
            self._events.append(ToolCallEnd(self._n_calls - 1))

    def _close_delta(self) -> None:
        if self._text or self._logprobs:
            text = b"".join(self._text).decode("utf-8", "replace")
            if self._open == _TEXT:
                self._events.append(TextDelta(text, tuple(self._logprobs)))
            elif self._open == _REASONING:
                self._events.append(ReasoningDelta(text))
            else:
                self._events.append(ToolCallArguments(self._n_calls - 1, text))
            self._text.clear()
            self._logprobs.clear()
