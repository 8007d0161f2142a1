"""Prompts that outlive their engine: what is found on the disk is answered as if it had never left the cells, and what is
damaged, another model's or another caller's is never found.

The oracle is the same request under a scope of its own, which shares nothing and is computed afresh.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec, Report
from lmlite.core.engine.worker import Process, Thread
from lmlite.events import Finished, TextDelta, TokenLogprob
from lmlite.messages import text_message
from lmlite.package import bundled_model
from lmlite.request import Chat, Generate, Prompt, Sampling, Text, Tokens
from tests.core.test_memory_kinds import BYTES_ONLY, ROUNDING, difference
from tests.memory_models import MEMORIES, Memory, write_model

PIECE = 128
"""Tokens, of a model whose prefixes can be shared anywhere."""
GREEDY = Sampling(temperature=0)
TO_SYSTEM = "be-kind,be-brief,and-say-what-you-know." * 8
SYSTEM = text_message("system", TO_SYSTEM)
SHARED = len("[system]" + TO_SYSTEM)
scopes = map(str, count())


@asynccontextmanager
async def opened(model: Path, folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    engine = await Engine.open(settings.pop("placement", Process)(), "model")
    room = settings.pop("prompt_cache_bytes", 1 << 30)
    said = {"context_length": 512, "eval_batch_size": 64, "flash_attention": False, **settings}
    try:
        await engine.load(LoadSpec((model,), LoadSettings(prompt_cache_bytes=room, **said), prompt_cache=folder))
        yield engine
    finally:
        await engine.close()


async def say(engine: Engine, prompt: Prompt, n: int = 1, **more: Any) -> tuple[list[TokenLogprob], Finished]:
    work = Generate(prompt, **{"max_tokens": n, "sampling": BYTES_ONLY, "top_logprobs": 20, **more})
    events = [event async for event in engine.run(work)]
    assert isinstance(events[-1], Finished)
    return [token for event in events if isinstance(event, TextDelta) for token in event.logprobs], events[-1]


async def until(engine: Engine, there: Callable[[Report], bool]) -> Report:
    while not there(report := await engine.stats()):
        await asyncio.sleep(0.01)
    return report


async def kept(engine: Engine, folder: Path, n_pieces: int) -> None:
    """Files appear whole, so that it is enough to count them."""
    await until(engine, lambda _: sum(not path.name.startswith(".") for path in files(folder)) == n_pieces)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def chat(said: str) -> Chat:
    return Chat((SYSTEM, text_message("user", said)))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def numbers(n: int, seed: int = 1) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(300, 1000) for _ in range(n))


async def cached(engine: Engine, prompt: Prompt, **more: Any) -> int:
    return (await say(engine, prompt, sampling=GREEDY, **more))[1].stats.cached_tokens


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_system_prompt_is_found_by_the_next_engine_and_answered_as_if_computed(tmp_path: Path, memory: Memory) -> None:
    model = write_model(tmp_path / "model.gguf", memory)

    async def test() -> None:
        async with opened(model, tmp_path / "cache") as engine:
            _, end = await say(engine, chat("what-is-the-time?"))
            assert end.stats.cached_tokens == 0
            await until(engine, lambda report: report.disk_written_bytes > 0)
        async with opened(model, tmp_path / "cache") as engine:
            (found, *_), end = await say(engine, chat("who-will-tell?"))
            assert SHARED - PIECE <= end.stats.cached_tokens <= SHARED + len("\n[user]") + 3  # bytes of a space
            (fresh, *_), computed = await say(engine, chat("who-will-tell?"), scope=next(scopes))
            assert computed.stats.cached_tokens == 0
            assert difference(found, fresh) < ROUNDING
            again, end = await say(engine, chat("and-who-else?"))  # of the cells now
            (fresh, *_), _ = await say(engine, chat("and-who-else?"), scope=next(scopes))
            assert end.stats.cached_tokens >= SHARED - PIECE
            assert difference(again[0], fresh) < ROUNDING
            report = await engine.stats()
            assert (report.disk_hits, report.disk_damaged) == (1, 0)
            assert report.disk_tokens > 0 and report.disk_read_bytes > 0

    run(test())


@pytest.mark.parametrize("placement", [Process, Thread])
def test_greedy_text_behind_a_prompt_of_the_disk_is_that_behind_one_of_the_cells(tmp_path: Path, placement: Any) -> None:
    prefix = numbers(8 * PIECE)
    first, second = Tokens((*prefix, *numbers(30, 2))), Tokens((*prefix, *numbers(30, 3)))
    how = {"context_length": 2048, "placement": placement, "flash_attention": None}

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", **how) as engine:
            await say(engine, first, sampling=GREEDY)
            held, end = await say(engine, second, 40, sampling=GREEDY)
            assert end.stats.cached_tokens == len(prefix)
            await kept(engine, tmp_path / "cache", 8)
        async with opened(bundled_model(), tmp_path / "cache", **how) as engine:
            found, end = await say(engine, second, 40, sampling=GREEDY)
            assert end.stats.cached_tokens == len(prefix)
            assert [token.bytes for token in found] == [token.bytes for token in held]
            assert [token.logprob for token in found] == [token.logprob for token in held]

    run(test())


def test_other_callers_adapters_models_and_types_find_nothing(tmp_path: Path) -> None:
    prompt = Tokens(numbers(600))
    how: dict[str, Any] = {"context_length": 1024, "flash_attention": True}
    other = tmp_path / "other.gguf"
    other.write_bytes(bundled_model().read_bytes())
    os.utime(other, (1, 1))

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", **how) as engine:
            await say(engine, prompt, sampling=GREEDY, scope="mine")
            await kept(engine, tmp_path / "cache", 600 // PIECE)
        async with opened(bundled_model(), tmp_path / "cache", **how) as engine:
            assert await cached(engine, prompt) == await cached(engine, prompt, scope="theirs") == 0
            assert await cached(engine, prompt, scope="mine") == 600 // PIECE * PIECE
        for more in ({"k_cache_type": "q8_0"}, {"flash_attention": False}):
            async with opened(bundled_model(), tmp_path / "cache", **{**how, **more}) as engine:
                assert await cached(engine, prompt, scope="mine") == 0
        async with opened(other, tmp_path / "cache", **how) as engine:
            assert await cached(engine, prompt, scope="mine") == 0

    run(test())


def test_the_turns_of_a_chat_are_not_kept_one_by_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=4096) as engine:
            tokens = numbers(100)
            for turn in range(8):
                _, end = await say(engine, Tokens(tokens), sampling=GREEDY)
                assert (end.stats.cached_tokens > 0) == (turn > 0)
                tokens = (*tokens, *numbers(100, turn + 9))
            assert files(tmp_path / "cache") == []
            await say(engine, Tokens((*tokens, *numbers(700, 99))), sampling=GREEDY)  # a document is
            await kept(engine, tmp_path / "cache", (len(tokens) + 700) // PIECE)

    run(test())


def test_what_two_prompts_share_is_kept_and_what_they_do_not_is_not(tmp_path: Path) -> None:
    prefix = numbers(300)

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            await say(engine, Tokens((*prefix, *numbers(150, 2))), sampling=GREEDY)
            assert files(tmp_path / "cache") == []
            await say(engine, Tokens((*prefix, *numbers(150, 3))), sampling=GREEDY)
            await kept(engine, tmp_path / "cache", len(prefix) // PIECE)
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            assert await cached(engine, Tokens((*prefix, *numbers(150, 4)))) == len(prefix) // PIECE * PIECE

    run(test())


def test_prompts_are_written_whole_though_others_follow_at_once(tmp_path: Path) -> None:
    """Beside a stream, where they are copied slowly, and where hardly any cells are for what is idle."""
    prompts = [Tokens(numbers(700, seed)) for seed in range(4)]
    how: dict[str, Any] = {"context_length": 2048, "parallel": 8, "idle_cells": 0, "spill_bytes": 0}

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", **how) as engine:
            stream = asyncio.create_task(say(engine, Text("Once"), 2000, sampling=GREEDY, ignore_eos=True))
            for prompt in prompts:
                await say(engine, prompt, sampling=GREEDY)
            await kept(engine, tmp_path / "cache", len(prompts) * (700 // PIECE))
            await until(engine, lambda report: report.running == 1 or stream.done())
            await stream
            assert (await engine.stats()).cells_used < 2048 + 700  # what was written is held no more
        async with opened(bundled_model(), tmp_path / "cache", **how) as engine:
            for prompt in prompts:
                assert await cached(engine, prompt) == 700 // PIECE * PIECE

    run(test())


def test_where_cells_are_short_prompts_that_are_being_written_give_way(tmp_path: Path) -> None:
    prompts = [Tokens(numbers(900, seed)) for seed in range(6)]

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024, kv_cells=1024, spill_bytes=0) as engine:
            alone = [(await say(engine, prompt, 8, sampling=GREEDY, scope=next(scopes)))[0] for prompt in prompts]
            together = await asyncio.gather(*(say(engine, prompt, 8, sampling=GREEDY) for prompt in prompts))
            for (tokens, _), expected in zip(together, alone, strict=True):
                assert [token.bytes for token in tokens] == [token.bytes for token in expected]

    run(test())


def damage(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    at = rng.randrange(len(raw))
    match rng.randrange(4):
        case 0:
            raw[at] ^= 1 << rng.randrange(8)
        case 1:
            del raw[at:]
        case 2:
            raw[at : at + 64] = rng.randbytes(len(raw[at : at + 64]))
        case 3:
            raw += rng.randbytes(1 + rng.randrange(100))
    path.write_bytes(raw)


def test_damaged_files_change_no_answer_and_are_written_anew(tmp_path: Path) -> None:
    prompt = Tokens(numbers(900))
    rng = random.Random(4)

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            said, _ = await say(engine, prompt, 8, sampling=GREEDY)
            await kept(engine, tmp_path / "cache", 900 // PIECE)
        n_found = set()
        for _ in range(12):
            whole = files(tmp_path / "cache")
            assert len(whole) == 900 // PIECE
            damage(rng.choice([path for path in whole if not path.name.endswith(f"-{900 // PIECE * PIECE}")]), rng)
            async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
                again, end = await say(engine, prompt, 8, sampling=GREEDY)
                assert [token.bytes for token in again] == [token.bytes for token in said]
                assert end.stats.cached_tokens % PIECE == 0 and end.stats.cached_tokens < 900 // PIECE * PIECE
                n_found.add(end.stats.cached_tokens)
                await kept(engine, tmp_path / "cache", 900 // PIECE)
                assert (await engine.stats()).disk_damaged == 1
        assert len(n_found) > 1

    run(test())


def test_files_that_change_places_are_not_taken_for_each_other(tmp_path: Path) -> None:
    a, b = Tokens(numbers(600)), Tokens(numbers(600, 2))

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            said = [(await say(engine, prompt, 8, sampling=GREEDY))[0] for prompt in (a, b)]
            await kept(engine, tmp_path / "cache", 2 * (600 // PIECE))
        names = [path for path in files(tmp_path / "cache") if path.name.endswith(f"-{PIECE}")]
        assert len(names) == 2
        swapped = [path.read_bytes() for path in reversed(names)]
        for path, raw in zip(names, swapped, strict=True):
            path.write_bytes(raw)
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            for prompt, expected in zip((a, b), said, strict=True):
                again, end = await say(engine, prompt, 8, sampling=GREEDY)
                assert end.stats.cached_tokens == 0
                assert [token.bytes for token in again] == [token.bytes for token in expected]

    run(test())


def test_the_folder_keeps_to_its_budget(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            await say(engine, Tokens(numbers(900)), sampling=GREEDY)
            await kept(engine, tmp_path / "cache", 900 // PIECE)
        size = sum(path.stat().st_size for path in files(tmp_path / "cache"))
        room = size * 2
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024, prompt_cache_bytes=room) as engine:
            for n, seed in enumerate(range(2, 8), 1):
                await say(engine, Tokens(numbers(900, seed)), sampling=GREEDY)
                await until(engine, lambda report, written=n * size: report.disk_written_bytes == written)  # type: ignore[misc]
                assert sum(path.stat().st_size for path in files(tmp_path / "cache")) <= room
            assert (await engine.stats()).disk_bytes <= room
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            assert await cached(engine, Tokens(numbers(900, 7))) == 900 // PIECE * PIECE
            assert await cached(engine, Tokens(numbers(900))) == 0

    run(test())


@pytest.mark.parametrize("obstacle", ["file", "forbidden"])
def test_where_nothing_can_be_written_requests_are_answered_all_the_same(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "cache"
    if obstacle == "file":
        folder.write_text("no folder")
    else:
        folder = Path("/proc/none/cache")

    async def test() -> None:
        async with opened(bundled_model(), folder, context_length=1024) as engine:
            for seed in (1, 2):
                tokens, _ = await say(engine, Tokens(numbers(700, seed)), 3, sampling=GREEDY)
                assert len(tokens) == 3
            assert (await engine.stats()).disk_written_bytes == 0

    run(test())


def test_prompts_come_from_the_disk_beside_streams_and_for_many_at_once(tmp_path: Path) -> None:
    prompts = [Tokens(numbers(700, seed)) for seed in range(4)]

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024, parallel=8) as engine:
            said = [(await say(engine, prompt, 8, sampling=GREEDY))[0] for prompt in prompts]
            await kept(engine, tmp_path / "cache", len(prompts) * (700 // PIECE))
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024, parallel=8) as engine:
            stream = asyncio.create_task(say(engine, Text("Once"), 300, sampling=replace(GREEDY), ignore_eos=True))
            answers = await asyncio.gather(*(say(engine, prompt, 8, sampling=GREEDY) for prompt in prompts * 2))
            for (tokens, end), expected in zip(answers, said * 2, strict=True):
                assert end.stats.cached_tokens >= 700 // PIECE * PIECE
                assert [token.bytes for token in tokens] == [token.bytes for token in expected]
            assert len((await stream)[0]) == 300
            assert (await engine.stats()).disk_hits == len(prompts)

    run(test())


def test_a_request_that_is_given_up_while_its_prompt_comes_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    prompt = Tokens(numbers(900))

    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            said, _ = await say(engine, prompt, 8, sampling=GREEDY)
            await kept(engine, tmp_path / "cache", 900 // PIECE)
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024) as engine:
            for pause in (0, 0, 0.001, 0.003, 0.01):
                given_up = asyncio.create_task(say(engine, prompt, 8, sampling=GREEDY))
                await asyncio.sleep(pause)
                given_up.cancel()
                await asyncio.gather(given_up, return_exceptions=True)
            again, end = await say(engine, prompt, 8, sampling=GREEDY)
            assert end.stats.cached_tokens >= 900 // PIECE * PIECE
            assert [token.bytes for token in again] == [token.bytes for token in said]
            assert (await engine.stats()).running == 0

    run(test())


def test_without_room_on_the_disk_nothing_is_written(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(bundled_model(), tmp_path / "cache", context_length=1024, prompt_cache_bytes=0) as engine:
            await say(engine, Tokens(numbers(900)), sampling=GREEDY)
        assert not (tmp_path / "cache").exists()

    run(test())
