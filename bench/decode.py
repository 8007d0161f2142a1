"""Single-stream decoding through the whole server against llama-bench of the same tree, in turns on the same machine.

Without a model, one of 100 M random parameters is made. Prints one JSON object; ratios are what to quote.
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
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import client  # noqa: E402
import peers  # noqa: E402

CACHE = ROOT / "bench" / "models"


def random_model(params: str, n_vocab: int = 32000) -> Path:
    import random_model as random_models

    path = CACHE / f"random-{params}-{n_vocab}.gguf"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        random_models.write(path, params, n_vocab)
    return path


def llama_bench(model: Path, n: int, threads: int) -> float:
    command = [peers.binary("llama-bench"), "-m", model, "-t", threads, "-p", 0, "-n", n, "-r", 1, "-fa", 1, "-o", "json"]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


async def through_the_server(model: Path, n: int, threads: int) -> dict[str, float]:
    """Tokens per second as the client sees them, and the server process's CPU per token."""
    with client.serving(client.lmlite(model, "--threads", str(threads), "--context-length", "2048")) as server:
        body: dict[str, Any] = {"model": model.stem, "prompt": "a", "max_tokens": 8, "ignore_eos": True, "temperature": 0}
        body.pop("model")
        await client.whole(server.port, "/v1/completions", {**body, "model": await only_model(server.port, model)})
        body["model"] = await only_model(server.port, model)
        before = client.cpu_s(server.pid)
        chunks, seconds = await client.stream(server.port, "/v1/completions", {**body, "max_tokens": n})
        cpu = client.cpu_s(server.pid) - before
        return {"tokens_per_s": (n - 1) / seconds, "cpu_us": cpu / n * 1e6, "chunks": chunks}


async def only_model(port: int, model: Path) -> str:
    listed = (await client.whole(port, "/v1/models"))["data"]
    wanted = model.stem.lower()
    return str(next(entry["id"] for entry in listed if wanted in entry["id"] or entry["id"] in wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--params", default="100M")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    model = arguments.model or random_model(arguments.params)
    theirs, ours = [], []
    for _ in range(arguments.rounds):
        theirs.append(llama_bench(model, arguments.tokens, arguments.threads))
        ours.append(asyncio.run(through_the_server(model, arguments.tokens, arguments.threads)))
    ratios = [mine["tokens_per_s"] / peer for mine, peer in zip(ours, theirs)]
    result = {
        "bench": "decode",
        "model": model.name,
        "threads": arguments.threads,
        "llama_bench_tokens_per_s": [round(speed, 1) for speed in theirs],
        "lmlite_tokens_per_s": [round(mine["tokens_per_s"], 1) for mine in ours],
        "ratio_median": round(statistics.median(ratios), 3),
        "server_cpu_us_per_token": round(statistics.median(mine["cpu_us"] for mine in ours), 1),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
