"""Endpoints that generate: a request is read by its dialect, given a leased engine, and its events go back as bytes.

Every dialect goes through `generating`: whole answers are a fold over the events that a stream carries. A stream starts
with its first event, so that what fails before it is an HTTP status; what fails later is the stream's last event. A client
that leaves cancels its request down to the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..api.dialect import Call, Frame, Reply
from ..api.read.json_body import INLINE_BYTES_MAX, parse_body
from ..api.served import Served
from ..card import Instance
from ..errors import LmError, ShuttingDown, let_go
from ..events import Event
from ..wire import sse
from ..wire.connection import Request, Response
from .logs import Prediction, overhear
from .state import Endpoint, State, fact

if TYPE_CHECKING:
    from ..core.engine.client import Engine, Run

T = TypeVar("T")


def generating(parse: Callable[[dict[str, Any]], Call]) -> Endpoint:
    """The endpoint of a dialect that generates."""

    async def endpoint(app: State, request: Request, response: Response, _: str) -> None:
        call = await parsed(parse, request.body)
        async with app.models.lease(call.model, call.needs, call.ttl_s, call.draft_model) as lease:
            call = completed(app, call, lease.instance)
            if call.stream:
                await stream(app, call, app.served(lease), lease.engine, response)
            else:
                await answer(app, call, app.served(lease), lease.engine, response)

    return endpoint


async def parsed(parse: Callable[[dict[str, Any]], T], body: bytes | bytearray) -> T:
    """A large body is read in a thread: others' streams must not wait for it."""
    if len(body) <= INLINE_BYTES_MAX:
        return parse(parse_body(body))
    return await asyncio.to_thread(lambda: parse(parse_body(body)))


def completed(app: State, call: Call, instance: Instance) -> Call:
    """With what the model's settings say where the request says nothing."""
    reasoning = instance.card.reasoning
    return call.with_defaults(app.models.settings_of(instance), reasoning.effort_off if reasoning else None)


async def begin(app: State, call: Call, served: Served, engine: Engine) -> list[Work]:
    """The runs of `call`: each is counted at its end, even if nobody reads it any more, and heard if somebody listens."""
    instance, prompt, works = served.instance, None, []
    heard: Sequence[Prediction | None] = [None] * len(call.runs)
    if app.logs.hears("model"):
        heard = await overhear(app.logs, engine, instance, call.runs)
    for work, prediction in zip(call.runs, heard, strict=True):
        new_prompt = work.prompt is not prompt  # else it is the same one's further choice
        prompt = work.prompt
        counted = partial(app.metrics.generated, instance.card.id, new_prompt)
        on_finished = counted if prediction is None else both(counted, prediction.finished)
        works.append(Work(engine.run(work if call.stream else replace(work, whole=True), on_finished), prediction))
    return works


def both(first: Callable[[T], None], second: Callable[[T], None]) -> Callable[[T], None]:
    def call(value: T) -> None:
        first(value)
        second(value)

    return call


@dataclass(slots=True, frozen=True)
class Work:
    """A run, and what those hear of it who listen."""

    run: Run
    prediction: Prediction | None

    async def collect(self) -> list[Event]:
        """All events."""
        events: list[Event] = []

        def take(batch: list[Event]) -> bool:
            events.extend(batch)
            return True

        await self.feed(take, never)
        return events

    async def feed(self, take: Callable[[list[Event]], bool], drained: Callable[[], Awaitable[None]]) -> None:
        """See `Run.feed`."""
        if self.prediction is None:
            await self.run.feed(take, drained)
            return
        try:
            await self.run.feed(self.prediction.listening(take), drained)
        except LmError:
            self.prediction.failed()
            raise
        finally:
            self.prediction.left()


async def never() -> None:
    """Waits for room where there always is."""


async def answer(app: State, call: Call, served: Served, engine: Engine, response: Response) -> None:
    events = await together([work.collect() for work in await begin(app, call, served, engine)])
    response.whole(200, call.reply(served).whole(events).encode())


async def stream(app: State, call: Call, served: Served, engine: Engine, response: Response) -> None:
    """One write per batch of a run, however many events and frames that is."""
    spelled = call.reply(served)

    def take(index: int, events: list[Event]) -> bool:
        said = spell(spelled, index, events)
        if not response.started:  # until there is an event, a failure is an HTTP status
            response.start(200, sse.HEADERS, sse.KEEP_ALIVE)
            said = frames(spelled.begin()) + said
        response.write(said)
        return not response.paused

    try:
        works = await begin(app, call, served, engine)
        await together([work.feed(partial(take, index), response.drain) for index, work in enumerate(works)])
        last = spelled.end()
    except asyncio.CancelledError:
        if not (app.expired and response.started):
            raise
        last = spelled.failed(ShuttingDown())
    except Exception as exc:  # noqa: BLE001 - a stream that has begun must not end without a word
        if not response.started:
            raise
        last = spelled.failed(fact(exc))
        let_go(exc)
    response.finish(frames(last))


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first failure ends the others."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def spell(spelled: Reply, index: int, events: Iterable[Event]) -> bytes:
    return b"".join([sse.frame(name, payload) for event in events for name, payload in spelled.stream(index, event)])


def frames(pairs: Iterable[Frame]) -> bytes:
    return b"".join([sse.frame(name, payload) for name, payload in pairs])
