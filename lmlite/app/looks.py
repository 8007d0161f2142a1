"""Looks at something that takes a while to look at, shared by all who want to know.

Who asks gets a look that began after the question, never an older one; who asks while one is under way shares the next one.
Between two there is a rest in proportion to what a look takes, so that questions, however many, keep no disk busy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

REST_TIMES: Final = 4.0
"""A rest is so many times as long as the look before it: all looks together take at most a fifth of the time."""
REST_MAX_S: Final = 1.0
"""Nobody waits longer than this for a look to begin, however slow the disk is."""


class Looks:
    """For one event loop. `look` is called in a thread, by one at a time; what it raises, those get who waited for it."""

    def __init__(self, look: Callable[[], None]):
        self._look = look
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None  # it has not begun
        self._rested_at = 0.0

    async def fresh(self) -> None:
        """Returns after a look that began after this call."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._take(self._running))
        await asyncio.shield(self._next)  # one who leaves takes it from nobody else

    async def any(self) -> None:
        """Returns after a look, which may have begun before this call."""
        if self._running is not None:
            await asyncio.shield(self._running)
        else:
            await self.fresh()

    async def _take(self, before: asyncio.Task[None] | None) -> None:
        loop = asyncio.get_running_loop()
        if before is not None:
            await asyncio.wait([before])
        if (rest := self._rested_at - loop.time()) > 0:
            await asyncio.sleep(rest)
        self._running, self._next = self._next, None  # who comes from here on is too late for this one
        began = loop.time()
        try:
            await loop.run_in_executor(None, self._look)
        finally:
            self._rested_at = loop.time() + min(REST_MAX_S, REST_TIMES * (loop.time() - began))
            self._running = None

    async def close(self) -> None:
        """No look is under way or to come; who waits for one is cancelled."""
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        self._next = self._running = None
