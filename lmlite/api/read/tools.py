"""The tools that a request offers and which of them the model may call: `tools`, `tool_choice`, `parallel_tool_calls`.

`parse_offer` reads OpenAI's chat requests; dialects that say it otherwise make their `Offer` of `Tool`s with `offer`. What
a tool's parameters say is not checked: tools are rarely their sender's own to change, so the engine leaves out of its grammar
what does not compile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import InvalidRequest, InvalidType, UnsupportedField
from ...records import dataclass
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
    tools = parse_tools(fields.array("tools") or (), "tools")
    parallel = fields.optional_boolean("parallel_tool_calls")
    choice = fields.get("tool_choice")
    if isinstance(choice, Mapping):
        return offer(tools, parallel=parallel, names=(_parse_named(Fields(choice, "tool_choice")),))
    return offer(tools, parse_choice(choice), parallel)


def offer(
    tools: tuple[Mapping[str, Any], ...],
    choice: ToolChoice = "auto",
    parallel: bool | None = None,
    names: Sequence[str] | None = None,
) -> Offer:
    """A choice of `names` leaves only those tools; that of a single one asks for a call of it, and for one only."""
    if names is not None:
        tools = only(tools, names)
        if len(names) == 1 and choice == "auto":
            return Offer(tools, "required", False)
    if tools:
        return Offer(tools, choice, parallel)
    if choice == "required":
        raise InvalidRequest("'tool_choice' of 'required' needs 'tools'", "tool_choice")
    return Offer()


def parse_choice(given: object, where: str = "tool_choice") -> ToolChoice:
    match given:
        case None:
            return "auto"
        case "auto" | "none" | "required":
            return given
        case str():
            raise InvalidRequest(f"'{where}' must be 'auto', 'none', 'required' or name a function", where)
        case _:
            raise InvalidType(where, "a string or an object")


def _parse_named(choice: Fields) -> str:
    require_function(choice)
    return choice.require_object("function").require_string("name")


def require_function(fields: Fields) -> None:
    kind = fields.require_string("type")
    if kind != "function":
        raise UnsupportedField(fields.where("type"), f"of '{clip(kind)}' is not supported")


def only(tools: tuple[Mapping[str, Any], ...], names: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
    found = {tool["function"]["name"] for tool in tools}
    for name in names:
        if name not in found:
            raise InvalidRequest(f"'tool_choice' names a function that is not in 'tools': '{clip(name)}'", "tool_choice")
    return tuple(tool for tool in tools if tool["function"]["name"] in names)


# ---- the tools themselves --------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Tool:
    """As a request declares it; `where` is the place of its name."""

    name: str
    description: str
    parameters: Any
    where: str


def parse_tools(given: Sequence[Any], where: str) -> tuple[Mapping[str, Any], ...]:
    tools = []
    for i, value in enumerate(given):
        tool = Fields(as_object(value, f"{where}[{i}]"), f"{where}[{i}]")
        require_function(tool)
        tools.append(parse_tool(tool.require_object("function")))
    return spell_tools(tools, where)


def parse_tool(function: Fields, parameters: str = "parameters") -> Tool:
    """`parameters` is the name of the schema's field."""
    _check_strict(function)
    return Tool(
        parse_name(function),
        function.string("description") or "",
        _fill(function.get(parameters)),
        function.where("name"),
    )


def spell_tools(tools: Iterable[Tool], where: str) -> tuple[Mapping[str, Any], ...]:
    """In the shape that `request.Chat` has them. No two may have one name, all together have bounds."""
    spelled: dict[str, Mapping[str, Any]] = {}
    n_chars = 0
    for tool in tools:
        if tool.name in spelled:
            raise InvalidRequest(f"'{tool.where}' repeats '{clip(tool.name)}'", tool.where)
        n_chars += len(tool.description) + len(json.dumps(tool.parameters, ensure_ascii=False))
        spelled[tool.name] = spell_tool(tool.name, tool.description, tool.parameters)
    if len(spelled) > TOOLS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {TOOLS_MAX} tools", where)
    if n_chars > TOOLS_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {TOOLS_CHARS_MAX} characters", where)
    return tuple(spelled.values())


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


def _fill(given: Any) -> Any:
    """The schema, whatever was sent for one."""
    return NO_PARAMETERS if given is None or given == {} else given


def _check_strict(function: Fields) -> None:
    """Arguments always obey the schema; some clients spell the wish for it as a string."""
    strict = function.get("strict")
    if not (strict is None or isinstance(strict, bool) or strict in ("true", "false")):
        raise InvalidType(function.where("strict"), "true or false")
