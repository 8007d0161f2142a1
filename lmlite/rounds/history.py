"""What is kept of turns, for one event loop: the disk is one thread's business, and many turns share a commit.

The thread and the database begin with the first turn that is kept; a server whose clients keep nothing has neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from ..errors import NotKept, StateError, let_go
from ..exchange import Exchange, ExchangeKind
from ..messages import Message
from ..records import dataclass
from ..store.database import Database
from ..store.history import HistoryTable, Write
from ..turn import Turn

log = logging.getLogger(__name__)

SWEEP_S: Final = 3600.0
"""Between two looks for what has become too old."""
PAUSE_S: Final = 0.05
"""Between two parts of one such look, for whoever else wants the disk."""
CLOSE_S: Final = 5.0
"""What the disk has for what is still to be kept; a thread that it holds longer is left behind."""


@dataclass(slots=True, frozen=True, eq=False)
class Errand:
    """Something to be read, or to be written, and who waits for it."""

    work: Callable[[], Any] | None
    write: Write | None
    future: asyncio.Future[Any] | None


class History:
    """`size_mib` and `days` as in `config.Config`; with either 0 nothing is kept, and nothing known."""

    def __init__(self, database: Database, size_mib: int, days: int):
        self._table = HistoryTable(database, size_mib << 20, days)
        self._queue: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        self.keeps = size_mib > 0 and days > 0

    def open(self) -> None:
        """What is there of earlier servers is brought in order: turns that died with them, and what is too old."""
        if self._table.exists:
            self._start()

    def begin(self, exchange: Exchange) -> None:
        """Tells of a turn that runs now, "queued" or "in_progress": by its id it is found from here on, after a crash too,
        and what it goes on from stays. `keep` follows. Nobody waits for it, so it raises nothing: `keep` does."""
        if self.keeps and not self._closed:
            self._put(Errand(None, self._table.save(exchange), None))

    async def keep(self, exchange: Exchange) -> None:
        """Returns once it is on the disk, with what `begin` told replaced. Raises `NotKept`, and `UnknownPrevious` if what
        it goes on from went before `begin` told of it."""
        if self.keeps:
            try:
                await self._wait(write=self._table.save(exchange))
            except StateError as error:
                raise NotKept(str(error)) from None

    async def find(self, id: str, scope: str) -> Exchange:
        """Raises `UnknownExchange`, `StateError`."""
        found: Exchange = await self._wait(lambda: self._table.find(id, scope))
        return found

    async def find_beginning(self, beginning: str, scope: str) -> Exchange | None:
        """The one turn whose id begins so, if there is one. Raises `StateError`."""
        found: Exchange | None = await self._wait(lambda: self._table.find_beginning(beginning, scope))
        return found

    async def conversation(self, id: str, scope: str) -> tuple[Message, ...]:
        """All that was said up to the end of `id`, of whichever dialects. Raises `UnknownPrevious`, `UnfinishedPrevious`,
        `ConversationTooLong`, `StateError`."""
        messages: tuple[Message, ...] = await self._wait(lambda: self._table.conversation(id, scope))
        return messages

    async def follow(self, turn: Turn, scope: str) -> Turn:
        """The turn with the conversation that it goes on from, put together where it is read. Raises as `conversation`."""
        follows = turn.follows
        if follows is None:
            return turn
        joined: Turn = await self._wait(lambda: turn.after(self._table.conversation(follows.id, scope)))
        return joined

    async def delete(self, id: str, scope: str, kind: ExchangeKind) -> None:
        """Returns once it is unknown. Raises `UnknownExchange`, `StateError`."""
        await self._wait(write=self._table.delete(id, scope, kind))

    async def close(self) -> None:
        """What was to be kept is, if the disk takes it."""
        self._closed = True
        if self._ended is not None:
            self._queue.put(None)
            await asyncio.wait([self._ended], timeout=CLOSE_S)
            if self._thread is not None and self._ended.done():
                self._thread.join()  # it said so with its last breath

    def own(self, scope: str) -> OwnHistory:
        return OwnHistory(self, scope)

    # ---- in the loop

    async def _wait(self, work: Callable[[], Any] | None = None, write: Write | None = None) -> Any:
        if self._closed:
            raise StateError("the server is shutting down")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(Errand(work, write, future))
        return await future

    def _put(self, errand: Errand) -> None:
        self._start()
        self._queue.put(errand)

    def _start(self) -> None:
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            arguments = (loop, self._ended)
            self._thread = threading.Thread(target=self._run, args=arguments, name="lmlite-history", daemon=True)
            self._thread.start()

    # ---- in the thread

    def _run(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        recovered = False
        sweep_at = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while True:
                errands = self._next(sweep_at)
                if not recovered:
                    recovered = self._try(self._table.recover)
                settled = self._do([errand for errand in errands if errand is not None])
                if settled:
                    loop.call_soon_threadsafe(settle, settled)
                if None in errands:
                    break
                if (now := time.monotonic()) >= sweep_at:
                    more = self._try(self._sweep)
                    sweep_at = now + (PAUSE_S if more else SWEEP_S)
            loop.call_soon_threadsafe(settle, [(ended, None, None)])

    def _next(self, sweep_at: float) -> list[Errand | None]:
        """All that waits; nothing, once it is time to sweep."""
        errands: list[Errand | None] = []
        with contextlib.suppress(queue.Empty):
            errands.append(self._queue.get(timeout=max(sweep_at - time.monotonic(), 0)))
            while True:
                errands.append(self._queue.get_nowait())
        return errands

    def _do(self, errands: list[Errand]) -> list[Outcome]:
        """First all that is to be written, in one go: what waits at the same time has no order."""
        writers = [errand for errand in errands if errand.write is not None]
        outcomes: list[Outcome] = []
        errors = self._write([errand.write for errand in writers if errand.write is not None])
        for errand, error in zip(writers, errors):
            outcomes.append((errand.future, None, error))
        if failed := next((error for error in errors if isinstance(error, StateError)), None):
            log.warning("turns cannot be kept: %s", failed)
        for errand in errands:
            if errand.work is not None:
                try:
                    outcomes.append((errand.future, errand.work(), None))
                except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits it
                    outcomes.append((errand.future, None, error))
        for _, _, outcome in outcomes:
            let_go(outcome)
        return outcomes

    def _write(self, works: list[Write]) -> Sequence[Exception | None]:
        try:
            return self._table.write(works)
        except Exception as error:  # noqa: BLE001 - a thread that ends answers nobody any more
            log.exception("turns cannot be kept")
            return [error] * len(works)

    def _sweep(self) -> bool:
        return self._table.exists and self._table.sweep()

    def _try(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except StateError as error:
            log.warning("what was kept of turns cannot be put in order: %s", error)
            return False
        except Exception:  # noqa: BLE001 - a thread that ends answers nobody any more
            log.exception("what was kept of turns cannot be put in order")
            return False


@dataclass(slots=True, frozen=True)
class OwnHistory:
    """What those of one scope have of it: they see nothing of others. The methods are `History`'s."""

    history: History
    scope: str

    @property
    def keeps(self) -> bool:
        return self.history.keeps

    def begin(self, exchange: Exchange) -> None:
        self.history.begin(replace(exchange, scope=self.scope))

    async def keep(self, exchange: Exchange) -> None:
        await self.history.keep(replace(exchange, scope=self.scope))

    async def find(self, id: str) -> Exchange:
        return await self.history.find(id, self.scope)

    async def find_beginning(self, beginning: str) -> Exchange | None:
        return await self.history.find_beginning(beginning, self.scope)

    async def follow(self, turn: Turn) -> Turn:
        return await self.history.follow(turn, self.scope)

    async def delete(self, id: str, kind: ExchangeKind) -> None:
        await self.history.delete(id, self.scope, kind)


Outcome = tuple["asyncio.Future[Any] | None", Any, "Exception | None"]


def settle(outcomes: Iterable[Outcome]) -> None:
    for future, result, error in outcomes:
        if future is None or future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
