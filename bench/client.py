"""A server under measurement and the barest client: raw sockets, so that what is measured is the server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Running:
    """A server process that answers on loopback."""

    process: subprocess.Popen[str]
    port: int
    ready_s: float

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


@contextmanager
def serving(command: Sequence[str | Path]) -> Iterator[Running]:
    """Runs `command` until its first line of output with a port in it; that moment is `ready_s`."""
    began = time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "http://" in line:
                    ready_s = time.perf_counter() - began
                    port = int(line.split("http://")[1].split(":")[1].split("/")[0].split()[0])
                    yield Running(process, port, ready_s)
                    break
            else:
                raise RuntimeError(f"{command[0]} ended without an address")
        finally:
            process.terminate()


def lmlite(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "lmlite", "serve", "--port", "0", *arguments]


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


async def stream(port: int, path: str, body: dict[str, Any]) -> tuple[int, float]:
    """The number of chunks of a streamed answer, and the seconds from the first to the last."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(path, {**body, "stream": True}))
    n, first, last = 0, 0.0, 0.0
    tail = b""
    while b"[DONE]" not in tail:
        chunk = await reader.read(1 << 16)
        if not chunk:
            raise RuntimeError("the stream ended early")
        last = time.perf_counter()
        first = first or last
        n += chunk.count(b"data: {")
        tail = tail[-16:] + chunk
    writer.close()
    return n, last - first
