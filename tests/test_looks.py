"""Looks at the disk that are shared: none is older than the question, and many questions are few looks."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lmlite.app import looks
from lmlite.app.looks import Looks
from tests.conftest import FakeServer
from tests.core.gguf_files import gguf, llama

Serve = Callable[..., FakeServer]
MESSAGES = [{"role": "user", "content": "hi"}]


class Disk:
    """What is looked at: it counts the looks, which wait while the disk is `stuck`."""

    def __init__(self) -> None:
        self.n_begun = 0
        self.n_ended = 0
        self.answers = threading.Event()
        self.answers.set()

    def look(self) -> None:
        self.n_begun += 1
        assert self.answers.wait(30)
        self.n_ended += 1


def play(scene: Callable[[Disk, Looks], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        disk = Disk()
        shared = Looks(disk.look)
        try:
            await scene(disk, shared)
        finally:
            disk.answers.set()
            await shared.close()

    asyncio.run(asyncio.wait_for(run(), 30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_who_asks_during_a_look_gets_the_next_one_and_shares_it() -> None:
    async def scene(disk: Disk, shared: Looks) -> None:
        disk.answers.clear()
        first = asyncio.ensure_future(shared.fresh())
        await until(lambda: disk.n_begun == 1)
        later = [asyncio.ensure_future(shared.fresh()) for _ in range(100)]
        later[0].cancel()  # and takes it from nobody else
        disk.answers.set()
        await first
        assert not later[1].done()
        await asyncio.gather(*later[1:])
        assert (disk.n_begun, disk.n_ended) == (2, 2)

    play(scene)


def test_any_look_will_do_for_who_knows_nothing_yet() -> None:
    async def scene(disk: Disk, shared: Looks) -> None:
        disk.answers.clear()
        asked = [asyncio.ensure_future(shared.any())]
        await until(lambda: disk.n_begun == 1)
        asked.append(asyncio.ensure_future(shared.any()))
        await asyncio.sleep(0)
        disk.answers.set()
        await asyncio.gather(*asked)
        assert disk.n_begun == 1

    play(scene)


def test_looks_rest_in_proportion_to_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(disk: Disk, shared: Looks) -> None:
        rests: list[float] = []
        sleep = asyncio.sleep

        async def slept(delay: float) -> None:
            rests.append(delay)
            await sleep(0)

        disk.answers.clear()
        first = asyncio.ensure_future(shared.fresh())
        await until(lambda: disk.n_begun == 1)
        await sleep(0.05)
        disk.answers.set()
        await first
        monkeypatch.setattr(asyncio, "sleep", slept)
        await shared.fresh()
        monkeypatch.undo()
        (rest,) = rests
        assert 0.1 < rest <= looks.REST_MAX_S

    play(scene)


def test_a_look_that_fails_is_told_to_who_waited_and_the_next_one_is_as_any() -> None:
    async def scene(disk: Disk, shared: Looks) -> None:
        def broken() -> None:
            raise OSError("no disk")

        failing = Looks(broken)
        for _ in range(2):
            with pytest.raises(OSError, match="no disk"):
                await failing.fresh()
        await failing.close()

    play(scene)


# ---- on a server -----------------------------------------------------------------------------------------------------


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf(llama()))


def test_a_model_just_put_on_disk_is_there_for_every_kind_of_request(serve_fake: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    server = serve_fake(models_dir=[folder])
    client = server.client()
    asks: dict[str, Callable[[str], Any]] = {
        "chat": lambda name: client.post("/v1/chat/completions", {"model": name, "messages": MESSAGES}),
        "load": lambda name: client.post("/api/v1/models/load", {"model": name}),
        "shown": lambda name: client.get(f"/api/v0/models/{name}"),
    }
    for name, ask in asks.items():
        path = folder / "acme" / name / f"{name}.gguf"
        for _ in range(2):  # came, went, and came again
            assert ask(name).status == 404
            put(path)
            assert name in [entry["id"] for entry in client.get("/v1/models").json["data"]]
            assert ask(name).status == 200
            for instance in client.get("/lmlite/instances").json["instances"]:
                client.post("/api/v1/models/unload", {"instance_id": instance["identifier"]})
            path.unlink()


def test_unknown_names_asked_for_at_once_share_a_look(serve_fake: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve_fake()
    client = server.client()
    assert client.get("/v1/models").status == 200
    models = server.service.app.models
    n_looks = 0
    scan = models._scan  # noqa: SLF001 - the one place that counts

    def counted() -> None:
        nonlocal n_looks
        n_looks += 1
        scan()

    monkeypatch.setattr(models._looks, "_look", counted)  # noqa: SLF001

    async def flood() -> int:
        asked = [models.resolve(f"unknown-{i}") for i in range(500)]
        return sum(isinstance(found, Exception) for found in await asyncio.gather(*asked, return_exceptions=True))

    assert server.thread.call(flood()) == 500
    assert n_looks == 1


def test_settings_written_twice_in_one_tick_of_the_disk_count_for_the_next_request(
    serve_fake: Serve, tmp_path: Path
) -> None:
    import os

    server = serve_fake()
    client = server.client()
    server.config.home.mkdir(exist_ok=True)
    path = server.config.home / "model-settings.json"
    times = None
    for temperature in (0.25, 0.75, 0.25):
        path.write_text(json.dumps({"talker": {"sampling": {"temperature": temperature}}}))
        if times is not None:
            os.utime(path, ns=times)
        status = path.stat()
        times = status.st_atime_ns, status.st_mtime_ns
        assert client.post("/v1/chat/completions", {"messages": MESSAGES}).status == 200  # names no model
        said = next(command for _, _, command in reversed(server.engine.commands) if "sampling" in command)
        assert said["sampling"]["temperature"] == temperature
