"""The downloads of one server, opened on first use: a server that fetches nothing pays nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from .. import metrics
from ..config import Config
from ..download import DownloadStatus
from ..errors import LmError
from ..store.database import Database
from ..store.downloads import DownloadTable
from ..store.home import Home

if TYPE_CHECKING:
    from ..hub.jobs import Downloads

log = logging.getLogger(__name__)


class ModelDownloads:
    """Lives in one event loop. Files go to `models/` in the home folder, jobs to its state database."""

    def __init__(self, config: Config, database: Database):
        self._home, self._stall_s = Home(config.home), config.download_stall
        self._table = DownloadTable(database)
        self._jobs: Downloads | None = None
        self._resuming: asyncio.Task[None] | None = None

    def resume_unfinished(self) -> None:
        """Goes on with what an earlier server left; looks no further where none kept anything."""
        if self._table.exists:
            self._resuming = asyncio.ensure_future(self._resume())

    async def _resume(self) -> None:
        try:
            if await asyncio.to_thread(self._table.all):
                await (await self.jobs()).restore()
        except LmError as error:  # a wrong HF_ENDPOINT, say: whoever asks for a download is told
            log.warning("unfinished downloads wait: %s", error)

    async def jobs(self) -> Downloads:
        """Raises `ConfigError` where the environment names no hub that there can be."""
        if self._jobs is None:
            jobs = await asyncio.to_thread(self._open)
            if self._jobs is None:  # two may have asked at once, and neither has touched the disk yet
                self._jobs = jobs
        return self._jobs

    def _open(self) -> Downloads:
        """Runs in a thread: it brings the code for all of this."""
        from ..hub.http import Client
        from ..hub.jobs import Downloads
        from ..hub.site import Site

        client = Client(Site.of(os.environ))
        return Downloads(client, self._home.models, self._table, stall_s=self._stall_s)

    def families(self) -> Iterator[metrics.Family]:
        jobs = metrics.Gauge("lmlite_downloads", "Downloads, those that have ended lately among them.", ("status",))
        received = metrics.Counter("lmlite_downloaded_bytes_total", "Bytes of models received from the hub.")
        statuses = list(self._jobs.statuses()) if self._jobs else []
        for status in get_args(DownloadStatus):
            jobs.set(statuses.count(status), status)
        received.add(n=self._jobs.received if self._jobs else 0)
        yield from (jobs, received)

    async def close(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            await asyncio.gather(self._resuming, return_exceptions=True)
        if self._jobs is not None:
            await self._jobs.close()
