"""Damage: thousands of files of the prompt cache are broken under an engine that goes on asking for them.

A bit is flipped, a part overwritten, cut off or added, a file is emptied, swapped with another prompt's, made a folder or a
link, or taken away; each time the prompt is asked for again, and answered as it was without a cache. Prints one JSON object;
exit code 1 if an answer changed, damage was taken, what was whole was hardly ever found, or is not there again.

`python bench/damaged_prompts.py [--times 10000] [--seed 1]`, on the bundled model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from lmlite.core.engine.client import Engine  # noqa: E402
from lmlite.core.engine.payloads import LoadSettings, LoadSpec  # noqa: E402
from lmlite.core.engine.worker import Process  # noqa: E402
from lmlite.events import Finished, TextDelta, TokenLogprob  # noqa: E402
from lmlite.package import bundled_model  # noqa: E402
from lmlite.request import Generate, Sampling, Tokens  # noqa: E402

PIECE, PIECES, PROMPTS, TOKENS = 128, 5, 4, 4
"""Prompts of the least size that is kept. With no idle cells one is found on the disk, or not at all, when the next was asked
for."""
PLACES = (0, 1, 2, 3, 3, 3, 3)
"""Of damage, among the pieces that have one behind them: these are written anew. What follows is computed: it takes time."""
MARGIN = 0.2
"""Between the greedy token's logarithm and the next one's: computing a prompt in other parts rounds otherwise, by far less."""
FOUND_SHARE = 0.9
"""On a machine that has no time an engine leaves the disk alone now and then."""
ENGINE_EVERY = 500
"""Damaged files, then another engine finds what there is."""
WRITTEN_S, WRITTEN_ASKS = 10.0, 12
KINDS = ("bit", "bits", "part", "cut", "more", "empty", "swap", "folder", "link", "gone")


def numbers(rng: random.Random) -> Tokens:
    return Tokens(tuple(rng.randrange(300, 1000) for _ in range(PIECES * PIECE + 20)))


def damage(path: Path, other: Path, kind: str, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    at = rng.randrange(len(raw))
    match kind:
        case "bit":
            raw[at] ^= 1 << rng.randrange(8)
        case "bits":
            for _ in range(20):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        case "part":
            end = min(len(raw), at + 4096)
            raw[at:end] = bytes(end - at) if rng.random() < 0.5 and any(raw[at:end]) else rng.randbytes(end - at)
        case "cut":
            del raw[at:]
        case "more":
            raw += rng.randbytes(1 + rng.randrange(5000))
        case "empty":
            raw.clear()
        case "swap":
            raw = bytearray(other.read_bytes())
        case _:
            path.unlink()
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(other)
            return
    path.write_bytes(raw)


async def answer(engine: Engine, prompt: Tokens) -> tuple[list[bytes], int]:
    """The tokens' texts, and how many tokens of the prompt were known."""
    said, cached = await tokens(engine, prompt)
    return [bytes(token.bytes) for token in said], cached


async def tokens(engine: Engine, prompt: Tokens) -> tuple[list[TokenLogprob], int]:
    work = Generate(prompt, max_tokens=TOKENS, sampling=Sampling(temperature=0), top_logprobs=2)
    events = [event async for event in engine.run(work)]
    assert isinstance(events[-1], Finished)
    said = [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]
    return said, events[-1].stats.cached_tokens


async def clear_prompt(engine: Engine, rng: random.Random) -> tuple[Tokens, list[bytes]]:
    """One whose greedy answer is no near tie anywhere, nor ends early, and that answer."""
    while True:
        prompt = numbers(rng)
        said, _ = await tokens(engine, prompt)
        if len(said) == TOKENS and min(token.top[0].logprob - token.top[1].logprob for token in said) > MARGIN:
            return prompt, [bytes(token.bytes) for token in said]


async def opened(folder: Path | None) -> Engine:
    engine = await Engine.open(Process(), "model")
    settings = LoadSettings(context_length=1024, idle_cells=0, spill_bytes=0, threads=1, prompt_cache_bytes=1 << 30)
    await engine.load(LoadSpec((bundled_model(),), settings, prompt_cache=folder))
    return engine


def by_prompt(folder: Path) -> list[list[Path]]:
    """The files of each prompt, in the order of its pieces; the prompts in that in which they were saved."""
    names = [path for path in folder.glob("*/*") if not path.name.startswith(".")]
    ends = [[path for path in names if path.name.endswith(f"-{PIECE * (i + 1)}")] for i in range(PIECES)]
    for of_end in ends:
        of_end.sort(key=lambda path: path.stat().st_mtime_ns)
    return [list(files) for files in zip(*ends, strict=True)]


async def written(path: Path) -> bool:
    end = time.monotonic() + WRITTEN_S
    while time.monotonic() < end:
        if path.is_file() and not path.is_symlink():
            return True
        await asyncio.sleep(0.002)
    return False


async def written_anew(engine: Engine, prompt: Tokens, path: Path) -> bool:
    """Where the machine has no time for the disk, an engine leaves it alone for a minute."""
    for _ in range(WRITTEN_ASKS):
        if await written(path):
            return True
        await answer(engine, prompt)
    return False


async def soak(folder: Path, times: int, rng: random.Random) -> dict[str, object]:
    plain = await opened(None)
    clear = [await clear_prompt(plain, rng) for _ in range(PROMPTS)]
    prompts, expected = [prompt for prompt, _ in clear], [said for _, said in clear]
    await plain.close()
    found = {"changed": 0, "taken": 0, "not_written_anew": 0, "whole_found": 0, "damaged": 0}
    engine = await opened(folder)
    for i, prompt in enumerate(prompts):
        await answer(engine, prompt)
        while len(list(folder.glob("*/[0-9a-f]*"))) < (i + 1) * PIECES:
            await asyncio.sleep(0.01)
    files = by_prompt(folder)
    for n in range(times):
        i, at, kind = n % PROMPTS, rng.choice(PLACES), KINDS[n // PROMPTS % len(KINDS)]
        path = files[i][at]
        damage(path, rng.choice(files[(i + 1) % PROMPTS]), kind, rng)
        said, cached = await answer(engine, prompts[i])
        found["changed"] += said != expected[i]
        found["taken"] += cached > at * PIECE
        found["whole_found"] += cached == at * PIECE
        if path.is_dir():
            path.rmdir()
        if not await written_anew(engine, prompts[i], path):
            found["not_written_anew"] += 1
            print(f"not written anew: {kind} of piece {at}, {n} before", file=sys.stderr)
            break
        if n % ENGINE_EVERY == ENGINE_EVERY - 1:
            found["damaged"] += (await engine.stats()).disk_damaged
            await engine.close()
            engine = await opened(folder)
    found["damaged"] += (await engine.stats()).disk_damaged
    await engine.close()
    return {"times": times, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=f"lmlite-damaged-{os.getpid()}-") as folder:
        told = asyncio.run(soak(Path(folder) / "cache", arguments.times, random.Random(arguments.seed)))
    print(json.dumps(told))
    bad = told["changed"] or told["taken"] or told["not_written_anew"]
    return 1 if bad or told["whole_found"] < arguments.times * FOUND_SHARE else 0


if __name__ == "__main__":
    raise SystemExit(main())
