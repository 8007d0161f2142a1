"""How much a JSON text holds, and what becomes of halves of characters in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmlite.values import holds_more, load_whole

LISTS: dict[str, Any] = {
    "numbers": [1] * 99,
    "objects": [{}] * 49 + [{"a": 1}],
    "texts with all that means something": ['\\",[{'] * 99,
    "one long text": ["[{," * 1000],
}


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_values_are_counted_and_texts_are_not(value: Any) -> None:
    assert not holds_more(json.dumps(value).encode(), 100)
    assert holds_more(json.dumps([value, [1] * 100]).encode(), 100)


def test_half_a_character_is_read_as_one_that_can_be_written() -> None:
    halves = r'{"cut \ud83d": ["\uDE00", "\ud83d\ude00", "\\ud83d", 1e400, {"\ude00\ud83d": null}]}'
    whole = {"cut \ufffd": ["\ufffd", "\U0001f600", "\\ud83d", float("inf"), {"\ufffd\ufffd": None}]}
    assert load_whole(halves) == whole
    with pytest.raises(ValueError):
        load_whole(r'"\ud83d')
