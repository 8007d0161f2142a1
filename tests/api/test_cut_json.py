"""A tool call's arguments that were cut off anywhere are brought to an end, as a JSON object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlite.api.cut_json import ending

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/\n{}[]:,😀'), max_size=8)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(texts, values, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_every_beginning_of_an_object_comes_to_an_end(value: dict[str, Any], ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    assert ending(text) == ""
    for length in range(len(text)):
        begun = text[:length]
        ended = json.loads(begun + ending(begun))
        assert isinstance(ended, dict)
        json.dumps(ended, ensure_ascii=False).encode()  # no half of a character


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        ("", "{}"),
        (" \n", "{}"),
        ("{", "}"),
        ('{"a', '":null}'),
        ('{"a"', ":null}"),
        ('{"a":', "null}"),
        ('{"a": "', '"}'),
        ('{"a": "\\', '\\"}'),
        ('{"a": "\\\\', '"}'),
        ('{"a": "\\u00', '00"}'),
        ('{"a": "\\ud83d', '\\udc00"}'),
        ('{"a": "\\ud83d\\ude', '00"}'),
        ('{"a": "\\\\ud83d', '"}'),
        ('{"a": t', "rue}"),
        ('{"a": -', "0}"),
        ('{"a": 1.', "0}"),
        ('{"a": 12', "}"),
        ('{"a": [1, ', "null]}"),
        ('{"a": [{"b": "}]"', "}]}"),
        ('{"a": 1, ', '"":null}'),
    ],
)
def test_what_is_missing_follows(begun: str, rest: str) -> None:
    assert ending(begun) == rest


def test_depth_is_no_matter() -> None:
    assert ending('{"a":' + "[" * 100_000) == "]" * 100_000 + "}"
