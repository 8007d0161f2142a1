"""Stress: models come and go hundreds of times, on a real server with real engines.

Rounds of load, one answer and unload must leave the server's memory, descriptors and threads as they were, and each
engine's memory must be free when its unload is answered. Then the three promises of the pool, each many times: fifty
requests for one unloaded model cause one load; a request for another model, with room for one, lets a stream finish; an
idle time shorter than a stream never ends it. Prints one JSON object; exit code 1 if anything was not as promised.

`python bench/rounds.py [--rounds 200] [--times 100]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client  # noqa: E402
from lmlite.package import bundled_model  # noqa: E402
from tests.chats import holdings  # noqa: E402

GROWTH_KB = 4096
"""What the server may grow by from its twentieth round on: allocators settle late."""
WARM_ROUNDS = 20
STREAM_TOKENS = 300
IDLE_S = 0.01
"""Far below the time that a stream of so many tokens takes."""

MODELS = "alpha", "beta"


@contextmanager
def server(*flags: object) -> Iterator[client.Running]:
    """Serves two copies of the bundled model, none of them loaded."""
    with tempfile.TemporaryDirectory() as home:
        for name in MODELS:
            folder = Path(home) / "models" / "bench" / name
            folder.mkdir(parents=True)
            shutil.copy(bundled_model(), folder / f"{name}.gguf")
        quietly = ("--home", home, "--threads", "1", "--log-level", "error", *map(str, flags))
        with client.serving(client.lmlite(*quietly)) as running:
            yield running


async def ask(server: client.Running, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    return await client.whole(server.port, path, body)


def words(model: str, n: int) -> dict[str, Any]:
    return {"model": model, "prompt": "a", "max_tokens": n, "ignore_eos": True, "temperature": 0}


async def loads(server: client.Running) -> int:
    """How many loads have succeeded since the server's start."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(client.request("/metrics").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    lines = (await reader.read()).decode().splitlines()
    writer.close()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("lmlite_model_load_seconds_count"))


# ---- rounds ----------------------------------------------------------------------------------------------------------


async def rounds(server: client.Running, n: int) -> dict[str, Any]:
    held: list[dict[str, int]] = []
    engines_left, engine_kb = 0, []
    for _ in range(n):
        loaded = await ask(server, "/api/v1/models/load", {"model": MODELS[0]})
        await ask(server, client.COMPLETIONS, words(MODELS[0], 4))
        engine_kb += [holdings(pid)["resident_kb"] for pid in server.children]
        await ask(server, "/api/v1/models/unload", {"instance_id": loaded["instance_id"]})
        engines_left += len(server.children)
        held.append(holdings(server.pid))
    early, late = held[min(WARM_ROUNDS, n) - 1], held[-1]
    grown = {name: late[name] - early[name] for name in late}
    flat = grown["resident_kb"] <= GROWTH_KB and grown["descriptors"] <= 0 and grown["threads"] <= 0
    return {
        "rounds": n,
        "server_kb": [held[0]["resident_kb"], early["resident_kb"], late["resident_kb"]],
        "engine_kb": [min(engine_kb), max(engine_kb)],
        "grown": grown,
        "engines_left": engines_left,
        "flat": flat,
    }


# ---- promises --------------------------------------------------------------------------------------------------------


async def one_load(server: client.Running) -> bool:
    before = await loads(server)
    await asyncio.gather(*[ask(server, client.COMPLETIONS, words(MODELS[0], 1)) for _ in range(50)])
    once = await loads(server) == before + 1
    await ask(server, "/api/v1/models/unload", {"instance_id": MODELS[0]})
    return once


async def lets_finish(server: client.Running) -> bool:
    """The stream comes to its end with all its tokens, and then the other model is the one that is loaded."""
    whole = await ask(server, client.COMPLETIONS, words(MODELS[0], STREAM_TOKENS))
    other: asyncio.Task[dict[str, Any]] | None = None
    text = ""
    async for data in events(server, words(MODELS[0], STREAM_TOKENS)):
        text += "".join(choice["text"] for choice in data["choices"])
        if other is None:
            other = asyncio.ensure_future(ask(server, client.COMPLETIONS, words(MODELS[1], 1)))
    assert other is not None
    answered = (await other)["model"] == MODELS[1]
    there = [entry["identifier"] for entry in (await ask(server, "/lmlite/instances"))["instances"]]
    return answered and text == whole["choices"][0]["text"] and there == [MODELS[1]]


async def outlives_idle_time(server: client.Running) -> bool:
    """One load serves the stream to its end, however long it takes; then the model leaves."""
    before = await loads(server)
    seen = [data async for data in events(server, words(MODELS[0], STREAM_TOKENS))]
    whole = seen[-1]["choices"][0]["finish_reason"] == "length" and await loads(server) == before + 1
    while (await ask(server, "/lmlite/instances"))["instances"]:
        await asyncio.sleep(IDLE_S)
    return whole


async def events(server: client.Running, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The payloads of a streamed answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(client.request(client.COMPLETIONS, {**body, "stream": True}))
    try:
        while (line := await reader.readline()) != b"data: [DONE]\n":
            if not line:
                raise RuntimeError("the stream ended early")
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        writer.close()


async def kept(promise: Callable[[client.Running], Awaitable[bool]], server: client.Running, times: int) -> int:
    """How often of so many times."""
    return sum([await promise(server) for _ in range(times)])


async def measure(n_rounds: int, times: int) -> dict[str, Any]:
    with server() as running:
        memory = await rounds(running, n_rounds)
        promises = {"one_load": await kept(one_load, running, times), "lets_finish": await kept(lets_finish, running, times)}
    with server("--ttl", IDLE_S) as running:
        promises["outlives_idle_time"] = await kept(outlives_idle_time, running, times)
    return {"bench": "rounds", "memory": memory, "times": times, "kept": promises}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--times", type=int, default=100)
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments.rounds, arguments.times))
    print(json.dumps(result, indent=1))
    flat = result["memory"]["flat"] and not result["memory"]["engines_left"]
    return 0 if flat and all(count == arguments.times for count in result["kept"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
