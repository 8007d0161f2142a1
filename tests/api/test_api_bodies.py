"""Bodies that are not strictly JSON objects, or cost too much to read, are refused before any field is looked at."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlite.api.fields import CONTAINERS_MAX, DEPTH_MAX, MEMBERS_MAX, STEP_BYTES, VALUES_MAX, parse_body
from lmlite.errors import InvalidJson


def nest(depth: int) -> bytes:
    """An object with arrays in it, `depth` levels in all."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


REFUSED = {
    "empty": b"",
    "no json": b"hello",
    "trailing bytes": b"{} x",
    "second object": b"{}{}",
    "trailing comma": b'{"a":1,}',
    "single quotes": b"{'a':1}",
    "leading zero": b'{"a":01}',
    "raw control character": b'{"a":"\x01"}',
    "invalid utf-8": b'{"a":"\xff"}',
    "utf-8 of a surrogate": b'{"a":"\xed\xa0\x80"}',
    "utf-16": "{}".encode("utf-16"),
    "utf-16 without mark": "{}".encode("utf-16-le"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "array": b"[]",
    "null": b"null",
    "string": b'"a"',
    "number": b"1",
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":[Infinity]}',
    "-Infinity": b'{"a":-Infinity}',
    "float overflow": b'{"a":1e999}',
    "integer of 5,000 digits": b'{"a":' + b"1" * 5000 + b"}",
    "float of 5,000 digits": b'{"a":0.' + b"1" * 5000 + b"}",
    "integer of 16 MiB": b'{"a":' + b"1" * (16 << 20) + b"}",
    "lone surrogate": b'{"a":["\\ud800"]}',
    "surrogates in the wrong order": b'{"a":"\\udc00\\ud800"}',
    "lone surrogate in a key": b'{"\\udfff":1}',
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key in depth": b'{"a":[{"b":1,"c":2,"b":3}]}',
    "one level too deep": nest(DEPTH_MAX + 1),
    "1,000 levels": nest(1000),
    "100,000 open brackets": b"[" * 100_000,
    "100,000 open objects": b'{"a":' * 100_000,
    "brackets hidden behind an escaped quote": b'{"a":"\\\\","b":' + b"[" * 100 + b"]" * 100 + b"}",
    "too many values": b'{"a":[' + b",".join([b"1"] * (VALUES_MAX + 1)) + b"]}",
    "too many members": b"{" + b",".join(b'"%d":1' % i for i in range(MEMBERS_MAX + 1)) + b"}",
    "too many containers": b'{"a":[' + b",".join([b"[]"] * (CONTAINERS_MAX + 1)) + b"]}",
    "16 MiB of quotes": b'"' * (16 << 20),
    "16 MiB of closers": b"[]" + b"]" * (16 << 20),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_body_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidJson) as caught:
        parse_body(raw)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


ACCEPTED = {
    "empty object": (b" {} \n", {}),
    "NUL escape": (b'{"a":"\\u0000"}', {"a": "\0"}),
    "surrogate pair": (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    "written-out escape": (b'{"a":"\\\\ud800"}', {"a": "\\ud800"}),
    "large double": (b'{"a":1e308}', {"a": 1e308}),
    "small double": (b'{"a":1e-999}', {"a": 0.0}),
    "same key in two objects": (b'{"a":{"a":1}}', {"a": {"a": 1}}),
    "text in many scripts": ('{"a":"größer 中 \U0001f600"}'.encode(), {"a": "größer 中 \U0001f600"}),
}


@pytest.mark.parametrize(("raw", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_body_is_read(raw: bytes, body: object) -> None:
    assert parse_body(raw) == body


def test_the_deepest_body_is_read() -> None:
    assert parse_body(nest(DEPTH_MAX))


def test_commas_and_brackets_inside_strings_are_no_values() -> None:
    text = '[{"a":1},\\\n' * (VALUES_MAX // 4)
    assert parse_body(json.dumps({"a": text, "b": "\\"}).encode()) == {"a": text, "b": "\\"}


def test_a_prompt_of_a_whole_context_of_ids_is_read() -> None:
    ids = list(range(131_072))
    assert parse_body(json.dumps({"prompt": ids}).encode()) == {"prompt": ids}


def test_twenty_thousand_messages_are_read() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert len(parse_body(json.dumps({"messages": [message] * 20_000}).encode())["messages"]) == 20_000


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(keys, json_values, max_size=4))
def test_whatever_is_valid_is_read_as_it_was_written(body: dict[str, object]) -> None:
    assert parse_body(json.dumps(body, ensure_ascii=False).encode()) == body
    assert parse_body(json.dumps(body).encode()) == body


@given(st.binary(max_size=60) | st.text('{}[]":,\\u0dD8ab19.eE-+ \n', max_size=60).map(str.encode))
def test_nothing_but_an_object_or_a_refusal_comes_of_any_bytes(raw: bytes) -> None:
    try:
        assert isinstance(parse_body(raw), dict)
    except InvalidJson:
        pass


@pytest.mark.parametrize("before", range(STEP_BYTES - 3, STEP_BYTES + 4))
def test_commas_inside_strings_are_no_values_wherever_a_long_body_is_cut(before: int) -> None:
    """More commas than values may be, in one string that begins at either side of a cut; then brackets outside of it."""
    raw = b'{"a":"' + b"x" * (before - 6) + b'","b":"' + b"," * (2 * VALUES_MAX) + b'","c":[1,2]}'
    assert parse_body(raw)["c"] == [1, 2]
    with pytest.raises(InvalidJson, match="more than"):
        parse_body(raw[:-4] + b",1" * VALUES_MAX + b"]}")
