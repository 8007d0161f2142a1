"""The parts of one answer in their order, as its events come: what dialects that number their parts fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..events import (
    Event,
    Finished,
    Leased,
    ReasoningDelta,
    ReasoningStart,
    TextDelta,
    TextStart,
    TokenLogprob,
    ToolCallArguments,
    ToolCallStart,
)
from ..messages import Message, Part, ReasoningPart, TextPart, ToolCallPart


@dataclass(slots=True)
class Piece:
    """One part of an answer, perhaps still growing. `number` counts tool calls from 0; `name` is the tool's."""

    kind: Literal["reasoning", "text", "tool_call"]
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    name: str = ""
    number: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(slots=True)
class Transcript:
    pieces: list[Piece] = field(default_factory=list)
    leased: Leased | None = None
    finished: Finished | None = None

    def hear(self, event: Event) -> None:
        kind = type(event)
        if kind is TextDelta:
            self.pieces[-1].texts.append(event.text)  # type: ignore[union-attr]
            if event.logprobs:  # type: ignore[union-attr]
                self.pieces[-1].logprobs.extend(event.logprobs)  # type: ignore[union-attr]
        elif kind is ReasoningDelta or kind is ToolCallArguments:
            self.pieces[-1].texts.append(event.text)  # type: ignore[union-attr]
        elif kind is TextStart:
            self.pieces.append(Piece("text"))
        elif kind is ReasoningStart:
            self.pieces.append(Piece("reasoning"))
        elif isinstance(event, ToolCallStart):
            self.pieces.append(Piece("tool_call", name=event.name, number=event.index))
        elif isinstance(event, Leased):
            self.leased = event
        elif isinstance(event, Finished):
            self.finished = event

    def message(self, call_id: Callable[[int], str]) -> Message:
        """What the assistant said, to be gone on from. `call_id` gives the ids of calls by their number."""
        parts: list[Part] = []
        for piece in self.pieces:
            if piece.kind == "tool_call":
                parts.append(ToolCallPart(call_id(piece.number), piece.name, piece.text))
            elif piece.text:
                parts.append((TextPart if piece.kind == "text" else ReasoningPart)(piece.text))
        return Message("assistant", tuple(parts))
