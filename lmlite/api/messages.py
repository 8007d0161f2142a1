"""A conversation in OpenAI's messages: roles, text parts, tool calls and what answered them, reasoning of earlier turns.

What comes out has the shape of `request.Chat`: `content` always is a string, tool calls are whole, each tool's message
follows a call that it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidJson, InvalidRequest, InvalidType, MissingField, UnsupportedField
from .fields import Fields, as_array, as_name, as_object, clip
from .json_body import parse_body

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""What a client may write, and what templates know."""

CALLS_MAX = 512
"""Tool calls of one message."""


def parse_messages(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    messages = as_array(fields.require("messages"), "messages")
    if not messages:
        raise InvalidRequest("'messages' must not be empty", "messages")
    called: dict[str, str] = {}
    return tuple(_parse_message(message, f"messages[{i}]", called) for i, message in enumerate(messages))


def _parse_message(value: object, where: str, called: dict[str, str]) -> Mapping[str, Any]:
    """`called` are the tool calls before this message, by their ids: the names of the tools."""
    message = Fields(as_object(value, where), where)
    role = ROLES.get(message.require_string("role"))
    if role is None:
        raise InvalidRequest(f"'{where}.role' must be one of {', '.join(ROLES)}", f"{where}.role")
    message.name("name")
    for field in ("function_call", "audio"):
        if message.get(field):
            raise UnsupportedField(message.where(field))
    if role == "assistant":
        return _parse_assistant(message, called)
    if message.get("tool_calls"):
        raise InvalidRequest(f"'{where}.tool_calls' is for the assistant only", f"{where}.tool_calls")
    content = parse_content(message.require("content"), message.where("content"))
    if role == "tool":
        return {"role": role, **_parse_answered(message, called), "content": content}
    return {"role": role, "content": content}


def _parse_assistant(message: Fields, called: dict[str, str]) -> Mapping[str, Any]:
    calls = _parse_calls(message.array("tool_calls") or (), message.where("tool_calls"))
    content = message.get("content")
    if content is None and not calls:
        raise MissingField(message.where("content"))
    spelled: dict[str, Any] = {"role": "assistant"}
    spelled["content"] = "" if content is None else parse_content(content, message.where("content"))
    if reasoning := message.string("reasoning_content"):
        spelled["reasoning_content"] = reasoning
    if calls:
        spelled["tool_calls"] = calls
        called.update((call["id"], call["function"]["name"]) for call in calls)
    return spelled


# ---- content ---------------------------------------------------------------------------------------------------------


def parse_content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidType(where, "a string or an array of text parts")
    if not content:
        raise InvalidRequest(f"'{where}' must not be empty", where)
    return "\n".join(_parse_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _parse_part(value: object, where: str) -> str:
    part = Fields(as_object(value, where), where)
    kind = part.require_string("type")
    if kind != "text":
        raise UnsupportedField(part.where("type"), f"of '{clip(kind)}' is not supported")
    return part.require_string("text")


# ---- tool calls and their answers ------------------------------------------------------------------------------------


def _parse_calls(given: Sequence[Any], where: str) -> list[dict[str, Any]]:
    if len(given) > CALLS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {CALLS_MAX} calls", where)
    calls = [_parse_call(Fields(as_object(value, f"{where}[{i}]"), f"{where}[{i}]")) for i, value in enumerate(given)]
    seen: set[str] = set()
    for i, call in enumerate(calls):
        if call["id"] in seen:
            raise InvalidRequest(f"'{where}[{i}].id' repeats an id of the same message", f"{where}[{i}].id")
        seen.add(call["id"])
    return calls


def _parse_call(call: Fields) -> dict[str, Any]:
    kind = call.string("type") or "function"
    if kind != "function":
        raise UnsupportedField(call.where("type"), f"of '{clip(kind)}' is not supported")
    id = _require_name(call, "id")
    function = call.require_object("function")
    name = _require_name(function, "name")  # whatever the model wrote then: no tool may go by it any more
    arguments = check_arguments(function.require_string("arguments"), function.where("arguments"))
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def check_arguments(text: str, where: str) -> str:
    """The text of a JSON object, as it is; some models write nothing where there are no arguments."""
    if not text.strip():
        return "{}"
    try:
        parse_body(text.encode())
    except (InvalidJson, UnicodeEncodeError):
        raise InvalidRequest(f"'{where}' must be the text of one JSON object", where) from None
    return text


def _parse_answered(message: Fields, called: Mapping[str, str]) -> dict[str, str]:
    """Templates tell the model by the name which tool's answer it reads, clients often leave it out."""
    id = _require_name(message, "tool_call_id")
    if id not in called:
        where = message.where("tool_call_id")
        raise InvalidRequest(f"'{where}' answers no tool call before it: '{clip(id)}'", where)
    return {"tool_call_id": id, "name": called[id]}


def _require_name(fields: Fields, name: str) -> str:
    given = as_name(fields.require(name), fields.where(name))
    if not given:
        raise InvalidRequest(f"'{fields.where(name)}' must not be empty", fields.where(name))
    return given
