"""A conversation in words of its own: who speaks, and the parts of what is said. No dialect's shape, no template's.

Dialects read what clients send into these; they are spelled for the engine in one place (`core/engine/payloads.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from functools import cached_property
from typing import Literal

from .records import dataclass

Role = Literal["system", "user", "assistant", "tool"]
MediaKind = Literal["image", "audio"]
Sense = Literal["vision", "audio"]
"""What a model has to have, to be sent the one and the other."""


@dataclass(slots=True, frozen=True)
class TextPart:
    text: str


@dataclass(slots=True)
class MediaPart:
    """A picture or a sound: the bytes of its file, as they were sent. It stands in what users say and tools give.

    `where` is its place in the request that brought it, "" if that was an earlier one. Of one that lies elsewhere there is a
    `url`, and no bytes until somebody has fetched them."""

    kind: MediaKind
    data: bytes = field(repr=False)
    where: str = field(default="", compare=False)
    url: str = field(default="", compare=False, repr=False)
    _digest: str = field(default="", init=False, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, as hexadecimal digits."""
        if not self._digest:
            from hashlib import sha256  # which takes longer than this module, and few requests need it

            self._digest = sha256(self.data).hexdigest()
        return self._digest

    def fill(self, data: bytes) -> None:
        self.data, self._digest = data, ""


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
    content: tuple[TextPart | MediaPart, ...]


Content = TextPart | MediaPart
Part = TextPart | MediaPart | ReasoningPart | ToolCallPart | ToolResultPart


@dataclass(slots=True, frozen=True)
class Message:
    """What one speaker said in one go. A "tool" message has exactly one part, a result; reasoning and calls are the
    assistant's. No part at all is an empty message."""

    role: Role
    parts: tuple[Part, ...]


class Conversation(tuple[Message, ...]):
    """Messages one after the other, which are looked through once: there may be ten thousands."""

    @cached_property
    def media(self) -> tuple[MediaPart, ...]:
        """All pictures and sounds, in their order."""
        return tuple(media_of(self))


def media_of(messages: Iterable[Message]) -> list[MediaPart]:
    """All pictures and sounds, in their order. Quick where there are none: a conversation may have ten thousand parts."""
    media: list[MediaPart] = []
    for message in messages:
        for part in message.parts:
            if type(part) is MediaPart:
                media.append(part)
            elif type(part) is ToolResultPart:
                media += [inner for inner in part.content if isinstance(inner, MediaPart)]
    return media


def text_message(role: Role, text: str) -> Message:
    return Message(role, (TextPart(text),))
