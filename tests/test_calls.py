"""Arguments of called tools validate against their schemas, in every notation of calls, with the real engine and at a
temperature at which the bundled model writes whatever it may."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Process
from lmlite.events import Finished, ToolCallArguments, ToolCallStart
from lmlite.messages import text_message
from lmlite.package import bundled_model
from lmlite.request import UNLIMITED, Chat, Generate, Sampling

LISTED = "{%- if tools %}{{- 'Tools: ' + (tools | tojson) + '\n' }}{%- endif %}"
BODY = LISTED + (
    "{%- for message in messages %}{{- message.role + ': ' + (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}CALL{%- endfor %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'BEGIN' }}{%- endif %}"
)
SHOWN = "{{- call.function.name + (call.function.arguments | tojson) }}"
TAGGED = (
    "{{- '\n<tool_call>\n<function=' + call.function.name + '>\n' }}{%- for name, value in call.function.arguments | items %}"
    "{{- '<parameter=' + name + '>\n' }}{{- value if value is string else value | tojson }}{{- '\n</parameter>\n' }}"
    "{%- endfor %}"
    "{{- '</function>\n</tool_call>' }}"
)
HERMES = (
    '{{- \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' + (call.function.arguments | tojson)'
    " + '}\n</tool_call>' }}"
)
WITH_ID = (
    '{{- \'[CALL]{"name": "\' + call.function.name + \'", "arguments": \' + (call.function.arguments | tojson)'
    """ + ', "id": "' + call.id + '"}[/CALL]' }}"""
)


def template(begin: str, marks: str = "", call: str = SHOWN) -> str:
    """One that is read as the family's whose `marks` it mentions."""
    return "{# " + marks + " #}" + BODY.replace("CALL", call).replace("BEGIN", begin)


TEMPLATES = {
    "json": template("<|im_start|>assistant\n", call=HERMES),
    "qwen3 coder": template("<|im_start|>assistant\n", call=TAGGED),
    "gemma 4": template("<|turn>model\n<|channel>thought\n<channel|>", "'<|tool_call>call:' {#- OpenAI Chat Completions:"),
    "deepseek": template("<｜Assistant｜><think></think>", "dsml_token DSML tool_calls"),
    "minicpm5": template(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n", 'Tool usage guidelines: <function name=" <param name="'
    ),
    "ling 3": template("<role>ASSISTANT</role>\n<think></think>", "<role>ASSISTANT</role> <arg_key>"),
    "minimax m3": template("]~b]ai\n", "]<]minimax[>[ <tool_call> <invoke name="),
    "python": template("<|im_start|>assistant\n", "List of tools: ["),
    "gpt-oss": template("<|start|>assistant", "<|channel|> <|message|>"),
    "kimi k3": template('<|open|>message role="assistant"<|sep|><|open|>think<|sep|>', "<|open|> <|close|> <|end_of_msg|>"),
    "ids": template("[assistant]", call=WITH_ID).replace("{{- '\n' }}", "{{- '[/]' }}"),
    "none": template("<|im_start|>assistant\n").replace(LISTED, ""),
}


def tool(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False, **more}


WORD = {"type": "string", "minLength": 1, "maxLength": 6}
SCHEMAS: dict[str, dict[str, Any]] = {
    "kinds": tool(
        {
            "unit": {"enum": ["celsius", "kelvin"]},
            "n": {"type": "integer", "minimum": 1, "maximum": 12},
            "ok": {"type": "boolean"},
        },
        "unit",
        "n",
    ),
    "texts": tool(
        {"word": WORD, "day": {"type": "string", "pattern": r"^\d{4}-\d\d$"}, "kind": {"const": "fixed"}},
        "day",
        "kind",
        "word",
    ),
    "odd texts": tool({"a": {"enum": ["[/] <|end|>", 'q"uote\\', "line\nbreak", "<tag> & [mark]", "été", "5", "{}"]}}, "a"),
    "several kinds": tool(
        {
            "v": {"anyOf": [{"type": "integer", "minimum": 10, "maximum": 99}, {"enum": ["auto", "12x"]}]},
            "w": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "x": {"type": ["string", "null"], "maxLength": 3},
        },
        "v",
        "w",
        "x",
    ),
    "containers": tool(
        {
            "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 3},
            "at": tool({"x": {"type": "integer", "minimum": 0, "maximum": 9}, "name": WORD}, "x"),
        },
        "tags",
        "at",
    ),
    "ways": tool(
        {"a": {"enum": [1, 2]}, "b": {"enum": ["x", "y"]}, "c": {"type": "boolean"}},
        oneOf=[{"required": ["a"]}, {"required": ["b"]}],
        dependentRequired={"c": ["b"]},
        maxProperties=2,
    ),
    "nothing": tool({}),
}
PARAMETERS = {"_".join(name.split()): schema for name, schema in SCHEMAS.items()}
N_SEEDS = 6


async def call(engine: Engine, name: str, seed: int) -> tuple[str, str, Finished]:
    function = {"name": name, "description": "", "parameters": PARAMETERS[name]}
    tools = ({"type": "function", "function": function},)
    prompt = Chat((text_message("user", "Go on."),), tools=tools, tool_choice="required", parallel_tool_calls=False)
    sampling = Sampling(temperature=2.0, top_k=0, seed=seed)
    called, arguments = "", ""
    budget = UNLIMITED if seed == 0 and name == "nothing" else 0  # thoughts of a thousand tokens
    async for event in engine.run(Generate(prompt, reasoning_budget=budget, sampling=sampling)):
        match event:
            case ToolCallStart(0, called):
                pass
            case ToolCallArguments(0, text):
                arguments += text
            case Finished():
                return called, arguments, event
    raise AssertionError("no end")


@pytest.mark.parametrize("notation", TEMPLATES)
def test_arguments_validate_in_every_notation(notation: str) -> None:
    async def test() -> None:
        engine = await Engine.open(Process(), "tiny")
        try:
            await engine.load(LoadSpec((Path(bundled_model()),), LoadSettings(chat_template=TEMPLATES[notation])))
            for name, schema in PARAMETERS.items():
                for called, arguments, end in await asyncio.gather(*(call(engine, name, seed) for seed in range(N_SEEDS))):
                    assert (called, end.reason, end.loosened) == (name, "toolCalls", ()), arguments
                    jsonschema.Draft202012Validator(schema).validate(json.loads(arguments))
        finally:
            await engine.close()

    asyncio.run(test())
