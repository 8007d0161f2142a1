"""Claim: a thread too many costs its share of the time, not a hundredfold, whoever it belongs to.

One stream, beside llama-server (built with OpenMP) with the same flags in the same minute: on one core and on two, with the
threads that the server chooses and with four; with a busy program on one of two cores; two models that decode at once; and in
thread placement, in a host that computes something else. `--host` is that host.

A stream is heard for some seconds, not to an end: what is a hundred times too slow has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, contest, peers  # noqa: E402

HEARD_S = 4.0
FIRST = 3  # tokens that are not counted: a server wakes up
LONG = 4000
CONTEXT = LONG + 64

Start = Callable[[Path, Sequence[object]], AbstractContextManager[client.Running]]


@dataclass
class Scene:
    """Servers that are kept to `cores`, with a busy program on one more core if `busy` names one; the client may use the
    others, or all where there are none."""

    key: str
    text: str
    n_cores: int
    threads: int | None = None  # None: as the server chooses
    busy: int | None = None
    models: int = 1
    in_host: bool = False


SCENES = (
    Scene("alone1", "1 core, 1 thread", 1, threads=1),
    Scene("alone", "2 cores, 2 threads", 2, threads=2),
    Scene("one", "1 core, threads as the server chooses", 1),
    Scene("one4", "1 core, `--threads 4`", 1, threads=4),
    Scene("two4", "2 cores, `--threads 4`", 2, threads=4),
    Scene("busy", "2 cores, a busy program on one of them", 2, busy=1),
    Scene("pair", "2 cores, two models at once, together", 2, models=2),
    Scene("host", "2 cores, in thread placement, the host has a busy thread", 2, in_host=True),
)
CLAIMS = [contest.Claim(scene.key, scene.text, "tokens/s", ratio=0.9, more=True) for scene in SCENES]


# ---- who is measured -------------------------------------------------------------------------------------------------


def lmlite(scene: Scene) -> Start:
    def start(model: Path, flags: Sequence[object]) -> AbstractContextManager[client.Running]:
        if scene.in_host:
            return host(model)
        return client.lmlite_server(model, "--context-length", CONTEXT, "--parallel", 1, *flags)

    return start


def llama_server(scene: Scene) -> Start:
    @contextlib.contextmanager
    def start(model: Path, flags: Sequence[object]) -> Iterator[client.Running]:
        with peers.llama_server(model, "-c", CONTEXT, "-np", 1, *flags) as server, busy_program(() if scene.in_host else None):
            yield server

    return start


@contextlib.contextmanager
def host(model: Path) -> Iterator[client.Running]:
    with tempfile.TemporaryDirectory() as home:
        with client.serving([sys.executable, __file__, "--host", model, home]) as server:
            server.model = asyncio.run(client.id_of(server.port, model))
            asyncio.run(client.whole(server.port, client.COMPLETIONS, {"model": server.model, "prompt": "a", "max_tokens": 1}))
            yield server


def be_host(model: str, home: str) -> None:
    """Serves the model in this process and computes on."""
    from lmlite.server import Server

    threading.Thread(target=compute, daemon=True).start()
    models = (Path(model),)
    with Server(models=models, home=Path(home), port=0, isolation="thread", context_length=CONTEXT, parallel=1) as server:
        print(f"http://127.0.0.1:{server.port}", flush=True)
        threading.Event().wait()


def compute() -> None:
    """For ever, and leaves Python to others meanwhile."""
    block = bytes(1 << 22)
    while True:
        hashlib.sha256(block)


@contextlib.contextmanager
def busy_program(cores: Sequence[int] | None) -> Iterator[None]:
    """On those cores; on all, if none are named; None: there is no such program."""
    if cores is None:
        yield
        return
    with kept_to(cores), subprocess.Popen([sys.executable, __file__, "--busy"]) as process:
        time.sleep(0.3)  # it has begun
        try:
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def kept_to(cores: Sequence[int]) -> Iterator[None]:
    """What is started in here may use those cores alone; none are named: all."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores) or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---- what is measured ------------------------------------------------------------------------------------------------


def measure(scene: Scene, start: Start, thread_flag: str, model: Path) -> float:
    """Tokens per second, of all streams together."""
    cores = sorted(os.sched_getaffinity(0))
    theirs = cores[-scene.n_cores :]
    flags = () if scene.threads is None else (thread_flag, scene.threads)
    with ExitStack() as stack:
        with kept_to(theirs):
            servers = [stack.enter_context(start(model, flags)) for _ in range(scene.models)]
        stack.enter_context(busy_program(None if scene.busy is None else (theirs[scene.busy],)))
        with kept_to(cores[: -scene.n_cores]):
            return asyncio.run(rate(servers))


async def rate(servers: Sequence[client.Running]) -> float:
    return sum(await asyncio.gather(*map(rate_of, servers)))


async def rate_of(server: client.Running) -> float:
    asker = client.Client(server)
    n, began, last = 0, 0.0, time.perf_counter()

    async def hear() -> None:
        nonlocal n, began, last
        async for moment, n_events in client.arrivals(server.port, client.COMPLETIONS, asker.body(asker.words(4), LONG)):
            if n < FIRST:
                began = moment
            n, last = n + n_events, moment

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(hear(), HEARD_S)
    return max(0, n - FIRST) / max(last - began, HEARD_S / 2)  # of what has hardly begun: next to nothing


def main() -> None:
    if sys.argv[1:2] == ["--busy"]:
        return compute()
    if sys.argv[1:2] == ["--host"]:
        return be_host(*sys.argv[2:])
    arguments = contest.parse(__doc__, params="200M", rounds=3)
    runs: dict[str, dict[str, list[float]]] = {contest.OURS: {}, "defaults": {}}
    for _ in range(arguments.rounds):
        for scene in SCENES:
            for name, start, flag in (
                (contest.OURS, lmlite(scene), "--threads"), ("defaults", llama_server(scene), "-t"),
            ):  # fmt: skip
                runs[name].setdefault(scene.key, []).append(measure(scene, start, flag, arguments.model))
    figures = {name: {key: statistics.median(of) for key, of in scenes.items()} for name, scenes in runs.items()}
    contest.report("threads", arguments.model, figures, CLAIMS)


if __name__ == "__main__":
    main()
