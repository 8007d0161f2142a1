"""Downloads as jobs: one per model, tried again, paused, cancelled, taken up after a restart, closed at once."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmlite.download import Progress, Record, RemoteFile
from lmlite.errors import DiskFull, HubError, JobNotFound, NothingToDownload
from lmlite.hub import jobs, transfer
from lmlite.hub.http import Client
from lmlite.hub.jobs import Downloads
from lmlite.hub.names import Wanted, parse
from lmlite.hub.site import Site
from tests.hub import misbehaving
from tests.hub.misbehaving import WAIT_S, Held, Hub, answer, cut_after, sha256

REPO = "acme/Falcon-GGUF"
WANTED = Wanted("acme", "Falcon-GGUF")
CONTENT = random.Random(1).randbytes(400_000)
LARGER = random.Random(2).randbytes(500_000)
NAME = "Falcon-Q4_K_M.gguf"
FILE = RemoteFile(NAME, len(CONTENT), f"sha256:{sha256(CONTENT)}")


class Memory:
    """A store that is told everything and loses nothing; `fails` makes it a broken one."""

    def __init__(self, *records: Record):
        self.records = {record.id: record for record in records}
        self.fails = False

    def all(self) -> list[Record]:
        self.check()
        return list(self.records.values())

    def save(self, record: Record) -> None:
        self.check()
        self.records[record.id] = record

    def forget(self, id: str) -> None:
        self.check()
        self.records.pop(id, None)

    def check(self) -> None:
        if self.fails:
            raise RuntimeError("no store today")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with misbehaving.running({REPO: {NAME: CONTENT, "Falcon-Q8_0.gguf": LARGER}}) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store() -> Memory:
    return Memory()


@pytest.fixture
def opened(hub: Hub, folder: Path, store: Memory) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Downloads]:
        downloads = Downloads(Client(Site(hub.url)), folder, store, **{"backoff_s": 0.001, **options})
        try:
            yield downloads
        finally:
            await downloads.close()

    return opened


@contextmanager
def logged(text: str) -> Iterator[asyncio.Event]:
    """Set when the log of jobs says so."""
    said, log = asyncio.Event(), logging.getLogger(jobs.__name__)

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                said.set()

    listener, level = Listener(), log.level
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        log.removeHandler(listener)
        log.setLevel(level)


async def ended(downloads: Downloads, id: str, status: str = "completed") -> Progress:
    """What is told of the job once nothing works on it any more."""
    await downloads.get(id)
    if (work := downloads._jobs[id].task) is not None:
        await asyncio.wait_for(asyncio.wait({work}), WAIT_S)
    told = await downloads.get(id)
    assert told.record.status == status, told
    return told


async def reached(held: Held) -> None:
    assert await asyncio.to_thread(held.reached.wait, WAIT_S)


async def started(downloads: Downloads, wanted: Wanted = WANTED) -> str:
    progress = await downloads.start(wanted)
    assert progress is not None
    return progress.record.id


def visible(folder: Path) -> dict[str, bytes]:
    """What a catalogue would see."""
    files = (path for path in folder.rglob("*") if path.is_file())
    shown = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: content for name, content in shown.items() if "/." not in name}


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"{transfer.HIDDEN}/*"))


# ---- one job ---------------------------------------------------------------------------------------------------------


def test_a_download_ends_in_its_place_and_is_there_from_then_on(opened: Any, hub: Hub, folder: Path, store: Memory) -> None:
    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            done = await ended(downloads, id)
            assert done.downloaded_bytes == done.record.size == len(CONTENT)
            assert done.record.completed_at is not None and done.record.completed_at >= done.record.started_at
            assert store.records[id] == done.record
            assert await downloads.start(WANTED) is None
            assert [progress.record.id for progress in await downloads.all()] == [id]

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT}
    assert parts(folder) == []


def test_one_model_is_one_job_however_it_is_named(opened: Any, hub: Hub) -> None:
    async def scenario() -> None:
        held = Held(1000)
        hub.on("/store/", held)
        url = f"https://huggingface.co/{REPO}"
        names = [REPO, REPO.lower(), f"{REPO}@Q4_K_M", f"{REPO}@q4_k_m", url, f"{url}/resolve/main/{NAME}"]
        async with opened() as downloads:
            ids = await asyncio.gather(*(started(downloads, parse(name)) for name in names * 4))
            assert len(set(ids)) == 1
            await reached(held)
            assert await started(downloads) == ids[0]
            held.release.set()
            await ended(downloads, ids[0])

    asyncio.run(scenario())
    assert len(hub.files_asked()) == 1


def test_a_job_waits_and_tries_again_until_it_is_through(opened: Any, hub: Hub, folder: Path) -> None:
    hub.on("/store/", cut_after(100_000), answer(503), misbehaving.raw(b""), cut_after(100_000), answer(429))

    async def scenario() -> None:
        async with opened() as downloads:
            await ended(downloads, await started(downloads))

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT}
    assert [asked.range for asked in hub.files_asked()] == [None, *["bytes=100000-"] * 3, *["bytes=200000-"] * 2]


def test_what_a_job_waits_for_is_told(opened: Any, hub: Hub) -> None:
    hub.on("/store/", answer(429, Retry_After="600"))

    async def scenario() -> None:
        async with opened() as downloads:
            with logged("it goes on in") as waits:
                id = await started(downloads)
                await waits.wait()
            told = await downloads.get(id)
            assert told.record.status == "downloading" and "status 429" in str(told.trouble)
            assert (await downloads.pause(id)).trouble is None

    asyncio.run(scenario())
    assert len(hub.files_asked()) == 1


def test_waits_double_up_to_a_minute_and_respect_what_the_hub_asks() -> None:
    waits = [jobs.wait_before(attempt, 1.0, 0.0) for attempt in range(1, 16)]
    assert all(0.75 * wanted <= wait <= wanted for wait, wanted in zip(waits, [1, 2, 4, 8, 16, 32] + [60] * 9))
    assert jobs.wait_before(1, 1.0, 99.0) == 99.0


def test_a_job_gives_up_with_the_reason_and_goes_on_when_asked_again(opened: Any, hub: Hub, folder: Path) -> None:
    hub.on("/store/", cut_after(100_000), *[answer(503)] * (jobs.ATTEMPTS_MAX - 1))

    async def scenario() -> None:
        async with opened(backoff_s=1e-6) as downloads:
            id = await started(downloads)
            failed = await ended(downloads, id, "failed")
            assert "status 503" in str(failed.record.error) and failed.downloaded_bytes == 100_000
            assert visible(folder) == {}
            assert await started(downloads) == id
            done = await ended(downloads, id)
            assert done.record.error is None

    asyncio.run(scenario())
    assert hub.files_asked()[-1].range == "bytes=100000-"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_the_job_at_once(opened: Any, hub: Hub, folder: Path, status: int) -> None:
    hub.on("/resolve/", then=answer(status))

    async def scenario() -> None:
        async with opened() as downloads:
            failed = await ended(downloads, await started(downloads), "failed")
            assert f"status {status}" in str(failed.record.error)

    asyncio.run(scenario())
    assert visible(folder) == {} and len(hub.asked) == 2


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (answer(200, LARGER[: len(CONTENT)], ETag='"x"'), "checksum"),
        (misbehaving.chunked(CONTENT, endless=True), "sends more"),
        (misbehaving.redirect("file:///etc/passwd"), "not followed"),
        (misbehaving.redirect("http://169.254.169.254/latest"), "not followed"),
    ],
)
def test_what_is_not_the_file_fails_and_gets_no_name(
    opened: Any, hub: Hub, folder: Path, act: misbehaving.Act, reason: str
) -> None:
    hub.on("/store/", then=act)

    async def scenario() -> None:
        async with opened() as downloads:
            failed = await ended(downloads, await started(downloads), "failed")
            assert reason in str(failed.record.error)

    asyncio.run(scenario())
    assert visible(folder) == {}


def test_a_connection_that_hardly_moves_is_made_anew(opened: Any, hub: Hub, folder: Path) -> None:
    stop = threading.Event()
    hub.on("/store/", misbehaving.drip(stop), Held(0))

    async def scenario() -> None:
        async with opened(stall_s=0.2) as downloads:
            id = await started(downloads)
            await ended(downloads, id)

    asyncio.run(scenario())
    stop.set()
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT}
    assert len(hub.files_asked()) == 3


def test_the_parts_of_a_model_appear_together(opened: Any, hub: Hub, folder: Path) -> None:
    files = {f"Big-Q8_0-0000{i}-of-00002.gguf": content for i, content in ((1, CONTENT), (2, LARGER))}
    hub.repos["acme/Big"] = {**files, "mmproj-Big-F16.gguf": b"sees"}
    held = Held(10)
    hub.on(sha256(LARGER), held)

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads, Wanted("acme", "Big"))
            await reached(held)
            assert visible(folder) == {}
            assert (await downloads.get(id)).downloaded_bytes >= len(CONTENT)
            held.release.set()
            done = await ended(downloads, id)
            assert done.record.size == len(CONTENT) + len(LARGER) + 4

    asyncio.run(scenario())
    assert visible(folder) == {f"acme/Big/{name}": content for name, content in hub.repos["acme/Big"].items()}


def test_a_file_that_two_jobs_need_is_fetched_once(opened: Any, hub: Hub, folder: Path) -> None:
    hub.repos[REPO]["mmproj-F16.gguf"] = sees = random.Random(3).randbytes(300_000)

    async def scenario() -> None:
        async with opened() as downloads:
            wanted = (WANTED, replace(WANTED, quantization="Q8_0"))
            ids = await asyncio.gather(*(started(downloads, one) for one in wanted))
            assert len(set(ids)) == 2
            for id in ids:
                await ended(downloads, id)

    asyncio.run(scenario())
    assert len(visible(folder)) == 3
    assert sum(sha256(sees) in asked.path for asked in hub.files_asked()) == 1


def test_two_files_of_one_content_both_come(opened: Any, hub: Hub, folder: Path) -> None:
    hub.repos["acme/Big"] = {f"Big-Q8_0-0000{i}-of-00002.gguf": CONTENT for i in (1, 2)}

    async def scenario() -> None:
        async with opened() as downloads:
            await ended(downloads, await started(downloads, Wanted("acme", "Big")))

    asyncio.run(scenario())
    assert visible(folder) == {f"acme/Big/{name}": CONTENT for name in hub.repos["acme/Big"]}
    assert parts(folder) == []


def test_jobs_for_two_files_of_one_content_do_not_wait_for_each_other(opened: Any, hub: Hub, folder: Path) -> None:
    hub.repos[REPO]["Falcon-Q5_0.gguf"] = CONTENT
    hub.on("/store/", held := Held(1000))

    async def scenario() -> None:
        async with opened() as downloads:
            first = await started(downloads)
            await reached(held)
            await ended(downloads, await started(downloads, replace(WANTED, quantization="Q5_0")))
            held.release.set()
            await ended(downloads, first)

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{name}": CONTENT for name in (NAME, "Falcon-Q5_0.gguf")}
    assert len(hub.files_asked()) == 2


def test_a_newer_revision_of_the_same_size_replaces_what_was_brought(opened: Any, hub: Hub, folder: Path) -> None:
    newer = CONTENT[::-1]

    async def scenario() -> None:
        async with opened() as downloads:
            await ended(downloads, await started(downloads))
            hub.repos[REPO][NAME] = newer
            second = await started(downloads)
            await ended(downloads, second)
            assert await downloads.start(WANTED) is None

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": newer}


# ---- what a user does ------------------------------------------------------------------------------------------------


def test_a_job_is_paused_and_goes_on_where_it_was(opened: Any, hub: Hub, store: Memory) -> None:
    hub.on("/store/", held := Held(150_000))

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            await reached(held)

            while (await downloads.get(id)).downloaded_bytes < 150_000:
                await asyncio.to_thread(lambda: None)  # the threads that fetch tell nobody
            assert (await downloads.pause(id)).record.status == "paused"
            assert (await downloads.pause(id)).record.status == "paused"
            assert store.records[id].status == "paused"
            assert (await downloads.get(id)).downloaded_bytes == 150_000
            assert (await downloads.resume(id)).record.status == "downloading"
            await ended(downloads, id)
            assert (await downloads.resume(id)).record.status == "completed"

    asyncio.run(scenario())
    held.release.set()
    assert hub.files_asked()[-1].range == "bytes=150000-"


def test_whatever_is_pressed_in_whatever_order_the_file_comes_whole(opened: Any, hub: Hub, folder: Path) -> None:
    held = Held(1000)
    hub.on("/store/", held)
    draw = random.Random(5)

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            await reached(held)
            presses = [draw.choice((downloads.pause, downloads.resume)) for _ in range(50)]
            await asyncio.gather(*(press(id) for press in presses), *(started(downloads) for _ in range(5)))
            held.release.set()
            await downloads.pause(id)
            await downloads.resume(id)
            await ended(downloads, id)

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT} and parts(folder) == []


def test_asking_for_a_paused_model_goes_on_with_its_job(opened: Any, hub: Hub) -> None:
    hub.on("/store/", held := Held(1000))

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            await reached(held)
            await downloads.pause(id)
            assert await started(downloads) == id
            await ended(downloads, id)

    asyncio.run(scenario())
    held.release.set()


def test_a_cancelled_job_leaves_nothing_and_takes_nothing_of_others(
    opened: Any, hub: Hub, folder: Path, store: Memory
) -> None:
    async def scenario() -> None:
        async with opened() as downloads:
            first = await started(downloads, replace(WANTED, quantization="Q8_0"))
            await ended(downloads, first)
            hub.on("/store/", held := Held(1000))
            second = await started(downloads)
            await reached(held)
            await downloads.cancel(second)
            held.release.set()
            assert parts(folder) == [] and list(visible(folder)) == [f"{REPO}/Falcon-Q8_0.gguf"]
            await downloads.cancel(first)  # completed: its files stay
            assert list(visible(folder)) == [f"{REPO}/Falcon-Q8_0.gguf"] and store.records == {}
            for id in (first, second):
                for ask in (downloads.get, downloads.pause, downloads.resume, downloads.cancel):
                    with pytest.raises(JobNotFound):
                        await ask(id)

    asyncio.run(scenario())


def test_a_cancelled_job_leaves_no_part_of_what_an_earlier_one_completed(opened: Any, hub: Hub, folder: Path) -> None:
    async def scenario() -> None:
        async with opened() as downloads:
            await ended(downloads, await started(downloads))
            (folder / REPO / NAME).unlink()
            hub.on("/store/", held := Held(1000))
            second = await started(downloads)
            await reached(held)
            await downloads.cancel(second)
            held.release.set()

    asyncio.run(scenario())
    assert parts(folder) == []


def test_a_part_that_another_job_goes_on_with_outlives_a_cancelled_one(opened: Any, hub: Hub, folder: Path) -> None:
    hub.repos[REPO]["mmproj-F16.gguf"] = sees = random.Random(3).randbytes(300_000)
    hub.on(sha256(sees), held := Held(1000))

    async def scenario() -> None:
        async with opened() as downloads:
            first = await started(downloads)
            await reached(held)
            await downloads.pause(first)
            held.release.set()
            hub.on(sha256(LARGER), other := Held(1000))
            second = await started(downloads, replace(WANTED, quantization="Q8_0"))
            await reached(other)
            _, place = downloads._places((await downloads.get(first)).record)
            await downloads.cancel(second)
            other.release.set()
            assert place.part.exists()
            await downloads.cancel(first)
            assert parts(folder) == []

    asyncio.run(scenario())


def test_a_job_that_goes_on_with_a_newer_revision_leaves_no_part_of_the_older(opened: Any, hub: Hub, folder: Path) -> None:
    hub.on("/store/", held := Held(1000))

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            await reached(held)
            await downloads.pause(id)
            held.release.set()
            hub.repos[REPO][NAME] = LARGER
            assert await started(downloads) == id
            await ended(downloads, id)

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": LARGER} and parts(folder) == []


def test_a_model_that_is_asked_for_again_while_it_is_cancelled_comes_whole(
    opened: Any, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discards, go_on, discard = threading.Event(), threading.Event(), transfer.Place.discard

    def slow(place: transfer.Place) -> None:
        discards.set()
        assert go_on.wait(WAIT_S)
        discard(place)

    hub.on("/store/", held := Held(1000), again := Held(1000))

    async def scenario() -> None:
        async with opened() as downloads:
            first = await started(downloads)
            await reached(held)
            with monkeypatch.context() as patch:
                patch.setattr(transfer.Place, "discard", slow)
                cancelling = asyncio.ensure_future(downloads.cancel(first))
                assert await asyncio.to_thread(discards.wait, WAIT_S)
                second = await started(downloads)
                for _ in range(20):
                    await asyncio.to_thread(lambda: None)
                assert not again.reached.is_set()
                go_on.set()
                await cancelling
            again.release.set()
            held.release.set()
            await ended(downloads, second)

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT} and parts(folder) == []


def test_a_part_that_cannot_be_taken_away_keeps_no_other(opened: Any, hub: Hub, folder: Path) -> None:
    hub.repos[REPO]["mmproj-F16.gguf"] = random.Random(3).randbytes(300_000)
    hub.on("/store/", held := Held(1000))

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            await reached(held)
            await downloads.pause(id)
            first, second = (place.part for place in downloads._places((await downloads.get(id)).record))
            for part in (first, second):
                part.unlink(missing_ok=True)
            first.mkdir()
            second.touch()
            await downloads.cancel(id)
            assert {part.stem for part in parts(folder)} == {first.stem}

    asyncio.run(scenario())
    held.release.set()


def test_a_repository_that_lists_nothing_good_makes_no_job(opened: Any, hub: Hub, folder: Path, store: Memory) -> None:
    hub.repos["acme/evil"] = {"../../evil.gguf": b"x"}

    async def scenario() -> None:
        async with opened() as downloads:
            with pytest.raises(HubError, match="not inside the repository"):
                await downloads.start(Wanted("acme", "evil"))
            with pytest.raises(NothingToDownload):
                await downloads.start(Wanted("acme", "nothing"))
            assert await downloads.all() == []
            hub.repos["acme/nothing"] = {"a.gguf": CONTENT}  # a failure is not remembered
            await ended(downloads, await started(downloads, Wanted("acme", "nothing")))

    asyncio.run(scenario())
    assert list(visible(folder)) == ["acme/nothing/a.gguf"]


# ---- the disk --------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_refuses_with_both_numbers(
    opened: Any, hub: Hub, folder: Path, store: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "free_bytes", lambda folder: 300_000)

    async def scenario() -> None:
        async with opened() as downloads:
            with pytest.raises(DiskFull, match="needs 400000 bytes, the disk has 300000") as refused:
                await downloads.start(WANTED)
            assert (refused.value.needed, refused.value.available) == (400_000, 300_000)

    asyncio.run(scenario())
    assert not folder.exists() and store.records == {}


def test_room_that_running_jobs_need_is_not_given_twice(opened: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "free_bytes", lambda folder: 700_000)
    hub.on("/store/", held := Held(0))

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            await reached(held)
            with pytest.raises(DiskFull) as refused:
                await downloads.start(replace(WANTED, quantization="Q8_0"))
            assert (refused.value.needed, refused.value.available) == (500_000, 300_000)
            held.release.set()
            await ended(downloads, id)
            await ended(downloads, await started(downloads, replace(WANTED, quantization="Q8_0")))

    asyncio.run(scenario())


def test_a_disk_that_fills_up_fails_the_job_which_goes_on_when_there_is_room(
    opened: Any, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transfer.append

    def full(fd: int, piece: bytes) -> None:
        if os.fstat(fd).st_size + len(piece) > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(fd, piece)

    hub.on("/store/", cut_after(150_000))

    async def scenario() -> None:
        async with opened() as downloads:
            with monkeypatch.context() as patch:
                patch.setattr(transfer, "append", full)
                failed = await ended(downloads, id := await started(downloads), "failed")
            assert failed.record.error == "the disk is full" and failed.downloaded_bytes >= 150_000
            assert visible(folder) == {}
            await downloads.resume(id)
            await ended(downloads, id)

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT}


# ---- restarts --------------------------------------------------------------------------------------------------------


def record(id: str, status: Any, **more: Any) -> Record:
    return replace(Record(id, REPO, misbehaving.COMMIT, (FILE,), status, 1_800_000_000.0), **more)


def test_jobs_of_an_earlier_server_are_taken_up_as_they_were(hub: Hub, opened: Any, folder: Path, store: Memory) -> None:
    other = RemoteFile("Falcon-Q8_0.gguf", len(LARGER), f"sha256:{sha256(LARGER)}")
    hub.on("/store/", cut_after(100_000), *[answer(404)])
    store.records = {
        "job_1": record("job_1", "completed", repo="acme/old", completed_at=1_800_000_001.0),
        "job_2": record("job_2", "paused", files=(other,)),
        "job_3": record("job_3", "downloading"),
        "job_4": record("job_4", "failed", repo="acme/other", error="why"),
    }

    async def scenario() -> None:
        async with opened() as downloads:
            await downloads.restore()
            failed = await ended(downloads, "job_3", "failed")
            assert failed.downloaded_bytes == 100_000
            told = {progress.record.id: progress for progress in await downloads.all()}
            assert {id: progress.record.status for id, progress in told.items()} == {
                "job_1": "completed", "job_2": "paused", "job_3": "failed", "job_4": "failed",
            }  # fmt: skip
            assert told["job_4"].record.error == "why"
        async with opened() as downloads:
            assert (await downloads.get("job_3")).downloaded_bytes == 100_000
            await downloads.resume("job_3")
            await ended(downloads, "job_3")

    asyncio.run(scenario())
    assert hub.files_asked()[-1].range == "bytes=100000-"
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT}


@pytest.mark.parametrize("status", ["paused", "completed"])
def test_parts_that_are_named_by_their_content_alone_are_taken_away(
    opened: Any, folder: Path, store: Memory, status: str
) -> None:
    """Earlier servers named them so."""
    store.records = {"job_1": record("job_1", status)}
    hidden = folder / REPO / transfer.HIDDEN
    hidden.mkdir(parents=True)
    names = [f"{sha256(CONTENT)}.part", f"{sha256(CONTENT)}.etag", f"{misbehaving.git(CONTENT)}.ready"]
    kept = transfer.Place(folder / REPO, FILE).part
    for path in (*(hidden / name for name in names), kept):
        path.write_bytes(b"begun")

    async def scenario() -> None:
        async with opened() as downloads:
            await downloads.restore()

    asyncio.run(scenario())
    assert parts(folder) == [kept]


def test_records_that_lead_out_of_the_folder_are_not_taken_up(hub: Hub, opened: Any, folder: Path, store: Memory) -> None:
    outside = RemoteFile("../../../x.gguf", len(CONTENT), FILE.digest)
    odds: list[dict[str, Any]] = [{"repo": "../.."}, {"repo": "acme"}, {"files": (outside,)}, {"files": ()}]
    for i, odd in enumerate(odds):
        store.records[f"job_{i}"] = record(f"job_{i}", "downloading", **odd)

    async def scenario() -> None:
        async with opened() as downloads:
            assert await downloads.all() == []

    asyncio.run(scenario())
    assert hub.asked == [] and not folder.exists()


@pytest.mark.parametrize("content", [CONTENT, LARGER[: len(CONTENT)]])
def test_what_is_in_place_when_a_job_is_taken_up_is_verified(
    hub: Hub, opened: Any, folder: Path, store: Memory, content: bytes
) -> None:
    """The server may have died between the last rename and its note of it."""
    store.records = {"job_1": record("job_1", "downloading")}
    place = folder / REPO / NAME
    place.parent.mkdir(parents=True)
    place.write_bytes(content)

    async def scenario() -> None:
        async with opened() as downloads:
            await ended(downloads, "job_1")

    asyncio.run(scenario())
    assert place.read_bytes() == CONTENT
    assert len(hub.files_asked()) == (content != CONTENT)


def test_a_store_that_fails_does_not_keep_models_from_coming(
    hub: Hub, opened: Any, folder: Path, store: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    store.fails = True

    async def scenario() -> None:
        async with opened() as downloads:
            await ended(downloads, await started(downloads))

    asyncio.run(scenario())
    assert visible(folder) == {f"{REPO}/{NAME}": CONTENT}
    assert "cannot be saved: no store today" in caplog.text


def test_closing_waits_for_nothing_that_the_hub_does(hub: Hub, opened: Any, store: Memory) -> None:
    listing, first, second = Held(0), Held(0), Held(1000)
    hub.repos["acme/a"] = {"a.gguf": LARGER}
    hub.on("/api/models/acme/slow", lambda handler: listing.hold())
    hub.on("/store/", lambda handler: first.hold(), second)

    async def scenario() -> None:
        async with opened() as downloads:
            await started(downloads)
            await reached(first)
            await started(downloads, Wanted("acme", "a"))
            await reached(second)
            slow = asyncio.ensure_future(downloads.start(Wanted("acme", "slow")))
            await reached(listing)
            await downloads.close()
            await asyncio.gather(slow, return_exceptions=True)
            assert slow.cancelled() or slow.exception()

    asyncio.run(scenario())
    assert not any(held.given_up for held in (listing, first, second))
    for held in (listing, first, second):
        held.release.set()
    assert {saved.status for saved in store.records.values()} == {"downloading"}


def test_no_more_than_a_few_jobs_fetch_at_once(hub: Hub, opened: Any) -> None:
    held = [Held(10) for _ in range(jobs.RUNNING_MAX)]
    contents = [bytes([i]) * 1000 for i in range(jobs.RUNNING_MAX + 1)]
    hub.repos.update({f"acme/m{i}": {"a.gguf": content} for i, content in enumerate(contents)})
    hub.on("/store/", *held)

    async def scenario() -> None:
        async with opened() as downloads:
            ids = [await started(downloads, Wanted("acme", f"m{i}")) for i in range(len(contents))]
            for one in held:
                await reached(one)
            assert len(hub.files_asked()) == jobs.RUNNING_MAX
            assert (await downloads.get(ids[-1])).record.status == "downloading"
            for one in held:
                one.release.set()
            for id in ids:
                await ended(downloads, id)

    asyncio.run(scenario())


def test_old_jobs_are_forgotten(hub: Hub, opened: Any, store: Memory) -> None:
    for i in range(jobs.FINISHED_MAX):
        store.records[f"job_{i}"] = record(f"job_{i}", "completed", repo=f"acme/old{i}", started_at=float(i))

    async def scenario() -> None:
        async with opened() as downloads:
            id = await started(downloads)
            await ended(downloads, id)

            assert "job_0" not in store.records
            assert len(await downloads.all()) == jobs.FINISHED_MAX and id in store.records

    asyncio.run(scenario())


def test_a_failed_job_that_is_forgotten_leaves_no_part(
    hub: Hub, opened: Any, folder: Path, store: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FINISHED_MAX", 1)
    hub.on("/store/", cut_after(1000), answer(404))

    async def scenario() -> None:
        async with opened() as downloads:
            first = await started(downloads)
            await ended(downloads, first, "failed")
            assert parts(folder) != []
            second = await started(downloads, replace(WANTED, quantization="Q8_0"))
            await ended(downloads, second)
            assert list(store.records) == [second]

    asyncio.run(scenario())
    assert parts(folder) == []


def test_a_job_that_has_just_ended_is_not_the_one_that_is_forgotten(
    hub: Hub, opened: Any, store: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FINISHED_MAX", 1)
    hub.on("/store/", held := Held(1000))

    async def scenario() -> None:
        async with opened() as downloads:
            first = await started(downloads)
            await reached(held)
            await ended(downloads, await started(downloads, replace(WANTED, quantization="Q8_0")))
            held.release.set()
            await ended(downloads, first)
            assert list(store.records) == [first]

    asyncio.run(scenario())


def test_the_pace_is_that_of_the_last_seconds_and_a_crawl_is_a_stall() -> None:
    pace = jobs.Pace(stall_s=10)
    pace.begin(100.0)
    assert pace.bytes_per_second == 0
    for second in range(1, 11):
        assert not pace.note(100.0 + second, second * 2000, True)
    assert pace.bytes_per_second == 2000
    assert not pace.note(115.0, 20_000, True)
    assert pace.note(121.0, 20_100, True)
    assert not pace.note(200.0, 20_100, False)  # the disk is at work, not the hub
    assert not pace.note(205.0, 20_100, True)


