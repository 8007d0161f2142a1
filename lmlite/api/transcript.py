"""The parts of one answer in their order, as its events come: what dialects that number their parts fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Final, Literal

from ..events import (
    CallResumed,
    Event,
    Finished,
    Leased,
    ReasoningDelta,
    ReasoningStart,
    RoundOver,
    TextDelta,
    TextStart,
    TokenLogprob,
    ToolCallArguments,
    ToolCallStart,
    ToolRefused,
    ToolResult,
)
from ..messages import Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from ..records import dataclass

EARLIER: Final = -1
"""The round of what an earlier turn said, and has been answered in this one."""


@dataclass(slots=True)
class Piece:
    """One part of an answer, perhaps still growing. `number` counts tool calls from 0; `name` is the tool's. What this server
    made of a call is its `result`."""

    kind: Literal["reasoning", "text", "tool_call"]
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    name: str = ""
    number: int = 0
    round: int = 0
    result: ToolResult | ToolRefused | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(slots=True)
class Transcript:
    pieces: list[Piece] = field(default_factory=list)
    leased: Leased | None = None
    finished: Finished | None = None
    round: int = 0
    begun: int = 0  # the last round that the model was asked for
    load_s: float | None = None  # of all that this turn waited for
    calls: dict[int, Piece] = field(default_factory=dict)  # by their numbers

    def hear(self, event: Event) -> None:
        kind = type(event)
        if kind is TextDelta:
            self.pieces[-1].texts.append(event.text)  # type: ignore[union-attr]
            if event.logprobs:  # type: ignore[union-attr]
                self.pieces[-1].logprobs.extend(event.logprobs)  # type: ignore[union-attr]
        elif kind is ReasoningDelta or kind is ToolCallArguments:
            self.pieces[-1].texts.append(event.text)  # type: ignore[union-attr]
        elif kind is TextStart:
            self.pieces.append(Piece("text", round=self.round))
        elif kind is ReasoningStart:
            self.pieces.append(Piece("reasoning", round=self.round))
        elif isinstance(event, ToolCallStart):
            self._call(Piece("tool_call", name=event.name, number=event.index, round=self.round))
        elif isinstance(event, Leased):
            self.leased = event
            self.begun = self.round
            if event.load_s is not None:
                self.load_s = event.load_s + (self.load_s or 0.0)
        elif isinstance(event, RoundOver):
            self.round += 1
        elif isinstance(event, CallResumed):
            self._call(Piece("tool_call", [event.arguments], name=event.name, number=event.index, round=EARLIER))
        elif isinstance(event, ToolResult | ToolRefused):
            if event.index < 0 and event.index not in self.calls:  # of one that was not let through
                self._call(Piece("tool_call", number=event.index, round=EARLIER))
            self.calls[event.index].result = event
        elif isinstance(event, Finished):
            self.finished = event

    def _call(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.calls[piece.number] = piece

    def messages(self, call_id: Callable[[int], str]) -> tuple[Message, ...]:
        """All that was said, round by round, with what tools gave between."""
        messages: list[Message] = []
        for round in range(EARLIER, self.round + 1):
            message = self.message(call_id, round)
            if round > EARLIER and (message.parts or round == 0 or self.finished and round <= self.begun):
                messages.append(message)
            messages += [
                result_message(piece.name, piece.result)
                for piece in self.pieces
                if piece.round == round and piece.result is not None
            ]
        return tuple(messages)

    def message(self, call_id: Callable[[int], str], round: int = 0) -> Message:
        """What the assistant said, to be gone on from. `call_id` gives the ids of calls that have no result, by their
        number."""
        parts: list[Part] = []
        for piece in self.pieces:
            if piece.round != round:
                continue
            if piece.kind == "tool_call":
                id = call_id(piece.number) if piece.result is None else piece.result.id
                parts.append(ToolCallPart(id, piece.name, piece.text))
            elif piece.text:
                parts.append((TextPart if piece.kind == "text" else ReasoningPart)(piece.text))
        return Message("assistant", tuple(parts))


def result_message(name: str, result: ToolResult | ToolRefused) -> Message:
    """As the model is told it."""
    text = result.text if isinstance(result, ToolResult) else f"Error: {result.reason}"
    media = result.media if isinstance(result, ToolResult) else ()
    texts = (TextPart(text),) if text or not media else ()
    return Message("tool", (ToolResultPart(result.id, name, (*texts, *media)),))
