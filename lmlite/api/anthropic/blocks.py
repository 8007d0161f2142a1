"""A conversation in Anthropic's messages: roles, and blocks of text, pictures, documents, thoughts, tool calls and their
results.

What clients send of earlier turns is taken as it is, thoughts with any signature included. What stands in a user's message
behind results of tools is a message of its own, since templates know a result as one. What a cloud's own tools did is left
out and told; what would change the answer and is not served is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Final, NoReturn

from ...errors import InvalidRequest, InvalidType, UnsupportedField
from ...messages import Content, MediaPart, Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from ...records import dataclass
from ..read.fields import Fields, as_array, as_name, as_object, clip
from ..read.media import check_type, decode, parse_url
from ..read.messages import CALLS_MAX
from ..spell import dumps

ROLES: Final = ("user", "assistant", "system")

BILLING: Final = "x-anthropic-billing-header:"
"""Claude Code begins its system prompt with a line that is another in each request: a model has no use for it, and a prefix
that changes in its first tokens is in no cache."""

CLOUD_BLOCKS: Final = re.compile(r"server_tool_use|mcp_tool_use|[a-z_]+_tool_result|compaction|fallback")
"""Of turns that a cloud has answered: calls of its own tools and what these gave, which may be encrypted."""


@dataclass(slots=True)
class Reading:
    """What is known so far of a conversation: the tools that were called, by the ids of the calls, and what is left out."""

    called: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)

    def ignore(self, kind: str) -> None:
        self.ignored[clip(kind)] = None


def parse_conversation(fields: Fields, reading: Reading) -> tuple[Message, ...]:
    given = as_array(fields.require("messages"), "messages")
    if not given:
        raise InvalidRequest("'messages' must not be empty", "messages")
    conversation = _parse_system(fields)
    for i, value in enumerate(given):
        where = f"messages[{i}]"
        conversation += _parse_message(Fields(as_object(value, where), where), reading)
    return tuple(conversation)


def _parse_system(fields: Fields) -> list[Message]:
    texts = [TextPart(text) for text in _parse_texts(fields.get("system"), fields.where("system"))]
    if texts and texts[0].text.startswith(BILLING):
        _, _, rest = texts[0].text.partition("\n")
        texts[:1] = [TextPart(rest)] if rest else []
    return [Message("system", tuple(texts))] if texts else []


def _parse_message(message: Fields, reading: Reading) -> list[Message]:
    role = message.require_string("role")
    where = message.where("content")
    content = message.get("content")
    match role:
        case "system":
            return [Message("system", tuple(TextPart(text) for text in _parse_texts(content, where)))]
        case "user":
            return _parse_user(content, where, reading)
        case "assistant":
            return [_parse_assistant(content, where, reading)]
    raise InvalidRequest(f"'{message.where('role')}' must be one of {', '.join(ROLES)}", message.where("role"))


def _parse_texts(content: object, where: str) -> list[str]:
    """A string, or blocks of text; what is empty says nothing."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content else []
    texts = []
    for block in _blocks(content, where):
        if (kind := block.require_string("type")) != "text":
            _refuse(block, kind)
        texts.append(block.require_string("text"))
    return [text for text in texts if text]


def _blocks(content: object, where: str) -> list[Fields]:
    if not isinstance(content, list):
        raise InvalidType(where, "a string or an array of blocks")
    return [Fields(as_object(value, f"{where}[{i}]"), f"{where}[{i}]") for i, value in enumerate(content)]


def _refuse(block: Fields, kind: str) -> NoReturn:
    raise UnsupportedField(block.where("type"), f"of '{clip(kind)}' is not supported")


# ---- the user's blocks -----------------------------------------------------------------------------------------------


def _parse_user(content: object, where: str, reading: Reading) -> list[Message]:
    """Results come first, whatever their place: templates look for them right behind the calls."""
    if content is None or isinstance(content, str):
        return [Message("user", (TextPart(content),) if content else ())]
    results: list[Message] = []
    said: list[Content] = []
    for block in _blocks(content, where):
        kind = block.require_string("type")
        if kind == "tool_result":
            results.append(Message("tool", (_parse_result(block, reading),)))
        elif not _leaves_out(kind, reading):
            said += _parse_block(block, kind)
    return [*results, Message("user", tuple(said))] if said or not results else results


def _leaves_out(kind: str, reading: Reading) -> bool:
    if CLOUD_BLOCKS.fullmatch(kind) is None:
        return False
    reading.ignore(kind)
    return True


def _parse_block(block: Fields, kind: str) -> Sequence[Content]:
    """One block of a user's message or of a tool's result."""
    match kind:
        case "text":
            text = block.require_string("text")
            return [TextPart(text)] if text else []
        case "document":
            return _parse_document(block)
        case "search_result":
            texts = _parse_texts(block.require("content"), block.where("content"))
            return _headed(block, ("title", "source"), texts)
        case "tool_reference":
            return [TextPart(block.require_string("tool_name"))]
        case "image":
            return [_parse_image(block)]
    _refuse(block, kind)


def _parse_image(block: Fields) -> MediaPart:
    source = block.require_object("source")
    match kind := source.require_string("type"):
        case "base64":
            check_type((source.string("media_type") or "").lower(), source.where("media_type"), "image")
            return MediaPart("image", decode(source.require_string("data"), source.where("data")), source.where("data"))
        case "url":
            return parse_url(source.require("url"), source.where("url"), "image")
    raise UnsupportedField(source.where("type"), f"of '{clip(kind)}' is not supported: pictures are taken as base64")


def _parse_document(block: Fields) -> list[TextPart]:
    source = block.require_object("source")
    kind = source.require_string("type")
    if kind == "text":
        texts = [source.require_string("data")]
    elif kind == "content":
        texts = _parse_texts(source.require("content"), source.where("content"))
    else:  # a PDF, or what lies elsewhere
        raise UnsupportedField(source.where("type"), f"of '{clip(kind)}' is not supported: documents are taken as text")
    return _headed(block, ("title", "context"), texts)


def _headed(block: Fields, names: tuple[str, ...], texts: list[str]) -> list[TextPart]:
    """What is said of a document stands before it."""
    return [TextPart(text) for text in (*map(block.string, names), *texts) if text]


def _parse_result(block: Fields, reading: Reading) -> ToolResultPart:
    id = block.name("tool_use_id") or ""
    content = block.get("content")
    where = block.where("content")
    parts: list[Content] = []
    if isinstance(content, str):
        parts = [TextPart(content)] if content else []
    elif content is not None:
        for inner in _blocks(content, where):
            parts += _parse_block(inner, inner.require_string("type"))
    if block.boolean("is_error"):
        parts = _as_error(parts)
    return ToolResultPart(id, reading.called.get(id, ""), tuple(parts))


def _as_error(parts: list[Content]) -> list[Content]:
    """Templates know no failed results: the model reads of it in the text."""
    first = parts[0] if parts else None
    if not isinstance(first, TextPart):
        return [TextPart("Error"), *parts]
    if "error" in first.text[:80].lower():
        return parts
    return [TextPart(f"Error: {first.text}"), *parts[1:]]


# ---- the assistant's blocks ------------------------------------------------------------------------------------------


def _parse_assistant(content: object, where: str, reading: Reading) -> Message:
    if content is None or isinstance(content, str):
        return Message("assistant", (TextPart(content),) if content else ())
    parts: list[Part] = []
    n_calls = 0
    for block in _blocks(content, where):
        kind = block.require_string("type")
        match kind:
            case "text":
                text = block.require_string("text")
                parts += [TextPart(text)] if text else []
            case "thinking":
                thought = block.require_string("thinking")
                parts += [ReasoningPart(thought)] if thought else []
            case "redacted_thinking":
                pass  # nobody else can read it
            case "tool_use":
                n_calls += 1
                parts.append(_parse_call(block, reading))
            case _ if not _leaves_out(kind, reading):
                _refuse(block, kind)
    if n_calls > CALLS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {CALLS_MAX} calls", where)
    return Message("assistant", tuple(parts))


def _parse_call(block: Fields, reading: Reading) -> ToolCallPart:
    where = block.where("name")
    name = as_name(block.require("name"), where)
    if not name:
        raise InvalidRequest(f"'{where}' must not be empty", where)
    id = block.name("id") or ""
    reading.called[id] = name
    given = block.get("input")
    if given is None:
        return ToolCallPart(id, name, "{}")
    if isinstance(given, str):  # of a client that could not read what the model wrote
        return ToolCallPart(id, name, given)
    if not isinstance(given, Mapping):
        raise InvalidType(block.where("input"), "an object")
    return ToolCallPart(id, name, dumps(given))
