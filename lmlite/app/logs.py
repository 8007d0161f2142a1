"""What models are told and say, and what the server and its engines log, to whoever listens right now.

Nothing is kept and nothing is written to a file: prompts and answers go to listeners only, and where nobody listens they
are not even put together. A listener that is slower than what it hears loses lines and is told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from ..errors import LmError
from ..events import Event, Finished, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from ..request import Chat, Generate, Infill, Prompt, Text, Tokens

if TYPE_CHECKING:
    from ..card import Instance, Runtime
    from ..core.engine.client import Engine

log = logging.getLogger(__name__)

Source = Literal["model", "server", "runtime"]

HELD_MAX: Final = 4 << 20
"""Characters that one listener may be behind: some prompts of a long context each."""
KEEP_ALIVE_S: Final = 15.0
"""A silent stream shows this often that it lives; proxies cut those that do not after a minute."""
PACKAGE: Final = __name__.rpartition(".")[0].rpartition(".")[0]
"""This package's logger, also where it lives under another name."""
LEVELS: Final[Mapping[str, str]] = {"WARNING": "warn", "CRITICAL": "error"}
"""LM Studio's words for levels, where they are not those of `logging` in lower case."""
ENGINE_TYPE: Final = "llama.cpp"

PREDICTIONS: Final[Mapping[str, str]] = {"input": "llm.prediction.input", "output": "llm.prediction.output"}


async def keep(logs: Logs) -> None:
    """Writes what models are told and say into the server's log, as its owner asked for, until the server stops."""
    with logs.listen("model", frozenset(PREDICTIONS.values()), stats=True) as listener:
        while not listener.closed:
            for line in await listener.take(KEEP_ALIVE_S):
                log.info("%s", line)


# ---- listeners -------------------------------------------------------------------------------------------------------


class Listener:
    """One stream's lines, from the moment they are told to the moment they are taken."""

    def __init__(self, source: Source, types: frozenset[str], stats: bool):
        self.source, self.types, self.stats = source, types, stats
        self.closed = False
        self._lines: deque[str] = deque()
        self._held = 0
        self._lost = 0
        self._told = asyncio.Event()

    def tell(self, line: str) -> None:
        if self._lost or (self._held and self._held + len(line) > HELD_MAX):
            self._lost += 1
        else:
            self._held += len(line)
            self._lines.append(line)
        self._told.set()

    async def take(self, timeout_s: float) -> list[str]:
        """All lines there are, as soon as there is one, and at the place of lost ones how many these were."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._told.wait(), timeout_s)
        lines = list(self._lines)
        if self._lost:
            lines.append(spell({"type": "log.lost", "lines": self._lost}))
        self._lines.clear()
        self._held = self._lost = 0
        if not self.closed:
            self._told.clear()
        return lines

    def close(self) -> None:
        self.closed = True
        self._told.set()


class Logs:
    """Who listens to one server. For its loop; but what is logged, and what engines say, may come from any thread."""

    def __init__(self, runtime: Callable[[], Runtime | None], owner: Callable[[int], str | None]) -> None:
        """`runtime` tells what engines run on, as soon as that is known; `owner` the instance of an engine's process."""
        self._runtime, self._owner = runtime, owner
        self._listeners: dict[Source, list[Listener]] = {"model": [], "server": [], "runtime": []}
        self._taps: dict[Source, Tap] = {"server": Tap(PACKAGE, self._served), "runtime": Tap(f"{PACKAGE}.core", self._worked)}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def hears(self, source: Source) -> bool:
        return bool(self._listeners[source])

    @contextlib.contextmanager
    def listen(self, source: Source, types: frozenset[str], stats: bool) -> Iterator[Listener]:
        listener = Listener(source, types, stats)
        if self._closed:
            listener.close()
        self._loop = asyncio.get_running_loop()
        self._listeners[source].append(listener)
        self._set_taps()
        try:
            yield listener
        finally:
            self._listeners[source].remove(listener)
            self._set_taps()

    def close(self) -> None:
        """Ends all streams, those still to come too."""
        self._closed = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()

    def predicted(self, data: Mapping[str, Any], stats: Mapping[str, Any] | None = None) -> None:
        """Tells a prediction's input or output; `stats` to those who asked for them."""
        for listener in list(self._listeners["model"]):
            if data["type"] in listener.types:
                listener.tell(spell({**data, "stats": stats} if listener.stats and stats else data))

    def engine_said(self, pid: int, line: str) -> None:
        """May be called from any thread. Engines say errors only: the rest is in what they answer."""
        if self.hears("runtime"):
            self._from_anywhere(partial(self._tell_runtime, "error", line, pid))

    def _served(self, record: logging.LogRecord) -> None:
        data = {"type": "server.log", "content": describe(record), "level": level_of(record)}
        self._from_anywhere(partial(self._tell, "server", data))

    def _worked(self, record: logging.LogRecord) -> None:
        self._from_anywhere(partial(self._tell_runtime, level_of(record), describe(record)))

    def _tell_runtime(self, level: str, message: str, pid: int | None = None) -> None:
        runtime = self._runtime()
        name, version = (runtime.name, runtime.version) if runtime else (ENGINE_TYPE, None)
        engine = {"engineName": name, "engineVersion": version, "engineType": ENGINE_TYPE}
        owner = None if pid is None else self._owner(pid)
        whose = {"modelIdentifier": owner} if owner else {}
        process = {} if pid is None else {"pid": pid}
        self._tell("runtime", {"type": "runtime.log", "level": level, "message": message, **engine, **whose, **process})

    def _tell(self, source: Source, data: Mapping[str, Any]) -> None:
        if self._listeners[source]:
            line = spell(data)
            for listener in list(self._listeners[source]):
                listener.tell(line)

    def _from_anywhere(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                self._loop.call_soon_threadsafe(call)

    def _set_taps(self) -> None:
        """The package's log is only looked at while somebody listens to it."""
        for source, tap in self._taps.items():
            tap.set(self.hears(source))


class Tap(logging.Handler):
    """Hands on what a logger has to tell anyway, while it is `set`. Servers of one process share its log."""

    def __init__(self, logger: str, take: Callable[[logging.LogRecord], None]):
        super().__init__()
        self._logger, self._take = logging.getLogger(logger), take

    def set(self, on: bool) -> None:
        """A logger knows its handlers: twice is once."""
        if on:
            self._logger.addHandler(self)
        else:
            self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(record)
        except Exception:  # noqa: BLE001 - as all handlers: whoever logs must not fail of it
            self.handleError(record)


def level_of(record: logging.LogRecord) -> str:
    return LEVELS.get(record.levelname, record.levelname.lower())


def describe(record: logging.LogRecord) -> str:
    """The message, and the traceback if there is one."""
    text = record.getMessage()
    return f"{text}\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else text


def spell(data: Mapping[str, Any]) -> str:
    """One line of LM Studio's `log stream --json`; lone surrogates, which UTF-8 has no bytes for, are escaped."""
    return json.dumps({"timestamp": int(time.time() * 1000), "data": data}, separators=(",", ":"))


# ---- predictions -----------------------------------------------------------------------------------------------------


class Prediction:
    """One generation as listeners hear it: the prompt that the model saw, then all that it said.

    The output is told once both the end and the last of the text are known; of a generation that nobody reads to its end
    that is when the engine has ended it.
    """

    def __init__(self, logs: Logs, instance: Instance):
        self._logs, self._instance = logs, instance
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []
        self._finished: Finished | None = None
        self._left = self._told = False

    def tell_input(self, prompt: str) -> None:
        self._logs.predicted(
            {
                "type": PREDICTIONS["input"],
                "modelPath": self._instance.card.path,
                "modelIdentifier": self._instance.id,
                "input": prompt,
            }
        )

    def listening(self, take: Callable[[list[Event]], bool]) -> Callable[[list[Event]], bool]:
        """`take`, and this hears it first."""

        def both(events: list[Event]) -> bool:
            self.hear(events)
            return take(events)

        return both

    def hear(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case TextDelta():
                    self._text.append(event.text)
                case ReasoningDelta(text=text):
                    self._reasoning.append(text)
                case ToolCallStart(name=name):
                    self._calls.append((name, []))
                case ToolCallArguments(index=index, text=text):
                    self._calls[index][1].append(text)
                case Finished():
                    self._tell_output(event)

    def finished(self, finished: Finished) -> None:
        """The engine has ended it; perhaps some of what it said is still to be heard."""
        self._finished = finished
        if self._left:
            self._tell_output(finished)

    def left(self) -> None:
        """Nothing more will be heard."""
        self._left = True
        if self._finished is not None:
            self._tell_output(self._finished)

    def failed(self) -> None:
        self._tell_output(None)

    def _tell_output(self, finished: Finished | None) -> None:
        if self._told:
            return
        self._told = True
        calls = [{"name": name, "arguments": "".join(pieces)} for name, pieces in self._calls]
        data = {
            "type": PREDICTIONS["output"],
            "modelIdentifier": self._instance.id,
            "output": "".join(self._text),
            **({"reasoning": "".join(self._reasoning)} if self._reasoning else {}),
            **({"toolCalls": calls} if calls else {}),
        }
        self._logs.predicted(data, {"stopReason": "failed"} if finished is None else spell_stats(finished))


def spell_stats(finished: Finished) -> dict[str, Any]:
    """LM Studio's names; seconds."""
    stats = finished.stats
    spelled = {
        "stopReason": finished.reason,
        "tokensPerSecond": round(stats.tokens_per_second, 3),
        "timeToFirstTokenSec": round(stats.first_token_ms / 1000, 6),
        "promptTokensCount": stats.prompt_tokens,
        "predictedTokensCount": stats.generated_tokens,
        "totalTokensCount": stats.prompt_tokens + stats.generated_tokens,
    }
    if stats.draft is not None:
        spelled["totalDraftTokensCount"] = stats.draft.total
        spelled["acceptedDraftTokensCount"] = stats.draft.accepted
        spelled["rejectedDraftTokensCount"] = stats.draft.rejected
        spelled["ignoredDraftTokensCount"] = stats.draft.ignored
    return spelled


async def formatted(engine: Engine, prompt: Prompt) -> str:
    """The text that the model sees: what its template makes of a chat, what token ids stand for."""
    match prompt:
        case Chat():
            return await engine.render(prompt)
        case Tokens(ids=ids):
            return await engine.detokenize(ids)
        case Text(text=text):
            return text
        case Infill(prefix=prefix, suffix=suffix, begun=begun):
            return f"{prefix}{begun}[...]{suffix}"


async def overhear(logs: Logs, engine: Engine, instance: Instance, runs: Sequence[Generate]) -> list[Prediction]:
    """One prediction per run, its input told. A prompt that cannot be formatted is not: its run fails of that, too."""
    predictions = []
    prompt: Prompt | None = None
    text: str | None = None
    for work in runs:
        if work.prompt is not prompt:
            prompt, text = work.prompt, None
            with contextlib.suppress(LmError):
                text = await formatted(engine, prompt)
        prediction = Prediction(logs, instance)
        if text is not None:
            prediction.tell_input(text)
        predictions.append(prediction)
    return predictions
