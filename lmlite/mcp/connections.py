"""The servers of tools that are connected to: begun when first used, ended when nobody has used them for a while.

A program that failed is not started again at once: the longer it fails, the longer it is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import field
from typing import Final

from ..records import dataclass
from .file import Entry
from .http import Endpoint, Resolve, Web
from .message import Fault, Refused
from .session import Session
from .stdio import Stdio
from .web import EventStream, Streamable

log = logging.getLogger(__name__)

IDLE_S: Final = 300.0
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 60.0
PATIENCE_S: Final = 2.0
"""Who comes while a server is left alone waits so long, and is else told."""
SOUND_S: Final = 30.0
"""One that lived for so long is no failure."""


@dataclass(slots=True, eq=False)
class Kept:
    """One server of the list, whether it is connected to or not."""

    entry: Entry
    session: Session | None = None
    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    timer: asyncio.TimerHandle | None = None
    began: float = 0.0
    n_failures: int = 0
    not_before: float = 0.0
    reason: str = ""


class Connections:
    """Lives in one event loop. `resolve` is the network; tests put theirs there."""

    def __init__(self, *, allow_private: bool = False, idle_s: float = IDLE_S, resolve: Resolve | None = None):
        self._allow_private, self._idle_s, self._resolve = allow_private, idle_s, resolve
        self._web = Web()
        self._kept: dict[str, Kept] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @contextlib.asynccontextmanager
    async def kept(self, entry: Entry) -> AsyncIterator[Kept]:
        """The server stays connected to as long as the block lasts, and a while longer. Gives what `session` takes."""
        kept = self._kept.get(entry.label)
        if kept is None or kept.entry != entry:  # the file says something else now
            if kept is not None and not kept.users:
                self._end(kept)
            kept = self._kept[entry.label] = Kept(entry)
        kept.users += 1
        if kept.timer is not None:
            kept.timer.cancel()
        try:
            yield kept
        finally:
            kept.users -= 1
            if not kept.users:
                self._rest(kept)

    async def session(self, kept: Kept) -> Session:
        """Of a server that lives. Raises `Fault`."""
        async with kept.lock:
            if kept.session is not None and kept.session.fault is None:
                return kept.session
            if self._closed:
                raise Fault("this server is shutting down")
            await self._bury(kept)
            await self._wait(kept)
            loop = asyncio.get_running_loop()
            try:
                kept.session = await self.open(kept.entry)
            except Fault as fault:
                self._failed(kept, str(fault))
                raise
            kept.began = loop.time()
            return kept.session

    async def _bury(self, kept: Kept) -> None:
        """A session that failed."""
        if kept.session is not None:
            session, kept.session = kept.session, None
            if asyncio.get_running_loop().time() - kept.began >= SOUND_S:
                kept.n_failures = 0
            self._failed(kept, str(session.fault))
            await session.close()

    def _failed(self, kept: Kept, reason: str) -> None:
        kept.not_before = asyncio.get_running_loop().time() + min(BACKOFF_FIRST_S * 2**kept.n_failures, BACKOFF_MAX_S)
        kept.n_failures = min(kept.n_failures + 1, 16)
        kept.reason = reason

    async def _wait(self, kept: Kept) -> None:
        wait_s = kept.not_before - asyncio.get_running_loop().time()
        if wait_s > PATIENCE_S:
            raise Fault(f"{kept.reason}; it is tried again in {wait_s:.0f} seconds")
        await asyncio.sleep(max(wait_s, 0))

    def _rest(self, kept: Kept) -> None:
        if self._closed or self._kept.get(kept.entry.label) is not kept:
            self._end(kept)
        else:
            kept.timer = asyncio.get_running_loop().call_later(self._idle_s, self._end, kept)

    def _end(self, kept: Kept) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
        if kept.session is not None and not kept.users:
            session, kept.session = kept.session, None
            task = asyncio.ensure_future(session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # ---- one connection

    async def open(self, entry: Entry) -> Session:
        """Of the list: where its URL leads is its owner's affair. Raises `Fault`."""
        if entry.problem:
            raise Fault(entry.problem)
        if entry.command:
            transport = Stdio(entry.label, entry.command, dict(entry.env), entry.cwd)
            return await opened(Session(entry.label, transport, headers_of_version=False))
        return await self._open_web(entry, public_only=False)

    async def open_stranger(self, entry: Entry) -> Session:
        """Of a request: nothing but a URL, which has to lead away from here. Raises `Fault`."""
        return await self._open_web(entry, public_only=not self._allow_private)

    async def _open_web(self, entry: Entry, public_only: bool) -> Session:
        endpoint = await Endpoint.find(entry.url, public_only=public_only, resolve=self._resolve)
        headers = dict(entry.headers)
        try:
            return await opened(Session(entry.label, Streamable(self._web, endpoint, headers), headers_of_version=True))
        except Refused as refused:
            if refused.status not in (400, 404, 405):
                raise
            stream = EventStream(self._web, endpoint, headers)
            with contextlib.suppress(Refused):
                return await opened(Session(entry.label, stream, headers_of_version=False))
            raise  # what was said of the first way is told

    async def close(self) -> None:
        self._closed = True
        for kept in self._kept.values():
            kept.users = 0
            self._end(kept)
        await asyncio.gather(*self._closing, return_exceptions=True)


async def opened(session: Session) -> Session:
    try:
        await session.open()
    except BaseException:
        await session.close()
        raise
    return session
