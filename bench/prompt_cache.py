"""Claim: a long prompt that is kept on the disk is there after a restart, and nobody's stream waits for that.

The first token of a prompt of 4000 tokens, computed, and after a restart with the prompt cache (its files are not in the
machine's memory any more). Then beside a stream: the longest gap in it until the first token of a prompt that is brought from
the disk, beside that with one of as many new tokens that is found in the cells (computing these is the larger part of both),
and that of the stream alone; the longest gap while another prompt is saved, and what the stream keeps of its speed meanwhile.

`python bench/prompt_cache.py [--params 200M] [--memory full] [--rounds 3]` prints one JSON object, medians; exit code 1 if a
bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client, random_model  # noqa: E402

PROMPT, REST, CONTEXT = 3968, 32, 8192
"""Tokens: whole pieces, and what follows them."""
MIB = 4096
BOUND_OF_TIME, BOUND_GAP_S = 0.2, 0.1
LISTEN_S = 5.0
"""To a stream alone, and while a prompt is saved: a piece leaves every fifth of a second."""
WARM_TOKENS = 20
draw = random.Random(time.time_ns())
QUIET_S = 1.0
"""Without a new file: all that was worth it is saved."""


@contextmanager
def serving(model: Path, home: Path) -> Iterator[client.Client]:
    flags = ("--home", home, "--prompt-cache", MIB, "--context-length", CONTEXT, "--parallel", 4)
    with client.serving(client.lmlite(model, *map(str, flags))) as server:
        server.model = asyncio.run(client.id_of(server.port, model))
        asyncio.run(client.whole(server.port, client.COMPLETIONS, {"model": server.model, "prompt": "a", "max_tokens": 1}))
        yield client.Client(server)


def files(home: Path) -> list[Path]:
    return [path for path in (home / "prompt-cache").glob("*/*") if not path.name.startswith(".")]


async def saved(home: Path) -> None:
    seen, since = -1, time.monotonic()
    while time.monotonic() < since + QUIET_S or seen <= 0:
        if (now := len(files(home))) != seen:
            seen, since = now, time.monotonic()
        await asyncio.sleep(0.05)


def forget(home: Path) -> None:
    """Leaves the files to the disk alone."""
    for path in files(home):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Neighbour:
    """A stream, and when its tokens came."""

    def __init__(self, asker: client.Client):
        self._asker = asker
        self.came: list[float] = []

    async def __aenter__(self) -> Neighbour:
        self._task = asyncio.create_task(self._listen())
        while len(self.came) < WARM_TOKENS:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        body = self._asker.body("Once", CONTEXT - 100)
        async for when, _ in client.arrivals(self._asker.port, client.COMPLETIONS, body):
            self.came.append(when)

    def gap_s(self, begin: float, end: float) -> float:
        """The longest time between two tokens that reaches into the span."""
        return max(b - a for a, b in itertools.pairwise(self.came) if b > begin and a < end)

    def speed(self, begin: float, end: float) -> float:
        return sum(begin <= when < end for when in self.came) / (end - begin)


def numbers(n: int) -> list[int]:
    return [draw.randrange(300, 100_000) for _ in range(n)]


async def first_token_s(asker: client.Client, prompt: list[int]) -> float:
    return await client.first_token_s(asker.port, {**asker.body("", 1), "prompt": prompt})


async def beside(asker: client.Client, home: Path, prompt: list[int]) -> dict[str, float]:
    async with Neighbour(asker) as stream:

        async def gap_s() -> float:
            began = time.perf_counter()
            await first_token_s(asker, prompt + numbers(REST))
            return stream.gap_s(began, time.perf_counter())

        async def listen() -> tuple[float, float]:
            began = time.perf_counter()
            await asyncio.sleep(LISTEN_S)
            return stream.gap_s(began, time.perf_counter()), stream.speed(began, time.perf_counter())

        alone_gap_s, _ = await listen()
        found = {"alone_gap_s": alone_gap_s, "restore_gap_s": await gap_s(), "cells_gap_s": await gap_s()}
        await first_token_s(asker, numbers(PROMPT + REST))  # is saved from now on
        found["save_gap_s"], saving = await listen()
        await saved(home)
        _, after = await listen()
        waits_s = found["restore_gap_s"] - found["cells_gap_s"]
        return {**found, "waits_for_restore_s": waits_s, "speed_while_saving": saving / after}


def measure(model: Path, whole: bool) -> dict[str, float]:
    """`whole`: what goes on behind all of a prompt finds it, and nothing else does."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with serving(model, home) as asker:
            prompt, rest = numbers(PROMPT), numbers(REST)
            found = {"computed_s": asyncio.run(first_token_s(asker, prompt + rest))}
            prompt += rest if whole else []
            asyncio.run(saved(home))
        found["bytes"] = sum(path.stat().st_size for path in files(home))
        forget(home)
        with serving(model, home) as asker:
            found["restored_s"] = asyncio.run(first_token_s(asker, prompt + numbers(REST)))
        forget(home)
        with serving(model, home) as asker:
            found |= asyncio.run(beside(asker, home, prompt))
    return {**found, "of_the_time": found["restored_s"] / found["computed_s"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", choices=random_model.SHAPES, default="200M")
    parser.add_argument("--memory", choices=random_model.ARCH, default="full")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = random_model.random_weights(arguments.params, memory=arguments.memory)
    rounds = [measure(model, arguments.memory != "full") for _ in range(arguments.rounds)]
    medians = {name: round(statistics.median(found[name] for found in rounds), 4) for name in rounds[0]}
    worst = {name: round(max(found[name] for found in rounds), 4) for name in ("restore_gap_s", "save_gap_s", "of_the_time")}
    print(json.dumps({"medians": medians, "worst": worst}))
    waits_s = max(medians["waits_for_restore_s"], medians["save_gap_s"])
    good = medians["of_the_time"] <= BOUND_OF_TIME and waits_s <= BOUND_GAP_S
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
