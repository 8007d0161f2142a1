"""Tools, reasoning and structured output with the real engine and the bundled model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import Loaded, LoadSettings, LoadSpec
from lmlite.core.engine.worker import Process, Thread
from lmlite.errors import InvalidRequest
from lmlite.events import Finished, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart
from lmlite.messages import Message, TextPart, ToolCallPart, ToolResultPart, text_message
from lmlite.package import bundled_model
from lmlite.request import Chat, Generate, Grammar, Sampling, Text
from tests.random_models import with_mark_as_text, with_template, without_template


@dataclass
class Answer:
    reasoning: str = ""
    content: str = ""
    calls: list[list[str]] = field(default_factory=list)
    end: Finished | None = None

    def same(self, other: Answer) -> bool:
        return (self.reasoning, self.content, self.calls) == (other.reasoning, other.content, other.calls)


def function(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


CITY = {"type": "string"}
TOOLS = (
    function("get_weather", "Get the weather of a city", city=CITY),
    function("get_time", "Get the time in a city", city=CITY),
)
ANSWER = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}
SCHEMA = Grammar("json_schema", json.dumps(ANSWER))
WEATHER = "What is the weather in Paris?"
SUM = "What is 2 plus 3?"


def chat(text: str, **more: Any) -> Chat:
    return Chat((text_message("user", text),), **more)


async def ask(engine: Engine, prompt: Chat, **more: Any) -> Answer:
    answer = Answer()
    more = {"max_tokens": 120, "sampling": Sampling(temperature=0), **more}
    async for event in engine.run(Generate(prompt, **more)):
        match event:
            case ReasoningDelta(text):
                answer.reasoning += text
            case TextDelta(text):
                answer.content += text
            case ToolCallStart(index, name):
                assert index == len(answer.calls)
                answer.calls.append([name, ""])
            case ToolCallArguments(index, text):
                assert index == len(answer.calls) - 1
                answer.calls[index][1] += text
            case Finished():
                answer.end = event
    assert answer.end is not None
    return answer


def with_engine(test: Callable[[Engine], Coroutine[Any, Any, None]], path: Path | None = None) -> None:
    async def run() -> None:
        engine = await Engine.open(Process(), "tiny")
        try:
            await engine.load(LoadSpec((path or Path(bundled_model()),)))
            await test(engine)
        finally:
            await engine.close()

    asyncio.run(run())


def reason(answer: Answer) -> str:
    assert answer.end is not None
    return answer.end.reason


@pytest.mark.parametrize("whole", [False, True])
def test_the_tool_that_fits_is_called(whole: bool) -> None:
    async def test(engine: Engine) -> None:
        answer = await ask(engine, chat(WEATHER, tools=TOOLS), whole=whole)
        assert [(name, json.loads(arguments)) for name, arguments in answer.calls] == [("get_weather", {"city": "Paris"})]
        assert answer.content == "" and reason(answer) == "toolCalls"

    with_engine(test)


def test_a_question_for_no_tool_is_answered() -> None:
    async def test(engine: Engine) -> None:
        answer = await ask(engine, chat("Hello", tools=TOOLS))
        assert answer.content and not answer.calls and reason(answer) == "eosFound"

    with_engine(test)


def test_a_required_tool_is_called_whatever_the_question() -> None:
    async def test(engine: Engine) -> None:
        answer = await ask(engine, chat("Hello", tools=TOOLS[1:], tool_choice="required"))
        ((name, arguments),) = answer.calls
        assert name == "get_time" and set(json.loads(arguments)) == {"city"}
        assert answer.content == "" and reason(answer) == "toolCalls"

    with_engine(test)


def test_tools_that_must_not_be_called_are_not() -> None:
    async def test(engine: Engine) -> None:
        with_none = await ask(engine, chat(WEATHER, tools=TOOLS, tool_choice="none"))
        assert with_none.same(await ask(engine, chat(WEATHER))) and not with_none.calls

    with_engine(test)


@pytest.mark.parametrize("arguments", ['{"city": "Par', "", "[]", "nonsense", '{"a":"\\ud800"}', "[" * 600])
def test_a_conversation_goes_on_after_a_call_that_was_cut_off(arguments: str) -> None:
    messages = (
        text_message("user", WEATHER),
        Message("assistant", (ToolCallPart("", "get_weather", arguments),)),
        Message("tool", (ToolResultPart("", "", ()),)),
        text_message("user", SUM),
    )

    async def test(engine: Engine) -> None:
        assert (await ask(engine, Chat(messages, tools=TOOLS), max_tokens=8)).content

    with_engine(test)


def test_a_result_is_answered_from() -> None:
    messages = (
        text_message("user", WEATHER),
        Message("assistant", (ToolCallPart("1", "get_weather", '{"city": "Paris"}'),)),
        Message("tool", (ToolResultPart("1", "get_weather", (TextPart("sunny"),)),)),
    )

    async def test(engine: Engine) -> None:
        answer = await ask(engine, Chat(messages, tools=TOOLS))
        assert "sunny" in answer.content and not answer.calls

    with_engine(test)


@pytest.mark.parametrize("whole", [False, True])
def test_a_tool_goes_by_the_name_that_it_was_given(whole: bool) -> None:
    tools = (function("maps/weather now", "The weather of a city", city=CITY), function("maps:time", "The time", city=CITY))
    called = Message("assistant", (ToolCallPart("1", "maps/weather now", '{"city": "Paris"}'),))
    result = Message("tool", (ToolResultPart("1", "maps/weather now", (TextPart("sunny"),)),))

    async def test(engine: Engine) -> None:
        for choice in ("auto", "required"):
            answer = await ask(engine, chat(WEATHER, tools=tools, tool_choice=choice), whole=whole)
            assert answer.calls and set(name for name, _ in answer.calls) <= {"maps/weather now", "maps:time"}
            assert reason(answer) == "toolCalls"
        prompt = await engine.render(Chat((text_message("user", WEATHER), called, result), tools=tools))
        assert "maps_weather_now" in prompt and "maps_time" in prompt and "maps/" not in prompt

    with_engine(test)


def test_a_call_cut_by_max_tokens_is_not_the_reason_for_the_end() -> None:
    async def test(engine: Engine) -> None:
        full = await ask(engine, chat(WEATHER, tools=TOOLS))
        assert full.end is not None
        for n in range(1, full.end.stats.generated_tokens - 1):
            cut = await ask(engine, chat(WEATHER, tools=TOOLS), max_tokens=n)
            assert reason(cut) == "maxPredictedTokensReached" and cut.content == ""
            for name, arguments in cut.calls:
                assert name == "get_weather" and full.calls[0][1].startswith(arguments)

    with_engine(test)


def test_thinking_is_reasoning_and_counted() -> None:
    async def test(engine: Engine) -> None:
        answer = await ask(engine, chat(SUM, template_kwargs={"reasoning_effort": "high"}))
        assert "2 + 3 = 5" in answer.reasoning and answer.content == "2 + 3 = 5."
        assert answer.end is not None and 0 < answer.end.stats.reasoning_tokens < answer.end.stats.generated_tokens
        assert answer.same(await ask(engine, chat(SUM, template_kwargs={"reasoning_effort": "high"}), whole=True))
        switched_off = {"reasoning_effort": "high", "enable_thinking": False}
        plain = await ask(engine, chat(SUM, template_kwargs=switched_off))
        assert plain.reasoning == "" and plain.content
        assert plain.end is not None and plain.end.stats.reasoning_tokens == 0

    with_engine(test)


def test_a_schema_rules_the_content_and_lets_the_model_think() -> None:
    async def test(engine: Engine) -> None:
        for question, thinks in ((SUM, False), (f"{SUM} Think first.", True)):
            answer = await ask(engine, chat(question), grammar=SCHEMA)
            assert isinstance(json.loads(answer.content)["answer"], int)
            assert bool(answer.reasoning) == thinks

    with_engine(test)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("grammar", [None, SCHEMA], ids=["free", "schema"])
def test_logprobs_are_those_of_the_content(grammar: Grammar | None, whole: bool) -> None:
    async def test(engine: Engine) -> None:
        for prompt in (chat(f"{SUM} Think first."), chat("Say the word 日本.", tools=TOOLS), chat(WEATHER, tools=TOOLS)):
            work = Generate(prompt, 120, sampling=Sampling(temperature=0), grammar=grammar, top_logprobs=1, whole=whole)
            deltas = [event async for event in engine.run(work) if isinstance(event, TextDelta)]
            told = b"".join(token.bytes for delta in deltas for token in delta.logprobs)
            assert told.decode().strip() == "".join(delta.text for delta in deltas)

    with_engine(test)


def test_a_schema_and_tools_allow_either() -> None:
    async def test(engine: Engine) -> None:
        for question in (WEATHER, SUM, "Hello"):
            answer = await ask(engine, chat(question, tools=TOOLS), grammar=SCHEMA)
            if answer.calls:
                assert answer.content == "" and json.loads(answer.calls[0][1])
            else:
                assert isinstance(json.loads(answer.content)["answer"], int)

    with_engine(test)


def test_a_stop_string_does_not_end_the_reasoning() -> None:
    async def test(engine: Engine) -> None:
        answer = await ask(engine, chat(f"{SUM} Think first."), stop=("5",))
        assert "5" in answer.reasoning and answer.content == "2 + 3 = "
        assert answer.end is not None and answer.end.stop_string == "5"

    with_engine(test)


def test_a_template_without_tools_gets_them_as_text(tmp_path: Path) -> None:
    template = (
        "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    path = tmp_path / "plain.gguf"
    with_template(Path(bundled_model()), path, template)

    async def test(engine: Engine) -> None:
        rendered = await engine.render(chat(WEATHER, tools=TOOLS))
        assert rendered.startswith("<|im_start|>system\n") and '"get_time"' in rendered
        answer = await ask(engine, chat(WEATHER, tools=TOOLS, tool_choice="required"))
        assert reason(answer) == "toolCalls" and answer.calls[0][0] in {"get_weather", "get_time"}
        assert set(json.loads(answer.calls[0][1])) == {"city"}

    with_engine(test, path)


@pytest.mark.parametrize(
    "tools",
    [
        (function("x", ""), function("x", "")),
        (function("x", "", a={"enum": ["y" * 1000 + str(i) for i in range(2000)]}),),
        (function("x", "", a=json.loads('{"items":' * 300 + "{}" + "}" * 300)),),
    ],
    ids=["twice", "large", "deep"],
)
def test_a_tool_that_cannot_be_is_refused(tools: tuple[dict[str, Any], ...]) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await ask(engine, chat(WEATHER, tools=tools))
        assert refused.value.param == "tools"
        assert (await ask(engine, chat("Hello"))).content

    with_engine(test)


# ---- templates -------------------------------------------------------------------------------------------------------


def with_model(
    test: Callable[[Engine, Loaded], Coroutine[Any, Any, None]],
    path: Path,
    placement: type[Process] | type[Thread] = Process,
    **settings: Any,
) -> None:
    async def run() -> None:
        engine = await Engine.open(placement(), "model")
        try:
            await test(engine, await engine.load(LoadSpec((path,), LoadSettings(**settings))))
        finally:
            await engine.close()

    asyncio.run(run())


HOSTILE = {
    "is not one": ("{% for m in messages %}{{ m.content }", "Expected }}"),
    "takes all memory": ("{% set n = namespace(x='a') %}{% for i in range(9) %}{% set n.x = n.x * 99 %}{% endfor %}", "MB"),
    "calls itself": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nests without end"),
    "holds itself": ("{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns|tojson }}", "nests without end"),
    "nests in its text": ("{{ " + "(" * 60_000 + "1" + ")" * 60_000 + " }}", "nests without end"),
    "is longer than any": ("{{ " + "(" * 200_000 + "1" + ")" * 200_000 + " }}", "longer than"),
}


@pytest.mark.parametrize("placement", [Process, Thread])
@pytest.mark.parametrize("how", HOSTILE)
def test_a_model_with_a_template_that_is_at_fault_says_so_and_serves_completions(
    tmp_path: Path, how: str, placement: type[Process] | type[Thread]
) -> None:
    template, why = HOSTILE[how]

    async def test(engine: Engine, loaded: Loaded) -> None:
        (warning,) = loaded.warnings
        assert "the chat template is at fault" in warning and why in warning
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="template is at fault") as refused:
                await ask(engine, chat("Hello"))
            assert why in refused.value.message
        finished = [event async for event in engine.run(Generate(Text("one two"), max_tokens=4))][-1]
        assert isinstance(finished, Finished) and finished.stats.generated_tokens > 0

    with_model(test, with_template(bundled_model(), tmp_path / "model.gguf", template), placement)


def test_a_model_without_a_template_chats_in_chatml_and_says_so(tmp_path: Path) -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        (warning,) = loaded.warnings
        assert "no chat template" in warning and not loaded.has_chat_template
        assert await engine.render(chat("Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        answer = await ask(engine, chat("Hello"))
        assert answer.content and reason(answer) == "eosFound"

    with_model(test, without_template(bundled_model(), tmp_path / "model.gguf"))


def test_an_answer_that_a_template_begins_with_a_word_obeys_a_schema(tmp_path: Path) -> None:
    """Some tokenizers put a space ahead of that word, and may make one token of both."""
    asked = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template = asked + "{% if add_generation_prompt %}the assistant: {% endif %}"

    async def test(engine: Engine, loaded: Loaded) -> None:
        answer = await ask(engine, chat("Hello"), grammar=SCHEMA, max_tokens=200)
        assert answer.content.lstrip().startswith("{")

    with_model(test, with_template(bundled_model(), tmp_path / "model.gguf", template))
    with_model(test, without_template(bundled_model(), tmp_path / "plain.gguf"))


def test_an_end_mark_that_is_no_token_ends_the_answer_and_is_not_shown(tmp_path: Path) -> None:
    async def ordinary(engine: Engine, loaded: Loaded) -> None:
        answers.append((await ask(engine, chat(SUM))).content)

    async def test(engine: Engine, loaded: Loaded) -> None:
        answer = await ask(engine, chat(SUM))
        assert reason(answer) in ("eosFound", "stopStringFound")
        answers.append(answer.content)

    answers: list[str] = []
    with_model(ordinary, bundled_model())
    with_model(test, with_mark_as_text(bundled_model(), tmp_path / "model.gguf", "<|im_end|>", "<|fin|>"))
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize(
    ("chosen", "prompt"),
    [
        ("vicuna", "USER: Hi\nASSISTANT:"),
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", "<user>Hi<assistant>"),
    ],
)
def test_another_template_can_be_chosen(tmp_path: Path, chosen: str, prompt: str) -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        assert await engine.render(chat("Hi")) == prompt
        assert not loaded.warnings and loaded.has_chat_template
        assert (await ask(engine, chat("Hi"))).end is not None
        structured = await ask(engine, chat("Hi"), grammar=SCHEMA)
        assert reason(structured) != "eosFound" or set(json.loads(structured.content)) == {"answer"}

    broken = with_template(bundled_model(), tmp_path / "model.gguf", "{% if %}")
    with_model(test, broken, chat_template=chosen)


def test_parts_reach_a_template_that_takes_parts_as_parts() -> None:
    takes_parts = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
    )
    takes_texts = "{% for m in messages %}{{ m.content + '.' }}{% endfor %}"
    said = Chat((Message("user", (TextPart("one"), TextPart("two"))),))

    async def parts(engine: Engine, loaded: Loaded) -> None:
        assert await engine.render(said) == "[one][two]"

    async def text(engine: Engine, loaded: Loaded) -> None:
        assert await engine.render(said) == "one\ntwo."

    with_model(parts, bundled_model(), chat_template=takes_parts)
    with_model(text, bundled_model(), chat_template=takes_texts)


def test_a_template_that_nobody_knows_is_refused_with_those_there_are() -> None:
    async def test(engine: Engine, loaded: Loaded) -> None:
        raise AssertionError("it was loaded")

    with pytest.raises(InvalidRequest, match="built-in one: .*zephyr") as refused:
        with_model(test, bundled_model(), chat_template="zefyr")
    assert refused.value.param == "chat_template"
