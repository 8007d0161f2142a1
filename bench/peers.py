"""llama.cpp's own programs, built from the very tree that lmlite is built from, to be measured beside it.

`binary("llama-bench")` returns the program's path, building it on the first call (some minutes) below bench/peers/.
LMLITE_PEERS names a folder that has them already, TREE/build/bin of a llama.cpp tree.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"
VOCABULARY = "models/ggml-vocab-qwen2.gguf"
TEMPLATES = "models/templates"
MODEL = "any"
"""llama-server has one model, whatever a request calls it."""

sys.path.insert(0, str(ROOT / "vendor"))
import fetch  # noqa: E402

from bench import client  # noqa: E402


def binary(name: str) -> Path:
    if folder := os.environ.get("LMLITE_PEERS"):
        return Path(folder) / name
    path = PEERS / "build" / "bin" / name
    if not path.exists():
        build(name)
    return path


def tree() -> Path:
    if folder := os.environ.get("LMLITE_PEERS"):
        return Path(folder).resolve().parents[1]
    path = PEERS / "llama.cpp"
    if not path.exists():
        pin = fetch.read_pin()
        with fetch.pinned_archive(pin) as archive:
            fetch.unpack(archive, pin.folder, path, lambda name: name == VOCABULARY or not name.startswith("models/"))
    return path


def templates() -> Path:
    """A folder of chat templates of many families."""
    there = tree() / TEMPLATES
    if there.exists():
        return there
    unpacked = PEERS / "templates"
    if not unpacked.exists():
        pin = fetch.read_pin()
        with fetch.pinned_archive(pin) as archive:
            fetch.unpack(archive, pin.folder, unpacked, lambda name: name.startswith(TEMPLATES))
    return unpacked / TEMPLATES


def vocabulary() -> Path:
    return tree() / VOCABULARY


def build(name: str) -> None:
    switches = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    switches += [f"-DCMAKE_CXX_FLAGS=-include {ROOT / 'csrc' / 'tiles.h'}"]  # else every prompt is a SIGILL on AMX
    subprocess.run(["cmake", "-G", "Ninja", "-S", tree(), "-B", PEERS / "build", *switches], check=True, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", PEERS / "build", "--target", name], check=True, stdout=sys.stderr)


def run(name: str, *arguments: object) -> tuple[dict[str, Any], float]:
    """The JSON line that the program prints, and the CPU seconds that it took."""
    command = [str(part) for part in (binary(name), *arguments)]
    for _ in range(5):  # its logger is a thread, which now and then loses the line when the program ends
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                return json.loads(line), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    raise RuntimeError(f"{name} printed nothing")


def batched_bench(model: Path, streams: int, prompt: int, n: int, threads: int, *flags: object) -> tuple[float, float]:
    """Tokens per second of `streams` sequences that decode `n` tokens each, and the CPU seconds of the whole run."""
    shape = ("-npp", prompt, "-ntg", n, "-npl", streams, "-c", streams * (prompt + n) + 256, "-t", threads, *flags)
    line, cpu_s = run("llama-batched-bench", "-m", model, *shape, "--output-format", "jsonl")
    return float(line["speed_tg"]), cpu_s


@contextmanager
def llama_server(model: Path, *flags: object) -> Iterator[client.Running]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [str(part) for part in (binary("llama-server"), "-m", model, "--port", port, *flags)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            asyncio.run(until_healthy(port))
            yield client.Running(process, port, MODEL)
        finally:
            process.terminate()


async def until_healthy(port: int) -> None:
    for _ in range(1200):
        try:
            await client.whole(port, "/health")
            return
        except (OSError, RuntimeError, IndexError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)
    raise RuntimeError("llama-server did not start")
