"""What the scheduler does for several clients, beside llama-server of the same tree at its defaults and at its best flags.

prefix: 8 clients ask at once with the same 500 tokens that nobody has asked before; the worst time to first token.
return: a conversation goes on after 8 others used the server; the prompt tokens that are computed again.
gap: a long prompt arrives while 4 streams run, then a short one; the longest gap in the streams, and the short one's
time to first token. Random weights, because only time is measured. Prints one JSON object; quote the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed lmlite is the one to measure

from bench import client, peers  # noqa: E402
from bench.decode import id_of, random_weights  # noqa: E402

PATH = "/v1/completions"
CONTEXT = 8192


def prompt(n_tokens: int, seed: int) -> str:
    """About `n_tokens` of the random model's vocabulary, in which each letter is a token with the space before it."""
    return " ".join(random.Random(seed).choices("etaoinshrdlucmfwypvbgk", k=n_tokens))


async def first_token_s(port: int, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    async for moment in moments(port, body):
        return moment - began
    raise RuntimeError("no token came")


async def moments(port: int, body: dict[str, Any]) -> AsyncIterator[float]:
    """When each chunk of a streamed answer arrived."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(client.request(PATH, {**body, "stream": True}))
    tail = b""
    try:
        while b"[DONE]" not in tail:
            chunk = await reader.read(1 << 16)
            if not chunk:
                raise RuntimeError("the stream ended early")
            tail = tail[-16:] + chunk
            if b"data: {" in chunk:
                yield time.perf_counter()
    finally:
        writer.close()


class Scene:
    """One server under load; every measurement starts with prompts that it has not seen."""

    def __init__(self, port: int, model: str):
        self.port, self.model, self.seed = port, model, 0

    def body(self, text: str, n: int) -> dict[str, Any]:
        return {"model": self.model, "prompt": text, "max_tokens": n, "ignore_eos": True, "temperature": 0}

    def fresh(self, n_tokens: int) -> str:
        self.seed += 1
        return prompt(n_tokens, self.seed)

    async def prefix(self) -> float:
        shared = self.fresh(500)
        asks = [first_token_s(self.port, self.body(f"{shared} {self.fresh(8)}", 4)) for _ in range(8)]
        return max(await asyncio.gather(*asks))

    async def come_back(self) -> int:
        talk = self.fresh(1000)
        await client.whole(self.port, PATH, self.body(talk, 4))
        for _ in range(8):
            await client.whole(self.port, PATH, self.body(self.fresh(300), 4))
        usage = (await client.whole(self.port, PATH, self.body(f"{talk} {self.fresh(10)}", 4)))["usage"]
        return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])

    async def gap(self) -> dict[str, float]:
        longest = 0.0
        done = False

        async def listen() -> None:
            nonlocal longest
            last: float | None = None
            async for moment in moments(self.port, self.body(self.fresh(8), 2000)):
                if last is not None and started:
                    longest = max(longest, moment - last)
                last = moment
                if done:
                    return

        started = False
        listeners = [asyncio.ensure_future(listen()) for _ in range(4)]
        await asyncio.sleep(0.5)
        started = True
        long = asyncio.ensure_future(first_token_s(self.port, self.body(self.fresh(4000), 4)))
        await asyncio.sleep(0.1)
        short = await first_token_s(self.port, self.body(self.fresh(20), 4))
        long_s = await long
        done = True
        await asyncio.gather(*listeners)
        return {"longest_gap_s": round(longest, 3), "short_first_token_s": round(short, 3), "long_s": round(long_s, 3)}

    async def measure(self) -> dict[str, Any]:
        await client.whole(self.port, PATH, self.body(self.fresh(600), 4))
        return {
            "prefix_worst_first_token_s": round(await self.prefix(), 3),
            "recomputed_on_return": await self.come_back(),
            **await self.gap(),
        }


@contextmanager
def ours(model: Path) -> Any:
    flags = ("--parallel", "8", "--context-length", str(CONTEXT))
    with client.serving(client.lmlite(model, *flags)) as server:
        yield Scene(server.port, asyncio.run(id_of(server.port, model)))


def theirs(*flags: object) -> Callable[[Path], Any]:
    @contextmanager
    def serve(model: Path) -> Any:
        with peers.llama_server(model, "-t", os.cpu_count(), *flags) as (port, _):
            yield Scene(port, "any")

    return serve


CONTESTANTS: dict[str, Callable[[Path], Any]] = {
    "lmlite": ours,
    "llama_server_defaults": theirs("-c", 4 * CONTEXT),
    "llama_server_8_unified": theirs("-np", 8, "--kv-unified", "-c", 4 * CONTEXT),
    "llama_server_small_batches": theirs("-np", 8, "--kv-unified", "-c", 4 * CONTEXT, "-b", 128, "-ub", 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="100M")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", choices=CONTESTANTS)
    arguments = parser.parse_args()
    model = arguments.model or random_weights(arguments.params)
    result: dict[str, Any] = {"bench": "scheduling", "model": model.name}
    for name, serve in CONTESTANTS.items():
        if arguments.only in (None, name):
            with serve(model) as scene:
                result[name] = asyncio.run(scene.measure())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
