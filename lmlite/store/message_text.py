"""Messages as one text and back: a line of JSON that says what there is, then all that was said, as it is.

In the line a text is where it begins behind it and how long it is, in characters: so texts of megabytes, in a thread, keep
nobody from the interpreter. Pictures and sound are told by their digests, and kept elsewhere. Parts and roles of a later
version are passed over; they are still there for that one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, get_args

from ..messages import MediaKind, MediaPart, Message, Part, ReasoningPart, Role, TextPart, ToolCallPart, ToolResultPart

COMPACT: Final = json.JSONEncoder(separators=(",", ":"))
DECODER: Final = json.JSONDecoder()


def dump(messages: Iterable[Message]) -> str:
    said: list[str] = []
    end = 0

    def put(text: str) -> tuple[int, int]:
        nonlocal end
        said.append(text)
        begin, end = end, end + len(text)
        return begin, len(text)

    rows = [{"role": message.role, "parts": [spell(part, put) for part in message.parts]} for message in messages]
    return "".join(("[", ",".join(map(COMPACT.encode, rows)), "]\n", *said))


def load(text: str, fetch: Callable[[str], bytes]) -> tuple[Message, ...]:
    """`fetch` gives the bytes of a picture or sound by its digest. Raises ValueError for what is no such text."""
    line, _, said = text.partition("\n")

    def get(place: tuple[int, int]) -> str:
        begin, length = place
        found = said[begin : begin + length]
        if min(begin, length) < 0 or len(found) != length:
            raise ValueError("a text is not there")
        return found

    try:
        rows = [row for row in read_rows(line) if row["role"] in get_args(Role)]
        return tuple(Message(row["role"], tuple(parts(row["parts"], get, fetch))) for row in rows)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no messages: {error!r}") from None


def read_rows(line: str) -> Iterator[Any]:
    """Those of a list, one by one: all in one go would keep everybody from the interpreter where there are ten thousands."""
    if line[:1] != "[" or line[-1:] != "]":
        raise ValueError("no list")
    at, end = 1, len(line) - 1
    while at < end:
        row, at = DECODER.raw_decode(line, at)
        yield row
        if line[at] not in ",]":
            raise ValueError("no list")
        at += 2 if line.startswith(", ", at) else 1


def spell(part: Part, put: Callable[[str], tuple[int, int]]) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": put(text)}
        case MediaPart(kind=kind):
            return {"type": "media", "kind": kind, "digest": part.digest}
        case ReasoningPart(text=text):
            return {"type": "reasoning", "text": put(text)}
        case ToolCallPart(id=id, name=name, arguments=arguments):
            return {"type": "tool_call", "id": id, "name": name, "arguments": put(arguments)}
        case ToolResultPart(call_id=call_id, name=name, content=content):
            return {"type": "tool_result", "call_id": call_id, "name": name, "content": [spell(item, put) for item in content]}


def parts(
    rows: Iterable[Mapping[str, Any]], get: Callable[[tuple[int, int]], str], fetch: Callable[[str], bytes]
) -> Iterator[Part]:
    for row in rows:
        match row.get("type"):
            case "text":
                yield TextPart(get(row["text"]))
            case "media" if row["kind"] in get_args(MediaKind):
                yield MediaPart(row["kind"], fetch(row["digest"]))
            case "reasoning":
                yield ReasoningPart(get(row["text"]))
            case "tool_call":
                yield ToolCallPart(row["id"], row["name"], get(row["arguments"]))
            case "tool_result":
                content = tuple(part for part in parts(row["content"], get, fetch) if isinstance(part, TextPart | MediaPart))
                yield ToolResultPart(row["call_id"], row["name"], content)
