"""The tools of a Responses request: what the model is told of them, and how an answer names the ones that it calls.

`custom` tools, which take free text, are offered as functions of one string; those of a `namespace` under a name that has it
in it. Tools that only a cloud can run are left out, and named: agents send them always, and refusing them would help nobody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from ...errors import UnsupportedField
from ...records import dataclass
from ...tool_servers import ToolServer
from ..read.fields import Fields, as_object, clip
from ..read.tools import Offer, Tool, offer, only, parse_choice, parse_name, parse_tool, spell_tools
from ..spell import dumps
from .responses_servers import distinct, parse_server

INPUT: Final = "input"
"""The argument of a function that stands for a custom tool."""
INPUT_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
    "additionalProperties": False,
}
SEPARATOR: Final = "__"
BEGINNING_MAX: Final = 256
"""Characters in which a text that is an argument has begun."""

_INPUT_BEGINS: Final = re.compile(rf'\s*{{\s*"{INPUT}"\s*:\s*"')
_WHOLE_CHARACTERS: Final = re.compile(r'[^"\\]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\]*)*')
_HALF_CHARACTER: Final = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")


@dataclass(slots=True, frozen=True)
class Told:
    """How a client knows a tool."""

    name: str
    namespace: str = ""
    custom: bool = False


@dataclass(slots=True, frozen=True)
class ToolSet:
    """`told` are the tools by the names that the model knows them by; `ignored` those that are not offered, `echo` all as
    an answer repeats them."""

    offer: Offer
    told: Mapping[str, Told]
    ignored: tuple[str, ...]
    echo: tuple[Mapping[str, Any], ...]
    servers: tuple[ToolServer, ...] = ()


def parse_tool_set(fields: Fields) -> ToolSet:
    given = fields.array("tools") or ()
    told: dict[str, Told] = {}
    ignored: dict[str, None] = {}
    servers: list[ToolServer] = []
    tools = list(_read(given, "tools", "", told, ignored, servers))
    spelled = spell_tools(tools, "tools")
    parallel = fields.optional_boolean("parallel_tool_calls")
    choice = fields.get("tool_choice")
    if isinstance(choice, Mapping):
        chosen = _parse_chosen(Fields(choice, "tool_choice"), spelled, told, parallel)
    elif servers:
        chosen = Offer(spelled, parse_choice(choice), parallel)
    else:
        chosen = offer(spelled, parse_choice(choice), parallel)
    return ToolSet(chosen, told, tuple(ignored), tuple(_echo(tool) for tool in given), distinct(servers))


def join(namespace: str, name: str) -> str:
    if not namespace:
        return name
    return namespace + name if namespace.endswith(SEPARATOR) else namespace + SEPARATOR + name


def _read(
    given: Sequence[Any],
    where: str,
    namespace: str,
    told: dict[str, Told],
    ignored: dict[str, None],
    servers: list[ToolServer],
) -> Iterator[Tool]:
    for i, value in enumerate(given):
        fields = Fields(as_object(value, f"{where}[{i}]"), f"{where}[{i}]")
        kind = fields.require_string("type")
        if kind == "function":
            nested = isinstance(fields.get("function"), Mapping)  # as chat requests have it
            tool = parse_tool(fields.require_object("function") if nested else fields)
        elif kind == "custom":
            tool = _parse_custom(fields)
        elif kind == "namespace" and not namespace:
            yield from _read(fields.array("tools") or (), fields.where("tools"), parse_name(fields), told, ignored, servers)
            continue
        elif kind == "mcp" and not namespace:
            servers.append(parse_server(fields))
            continue
        else:
            ignored[clip(kind)] = None
            continue
        name = join(namespace, tool.name)
        told.setdefault(name, Told(tool.name, namespace, kind == "custom"))
        yield Tool(name, tool.description, tool.parameters, tool.where)


def _parse_custom(fields: Fields) -> Tool:
    """The form that its text is to have is told the model in words: only a client can check it."""
    description = fields.string("description") or ""
    form = fields.object("format")
    if form is not None and form.string("type") == "grammar":
        syntax, definition = form.string("syntax") or "lark", form.string("definition") or ""
        description += f"\n\nThe text of '{INPUT}' must match this {syntax} grammar:\n{definition}"
    return Tool(parse_name(fields), description.strip(), INPUT_SCHEMA, fields.where("name"))


# ---- tool_choice -----------------------------------------------------------------------------------------------------


def _parse_chosen(
    choice: Fields, tools: tuple[Mapping[str, Any], ...], told: Mapping[str, Told], parallel: bool | None
) -> Offer:
    kind = choice.require_string("type")
    if kind in ("function", "custom"):
        return offer(tools, names=(_parse_named(choice, told),))
    if kind != "allowed_tools":
        raise UnsupportedField(choice.where("type"), f"of '{clip(kind)}' is not supported")
    names = []
    for i, value in enumerate(choice.array("tools") or ()):
        where = f"{choice.where('tools')}[{i}]"
        allowed = Fields(as_object(value, where), where)
        if allowed.string("type") in ("function", "custom"):
            names.append(_parse_named(allowed, told))
    mode = parse_choice(choice.get("mode"), choice.where("mode"))
    return offer(only(tools, names), mode, parallel)


def _parse_named(choice: Fields, told: Mapping[str, Told]) -> str:
    """By the name that the model knows; one of a namespace that is not said is found if no other has its name."""
    nested = choice.get("function")
    fields = choice.require_object("function") if isinstance(nested, Mapping) else choice
    name = join(fields.name("namespace") or "", fields.require_string("name"))
    if name not in told:
        found = [known for known, tool in told.items() if tool.name == name]
        if len(found) == 1:
            return found[0]
    return name


def _echo(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Functions with all the keys that clients demand of them; of a server not what is secret."""
    if tool.get("type") == "mcp":
        return {name: None if name in ("headers", "authorization") else value for name, value in tool.items()}
    if tool.get("type") != "function" or isinstance(tool.get("function"), Mapping):
        return tool
    return {"description": None, "parameters": None, **tool, "strict": tool.get("strict") in (True, "true")}


# ---- free text as an argument ----------------------------------------------------------------------------------------


def spell_input(text: str) -> str:
    """The arguments that say `text`."""
    return dumps({INPUT: text})


class InputText:
    """The free text within the arguments of a custom tool's call, as they come. Arguments that have none are their own
    text, which `rest` gives at the end."""

    __slots__ = ("_pieces", "_raw", "_state")

    def __init__(self) -> None:
        self._raw = ""  # not read yet
        self._pieces: list[str] = []  # of the text; of the arguments, where they are that
        self._state: Literal["before", "within", "after", "none"] = "before"

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def hear(self, arguments: str) -> str:
        """What of the text `arguments` brought."""
        if self._state == "none":
            self._pieces.append(arguments)
            return ""
        if self._state == "after":
            return ""
        self._raw += arguments
        if self._state == "before":
            begins = _INPUT_BEGINS.match(self._raw)
            if begins is None:
                if len(self._raw) > BEGINNING_MAX:
                    self._tell_none()
                return ""
            self._state, self._raw = "within", self._raw[begins.end() :]
        return self._read()

    def _read(self) -> str:
        """The whole characters that there are."""
        whole = _WHOLE_CHARACTERS.match(self._raw)
        end = whole.end() if whole else 0
        if self._raw[end : end + 1] == '"':
            self._state = "after"
        elif half := _HALF_CHARACTER.search(self._raw, 0, end):
            end = half.start()
        text: str = json.loads(f'"{self._raw[:end]}"', strict=False)
        self._raw = self._raw[end:]
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        self._pieces.append(text)
        return text

    def _tell_none(self) -> None:
        self._state = "none"
        self._pieces.append(self._raw)
        self._raw = ""

    def rest(self) -> str:
        """What is still to be told once no more comes."""
        if self._state == "before":
            self._tell_none()
        if self._state != "none":
            return ""
        self._state = "after"
        return self.text
