"""`POST /v1/chat/completions`: the request becomes one run per choice of a rendered conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import InvalidRequest, InvalidType
from ...events import Finished
from ...messages import ToolCallPart
from ...request import TEMPLATE_RESERVED, Chat
from ..answer import Answer, count_drafts, count_usage, spell_calls
from ..dialect import Call, Origin, Reply
from ..read import unserved
from ..read.effort import EFFORTS, SWITCHED_EFFORTS, set_effort
from ..read.fields import Fields
from ..read.messages import parse_messages
from ..read.sampling import TOP_LOGPROBS_MAX, parse_reasoning_budget
from ..read.tools import parse_offer
from ..read.unserved import refuse
from ..served import Served
from . import error as openai_error
from .completion import ChatCompletion, Choices, Projection
from .shared import parse_shared

error = openai_error.error

VERBOSITIES = ("low", "medium", "high")


def parse_chat(body: dict[str, Any]) -> Call:
    return parse_as(body, OPENAI)


def parse_as(body: dict[str, Any], projection: Projection) -> Call:
    fields = Fields(body)
    offer = parse_offer(fields)
    prompt = Chat(
        parse_messages(fields),
        parse_template_kwargs(fields),
        tools=offer.tools,
        tool_choice=offer.choice,
        parallel_tool_calls=offer.parallel,
    )
    if (continues := _parse_continues(fields, prompt)) is not None:
        prompt = replace(prompt, continues=continues)
    refuse(fields, unserved.CHAT)
    shared = parse_shared(fields, prompt)
    grammar = shared.generate.grammar
    if offer.callable and grammar is not None and grammar.kind != "json_schema":
        raise InvalidRequest("'grammar' and 'tools' exclude each other; 'response_format' goes with them", "grammar")
    top_logprobs = _parse_logprobs(fields)
    turn = shared.turn("chat", shared.runs((prompt,), top_logprobs=top_logprobs))
    return Call(turn, shared.stream, make_reply(projection, shared.choices(shared.n, top_logprobs is not None)))


def make_reply(projection: Projection, choices: Choices) -> Callable[[Origin], Reply]:
    def reply(origin: Origin) -> Reply:
        return ChatCompletion(origin, projection, choices)

    return reply


def _parse_continues(fields: Fields, prompt: Chat) -> bool | None:
    """Other servers' two words for whether an answer at the end of the conversation is gone on with."""
    name, other = "continue_final_message", "add_generation_prompt"
    goes_on, begins = fields.optional_boolean(name), fields.optional_boolean(other)
    if goes_on is None and begins is None:
        return None
    if goes_on == begins:
        raise InvalidRequest(f"'{name}' and '{other}' exclude each other: an answer goes on or begins", name)
    continues = not begins if goes_on is None else goes_on
    last = prompt.messages[-1]
    if continues and (last.role != "assistant" or any(isinstance(part, ToolCallPart) for part in last.parts)):
        asked = name if goes_on else other
        raise InvalidRequest(f"'{asked}' of {str(bool(goes_on)).lower()} needs an answer without calls at the end", asked)
    return continues


def parse_template_kwargs(fields: Fields) -> Mapping[str, Any]:
    """What the client sets of the template's variables itself stands before what an effort says of them."""
    given = fields.object("chat_template_kwargs") or Fields({})
    for name in given.values:
        if name in TEMPLATE_RESERVED:
            raise InvalidRequest(f"'{given.where(name)}' is not for requests to set", given.where(name))
    if not isinstance(given.values.get("enable_thinking", True), bool):
        raise InvalidType(given.where("enable_thinking"), "true or false")
    verbosity = fields.choice("verbosity", VERBOSITIES)
    said = {} if verbosity is None else {"verbosity": verbosity}
    no_reasoning = {"enable_thinking": False} if parse_reasoning_budget(fields) == 0 else {}
    return {**said, **no_reasoning, **_parse_effort(fields), **given.values}


def _parse_effort(fields: Fields) -> Mapping[str, Any]:
    """`reasoning_effort` is OpenAI's, and so is `reasoning` with an effort; LM Studio's own `reasoning` is a word. Others
    switch it on and off: `reasoning` with `enabled`, `enable_thinking`, `thinking` with a type."""
    effort = fields.choice("reasoning_effort", EFFORTS)
    switch = fields.boolean("enable_thinking") if fields.get("enable_thinking") is not None else None
    if (thinking := fields.object("thinking")) is not None:
        kind = thinking.choice("type", ("enabled", "disabled", "adaptive"))
        switch = kind == "enabled" if kind in ("enabled", "disabled") else switch
    if isinstance(fields.get("reasoning"), dict):
        reasoning = fields.object("reasoning") or fields
        refuse(reasoning, unserved.REASONING)
        effort = effort or reasoning.choice("effort", EFFORTS)
        switch = reasoning.boolean("enabled") if reasoning.get("enabled") is not None else switch
    else:
        effort = effort or fields.choice("reasoning", SWITCHED_EFFORTS)
    if effort is not None:
        return set_effort(effort)
    return {} if switch is None else set_effort("on" if switch else "off")


def _parse_logprobs(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)
    if fields.boolean("logprobs"):
        return top or 0
    if top:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true", "top_logprobs")
    return None


# ---- what OpenAI's payloads have and v0's have not -----------------------------------------------------------------


def detail_usage(finished: Sequence[Finished], n: int) -> dict[str, Any]:
    cached_tokens = sum(choice.stats.cached_tokens for choice in finished[::n])
    reasoning_tokens = sum(choice.stats.reasoning_tokens for choice in finished)
    return {
        **count_usage(finished, n),
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _spell_message(served: Served, choice: int, answer: Answer) -> dict[str, Any]:
    """What is empty is left out, as OpenAI does it: clients that keep a message would send it back, and others refuse it."""
    message: dict[str, Any] = {}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = spell_calls(served.suffix, choice, answer.tool_calls)
    return message


def _close(served: Served, finished: Sequence[Finished], choices: Choices) -> dict[str, Any]:
    return {
        "stats": count_drafts(finished, choices.draft_model) if choices.drafted else {},
        "system_fingerprint": served.model,
    }


OPENAI = Projection(detail_usage, _close, _spell_message)
