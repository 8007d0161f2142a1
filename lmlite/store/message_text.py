"""Messages as JSON text and back. Parts and roles of a later version are passed over; they are still there for that one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from ..messages import Message, Part, ReasoningPart, Role, TextPart, ToolCallPart, ToolResultPart


def dump(messages: Iterable[Message]) -> str:
    rows = [{"role": message.role, "parts": [to_json(part) for part in message.parts]} for message in messages]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def load(text: str) -> tuple[Message, ...]:
    """Raises ValueError for what is no such text."""
    try:
        return tuple(
            Message(row["role"], tuple(parts(row["parts"]))) for row in json.loads(text) if row["role"] in get_args(Role)
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no messages: {error!r}") from None


def to_json(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ReasoningPart(text):
            return {"type": "reasoning", "text": text}
        case ToolCallPart(id, name, arguments):
            return {"type": "tool_call", "id": id, "name": name, "arguments": arguments}
        case ToolResultPart(call_id, name, content):
            return {"type": "tool_result", "call_id": call_id, "name": name, "content": [to_json(item) for item in content]}


def parts(rows: Iterable[Mapping[str, Any]]) -> Iterator[Part]:
    for row in rows:
        match row.get("type"):
            case "text":
                yield TextPart(row["text"])
            case "reasoning":
                yield ReasoningPart(row["text"])
            case "tool_call":
                yield ToolCallPart(row["id"], row["name"], row["arguments"])
            case "tool_result":
                content = tuple(part for part in parts(row["content"]) if isinstance(part, TextPart))
                yield ToolResultPart(row["call_id"], row["name"], content)
