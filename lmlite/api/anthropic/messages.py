"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's requests.

What Claude Code and others send of their own accord and no answer depends on is ignored (`metadata`, `cache_control`,
`context_management`, `service_tier`, `container`, ...). Tools that only a cloud can run are left out and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ...errors import InvalidRequest
from ...request import Chat, Grammar, ToolChoice
from ..dialect import Call, CountCall, Origin, Reply
from ..read import unserved
from ..read.constraint import parse_format
from ..read.effort import EFFORTS
from ..read.fields import Fields, as_object
from ..read.sampling import Options, parse_options
from ..read.tools import Offer, Tool, offer, parse_name, parse_tool, spell_tools
from ..read.unserved import refuse
from ..spell import dumps
from . import client_tools
from . import error as anthropic_error
from .blocks import Reading, parse_conversation
from .reply import MessageReply

error = anthropic_error.error

CHOICES: Final[Mapping[str, ToolChoice]] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def parse_messages(body: dict[str, Any]) -> Call:
    fields = Fields(body)
    options, reading = _parse(fields)
    stream = fields.boolean("stream")
    run = replace(options.generate, progress=stream)  # by which a stream can begin with what the prompt takes

    def reply(origin: Origin) -> Reply:
        return MessageReply(origin, options.model)

    return Call(options.turn("chat", (run,)), stream, reply, tuple(reading.ignored))


def parse_count(body: dict[str, Any]) -> CountCall:
    fields = Fields(body)
    options, _ = _parse(fields)
    manages = fields.object("context_management") is not None

    def reply(n_tokens: int) -> str:
        original = {"context_management": {"original_input_tokens": n_tokens}} if manages else {}
        return dumps({"input_tokens": n_tokens, **original})

    return CountCall(options.turn("chat", (options.generate,)), reply)


def _parse(fields: Fields) -> tuple[Options, Reading]:
    """All but whether it streams."""
    reading = Reading()
    refuse(fields, unserved.MESSAGES)
    tools = _parse_offer(fields, reading)
    prompt = Chat(
        parse_conversation(fields, reading),
        tools=tools.tools,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.parallel,
    )
    options = parse_options(fields, prompt, max_tokens=("max_tokens",), stop="stop_sequences")
    output = fields.object("output_config") or Fields({}, "output_config")
    variables = _parse_thinking(fields, output, options.generate.reasoning_budget)
    prompt = replace(prompt, template_kwargs=variables)
    generate = replace(options.generate, prompt=prompt, grammar=_parse_form(fields, output))
    return replace(options, generate=generate), reading


def _parse_offer(fields: Fields, reading: Reading) -> Offer:
    tools = []
    for i, value in enumerate(fields.array("tools") or ()):
        tool = Fields(as_object(value, f"tools[{i}]"), f"tools[{i}]")
        kind = tool.string("type") or "custom"
        if kind == "custom":
            tools.append(parse_tool(tool, "input_schema"))
        elif (known := client_tools.find(kind, tool.string("name") or "")) is not None:
            tools.append(Tool(parse_name(tool), *known, tool.where("name")))
        else:
            reading.ignore(kind)
    spelled = spell_tools(tools, "tools")
    choice = fields.object("tool_choice")
    if choice is None:
        return offer(spelled)
    choice.require("type")
    kind = choice.choice("type", tuple(CHOICES)) or "auto"
    parallel = False if choice.boolean("disable_parallel_tool_use") else None
    if kind == "tool":
        return offer(spelled, parallel=parallel, names=(choice.require_string("name"),))
    if kind == "any" and not spelled:
        raise InvalidRequest("'tool_choice' of 'any' needs 'tools' that are not a cloud's own", "tool_choice")
    return offer(spelled, CHOICES[kind], parallel)


def _parse_thinking(fields: Fields, output: Fields, budget: int) -> Mapping[str, Any]:
    """The template's variables. Where nothing is said of thinking, models do as they do: those that think say so."""
    variables: dict[str, Any] = {}
    thinking = fields.object("thinking")
    kind = thinking.string("type") if thinking is not None else None
    if kind == "disabled" or budget == 0:
        variables["enable_thinking"] = False
    elif kind == "enabled":
        variables["enable_thinking"] = True
    effort = output.choice("effort", EFFORTS[1:])
    return variables if effort is None else {**variables, "reasoning_effort": effort}


def _parse_form(fields: Fields, output: Fields) -> Grammar | None:
    form = output.object("format") or fields.object("output_format")
    return None if form is None else parse_format(form)
