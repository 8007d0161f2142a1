"""What choosing a token costs at a vocabulary of 152 k: each path of the sampler alone, beside llama.cpp's own objects;
then the whole servers, as the difference that a setting makes to the time per token.

`python bench/sampling.py [--servers]`; prints one JSON object, times in microseconds per token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench import client, peers, random_model  # noqa: E402

N_VOCAB = 152064
TOKENS = 100
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "more": {"type": "object"},
    },
    "required": ["name", "tags", "more"],
}
PLAIN = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": PLAIN,
    "greedy": {**PLAIN, "temperature": 0},
    "OpenAI's defaults": {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1.0},
    "top-p 0.9 alone": {"temperature": 1, "top_k": 0, "top_p": 0.9, "min_p": 0, "repeat_penalty": 1.0},
    "penalties": {**PLAIN, "repeat_penalty": 1.1},
    "JSON schema": {**PLAIN, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
}


def paths() -> list[dict[str, Any]]:
    folder = next(path.parent for path in ROOT.glob("build/native-*/build.ninja"))
    subprocess.run(["cmake", "--build", folder, "--target", "lmlite-sampling-bench"], check=True, stdout=sys.stderr)
    done = subprocess.run([folder / "lmlite-sampling-bench"], check=True, stdout=subprocess.PIPE, text=True)
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return [{"path": path, "row": row, "lmlite": float(ours), "llama.cpp": float(theirs)} for path, row, ours, theirs in rows]


async def us_per_token(server: client.Running, setting: dict[str, Any]) -> float:
    """The median gap between two events of a streamed answer."""
    body = {"model": server.model, "max_tokens": TOKENS, "ignore_eos": "response_format" not in setting, **setting}
    chat = {**body, "messages": [{"role": "user", "content": "a"}]}
    seen = [moment async for moment, _ in client.arrivals(server.port, "/v1/chat/completions", chat)]
    return statistics.median(after - before for before, after in zip(seen, seen[1:])) * 1e6


async def measure_all(server: client.Running, rounds: int) -> dict[str, float]:
    """The time of the first setting, and what each of the others adds to it."""
    measured: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(rounds):
        for name, setting in SETTINGS.items():
            measured[name].append(await us_per_token(server, setting))
    first, *others = ((name, statistics.median(times)) for name, times in measured.items())
    return {first[0]: round(first[1]), **{name: round(us - first[1]) for name, us in others}}


def servers(rounds: int) -> dict[str, dict[str, float]]:
    model = random_model.random_weights("100M")
    with client.lmlite_server(model, "--threads", 1) as server:
        ours = asyncio.run(measure_all(server, rounds))
    with peers.llama_server(model, "-t", 1, "-np", 1, "-c", 4096) as server:
        theirs = asyncio.run(measure_all(server, rounds))
    return {"lmlite": ours, "llama-server": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"bench": "sampling", "vocab": N_VOCAB, "paths_us": paths()}
    if arguments.servers:
        result["servers_us"] = servers(arguments.rounds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
