"""Random chats with the bundled model: what is asked, what was heard, and what a fresh engine says to the same alone.

A chat is drawn from a seed: a conversation that may share its beginning with others, with tools or a schema or neither,
streamed or whole, greedy or not, heard to its end or left at some moment. A greedy answer must be the one that an engine
gives which never saw another request. Batches of another shape add up in another order, so two answers may part where two
tokens were all but equally likely; nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmlite.api.openai.chat import parse_chat
from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Thread
from lmlite.events import Event
from lmlite.package import bundled_model
from lmlite.request import Chat, Text
from tests.api.golden_files import ORIGIN, leased

MODEL = "lmlite-tiny"
CONTEXT = 2048
V0 = "/api/v0/chat/completions"
PATHS = ("/v1/chat/completions", V0)
NEAR_TIE = 0.35  # nats: the kernels that a batch's shape calls for differ by 0.3 in this model's unlikely tokens
CHOICES = 128
"""Candidates looked at for a near tie: what a schema allows may be far from the likeliest."""
SERVER: dict[str, Any] = {
    "context_length": CONTEXT, "kv_cells": CONTEXT, "parallel": 4, "threads": 1, "spill": 4
}  # fmt: skip
"""Cells for one whole context, shared by four: eviction and preemption are everyday events."""
TIMEOUT_S = 120.0
END_OF_TURN = frozenset({b"", b"<|im_end|>", b"<|endoftext|>"})

SYSTEMS = ("You are a helpful assistant.", "Answer in rhymes.", "Answer in JSON.", "Be brief.", "Think first.")
QUESTIONS = (
    "Hello!", "Who are you?", "Count to ten.", "What is 3 + 4?", "What is 12 - 5?", "What is my name?", "Name the days.",
    "Tell me a story about a fox.", "Say the letters.", "What is the weather in Oslo?", "What time is it in Rome?",
    "My name is Ada.", "I live in Lima.", "Where do I live?", "Repeat after me: blue moon.", "Write a rhyme about the sea.",
)  # fmt: skip
ANSWERS = ("Hello! How can I help you?", "I am a toy model.", "It is 7.", "I will remember that.", "I do not know.")
SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["word", "n"],
    "additionalProperties": False,
}


def tool(name: str, argument: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": f"Tells the {name}.", "parameters": parameters}}


TOOLS = (tool("weather", "city"), tool("time", "place"), tool("population", "country"))
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "call00001", "content": '{"weather": "rain"}'}


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """`leaves_after` is a number of events of a stream, or for a whole answer of milliseconds; None: stays to the end."""

    index: int
    path: str
    body: dict[str, Any]
    leaves_after: int | None

    @property
    def greedy(self) -> bool:
        return bool(self.body["temperature"] == 0)


class Plans:
    """An endless supply of chats; those of one seed are always the same."""

    def __init__(self, seed: int, tools: bool):
        self._random, self._tools = random.Random(seed), tools
        self._talks: list[list[dict[str, Any]]] = [[]]
        self._n = 0

    def __iter__(self) -> Iterator[Plan]:
        while True:
            yield self._next()

    def _next(self) -> Plan:
        chance = self._random.random
        self._n += 1
        with_tools = self._tools and chance() < 0.4
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": self._messages(with_tools),
            "max_tokens": self._random.choice((1, 8, 40, 120)),
            "temperature": 0,
        }
        if chance() < 0.25:
            body |= {"temperature": 0.9, "seed": self._random.randrange(2**31)}
        if with_tools:
            body["tools"] = self._random.sample(TOOLS, self._random.randint(1, len(TOOLS)))
            body["tool_choice"] = self._random.choice(("auto", "auto", "required", "none"))
        if chance() < 0.25:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        if chance() < 0.4:
            body |= {"logprobs": True, "top_logprobs": self._random.choice((0, 5))}
        if chance() < 0.15:
            body["stop"] = self._random.sample((".", " a", "\n", "zebra"), 2)
        body["stream"] = chance() < 0.6
        leaves_after = self._random.randrange(12) if chance() < 0.25 else None
        return Plan(self._n, self._random.choice(PATHS), body, leaves_after)

    def _messages(self, with_tools: bool) -> list[dict[str, Any]]:
        """A new conversation, or one that goes on from another's beginning."""
        if self._random.random() < 0.5:
            talk = [{"role": "system", "content": f"{self._random.choice(SYSTEMS)} This is chat {self._n}."}]
        else:
            earlier = self._random.choice(self._talks)
            talk = earlier[: self._random.randint(0, len(earlier))]
        for _ in range(self._random.choice((0, 0, 1, 3, 6))):
            talk = [*talk, self._user(), self._random.choice(ANSWERS_SAID)]
        plain = [*talk, self._user()]
        self._talks = [*self._talks[-50:], plain]
        return [*plain, CALL, RESULT] if with_tools and self._random.random() < 0.3 else plain

    def _user(self) -> dict[str, Any]:
        questions = self._random.choices(QUESTIONS, k=self._random.choice((1, 1, 2, 12)))
        return {"role": "user", "content": " ".join(questions)}


ANSWERS_SAID = tuple({"role": "assistant", "content": answer} for answer in ANSWERS)


# ---- what is heard ---------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """One answer, of a stream or whole: what was said, its tokens' bytes and logprobs if asked for, and its end."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None  # None: left before the end
    hides_some: bool = False  # there was reasoning, which the answer has not

    @property
    def said(self) -> tuple[Any, ...]:
        return self.content, self.reasoning, self.calls, self.finish_reason

    def add(self, choice: dict[str, Any]) -> None:
        """A chunk's choice, or a whole answer's."""
        message = choice.get("delta") or choice.get("message") or {}
        self.content += message.get("content") or ""
        self.reasoning += message.get("reasoning_content") or ""
        for position, call in enumerate(message.get("tool_calls") or ()):
            index = call.get("index", position)
            assert index <= len(self.calls), f"tool call {index} before call {len(self.calls)}"
            if index == len(self.calls):
                self.calls.append({"name": "", "arguments": ""})
            self.calls[index]["name"] += call["function"].get("name") or ""
            self.calls[index]["arguments"] += call["function"].get("arguments") or ""
        self.tokens += (choice.get("logprobs") or {}).get("content") or ()
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def raw(self) -> bytes | None:
        """The generated bytes; None if they cannot be told from what a parser left of them."""
        if self.tokens:
            return bytes_of(self.tokens)
        return None if self.calls or self.reasoning or self.hides_some else self.content.encode()


def bytes_of(tokens: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(bytes(token["bytes"]) for token in tokens)


def talk(port: int, plan: Plan) -> Heard:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    heard = Heard()
    try:
        connection.request("POST", plan.path, json.dumps(plan.body), {"Content-Type": "application/json"})
        if plan.leaves_after is not None and not plan.body["stream"]:
            time.sleep(plan.leaves_after / 1000)
            return heard
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"status {response.status}: {response.read().decode()}")
        if not plan.body["stream"]:
            heard.add(json.loads(response.read())["choices"][0])
            return heard
        events = 0
        while plan.leaves_after is None or events < plan.leaves_after:
            line = response.readline()
            assert line, "the stream ended without its last event"
            if line == b"data: [DONE]\n":
                return heard
            if line.startswith(b"data: "):
                heard.add(json.loads(line[6:])["choices"][0])
                events += 1
        return heard
    finally:
        connection.close()


def talk_all(port: int, plans: Sequence[Plan], clients: int) -> list[Heard]:
    """All of them, `clients` at a time."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda plan: talk_or_tell(port, plan), plans))


def talk_or_tell(port: int, plan: Plan) -> Heard:
    try:
        return talk(port, plan)
    except Exception as error:
        raise AssertionError(f"chat {plan.index}: {error!r}: {spelled(plan)}") from error


def accepts_tools(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1, "tools": [TOOLS[0]]}
    try:
        connection.request("POST", PATHS[0], json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    finally:
        connection.close()


# ---- what it must have been ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """`wrong` is None if the answer may stand; `tied` if it is another one than alone, parted at a near tie."""

    wrong: str | None = None
    tied: bool = False


def judge(plan: Plan, heard: Heard) -> Verdict:
    if plan.leaves_after is None and heard.finish_reason is None:
        return Verdict("it has no finish reason")
    if "response_format" in plan.body and heard.finish_reason == "stop" and not heard.calls and "stop" not in plan.body:
        try:
            value = json.loads(heard.content)
        except ValueError:
            return Verdict(f"it is no JSON: {heard.content!r}")
        if set(value) != {"word", "n"} or not 0 <= value["n"] <= 99:
            return Verdict(f"it is not of its schema: {heard.content!r}")
    for call in heard.calls if heard.finish_reason == "tool_calls" else ():
        if call["name"] not in [tool["function"]["name"] for tool in plan.body["tools"]]:
            return Verdict(f"it calls a tool that it was not given: {call}")
        if not isinstance(json.loads(call["arguments"]), dict):
            return Verdict(f"it calls with arguments that are no object: {call}")
    return judge_text(plan, heard) if plan.greedy else Verdict()


def judge_text(plan: Plan, heard: Heard) -> Verdict:
    expected = alone(plan.body)
    if plan.path == V0 and not plan.body["stream"] and expected.reasoning:  # which the published keys have no place for
        expected, heard = replace(expected, reasoning=""), replace(heard, hides_some=True)
    if heard.finish_reason is None:  # left early: what was heard must be its beginning
        if expected.content.startswith(heard.content) and expected.reasoning.startswith(heard.reasoning):
            return Verdict()
    elif heard.said == expected.said:
        return Verdict()
    if not expected.reasoning.startswith(heard.reasoning) or (heard.content and heard.reasoning != expected.reasoning):
        if parts_while_thinking(plan, expected.reasoning, heard.reasoning):
            return Verdict(tied=True)
        return Verdict(f"alone it thinks {expected.said!r}, it was {heard.said!r}")
    nothing_shared = not os.path.commonprefix([expected.content, heard.content])
    if nothing_shared and "tools" not in plan.body and parts_while_thinking(plan, "", ""):
        return Verdict(tied=True)  # one began to think, and thought nothing
    if expected.reasoning and "response_format" in plan.body:
        return Verdict(tied=True)  # the white space between the two is a choice, too, and nothing tells of it
    if expected.calls and heard.calls and plan.body.get("tool_choice") == "required":
        return Verdict(tied=True)  # what the model would not have said by itself is not in its text without a grammar
    may_end = "response_format" not in plan.body  # a grammar says where an answer ends, however likely the model finds it
    if expected.calls or heard.calls or heard.hides_some:
        tokens = raw_tokens(plan.body)
    else:
        tokens = alone({**plan.body, "logprobs": True, "ignore_eos": may_end}, CHOICES).tokens
    if parts_at_a_near_tie(tokens, heard, may_end):
        return Verdict(tied=True)
    return Verdict(f"alone it is {expected.said!r}, it was {heard.said!r}")


def parts_while_thinking(plan: Plan, expected: str, heard: str) -> bool:
    """The same where the reasoning is another: it is looked for in the whole text that the model writes, tags and all."""
    tokens = raw_tokens(plan.body)
    texts = [bytes(token["bytes"]) for token in tokens]
    same = len(os.path.commonprefix([expected.encode(), heard.encode()]))
    start = b"".join(texts).find(expected.encode()) if expected else 0
    part = start + same if expected and heard else 0  # one that does not think at all parts at the first token
    for token, text in zip(tokens, texts):
        if part < len(text):
            return any(
                abs(top["logprob"] - token["logprob"]) < NEAR_TIE and bytes(top["bytes"]) != text
                for top in token["top_logprobs"]
            )
        part -= len(text)
    return False


def parts_at_a_near_tie(tokens: Sequence[dict[str, Any]], heard: Heard, may_end: bool) -> bool:
    """Whether `heard` follows an answer given alone up to where another token was all but as likely as the one chosen.

    If it may end anywhere, `tokens` were chosen with the end of the turn forbidden: where it was the likeliest, the answer
    alone ended.
    """
    raw = heard.raw()
    if raw is not None:  # white space before an answer is in its tokens, and not always in its content
        said = b"".join(bytes(token["bytes"]) for token in tokens)
        raw = said[: len(said) - len(said.lstrip())] + raw.lstrip()
    at = 0
    for token in tokens:
        chosen = bytes(token["bytes"])
        tops = {bytes(top["bytes"]): float(top["logprob"]) for top in token["top_logprobs"]}
        ends = max((logprob for top, logprob in tops.items() if top in END_OF_TURN), default=-math.inf)
        ended = may_end and ends > token["logprob"]
        reference = ends if ended else token["logprob"]
        near = [top for top, logprob in tops.items() if abs(logprob - reference) < NEAR_TIE and (ended or top != chosen)]
        if raw is None:  # where they part cannot be told: somewhere there must have been a choice
            if len([top for top in near if top not in END_OF_TURN]) > 0:
                return True
            continue
        rest = raw[at:]
        if any(not rest if top in END_OF_TURN and not ended else top and rest.startswith(top) for top in near):
            return True
        if ended or not rest.startswith(chosen):
            return ended and not rest
        at += len(chosen)
    return raw is not None and not raw[at:]  # alone it was said, too, when it was asked for with log probabilities


def alone(body: dict[str, Any], top_logprobs: int | None = None) -> Heard:
    """What an engine that has just been started and never serves another request says to `body`."""
    call = parse_chat(body)
    asked = replace(call.turn.runs[0], whole=True)
    if top_logprobs is not None:
        asked = replace(asked, top_logprobs=top_logprobs)

    async def run() -> list[Event]:
        engine = await Engine.open(Thread(), "alone")
        try:
            await engine.load(LoadSpec((bundled_model(),), LoadSettings(context_length=CONTEXT, parallel=1, threads=1)))
            return [event async for event in engine.run(asked)]
        finally:
            await engine.close()

    heard = Heard()
    heard.add(json.loads(call.reply(ORIGIN).whole(leased([asyncio.run(run())])))["choices"][0])
    return heard


def raw_tokens(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens of the answer alone as text, with nothing read out of it: what a schema rules is not in it."""
    call = parse_chat({**body, "logprobs": True})

    async def run() -> list[Event]:
        engine = await Engine.open(Thread(), "alone")
        try:
            await engine.load(LoadSpec((bundled_model(),), LoadSettings(context_length=CONTEXT, parallel=1, threads=1)))
            asked = call.turn.runs[0]
            assert isinstance(asked.prompt, Chat)
            prompt = Text(await engine.render(asked.prompt))
            plain = replace(asked, prompt=prompt, grammar=None, whole=True, top_logprobs=CHOICES)
            return [event async for event in engine.run(plain)]
        finally:
            await engine.close()

    heard = Heard()
    heard.add(json.loads(call.reply(ORIGIN).whole(leased([asyncio.run(run())])))["choices"][0])
    return heard.tokens


def spelled(plan: Plan) -> str:
    return f"POST {plan.path} {json.dumps(plan.body)} leaves_after={plan.leaves_after}"


def fill_the_context(port: int) -> None:
    """An answer that takes each cell of a cache of one context: it fails if any was lost."""
    body = {"model": MODEL, "prompt": "one two three", "ignore_eos": True, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert "usage" in answer, f"cells are missing after all chats: {answer}"
    assert answer["usage"]["total_tokens"] == CONTEXT, f"cells are missing after all chats: {answer['usage']}"


# ---- what a process holds --------------------------------------------------------------------------------------------


def children() -> set[int]:
    """Of this process."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def holdings(pid: int) -> dict[str, int]:
    process = Path(f"/proc/{pid}")
    (resident,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:")]
    return {
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "resident_kb": int(resident.split()[1]),
    }
