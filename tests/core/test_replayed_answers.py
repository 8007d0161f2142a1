"""Whatever an answer was and however it ended, the conversation goes on from it: with templates of all manners."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Process
from lmlite.events import Finished, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from lmlite.messages import Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart, text_message
from lmlite.package import bundled_model
from lmlite.request import Chat, Generate, Sampling

HEADER = Path(__file__).parent.parent / "c" / "templates.h"
TEMPLATES: dict[str, str] = dict(re.findall(r'static const char (\w+)\[\] = R"\((.*?)\)";', HEADER.read_text(), re.DOTALL))
"""Those of the C++ tests, which stand for families; "" is the bundled model's own."""

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = tuple({"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("weather", "clock"))
ASKED = text_message("user", "What is the weather in Turin?")
SUM = text_message("user", "What is 2 plus 3? Think first.")
CONTEXT = 1024
CUTS = (1, 2, 5, 12, 30)
"""Tokens."""


async def answer(engine: Engine, chat: Chat, **more: Any) -> tuple[Message, str]:
    """What was said, as a client keeps it, and why that ended."""
    reasoning = text = ""
    calls: list[list[str]] = []
    async for event in engine.run(Generate(chat, sampling=Sampling(temperature=0), **more)):
        match event:
            case ReasoningDelta(piece):
                reasoning += piece
            case TextDelta(piece):
                text += piece
            case ToolCallStart(_, name):
                calls.append([name, ""])
            case ToolCallArguments(index, piece):
                calls[index][1] += piece
            case Finished(reason):
                parts: list[Part] = [ReasoningPart(reasoning)] if reasoning else []
                parts += [TextPart(text)] if text else []
                parts += [ToolCallPart(f"call_{i}", name, arguments) for i, (name, arguments) in enumerate(calls)]
                return Message("assistant", tuple(parts)), reason
    raise AssertionError("it has no end")


async def nearly_full(engine: Engine) -> Chat:
    """A conversation that leaves a few tokens of the context to its answer."""
    for n in range(CONTEXT, 0, -8):
        chat = Chat((text_message("user", "one " * n),))
        _, count = await engine.count(chat)
        if count < CONTEXT - 4:
            return chat
    raise AssertionError("nothing fits")


async def goes_on(engine: Engine, chat: Chat, said: Message) -> None:
    results = [
        Message("tool", (ToolResultPart(part.id, part.name, (TextPart("rain"),)),))
        for part in said.parts
        if isinstance(part, ToolCallPart)
    ]
    then = text_message("user", "Go on.")
    after: Sequence[tuple[Message, ...]] = ((), tuple(results), (then,), (*results, then))
    for more in after:
        talk = Chat((*chat.messages, said, *more), tools=chat.tools)
        await answer(engine, talk, max_tokens=2)


@pytest.mark.parametrize("name", ["", *TEMPLATES])
def test_every_answer_is_taken_as_history(name: str) -> None:
    async def run() -> None:
        engine = await Engine.open(Process(), "history")
        try:
            settings = LoadSettings(context_length=CONTEXT, threads=1, chat_template=TEMPLATES.get(name, ""))
            await engine.load(LoadSpec((Path(bundled_model()),), settings))
            ends: set[str] = set()
            for chat in (
                Chat((ASKED,), tools=TOOLS, tool_choice="required"), Chat((ASKED,), tools=TOOLS), Chat((SUM,)),
            ):  # fmt: skip
                cuts: list[dict[str, Any]] = [{"max_tokens": n} for n in CUTS]
                for how in (*cuts, {"max_tokens": 200}, {"stop": ("e",), "max_tokens": 60}):
                    said, end = await answer(engine, chat, **how)
                    ends.add(end)
                    await goes_on(engine, chat, said)
            said, end = await answer(engine, await nearly_full(engine), ignore_eos=True, overflow="stop")
            assert end == "contextLengthReached"
            await goes_on(engine, Chat((SUM,)), said)
            assert "maxPredictedTokensReached" in ends and {"toolCalls", "eosFound", "stopStringFound"} & ends
        finally:
            await engine.close()

    asyncio.run(run())
