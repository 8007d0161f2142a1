"""Engines in child processes and in threads: how they start, how they end, and what their end is called."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lmlite import errors
from lmlite.core.engine import worker
from lmlite.core.engine.client import Engine
from lmlite.core.engine.frames import HEADER, Kind
from lmlite.core.engine.payloads import LoadSpec, load_object
from lmlite.core.engine.worker import STDERR_TAIL, Process, Thread, environment
from lmlite.events import TextDelta
from lmlite.package import bundled_model
from lmlite.request import Generate, Text
from tests.conftest import INSTALLED
from tests.fakes import WORDS, FakeEngine, Script, fake_process, fake_thread, frame
from tests.random_models import with_template

SPEC = LoadSpec((Path("m.gguf"),))


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 60))


def python(code: str, log: Callable[[str], None] | None = None) -> Process:
    """A child that runs `code` with its descriptor's number in `fd`."""
    return Process((sys.executable, "-c", f"import os, signal, sys, time; fd = int(sys.argv[1]); {code}"), log)


async def say(engine: Engine, max_tokens: int = -1) -> str:
    events = engine.run(Generate(Text("x"), max_tokens=max_tokens))
    return "".join([event.text async for event in events if isinstance(event, TextDelta)])


async def reason_of(engine: Engine) -> str:
    with pytest.raises(errors.EngineGone) as caught:
        await say(engine, 1_000_000)
    return caught.value.reason


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("place", [fake_thread, fake_process])
def test_both_placements_serve_alike(place: Callable[[], worker.Placement]) -> None:
    async def scene() -> None:
        placement = place()
        engine = await Engine.open(placement, "m")
        await engine.load(SPEC)
        assert await say(engine) == "".join(WORDS)
        assert placement.fate() is None
        await engine.close()
        assert placement.fate() in ("exit 0", "returned 0")

    run(scene())


def test_no_process_and_no_zombie_stays() -> None:
    async def scene() -> None:
        placement = fake_process()
        engine = await Engine.open(placement, "m")
        await engine.load(SPEC)
        pid = placement.pid
        assert pid is not None and exists(pid)
        await engine.close()
        assert not exists(pid)

    run(scene())


def test_no_descriptor_stays() -> None:
    async def cycle() -> None:
        for place in (fake_process, fake_thread):
            engine = await Engine.open(place(), "m")
            await engine.load(SPEC)
            await engine.close()

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to count descriptors in")
    run(cycle())
    before = descriptors()
    run(cycle())
    assert descriptors() == before


@pytest.mark.parametrize("place", [fake_thread, fake_process])
def test_no_thread_for_an_engine_costs_nothing_but_the_engine(
    place: Callable[[], worker.Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scene() -> None:
        placement = place()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            with pytest.raises(OSError, match="no thread can be started"):
                await Engine.open(placement, "m")
        await placement.close()
        assert placement.pid is None or not exists(placement.pid)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to count descriptors in")
    run(scene())
    before = descriptors()
    run(scene())
    assert descriptors() == before


def test_a_kill_in_mid_stream_is_told_to_the_request() -> None:
    async def scene() -> None:
        placement = fake_process()
        engine = await Engine.open(placement, "m")
        await engine.load(SPEC)
        batches = engine.run(Generate(Text("x"), max_tokens=1_000_000)).batches()
        await anext(batches)
        assert placement.pid is not None
        os.kill(placement.pid, signal.SIGKILL)
        with pytest.raises(errors.EngineGone) as caught:
            async for _ in batches:
                pass
        assert caught.value.reason == "killed (SIGKILL)"
        await engine.close()
        assert not exists(placement.pid)

    run(scene())


def test_an_abort_is_a_crash_and_its_last_words_are_logged() -> None:
    async def scene() -> None:
        logged: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def log(text: str) -> None:
            loop.call_soon_threadsafe(logged.put_nowait, text)

        words = f"os.write(2, b'x' * {4 * STDERR_TAIL} + b' GGML_ASSERT failed')"
        engine = await Engine.open(python(f"{words}; os.abort()", log), "m")
        assert await reason_of(engine) == "crashed (SIGABRT)"
        text = await logged.get()
        assert "crashed (SIGABRT)" in text and text.endswith("GGML_ASSERT failed")
        assert len(text) < STDERR_TAIL + 200
        await engine.close()

    run(scene())


@pytest.mark.parametrize(
    "code, reason",
    [
        ("sys.exit(3)", "exit 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed (SIGTERM)"),
    ],
)
def test_the_end_of_a_process_has_a_name(code: str, reason: str) -> None:
    async def scene() -> None:
        engine = await Engine.open(python(code), "m")
        assert await reason_of(engine) == reason
        await engine.close()

    run(scene())


def test_a_kill_while_the_oom_counter_moves_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([(7, 1), (7, 2)])  # at the start, and when the end is looked into
    monkeypatch.setattr(worker, "oom_kills", lambda: next(counts))

    async def scene() -> None:
        engine = await Engine.open(python("os.kill(os.getpid(), signal.SIGKILL)"), "m")
        assert await reason_of(engine) == "out_of_memory"
        await engine.close()

    run(scene())


def test_oom_counters_are_read_from_every_kind_of_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "memory.events", tmp_path / "memory.oom_control"
    first.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 9\n")
    second.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    missing = tmp_path / "missing"
    monkeypatch.setattr(worker, "oom_counters", lambda: [str(first), str(missing), str(second)])
    assert worker.oom_kills() == (2, 5)


def test_an_engine_in_the_middle_of_endless_work_ends_soon_after_its_server(tmp_path: Path) -> None:
    turn = "{% for a in range(99999) %}"
    path = with_template(bundled_model(), tmp_path / "endless.gguf", f"{3 * turn}x{3 * '{% endfor %}'}")

    async def scene() -> None:
        placement = Process()
        sock = await placement.start()
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(frame(Kind.LOAD, 1, load_object(LoadSpec((path,)))))
        writer.write(frame(Kind.RENDER, 2, {"messages": [{"role": "user", "content": "x"}]}))
        busy = False
        while not busy:
            length, kind, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
            payload = await reader.readexactly(length)
            busy = kind == Kind.HEARTBEAT and json.loads(payload)["prepare_ms"] > 0
        writer.close()  # and nobody kills it
        assert await placement.wait(30)
        assert placement.fate() == "exit 75"

    run(scene())


SERVER = """
import asyncio
from lmlite.package import bundled_model
from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSpec
from lmlite.core.engine.worker import Process

async def serve():
    engine = await Engine.open(Process(), "tiny")
    await engine.load(LoadSpec((bundled_model(),)))
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(serve())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a stopped process that its parent is gone")
def test_a_stopped_engine_ends_when_its_server_is_killed() -> None:
    command = [sys.executable, "-c", SERVER]
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, cwd=INSTALLED) as server:
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        os.kill(engine, signal.SIGSTOP)
        while state_of(engine) != "T":
            pass
        server.kill()
    deadline = time.monotonic() + 30
    while state_of(engine) not in (None, "Z"):
        assert time.monotonic() < deadline


def state_of(pid: int) -> str | None:
    """A letter, as `ps` has it; None: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_a_child_that_closes_its_socket_but_stays_is_killed() -> None:
    async def scene() -> None:
        placement = python("os.close(fd); time.sleep(600)")
        engine = await Engine.open(placement, "m")
        assert await reason_of(engine) in ("it closed its socket", "killed (SIGKILL)")
        await engine.close()
        assert placement.fate() == "killed (SIGKILL)"

    run(scene())


def test_a_child_that_ignores_the_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter(range(100))
    monkeypatch.setattr(worker, "EXIT_S", 0.05)
    monkeypatch.setattr(worker, "oom_kills", lambda: (next(counts),))  # others run out of memory: not this one

    async def scene() -> None:
        placement = python("time.sleep(600)")
        engine = await Engine.open(placement, "m")
        await engine.close()
        assert placement.fate() == "killed (SIGKILL)"

    run(scene())


def test_a_cancelled_close_leaves_no_child() -> None:
    async def scene() -> None:
        placement = python("time.sleep(600)")
        sock = await placement.start()
        sock.close()
        closing = asyncio.ensure_future(placement.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        assert await placement.wait(30)

    run(scene())


def test_a_program_that_is_not_there() -> None:
    async def scene() -> None:
        placement = Process(("/nonexistent/engine",))
        with pytest.raises(FileNotFoundError):
            await Engine.open(placement, "m")
        assert await placement.wait(30), "nothing was started, so there is nothing to wait for"
        await placement.close()

    run(scene())


def test_the_child_gets_its_socket_and_no_other_descriptor() -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to list descriptors in")

    async def scene() -> None:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        try:
            placement = python("sys.exit(len([f for f in os.listdir('/proc/self/fd') if int(f) > 2 and int(f) != fd]))")
            engine = await Engine.open(placement, "m")
            # One that listing itself needs.
            assert await reason_of(engine) == "exit 1"
            await engine.close()
        finally:
            os.close(reader)
            os.close(writer)

    run(scene())


def test_the_child_is_outside_the_terminals_group() -> None:
    async def scene() -> None:
        engine = await Engine.open(python("sys.exit(os.getsid(0) == os.getpid())"), "m")
        assert await reason_of(engine) == "exit 1"
        await engine.close()

    run(scene())


def test_the_environment_has_devices_and_no_secrets() -> None:
    outer = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "GGML_METAL": "0",
        "HF_TOKEN": "s",
        "LMLITE_TOKEN": "s",
        "X": "",
    }
    assert environment(outer) == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "GGML_METAL": "0",
        "GGML_NO_BACKTRACE": "1",
    }


def test_a_loop_in_another_thread_has_its_own_engines() -> None:
    def serve(results: list[str]) -> None:
        async def scene() -> None:
            engine = await Engine.open(fake_process(), "m")
            await engine.load(SPEC)
            results.append(await say(engine))
            await engine.close()

        run(scene())

    results: list[str] = []
    threads = [threading.Thread(target=serve, args=(results,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == ["".join(WORDS)] * 2


def test_a_thread_that_returns_early_is_gone() -> None:
    def serve(fd: int) -> int:
        os.close(fd)
        return -2

    async def scene() -> None:
        engine = await Engine.open(Thread(serve), "m")
        assert await reason_of(engine) == "returned -2"
        await engine.close()

    run(scene())


def test_a_thread_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "EXIT_S", 0.05)
    release = threading.Event()

    def serve(fd: int) -> int:
        release.wait(60)
        os.close(fd)
        return 0

    async def scene() -> None:
        placement = Thread(serve)
        engine = await Engine.open(placement, "m")
        await engine.close()
        assert placement.fate() is None
        release.set()
        assert await placement.wait(30)

    run(scene())


@pytest.mark.parametrize("place", [fake_thread, lambda fake: fake_process(garbage_after=2)], ids=["thread", "process"])
def test_garbage_from_a_real_far_end(place: Callable[[FakeEngine], worker.Placement]) -> None:
    async def scene() -> None:
        placement = place(FakeEngine(Script(garbage_after=2)))
        engine = await Engine.open(placement, "m")
        await engine.load(SPEC)
        assert await reason_of(engine) == "it sent a malformed frame"
        await engine.close()
        assert placement.fate() is not None

    run(scene())


def test_commands_larger_than_the_sockets_buffer() -> None:
    async def scene() -> None:
        fake = FakeEngine()
        engine = await Engine.open(fake_thread(fake), "m")
        ids, _ = await engine.tokenize("x" * 300_000)
        assert len(ids) == 300_000 and fake.commands[0][0] == Kind.TOKENIZE
        await engine.close()

    run(scene())
