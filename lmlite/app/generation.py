"""Endpoints that generate: a request is read by its dialect, its turn is run, and what happens goes back as bytes.

Every dialect goes through `generating`: whole answers are a fold over the events that a stream carries. A stream starts
with the first event that its dialect has a word for, or after a while of silence, so that what fails before is an HTTP
status; what fails later is the stream's last event. A client that leaves cancels its request down to the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..api.dialect import Call, Frame, Reply
from ..api.read.json_body import INLINE_BYTES_MAX, parse_body
from ..beside import beside
from ..card import Instance
from ..errors import LmError, ShuttingDown, let_go
from ..events import Event, Finished, Leased, LoadProgress, Notice, Started, TextDelta, ToolsListed
from ..exchange import Exchange
from ..principal import Principal
from ..request import Generate
from ..rounds.history import OwnHistory
from ..rounds.run import Rounds, Watch
from ..turn import Turn
from ..wire import sse
from ..wire.connection import Request, Response
from . import media
from .facts import fact
from .logs import overhear
from .state import Endpoint, State

if TYPE_CHECKING:
    from ..core.engine.client import Engine

T = TypeVar("T")

log = logging.getLogger(__name__)

IGNORED_HEADER: Final = "X-Lmlite-Ignored"
UNENFORCED_HEADER: Final = "X-Lmlite-Unenforced"
LISTING_MAX: Final = 1024
"""Characters: many servers and clients bound a header's line."""
UNREAD: Final = (Started, LoadProgress, Leased, ToolsListed)
"""Events of a time at which the engine has not read the request."""
LARGE_BYTES: Final = 256 << 10
"""Of a request that is written down for its engine beside the loop whatever it is that makes it so large: tools, a schema."""
EVENTS: Final = 1000
"""What is said of more takes longer than a thread does to do it."""
NOT_PLAIN: Final = re.compile(r"[^\x20-\x7e]")


def generating(parse: Callable[[dict[str, Any]], Call]) -> Endpoint:
    """The endpoint of a dialect that generates."""

    async def endpoint(app: State, request: Request, response: Response, _: str) -> None:
        body = request.body
        call, reply = await read(lambda: with_reply(app, parse(parse_body(body)), len(body)), len(body))
        await respond(app, call, reply, response, request.caller)

    return endpoint


def with_reply(app: State, call: Call, n_bytes: int) -> tuple[Call, Reply]:
    """The request that was read, marked if it is large, and its reply, which may spell what was asked."""
    turn = sized(call.turn, n_bytes)
    return call if turn is call.turn else replace(call, turn=turn), call.reply(app.origin())


def sized(turn: Turn, n_bytes: int) -> Turn:
    """`n_bytes` are those of its request."""
    if n_bytes <= LARGE_BYTES:
        return turn
    return replace(turn, runs=tuple(replace(work, large=True) for work in turn.runs))


async def respond(app: State, call: Call, reply: Reply, response: Response, caller: Principal) -> None:
    await media.fetch(app, call.turn)
    tell_ignored(call, response)
    turn = scoped(call.turn, caller)
    if call.stream:
        await stream(app, turn, reply, response, caller)
    else:
        await answer(app, turn, reply, response, caller)


def tell_ignored(call: Call, response: Response) -> None:
    """The names are a client's words."""
    if call.ignored:
        log.info("a request asks for what is ignored: %s", add_listing(response, IGNORED_HEADER, call.ignored))


def tell_unenforced(events: Iterable[Event], response: Response) -> None:
    """The engine has logged it. Once the head of the response is on its way, that is all."""
    for event in events:
        if type(event) is Notice and event.unenforced and not response.started:
            add_listing(response, UNENFORCED_HEADER, event.unenforced)


def add_listing(response: Response, header: str, words: Iterable[str]) -> str:
    listing = NOT_PLAIN.sub("?", ", ".join(words)[:LISTING_MAX])
    response.extra_headers = (*response.extra_headers, (header, listing))
    return listing


async def parsed(parse: Callable[[dict[str, Any]], T], body: bytes | bytearray) -> T:
    return await read(lambda: parse(parse_body(body)), len(body))


async def read(work: Callable[[], T], n_bytes: int) -> T:
    """A large body is read in a thread: others' streams must not wait for it."""
    return await beside(work, n_bytes > INLINE_BYTES_MAX)


async def watches(
    app: State, caller: Principal, engine: Engine, instance: Instance, runs: Sequence[Generate]
) -> list[Watch]:
    """Each run is counted at its end, and heard if somebody listens."""
    prompt, watches = None, []
    heard = await overhear(app.logs, engine, instance, runs) if app.logs.hears("model") else [None] * len(runs)
    for work, prediction in zip(runs, heard, strict=True):
        new_prompt = work.prompt is not prompt  # else it is the same one's further choice
        prompt = work.prompt
        told: list[Callable[[Finished], None]] = [partial(app.metrics.generated, instance.card.id, new_prompt, caller.name)]
        if caller.tokens_per_minute:
            told.append(partial(charge, app, caller, new_prompt))
        if prediction is not None:
            told.append(prediction.finished)
        watches.append(Watch(told[0] if len(told) == 1 else partial(tell_all, told), prediction))
    return watches


def charge(app: State, caller: Principal, new_prompt: bool, finished: Finished) -> None:
    stats = finished.stats
    app.door.charge(caller, stats.generated_tokens + (stats.prompt_tokens if new_prompt else 0))


def tell_all(listeners: Iterable[Callable[[Finished], None]], finished: Finished) -> None:
    for tell in listeners:
        tell(finished)


async def answer(app: State, turn: Turn, reply: Reply, response: Response, caller: Principal) -> None:
    runs: list[list[Event]] = [[] for _ in turn.runs]

    def take(index: int, events: list[Event]) -> bool:
        runs[index].extend(events)
        return True

    await rounds(app, caller).run(turn, take, never, whole=True)
    tell_unenforced(runs[0], response)
    many = sum(map(weigh, runs)) > EVENTS
    said = await beside(lambda: reply.whole(runs), many)
    if (exchange := await beside(reply.exchange, many)) is not None:
        await app.history.own(caller.scope).keep(exchange)
    response.whole(200, said.encode())


def weigh(events: Sequence[Event]) -> int:
    """How many there are to spell; each token whose probability is told is one."""
    return len(events) + sum(len(event.logprobs) for event in events if isinstance(event, TextDelta))


def rounds(app: State, caller: Principal) -> Rounds:
    servers = partial(app.tools.servers, caller)
    return Rounds(app.models, app.history.own(caller.scope), partial(watches, app, caller), servers)


def scoped(turn: Turn, caller: Principal) -> Turn:
    """Prompts are cached for those who share the caller's scope; a request can narrow who shares its own."""
    if not caller.scope:
        return turn
    runs = tuple(replace(work, scope=json.dumps([caller.scope, work.scope])) for work in turn.runs)
    return replace(turn, runs=runs)


async def never() -> None:
    """Waits for room where there always is."""


async def stream(app: State, turn: Turn, reply: Reply, response: Response, caller: Principal) -> None:
    waits = any(work.grammar is not None and work.grammar.kind == "json_schema" for work in turn.runs)
    speaker = Speaker(reply, response, app.history.own(caller.scope), waits)
    try:
        await rounds(app, caller).run(turn, speaker.take, response.drain)
        last = await speaker.last()
    except asyncio.CancelledError:
        if not (app.expired and response.started):
            raise
        last = await speaker.failed(ShuttingDown())
    except Exception as exc:  # noqa: BLE001 - a stream that has begun must not end without a word
        if not response.started:
            raise
        last = await speaker.failed(fact(exc))
        let_go(exc)
    finally:
        speaker.close()
    response.finish(last)


class Speaker:
    """The side of a stream that talks: one write per batch of events, however many frames that is."""

    def __init__(self, reply: Reply, response: Response, history: OwnHistory, waits: bool):
        self._reply, self._response, self._history = reply, response, history
        self._waits = waits  # for what the engine says of the request, which the head of the response has room for
        self._held = b""  # until then
        self._n_events = 0
        self._is_open = False  # the history has it as one that runs
        self._loop = asyncio.get_running_loop()
        self._spoke_at = self._loop.time()
        self._timer = self._loop.call_later(sse.SILENCE_S, self._tell_life)

    def take(self, index: int, events: list[Event]) -> bool:
        reply, response = self._reply, self._response
        self._n_events += len(events)
        said = b"".join([sse.frame(name, payload) for event in events for name, payload in reply.stream(index, event)])
        if self._waits:
            said = self._held_back(events, said)
        if said:
            self._spoke_at = self._loop.time()
            if response.started:
                response.write(said)
            else:
                self._start(said)
        return not response.paused

    def _held_back(self, events: list[Event], said: bytes) -> bytes:
        """What can be said now."""
        if all(isinstance(event, UNREAD) for event in events):
            self._held += said
            return b""
        tell_unenforced(events, self._response)
        self._waits = False
        said, self._held = self._held + said, b""
        return said

    async def last(self) -> bytes:
        """The end of a stream that has come to it: told once what is to be kept is."""
        if (exchange := await self._exchange()) is not None:
            await self._keep(exchange)
        said = frames(self._reply.end())
        if not self._response.started:
            self._start()
        return said

    async def failed(self, error: LmError) -> bytes:
        """An end that came too early. That it is kept is not to be counted on then: a disk may be what failed."""
        said = frames(self._reply.failed(error))
        if (exchange := await self._exchange()) is not None:
            with contextlib.suppress(LmError):
                await self._keep(exchange)
        return said

    async def _exchange(self) -> Exchange | None:
        return await beside(self._reply.exchange, self._n_events > EVENTS)

    async def _keep(self, exchange: Exchange) -> None:
        self._is_open = False
        await self._history.keep(exchange)

    def close(self) -> None:
        """The client may have left before the end: what it was told of must not seem to go on."""
        self._timer.cancel()
        if self._is_open and (exchange := self._reply.exchange()) is not None:
            self._history.begin(replace(exchange, status="cancelled"))

    def _start(self, first: bytes = b"") -> None:
        if (exchange := self._reply.exchange()) is not None:
            self._is_open = True
            self._history.begin(exchange)
        self._response.start(200, sse.HEADERS, sse.KEEP_ALIVE, first)

    def _tell_life(self) -> None:
        response, now = self._response, self._loop.time()
        if (due := self._spoke_at + sse.SILENCE_S) > now:
            self._timer = self._loop.call_at(due, self._tell_life)
            return
        if not response.paused:
            said = frames(self._reply.alive())
            if response.started:
                response.write(said or sse.KEEP_ALIVE)
            else:
                self._start(self._held + frames(self._reply.begin()) + said or sse.KEEP_ALIVE)
                self._waits, self._held = False, b""
        self._spoke_at = now
        self._timer = self._loop.call_later(sse.SILENCE_S, self._tell_life)


def frames(pairs: Iterable[Frame]) -> bytes:
    return b"".join([sse.frame(name, payload) for name, payload in pairs])
