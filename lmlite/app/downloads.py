"""The downloads of one server, opened on first use: a server that fetches nothing pays nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from .. import metrics
from ..config import Config
from ..download import Status
from ..errors import LmError
from ..store.home import Home

if TYPE_CHECKING:
    from ..download import Record
    from ..hub.jobs import Downloads
    from ..store.database import Database

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

    def families(self) -> Iterator[metrics.Family]:
        jobs = metrics.Gauge("lmlite_downloads", "Downloads, those that have ended lately among them.", ("status",))
        received = metrics.Counter("lmlite_downloaded_bytes_total", "Bytes of models received from the hub.")
        statuses = list(self._jobs.statuses()) if self._jobs else []
        for status in get_args(Status):
            jobs.set(statuses.count(status), status)
        received.add(n=self._jobs.received if self._jobs else 0)
        yield from (jobs, received)

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
            from ..store.database import Database

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
