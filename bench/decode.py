"""Single-stream decoding through the whole server against llama-bench, and CPU per streamed token against llama-server,
both of the same tree, in turns on the same machine.

The speed is that of a model of 100 M random parameters unless --model names another. The CPU is measured with the bundled
toy on one thread, where a decode step is short enough for the rest to show. Prints one JSON object; quote the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client, peers  # noqa: E402
from lmlite.core.catalog import bundled_model  # noqa: E402

CACHE = ROOT / "bench" / "models"


def random_weights(params: str, n_vocab: int = 32000) -> Path:
    from bench import random_model

    path = CACHE / f"random-{params}-{n_vocab}.gguf"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        random_model.write(path, params, n_vocab)
    return path


def llama_bench(model: Path, n: int, threads: int) -> float:
    command = [peers.binary("llama-bench"), "-m", model, "-t", threads, "-p", 0, "-n", n, "-r", 1, "-fa", 1, "-o", "json"]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def ask(n: int, model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "a", "max_tokens": n, "ignore_eos": True, "temperature": 0}


async def speed(model: Path, n: int, threads: int) -> float:
    """Tokens per second as the client sees them, in a server that has just started."""
    with client.serving(client.lmlite(model, "--threads", str(threads), "--context-length", "2048")) as server:
        name = await id_of(server.port, model)
        await client.whole(server.port, "/v1/completions", ask(8, name))
        _, seconds = await client.stream(server.port, "/v1/completions", ask(n, name))
        return (n - 1) / seconds


async def id_of(port: int, model: Path) -> str:
    listed = (await client.whole(port, "/v1/models"))["data"]
    return str(next(entry["id"] for entry in listed if entry["id"].removesuffix("-q8_0") in model.stem.lower()))


# ---- CPU per streamed token ------------------------------------------------------------------------------------------


async def cpu_us(port: int, pids: list[int], name: str, n: int, rounds: int) -> list[float]:
    """Of each process, per token."""
    await client.whole(port, "/v1/completions", ask(8, name))
    before = [client.cpu_s(pid) for pid in pids]
    for _ in range(rounds):
        await client.stream(port, "/v1/completions", ask(n, name))
    return [(client.cpu_s(pid) - start) / (n * rounds) * 1e6 for pid, start in zip(pids, before)]


def our_cpu(model: Path, n: int, rounds: int) -> dict[str, float]:
    with client.serving(client.lmlite(model, "--threads", "1")) as server:
        name = asyncio.run(id_of(server.port, model))
        asyncio.run(client.whole(server.port, "/v1/completions", ask(8, name)))
        ours, engine = asyncio.run(cpu_us(server.port, [server.pid, *server.children], name, n, rounds))
        return {"server": ours, "engine": engine}


def their_cpu(model: Path, n: int, rounds: int) -> float:
    with peers.llama_server(model, "-t", 1) as (port, pid):
        return asyncio.run(cpu_us(port, [pid], "any", n, rounds))[0]


def overhead(model: Path, n: int, rounds: int) -> dict[str, float]:
    raw = 1e6 / llama_bench(model, n, 1)
    ours, theirs = our_cpu(model, n, rounds), their_cpu(model, n, rounds)
    return {
        "raw_decode": round(raw, 1),
        "lmlite_server_process": round(ours["server"], 1),
        "lmlite_over_raw": round(ours["server"] + ours["engine"] - raw, 1),
        "llama_server_over_raw": round(theirs - raw, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--params", default="100M")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    model = arguments.model or random_weights(arguments.params)
    theirs, ours = [], []
    for _ in range(arguments.rounds):
        theirs.append(llama_bench(model, arguments.tokens, arguments.threads))
        ours.append(asyncio.run(speed(model, arguments.tokens, arguments.threads)))
    ratios = [mine / peer for mine, peer in zip(ours, theirs)]
    result = {
        "bench": "decode",
        "model": model.name,
        "threads": arguments.threads,
        "llama_bench_tokens_per_s": [round(speed, 1) for speed in theirs],
        "lmlite_tokens_per_s": [round(mine, 1) for mine in ours],
        "ratio_median": round(statistics.median(ratios), 3),
        "cpu_us_per_token": overhead(bundled_model(), 400, 5),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
