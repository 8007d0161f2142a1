"""Messages as text: what is written is read again, and what a later version adds is passed over."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from lmlite.messages import MediaPart, Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart, text_message
from lmlite.store import message_text

FILES = {part.digest: part.data for part in (MediaPart("image", b"a picture"), MediaPart("audio", b"\0sound"))}
PICTURE, SOUND = (MediaPart(kind, data) for kind, data in zip(("image", "audio"), FILES.values(), strict=True))  # type: ignore[arg-type]

MESSAGES = (
    text_message("system", "Be brief. \0 é 🦙\n[]\r\n"),
    Message("user", ()),
    Message("user", (TextPart("a"), TextPart(""))),
    Message("user", (TextPart("b"), PICTURE, SOUND)),
    Message(
        "assistant", (ReasoningPart("hm"), TextPart("so"), ToolCallPart("call_1", "look up", '{"x": [1, '), TextPart("and"))
    ),
    Message("tool", (ToolResultPart("call_1", "ü", (TextPart("one"), PICTURE, TextPart("two"))),)),
)


def load(text: str) -> tuple[Message, ...]:
    return message_text.load(text, FILES.__getitem__)


def test_pictures_are_told_by_what_they_are_and_not_spelled() -> None:
    text = message_text.dump(MESSAGES)
    assert text.count(PICTURE.digest) == 2 and "a picture" not in text


def test_every_part_is_read_as_it_was_written() -> None:
    assert load(message_text.dump(MESSAGES)) == MESSAGES
    assert load(message_text.dump(())) == ()
    assert {type(part) for message in MESSAGES for part in message.parts} == set(get_args(Part))


def test_parts_and_roles_of_a_later_version_are_passed_over() -> None:
    line, _, said = message_text.dump(MESSAGES[3:]).partition("\n")
    rows = json.loads(line)
    rows[0]["parts"].insert(1, {"type": "smell", "of": [len(said), 4]})
    rows[2]["parts"][0]["content"].insert(0, {"type": "smell"})
    rows[2]["parts"][0]["later"] = True
    rows.insert(0, {"role": "oracle", "parts": []})
    assert load(f"{json.dumps(rows)}\n{said}rose") == MESSAGES[3:]


WRONG_PARTS = ('{"type": "text"}', *(f'{{"type": "text", "text": {place}}}' for place in ("7", "[0, 9]", "[-1, 1]", '"hi"')))


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '[{"role": "user"}]', *WRONG_PARTS])
def test_what_is_no_messages_is_told(text: str) -> None:
    line = f'[{{"role": "user", "parts": [{text}]}}]' if text in WRONG_PARTS else text
    with pytest.raises(ValueError):
        load(f"{line}\nabc")
