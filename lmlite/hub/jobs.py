"""`Downloads`: one job per model, however often it is asked for; paused, resumed, cancelled, and taken up after a restart.

Lives in one event loop; what blocks runs in threads. A job fetches its files one after another and puts them in their
places together, when the last one is verified. What fails for now is tried again, with longer and longer waits, until
nothing has come for ten minutes; what fails for good says why, and goes on from what it has when it is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import random
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import Final, Protocol

from ..download import DownloadStatus, Progress, Record, RemoteFile
from ..errors import DiskFull, HubError, JobNotFound, LmError, ShuttingDown
from ..records import dataclass
from .choice import choose
from .http import Client, Interrupt
from .listing import Listing
from .listing import fetch as fetch_listing
from .names import Wanted, is_name, is_visible, problem
from .threads import forget, in_thread
from .transfer import FULL, Place, Transfer, tidy, tidy_hidden

log = logging.getLogger(__name__)

RUNNING_MAX: Final = 3
"""Jobs that fetch at once; further ones wait their turn. More share one line and one disk, and finish later."""
LISTING_S: Final = 30.0
"""For the hub's list of files, which a client waits for."""
TICK_S: Final = 1.0
PACE_TICKS: Final = 5
"""The pace that is shown is that of the last seconds, not of one lucky moment."""
CRAWL_BYTES_PER_S: Final = 1024
"""A connection that has been slower than this for the whole stall time is cut, and made anew."""
PROGRESS_BYTES: Final = 1 << 20
"""An attempt that brought this much was worth making: the waits begin anew after it."""
ATTEMPTS_MAX: Final = 16
BACKOFF_MAX_S: Final = 60.0
"""1, 2, 4 ... 60 s: sixteen attempts are ten minutes without progress."""
ENDED: Final = frozenset(("completed", "failed"))
FINISHED_MAX: Final = 100
"""Jobs that are remembered after they ended."""
CLOSE_S: Final = 0.5
"""What a thread has to notice that it was cut off; one that does not is left behind and touches nothing more."""

class Store(Protocol):
    """Where records outlive the server. Calls block, come from one thread at a time, and raise when they fail."""

    def all(self) -> list[Record]: ...

    def save(self, record: Record) -> None: ...

    def forget(self, id: str) -> None: ...


@dataclass(slots=True)
class Pace:
    """Bytes per second, and whether that is too few; fed every tick with all bytes received so far."""

    stall_s: float
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=PACE_TICKS + 1))
    began: tuple[float, int] = (0.0, 0)  # of the time in which it may stall

    def begin(self, now: float) -> None:
        self.samples.clear()
        self.samples.append((now, 0))
        self.began = (now, 0)

    def note(self, now: float, received: int, on_wire: bool) -> bool:
        """Whether it has stalled."""
        self.samples.append((now, received))
        since, before = self.began
        if on_wire and now - since < self.stall_s:
            return False
        self.began = (now, received)
        return on_wire and received - before < CRAWL_BYTES_PER_S * (now - since)

    @property
    def bytes_per_second(self) -> int:
        if len(self.samples) < 2:
            return 0
        (then, before), (now, received) = self.samples[0], self.samples[-1]
        return round((received - before) / max(now - then, 1e-3))


@dataclass(slots=True, eq=False)
class Job:
    record: Record
    pace: Pace
    have: dict[str, int] = field(default_factory=dict)  # bytes that are on the disk, by file
    ready: set[str] = field(default_factory=set)  # files that are whole and verified
    received: int = 0  # over the wire, in transfers that ended
    transfer: Transfer | None = None
    trouble: str | None = None
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return key_of(self.record.repo, self.record.files)

    @property
    def downloaded_bytes(self) -> int:
        if self.record.status == "completed":
            return self.record.size
        have = dict(self.have)
        if self.transfer is not None:
            name, here = self.transfer.file.name, self.transfer.have
            # Until the hub answers, what is here from before is only being read again.
            have[name] = here if self.transfer.on_wire else max(here, have.get(name, 0))
        return sum(have.values())

    def progress(self) -> Progress:
        pace = self.pace.bytes_per_second if self.transfer is not None else 0
        return Progress(self.record, self.downloaded_bytes, pace, self.trouble)


def key_of(repo: str, files: Iterable[RemoteFile]) -> tuple[str, ...]:
    """What makes two requests the same job."""
    return repo.lower(), *(file.name for file in files)


@dataclass(slots=True, frozen=True)
class Survey:
    """What of a model is on the disk: whether all of it is in place, the bytes of each file, and the bytes free."""

    present: bool
    have: dict[str, int]
    free: int


class Downloads:
    """`folder` gets `owner/repo/file`. `stall_s` is how long a connection may crawl (0: for ever), `backoff_s` the first wait
    before trying again."""

    def __init__(self, client: Client, folder: Path, store: Store, *, stall_s: float = 60.0, backoff_s: float = 1.0):
        self._client, self._folder, self._store = client, folder, store
        self._stall_s, self._backoff_s = stall_s or math.inf, backoff_s
        self._jobs: dict[str, Job] = {}
        self._received = 0  # in transfers that ended
        self._looking: dict[Wanted, asyncio.Task[Job | None]] = {}
        self._restored: asyncio.Task[None] | None = None
        self._saving = asyncio.Lock()
        self._turns = asyncio.Semaphore(RUNNING_MAX)
        self._taken: dict[Path, asyncio.Lock] = {}  # by part: one transfer per file, whatever jobs want it
        self._closed = False

    @property
    def endpoint(self) -> str:
        return self._client.site.endpoint

    # ---- what is asked

    async def restore(self) -> None:
        """Takes up the jobs of the store; all else waits for that."""
        if self._restored is None:
            self._restored = asyncio.ensure_future(self._restore())
        await asyncio.shield(self._restored)

    async def start(self, wanted: Wanted) -> Progress | None:
        """The job that brings `wanted`, new or going on; None if all of it is there. Raises `NothingToDownload`,
        `AccessDenied`, `HubError`, `DiskFull`."""
        await self.restore()
        looking = self._looking.get(wanted)
        if looking is None:
            looking = self._looking[wanted] = asyncio.ensure_future(self._begin(wanted))
            looking.add_done_callback(lambda _: self._looking.pop(wanted, None))
            forget(looking)
        job = await asyncio.shield(looking)
        return job.progress() if job else None

    async def all(self) -> list[Progress]:
        """In the order in which they were begun."""
        await self.restore()
        return [job.progress() for job in sorted(self._jobs.values(), key=lambda job: job.record.started_at)]

    def statuses(self) -> Iterator[DownloadStatus]:
        """Of all jobs that are known by now."""
        return (job.record.status for job in self._jobs.values())

    @property
    def received(self) -> int:
        """Bytes of models that came over the wire so far; what was received twice counts twice."""
        running = (job.transfer.received for job in self._jobs.values() if job.transfer is not None)
        return self._received + sum(running)

    async def get(self, id: str) -> Progress:
        """Raises `JobNotFound`."""
        return (await self._find(id)).progress()

    async def pause(self, id: str) -> Progress:
        job = await self._find(id)
        if job.record.status == "downloading":
            job.record = replace(job.record, status="paused")
            await self._stop(job)
            await self._save(job)
        return job.progress()

    async def resume(self, id: str) -> Progress:
        """Goes on with a job that was paused or has failed."""
        job = await self._find(id)
        if job.record.status in ("paused", "failed"):
            self._run(job)
            await self._save(job)
        return job.progress()

    async def cancel(self, id: str) -> None:
        """Ends a job and removes what it received; of one that is completed, only the job is forgotten."""
        job = await self._find(id)
        del self._jobs[id]
        await self._stop(job)
        await self._keep(lambda: self._store.forget(id))
        if job.record.status != "completed":
            await self._discard(job.record)

    async def close(self) -> None:
        """Stops within a second; what runs goes on when the server starts again."""
        self._closed = True
        asking = [*self._looking.values(), *([self._restored] if self._restored else [])]
        for task in asking:
            task.cancel()
        await asyncio.gather(*map(self._stop, self._jobs.values()), *asking, return_exceptions=True)

    # ---- jobs

    async def _find(self, id: str) -> Job:
        await self.restore()
        if id not in self._jobs:
            raise JobNotFound(id)
        return self._jobs[id]

    async def _restore(self) -> None:
        try:
            records = await in_thread(self._store.all)
        except Exception as error:  # noqa: BLE001 - a store that fails must not keep models from being fetched
            log.warning("earlier downloads cannot be read: %s", error)
            return
        sound = list(filter(is_sound, records))
        for repo in {record.repo for record in sound}:
            await in_thread(functools.partial(tidy_hidden, self._folder / repo))
        for record in sound:
            job = self._jobs[record.id] = Job(record, Pace(self._stall_s))
            if record.status != "completed":
                job.have = (await self._survey(record.repo, record.files)).have
            if record.status == "downloading":
                self._run(job)

    async def _begin(self, wanted: Wanted) -> Job | None:
        listed = await self._list(wanted)
        files = choose(listed, wanted)
        if (job := self._running(listed.repo, files)) is not None:
            return job
        survey = await self._survey(listed.repo, files)
        if (job := self._running(listed.repo, files)) is not None:  # since the meantime
            return job
        if survey.present:
            return None
        needed = sum(file.size for file in files) - sum(survey.have.values())
        available = max(survey.free - self._promised(), 0)
        if needed > available:
            raise DiskFull(needed, available)
        job = self._unfinished(listed.repo, files) or self._new_job(listed, files)
        before = job.record
        job.record = replace(job.record, revision=listed.revision, files=files)
        job.have = survey.have
        self._run(job)
        if before.files != files:  # of another revision, which nobody will ask for again
            await self._discard(before)
        await self._save(job)
        return job

    async def _list(self, wanted: Wanted) -> Listing:
        interrupt = Interrupt()
        work = in_thread(lambda: fetch_listing(self._client, wanted, interrupt))
        forget(work)
        try:
            return await asyncio.wait_for(asyncio.shield(work), LISTING_S)
        except asyncio.TimeoutError:
            raise HubError(f"the hub did not list {wanted.repo} within {LISTING_S:g} s", retry=True) from None
        finally:
            interrupt.cut()

    def _new_job(self, listed: Listing, files: tuple[RemoteFile, ...]) -> Job:
        id = f"job_{os.urandom(5).hex()}"
        record = Record(id, listed.repo, listed.revision, files, "downloading", time.time())
        return self._jobs.setdefault(id, Job(record, Pace(self._stall_s)))

    def _unfinished(self, repo: str, files: Iterable[RemoteFile]) -> Job | None:
        """The job for these files that is not completed, if there is one: there never are two."""
        key = key_of(repo, files)
        return next((job for job in self._jobs.values() if job.key == key and job.record.status != "completed"), None)

    def _running(self, repo: str, files: Iterable[RemoteFile]) -> Job | None:
        job = self._unfinished(repo, files)
        return job if job is not None and job.record.status == "downloading" else None

    def _run(self, job: Job) -> None:
        """Starts the job's task. One that is being stopped still may hold its file; this one waits for it."""
        if self._closed:
            raise ShuttingDown
        job.record = replace(job.record, status="downloading", error=None, completed_at=None)
        job.ready.clear()
        job.task = asyncio.ensure_future(self._work(job))

    async def _stop(self, job: Job) -> None:
        task, job.task = job.task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _end(self, job: Job, status: DownloadStatus, error: str | None = None) -> None:
        job.record = replace(
            job.record, status=status, error=error, completed_at=time.time() if status == "completed" else None
        )
        await self._save(job)

    # ---- the work of one job

    async def _work(self, job: Job) -> None:
        error: str | None = None
        try:
            async with self._turns:
                await self._bring(job)
        except LmError as exc:
            error = exc.message
        except OSError as exc:
            error = "the disk is full" if exc.errno in FULL else f"the disk failed: {exc.strerror or type(exc).__name__}"
        except Exception:
            log.exception("a download failed")
            error = "internal error"
        if error is None:
            log.info("download of %s completed", job.record.repo)
            await self._end(job, "completed")
        else:
            log.warning("download of %s failed: %s", job.record.repo, error)
            await self._end(job, "failed", error)
        await self._prune(job)
        if job.task is asyncio.current_task():
            job.task = None

    async def _bring(self, job: Job) -> None:
        """Tries until all is in place, or there is no sense in trying."""
        attempt = 0
        while True:
            before = job.received
            try:
                await self._fetch_all(job)
                return
            except HubError as error:
                attempt = 1 if job.received - before >= PROGRESS_BYTES else attempt + 1
                if not error.retry or attempt >= ATTEMPTS_MAX:
                    raise
                wait_s = wait_before(attempt, self._backoff_s, error.retry_after_s)
                log.info("download of %s: %s; it goes on in %.1f s", job.record.repo, error.message, wait_s)
                job.trouble = error.message
            try:
                await asyncio.sleep(wait_s)
            finally:
                job.trouble = None

    def _lock(self, place: Place) -> asyncio.Lock:
        return self._taken.setdefault(place.part, asyncio.Lock())

    async def _fetch_all(self, job: Job) -> None:
        places = self._places(job.record)
        for place in places:
            if place.file.name not in job.ready:
                async with self._lock(place):
                    await self._fetch(job, place)
        # The projector first and the first part last: what is incomplete is not taken for the whole.
        await in_thread(lambda: publish(places))

    async def _fetch(self, job: Job, place: Place) -> None:
        transfer = job.transfer = Transfer(self._client, job.record.repo, job.record.revision, place)
        work = in_thread(transfer.run)
        forget(work)
        job.pace.begin(time.monotonic())
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=min(TICK_S, self._stall_s / 4))
                if job.pace.note(time.monotonic(), transfer.received, transfer.on_wire) and not work.done():
                    raise HubError(f"the hub has sent next to nothing for {self._stall_s:g} s", retry=True)
            work.result()
            job.ready.add(place.file.name)
        finally:
            transfer.interrupt.cut()
            await asyncio.wait({work}, timeout=CLOSE_S)
            job.have[place.file.name] = transfer.have
            job.received += transfer.received
            self._received += transfer.received
            job.transfer = None

    # ---- the disk

    def _places(self, record: Record) -> list[Place]:
        return [Place(self._folder / record.repo, file) for file in record.files]

    async def _survey(self, repo: str, files: Iterable[RemoteFile]) -> Survey:
        places = [Place(self._folder / repo, file) for file in files]
        # A file of the right size that we brought ourselves may be of an older revision.
        completed = [job.record for job in self._jobs.values() if job.record.status == "completed"]
        brought = {place.target: place.file.digest for record in completed for place in self._places(record)}

        def look() -> Survey:
            in_place = [
                place.has_target() and brought.get(place.target, place.file.digest) == place.file.digest for place in places
            ]
            have = {
                place.file.name: place.file.size if there else place.received() for place, there in zip(places, in_place)
            }
            return Survey(all(in_place), have, free_bytes(self._folder))

        return await in_thread(look)

    def _promised(self) -> int:
        """Bytes of the disk that running jobs still need."""
        running = (job for job in self._jobs.values() if job.record.status == "downloading")
        return sum(max(job.record.size - job.downloaded_bytes, 0) for job in running)

    async def _discard(self, record: Record) -> None:
        """Removes what was received of its files, but for what an unfinished job goes on with."""
        places = self._places(record)
        for place in places:
            if place.part in self._begun():  # its lock may be held for hours
                continue
            async with self._lock(place):  # whoever begins with it meanwhile waits, and begins anew
                if place.part not in self._begun():
                    with contextlib.suppress(OSError):  # what cannot be taken away keeps nothing else there
                        await in_thread(place.discard)
        folders = {place.target.parent for place in places} | {self._folder / record.repo}
        for folder in folders:
            await in_thread(functools.partial(tidy, folder, self._folder))

    def _begun(self) -> set[Path]:
        """The parts that jobs go on with; a completed one has none."""
        unfinished = (job.record for job in self._jobs.values() if job.record.status != "completed")
        return {place.part for record in unfinished for place in self._places(record)}

    # ---- what outlives the server

    async def _save(self, job: Job) -> None:
        await self._keep(lambda: self._store.save(job.record), job)

    async def _keep(self, work: Callable[[], None], job: Job | None = None) -> None:
        """One after another, so that the last word is the latest. A job that was cancelled meanwhile is not saved again."""
        async with self._saving:
            if job is not None and job.record.id not in self._jobs:
                return
            saving = in_thread(work)
            forget(saving)
            try:
                await asyncio.shield(saving)
            except Exception as error:  # noqa: BLE001 - see `_restore`
                log.warning("downloads cannot be saved: %s", error)

    async def _prune(self, last: Job) -> None:
        """Forgets the jobs that have ended, but for so many. `last` ended just now, and somebody may look at it still."""
        ended = [job for job in self._jobs.values() if job is not last and job.record.status in ENDED]
        for job in ended[: max(len(ended) + 1 - FINISHED_MAX, 0)]:
            id = job.record.id
            if self._jobs.get(id) is not job or job.record.status not in ENDED:  # since the meantime
                continue
            del self._jobs[id]
            if job.record.status != "completed":
                await self._discard(job.record)  # first: what ends in between is found in the store again
            await self._keep(functools.partial(self._store.forget, id))


def is_sound(record: Record) -> bool:
    """Whether its names are ones that a hub may have; they were when it was saved."""
    owner, _, name = record.repo.partition("/")
    listed = all(problem(file.name) is None and is_visible(file.name) for file in record.files)
    return is_name(owner) and is_name(name) and listed and bool(record.files)


def wait_before(attempt: int, first_s: float, asked_s: float) -> float:
    """Seconds before the next attempt, `attempt` of which have failed: doubling, never the same for all, and no less than
    the hub asked for."""
    return max(min(first_s * 2.0 ** (attempt - 1), BACKOFF_MAX_S) * random.uniform(0.75, 1.0), asked_s)


def publish(places: list[Place]) -> None:
    for place in reversed(places):
        place.publish()
    for folder in {place.part.parent.parent for place in places}:
        tidy_hidden(folder)


def free_bytes(folder: Path) -> int:
    """What the disk of `folder`, which need not exist yet, has left; without bound if it does not say."""
    for existing in (folder, *folder.parents):
        try:
            return shutil.disk_usage(existing).free
        except FileNotFoundError:
            continue
        except OSError:
            break
    return sys.maxsize
