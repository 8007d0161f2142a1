"""Pictures and sounds through the real engine, with towers of random weights: that what is shown counts, whatever else the
engine does meanwhile, that it is looked at once, and that nothing of it is text."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec, Lora
from lmlite.core.engine.worker import Process
from lmlite.errors import ContextOverflow, InvalidRequest, LmError, MediaRefused, WrongModelType
from lmlite.events import Event, Finished, TextDelta, TokenLogprob
from lmlite.messages import MediaPart, Message, TextPart, ToolCallPart, ToolResultPart, text_message
from lmlite.request import Chat, Draft, Generate, Grammar, Sampling, Text
from tests.media_files import chunk, png_head, png_of
from tests.media_models import (
    WRITERS,
    slope,
    stripes,
    text_model_of,
    tone,
    write_gemma3,
    write_idefics3,
    write_mlp,
    write_pixtral,
    write_tiles_text,
)
from tests.memory_models import FIRST_BYTE, MEMORIES, Memory, write_model
from tests.random_models import Llama, RandomLora, with_floats

GREEDY = Sampling(temperature=0)
NEAR_TIE = 0.1  # nats: batches of another shape add up in another order; another picture moves them by more
DRIFT = 0.35  # the same over an answer of 180 tokens: one of its unlikelier ones moved by 0.17
FAMILIES = list(WRITERS)
QUESTION = "What is it?"
Test = Callable[[Engine], Coroutine[Any, Any, None]]


def with_tower(tower: Path, test: Test, model: Path | None = None, **settings: Any) -> None:
    async def run() -> None:
        engine = await Engine.open(Process(), "sees")
        try:
            path = model or text_model_of("mlp", tower.parent)
            loaded = await engine.load(LoadSpec((path,), LoadSettings(**settings), projector=tower))
            assert loaded.parallel
            await test(engine)
        finally:
            await engine.close()

    asyncio.run(run())


def family_of(name: str, folder: Path) -> tuple[Path, Path]:
    return WRITERS[name](folder / f"{name}.gguf"), text_model_of(name, folder)


def media_for(family: str, other: bool = False) -> MediaPart:
    if family == "ultravox":
        return MediaPart("audio", tone(700 if other else 440))
    return MediaPart("image", slope() if other else stripes())


def asking(*parts: MediaPart | str, before: Sequence[Message] = ()) -> Chat:
    said = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return Chat((*before, Message("user", said)))


async def events_of(engine: Engine, chat: Chat, **more: Any) -> list[Event]:
    work = Generate(chat, **{"sampling": GREEDY, "max_tokens": 8, **more})
    return [event async for event in engine.run(work)]


async def first_choices(engine: Engine, chat: Chat, **more: Any) -> tuple[dict[bytes, float], Finished]:
    """The likeliest first tokens, with their log probabilities."""
    events = await events_of(engine, chat, top_logprobs=20, max_tokens=1, **more)
    end = events[-1]
    assert isinstance(end, Finished)
    told = next(token for event in events if isinstance(event, TextDelta) for token in event.logprobs)
    return {bytes(top.bytes): top.logprob for top in told.top}, end


def apart(a: dict[bytes, float], b: dict[bytes, float]) -> float:
    """How far two choices are apart in what both have among their likeliest five."""
    likeliest = sorted(a, key=lambda token: -a[token])[:5]
    return max((abs(a[token] - b[token]) if token in b else 9.0) for token in likeliest)


def pieces_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_shown_counts_alone_among_streams_in_small_batches_and_from_the_cache(family: str, tmp_path: Path) -> None:
    tower, model = family_of(family, tmp_path)
    seen: list[dict[bytes, float]] = []

    async def test(engine: Engine) -> None:
        chat = asking(media_for(family), QUESTION)
        alone, end = await first_choices(engine, chat, scope="a")
        other, _ = await first_choices(engine, asking(media_for(family, other=True), QUESTION), scope="a")
        assert apart(alone, other) > NEAR_TIE
        known, again = await first_choices(engine, chat, scope="a")
        assert again.stats.cached_tokens >= end.stats.prompt_tokens - 20 and apart(alone, known) < NEAR_TIE
        encoded = (await engine.stats()).media_encoded
        moved = asking("Look: ", media_for(family), QUESTION)
        anew, _ = await first_choices(engine, moved, scope="a")  # computed anew from rows that are known
        assert (await engine.stats()).media_encoded == encoded
        afresh, elsewhere = await first_choices(engine, moved, scope="b")  # which shares nothing
        assert elsewhere.stats.cached_tokens == 0 and apart(anew, afresh) < NEAR_TIE
        n_parts = (await engine.stats()).media_encoded - encoded
        assert n_parts == encoded / 2
        streams = [
            asyncio.create_task(events_of(engine, asking(f"Count to {n}."), max_tokens=200, ignore_eos=True))
            for n in (5, 7, 9)
        ]
        among, _ = await first_choices(engine, chat, scope="c")
        for stream in streams:
            assert isinstance((await stream)[-1], Finished)
        assert apart(alone, among) < NEAR_TIE
        assert (await engine.stats()).media_encoded == encoded + 2 * n_parts
        seen.append(alone)

    async def test_small(engine: Engine) -> None:
        choices, _ = await first_choices(engine, asking(media_for(family), QUESTION))
        assert apart(seen[0], choices) < NEAR_TIE

    with_tower(tower, test, model)
    with_tower(tower, test_small, model, eval_batch_size=16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_question_costs_its_own_tokens_and_the_picture_is_not_looked_at_again(family: str, tmp_path: Path) -> None:
    tower, model = family_of(family, tmp_path)

    async def test(engine: Engine) -> None:
        first = asking("Look: ", media_for(family), QUESTION)
        events = await events_of(engine, first)
        end = events[-1]
        assert isinstance(end, Finished)
        answer = Message("assistant", (TextPart(pieces_of(events)),))
        second = asking("And what else?", before=(*first.messages, answer))
        later = (await events_of(engine, second))[-1]
        assert (await engine.stats()).media_encoded == 1
        choices = await first_choices(engine, second, scope="none")
        assert isinstance(later, Finished)
        stats = later.stats
        assert stats.cached_tokens >= end.stats.prompt_tokens - 8 and stats.prompt_tokens - stats.cached_tokens < 64
        assert apart(choices[0], (await first_choices(engine, second))[0]) < NEAR_TIE
        assert (await engine.stats()).media_encoded == 2

    with_tower(tower, test, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_media_are_counted_without_being_looked_at(family: str, tmp_path: Path) -> None:
    tower, model = family_of(family, tmp_path)

    async def test(engine: Engine) -> None:
        chat = asking("One", media_for(family), "two", media_for(family, other=True), "three")
        text, counted = await engine.count(chat)
        assert text.count("<audio>" if family == "ultravox" else "<image>") == 2
        assert (await engine.stats()).media_encoded == 0
        _, end = await first_choices(engine, chat)
        assert end.stats.prompt_tokens == counted and (await engine.stats()).media_encoded == 2

    with_tower(tower, test, model)


def test_parts_stand_where_they_were_put(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        a, b = MediaPart("image", stripes()), MediaPart("image", slope())
        told = [
            (await first_choices(engine, asking(*order, QUESTION), scope=str(i)))[0]
            for i, order in enumerate([(a, b), (b, a), (a, b)])
        ]
        assert apart(told[0], told[1]) > NEAR_TIE > apart(told[0], told[2])
        text = await engine.render(asking("before", a, "after"))
        assert "before<image>after" in text

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


def test_sounds_that_are_known_stand_where_they_are_put_now(tmp_path: Path) -> None:
    tower, model = family_of("ultravox", tmp_path)
    a, b = MediaPart("audio", tone()), MediaPart("audio", tone(700, seconds=31))
    told: list[dict[bytes, float]] = []

    async def test_known(engine: Engine) -> None:
        once = [(await engine.count(asking(sound, QUESTION)))[1] for sound in (a, b)]
        _, both = await engine.count(asking(a, "then", b, QUESTION))
        _, thrice = await engine.count(asking(b, "then", a, "then", a, QUESTION))
        assert once[0] < once[1] and sum(once) - 40 < both and thrice > both + 300
        told.extend([(await first_choices(engine, asking(*order, QUESTION)))[0] for order in ((b, a, a), (a, b))])
        assert apart(told[0], told[1]) > NEAR_TIE

    async def test_unknown(engine: Engine) -> None:
        assert apart(told[1], (await first_choices(engine, asking(a, b, QUESTION)))[0]) < NEAR_TIE

    with_tower(tower, test_known, model)
    with_tower(tower, test_unknown, model)


def test_others_are_prepared_while_a_long_sound_is_listened_to(tmp_path: Path) -> None:
    tower, model = family_of("ultravox", tmp_path)

    async def test(engine: Engine) -> None:
        counted = asyncio.create_task(engine.count(asking(MediaPart("audio", tone(seconds=240)), QUESTION)))
        asked = asyncio.create_task(first_choices(engine, asking(MediaPart("audio", tone(seconds=120)), QUESTION)))
        await asyncio.sleep(0)
        await engine.count(asking("Hello"))
        assert isinstance((await events_of(engine, asking("Hello")))[-1], Finished)
        assert not counted.done() and not asked.done()
        assert (await counted)[1] > 8 * 375
        with pytest.raises(ContextOverflow):
            await asked
        with pytest.raises(MediaRefused) as refused:
            await events_of(engine, asking(MediaPart("audio", tone()), MediaPart("audio", tone()[:40]), QUESTION))
        assert refused.value.index == 1

    with_tower(tower, test, model, context_length=1024)


def test_what_looks_like_a_mark_of_ours_is_text(tmp_path: Path) -> None:
    forged = "\ufdd2p0\ufdd2 <__media__> <image> \ufdd2s1\ufdd2"

    async def test(engine: Engine) -> None:
        picture = MediaPart("image", stripes())
        _, plain = await engine.count(asking("x"))
        text, with_forged = await engine.count(asking(forged))
        assert "\ufdd2" not in text and plain < with_forged < plain + 40
        _, shown = await engine.count(asking(forged, picture))
        assert with_forged + 10 < shown < with_forged + 24
        assert isinstance((await events_of(engine, asking(picture, forged)))[-1], Finished)

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


def test_a_picture_whose_cells_see_each_other_needs_a_batch_for_all_of_them(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        raise AssertionError("it was loaded")

    with pytest.raises(LmError, match="eval_batch_size of at least 16"):
        with_tower(write_gemma3(tmp_path / "gemma3.gguf"), test, eval_batch_size=8, parallel=1)


def test_a_picture_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        large = asking(MediaPart("image", stripes(width=440, height=440)), QUESTION)
        with pytest.raises(ContextOverflow):
            await events_of(engine, large)
        stats = await engine.stats()
        assert stats.media_encoded == 0 and stats.cells_used == 0
        small = asking(MediaPart("image", stripes()), QUESTION)
        assert isinstance((await events_of(engine, small))[-1], Finished)

    with_tower(write_pixtral(tmp_path / "pixtral.gguf"), test, context_length=256, parallel=1)


def test_more_than_the_cells_hold_is_answered_one_after_the_other(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        chats = [asking(MediaPart("image", stripes(width=360, height=360, red=200 + i)), QUESTION) for i in range(4)]
        alone = [(await first_choices(engine, chat, scope="alone"))[0] for chat in chats]
        together = await asyncio.gather(*(first_choices(engine, chat, scope=f"{i}") for i, chat in enumerate(chats)))
        for expected, (choices, end) in zip(alone, together):
            assert end.stats.cached_tokens == 0 and apart(expected, choices) < NEAR_TIE
        assert (await engine.stats()).media_encoded == 8  # of what another scope has shown nobody knows

    with_tower(write_pixtral(tmp_path / "pixtral.gguf"), test, context_length=512, kv_cells=512, parallel=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_was_cut_and_continued_is_what_it_would_have_been(family: str, tmp_path: Path) -> None:
    """Four answers outgrow the cells beside requests that leave: the youngest step back and go on later."""
    tower, model = family_of(family, tmp_path)
    cells = 512 if family in ("mlp", "pixtral", "gemma3", "qwen2vl") else 1024

    async def answer(engine: Engine, i: int, scope: str) -> list[TokenLogprob]:
        chat = asking(media_for(family, other=i % 2 == 1), f"{QUESTION} {'word ' * 5 * i}")
        events = await events_of(engine, chat, max_tokens=180, ignore_eos=True, top_logprobs=2, scope=scope)
        return [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]

    async def leave(engine: Engine, i: int) -> None:
        given_up = asyncio.create_task(answer(engine, i, "leaves"))
        while (await engine.stats()).running == 0:
            await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)

    async def test(engine: Engine) -> None:
        alone = [await answer(engine, i, f"alone {i}") for i in range(4)]
        together = [asyncio.create_task(answer(engine, i, f"together {i}")) for i in range(4)]
        await asyncio.gather(*(leave(engine, i) for i in range(2)))
        for expected, told in zip(alone, await asyncio.gather(*together), strict=True):
            for token, same in zip(told, expected, strict=True):
                if token.bytes != same.bytes:
                    assert token.logprob == pytest.approx(same.top[1].logprob, abs=NEAR_TIE)
                    break
                assert token.logprob == pytest.approx(same.logprob, abs=DRIFT)

    with_tower(tower, test, model, context_length=cells, kv_cells=cells, parallel=4, spill_bytes=0)


def test_a_request_that_is_given_up_while_its_picture_is_encoded_frees_its_place(tmp_path: Path) -> None:
    tower = write_mlp(tmp_path / "long.gguf", n_blocks=24, width=256, side=24)

    async def test(engine: Engine) -> None:
        given_up = asyncio.create_task(events_of(engine, asking(MediaPart("image", slope()), QUESTION)))
        while (await engine.stats()).running == 0:
            await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert isinstance((await events_of(engine, asking("Hello")))[-1], Finished)
        assert (await engine.stats()).media_encoded == 0
        assert isinstance((await events_of(engine, asking(MediaPart("image", slope()), QUESTION)))[-1], Finished)
        assert (await engine.stats()).media_encoded == 1

    with_tower(tower, test, parallel=1)


def test_streams_go_on_while_a_picture_is_encoded(tmp_path: Path) -> None:
    tower = write_mlp(tmp_path / "long.gguf", n_blocks=16, width=256, side=24)

    async def test(engine: Engine) -> None:
        arrived = 0
        shown = asyncio.Event()

        async def stream() -> None:
            nonlocal arrived
            async for event in engine.run(Generate(asking("Tell me a story."), sampling=GREEDY, ignore_eos=True)):
                arrived += isinstance(event, TextDelta)
                if arrived == 5:
                    shown.set()

        task = asyncio.create_task(stream())
        await shown.wait()
        before = arrived
        picture = asyncio.create_task(events_of(engine, asking(MediaPart("image", slope()), QUESTION)))
        while not (await engine.stats()).media_encoded:
            await asyncio.sleep(0.01)
        assert arrived > before + 5
        assert isinstance((await picture)[-1], Finished)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with_tower(tower, test)


def test_one_picture_does_not_wait_for_the_twenty_of_somebody_else(tmp_path: Path) -> None:
    tower = write_mlp(tmp_path / "long.gguf", n_blocks=24, width=256, side=9)
    at_the_end: list[int] = []

    async def test(engine: Engine) -> None:
        many = asking(*(MediaPart("image", stripes(red=10 * i)) for i in range(20)), QUESTION)
        twenty = asyncio.create_task(events_of(engine, many))
        while not (await engine.stats()).media_encoded and not twenty.done():
            await asyncio.sleep(0.01)

        async def ask(n: int) -> None:
            pictures = [MediaPart("image", slope(96, 64 + n + i)) for i in range(n)]
            await events_of(engine, asking(*pictures, QUESTION), max_tokens=1)
            at_the_end.append((await engine.stats()).media_encoded)

        begun = (await engine.stats()).media_encoded
        await asyncio.gather(ask(1), ask(3))
        assert not twenty.done()
        assert at_the_end[0] < begun + 8 and at_the_end[1] < begun + 14  # of 24: they take turns
        assert isinstance((await twenty)[-1], Finished)

    with_tower(tower, test, parallel=4)


def test_others_are_prepared_between_the_pictures_of_a_request(tmp_path: Path) -> None:
    side = 4000  # a tenth of a second each
    rows = bytes((1 + side) * side)
    large = [png_of(png_head(side, side, color=0), rows, chunk(b"tEXt", b"n\0%d" % i)) for i in range(9)]

    async def test(engine: Engine) -> None:
        damaged = png_head(side, side, color=0) + chunk(b"IDAT", zlib.compress(rows)[:-999]) + chunk(b"IEND")
        shown = [MediaPart("image", data) for data in (*large, damaged)]
        over: list[str] = []

        async def ask(name: str, chat: Chat) -> None:
            try:
                await events_of(engine, chat, max_tokens=1)
            finally:
                over.append(name)

        many = asyncio.create_task(ask("ten pictures", asking(*shown, QUESTION)))
        await asyncio.sleep(0)
        await asyncio.gather(ask("one picture", asking(MediaPart("image", slope()), QUESTION)), ask("a text", asking("Hello")))
        with pytest.raises(MediaRefused) as refused:
            await many
        assert refused.value.index == 9 and over[-1] == "ten pictures"

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


def test_the_same_picture_of_several_requests_is_encoded_once_for_each_scope(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        chats = [asking(f"Question {i}: ", MediaPart("image", stripes()), QUESTION) for i in range(4)]
        for events in await asyncio.gather(*(events_of(engine, chat, scope="ab"[i % 2]) for i, chat in enumerate(chats))):
            assert isinstance(events[-1], Finished)
        stats = await engine.stats()
        assert (stats.media_encoded, stats.media_reused) == (2, 2)

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


def test_what_cannot_be_decoded_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        good = MediaPart("image", stripes())
        for broken in (b"no picture at all", stripes()[:80]):
            with pytest.raises(MediaRefused) as refused:
                await events_of(engine, asking(good, MediaPart("image", broken), QUESTION))
            assert refused.value.index == 1
        assert isinstance((await events_of(engine, asking(good, QUESTION)))[-1], Finished)

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


def test_a_model_that_sees_does_not_hear(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(WrongModelType):
            await events_of(engine, asking(MediaPart("audio", tone()), QUESTION))

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


def test_a_schema_rules_an_answer_about_a_picture(tmp_path: Path) -> None:
    schema = Grammar("json_schema", '{"enum": ["red", "blue"]}')

    async def test(engine: Engine) -> None:
        events = await events_of(engine, asking(MediaPart("image", stripes()), QUESTION), grammar=schema, max_tokens=40)
        assert pieces_of(events) in ('"red"', '"blue"')

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


@pytest.mark.parametrize("family", ["pixtral", "qwen2vl"])
def test_a_conversation_that_outgrows_the_context_goes_on_without_its_middle(family: str, tmp_path: Path) -> None:
    tower, model = family_of(family, tmp_path)

    async def test(engine: Engine) -> None:
        chat = asking(media_for(family), "one", media_for(family, other=True), "Tell me a story.")
        events = await events_of(engine, chat, overflow="drop_middle", max_tokens=400, ignore_eos=True)
        end = events[-1]
        assert isinstance(end, Finished) and end.stats.generated_tokens == 400
        turns = tuple(
            message
            for i in range(8)
            for message in (*asking(media_for(family), f"turn {i}").messages, text_message("assistant", "yes"))
        )
        end = (await events_of(engine, asking("and now?", before=turns), overflow="drop_middle"))[-1]
        assert isinstance(end, Finished) and end.stats.prompt_tokens < 256

    with_tower(tower, test, model, context_length=256, parallel=1)


def test_a_text_with_pictures_is_no_raw_prompt(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(InvalidRequest, match="echo"):
            await events_of(engine, asking(MediaPart("image", stripes()), QUESTION), echo=True)
        work = Generate(Text("\ufdd2p0\ufdd2"), sampling=GREEDY, max_tokens=2)
        assert [event async for event in engine.run(work)]

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


def test_a_tower_for_another_width_is_refused(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        raise AssertionError("it was loaded")

    with pytest.raises(LmError, match="projector"):
        with_tower(write_mlp(tmp_path / "mlp.gguf"), test, Llama().write(tmp_path / "llama.gguf"))


# ---- other memories, adapters, guesses -------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_kind_of_memory_takes_pictures_over_whole_or_computes_them_anew(memory: Memory, tmp_path: Path) -> None:
    tower = write_mlp(tmp_path / "mlp.gguf", n_embd=64)
    only_bytes = Sampling(temperature=0, logit_bias=tuple((token, -math.inf) for token in range(FIRST_BYTE)))
    instructions = text_message("system", "be brief and of few words. " * 3)

    async def test(engine: Engine) -> None:
        async def compared(chat: Chat) -> Finished:
            told, end = await first_choices(engine, chat, scope="kept", sampling=only_bytes)
            afresh, _ = await first_choices(engine, chat, scope=f"other {next(numbers)}", sampling=only_bytes)
            assert apart(told, afresh) < NEAR_TIE
            return end

        numbers = count()
        picture, other = MediaPart("image", stripes()), MediaPart("image", slope())
        one = asking("x", picture, "what", before=[instructions])
        first = await compared(one)
        assert first.stats.cached_tokens == 0
        assert (await compared(one)).stats.cached_tokens > 0
        await compared(asking("x", picture, "why", before=[instructions]))
        await compared(asking("x", other, "what", before=[instructions]))
        grown = asking("else", before=[*one.messages, text_message("assistant", "yes")])
        assert (await compared(grown)).stats.cached_tokens > 16
        await compared(asking("x", picture, picture, "what", before=[instructions]))

    with_tower(tower, test, write_model(tmp_path / "model.gguf", memory), flash_attention=False, eval_batch_size=64)


def test_requests_with_different_adapters_look_at_the_same_picture(tmp_path: Path) -> None:
    llama = Llama()
    lora = RandomLora(llama).write(tmp_path / "lora.gguf")

    async def test(engine: Engine) -> None:
        chat = asking(MediaPart("image", stripes()), "w h a t")
        with_it, without = {"loras": ((0, 1.0),)}, {"loras": ((0, 0.0),)}
        alone = [(await first_choices(engine, chat, scope="alone", **how))[0] for how in (with_it, without)]
        assert apart(*alone) > NEAR_TIE
        asked = (first_choices(engine, chat, scope=str(i), **how) for i, how in enumerate((with_it, without, with_it)))
        together = [choices for choices, _ in await asyncio.gather(*asked)]
        assert max(apart(alone[0], together[0]), apart(alone[1], together[1]), apart(alone[0], together[2])) < NEAR_TIE

    tower = write_mlp(tmp_path / "mlp.gguf", n_embd=llama.n_embd)
    with_tower(tower, test, llama.write(tmp_path / "llama.gguf"), loras=(Lora(lora),))


@pytest.mark.parametrize("family", ["mlp", "qwen2vl"])
def test_guesses_are_made_where_there_is_no_picture_alone(family: str, tmp_path: Path) -> None:
    tower, model = family_of(family, tmp_path)

    async def test(engine: Engine) -> None:
        chat = asking(media_for(family), "one two three one two three one two three")
        plain = pieces_of(await events_of(engine, chat, max_tokens=40, ignore_eos=True))
        events = await events_of(engine, chat, max_tokens=40, ignore_eos=True, draft=Draft("ngram", min=1), scope="b")
        end = events[-1]
        assert isinstance(end, Finished) and end.stats.draft is None and pieces_of(events) == plain

    with_tower(tower, test, model)


def test_a_tool_may_give_a_picture(tmp_path: Path) -> None:
    call = Message("assistant", (ToolCallPart("call00001", "look", "{}"),))

    async def test(engine: Engine) -> None:
        for n, picture in enumerate((stripes(), slope()), 1):
            result = ToolResultPart("call00001", "look", (TextPart("here it is"), MediaPart("image", picture)))
            before = (text_message("user", "Look!"), call, Message("tool", (result,)))
            chat = asking(QUESTION, before=before)
            text, counted = await engine.count(chat)
            assert "here it is<image>" in text
            end = (await events_of(engine, chat))[-1]
            assert isinstance(end, Finished) and end.stats.prompt_tokens == counted
            assert (await engine.stats()).media_encoded == n

    with_tower(write_mlp(tmp_path / "mlp.gguf"), test)


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_a_picture_in_tiles_is_encoded_tile_by_tile_and_known_as_a_whole(tmp_path: Path) -> None:
    model = with_floats(write_tiles_text(tmp_path / "text.gguf"), tmp_path / "floats.gguf")

    async def test(engine: Engine) -> None:
        chat = asking("Look: ", MediaPart("image", stripes()), QUESTION)
        _, counted = await engine.count(chat)
        alone, end = await first_choices(engine, chat, scope="a")
        assert end.stats.prompt_tokens == counted and (await engine.stats()).media_encoded == 5  # of all, and four quarters
        other, _ = await first_choices(engine, asking("Look: ", MediaPart("image", slope()), QUESTION), scope="a")
        known, again = await first_choices(engine, chat, scope="a")
        assert again.stats.cached_tokens > 80 and (await engine.stats()).media_encoded == 10
        afresh, _ = await first_choices(engine, chat, scope="b")
        assert apart(alone, other) > NEAR_TIE > max(apart(alone, known), apart(alone, afresh))

    with_tower(write_idefics3(tmp_path / "idefics3.gguf"), test, model)


def test_a_tower_that_writes_tokens_which_the_vocabulary_lacks_is_another_models(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        raise AssertionError("it was loaded")

    with pytest.raises(LmError, match="made for another text model"):
        with_tower(write_idefics3(tmp_path / "idefics3.gguf"), test)
