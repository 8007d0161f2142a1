"""A server under measurement and the barest client: raw sockets, so that what is measured is the server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

COMPLETIONS = "/v1/completions"
ENDS = (b"[DONE]", b"event: chat.end", b"event: message_stop", b"event: response.completed", b"event: response.incomplete")
"""Of streams, in all dialects."""
CORES = os.cpu_count() or 1
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power"
).split()
"""Each is one token of the random models' vocabulary."""


# ---- a server --------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A server process that answers on loopback; `model` is what requests call its model."""

    process: subprocess.Popen[Any]
    port: int
    model: str = ""
    ready_s: float = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


def serve_fakes(command: Sequence[str], **options: Any) -> None:
    """Says where a server listens whose engines are processes of `command`, and is one."""
    from lmlite.app import App
    from lmlite.config import Config
    from lmlite.core.engine.worker import Process
    from lmlite.server import Service

    async def serve() -> None:
        config = Config.of(port=0, **options)
        service = Service(config, App(config, lambda: Process(tuple(command))))
        await service.open()
        print(service.url, flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


@contextmanager
def serving(command: Sequence[str | Path], tree: Path | None = None, stderr: IO[bytes] | None = None) -> Iterator[Running]:
    """Runs `command` until its first line of output with a port in it; that moment is `ready_s`. With `tree`, the lmlite of
    that checkout is what Python programs find. What it logs goes to `stderr`."""
    began = time.perf_counter()
    environment = os.environ if tree is None else {**os.environ, "PYTHONPATH": str(tree)}
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=tree, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "http://" in line:
                    ready_s = time.perf_counter() - began
                    port = int(line.split("http://")[1].split(":")[1].split("/")[0].split()[0])
                    yield Running(process, port, ready_s=ready_s)
                    break
            else:
                raise RuntimeError(f"{command[0]} ended without an address")
        finally:
            process.terminate()


def lmlite(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "lmlite", "serve", "--port", "0", *arguments]


@contextmanager
def lmlite_server(model: Path, *flags: object, tree: Path | None = None) -> Iterator[Running]:
    """With `model` loaded."""
    with tempfile.TemporaryDirectory() as home:
        with serving(lmlite(model, "--home", home, *map(str, flags)), tree) as server:
            server.model = asyncio.run(id_of(server.port, model))
            asyncio.run(whole(server.port, COMPLETIONS, {"model": server.model, "prompt": "a", "max_tokens": 1}))
            yield server


async def id_of(port: int, model: Path) -> str:
    listed = (await whole(port, "/v1/models"))["data"]
    return str(next(entry["id"] for entry in listed if entry["id"].removesuffix("-q8_0") in model.stem.lower()))


# ---- what it takes ---------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its living threads included, to the nanosecond: the tick-sampled times of
    /proc/PID/stat can be wrong twofold for a process that wakes a thousand times a second."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def pss_mb(pid: int) -> float:
    """Resident memory with shared pages counted once among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


# ---- requests --------------------------------------------------------------------------------------------------------


def request(path: str, body: dict[str, Any] | None = None, method: str | None = None) -> bytes:
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


async def whole(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(path, body))
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    answer = json.loads(await reader.readexactly(length))
    writer.close()
    if b" 200 " not in head.split(b"\r\n")[0] + b" ":
        raise RuntimeError(f"{path}: {answer}")
    assert isinstance(answer, dict)
    return answer


async def arrivals(port: int, path: str, body: dict[str, Any]) -> AsyncIterator[tuple[float, int]]:
    """Of each piece of a streamed answer: when it arrived, and how many events it held."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(path, {**body, "stream": True}))
    tail = b""
    try:
        while not any(end in tail for end in ENDS):
            chunk = await reader.read(1 << 16)
            if not chunk:
                raise RuntimeError(f"the stream ended early: {tail!r}")
            tail = tail[-32:] + chunk
            if b"data: {" in chunk:
                yield time.perf_counter(), chunk.count(b"data: {")
    finally:
        writer.close()


async def stream(port: int, path: str, body: dict[str, Any]) -> tuple[int, float, float]:
    """The number of events of a streamed answer, and the moments of the first and the last."""
    seen = [arrival async for arrival in arrivals(port, path, body)]
    return sum(n for _, n in seen), seen[0][0], seen[-1][0]


async def first_token_s(port: int, body: dict[str, Any]) -> float:
    """Seconds until the first event of an answer to a completion; the rest is heard to its end."""
    began = time.perf_counter()
    _, first, _ = await stream(port, COMPLETIONS, body)
    return first - began


class Client:
    """Asks one server for completions whose prompts it has not seen."""

    def __init__(self, server: Running):
        self.port, self.model = server.port, server.model
        self._random = random.Random(server.port)

    def words(self, n: int) -> str:
        return " ".join(self._random.choices(WORDS, k=n))

    def body(self, prompt: str, n: int) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt, "max_tokens": n, "ignore_eos": True, "temperature": 0}

    async def first_token_s(self, prompt: str, n: int = 4) -> float:
        return await first_token_s(self.port, self.body(prompt, n))

    async def usage(self, prompt: str, n: int = 4) -> dict[str, Any]:
        usage = (await whole(self.port, COMPLETIONS, self.body(prompt, n)))["usage"]
        assert isinstance(usage, dict)
        return usage
