"""Transcripts: the parts of an answer, folded from its events."""

from __future__ import annotations

from typing import Any

from lmlite.api.transcript import Piece, Transcript
from lmlite.events import CallResumed, Event, RoundOver, ToolCallStart, ToolRefused
from lmlite.messages import ToolCallPart, ToolResultPart


class Unread(list[Piece]):
    """What was said, which nothing looks through."""

    def __iter__(self) -> Any:
        raise AssertionError("all pieces are looked at")

    __reversed__ = __iter__


def refused(index: int) -> ToolRefused:
    return ToolRefused(index, f"id{index}", "no", None)


def test_a_result_finds_its_call_without_a_walk_through_the_answer() -> None:
    said = Transcript(Unread())
    events: list[Event] = [CallResumed(-1, "id-1", "f", "{}", None), refused(-1), refused(-2), ToolCallStart(0, "g")]
    for event in (*events, RoundOver(), ToolCallStart(1, "h"), refused(0), refused(1)):
        said.hear(event)
    said.pieces = list(said.pieces[:])
    assert [(piece.number, piece.result and piece.result.index) for piece in said.pieces] == [
        (-1, -1), (-2, -2), (0, 0), (1, 1),
    ]  # fmt: skip
    messages = said.messages(str)
    calls = [part.id for message in messages for part in message.parts if isinstance(part, ToolCallPart)]
    results = [part.call_id for message in messages for part in message.parts if isinstance(part, ToolResultPart)]
    assert calls == ["id0", "id1"] and results == ["id-1", "id-2", "id0", "id1"]
