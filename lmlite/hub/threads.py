"""Blocking work in daemon threads: one that is stuck in a resolver or a disk holds up neither the loop nor its end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], name: str = "lmlite-hub") -> asyncio.Future[T]:
    """What `work` returns or raises. A cancelled future leaves the thread to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        set_outcome: Callable[[Any], None] = future.set_result
        outcome: object
        try:
            outcome = work()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the future
            set_outcome, outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, set_outcome, outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def forget(future: asyncio.Future[Any]) -> None:
    """Nobody will ask how it ended."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
