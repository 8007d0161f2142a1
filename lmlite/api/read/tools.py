"""The tools that a request offers and which of them the model may call: `tools`, `tool_choice`, `parallel_tool_calls`.

What a tool's parameters say is not checked: tools are rarely their sender's own to change, so the engine leaves out of its
grammar what does not compile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidRequest, InvalidType, UnsupportedField
from ...request import ToolChoice
from .fields import Fields, as_object, clip

TOOLS_MAX = 512
"""OpenAI's own limit is 128; agents that join several tool servers send more, and each costs prompt tokens."""

TOOLS_CHARS_MAX = 512 * 1024
"""Characters of all schemas and descriptions: more than fits any context that a tool would leave room in."""

NAME_MAX = 128
"""Twice OpenAI's. Of which letters is the client's own affair: models are told names that they can write."""

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(slots=True, frozen=True)
class Offer:
    """`tools` are in the shape that `request.Chat` has them."""

    tools: tuple[Mapping[str, Any], ...] = ()
    choice: ToolChoice = "auto"
    parallel: bool | None = None  # None: as the model's template can write calls

    @property
    def callable(self) -> bool:
        return bool(self.tools) and self.choice != "none"


def parse_offer(fields: Fields) -> Offer:
    """A choice that names a function leaves only that one, and asks for one call of it."""
    parallel = fields.optional_boolean("parallel_tool_calls")
    tools = parse_tools(fields.array("tools") or (), "tools")
    choice = fields.get("tool_choice")
    if isinstance(choice, Mapping):
        return Offer(_only(tools, _parse_named(Fields(choice, "tool_choice"))), "required", False)
    word = _parse_choice(choice)
    if tools:
        return Offer(tools, word, parallel)
    if word == "required":
        raise InvalidRequest("'tool_choice' of 'required' needs 'tools'", "tool_choice")
    return Offer()


def _parse_choice(given: object) -> ToolChoice:
    match given:
        case None:
            return "auto"
        case "auto" | "none" | "required":
            return given
        case str():
            raise InvalidRequest("'tool_choice' must be 'auto', 'none', 'required' or name a function", "tool_choice")
        case _:
            raise InvalidType("tool_choice", "a string or an object")


def _parse_named(choice: Fields) -> str:
    require_function(choice)
    return choice.require_object("function").require_string("name")


def require_function(fields: Fields) -> None:
    kind = fields.require_string("type")
    if kind != "function":
        raise UnsupportedField(fields.where("type"), f"of '{clip(kind)}' is not supported")


def _only(tools: tuple[Mapping[str, Any], ...], name: str) -> tuple[Mapping[str, Any], ...]:
    found = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not found:
        raise InvalidRequest(f"'tool_choice' names a function that is not in 'tools': '{clip(name)}'", "tool_choice")
    return found


# ---- the tools themselves --------------------------------------------------------------------------------------------


def parse_tools(given: Sequence[Any], where: str) -> tuple[Mapping[str, Any], ...]:
    if len(given) > TOOLS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {TOOLS_MAX} tools", where)
    tools: dict[str, Mapping[str, Any]] = {}
    n_chars = 0
    for i, value in enumerate(given):
        tool = Fields(as_object(value, f"{where}[{i}]"), f"{where}[{i}]")
        require_function(tool)
        function = tool.require_object("function")
        name = parse_name(function)
        if name in tools:
            raise InvalidRequest(f"'{function.where('name')}' repeats '{name}'", function.where("name"))
        description = function.string("description") or ""
        parameters = _parse_parameters(function)
        n_chars += len(description) + len(json.dumps(parameters, ensure_ascii=False))
        tools[name] = spell_tool(name, description, parameters)
    if n_chars > TOOLS_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {TOOLS_CHARS_MAX} characters", where)
    return tuple(tools.values())


def parse_name(function: Fields) -> str:
    where = function.where("name")
    name = function.require_string("name")
    if not 0 < len(name) <= NAME_MAX:
        raise InvalidRequest(f"'{where}' must have 1 to {NAME_MAX} characters", where)
    return name


def spell_tool(name: str, description: str, parameters: Any) -> Mapping[str, Any]:
    """In the one shape that engines know, and without what a template would print besides."""
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    return {"type": "function", "function": {**function, "parameters": parameters}}


def _parse_parameters(function: Fields) -> Any:
    """The schema, whatever was sent for one."""
    _check_strict(function)
    given = function.get("parameters")
    return NO_PARAMETERS if given is None or given == {} else given


def _check_strict(function: Fields) -> None:
    """Arguments always obey the schema; some clients spell the wish for it as a string."""
    strict = function.get("strict")
    if not (strict is None or isinstance(strict, bool) or strict in ("true", "false")):
        raise InvalidType(function.where("strict"), "true or false")
