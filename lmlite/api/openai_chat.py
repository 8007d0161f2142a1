"""`POST /v1/chat/completions`: the request becomes one run per choice of a rendered conversation.

Tool calls and parts other than text are refused by name until they are served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InvalidRequest, InvalidType, UnsupportedField
from ..events import Finished
from ..request import Chat
from . import openai_error
from .answer import count_usage
from .call import Call, Reply
from .completion import ChatCompletion, Choices, Projection
from .fields import Fields, as_array, as_object, as_string, clip
from .generation import TOP_LOGPROBS_MAX, parse_shared
from .served import Served

error = openai_error.error

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""What a client may write, and what templates know."""

TEMPLATE_RESERVED = frozenset(
    (
        "add_generation_prompt",
        "bos_token",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "eos_token",
        "functions",
        "messages",
        "raise_exception",
        "tokenize",
        "tools",
    )
)
"""Variables of a template that are the renderer's to set: through them a request could speak past its own messages."""


def parse_chat(body: dict[str, Any]) -> Call:
    return parse_as(body, OPENAI)


def parse_as(body: dict[str, Any], projection: Projection) -> Call:
    fields = Fields(body)
    prompt = Chat(parse_messages(fields), _parse_template_kwargs(fields))
    shared = parse_shared(fields, prompt)
    top_logprobs = _parse_logprobs(fields)
    choices = Choices(shared.n, shared.n, shared.include_usage)
    return Call(
        model=shared.model,
        runs=shared.runs((prompt,), top_logprobs=top_logprobs),
        stream=shared.stream,
        ttl_s=shared.ttl_s,
        reply=make_reply(projection, choices),
        needs="chat",
    )


def make_reply(projection: Projection, choices: Choices) -> Callable[[Served], Reply]:
    def reply(served: Served) -> Reply:
        return ChatCompletion(served, projection, choices)

    return reply


def parse_messages(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    messages = as_array(fields.require("messages"), "messages")
    if not messages:
        raise InvalidRequest("'messages' must not be empty", "messages")
    return tuple(_parse_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _parse_message(value: object, where: str) -> Mapping[str, Any]:
    message = Fields(as_object(value, where), where)
    role = ROLES.get(as_string(message.require("role"), message.where("role")))
    if role is None:
        raise InvalidRequest(f"'{where}.role' must be one of {', '.join(ROLES)}", f"{where}.role")
    message.name("name")
    for field in ("tool_calls", "function_call", "audio"):
        if message.get(field):
            raise UnsupportedField(message.where(field))
    if role == "tool":
        raise InvalidRequest(f"'{where}' answers no tool call before it", f"{where}.role")
    return {"role": role, "content": _parse_content(message.require("content"), message.where("content"))}


def _parse_content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidType(where, "a string or an array of text parts")
    if not content:
        raise InvalidRequest(f"'{where}' must not be empty", where)
    return "\n".join(_parse_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _parse_part(value: object, where: str) -> str:
    part = Fields(as_object(value, where), where)
    kind = as_string(part.require("type"), part.where("type"))
    if kind != "text":
        raise UnsupportedField(part.where("type"), f"of '{clip(kind)}' is not supported")
    return as_string(part.require("text"), part.where("text"))


def _parse_template_kwargs(fields: Fields) -> Mapping[str, Any]:
    given = fields.object("chat_template_kwargs") or Fields({})
    for name in given.values:
        if name in TEMPLATE_RESERVED:
            raise InvalidRequest(f"'{given.where(name)}' is not for requests to set", given.where(name))
    variables = dict(given.values)
    effort = fields.string("reasoning_effort")
    if effort == "none":
        variables.setdefault("enable_thinking", False)
    elif effort is not None:
        raise UnsupportedField("reasoning_effort", f"of '{clip(effort)}' is not supported, only 'none'")
    return variables


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
    return {
        **count_usage(finished, n),
        "completion_tokens_details": {"reasoning_tokens": 0},
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _close(served: Served, finished: Sequence[Finished]) -> dict[str, Any]:
    return {"stats": {}, "system_fingerprint": served.model}


OPENAI = Projection(detail_usage, _close, message_extras={"reasoning_content": "", "tool_calls": []})
