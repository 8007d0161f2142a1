"""Endpoints of downloads, and the jobs of one server, opened on first use: a server that fetches nothing pays nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import lmstudio_v1_download as spelling
from ..api.fields import parse_body
from ..config import Config
from ..errors import LmError
from ..store.home import Home
from ..wire.connection import Reply, Request

if TYPE_CHECKING:
    from ..download import Progress, Record
    from ..hub.jobs import Downloads
    from ..store.state import Database
    from .state import State

log = logging.getLogger(__name__)


class ModelDownloads:
    """Lives in one event loop. Files go to `models/` in the home folder, jobs to its state database."""

    def __init__(self, config: Config):
        self._home, self._stall_s = Home(config.home), config.download_stall
        self._jobs: Downloads | None = None
        self._store: LazyStore | None = None
        self._resuming: asyncio.Task[None] | None = None

    def resume_unfinished(self) -> None:
        """Goes on with what an earlier server left; looks no further where none kept anything."""
        if self._home.state.exists():
            self._resuming = asyncio.ensure_future(self._resume())

    async def _resume(self) -> None:
        try:
            await (await self.jobs()).restore()
        except LmError as error:  # a wrong HF_ENDPOINT, say: whoever asks for a download is told
            log.warning("unfinished downloads wait: %s", error)

    async def jobs(self) -> Downloads:
        """Raises `ConfigError` where the environment names no hub that there can be."""
        if self._jobs is None:
            jobs, store = await asyncio.to_thread(self._open)
            if self._jobs is None:  # two may have asked at once, and neither has touched the disk yet
                self._jobs, self._store = jobs, store
        return self._jobs

    def _open(self) -> tuple[Downloads, LazyStore]:
        """Runs in a thread: it brings the code for all of this."""
        from ..hub.http import Client
        from ..hub.jobs import Downloads
        from ..hub.site import Site

        store = LazyStore(self._home.state)
        client = Client(Site.of(os.environ))
        return Downloads(client, self._home.models, store, stall_s=self._stall_s), store

    async def close(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            await asyncio.gather(self._resuming, return_exceptions=True)
        if self._jobs is not None and self._store is not None:
            await self._jobs.close()
            self._store.close()


class LazyStore:
    """The state database, opened by the first call. Calls come one at a time."""

    def __init__(self, path: Path):
        self._path = path
        self._database: Database | None = None

    def _opened(self) -> Database:
        if self._database is None:
            from ..store.state import Database

            self._database = Database(self._path)
        return self._database

    def downloads(self) -> list[Record]:
        return self._opened().downloads() if self._path.exists() else []

    def save_download(self, record: Record) -> None:
        self._opened().save_download(record)

    def forget_download(self, id: str) -> None:
        self._opened().forget_download(id)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()


# ---- endpoints -------------------------------------------------------------------------------------------------------


async def start(app: State, request: Request, reply: Reply, _: str) -> None:
    from ..hub import names

    model, quantization = spelling.parse(parse_body(request.body))
    jobs = await app.downloads.jobs()
    wanted = names.parse(model, quantization, jobs.endpoint)
    reply.whole(200, spelling.started(await jobs.start(wanted)).encode())


async def status(app: State, request: Request, reply: Reply, id: str) -> None:
    progress = await (await app.downloads.jobs()).get(id)
    reply.whole(200, spelling.status(progress, time.time()).encode())


async def list_all(app: State, request: Request, reply: Reply, _: str) -> None:
    found = await (await app.downloads.jobs()).all()
    reply.whole(200, spelling.downloads(found, time.time()).encode())


async def show(app: State, request: Request, reply: Reply, id: str) -> None:
    tell(reply, await (await app.downloads.jobs()).get(id))


async def pause(app: State, request: Request, reply: Reply, id: str) -> None:
    tell(reply, await (await app.downloads.jobs()).pause(id))


async def resume(app: State, request: Request, reply: Reply, id: str) -> None:
    tell(reply, await (await app.downloads.jobs()).resume(id))


async def cancel(app: State, request: Request, reply: Reply, id: str) -> None:
    await (await app.downloads.jobs()).cancel(id)
    reply.whole(200, spelling.cancelled(id).encode())


def tell(reply: Reply, progress: Progress) -> None:
    reply.whole(200, spelling.ours(progress, time.time()).encode())
