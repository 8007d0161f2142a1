"""What the engine reuses of earlier requests, per kind of memory: never at the price of another answer.

The oracle is the same request under a scope of its own, which shares nothing and is computed afresh.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Process, Thread
from lmlite.errors import ContextOverflow, LoadFailed
from lmlite.events import Finished, TextDelta, TokenLogprob
from lmlite.messages import text_message
from lmlite.request import Chat, Draft, Generate, Prompt, Sampling, Text, Tokens
from tests.architectures import write_cogvlm, write_plamo2
from tests.memory_models import FIRST_BYTE, MEMORIES, Memory, byte_tokens, write_model

ROUNDING = 2e-3  # nats: batches of another shape add up in another order
CONTEXT = 256
BYTES_ONLY = Sampling(temperature=0, logit_bias=tuple((token, -math.inf) for token in range(FIRST_BYTE)))
scopes = map(str, count())


def texts(seed: int) -> Callable[[int], bytes]:
    rng = random.Random(seed)
    return lambda n: bytes(rng.randrange(97, 123) for _ in range(n))


def with_memory(folder: Path, memory: Memory, test: Callable[[Engine], Coroutine[Any, Any, None]], **more: Any) -> None:
    placement = more.pop("placement", Process)

    async def run() -> None:
        engine = await Engine.open(placement(), memory)
        settings = LoadSettings(**{"context_length": CONTEXT, "eval_batch_size": 64, "flash_attention": False, **more})
        try:
            await engine.load(LoadSpec((write_model(folder / "model.gguf", memory),), settings))
            await test(engine)
        finally:
            await engine.close()

    asyncio.run(run())


async def say(engine: Engine, prompt: Prompt | bytes, n: int = 1, **more: Any) -> tuple[list[TokenLogprob], Finished]:
    asked = Tokens(byte_tokens(prompt)) if isinstance(prompt, bytes) else prompt
    work = Generate(asked, max_tokens=n, sampling=BYTES_ONLY, top_logprobs=20, **more)
    events = [event async for event in engine.run(work)]
    assert isinstance(events[-1], Finished)
    return [token for event in events if isinstance(event, TextDelta) for token in event.logprobs], events[-1]


def difference(a: TokenLogprob, b: TokenLogprob) -> float:
    of_a, of_b = ({top.bytes: top.logprob for top in token.top} for token in (a, b))
    shared = of_a.keys() & of_b.keys()
    if len(shared) < 18:  # the last ones of two lists of twenty may have changed places
        return math.inf
    return max(abs(of_a[token] - of_b[token]) for token in shared)


async def cached_as_if_fresh(engine: Engine, prompt: bytes) -> int:
    """The tokens that were reused, after a look at what that did to the answer."""
    (token, *_), end = await say(engine, prompt)
    (fresh, *_), computed = await say(engine, prompt, scope=next(scopes))
    assert computed.stats.cached_tokens == 0
    assert difference(token, fresh) < ROUNDING
    return end.stats.cached_tokens


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_two_prompts_have_in_common_is_computed_once_and_answered_the_same(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        text = texts(1)
        first, parting = text(100), 70
        await cached_as_if_fresh(engine, first)
        assert await cached_as_if_fresh(engine, first + text(20)) == len(first)
        at_once = await cached_as_if_fresh(engine, first[:parting] + text(30))
        assert at_once == (parting if memory == "full" else 0)  # elsewhere nobody knew that they would part here, and the
        # window of that place went to the fresh computations in between
        assert await cached_as_if_fresh(engine, first[:parting] + text(25)) == parting

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("memory", ["full", "window"])
@pytest.mark.parametrize("n", [5, 20, 120])
def test_a_recent_prompt_is_shared_wherever_another_parts_from_it(tmp_path: Path, memory: Memory, n: int) -> None:
    async def test(engine: Engine) -> None:
        text = texts(8)
        prompt, others = text(n), [text(10), text(10)]
        parting = [prompt, prompt, prompt[: n - 2] + others[0], prompt[: n // 2] + others[1]]
        answers = [await say(engine, each, 3) for each in parting]
        assert [end.stats.cached_tokens for _, end in answers] == [0, n - 1, n - 2, n // 2]
        for each, (tokens, _) in zip(parting, answers, strict=True):
            fresh, _ = await say(engine, each, 3, scope=next(scopes))
            assert difference(tokens[0], fresh[0]) < ROUNDING

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_second_conversation_under_one_system_prompt_finds_it(tmp_path: Path, memory: Memory) -> None:
    system = text_message("system", "be kind, " * 9)
    shared = len("[system]" + "be kind, " * 9 + "\n[user]")

    async def test(engine: Engine) -> None:
        words = ("be", "kind,", "what is the time in this place, and who will tell?")
        chats = [Chat((system, text_message("user", said))) for said in words]
        answers = [await say(engine, chat) for chat in chats]
        cached = [end.stats.cached_tokens for _, end in answers]
        assert cached[0] == 0 and min(cached[1:]) >= shared - 2  # a token of space at the beginning
        for chat, (tokens, _) in zip(chats, answers, strict=True):
            fresh, _ = await say(engine, chat, scope=next(scopes))
            assert difference(tokens[0], fresh[0]) < ROUNDING

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_long_prompt_is_shared_from_a_mark_made_in_passing(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        prompt = texts(9)(240)
        await say(engine, prompt)
        assert (await say(engine, prompt))[1].stats.cached_tokens >= (128 if memory in ("hybrid", "recurrent") else 239)
        assert await cached_as_if_fresh(engine, prompt) == 239

    with_memory(tmp_path, memory, test, eval_batch_size=16)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("spill_bytes", [-1, 40_000, 0])
def test_prompts_that_part_anywhere_are_answered_as_if_alone(tmp_path: Path, memory: Memory, spill_bytes: int) -> None:
    async def test(engine: Engine) -> None:
        rng, text = random.Random(11), texts(11)
        known = [text(200) for _ in range(3)]
        for _ in range(12):
            prompts = []
            for _ in range(rng.choice((1, 1, 3))):
                origin = rng.choice(known)
                prompts.append(origin[: rng.randrange(len(origin) + 1)] + text(rng.randrange(1, 40)))
            answers = await asyncio.gather(*(say(engine, prompt, rng.choice((1, 9))) for prompt in prompts))
            for prompt, (tokens, end) in zip(prompts, answers, strict=True):
                fresh, _ = await say(engine, prompt, scope=next(scopes))
                assert end.stats.cached_tokens < len(prompt)
                assert difference(tokens[0], fresh[0]) < ROUNDING
            known.append(prompts[0][:210])

    with_memory(tmp_path, memory, test, spill_bytes=spill_bytes)


@pytest.mark.parametrize("memory", MEMORIES)
def test_another_prefix_would_have_been_noticed(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        text = texts(2)
        tail = text(8)
        (one, *_), _ = await say(engine, text(60) + tail)
        (other, *_), _ = await say(engine, text(60) + tail)
        assert difference(one, other) > 10 * ROUNDING

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("memory", MEMORIES)
def test_requests_that_arrive_together_wait_for_one_prefill(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        text = texts(3)
        prefix = text(150)
        prompts = [prefix + text(20) for _ in range(4)]
        answers = await asyncio.gather(*(say(engine, prompt, 4) for prompt in prompts))
        cached = sorted(end.stats.cached_tokens for _, end in answers)
        assert cached[0] == 0 and cached[2] >= len(prefix) - 32  # not worth waiting for; the second may have come too early
        for prompt, (tokens, _) in zip(prompts, answers, strict=True):
            fresh, _ = await say(engine, prompt, 4, scope=next(scopes))
            assert difference(tokens[0], fresh[0]) < ROUNDING

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_conversation_comes_back_after_many_others(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        text = texts(4)
        conversations = [text(150) for _ in range(12)]
        for conversation in conversations:
            await say(engine, conversation, 2)
        for conversation in conversations[:3]:
            assert await cached_as_if_fresh(engine, conversation + text(30)) >= len(conversation)

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_preempted_request_says_what_it_would_have_said(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        text = texts(5)
        prompts = [text(40) for _ in range(4)]
        crowded = await asyncio.gather(*(say(engine, prompt, 180) for prompt in prompts))
        for prompt, (tokens, _) in zip(prompts, crowded, strict=True):
            alone, _ = await say(engine, prompt, 180, scope=next(scopes))
            for token, same in zip(tokens, alone, strict=True):
                if token.bytes != same.bytes:
                    assert token.logprob == pytest.approx(same.top[1].logprob, abs=ROUNDING)  # a near tie
                    break
                assert difference(token, same) < ROUNDING

    with_memory(tmp_path, memory, test, kv_cells=2 * CONTEXT)


@pytest.mark.parametrize("memory", MEMORIES)
def test_an_echoed_prompt_has_the_log_probabilities_of_all_its_tokens_whatever_is_cached(
    tmp_path: Path, memory: Memory
) -> None:
    """Beside streams that have steps of their own, and after the cache has learned the prompt; the oracle asks for each next
    token by itself."""

    async def test(engine: Engine) -> None:
        text = texts(7)
        prompts = [text(180), text(90), text(2), text(1)]
        for prompt in prompts:
            await say(engine, prompt)
        *echoes, _ = await asyncio.gather(
            *(say(engine, prompt, n, echo=True) for prompt, n in zip(prompts, (0, 3, 0, 1), strict=True)),
            say(engine, text(50), 30),
        )
        for prompt, n, (tokens, end) in zip(prompts, (0, 3, 0, 1), echoes, strict=True):
            assert b"".join(token.bytes for token in tokens[: len(prompt)]) == prompt
            assert (len(tokens), end.stats.generated_tokens, end.stats.cached_tokens) == (len(prompt) + n, n, 0)
            assert end.reason == "maxPredictedTokensReached"
            assert tokens[0].logprob is None and tokens[0].top == ()
            for i in {1, len(prompt) - 1, *range(7, len(prompt), 23), len(prompt)} & set(range(1, len(tokens))):
                (alone, *_), _ = await say(engine, prompt[:i], scope=next(scopes))
                assert difference(tokens[i], alone) < ROUNDING
                known = {top.bytes: top.logprob for top in tokens[i].top}
                assert tokens[i].logprob == pytest.approx(known.get(tokens[i].bytes, tokens[i].logprob), abs=1e-5)
                assert tokens[i].bytes in known or (tokens[i].logprob or 0) <= tokens[i].top[-1].logprob
        assert (await say(engine, prompts[0] + text(5)))[1].stats.cached_tokens >= len(prompts[0])

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("memory", MEMORIES)
def test_an_echoed_prompt_that_was_preempted_tells_each_token_once(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        text = texts(8)
        prompts = [text(200) for _ in range(3)]
        streams = [text(40) for _ in range(3)]
        answers = await asyncio.gather(
            *(say(engine, prompt, 170) for prompt in streams), *(say(engine, prompt, 0, echo=True) for prompt in prompts)
        )
        for prompt, (tokens, _) in zip(prompts, answers[3:], strict=True):
            alone, _ = await say(engine, prompt, 0, echo=True, scope=next(scopes))
            assert b"".join(token.bytes for token in tokens) == prompt
            assert all(difference(one, other) < ROUNDING for one, other in zip(tokens[1:], alone[1:], strict=True))

    with_memory(tmp_path, memory, test, kv_cells=2 * CONTEXT)


def test_scopes_do_not_share(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        prompt = texts(6)(100)
        await say(engine, prompt, scope="one")
        assert (await say(engine, prompt, scope="two"))[1].stats.cached_tokens == 0
        assert (await say(engine, prompt))[1].stats.cached_tokens == 0
        assert (await say(engine, prompt, scope="one"))[1].stats.cached_tokens > 0

    with_memory(tmp_path, "full", test)


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
def test_dropping_the_middle_goes_on_as_a_prompt_without_it(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        prompt = texts(7)(200)
        tokens, end = await say(engine, prompt, 100, overflow="drop_middle")
        assert end.reason == "maxPredictedTokensReached" and end.stats.generated_tokens == len(tokens) == 100
        said = prompt + b"".join(token.bytes for token in tokens)
        full = said[:CONTEXT]
        short = full[: CONTEXT // 4] + full[-CONTEXT // 2 :]
        (fresh, *_), _ = await say(engine, short, scope=next(scopes))
        assert difference(tokens[CONTEXT - len(prompt)], fresh) < ROUNDING

    with_memory(tmp_path, memory, test)


@pytest.mark.parametrize("prompt", [Tokens((FIRST_BYTE + 97,) * 300), Text("a" * 300), Text("a" * 300_000)])
def test_a_prompt_that_does_not_fit_gets_what_its_policy_says(tmp_path: Path, prompt: Prompt) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(ContextOverflow):
            await say(engine, prompt)
        tokens, end = await say(engine, prompt, overflow="stop")
        assert not tokens and end.reason == "contextLengthReached" and end.stats.generated_tokens == 0
        tokens, end = await say(engine, prompt, 3, overflow="drop_middle")
        assert len(tokens) == 3 and end.stats.prompt_tokens == CONTEXT * 3 // 4

    with_memory(tmp_path, "full", test)


@pytest.mark.parametrize("placement", [Process, Thread])
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_context_of_a_few_tokens_answers_or_refuses(
    tmp_path: Path, memory: Memory, placement: type[Process] | type[Thread]
) -> None:
    """With a context of 1 the middle that goes is the whole prompt."""
    chat = Chat((text_message("user", "a"),))
    prompts: list[Prompt | bytes] = [b"", b"a", b"ab", b"abcdefgh", Text(""), Text("abc"), chat]
    ways: list[dict[str, Any]] = [{}, {"overflow": "stop"}, {"overflow": "drop_middle"}]
    ways += [{**ways[-1], "echo": True}, {**ways[-1], "draft": Draft("ngram", min=1, max=4)}]

    async def test(engine: Engine, context_length: int) -> None:
        for prompt in prompts:
            for way in ways:
                try:
                    tokens, end = await say(engine, prompt, 9, **way)
                except ContextOverflow as overflow:
                    assert context_length == 1 or way.get("overflow") != "stop"
                    assert overflow.limit == context_length < overflow.needed
                else:
                    room = 9 if way.get("overflow") == "drop_middle" else context_length - end.stats.prompt_tokens
                    assert end.stats.prompt_tokens > 0
                    assert end.stats.generated_tokens == max(0, min(9, room)), (prompt, way)
                    assert len(tokens) == end.stats.generated_tokens + (end.stats.prompt_tokens if way.get("echo") else 0)

    for context_length in range(1, 6):
        how = {"context_length": context_length, "placement": placement}
        with_memory(tmp_path, memory, functools.partial(test, context_length=context_length), **how)


def test_a_chat_that_does_not_fit_loses_its_oldest_turns(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        turn = (text_message("user", "how are you?"), text_message("assistant", "well, thank you!"))
        system, last = text_message("system", "be kind"), text_message("user", "good. bye!")
        chat = Chat((system, *turn * 20, last))
        with pytest.raises(ContextOverflow):
            await say(engine, chat)
        _, end = await say(engine, chat, overflow="drop_middle")
        kept = []
        for turns in range(20):
            _, shorter = await say(engine, Chat((system, *turn * turns, last)), overflow="stop")
            kept.append(shorter.stats.prompt_tokens if shorter.reason != "contextLengthReached" else 0)
        assert end.stats.prompt_tokens == max(kept)

    with_memory(tmp_path, "full", test)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_turn_whose_opening_history_does_not_repeat_recomputes_only_from_there(tmp_path: Path, memory: Memory) -> None:
    async def test(engine: Engine) -> None:
        await say(engine, Chat((text_message("user", "a" * 60),)), 20)
        turns = (
            text_message("user", "a" * 60),
            text_message("assistant", "yes"),
            text_message("user", "b"),
        )
        _, end = await say(engine, Chat(turns))
        assert end.stats.cached_tokens >= 60

    with_memory(tmp_path, memory, test)


# ---- kinds that need care ---------------------------------------------------------------------------------------------


def test_sequences_of_plamo2_do_not_write_over_each_other(tmp_path: Path) -> None:
    async def run() -> None:
        engine = await Engine.open(Process(), "plamo2")
        settings = LoadSettings(context_length=256, parallel=4, idle_cells=0, flash_attention=False)
        try:
            loaded = await engine.load(LoadSpec((write_plamo2(tmp_path / "model.gguf"),), settings))
            assert loaded.parallel == 1
            rng = random.Random(1)
            prompts = [bytes(rng.randrange(97, 123) for _ in range(40 + i)) for i in range(6)]
            answers = await asyncio.gather(*(say(engine, prompt, 8) for prompt in prompts))
            for i, (prompt, (tokens, _)) in enumerate(zip(prompts, answers, strict=True)):
                alone, _ = await say(engine, prompt, 8, scope=f"alone {i}")
                assert max(map(difference, tokens, alone)) < ROUNDING
        finally:
            await engine.close()

    asyncio.run(run())


def test_cogvlm_is_refused_by_name(tmp_path: Path) -> None:
    async def run() -> None:
        engine = await Engine.open(Process(), "cogvlm")
        try:
            with pytest.raises(LoadFailed, match="'cogvlm' are not served"):
                await engine.load(LoadSpec((write_cogvlm(tmp_path / "model.gguf"),), LoadSettings(context_length=256)))
        finally:
            await engine.close()

    asyncio.run(run())
