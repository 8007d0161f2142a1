"""Conversations that go on: what is put where before a model sees it."""

from __future__ import annotations

from typing import Any

from lmlite.messages import Message, TextPart, ToolCallPart, ToolResultPart, text_message
from lmlite.turn import behind_calls


def called(*ids: str) -> Message:
    return Message("assistant", tuple(ToolCallPart(id, "f", "{}") for id in ids))


def gave(id: str, text: str = "") -> Message:
    return Message("tool", (ToolResultPart(id, "f", (TextPart(text),)),))


ASKED, THANKS, MORE = text_message("user", "?"), text_message("assistant", "wait"), text_message("user", "well?")


def test_results_stand_behind_their_calls_in_the_order_in_which_they_came() -> None:
    said = [ASKED, called("a", "b"), gave("b"), THANKS, called("c"), MORE, gave("a", "late"), gave("c"), gave("a", "again")]
    assert behind_calls(said) == [
        *(ASKED, called("a", "b"), gave("b"), gave("a", "late"), gave("a", "again")),
        *(THANKS, called("c"), gave("c"), MORE),
    ]


def test_a_result_that_lost_its_call_stays_where_it_is() -> None:
    said = [gave("x"), ASKED, gave("y"), called("a"), MORE, gave("z")]
    assert behind_calls(said) == said


def test_of_two_calls_of_one_name_the_latest_before_it_gets_a_result() -> None:
    said = [called("a"), gave("a", "1"), MORE, called("a"), MORE, gave("a", "2")]
    assert behind_calls(said) == [called("a"), gave("a", "1"), MORE, called("a"), gave("a", "2"), MORE]


def test_each_message_is_looked_at_once_however_many_results_there_are() -> None:
    looks = []

    class Looked:
        parts: Any = (ToolResultPart("a", "f", ()),)

        @property
        def role(self) -> str:
            looks.append(self)
            return "tool"

    said: list[Any] = [called("a"), *(Looked() for _ in range(50)), MORE]
    assert behind_calls(said) == said and len(looks) <= 2 * 50
