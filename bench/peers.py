"""llama.cpp's own programs, built from the very tree that lmlite is built from, to be measured beside it.

`binary("llama-bench")` returns the program's path, building it on the first call (some minutes) below bench/peers/.
LMLITE_PEERS names a folder that has them already.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import client

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"

sys.path.insert(0, str(ROOT / "vendor"))
import fetch  # noqa: E402


def binary(name: str) -> Path:
    if folder := os.environ.get("LMLITE_PEERS"):
        return Path(folder) / name
    path = PEERS / "build" / "bin" / name
    if not path.exists():
        build(name)
    return path


def build(name: str) -> None:
    tree = PEERS / "llama.cpp"
    if not tree.exists():
        pin = fetch.read_pin()
        with fetch.pinned_archive(pin) as archive:
            fetch.unpack(archive, pin.folder, tree, lambda path: not path.startswith("models/"))
    switches = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    subprocess.run(["cmake", "-G", "Ninja", "-S", tree, "-B", PEERS / "build", *switches], check=True, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", PEERS / "build", "--target", name], check=True, stdout=sys.stderr)


@contextmanager
def llama_server(model: Path, *flags: object) -> Iterator[tuple[int, int]]:
    """Its port and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [str(part) for part in (binary("llama-server"), "-m", model, "--port", port, *flags)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            asyncio.run(until_healthy(port))
            yield port, process.pid
        finally:
            process.terminate()


async def until_healthy(port: int) -> None:
    for _ in range(400):
        try:
            await client.whole(port, "/health")
            return
        except (OSError, RuntimeError, IndexError):
            await asyncio.sleep(0.05)
    raise RuntimeError("llama-server did not start")
