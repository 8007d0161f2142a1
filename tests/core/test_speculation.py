"""Speculative decoding with the real engine: guesses change nothing of an answer but when its tokens come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from lmlite.core.engine.client import Engine
from lmlite.errors import InvalidRequest, LoadFailed
from lmlite.events import DraftCounts, Event, Finished, TextDelta, TokenLogprob
from lmlite.package import bundled_model
from lmlite.request import Draft, Generate, Grammar, Sampling, Text, Tokens
from tests.conftest import Client
from tests.core.test_memory_kinds import ROUNDING, difference, say, with_memory
from tests.core.test_real_engine import (
    GREEDY,
    LONG,
    assert_same_up_to_a_near_tie,
    complete,
    end_of,
    events_of,
    loaded,
    text_of,
)
from tests.memory_models import MEMORIES, Memory
from tests.random_models import with_floats, with_swapped_words, write_bert

PROMPTS = (
    LONG,
    "Once upon a time",
    "one, two, one, two, one, two, one,",
    "A list of colours: red, green, blue, red, green,",
    "The cat sat on the mat. The cat sat on the",
    "1, 2, 3, 4, 5, 6, 7,",
    "yes no yes no yes no yes",
    "Hello! Hello! Hello! Hello!",
    "def f(x):\n    return x\n\ndef g(x):\n    return x\n\ndef h(x):",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    '{"a": 1, "b": 2, "a": 1, "b":',
)
REFRAIN = Grammar("gbnf", 'root ::= ("tra la la, hey! ")+')
SCHEMA = Grammar(
    "json_schema",
    json.dumps({"type": "array", "items": {"enum": ["alpha", "beta"]}, "minItems": 12, "maxItems": 12}),
)
KINDS = (Draft("ngram", min=1), Draft("model", min=2, min_p=0.0))
"""With a least number of guesses, that are made even where they do not pay."""

each_kind = pytest.mark.parametrize("draft", KINDS, ids=[kind.kind for kind in KINDS])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in 32 bits: guesses change the shape of batches, and only rounding could tell."""
    return with_floats(bundled_model(), tmp_path_factory.mktemp("floats") / "tiny-f32.gguf")


@contextlib.asynccontextmanager
async def drafting(model: Path, draft: Draft, **settings: Any) -> AsyncIterator[Engine]:
    """An engine whose model drafts for itself if a model is to draft."""
    async with loaded(model, **{"flash_attention": False, **settings}) as engine:
        if draft.kind == "model":
            await engine.attach_draft((model,))
        yield engine


def counts_of(end: Finished) -> DraftCounts:
    counts = end.stats.draft
    assert counts is not None
    assert counts.accepted + counts.rejected + counts.ignored == counts.total
    assert counts.accepted <= end.stats.generated_tokens
    return counts


def guessed_well(draft: Draft, end: Finished) -> bool:
    """A draft model knows nothing of the grammar that its guesses are held against."""
    counts = counts_of(end)
    return (counts.total if draft.kind == "model" else counts.accepted) > 0


# ---- the same answers ------------------------------------------------------------------------------------------------


@each_kind
def test_greedy_text_is_the_same_with_and_without(model: Path, draft: Draft) -> None:
    async def run() -> None:
        async with drafting(model, draft) as engine:
            drafted = [await complete(engine, prompt, max_tokens=48, ignore_eos=True, draft=draft) for prompt in PROMPTS]
            for prompt, (text, end) in zip(PROMPTS, drafted):
                expected, plain = await complete(engine, prompt, max_tokens=48, ignore_eos=True)
                await assert_same_up_to_a_near_tie(engine, prompt, text, expected)
                assert end.stats.generated_tokens == plain.stats.generated_tokens == 48
                assert plain.stats.draft is None
            assert sum(counts_of(end).accepted for _, end in drafted) > 15

    asyncio.run(run())


@each_kind
def test_a_grammar_is_obeyed(model: Path, draft: Draft) -> None:
    async def run() -> None:
        async with drafting(model, draft) as engine:
            text, end = await complete(engine, "A list:", grammar=SCHEMA, max_tokens=200, draft=draft)
            assert end.reason == "eosFound"
            assert len(json.loads(text)) == 12
            assert guessed_well(draft, end)

    asyncio.run(run())


@each_kind
def test_logprobs_are_those_of_the_model(model: Path, draft: Draft) -> None:
    def tokens(events: Sequence[Event]) -> list[TokenLogprob]:
        return [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]

    async def run() -> None:
        async with drafting(model, draft) as engine:
            wanted = {"max_tokens": 40, "grammar": REFRAIN, "ignore_eos": True, "top_logprobs": 2}
            drafted = await events_of(engine, "Sing!", draft=draft, **wanted)
            plain = await events_of(engine, "Sing!", **wanted)
            assert guessed_well(draft, end_of(drafted))
            assert text_of(drafted) == text_of(plain)
            for one, other in zip(tokens(drafted), tokens(plain), strict=True):
                assert one.bytes == other.bytes
                assert one.logprob == pytest.approx(other.logprob, abs=0.05)

    asyncio.run(run())


def test_logprobs_of_what_a_schema_leaves_no_choice_in_are_those_of_the_model(model: Path) -> None:
    """As if it had been said freely: the same tokens as a prompt are scored alike."""
    told = {
        "type": "object",
        "properties": {"colour_of_it": {"const": "green, as it was"}, "n": {"type": "integer"}},
        "required": ["colour_of_it", "n"],
        "additionalProperties": False,
    }
    schema = Grammar("json_schema", json.dumps(told))

    def tokens(events: Sequence[Event]) -> list[TokenLogprob]:
        return [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]

    async def run() -> None:
        async with drafting(model, Draft("ngram", min=1)) as engine:
            prompt, _ = await engine.tokenize("Say: ", add_special=True, parse_special=True)
            answers: list[list[TokenLogprob]] = []
            for more in ({}, {"whole": True}, {"draft": Draft("ngram", min=1)}):
                events = await events_of(engine, Tokens(prompt), grammar=schema, max_tokens=60, top_logprobs=2, **more)
                said = tokens(events)
                assert b"".join(token.bytes for token in said).decode() == text_of(events)
                answers.append(said)
            for answer in answers[1:]:
                assert [token.bytes for token in answer] == [token.bytes for token in answers[0]]
                assert [token.logprob for token in answer] == pytest.approx([token.logprob for token in answers[0]], abs=0.1)
            pieces = [await engine.tokenize(token.token, add_special=False, parse_special=False) for token in said]
            assert all(len(ids) == 1 for ids, _ in pieces)
            scored = await events_of(
                engine, Tokens((*prompt, *(ids[0] for ids, _ in pieces))), max_tokens=0, echo=True, top_logprobs=2
            )
            expected = tokens(scored)[len(prompt) :]
            assert len(said) > 10 and any((token.logprob or 0) < -3 for token in said)
            for one, other in zip(said, expected, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=0.05)
                assert one.top[0].logprob == pytest.approx(other.top[0].logprob, abs=0.05)

    asyncio.run(run())


@each_kind
def test_a_stop_string_cuts_what_was_guessed_behind_it(model: Path, draft: Draft) -> None:
    async def run() -> None:
        async with drafting(model, draft) as engine:
            for stop in ("hey! tra la la, hey! tra", "y! t"):
                how = {"grammar": REFRAIN, "ignore_eos": True, "stop": (stop,), "max_tokens": 200}
                text, end = await complete(engine, "Sing!", draft=draft, **how)
                assert (end.reason, end.stop_string) == ("stopStringFound", stop)
                assert stop not in text
                assert text == ("tra la la, hey! " * 4)[: len(text)]
                counts_of(end)

    asyncio.run(run())


@each_kind
def test_the_limit_of_tokens_is_exact(model: Path, draft: Draft) -> None:
    async def run() -> None:
        for limit in (1, 2, 3, 17, 30):
            async with drafting(model, draft) as engine:
                _, end = await complete(engine, "Sing!", grammar=REFRAIN, ignore_eos=True, max_tokens=limit, draft=draft)
                assert end.reason == "maxPredictedTokensReached"
                assert end.stats.generated_tokens == limit
                counts_of(end)

    asyncio.run(run())


@each_kind
def test_nothing_is_guessed_beyond_the_context(model: Path, draft: Draft) -> None:
    async def run() -> None:
        async with drafting(model, draft, context_length=96) as engine:
            _, end = await complete(engine, "Sing!", grammar=REFRAIN, ignore_eos=True, draft=draft)
            assert end.reason == "contextLengthReached"
            assert end.stats.prompt_tokens + end.stats.generated_tokens == 96
            assert guessed_well(draft, end)

    asyncio.run(run())


@each_kind
def test_four_at_once_say_what_each_says_alone(model: Path, draft: Draft) -> None:
    prompts = [f"{word}: one two three, one two three, one two" for word in ("apple", "pear", "plum", "fig")]

    async def run() -> None:
        async with drafting(model, draft) as engine:
            work = [complete(engine, prompt, max_tokens=40, ignore_eos=True, draft=draft) for prompt in prompts]
            together = await asyncio.gather(*work)
            assert sum(counts_of(end).total for _, end in together) > 0
            for prompt, (text, _) in zip(prompts, together):
                alone, _ = await complete(engine, prompt, max_tokens=40, ignore_eos=True)
                await assert_same_up_to_a_near_tie(engine, prompt, text, alone)

    asyncio.run(run())


@each_kind
def test_a_seed_draws_the_same_tokens(model: Path, draft: Draft) -> None:
    """Each position is drawn from the model's own row, so guesses cannot shift the distribution."""
    prompt = "one two three one two three one two three"

    async def drawn(engine: Engine, seed: int, draft: Draft | None) -> tuple[str, Finished]:
        hot = Sampling(temperature=1.0, top_k=4, top_p=1.0, min_p=0.0, seed=seed)
        return await complete(engine, prompt, sampling=hot, max_tokens=4, ignore_eos=True, draft=draft)

    async def run() -> None:
        async with drafting(model, draft, parallel=1) as engine:
            guessed = [await drawn(engine, seed, draft) for seed in range(60)]
            plain = [await drawn(engine, seed, None) for seed in range(60)]
        assert len({text for text, _ in plain}) > 10
        assert sum(counts_of(end).total for _, end in guessed) > 0
        # other batches add up in another order: a draw at the edge of two tokens can fall to the other side
        assert sum(one[0] == other[0] for one, other in zip(guessed, plain)) >= 57

    asyncio.run(run())


# ---- guesses that come true ------------------------------------------------------------------------------------------


def test_a_text_that_repeats_itself_is_guessed(model: Path) -> None:
    async def run() -> None:
        async with drafting(model, Draft("ngram")) as engine:
            draft = Draft("ngram", min=1)
            _, end = await complete(engine, "Sing!", grammar=REFRAIN, ignore_eos=True, max_tokens=120, draft=draft)
            counts = counts_of(end)
            assert counts.total > 20
            assert counts.accepted > 0.7 * counts.total

    asyncio.run(run())


def test_a_model_guesses_what_it_says_itself(model: Path) -> None:
    draft = Draft("model", min=4, min_p=0.0)

    async def run() -> None:
        async with drafting(model, draft) as engine:
            _, end = await complete(engine, LONG, max_tokens=64, ignore_eos=True, draft=draft)
            counts = counts_of(end)
            assert counts.accepted >= 0.8 * counts.total >= 0.8 * 40

    asyncio.run(run())


def test_fewer_guesses_than_the_least_are_not_verified(model: Path) -> None:
    draft = Draft("model", max=4, min=5, min_p=0.0)

    async def run() -> None:
        async with drafting(model, draft) as engine:
            _, end = await complete(engine, LONG, max_tokens=12, ignore_eos=True, draft=draft)
            assert counts_of(end) == DraftCounts(0, 0, 0, 0)

    asyncio.run(run())


def test_a_model_guesses_only_as_far_as_it_is_sure(model: Path) -> None:
    async def run() -> None:
        totals = []
        for min_p in (0.0, 0.9):
            draft = Draft("model", min=1, max=4, min_p=min_p)
            async with drafting(model, draft, parallel=1) as engine:
                hot = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
                _, end = await complete(engine, "xq", sampling=hot, max_tokens=40, ignore_eos=True, draft=draft)
                totals.append(counts_of(end).total)
        assert totals[1] < 0.7 * totals[0]

    asyncio.run(run())


# ---- the cache -------------------------------------------------------------------------------------------------------


@each_kind
def test_only_what_was_said_stays_in_the_cache(model: Path, draft: Draft) -> None:
    async def run() -> None:
        async with drafting(model, draft) as engine:
            said, end = await complete(engine, PROMPTS[2], max_tokens=40, ignore_eos=True, draft=draft)
            assert counts_of(end).total > 0
            prompt = PROMPTS[2] + said
            text, end = await complete(engine, prompt, max_tokens=24, ignore_eos=True, draft=draft)
            assert end.stats.cached_tokens > 0
        async with drafting(model, draft) as engine:
            expected, _ = await complete(engine, prompt, max_tokens=24, ignore_eos=True)
            await assert_same_up_to_a_near_tie(engine, prompt, text, expected)

    asyncio.run(run())


@each_kind
def test_a_request_that_steps_back_for_others_loses_nothing(model: Path, draft: Draft) -> None:
    prompts = [f"{word} {LONG[:60]}" for word in ("apple", "pear", "plum", "fig")]

    async def run() -> None:
        async with drafting(model, draft, context_length=256, kv_cells=256) as engine:
            work = [complete(engine, prompt, max_tokens=120, ignore_eos=True, draft=draft) for prompt in prompts]
            for prompt, (text, end) in zip(prompts, await asyncio.gather(*work)):
                assert end.stats.generated_tokens == 120
                counts_of(end)
                alone, _ = await complete(engine, prompt, max_tokens=120, ignore_eos=True)
                await assert_same_up_to_a_near_tie(engine, prompt, text, alone)

    asyncio.run(run())


@each_kind
def test_a_request_that_is_left_costs_others_nothing(model: Path, draft: Draft) -> None:
    async def run() -> None:
        async with drafting(model, draft) as engine:
            endless = Generate(Text(LONG), sampling=GREEDY, ignore_eos=True, draft=draft)
            async with contextlib.aclosing(engine.run(endless).batches()) as batches:
                async for _ in batches:
                    break
            text, _ = await complete(engine, LONG, max_tokens=24, ignore_eos=True, draft=draft)
        async with drafting(model, draft) as engine:
            expected, _ = await complete(engine, LONG, max_tokens=24, ignore_eos=True)
            await assert_same_up_to_a_near_tie(engine, LONG, text, expected)

    asyncio.run(run())


# ---- other memories --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("overflow", ["stop", "drop_middle"])
def test_every_memory_gives_the_answer_that_it_gives_without_guesses(
    tmp_path: Path, memory: Memory, overflow: Literal["stop", "drop_middle"]
) -> None:
    """What cannot take guesses back gets none. Dropping the middle takes other text from under the index of n-grams."""

    async def test(engine: Engine) -> None:
        prompt = b"tra la la, hey! " * 6
        more = {"overflow": overflow, "ignore_eos": True}
        plain, _ = await say(engine, prompt, 260, **more)
        drafted, end = await say(engine, prompt, 260, draft=Draft("ngram", min=1), **more)
        counts = counts_of(end)
        assert (counts.total > 0) == (memory == "full")
        assert len(drafted) == len(plain)
        for one, other in zip(drafted, plain):
            if one.bytes != other.bytes:
                assert one.logprob == pytest.approx(other.top[1].logprob, abs=ROUNDING)  # a near tie
                break
            assert difference(one, other) < ROUNDING

    with_memory(tmp_path, memory, test)


# ---- attaching -------------------------------------------------------------------------------------------------------


def test_without_a_draft_model_a_request_is_served_without_guesses() -> None:
    async def run() -> None:
        async with loaded() as engine:
            _, end = await complete(engine, LONG, max_tokens=8, draft=Draft("model"))
            assert counts_of(end) == DraftCounts(0, 0, 0, 0)

    asyncio.run(run())


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with loaded() as engine:
            with pytest.raises(InvalidRequest, match="vocabulary") as refused:
                await engine.attach_draft((with_swapped_words(bundled_model(), tmp_path / "other.gguf"),))
            assert refused.value.param == "draft_model"
            assert (await complete(engine, LONG, max_tokens=8))[0]

    asyncio.run(run())


def test_what_cannot_draft_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing more")

    async def run() -> None:
        async with loaded() as engine:
            with pytest.raises(LoadFailed):
                await engine.attach_draft((tmp_path / "broken.gguf",))
            with pytest.raises(InvalidRequest):
                await engine.attach_draft((write_bert(tmp_path / "bert.gguf"),))
        async with loaded(tmp_path / "bert.gguf") as embedder:
            with pytest.raises(InvalidRequest):
                await embedder.attach_draft((bundled_model(),))

    asyncio.run(run())


def test_a_draft_model_can_come_and_be_replaced_while_requests_run() -> None:
    draft = Draft("model", min_p=0.0)

    async def run() -> None:
        async with loaded() as engine:
            work = asyncio.ensure_future(complete(engine, LONG, max_tokens=400, ignore_eos=True, draft=draft))
            for _ in range(3):
                await engine.attach_draft((bundled_model(),))
            _, end = await work
            assert end.stats.generated_tokens == 400
            counts_of(end)

    asyncio.run(run())


def test_closing_an_engine_gives_up_the_draft_model_that_is_being_loaded() -> None:
    async def run() -> None:
        async with loaded() as engine:
            loading = asyncio.ensure_future(engine.attach_draft((bundled_model(),)))
            await asyncio.sleep(0)
        await asyncio.gather(loading, return_exceptions=True)

    asyncio.run(run())


# ---- through the server ----------------------------------------------------------------------------------------------


def test_a_request_names_its_draft_model_and_gets_its_counts(tiny: Client) -> None:
    question = {"messages": [{"role": "user", "content": "Count to twenty."}], "max_tokens": 24, "temperature": 0}
    named = tiny.get("/v1/models").json["data"][0]["id"]
    plain = tiny.post("/api/v0/chat/completions", question)
    drafted = tiny.post("/api/v0/chat/completions", {**question, "draft_model": named})
    assert (plain.status, drafted.status) == (200, 200)
    stats = drafted.json["stats"]
    assert stats["draft_model"] == named
    parts = [stats[f"{part}_draft_tokens_count"] for part in ("accepted", "rejected", "ignored")]
    assert stats["total_draft_tokens_count"] == sum(parts)
    assert "draft_model" not in plain.json["stats"]


def test_a_draft_model_that_is_not_there_is_named_in_the_error(tiny: Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "draft_model": "nobody"}
    answer = tiny.post("/v1/chat/completions", body)
    assert answer.status == 404
    assert answer.json["error"]["param"] == "draft_model"


def test_what_lies_behind_the_tensors_of_a_draft_model_is_never_read(tmp_path: Path) -> None:
    """A hole of a terabyte would be read ahead."""
    holed = tmp_path / "holed.gguf"
    shutil.copy(bundled_model(), holed)
    try:
        os.truncate(holed, 1 << 40)
    except OSError:
        pytest.skip("this file system has no files of a terabyte")

    async def run() -> None:
        async with loaded() as engine:
            await engine.attach_draft((holed,))
            _, end = await complete(engine, LONG, max_tokens=20, ignore_eos=True, draft=Draft("model", min=2, min_p=0.0))
            assert counts_of(end).total > 0

    asyncio.run(run())
