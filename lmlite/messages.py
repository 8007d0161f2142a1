"""A conversation in words of its own: who speaks, and the parts of what is said. No dialect's shape, no template's.

Dialects read what clients send into these; they are spelled for the engine in one place (`core/engine/payloads.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(slots=True, frozen=True)
class TextPart:
    text: str


@dataclass(slots=True, frozen=True)
class ReasoningPart:
    """What the assistant thought, without the template's marks around it."""

    text: str


@dataclass(slots=True, frozen=True)
class ToolCallPart:
    """A call that the assistant made. `arguments` is the text of a JSON object, or what there is of one that was cut off."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True, frozen=True)
class ToolResultPart:
    """What a tool gave. `call_id` is the id of the call that it answers, `name` the tool's; both "" where nobody said."""

    call_id: str
    name: str
    content: tuple[TextPart, ...]


Part = TextPart | ReasoningPart | ToolCallPart | ToolResultPart


@dataclass(slots=True, frozen=True)
class Message:
    """What one speaker said in one go. A "tool" message has exactly one part, a result; reasoning and calls are the
    assistant's. No part at all is an empty message."""

    role: Role
    parts: tuple[Part, ...]


def text_message(role: Role, text: str) -> Message:
    return Message(role, (TextPart(text),))
