"""The real engine with real weights, through its socket: what it says, what it reuses, what it survives."""

from __future__ import annotations

import asyncio
import json
import math
import re
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.client import Engine, _Stream
from lmlite.core.engine.frames import Kind
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Placement, Process, Thread
from lmlite.errors import (
    ContextOverflow,
    EngineError,
    EngineGone,
    InvalidRequest,
    LmError,
    LoadFailed,
    QueueFull,
    WrongModelType,
)
from lmlite.events import Event, Finished, PromptProgress, TextDelta, TokenLogprob
from lmlite.messages import text_message
from lmlite.package import bundled_model
from lmlite.request import Chat, Embed, Generate, Grammar, Prompt, Rerank, Sampling, Text, Tokens
from tests.random_models import N_CTX, N_EMBD, bert_score, with_template, write_bert

GREEDY = Sampling(temperature=0)
NEAR_TIE = 0.1  # nats: batches of another shape add up in another order
LONG = "one two three four five six seven eight nine ten. " * 12


@asynccontextmanager
async def loaded(
    path: Path | None = None, placement: Callable[[], Placement] = Process, **settings: Any
) -> AsyncIterator[Engine]:
    engine = await Engine.open(placement(), "tiny")
    try:
        await engine.load(LoadSpec((path or bundled_model(),), LoadSettings(**settings)))
        yield engine
    finally:
        await engine.close()


def with_engine(test: Callable[[Engine], Coroutine[Any, Any, None]], **how: Any) -> None:
    async def run() -> None:
        async with loaded(**how) as engine:
            await test(engine)

    asyncio.run(run())


async def events_of(engine: Engine, prompt: Prompt | str, **more: Any) -> list[Event]:
    work = Generate(Text(prompt) if isinstance(prompt, str) else prompt, **{"sampling": GREEDY, **more})
    return [event async for event in engine.run(work)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def end_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


async def complete(engine: Engine, prompt: Prompt | str, **more: Any) -> tuple[str, Finished]:
    events = await events_of(engine, prompt, **more)
    return text_of(events), end_of(events)


async def assert_same_up_to_a_near_tie(engine: Engine, prompt: str, text: str, expected: str) -> None:
    """Equal, or parted at a token that was all but as likely as another: not the one with the first letter that differs, if
    the other begins alike."""
    if text == expected:
        return
    n = max(len(text), len(expected))
    for ignore_eos in (False, True):  # who asked for these knows
        events = await events_of(engine, prompt, max_tokens=n, top_logprobs=2, ignore_eos=ignore_eos)
        said = b""
        for token in (token for event in events if isinstance(event, TextDelta) for token in event.logprobs):
            said += token.bytes
            if not (text.encode().startswith(said) and expected.encode().startswith(said)):
                assert token.top[0].logprob - token.top[1].logprob < NEAR_TIE
                return
    raise AssertionError(f"{text!r} and {expected!r} part where neither had to")


def user(text: str) -> Chat:
    return Chat((text_message("user", text),))


# ---- text ------------------------------------------------------------------------------------------------------------


def test_a_child_process_and_a_thread_say_the_same() -> None:
    async def run() -> None:
        texts = []
        for placement in (Process, Thread):
            async with loaded(placement=placement) as engine:
                texts.append(await complete(engine, LONG, max_tokens=40))
        assert texts[0][0] == texts[1][0] != ""

    asyncio.run(run())


def test_greedy_text_is_the_same_each_time() -> None:
    async def test(engine: Engine) -> None:
        first, _ = await complete(engine, LONG, max_tokens=40)
        again, end = await complete(engine, LONG, max_tokens=40)
        await assert_same_up_to_a_near_tie(engine, LONG, again, first)
        assert end.stats.cached_tokens == end.stats.prompt_tokens - 1

    with_engine(test)


def test_four_at_once_say_what_each_says_alone() -> None:
    prompts = [f"{LONG} {word}" for word in ("one", "two", "three", "four")]

    async def test(engine: Engine) -> None:
        together = await asyncio.gather(*(complete(engine, prompt, max_tokens=32) for prompt in prompts))
        for prompt, (text, _) in zip(prompts, together):
            alone, _ = await complete(engine, prompt, max_tokens=32)
            await assert_same_up_to_a_near_tie(engine, prompt, text, alone)

    with_engine(test)


def test_max_tokens_and_the_counts_are_real() -> None:
    async def test(engine: Engine) -> None:
        _, end = await complete(engine, LONG, max_tokens=7, ignore_eos=True)
        ids, _ = await engine.tokenize(LONG, add_special=True, parse_special=True)
        assert end.reason == "maxPredictedTokensReached"
        assert end.stats.generated_tokens == 7
        assert end.stats.prompt_tokens == len(ids)
        assert 0 < end.stats.first_token_ms
        assert 0 < end.stats.tokens_per_second

    with_engine(test)


def test_without_a_limit_it_ends_at_the_context() -> None:
    async def test(engine: Engine) -> None:
        _, end = await complete(engine, "one", ignore_eos=True)
        assert end.reason == "contextLengthReached"
        assert end.stats.prompt_tokens + end.stats.generated_tokens == 128

    with_engine(test, context_length=128)


def test_a_stop_string_ends_the_text_before_it() -> None:
    async def test(engine: Engine) -> None:
        whole, _ = await complete(engine, LONG, max_tokens=40, ignore_eos=True)
        stop = whole[10:15]
        text, end = await complete(engine, LONG, max_tokens=40, ignore_eos=True, stop=(stop, "never said"))
        assert (end.reason, end.stop_string) == ("stopStringFound", stop)
        assert text == whole[: whole.index(stop)]

    with_engine(test)


def test_a_whole_answer_comes_in_one_piece_and_is_the_streamed_text() -> None:
    async def test(engine: Engine) -> None:
        for more in ({"max_tokens": 60, "ignore_eos": True}, {"max_tokens": 60, "ignore_eos": True, "top_logprobs": 1}):
            streamed = await events_of(engine, LONG * 2, **more)
            whole = await events_of(engine, LONG * 2, whole=True, **more)
            assert len(whole) == 4
            await assert_same_up_to_a_near_tie(engine, LONG * 2, text_of(whole), text_of(streamed))
            _, delta, _, end = whole
            assert isinstance(delta, TextDelta) and isinstance(end, Finished)
            assert len(delta.logprobs) == (end.stats.generated_tokens if "top_logprobs" in more else 0)

    with_engine(test, eval_batch_size=64)


def test_token_ids_are_a_prompt_too() -> None:
    async def test(engine: Engine) -> None:
        ids, pieces = await engine.tokenize(LONG, add_special=True)
        assert (await complete(engine, Tokens(ids), max_tokens=20))[0] == (await complete(engine, LONG, max_tokens=20))[0]
        assert b"".join(pieces).decode().strip().endswith("ten.")
        assert "one two three" in await engine.detokenize(ids)

    with_engine(test)


def test_echo_shows_the_prompt_first() -> None:
    async def test(engine: Engine) -> None:
        plain, _ = await complete(engine, "one two", max_tokens=8)
        echoed, _ = await complete(engine, "one two", max_tokens=8, echo=True)
        assert echoed == "one two" + plain

    with_engine(test)


@pytest.mark.parametrize("prompt", ["one two", "Größe: 中文 😀!", "<|im_start|>user\nHello<|im_end|>", " a", ""])
def test_the_tokens_of_an_echoed_prompt_say_where_they_stand_in_it(prompt: str) -> None:
    async def test(engine: Engine) -> None:
        ids, pieces = await engine.tokenize(prompt, add_special=True, parse_special=True)
        prompts: list[Prompt] = [Text(prompt), *([Tokens(ids)] if ids else [])]
        for asked in prompts:
            events = await events_of(engine, asked, max_tokens=0, echo=True, top_logprobs=0)
            tokens = [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]
            shown = [token.bytes if token.shown is None else token.bytes[len(token.bytes) - token.shown :] for token in tokens]
            assert b"".join(shown).decode() == text_of(events)
            assert len(tokens) == max(1, len(ids)) == end_of(events).stats.prompt_tokens
            assert end_of(events).stats.generated_tokens == 0
            if isinstance(asked, Text):
                assert text_of(events) == prompt

    with_engine(test)


def test_no_tokens_at_all_leave_the_prompt_in_the_cache() -> None:
    async def test(engine: Engine) -> None:
        text, end = await complete(engine, LONG, max_tokens=0)
        assert (text, end.reason, end.stats.generated_tokens) == ("", "maxPredictedTokensReached", 0)
        assert (await complete(engine, LONG + " And", max_tokens=1))[1].stats.cached_tokens > 100

    with_engine(test)


def test_a_long_prompt_reports_its_progress() -> None:
    async def test(engine: Engine) -> None:
        events = await events_of(engine, LONG * 2, max_tokens=1)
        steps = [event for event in events if isinstance(event, PromptProgress)]
        assert len(steps) > 1
        assert [step.done for step in steps] == sorted({step.done for step in steps})
        assert steps[-1].done == steps[-1].total == end_of(events).stats.prompt_tokens

    with_engine(test, eval_batch_size=64)


@pytest.mark.parametrize("prompt", ["one two", LONG * 2])
def test_a_whole_answer_is_announced_once_when_its_prompt_is_done(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[tuple[int, bytes]] = []
    take = _Stream.frame

    def overhear(stream: _Stream, kind: int, payload: bytes) -> None:
        came.append((kind, payload))
        take(stream, kind, payload)

    monkeypatch.setattr(_Stream, "frame", overhear)

    async def test(engine: Engine) -> None:
        events = await events_of(engine, prompt, max_tokens=2, ignore_eos=True, whole=True)
        n_tokens = end_of(events).stats.prompt_tokens
        assert [kind for kind, _ in came] == [Kind.PROMPT_PROGRESS, Kind.TEXT, Kind.FINISHED]
        told = json.loads(came[0][1])
        assert told.pop("ms") > 0
        assert told == {"done": n_tokens, "total": n_tokens, "cached": 0}

    with_engine(test, eval_batch_size=64)


# ---- sampling --------------------------------------------------------------------------------------------------------


def test_the_same_seed_says_the_same_and_another_one_something_else() -> None:
    async def test(engine: Engine) -> None:
        hot = {"max_tokens": 48, "ignore_eos": True}
        first, _ = await complete(engine, "one", sampling=Sampling(temperature=1.5, seed=1), **hot)
        again, _ = await complete(engine, "one", sampling=Sampling(temperature=1.5, seed=1), **hot)
        other, _ = await complete(engine, "one", sampling=Sampling(temperature=1.5, seed=2), **hot)
        assert first == again != other

    with_engine(test, parallel=1)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(mirostat=1, seed=1),
        Sampling(mirostat=2, seed=1),
        Sampling(typical_p=0.5, seed=1),
        Sampling(dry_multiplier=0.8, seed=1),
        Sampling(xtc_probability=0.5, seed=1),
        Sampling(top_k=0, top_p=1.0, min_p=0.0, seed=1),
        Sampling(repeat_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.5, repeat_last_n=-1, seed=1),
    ],
)
def test_every_sampler_makes_text(sampling: Sampling) -> None:
    async def test(engine: Engine) -> None:
        text, end = await complete(engine, LONG, sampling=sampling, max_tokens=16, ignore_eos=True)
        assert text
        assert end.stats.generated_tokens == 16

    with_engine(test)


def test_a_banned_token_is_not_said() -> None:
    async def test(engine: Engine) -> None:
        events = await events_of(engine, LONG, max_tokens=1, top_logprobs=0)
        said = text_of(events)
        ids, _ = await engine.tokenize(said)
        bias = tuple((id, -math.inf) for id in ids)
        text, _ = await complete(engine, LONG, max_tokens=1, sampling=Sampling(temperature=0, logit_bias=bias))
        assert text != said

    with_engine(test)


def test_logprobs_come_with_their_text() -> None:
    async def test(engine: Engine) -> None:
        events = await events_of(engine, LONG, max_tokens=12, ignore_eos=True, top_logprobs=3)
        tokens: list[TokenLogprob] = []
        for event in events:
            if isinstance(event, TextDelta):
                tokens += event.logprobs
        assert b"".join(token.bytes for token in tokens).decode() == text_of(events)
        for token in tokens:
            assert len(token.top) == 3
            # greedy took the likeliest, or the next one where the likeliest would have ended the text
            assert token.logprob in [pytest.approx(top.logprob, abs=1e-4) for top in token.top[:2]]
            assert sum(math.exp(top.logprob) for top in token.top) <= 1.0001

    with_engine(test)


def test_a_json_schema_is_obeyed() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": ["small", "large"]}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }

    async def test(engine: Engine) -> None:
        for sampling in (GREEDY, Sampling(temperature=1.0, top_k=0, seed=4)):
            text, end = await complete(
                engine, user("Anything"), grammar=Grammar("json_schema", json.dumps(schema)), sampling=sampling, max_tokens=200
            )
            assert end.reason == "eosFound"
            value = json.loads(text)
            assert set(value) == {"name", "size"}
            assert value["size"] in ("small", "large")

    with_engine(test)


def test_an_answer_matches_a_regular_expression_or_is_one_of_a_choice() -> None:
    code = r"[A-Z]{2}-\d{3,6}(\.(ok|no))?"
    words = ("yes", "yes, of course", "n\u00f3")

    async def test(engine: Engine) -> None:
        for seed in range(6):
            hot = Sampling(temperature=1.5, top_k=0, seed=seed)
            text, end = await complete(engine, user("Anything"), max_tokens=100, sampling=hot, grammar=Grammar("regex", code))
            assert end.reason == "eosFound" and re.fullmatch(code, text)
            choice = Grammar("choice", json.dumps(words))
            text, end = await complete(engine, "Is it so?", max_tokens=100, sampling=hot, grammar=choice)
            assert end.reason == "eosFound" and text in words

    with_engine(test)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "a("),
        Grammar("regex", "(?<=a)b"),
        Grammar("choice", "[]"),
        Grammar("gbnf", "root ::= missing"),
        Grammar("gbnf", "root ::= " + "(" * 20000),
        Grammar("gbnf", 'root ::= "a"{5,2}'),
        Grammar("gbnf", 'root ::= #\r"a"{5,2}'),
        Grammar("json_schema", '{"type": "string", "minLength": 9, "maxLength": 2}'),
        Grammar("json_schema", '{"type":"array","items":' * 20000 + "{}" + "}" * 20000),
        Grammar("json_schema", "{"),
    ],
    ids=lambda grammar: grammar.text[:30],
)
def test_a_grammar_that_cannot_be_is_refused_and_the_engine_goes_on(grammar: Grammar) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(InvalidRequest):
            await complete(engine, "one", grammar=grammar)
        assert (await complete(engine, "one", max_tokens=4))[1].stats.generated_tokens > 0

    with_engine(test)


@pytest.mark.parametrize("template", ["{# nothing #}", "{{ '' }}", "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_a_template_that_says_nothing_is_answered_from_the_beginning_of_text(tmp_path: Path, template: str) -> None:
    async def test(engine: Engine) -> None:
        for more in ({}, {"overflow": "drop_middle"}, {"grammar": Grammar("json_schema", "{}")}):
            _, end = await complete(engine, user(""), max_tokens=2, **more)
            assert (end.stats.prompt_tokens, end.stats.generated_tokens) == (1, 2)

    with_engine(test, path=with_template(bundled_model(), tmp_path / "mute.gguf", template))


def test_a_grammar_with_all_its_tokens_banned_is_an_error() -> None:
    async def test(engine: Engine) -> None:
        everything = tuple((id, -math.inf) for id in range(512))
        banned = Sampling(temperature=0, logit_bias=everything)
        with pytest.raises(InvalidRequest):
            await complete(engine, "one", sampling=banned, grammar=Grammar("gbnf", 'root ::= "zzz"'), max_tokens=4)

    with_engine(test)


# ---- conversations ---------------------------------------------------------------------------------------------------


def test_a_second_turn_does_not_recompute_the_first() -> None:
    async def test(engine: Engine) -> None:
        question = text_message("user", LONG)
        answer, first = await complete(engine, Chat((question,)), max_tokens=24, ignore_eos=True)
        await complete(engine, user("Something else altogether"), max_tokens=4)
        turn = (text_message("assistant", answer), text_message("user", "And then?"))
        _, second = await complete(engine, Chat((question, *turn)), max_tokens=4)
        assert second.stats.cached_tokens >= first.stats.prompt_tokens

    with_engine(test)


def test_requests_with_one_new_prefix_compute_it_once() -> None:
    async def test(engine: Engine) -> None:
        prompts = [f"{LONG * 3}{word}" for word in ("apple", "pear", "plum", "fig")]
        ends = [end for _, end in await asyncio.gather(*(complete(engine, prompt, max_tokens=8) for prompt in prompts))]
        shared = (await engine.tokenize(LONG * 3))[0]
        almost = len(shared) - 32  # what is left to compute of a prefix is not worth waiting for
        assert sum(end.stats.cached_tokens for end in ends) >= 3 * almost

    with_engine(test)


def test_control_tokens_in_a_message_are_text() -> None:
    async def test(engine: Engine) -> None:
        plain = await engine.render(user("hello"))
        control = "<|im_end|>"
        assert control in plain
        (end_id,), _ = await engine.tokenize(control, parse_special=True)
        spoken, _ = await complete(engine, user("hello"), max_tokens=1)
        text = user(f"hello {control} there")
        assert f"hello {control} there" in await engine.render(text)
        _, honest = await complete(engine, user("hello  there"), max_tokens=1)
        _, hostile = await complete(engine, text, max_tokens=1)
        as_text, _ = await engine.tokenize(control)
        assert end_id not in as_text
        assert hostile.stats.prompt_tokens >= honest.stats.prompt_tokens + len(as_text) - 2
        assert spoken is not None

    with_engine(test)


def test_the_marks_of_the_engine_s_own_are_not_for_messages() -> None:
    async def test(engine: Engine) -> None:
        begin, end, neighbour = "\ufdd0", "\ufdd1", "\ufdd2"
        said = f"{end}he{begin}{begin}ll{end}o{neighbour}{begin}"
        assert await engine.render(user(said)) == await engine.render(user(f"hello{neighbour}"))
        _, marked = await complete(engine, user(f"{begin}{end}<|im_end|>{end}"), max_tokens=1)
        _, plain = await complete(engine, user("<|im_end|>"), max_tokens=1)
        assert marked.stats.prompt_tokens == plain.stats.prompt_tokens

    with_engine(test)


@pytest.mark.parametrize(
    "template",
    ["{% if %}", "{{ messages[0].content | nosuchfilter }}", "{{ raise_exception('no such role') }}"],
)
def test_a_template_that_fails_refuses_the_chat_and_not_the_model(tmp_path: Path, template: str) -> None:
    path = with_template(bundled_model(), tmp_path / "odd.gguf", template)

    async def test(engine: Engine) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await complete(engine, user("hello"))
        assert str(tmp_path) not in str(caught.value)
        assert (await complete(engine, "one", max_tokens=2))[1].stats.generated_tokens > 0

    with_engine(test, path=path)


# ---- room ------------------------------------------------------------------------------------------------------------


def test_more_requests_than_cells_all_finish() -> None:
    async def test(engine: Engine) -> None:
        works = [complete(engine, f"{word} {LONG}", max_tokens=60, ignore_eos=True) for word in "abcdefghijkl"]
        for text, end in await asyncio.gather(*works):
            assert text
            assert end.stats.generated_tokens == 60

    with_engine(test, context_length=512, kv_cells=512, parallel=8)


def test_a_full_queue_refuses_at_once_and_serves_the_rest() -> None:
    async def test(engine: Engine) -> None:
        works = [complete(engine, word, max_tokens=30, ignore_eos=True) for word in "abcdefghij"]
        results = await asyncio.gather(*works, return_exceptions=True)
        refused = [result for result in results if isinstance(result, QueueFull)]
        served = [result for result in results if isinstance(result, tuple)]
        assert len(refused) + len(served) == len(works)
        assert refused and all(error.limit == 2 for error in refused)
        assert len(served) >= 2
        assert all(end.stats.generated_tokens == 30 for _, end in served)

    with_engine(test, parallel=1, max_queue=2)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers() -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(ContextOverflow) as caught:
            await complete(engine, LONG * 4)
        assert caught.value.limit == 256
        assert caught.value.needed > 256

    with_engine(test, context_length=256)


@pytest.mark.parametrize(
    "prompt",
    [
        Text("a b " * 500_000),
        Chat((text_message("user", "a b " * 500_000),)),
        Chat((text_message("user", "a b <|im_end|>" * 100_000),)),
        Chat((text_message("user", "x"),) * 20_000),
    ],
    ids=["text", "message", "control tokens", "messages"],
)
def test_a_prompt_many_times_too_long_is_refused_without_reading_it_all(prompt: Prompt) -> None:
    async def test(engine: Engine) -> None:
        bystander = asyncio.ensure_future(complete(engine, LONG, max_tokens=200, ignore_eos=True))
        with pytest.raises(ContextOverflow) as caught:
            await complete(engine, prompt)
        assert caught.value.needed > caught.value.limit == 2048
        assert (await bystander)[1].stats.generated_tokens == 200

    with_engine(test)


def test_leaving_a_request_frees_its_place() -> None:
    async def test(engine: Engine) -> None:
        async for batch in engine.run(Generate(Text(LONG), ignore_eos=True, sampling=GREEDY)).batches():
            assert batch
            break
        _, end = await asyncio.wait_for(complete(engine, "one", max_tokens=2), 5)
        assert end.stats.generated_tokens > 0
        while (await engine.stats()).running:
            await asyncio.sleep(0)

    with_engine(test, parallel=1)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    async def test(engine: Engine) -> None:
        for work in (
            Generate(Tokens((10**9,))),
            Generate(Text("one"), sampling=Sampling(logit_bias=((10**9, 1.0),))),
        ):
            with pytest.raises(InvalidRequest):
                [event async for event in engine.run(work)]
        with pytest.raises(InvalidRequest):
            await engine.detokenize([10**9])

    with_engine(test)


def test_a_killed_child_tells_its_requests_how_it_ended() -> None:
    async def run() -> None:
        placement = Process()
        engine = await Engine.open(placement, "tiny")
        await engine.load(LoadSpec((bundled_model(),)))
        batches = engine.run(Generate(Text(LONG), ignore_eos=True, sampling=GREEDY)).batches()
        await batches.__anext__()
        placement.kill()
        with pytest.raises(EngineGone) as caught:
            async for _ in batches:
                pass
        assert "SIGKILL" in caught.value.reason
        await engine.close()

    asyncio.run(run())


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(64), b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_model_is_a_failed_load(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)

    async def run() -> None:
        with pytest.raises(LoadFailed):
            async with loaded(path):
                pass

    asyncio.run(run())


def test_a_truncated_model_is_a_failed_load(tmp_path: Path) -> None:
    whole = bundled_model().read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: len(whole) // 2])

    async def run() -> None:
        with pytest.raises((LoadFailed, EngineGone)):
            async with loaded(path):
                pass

    asyncio.run(run())


# ---- embeddings ------------------------------------------------------------------------------------------------------


def vector(raw: bytes) -> list[float]:
    return array("f", raw).tolist()


def test_embeddings_are_normalised_ordered_and_the_same_in_any_company(tmp_path: Path) -> None:
    texts = ["a b c", "d", "e f g h i j k", "a b c"] * 40

    async def test(engine: Engine) -> None:
        together = await engine.embed(Embed(texts))
        alone = [(await engine.embed(Embed([text])))[0] for text in texts[:4]]
        for place, packed in enumerate(together):
            values, expected = vector(packed.vector), vector(alone[place % 4].vector)
            assert len(values) == N_EMBD
            assert math.fsum(x * x for x in values) == pytest.approx(1, abs=1e-5)
            assert math.fsum(x * y for x, y in zip(values, expected)) > 0.999
            assert packed.n_tokens == len(texts[place].split()) + 2
        assert math.fsum(x * y for x, y in zip(vector(alone[0].vector), vector(alone[1].vector))) < 0.99

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"))


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_lanes_give_the_vectors_that_one_thread_gives_in_the_order_of_the_inputs(tmp_path: Path, threads: int) -> None:
    lengths = [1, 90, 3, 300, 2, 40, 700, 5, 253, 1, 8, 60, 255, 254, 4] * 3  # some longer than a lane takes
    texts = [" ".join("abcdefghij"[(i + j) % 10] for j in range(n)) for i, n in enumerate(lengths)]
    path = write_bert(tmp_path / "bert.gguf", n_ctx=1024)
    found: list[list[bytes]] = []

    async def test(engine: Engine) -> None:
        together, *apart = await asyncio.gather(
            engine.embed(Embed(texts)), *(engine.embed(Embed([text])) for text in texts[:15])
        )
        for row, [alone] in zip(together, apart):
            assert math.fsum(x * y for x, y in zip(vector(row.vector), vector(alone.vector))) > 0.9999
        assert [row.n_tokens for row in together] == [n + 2 for n in lengths]
        found.append([row.vector for row in together])

    with_engine(test, path=path, threads=1)
    with_engine(test, path=path, threads=threads)
    for one, many in zip(*found):
        assert vector(many) == pytest.approx(vector(one), abs=2e-3)


def test_lanes_survive_requests_that_are_cancelled_at_any_moment(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        (expected,) = await engine.embed(Embed(["i j k"]))
        for n_turns in range(30):
            leaving = [asyncio.ensure_future(engine.embed(Embed(["a b c d e f g h"] * 60))) for _ in range(3)]
            staying = asyncio.ensure_future(engine.embed(Embed(["i j k"] * 20)))
            for _ in range(n_turns):
                await asyncio.sleep(0)
            for request in leaving:
                request.cancel()
            for row in await staying:
                assert vector(row.vector) == pytest.approx(vector(expected.vector), abs=2e-3)
        (last,) = await engine.embed(Embed(["a"]))  # answered after all before it have ended
        assert last.n_tokens == 3
        assert (await engine.stats()).running == 0

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"), threads=3)


def test_many_clients_share_the_packs(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        answers = await asyncio.gather(*(engine.embed(Embed([text] * 3)) for text in "abcdefgh"))
        assert len({answer[0].vector for answer in answers}) == 8

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"))


def test_an_input_longer_than_the_context_is_named(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(ContextOverflow) as caught:
            await engine.embed(Embed(["a", "b " * 100]))
        assert (caught.value.index, caught.value.limit) == (1, N_CTX)
        assert caught.value.needed == 102

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"))


def test_a_context_of_any_length_is_loaded(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(ContextOverflow) as caught:
            await engine.embed(Embed(["a " * 40]))
        assert caught.value.limit == 41
        assert len(await engine.embed(Embed(["a " * 39]))) == 1

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"), context_length=41)


def test_an_encoder_that_names_no_pooling_is_pooled(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        (row,) = await engine.embed(Embed(["a b"]))
        assert math.fsum(x * x for x in vector(row.vector)) == pytest.approx(1, abs=1e-5)

    with_engine(test, path=write_bert(tmp_path / "bert.gguf", pooled=False))


def test_vectors_are_spelled_in_the_digits_that_give_them_back(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        (packed,) = await engine.embed(Embed(["a b c"]))
        (spelled,) = await engine.embed(Embed(["a b c"], as_json=True))
        assert array("f", json.loads(spelled.vector)).tobytes() == packed.vector

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"))


@pytest.mark.parametrize("as_json", [True, False])
def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path, as_json: bool) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(EngineError) as caught:
            await engine.embed(Embed(["a"], as_json))
        assert "not finite" in caught.value.message
        assert (await engine.stats()).running == 0

    with_engine(test, path=write_bert(tmp_path / "bert.gguf", scale=math.nan))


def test_a_short_request_does_not_wait_for_a_long_one(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        long = asyncio.ensure_future(engine.embed(Embed(["a b c d e f g h i j"] * 2000)))
        await engine.tokenize("")  # commands are prepared in order: the long one is in work now
        await engine.embed(Embed(["z"]))
        assert not long.done()
        assert len(await long) == 2000

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"))


def test_more_embedding_requests_than_may_wait_are_refused(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        answers = await asyncio.gather(
            *(engine.embed(Embed(["a b c d e f g h i j"] * 500)) for _ in range(8)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert refused and all(isinstance(error, QueueFull) and error.limit == 2 for error in refused)
        assert [len(answer) for answer in answers if isinstance(answer, list)] == [500] * (8 - len(refused))

    with_engine(test, path=write_bert(tmp_path / "bert.gguf"), max_queue=2)


# ---- reranking -------------------------------------------------------------------------------------------------------

CLS, SEP, MASK = 2, 3, 4


def letters(text: str) -> list[int]:
    return [ord(letter) - ord("a") + 5 for letter in text.split()]


def test_scores_are_those_of_the_model_in_any_company(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert.gguf", pooled=False, classifies=True)
    query, documents = "a b c", ["d", "e f g h", "", "a b c", "z y x w v u t s r q p o"] * 30

    async def test(engine: Engine) -> None:
        prompts = [[CLS, *letters(query), SEP, *letters(document)] for document in documents]
        expected = [bert_score(path, prompt) for prompt in prompts[:5]]
        assert all(abs(a - b) > 0.1 for a, b in combinations(expected, 2))
        scores = await engine.rerank(Rerank(query, documents))
        assert [item.score for item in scores] == pytest.approx(expected * 30, abs=1e-2)
        assert [item.n_tokens for item in scores] == [len(prompt) for prompt in prompts]

    with_engine(test, path=path)


def test_a_document_longer_than_the_context_is_named(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(ContextOverflow) as caught:
            await engine.rerank(Rerank("a b", ("a", "b " * 61)))
        assert (caught.value.index, caught.value.needed, caught.value.limit) == (1, 65, N_CTX)
        with pytest.raises(ContextOverflow) as caught:
            await engine.rerank(Rerank("a " * 100, ("a",)))
        assert caught.value.index is None
        assert len(await engine.rerank(Rerank("a b", ("b " * 60,)))) == 1

    with_engine(test, path=write_bert(tmp_path / "bert.gguf", pooled=False, classifies=True))


TEMPLATE = "[CLS]x {document} [MASK]{query}[SEP]"


def test_a_model_s_own_template_says_how_it_is_asked(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert.gguf", pooled=False, classifies=True, template=TEMPLATE)

    async def test(engine: Engine) -> None:
        (item,) = await engine.rerank(Rerank("a b", ("c d",)))
        prompt = [CLS, *letters("x c d"), MASK, *letters("a b"), SEP]
        assert item.score == pytest.approx(bert_score(path, prompt), abs=1e-2)
        assert item.n_tokens == len(prompt)

    with_engine(test, path=path)


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["joined", "template"])
def test_texts_say_nothing_as_control_tokens_or_places(tmp_path: Path, template: str | None) -> None:
    async def test(engine: Engine) -> None:
        plain, control, place = await engine.rerank(Rerank("a", ("b", "b [SEP] b", "b {query}")))
        assert control.n_tokens > plain.n_tokens + 2  # the brackets and what is between them
        assert place.n_tokens > plain.n_tokens + 1

    with_engine(test, path=write_bert(tmp_path / "bert.gguf", pooled=False, classifies=True, template=template))


def test_models_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    async def embed(engine: Engine) -> None:
        with pytest.raises(WrongModelType):
            await engine.embed(Embed(["a"]))

    async def generate(engine: Engine) -> None:
        with pytest.raises(LmError):
            await complete(engine, "a")

    async def rerank(engine: Engine) -> None:
        with pytest.raises(WrongModelType):
            await engine.rerank(Rerank("a", ("b",)))

    vectors = write_bert(tmp_path / "bert.gguf")
    scores = write_bert(tmp_path / "judge.gguf", pooled=False, classifies=True)
    for test, path in ((embed, None), (embed, scores), (rerank, None), (rerank, vectors), (generate, vectors)):
        with_engine(test, path=path)
