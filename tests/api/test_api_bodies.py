"""Bodies that are not strictly JSON objects, or cost too much to read, are refused before any field is looked at."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmlite.api.read import json_body
from lmlite.api.read.json_body import CONTAINERS_MAX, DEPTH_MAX, MEMBERS_MAX, STEP, VALUES_MAX, parse_body
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
    "trailing comma and spaces": b'{"a": 1, \n }',
    "trailing comma in an array": b'{"a": [1 ,\t]}',
    "no item": b'{"a": [,]}',
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


def test_a_conversation_of_eight_thousand_approved_calls_is_read_with_their_results() -> None:
    called = {"server_label": "calc", "name": "add", "arguments": "{}"}
    request = {"type": "mcp_approval_request", "id": "mcpr_1", **called}
    decision = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    result = {"type": "mcp_call", "id": "mcp_1", **called, "output": "3", "error": None, "status": "completed"}
    body = {"model": "m", "input": [request, decision, result] * 8_000}
    assert len(parse_body(json.dumps(body).encode())["input"]) == 24_000


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


@pytest.mark.parametrize("before", range(STEP - 3, STEP + 4))
def test_commas_inside_strings_are_no_values_wherever_a_long_body_is_cut(before: int) -> None:
    """More commas than values may be, in one string that begins at either side of a cut; then brackets outside of it."""
    raw = b'{"a":"' + b"x" * (before - 6) + b'","b":"' + b"," * (2 * VALUES_MAX) + b'","c":[1,2]}'
    assert parse_body(raw)["c"] == [1, 2]
    with pytest.raises(InvalidJson, match="more than"):
        parse_body(raw[:-4] + b",1" * VALUES_MAX + b"]}")


# ---- small and large bodies are read by two readers: what either makes of a text, the other does ---------------------


@pytest.fixture
def tiny_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bodies count as large, and their steps are so short that these tests' bodies have many."""
    monkeypatch.setattr(json_body, "INLINE_BYTES_MAX", -1)
    monkeypatch.setattr(json_body, "STEP", 16)


def read_either_way(raw: bytes) -> tuple[object, object]:
    """What a body says, or why it is refused: as a small one, and as a large one."""
    outcomes: list[object] = []
    for inline, step in ((1 << 30, STEP), (-1, 16)):
        with mock.patch.multiple(json_body, INLINE_BYTES_MAX=inline, STEP=step):
            try:
                outcomes.append(parse_body(raw))
            except InvalidJson as refusal:
                outcomes.append(refusal.message)
    return outcomes[0], outcomes[1]


def unfinished(outcome: object) -> bool:
    """Of a text that ends with an escape, Python's scanner says that the escape is broken."""
    return isinstance(outcome, str) and ("Unterminated" in outcome or "Invalid \\uXXXX" in outcome)


@pytest.mark.usefixtures("tiny_steps")
@pytest.mark.parametrize(("raw", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_body_is_read_in_steps(raw: bytes, body: object) -> None:
    assert parse_body(raw) == body


@pytest.mark.parametrize("name", [name for name in REFUSED if len(REFUSED[name]) < 100_000])
def test_body_is_refused_for_the_same_reason_in_steps(name: str) -> None:
    small, large = read_either_way(REFUSED[name])
    assert isinstance(small, str)
    assert small == large


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1, \n }', "Illegal trailing comma before end of object at character 7"),
        (b'{"a": [1 ,\t]}', "Illegal trailing comma before end of array at character 9"),
        (b'{"a": [1, }', "Expecting value at character 10"),
        (b'{"a": 1, ]', "Expecting property name enclosed in double quotes at character 9"),
    ],
)
def test_a_comma_too_many_is_told_alike_on_all_pythons(raw: bytes, reason: str) -> None:
    assert read_either_way(raw) == (f"the body is not valid JSON: {reason}",) * 2


@pytest.mark.parametrize("raw", [b"", b" \r\n"])
def test_no_body_is_told_as_that(raw: bytes) -> None:
    assert read_either_way(raw) == ("the body is empty, and must be a JSON object",) * 2


@given(st.dictionaries(keys, json_values, max_size=4), st.sampled_from([None, 1]))
def test_large_bodies_are_read_as_they_were_written(body: dict[str, object], indent: int | None) -> None:
    for ascii in (True, False):
        raw = json.dumps(body, ensure_ascii=ascii, indent=indent).encode()
        assert read_either_way(raw) == (body, body)


@given(st.text('{}[]":,\\u0dDcC8ab19.eE-+ \n/', max_size=120))
def test_both_readers_agree_on_texts_that_are_hardly_json(text: str) -> None:
    small, large = read_either_way(f'{{"a":[{text}'.encode())
    assert small == large or (unfinished(small) and unfinished(large))


@example("\\uD800", '"')
@given(st.text('\\"u0dDcC8ab {}[],\n', max_size=120), st.sampled_from(["", '"', '"}', '","b",{"c":1},{"c":"']))
def test_both_readers_agree_on_strings_full_of_escapes(text: str, end: str) -> None:
    small, large = read_either_way(f'{{"a":["{text}{end}"]}}'.encode())
    twice_wrong = isinstance(small, str) and isinstance(large, str) and "surrogate" in small + large  # either may be told
    assert small == large or twice_wrong or (unfinished(small) and unfinished(large))


@given(st.lists(st.integers() | st.text() | st.fixed_dictionaries({"a": st.lists(st.text(max_size=5))})), st.integers(0, 200))
def test_both_readers_agree_on_what_is_cut_short(items: list[object], length: int) -> None:
    raw = json.dumps({"a": items}).encode()
    small, large = read_either_way(raw[:length])
    if length < len(raw):  # where an escape is the last that there is, Python's scanner calls it broken
        assert isinstance(small, str) and isinstance(large, str)
    else:
        assert small == large == {"a": items}


@pytest.mark.parametrize("before", range(20))
@pytest.mark.parametrize("text", ["\U0001f600" * 20, "\\ud83d\U0001f600\\\\" * 9, "\\" * 40, '"' * 40, "\n\x00" * 30])
def test_no_escape_is_cut_wherever_a_step_ends(before: int, text: str) -> None:
    body = {"a": "x" * before + text, "b": [text, {"c": text}]}
    assert read_either_way(json.dumps(body).encode()) == (body, body)
