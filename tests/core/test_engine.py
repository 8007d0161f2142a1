"""The engine client against a far end that the test plays by hand, or that a fake plays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from lmlite import errors
from lmlite.core.engine.client import Engine
from lmlite.core.engine.frames import HEADER, MAX_PAYLOAD, Kind, pack
from lmlite.core.engine.line import HANG_S, PIECE
from lmlite.core.engine.payloads import (
    LOGPROB_FLOOR,
    STEP,
    LoadSettings,
    LoadSpec,
    chat_object,
    encode,
    generate_object,
    is_large,
    load_object,
)
from lmlite.events import (
    DraftCounts,
    Event,
    Finished,
    PromptProgress,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    Stats,
    TextDelta,
    TextEnd,
    TextStart,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from lmlite.messages import MediaPart, Message, TextPart, text_message
from lmlite.request import Chat, Draft, Embed, Generate, Grammar, Prompt, Rerank, Sampling, Text, Tokens
from tests.fakes import WORDS, FakeClock, FakeEngine, Peer, Script, error, fake_thread, finished, frame, loaded

PROTOCOL = (Path(__file__).parents[2] / "csrc" / "protocol.md").read_text(encoding="utf-8")
RENDER = next(line for line in PROTOCOL.splitlines() if line.startswith("| RENDER |"))
HELLO = Generate(Text("hello"))
SPEC = LoadSpec((Path("m.gguf"),))


def play(scene: Callable[[Engine, Peer], Coroutine[Any, Any, None]], clock: FakeClock | None = None) -> None:
    """Runs `scene` with an open engine and the far end of it."""

    async def run() -> None:
        peer = Peer()
        engine = await Engine.open(peer, "m", clock=clock)
        try:
            await scene(engine, peer)
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(run(), 30))


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def text_of(engine: Engine, generate: Generate) -> str:
    return "".join([event.text async for event in engine.run(generate) if isinstance(event, TextDelta)])


async def settle() -> None:
    """Lets everything that is ready to run, run: what was sent has then been received."""
    for _ in range(20):
        await asyncio.sleep(0)


# ---- a generation ----------------------------------------------------------------------------------------------------


def test_events_of_a_generation_in_order() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(HELLO).__aiter__()))
        kind, request_id, command = await peer.next()
        assert kind == Kind.GENERATE and command["text"] == "hello"
        peer.send(frame(Kind.PROMPT_PROGRESS, request_id, {"done": 2, "total": 3, "cached": 1, "ms": 2.5}))
        peer.send(frame(Kind.TEXT, request_id, "grüß".encode()))
        peer.send(frame(Kind.FINISHED, request_id, finished("stopStringFound", 2, stop_string="x")))
        assert await answer == [
            PromptProgress(2, 3, 1, 2.5),
            TextStart(),
            TextDelta("grüß"),
            TextEnd(),
            Finished("stopStringFound", Stats(3, 1, 2, 0.5, 2.0, 10.0), "x"),
        ]

    play(scene)


PICTURES = [MediaPart("image", bytes([n]) * size, f"place {n}") for n, size in enumerate((3_000_000, 10, PIECE, PIECE + 1))]
SHOWN = Generate(Chat((Message("user", (TextPart("look"), *PICTURES)),)))


def test_media_go_ahead_of_their_request_and_others_follow_behind_whole_frames() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(SHOWN).__aiter__()))
        while not engine._line._unsent:  # until the first is on its way
            await asyncio.sleep(0)
        counting = asyncio.ensure_future(engine.tokenize("a"))
        for picture in PICTURES:
            assert (await peer.next())[::2] == (Kind.MEDIA, picture.data)
        kind, request_id, command = await peer.next()
        parts = [{"type": "media", "kind": "image", "index": index} for index in range(len(PICTURES))]
        assert kind == Kind.GENERATE and command["messages"][0]["content"] == [{"type": "text", "text": "look"}, *parts]
        kind, other_id, _ = await peer.next()
        assert kind == Kind.TOKENIZE
        peer.send(frame(Kind.TOKENS, other_id, {"tokens": [1], "pieces": [[97]]}))
        assert (await counting)[0] == (1,)
        details = {"param": "media", "index": 2}
        peer.send(frame(Kind.ERROR, request_id, {"code": "invalid_request", "message": "no picture", "details": details}))
        with pytest.raises(errors.MediaRefused, match="'place 2': no picture") as refused:
            await answer
        assert refused.value.param == "place 2"

    play(scene)


def test_nobody_waits_for_a_large_picture_to_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is of more than a piece, and the loop has its turn after a few."""

    async def scene(engine: Engine, peer: Peer) -> None:
        written: list[int] = []
        transport = engine._line._transport
        assert transport is not None
        write = transport.write

        def noted(data: Any) -> None:
            written.append(len(data))
            write(data)

        monkeypatch.setattr(transport, "write", noted)
        answer = asyncio.ensure_future(collect(engine.run(SHOWN).__aiter__()))
        while (await peer.next())[0] != Kind.GENERATE:
            pass
        assert max(written) <= PIECE and len(written) > 3_000_000 / PIECE
        answer.cancel()
        assert (await peer.next())[0] == Kind.CANCEL

    play(scene)


def test_an_engine_that_ends_while_it_is_sent_a_picture_ends_the_request() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(SHOWN).__aiter__()))
        while not engine._line._unsent:
            await asyncio.sleep(0)
        peer.end("crashed")
        with pytest.raises(errors.EngineGone):
            await answer

    play(scene)


def test_texts_that_arrive_together_are_one_delta() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(HELLO).__aiter__()))
        _, request_id, _ = await peer.next()
        texts = [frame(Kind.TEXT, request_id, text) for text in (b"a", b"b", b"c")]
        peer.send(*texts, frame(Kind.FINISHED, request_id, finished()))
        assert [event.text for event in await answer if isinstance(event, TextDelta)] == ["abc"]

    play(scene)


def test_progress_between_texts_keeps_their_order() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(HELLO).__aiter__()))
        _, request_id, _ = await peer.next()
        peer.send(
            frame(Kind.TEXT, request_id, b"a"),
            frame(Kind.PROMPT_PROGRESS, request_id, {"done": 1, "total": 1, "cached": 1, "ms": 2.5}),
            frame(Kind.TEXT, request_id, b"b"),
            frame(Kind.FINISHED, request_id, finished()),
        )
        assert (await answer)[1:4] == [TextDelta("a"), PromptProgress(1, 1, 1, 2.5), TextDelta("b")]

    play(scene)


def test_reasoning_text_and_tool_calls_keep_their_order_and_join_with_their_own_kind() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(HELLO).__aiter__()))
        _, request_id, _ = await peer.next()
        calls = [
            {"index": 0, "name": "f", "arguments": ""},
            {"index": 0, "arguments": '{"a":'},
            {"index": 0, "arguments": "1}"},
            {"index": 1, "name": "g", "arguments": "{"},
            {"index": 1, "arguments": '"ü":2}'},
            {"index": 2, "name": "h", "arguments": "{}"},
        ]
        drafted = {"total": 9, "accepted": 5, "rejected": 3, "ignored": 1}
        peer.send(
            *[frame(Kind.REASONING, request_id, text) for text in (b"I ", b"think")],
            *[frame(Kind.TEXT, request_id, text) for text in (b"so", b"!")],
            frame(Kind.REASONING, request_id, b"or"),
            *[frame(Kind.TOOL_CALL, request_id, call) for call in calls],
            frame(Kind.FINISHED, request_id, finished("toolCalls", 30, reasoning_tokens=3, draft=drafted)),
        )
        assert await answer == [
            *[ReasoningStart(), ReasoningDelta("I think"), ReasoningEnd()],
            *[TextStart(), TextDelta("so!"), TextEnd()],
            *[ReasoningStart(), ReasoningDelta("or"), ReasoningEnd()],
            *[ToolCallStart(0, "f"), ToolCallArguments(0, '{"a":1}'), ToolCallEnd(0)],
            *[ToolCallStart(1, "g"), ToolCallArguments(1, '{"ü":2}'), ToolCallEnd(1)],
            *[ToolCallStart(2, "h"), ToolCallArguments(2, "{}"), ToolCallEnd(2)],
            Finished("toolCalls", Stats(3, 1, 30, 0.5, 2.0, 10.0, 3, DraftCounts(9, 5, 3, 1))),
        ]

    play(scene)


def test_arguments_that_arrive_apart_stay_with_their_call() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        batches = engine.run(HELLO).batches()
        first = asyncio.ensure_future(anext(batches))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TOOL_CALL, request_id, {"index": 0, "name": "f", "arguments": "{"}))
        assert await first == [ToolCallStart(0, "f"), ToolCallArguments(0, "{")]
        peer.send(frame(Kind.TOOL_CALL, request_id, {"index": 0, "arguments": "}"}))
        assert await anext(batches) == [ToolCallArguments(0, "}")]
        peer.send(frame(Kind.TEXT, request_id, b"done"))
        assert await anext(batches) == [ToolCallEnd(0), TextStart(), TextDelta("done")]
        await batches.aclose()

    play(scene)


def test_logprobs_wait_for_their_content_while_others_speak() -> None:
    def logprobs(request_id: int, byte: int) -> bytes:
        return frame(Kind.LOGPROBS, request_id, {"tokens": [{"b": [byte], "p": -1.0, "top": []}]})

    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(HELLO).__aiter__()))
        _, request_id, _ = await peer.next()
        peer.send(
            logprobs(request_id, 98),
            frame(Kind.REASONING, request_id, b"a"),
            frame(Kind.TEXT, request_id, b"b"),
            frame(Kind.TOOL_CALL, request_id, {"index": 0, "name": "f", "arguments": "{}"}),
            frame(Kind.FINISHED, request_id, finished("toolCalls")),
        )
        events = await answer
        assert [type(event) for event in events] == [
            *[ReasoningStart, ReasoningDelta, ReasoningEnd],
            *[TextStart, TextDelta, TextEnd],
            *[ToolCallStart, ToolCallArguments, ToolCallEnd],
            Finished,
        ]
        assert isinstance(events[4], TextDelta) and [token.bytes for token in events[4].logprobs] == [b"b"]

    play(scene)


@pytest.mark.parametrize(
    "calls",
    [
        [{"index": 0, "arguments": "{}"}],
        [{"index": 1, "name": "f", "arguments": "{}"}],
        [{"index": 0, "name": "", "arguments": "{}"}],
        [{"index": 0, "name": 1, "arguments": "{}"}],
        [{"index": 0, "name": "f"}],
        [{"index": 0, "name": "f", "arguments": {}}],
        [{"index": 0, "name": "f", "arguments": ""}, {"index": 0, "name": "f", "arguments": ""}],
        [
            {"index": 0, "name": "f", "arguments": "{}"},
            {"index": 1, "name": "g", "arguments": "{}"},
            {"index": 0, "arguments": "{}"},
        ],
    ],
)
def test_tool_calls_out_of_turn_condemn_the_engine(calls: list[dict[str, Any]]) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(HELLO).__aiter__()))
        _, request_id, _ = await peer.next()
        peer.send(*[frame(Kind.TOOL_CALL, request_id, call) for call in calls])
        with pytest.raises(errors.EngineGone, match="malformed"):
            await answer

    play(scene)


def test_one_batch_per_arrival() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        batches = engine.run(HELLO).batches()
        first = asyncio.ensure_future(anext(batches))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"))
        assert await first == [TextStart(), TextDelta("a")]
        peer.send(frame(Kind.TEXT, request_id, b"b"), frame(Kind.FINISHED, request_id, finished()))
        assert [type(event) for event in await anext(batches)] == [TextDelta, TextEnd, Finished]
        with pytest.raises(StopAsyncIteration):
            await anext(batches)

    play(scene)


def test_generations_do_not_mix() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answers = [asyncio.ensure_future(text_of(engine, Generate(Text(name)))) for name in "xyz"]
        ids = {command["text"]: request_id for _, request_id, command in [await peer.next() for _ in answers]}
        for _ in range(3):
            peer.send(*[frame(Kind.TEXT, ids[name], name.encode()) for name in "zxy"])
            await settle()
        peer.send(*[frame(Kind.FINISHED, ids[name], finished()) for name in "yzx"])
        assert await asyncio.gather(*answers) == ["xxx", "yyy", "zzz"]

    play(scene)


@pytest.mark.parametrize("piece", [1, 7, 11, 12, 13, 1000])
def test_frames_cut_anywhere(piece: int) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(HELLO).__aiter__()))
        _, request_id, _ = await peer.next()
        stream = b"".join(frame(Kind.TEXT, request_id, text.encode()) for text in ("a", "", "é" * 9))
        stream += frame(Kind.FINISHED, request_id, finished())
        for start in range(0, len(stream), piece):
            peer.send(stream[start : start + piece])
            await settle()
        events = await answer
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "a" + "é" * 9
        assert isinstance(events[-1], Finished)

    play(scene)


def test_frames_across_the_ends_of_reads() -> None:
    """Frames of every size up to some that no read holds, so that what is left of one read never starts a buffer."""

    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(text_of(engine, HELLO))
        _, request_id, _ = await peer.next()
        texts = [chr(97 + place % 26) * (place * 1009 % 70_000) for place in range(120)]
        peer.send(*[frame(Kind.TEXT, request_id, text.encode()) for text in texts])
        peer.send(frame(Kind.FINISHED, request_id, finished()))
        assert await answer == "".join(texts)

    play(scene)


def test_a_large_frame_arrives_whole() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(engine.detokenize([1]))
        _, request_id, _ = await peer.next()
        peer.send(
            frame(Kind.RESULT, request_id, b"x" * (8 << 20)), frame(Kind.HEARTBEAT, 0, {"step_ms": 0, "prepare_ms": 0})
        )
        assert len(await answer) == 8 << 20

    play(scene)


# ---- being fed -------------------------------------------------------------------------------------------------------


class Taker:
    """Takes what it is fed; after `room` batches it can take no more until it is told to go on."""

    def __init__(self, room: int = 1000) -> None:
        self.batches: list[list[Event]] = []
        self.room = room
        self.full, self.go_on = asyncio.Event(), asyncio.Event()
        self.taken = asyncio.Event()

    def take(self, events: list[Event]) -> bool:
        self.batches.append(events)
        self.taken.set()
        self.room -= 1
        return self.room > 0

    async def drained(self) -> None:
        self.full.set()
        await self.go_on.wait()
        self.room = 1000


def test_what_is_read_together_is_fed_together() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        taker = Taker()
        work = asyncio.ensure_future(engine.run(HELLO).feed(taker.take, taker.drained))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"), frame(Kind.TEXT, request_id, b"b"))
        await taker.taken.wait()
        peer.send(frame(Kind.TEXT, request_id, b"c"), frame(Kind.FINISHED, request_id, finished()))
        await work
        assert [batch[:2] for batch in taker.batches] == [[TextStart(), TextDelta("ab")], [TextDelta("c"), TextEnd()]]
        assert isinstance(taker.batches[-1][-1], Finished)

    play(scene)


def test_a_full_reader_is_not_fed_and_loses_nothing() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        taker = Taker(room=1)
        work = asyncio.ensure_future(engine.run(HELLO).feed(taker.take, taker.drained))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"))
        await taker.full.wait()
        peer.send(frame(Kind.TEXT, request_id, b"b"))
        peer.send(frame(Kind.TEXT, request_id, b"c"), frame(Kind.FINISHED, request_id, finished()))
        await settle()
        assert taker.batches == [[TextStart(), TextDelta("a")]]
        taker.go_on.set()
        await work
        assert taker.batches[1][0] == TextDelta("bc")

    play(scene)


def test_an_error_ends_the_feeding_after_the_text_before_it() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        taker = Taker()
        work = asyncio.ensure_future(engine.run(HELLO).feed(taker.take, taker.drained))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"), frame(Kind.ERROR, request_id, error("internal")))
        with pytest.raises(errors.EngineError):
            await work
        assert taker.batches == [[TextStart(), TextDelta("a")]]

    play(scene)


def test_a_reader_that_fails_ends_its_own_request_only() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        def refuse(events: list[Event]) -> bool:
            raise ZeroDivisionError

        taker = Taker()
        bad = asyncio.ensure_future(engine.run(HELLO).feed(refuse, taker.drained))
        _, bad_id, _ = await peer.next()
        good = asyncio.ensure_future(engine.run(HELLO).feed(taker.take, taker.drained))
        _, good_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, bad_id, b"a"), frame(Kind.TEXT, good_id, b"b"))
        with pytest.raises(ZeroDivisionError):
            await bad
        assert (await peer.next())[:2] == (Kind.CANCEL, bad_id)
        peer.send(frame(Kind.FINISHED, good_id, finished()))
        await good
        assert taker.batches[0] == [TextStart(), TextDelta("b")]

    play(scene)


def test_an_engine_that_dies_ends_the_feeding() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        taker = Taker()
        work = asyncio.ensure_future(engine.run(HELLO).feed(taker.take, taker.drained))
        await peer.next()
        peer.end("crashed (SIGABRT)")
        with pytest.raises(errors.EngineGone):
            await work

    play(scene)


# ---- what events carry -----------------------------------------------------------------------------------------------


def test_logprobs_go_with_the_text_that_follows() -> None:
    def logprob(byte: int) -> dict[str, Any]:
        return {"b": [byte], "p": -0.5, "top": [[[byte], -0.5], [[0xFF], None]]}

    async def scene(engine: Engine, peer: Peer) -> None:
        batches = engine.run(HELLO).batches()
        first = asyncio.ensure_future(anext(batches))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.LOGPROBS, request_id, {"tokens": [logprob(97), logprob(98)]}))
        await settle()
        assert not first.done(), "logprobs alone are nothing to show"
        peer.send(frame(Kind.TEXT, request_id, b"ab"))
        _, delta = await first
        assert isinstance(delta, TextDelta) and delta.text == "ab"
        assert [(token.token, token.bytes, token.logprob) for token in delta.logprobs] == [
            ("a", b"a", -0.5),
            ("b", b"b", -0.5),
        ]
        likeliest, impossible = delta.logprobs[0].top
        assert likeliest.token == "a" and (impossible.token, impossible.logprob) == ("\ufffd", LOGPROB_FLOOR)
        peer.send(
            frame(Kind.LOGPROBS, request_id, {"tokens": [logprob(99)]}), frame(Kind.FINISHED, request_id, finished())
        )
        rest = [event async for batch in batches for event in batch]
        assert isinstance(rest[0], TextDelta) and not rest[0].text and rest[0].logprobs[0].bytes == b"c"
        assert [type(event) for event in rest[1:]] == [TextEnd, Finished]

    play(scene)


# ---- leaving early ---------------------------------------------------------------------------------------------------


async def expect_cancel(peer: Peer, request_id: int) -> None:
    assert await peer.next() == (Kind.CANCEL, request_id, None)


def test_a_closed_iterator_cancels_at_once() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        batches = engine.run(HELLO).batches()
        first = asyncio.ensure_future(anext(batches))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"))
        await first
        await batches.aclose()
        await expect_cancel(peer, request_id)

    play(scene)


def test_a_broken_loop_cancels() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        async def first_event() -> Event:
            async for event in engine.run(HELLO):
                return event
            raise AssertionError("no event")

        first = asyncio.ensure_future(first_event())
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"))
        assert await first == TextStart()
        gc.collect()
        await expect_cancel(peer, request_id)

    play(scene)


def ask_to_generate(engine: Engine) -> Awaitable[Any]:
    return text_of(engine, HELLO)


def ask_to_embed(engine: Engine) -> Awaitable[Any]:
    return engine.embed(Embed(["a"]))


def ask_to_tokenize(engine: Engine) -> Awaitable[Any]:
    return engine.tokenize("a")


ASKING = [ask_to_generate, ask_to_embed, ask_to_tokenize]


@pytest.mark.parametrize("ask", ASKING)
def test_a_cancelled_task_cancels_its_request(ask: Callable[[Engine], Awaitable[Any]]) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        task = asyncio.ensure_future(ask(engine))
        _, request_id, _ = await peer.next()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await expect_cancel(peer, request_id)
        # What the engine had still to say of it is heard in silence, and others are served as before.
        peer.send(frame(Kind.TEXT, request_id, b"late"), frame(Kind.FINISHED, request_id, finished("userStopped")))
        answer = asyncio.ensure_future(engine.detokenize([1]))
        _, next_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"later than late"), frame(Kind.RESULT, next_id, b"b"))
        assert await answer == "b"

    play(scene)


def test_a_finished_generation_is_not_cancelled() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(text_of(engine, HELLO))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.FINISHED, request_id, finished()))
        await answer
        asyncio.ensure_future(engine.stats()).add_done_callback(lambda future: future.exception())
        assert (await peer.next())[0] == Kind.STATS

    play(scene)


# ---- the other commands ----------------------------------------------------------------------------------------------


def with_fake(scene: Callable[[Engine, FakeEngine], Coroutine[Any, Any, None]], script: Script | None = None) -> None:
    async def run() -> None:
        fake = FakeEngine(script or Script())
        engine = await Engine.open(fake_thread(fake), "m")
        try:
            await scene(engine, fake)
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_load_reports_progress_and_effective_settings() -> None:
    async def scene(engine: Engine, fake: FakeEngine) -> None:
        seen: list[float] = []
        settings = LoadSettings(context_length=512, parallel=2, flash_attention=True)
        answer = await engine.load(LoadSpec((Path("m.gguf"),), settings), seen.append)
        assert seen == [0.5]
        assert (answer.context_length, answer.parallel, answer.flash_attention) == (512, 2, True)
        assert (answer.type, answer.load_ms, answer.runtime_version) == ("llm", 1.5, "fake")
        assert fake.commands[0][2]["path"] == "m.gguf"

    with_fake(scene)


def test_embeddings_come_in_the_order_of_their_inputs() -> None:
    async def scene(engine: Engine, fake: FakeEngine) -> None:
        one, two = await engine.embed(Embed(["first", (1, 2, 3)]))
        assert one != two and (one.n_tokens, two.n_tokens) == (5, 3)
        assert (await engine.embed(Embed([(1, 2, 3), "first"]))) == [two, one]
        assert sum(x * x for x in struct.unpack("<4f", one.vector)) == pytest.approx(1)

    with_fake(scene)


def test_vectors_as_json_are_the_same_numbers() -> None:
    async def scene(engine: Engine, fake: FakeEngine) -> None:
        (packed,) = await engine.embed(Embed(["first"]))
        (spelled,) = await engine.embed(Embed(["first"], as_json=True))
        assert tuple(json.loads(spelled.vector)) == struct.unpack("<4f", packed.vector)

    with_fake(scene)


def test_scores_come_in_the_order_of_their_documents() -> None:
    async def scene(engine: Engine, fake: FakeEngine) -> None:
        scores = await engine.rerank(Rerank("a b", ("b", "c", "b a")))
        assert [item.score for item in scores] == [1, 0, 2]
        assert [item.n_tokens for item in scores] == [4, 4, 6]
        assert fake.commands[-1][2] == {"query": "a b", "documents": ["b", "c", "b a"]}

    with_fake(scene)


def test_a_score_that_is_not_one_number_is_garbage() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(engine.rerank(Rerank("a", ("b",))))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.EMBEDDING, request_id, b"\0" * 8), frame(Kind.FINISHED, request_id, {"prompt_tokens": [1]}))
        assert await gone(answer) == {"it sent a malformed frame"}

    play(scene)


def test_tokens_there_and_back() -> None:
    async def scene(engine: Engine, fake: FakeEngine) -> None:
        ids, pieces = await engine.tokenize("héllo", add_special=True)
        assert b"".join(pieces) == "héllo".encode()
        assert fake.commands[0][2] == {"text": "héllo", "add_special": True, "parse_special": False}
        assert await engine.detokenize(ids) == "héllo"

    with_fake(scene)


def test_render_and_stats() -> None:
    async def scene(engine: Engine, fake: FakeEngine) -> None:
        assert await engine.render(Chat((text_message("user", "hi"),))) == "<user>hi"
        assert (await engine.stats()).running == 0

    with_fake(scene)


def test_many_generations_at_once_through_a_fake() -> None:
    async def scene(engine: Engine, fake: FakeEngine) -> None:
        texts = await asyncio.gather(*[text_of(engine, Generate(Text("x"), max_tokens=count)) for count in range(20)])
        assert texts == ["".join((WORDS * 3)[:count]) for count in range(20)]

    with_fake(scene)


# ---- commands on the wire --------------------------------------------------------------------------------------------


def paragraph(name: str) -> str:
    """The part of the protocol that explains `name`: from its bold name to the next bold name or the end."""
    found = re.search(rf"^\*\*{name}\*\*(.*?)(?=^\*\*|^\||\Z)", PROTOCOL, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def keys_of(text: str) -> set[str]:
    return set(re.findall(r'"(\w+)"(?:\?)?:', text))


def test_generate_has_the_keys_of_the_protocol() -> None:
    grammar = Grammar("gbnf", "root ::= [a]")
    prompts: list[Prompt] = [Chat((text_message("user", "x"),)), Text("x"), Tokens((1, 2))]
    spelled = [generate_object(Generate(prompt, grammar=grammar)) for prompt in prompts]
    documented = keys_of(paragraph("GENERATE")) | {"echo", "ignore_eos"}
    inner = {"kind"}  # of the grammar
    assert set().union(*spelled) <= documented - inner | {"text"}
    assert [{"messages", "text", "tokens"} & set(command) for command in spelled] == [
        {"messages"},
        {"text"},
        {"tokens"},
    ]
    assert set(spelled[0]["grammar"]) == {"kind", "text"}


def test_what_few_requests_ask_for_is_sent_for_those_only() -> None:
    plain = generate_object(Generate(Chat((text_message("user", "x"),))))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    chat = Chat((text_message("user", "x"),), tools=(tool,), tool_choice="required", parallel_tool_calls=False)
    full = generate_object(Generate(chat, overflow="drop_middle", draft=Draft("ngram", max=4)))
    added = {name: value for name, value in full.items() if name not in plain}
    assert added == {
        "tools": [tool],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "overflow": "drop_middle",
        "draft": {"kind": "ngram", "max": 4, "min": 0, "min_p": 0.75},
    }
    assert {*added, *added["draft"]} <= keys_of(paragraph("GENERATE"))
    assert set(chat_object(chat)) == {"messages", "tools", "template_kwargs"} <= set(re.findall(r'"(\w+)"', RENDER))


def test_sampling_has_the_keys_of_its_class() -> None:
    assert "lmlite/request.py:Sampling" in paragraph("GENERATE")
    sent = json.loads(encode(generate_object(HELLO)))["sampling"]
    assert list(sent) == [field.name for field in fields(Sampling)]
    assert sent["seed"] is None and sent["dry_sequence_breakers"] == ["\n", ":", '"', "*"]


KEYS = strategies.text('ab"\\é', max_size=3)
JSON_VALUES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(strategies.characters(exclude_categories=["Cs"])),
    lambda inner: strategies.lists(inner, max_size=4) | strategies.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=50)
@given(command=strategies.dictionaries(KEYS, JSON_VALUES, max_size=3))
def test_a_command_written_in_steps_is_the_same_command(command: dict[str, Any]) -> None:
    assert encode(command, in_steps=True) == encode(command)


@pytest.mark.parametrize("size", [STEP - 1, STEP, STEP + 1, 3 * STEP + 7])
@pytest.mark.parametrize("text", ["x", '"', "\\", "\n", "é", "😀", 'a"'])
def test_a_long_text_written_in_steps_is_the_same_text(text: str, size: int) -> None:
    command = {"text": (text * size)[:size], "tokens": tuple(range(size // 8)), "bans": [[1, None]] * 3}
    assert encode(command, in_steps=True) == encode(command)


@pytest.mark.parametrize("value", ["\ud800" * 2 * STEP, [float("nan")], {"a": [[float("inf")]]}])
def test_what_no_frame_can_carry_is_refused_in_steps_too(value: Any) -> None:
    with pytest.raises(errors.InvalidRequest):
        encode({"value": value}, in_steps=True)


@pytest.mark.parametrize(
    "prompt",
    [
        Text("x" * 100_000),
        Tokens(tuple(range(100_000))),
        Chat((text_message("user", "x" * 100_000),)),
        Chat((text_message("user", "hello"),) * 1000),
    ],
    ids=["text", "tokens", "message", "messages"],
)
def test_a_large_prompt_arrives_whole(prompt: Any) -> None:
    generate = Generate(prompt)
    assert is_large(prompt)

    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(collect(engine.run(generate).__aiter__()))
        kind, request_id, said = await peer.next()
        assert (kind, said) == (Kind.GENERATE, json.loads(encode(generate_object(generate))))
        peer.send(frame(Kind.FINISHED, request_id, finished()))
        await answer

    play(scene)


def test_a_ban_is_null() -> None:
    sampling = Sampling(logit_bias=((5, float("-inf")), (6, 1.5)))
    assert json.loads(encode(generate_object(Generate(Text("x"), sampling=sampling))))["sampling"]["logit_bias"] == [
        [5, None],
        [6, 1.5],
    ]


def test_load_has_the_keys_of_the_protocol() -> None:
    command = load_object(LoadSpec((Path("a-1.gguf"), Path("a-2.gguf"))))
    assert set(command) <= keys_of(paragraph("LOAD"))
    assert command["splits"] == ["a-1.gguf", "a-2.gguf"] and command["path"] == "a-1.gguf"
    assert "splits" not in load_object(SPEC)


def test_the_fake_reports_a_load_as_the_protocol_says() -> None:
    names = set(re.findall(r'"(\w+)"', paragraph("LOADED"))) - {"llm", "embedding", "vocab", "name", "version"}
    assert set(loaded({})) <= names


@pytest.mark.parametrize(
    "generate",
    [
        Generate(Text("\ud800")),
        Generate(Text("x"), sampling=Sampling(temperature=float("nan"))),
        Generate(Text("x"), sampling=Sampling(logit_bias=((1, float("inf")),))),
        Generate(Text("x" * (MAX_PAYLOAD + 1))),
    ],
    ids=["surrogate", "nan", "infinity", "too large"],
)
def test_what_no_frame_can_carry_is_refused_here(generate: Generate) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        with pytest.raises(errors.InvalidRequest):
            await text_of(engine, generate)
        answer = asyncio.ensure_future(engine.detokenize([1]))
        kind, request_id, _ = await peer.next()
        assert kind == Kind.DETOKENIZE, "nothing was sent of the refused request"
        peer.send(frame(Kind.RESULT, request_id, b"ok"))
        assert await answer == "ok"

    play(scene)


# ---- errors of one request -------------------------------------------------------------------------------------------

ERRORS: list[tuple[dict[str, Any], type[errors.LmError], dict[str, Any]]] = [
    (
        error("context_overflow", needed=9, limit=8),
        errors.ContextOverflow,
        {"needed": 9, "limit": 8, "index": None, "status": 400},
    ),
    (error("context_overflow", needed=9, limit=8, index=2), errors.ContextOverflow, {"index": 2}),
    (error("queue_full", limit=128), errors.QueueFull, {"limit": 128, "status": 429}),
    (error("load_failed"), errors.LoadFailed, {"name": "m", "reason": "the fake says load_failed", "status": 422}),
    (error("model_type", needs="chat"), errors.WrongModelType, {"needs": "chat", "name": "m"}),
    (error("invalid_request", param="sampling.top_p"), errors.InvalidRequest, {"param": "sampling.top_p"}),
    (error("invalid_request"), errors.InvalidRequest, {"param": None, "status": 400}),
    (error("out_of_memory"), errors.EngineError, {"code": "out_of_memory", "status": 503}),
    (error("internal"), errors.EngineError, {"code": "internal", "status": 500}),
]


def test_every_documented_error_code_is_tested() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", PROTOCOL, re.MULTILINE))
    assert documented == {sent["code"] for sent, _, _ in ERRORS}


@pytest.mark.parametrize("sent, expected, facts", ERRORS)
def test_an_error_code_becomes_its_class(
    sent: dict[str, Any], expected: type[errors.LmError], facts: dict[str, Any]
) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        other = asyncio.ensure_future(engine.detokenize([1]))
        _, other_id, _ = await peer.next()
        for ask in ASKING:
            answer = asyncio.ensure_future(ask(engine))
            _, request_id, _ = await peer.next()
            peer.send(frame(Kind.ERROR, request_id, sent))
            with pytest.raises(expected) as caught:
                await answer
            assert type(caught.value) is expected
            assert {name: getattr(caught.value, name) for name in facts} == facts
        peer.send(frame(Kind.RESULT, other_id, b"unharmed"))
        assert await other == "unharmed"

    play(scene)


def test_text_before_an_error_is_delivered_first() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        batches = engine.run(HELLO).batches()
        first = asyncio.ensure_future(anext(batches))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"), frame(Kind.ERROR, request_id, error("internal")))
        assert await first == [TextStart(), TextDelta("a")]
        with pytest.raises(errors.EngineError):
            await anext(batches)

    play(scene)


# ---- the engine's end ------------------------------------------------------------------------------------------------


async def gone(*answers: asyncio.Future[Any]) -> set[str]:
    """The reasons that `answers` fail with, all of them `EngineGone`."""
    reasons = set()
    for answer in answers:
        with pytest.raises(errors.EngineGone) as caught:
            await answer
        assert caught.value.name == "m"
        reasons.add(caught.value.reason)
    return reasons


async def ask_everything(engine: Engine, peer: Peer) -> list[asyncio.Future[Any]]:
    answers: list[asyncio.Future[Any]] = [asyncio.ensure_future(ask(engine)) for ask in ASKING]
    for _ in answers:
        await peer.next()
    return answers


def test_death_fails_every_request_with_its_reason() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answers = await ask_everything(engine, peer)
        peer.end("crashed (SIGABRT)")
        assert await gone(*answers) == {"crashed (SIGABRT)"}
        assert engine.gone == "crashed (SIGABRT)"
        later = [asyncio.ensure_future(ask(engine)) for ask in ASKING]
        assert await gone(*later) == {"crashed (SIGABRT)"}

    play(scene)


def test_text_before_the_death_is_delivered_first() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        batches = engine.run(HELLO).batches()
        first = asyncio.ensure_future(anext(batches))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.TEXT, request_id, b"a"))
        assert await first == [TextStart(), TextDelta("a")]
        peer.end("killed (SIGKILL)")
        assert await gone(asyncio.ensure_future(anext(batches))) == {"killed (SIGKILL)"}

    play(scene)


def test_death_is_told_once_and_a_close_is_no_death() -> None:
    async def run() -> None:
        told: list[str] = []
        peer = Peer()
        engine = await Engine.open(peer, "m", on_gone=lambda: told.append("dead"))
        peer.end("exit 3")
        await gone(asyncio.ensure_future(engine.stats()))
        await engine.close()
        assert told == ["dead"]

        peer = Peer()
        engine = await Engine.open(peer, "m", on_gone=lambda: told.append("closed"))
        await engine.close()
        await peer.closed()
        assert told == ["dead"]

    asyncio.run(run())


def test_a_request_in_the_moment_of_death_learns_the_reason() -> None:
    async def run() -> None:
        asked: list[asyncio.Future[Any]] = []
        peer = Peer()
        engine = await Engine.open(peer, "m", on_gone=lambda: asked.append(asyncio.ensure_future(engine.stats())))
        peer.end("crashed (SIGBUS)")
        await gone(asyncio.ensure_future(engine.stats()))
        assert await gone(*asked) == {"crashed (SIGBUS)"}
        await engine.close()

    asyncio.run(run())


HUGE = HEADER.pack(MAX_PAYLOAD + 1, Kind.TEXT, 1)
GARBAGE = {
    "garbage": b"\xff" * 64,
    "too large": HUGE,
    "unknown kind": pack(Kind.TEXT, 1).replace(b"\x43", b"\x3f"),
    "a command": pack(Kind.GENERATE, 1, b"{}"),
    "an answer of another kind": pack(Kind.RESULT, 1, b"x"),
    "no JSON": pack(Kind.FINISHED, 1, b"{"),
    "no UTF-8": pack(Kind.FINISHED, 1, b"\xff"),
    "no object": pack(Kind.FINISHED, 1, b"[]"),
    "missing keys": pack(Kind.FINISHED, 1, b"{}"),
    "a reason there is not": frame(Kind.FINISHED, 1, finished("bored")),
    "endless nesting": pack(Kind.FINISHED, 1, b"[" * 200_000),
    "infinite count": frame(Kind.FINISHED, 1, finished(n_tokens=float("inf"))),  # type: ignore[arg-type]
    "an error code there is not": frame(Kind.ERROR, 1, error("mood")),
    "an error without its numbers": frame(Kind.ERROR, 1, error("context_overflow")),
    "error details of another type": frame(Kind.ERROR, 1, {**error("internal"), "details": [1]}),
    "a request there was not": pack(Kind.TEXT, 7, b"x"),
    "text for nobody": pack(Kind.TEXT, 0, b"x"),
    "an empty heartbeat": pack(Kind.HEARTBEAT, 0, b"{}"),
    "bad logprobs": frame(Kind.LOGPROBS, 1, {"tokens": [{"b": [256], "p": 0, "top": []}]}),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("piece", [1 << 20, 5], ids=["whole", "in pieces"])
def test_garbage_condemns_the_engine(garbage: bytes, piece: int) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answers = [asyncio.ensure_future(text_of(engine, HELLO)), asyncio.ensure_future(engine.detokenize([1]))]
        await peer.next()
        await peer.next()
        step = max(piece, len(garbage) // 50)
        for start in range(0, len(garbage), step):
            peer.send(garbage[start : start + step])
            await settle()
        assert await gone(*answers) == {"it sent a malformed frame"}
        assert peer.killed

    play(scene)


@pytest.mark.parametrize("vectors, counts", [(1, [1]), (3, [1, 1]), (2, [1]), (2, 5)])
def test_another_number_of_vectors_than_inputs_is_garbage(vectors: int, counts: Any) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(engine.embed(Embed(["a", "b"])))
        _, request_id, _ = await peer.next()
        peer.send(*[frame(Kind.EMBEDDING, request_id, b"\0" * 16)] * vectors)
        peer.send(frame(Kind.FINISHED, request_id, {"prompt_tokens": counts}))
        assert await gone(answer) == {"it sent a malformed frame"}

    play(scene)


def test_close_ends_requests_with_the_error_given() -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answers = await ask_everything(engine, peer)
        await engine.close(errors.ShuttingDown())
        for answer in answers:
            with pytest.raises(errors.ShuttingDown):
                await answer
        await peer.closed()
        with pytest.raises(errors.ShuttingDown):  # who comes late hears the same
            await engine.stats()

    play(scene)


def test_a_loop_that_ends_under_a_stream_leaves_nothing_running() -> None:
    async def run(peer: Peer) -> None:
        engine = await Engine.open(peer, "m")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(text_of(engine, HELLO), 0.01)
        assert (await peer.next())[0] == Kind.GENERATE
        assert (await peer.next())[0] == Kind.CANCEL
        await engine.close()

    asyncio.run(run(Peer()))


# ---- the watchdog ----------------------------------------------------------------------------------------------------

BEAT = frame(Kind.HEARTBEAT, 0, {"step_ms": 20, "prepare_ms": 0})


def test_silence_with_work_pending_is_a_hang() -> None:
    clock = FakeClock()

    async def scene(engine: Engine, peer: Peer) -> None:
        answers = await ask_everything(engine, peer)
        clock.advance(HANG_S - 1)
        await settle()
        assert not any(answer.done() for answer in answers)
        clock.advance(1)
        assert await gone(*answers) == {"hung"}
        assert peer.killed

    play(scene, clock)


@pytest.mark.parametrize(
    "sign", [BEAT, frame(Kind.TEXT, 1, b"a"), frame(Kind.PROMPT_PROGRESS, 1, {"done": 1, "total": 2, "cached": 1, "ms": 2.5})]
)
def test_any_sign_of_life_keeps_the_engine(sign: bytes) -> None:
    clock = FakeClock()

    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(text_of(engine, HELLO))
        await peer.next()
        for _ in range(5):
            clock.advance(HANG_S - 1)
            peer.send(sign)
            await settle()
        assert not answer.done() and not peer.killed
        clock.advance(HANG_S)
        assert await gone(answer) == {"hung"}

    play(scene, clock)


def test_progress_of_a_load_is_a_sign_of_life() -> None:
    clock = FakeClock()

    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(engine.load(SPEC))
        _, request_id, command = await peer.next()
        for step in range(10):
            clock.advance(HANG_S - 1)
            peer.send(frame(Kind.LOAD_PROGRESS, request_id, {"progress": step / 10}))
            await settle()
        peer.send(frame(Kind.LOADED, request_id, loaded(command)))
        assert (await answer).arch == "fake"

    play(scene, clock)


@pytest.mark.parametrize(
    "beat, reason",
    [
        ({"step_ms": 0, "prepare_ms": 10_001}, "preparation took too long"),
        ({"step_ms": 60_001, "prepare_ms": 0}, "hung"),
    ],
)
def test_a_heartbeat_can_betray_a_hang(beat: dict[str, float], reason: str) -> None:
    async def scene(engine: Engine, peer: Peer) -> None:
        answers = await ask_everything(engine, peer)
        peer.send(frame(Kind.HEARTBEAT, 0, {"step_ms": 60_000, "prepare_ms": 10_000}))
        await settle()
        assert not any(answer.done() for answer in answers)
        peer.send(frame(Kind.HEARTBEAT, 0, beat))
        assert await gone(*answers) == {reason}
        assert peer.killed

    play(scene)


def test_an_idle_engine_may_be_silent() -> None:
    clock = FakeClock()

    async def scene(engine: Engine, peer: Peer) -> None:
        answer = asyncio.ensure_future(engine.detokenize([1]))
        _, request_id, _ = await peer.next()
        peer.send(frame(Kind.RESULT, request_id, b"x"))
        await answer
        clock.advance(1000 * HANG_S)
        assert not clock.armed, "nothing pending, nothing to watch"
        # The silence before a request does not count against it.
        answer = asyncio.ensure_future(engine.detokenize([1]))
        _, request_id, _ = await peer.next()
        clock.advance(HANG_S - 1)
        peer.send(frame(Kind.RESULT, request_id, b"y"))
        assert await answer == "y"

    play(scene, clock)


def test_the_silence_between_two_requests_counts_for_neither() -> None:
    clock = FakeClock()

    async def scene(engine: Engine, peer: Peer) -> None:
        for wait in (0.0, 1.0):
            answer = asyncio.ensure_future(engine.detokenize([1]))
            _, request_id, _ = await peer.next()
            clock.advance(wait)  # in the second round the watch of the first request looks here
            await settle()
            peer.send(frame(Kind.RESULT, request_id, b"x"))
            assert await answer == "x"
            clock.advance(HANG_S - 0.5)

    play(scene, clock)


def test_a_request_that_nobody_waits_for_is_still_watched() -> None:
    clock = FakeClock()

    async def scene(engine: Engine, peer: Peer) -> None:
        task = asyncio.ensure_future(text_of(engine, HELLO))
        await peer.next()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        clock.advance(HANG_S)
        await settle()
        assert engine.gone == "hung" and peer.killed

    play(scene, clock)
