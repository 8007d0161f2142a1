"""Runs a turn: its model is leased, its runs are given to the engine, and all that happens is told as it happens.

No lease outlives its round. Whoever is told may be slower than the engine: the engine then waits for it alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..card import Instance
from ..errors import LmError
from ..events import Event, Finished
from ..messages import Sense
from ..records import dataclass
from ..request import Chat, Generate
from ..settings import ModelSettings
from ..tool_servers import ToolServer
from ..turn import Turn

if TYPE_CHECKING:
    from ..core.engine.client import Engine
    from ..core.loading.pool import Lease, Needs
    from .tools import Limits, Toolbox

T = TypeVar("T")

Take = Callable[[int, list[Event]], bool]
"""Gets events and the number of their run; returns whether it can take more at once."""

Drained = Callable[[], Awaitable[None]]
"""Returns when more can be taken."""


class Models(Protocol):
    """What turns need of them."""

    def lease(
        self,
        name: str | None,
        needs: Needs,
        asked: ModelSettings = ...,
        draft: str | None = None,
        heard: Callable[[Event], object] | None = None,
        effort: str | None = None,
        senses: frozenset[Sense] = ...,
    ) -> AbstractAsyncContextManager[Lease]: ...

    async def expect(self, turn: Turn) -> frozenset[Sense]:
        """The senses of the model that the turn will get, before it is loaded. Raises `LmError`."""
        ...

    def settings_of(self, instance: Instance) -> ModelSettings: ...


class Listener(Protocol):
    """Hears what one run says, and has no part in it: see `app.logs.Prediction`."""

    def listening(self, take: Callable[[list[Event]], bool]) -> Callable[[list[Event]], bool]: ...

    def failed(self) -> None: ...

    def left(self) -> None: ...


@dataclass(slots=True, frozen=True)
class Watch:
    """Of one run: `finished` is told its end even if nobody reads it any more, the listener all that is read."""

    finished: Callable[[Finished], None]
    listener: Listener | None = None


Watching = Callable[["Engine", Instance, Sequence[Generate]], Awaitable[Sequence[Watch]]]
"""Makes a watch for each run."""


class Past(Protocol):
    """What was kept: see `history.OwnHistory`."""

    async def follow(self, turn: Turn) -> Turn:
        """With the conversation that it goes on from, if it does."""
        ...


class Servers(Protocol):
    """Opens the servers of tools that a turn wants: see `tools.ToolServers`."""

    def open(self, servers: Sequence[ToolServer], taken: Collection[str]) -> AbstractAsyncContextManager[Toolbox]: ...


@dataclass(slots=True, frozen=True)
class Rounds:
    """What turns are run on. `servers` gives those that turns may use, and the limits of that, or raises `LmError`
    for those that this one may not."""

    models: Models
    past: Past
    watching: Watching
    servers: Callable[[Sequence[ToolServer]], tuple[Servers, Limits]] | None = None

    async def run(self, turn: Turn, take: Take, drained: Drained, *, whole: bool = False) -> None:
        """Returns when the turn is over, raises `LmError` when it failed. `whole` tells that nobody looks before the end."""
        turn = await self.past.follow(turn)

        async def play(turn: Turn, take: Take) -> None:
            await run_round(turn, self.models, self.watching, take, drained, whole)

        if not turn.servers and not turn.approvals:
            await play(turn, take)
            return
        from .tools import Loop  # with all that the protocol takes

        assert self.servers is not None
        servers, limits = self.servers(turn.servers)
        async with servers.open(turn.servers, names_of_tools(turn)) as toolbox:
            await Loop(turn, toolbox, limits, play, take, drained, self.models.expect).run()


def names_of_tools(turn: Turn) -> frozenset[str]:
    """Those that the request brings along for its client to run."""
    prompts = (work.prompt for work in turn.runs)
    return frozenset(tool["function"]["name"] for prompt in prompts if isinstance(prompt, Chat) for tool in prompt.tools)


async def run_round(
    turn: Turn, models: Models, watching: Watching, take: Take, drained: Drained, whole: bool
) -> None:
    """One round of the engine, on a lease of its own."""
    told = Told(take)
    leasing = models.lease(turn.model, turn.needs, turn.load, turn.draft_model, told.hear, turn.effort, turn.senses)
    try:
        async with leasing as lease:
            engine, instance = lease.engine, lease.instance
            runs = completed(turn, models, instance).runs
            if whole:
                runs = tuple(replace(work, whole=True) for work in runs)
            watches = await watching(engine, instance, runs)
            await together(
                [
                    feed(engine, work, watch, partial(told.take, index), drained)
                    for index, (work, watch) in enumerate(zip(runs, watches, strict=True))
                ]
            )
    finally:
        told.forget()


class Told:
    """Hands on what happens, in its order. What happens before the engine has the request is told in the next turn of the
    loop: a request for a model that is at hand is with the engine by then, which does not wait for its words to be spelled."""

    __slots__ = ("_take", "_waiting")

    def __init__(self, take: Take):
        self._take = take
        self._waiting: list[Event] = []

    def hear(self, event: Event) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.tell)
        self._waiting.append(event)

    def tell(self) -> None:
        if self._waiting:
            events, self._waiting = self._waiting, []
            self._take(0, events)

    def take(self, index: int, events: list[Event]) -> bool:
        self.tell()
        return self._take(index, events)

    def forget(self) -> None:
        """Nothing more is told: the round is over."""
        self._waiting = []


def completed(turn: Turn, models: Models, instance: Instance) -> Turn:
    """With what the model's settings say where the request says nothing."""
    reasoning = instance.card.reasoning
    return turn.with_defaults(models.settings_of(instance), reasoning.effort_off if reasoning else None)


async def feed(
    engine: Engine, work: Generate, watch: Watch, take: Callable[[list[Event]], bool], drained: Drained
) -> None:
    """One run, to its end."""
    run = engine.run(work, watch.finished)
    if watch.listener is None:
        await run.feed(take, drained)
        return
    try:
        await run.feed(watch.listener.listening(take), drained)
    except LmError:
        watch.listener.failed()
        raise
    finally:
        watch.listener.left()


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
