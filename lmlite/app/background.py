"""Turns that run on without their clients: each is found by its id while it runs, followed from any of its events, cancelled.

What such a turn says is kept in memory as it is said; once it is over, the history alone has it. Those that still run when
the server stops fail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ..errors import LmError, QueueFull, ShuttingDown, let_go
from ..wire import sse
from ..wire.connection import Response
from .facts import fact

if TYPE_CHECKING:
    from ..api.dialect import Frame
    from ..api.openai.responses_reply import ResponseReply
    from ..events import Event
    from ..rounds.history import OwnHistory
    from ..rounds.run import Rounds
    from ..turn import Turn

log = logging.getLogger(__name__)

RUNS_MAX: Final = 512
"""At once: as many as an engine lets wait."""


class Background:
    """The turns that run, by the ids of their responses."""

    def __init__(self) -> None:
        self._runs: dict[str, BackgroundRun] = {}

    def start(self, rounds: Rounds, history: OwnHistory, turn: Turn, reply: ResponseReply) -> BackgroundRun:
        if len(self._runs) >= RUNS_MAX:
            raise QueueFull(RUNS_MAX)
        run = BackgroundRun(rounds, history, turn, reply)
        self._runs[reply.id] = run
        run.task.add_done_callback(lambda _: self._runs.pop(reply.id))
        return run

    def find(self, id: str, scope: str) -> BackgroundRun | None:
        """One of another scope is unknown."""
        run = self._runs.get(id)
        return run if run is not None and run.scope == scope else None

    async def close(self) -> None:
        for run in list(self._runs.values()):
            await run.stop(ShuttingDown())


class BackgroundRun:
    def __init__(self, rounds: Rounds, history: OwnHistory, turn: Turn, reply: ResponseReply):
        self.reply = reply
        self.scope = history.scope
        self._rounds, self._history, self._turn = rounds, history, turn
        self._said: list[bytes] = []  # an event each
        self._news = asyncio.Event()  # more was said, or it is over
        self._ends = False  # by itself or because it was stopped: what it ends with is being kept, and nothing may stop that
        self._over = False
        self._told = ""  # its status, to the history
        self._reason: LmError | None = None  # why it was stopped; None: because its client wanted that
        self._say(reply.begin())
        self._tell()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        reply = self.reply
        last: Iterable[Frame] | None = None
        try:
            await self._rounds.run(self._turn, self._take, always)
        except asyncio.CancelledError:
            last = reply.cancelled() if self._reason is None else reply.failed(self._reason)
        except Exception as error:  # noqa: BLE001 - nobody but its followers will hear of it
            last = reply.failed(fact(error))
            let_go(error)
        self._ends = True
        try:
            await self._history.keep(reply.kept())
        except LmError as error:
            log.warning("a response that ran in the background is not kept: %s", error)
            last = reply.failed(error) if last is None else last
        self._say(reply.end() if last is None else last)
        self._over = True
        self._news.set()

    def _take(self, index: int, events: list[Event]) -> bool:
        for event in events:
            self._say(self.reply.stream(index, event))
        self._tell()
        return True

    def _say(self, frames: Iterable[Frame]) -> None:
        before = len(self._said)
        self._said += [sse.frame(name, payload) for name, payload in frames]
        if len(self._said) > before:
            self._news.set()

    def _tell(self) -> None:
        """The history, of a new status."""
        if self.reply.status != self._told:
            self._told = self.reply.status
            if self.reply.is_open:
                self._history.begin(self.reply.kept())

    async def stop(self, reason: LmError | None = None) -> None:
        """Returns once it is over and kept: as cancelled, or as failed for the `reason`."""
        if not self._ends:
            self._ends = True
            self._reason = reason
            self.task.cancel()
        await asyncio.wait([self.task])

    async def follow(self, after: int, response: Response) -> None:
        """Tells all events whose number is above `after`, and ends with the turn."""
        response.start(200, sse.HEADERS, sse.KEEP_ALIVE)
        place = after + 1  # events are numbered by their places
        while True:
            self._news.clear()
            if place < len(self._said):
                response.write(b"".join(self._said[place:]))
                place = len(self._said)
            elif self._over:
                break
            else:
                await self._hear(response)
            await response.drain()
        response.finish()

    async def _hear(self, response: Response) -> None:
        try:
            await asyncio.wait_for(self._news.wait(), sse.SILENCE_S)
        except asyncio.TimeoutError:
            response.write(sse.KEEP_ALIVE)


async def always() -> None:
    """Waits for room where there always is."""
