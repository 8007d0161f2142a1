"""Time to ready, resident memory without a model and with one loaded, the CPU of a server that does nothing; sizes of
the library and, with --wheel, of the wheel and the time that building it takes. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

import lmlite  # noqa: E402
from bench import client  # noqa: E402

SETTLED_S = 2.0
"""A server that listens still looks for models."""
IDLE_S = 20.0
MESSAGES = [{"role": "user", "content": "hello"}]


async def memory(server: client.Running, model: str) -> dict[str, Any]:
    await asyncio.sleep(SETTLED_S)
    idle = client.rss_mb(server.pid)
    began = client.cpu_s(server.pid)
    await asyncio.sleep(IDLE_S)
    idle_share = (client.cpu_s(server.pid) - began) / IDLE_S
    await client.whole(server.port, "/v1/chat/completions", {"model": model, "messages": MESSAGES, "max_tokens": 8})
    engines = server.children
    return {
        "rss_mb_idle": round(idle, 1),
        "cpu_percent_idle": round(idle_share * 100, 3),
        "rss_mb_loaded": {
            "server": round(client.rss_mb(server.pid), 1),
            "engine": round(sum(map(client.rss_mb, engines)), 1),
            "both_pss": round(client.pss_mb(server.pid) + sum(map(client.pss_mb, engines)), 1),
        },
    }


def wheel() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", folder, str(ROOT)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (built,) = Path(folder).glob("*.whl")
        return {"build_s": round(time.perf_counter() - began, 1), "wheel_mb": round(built.stat().st_size / 1e6, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lmlite-tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--wheel", action="store_true")
    arguments = parser.parse_args()
    ready = []
    result: dict[str, Any] = {"bench": "startup"}
    with tempfile.TemporaryDirectory() as home:
        for _ in range(arguments.rounds):
            with client.serving(client.lmlite("--home", home)) as server:
                ready.append(server.ready_s)
        with client.serving(client.lmlite("--home", home)) as server:
            result |= asyncio.run(memory(server, arguments.model))
    result["ready_s"] = {"median": round(statistics.median(ready), 3), "best": round(min(ready), 3)}
    library = Path(lmlite.__file__).parent / "lib"
    result["library_mb"] = {file.name: round(file.stat().st_size / 1e6, 2) for file in library.iterdir()}
    if arguments.wheel:
        result |= wheel()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
