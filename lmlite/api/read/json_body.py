"""Strict JSON bodies: RFC 8259 objects in UTF-8 and nothing looser, read with bounded work; else `errors.InvalidJson`.

A key that occurs twice in one object is refused, since readers differ on which one counts. Python's own scanner reads small
bodies. It keeps the interpreter from all other threads until it is done, for 30 ms where a prompt of 5 MB has line ends:
large bodies belong in a thread, and are read there in steps that leave the event loop its turns.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from itertools import accumulate
from json import JSONDecodeError
from typing import Any

from ...errors import InvalidJson
from ...pieces import text_of
from .fields import clip

INLINE_BYTES_MAX = 32 * 1024
"""Bodies up to here parse within 3 ms whatever they hold."""

STEP = 16 * 1024
"""Bytes, or characters, that a large body is read by at once: a tenth of a millisecond, half of one if all is escapes."""

DEPTH_MAX = 64
"""Nesting of arrays and objects. Real requests stay below 20; recursive parsers further on stay far from theirs."""

VALUES_MAX = 160_000
"""Values in one body: a prompt of 131,072 token ids fits, and as many are read in a tenth of a second. 8,000 approved calls
with their results, which no context holds, have 152,000. Python keeps a part of what the largest bodies took for good: twice
as many values cost ten megabytes more."""

MEMBERS_MAX = 135_000
"""Name-value pairs in all objects together, each costs three times a list's value: those calls have 128,000."""

CONTAINERS_MAX = 65_536
"""Arrays and objects in all: 20,000 messages whose content is a list of one part are 60,001."""

NUMBER_CHARS_MAX = 400
"""Characters of one number. The longest double written out has 309 digits before its point; `int()` is quadratic."""

_NESTING = {"[": 1, "{": 1, "]": -1, "}": -1}


def parse_body(raw: bytes | bytearray) -> dict[str, Any]:
    """The top-level object of a request body."""
    if raw.startswith(codecs.BOM_UTF8):
        raise InvalidJson("the body begins with a byte order mark")
    try:
        body = _parse_small(raw) if len(raw) <= INLINE_BYTES_MAX else _Reader(_decode(raw)).read()
    except UnicodeDecodeError:
        raise InvalidJson("the body is not valid UTF-8") from None
    except UnicodeEncodeError:
        raise InvalidJson("a string holds half of a surrogate pair") from None
    except RecursionError:
        raise _too_deep() from None
    except JSONDecodeError as exc:
        if not raw.strip():
            raise InvalidJson("the body is empty, and must be a JSON object") from None
        reason, at = _reason(exc)
        raise InvalidJson(f"the body is not valid JSON: {reason} at character {at}") from None
    if not isinstance(body, dict):
        raise InvalidJson("the body must be a JSON object")
    return body


def _reason(error: JSONDecodeError) -> tuple[str, int]:
    """In the words of Python 3.13, which name the comma before the end of an object or array; all readers say the same."""
    end = {"Expecting property name enclosed in double quotes": "}", "Expecting value": "]"}.get(error.msg, "")
    if end and error.doc.startswith(end, error.pos):
        before = error.doc[max(0, error.pos - STEP) : error.pos]
        kept = before.rstrip(" \n\t\r")
        if kept.endswith(","):
            name = "object" if end == "}" else "array"
            return f"Illegal trailing comma before end of {name}", error.pos - (len(before) - len(kept)) - 1
    return error.msg, error.pos


def _too_deep() -> InvalidJson:
    return InvalidJson(f"the body is nested deeper than {DEPTH_MAX} levels")


def _twice(name: str) -> InvalidJson:
    return InvalidJson(f"the key {clip(name)!r} occurs twice in one object")


# ---- numbers and names, for both readers -----------------------------------------------------------------------------


def _refuse_constant(name: str) -> Any:
    raise InvalidJson(f"{name} is not a JSON number")


def _parse_float(text: str) -> float:
    value = float(text) if len(text) <= NUMBER_CHARS_MAX else math.inf
    if value - value != 0.0:
        raise InvalidJson("a number is too large")
    return value


def _parse_int(text: str) -> int:
    if len(text) > NUMBER_CHARS_MAX:
        raise InvalidJson("a number is too large")
    return int(text)


def _build_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(members)
    if len(built) != len(members):
        names = [name for name, _ in members]
        raise _twice(next(name for name in built if names.count(name) > 1))
    return built


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_constant=_refuse_constant, parse_float=_parse_float, parse_int=_parse_int
)


# ---- small bodies ----------------------------------------------------------------------------------------------------


def _parse_small(raw: bytes | bytearray) -> Any:
    """So small that only its depth and its numbers can cost too much."""
    text = raw.decode("utf-8")
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX:  # those inside strings are counted, too
        _check_depth(_outside_strings(text), 0)
    body = _DECODER.decode(text)
    if "\\u" in text:
        _refuse_lone_surrogates(body)
    return body


def _outside_strings(text: str) -> str:
    """What stands outside string literals. Exact up to the first syntax error, where the parser stops anyway."""
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    return "".join(text.split('"')[::2])


def _check_depth(outside: str, depth: int) -> None:
    """`outside` all strings, and `depth` levels inside of others."""
    nesting = list(map(_NESTING.__getitem__, filter(_NESTING.__contains__, outside)))
    if nesting and depth + max(accumulate(nesting)) > DEPTH_MAX:
        raise _too_deep()


def _refuse_lone_surrogates(body: object) -> None:
    """Raises UnicodeEncodeError for a string that UTF-8 cannot carry; only a `\\u` escape can have made one."""
    pending: list[Any] = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            value.encode("utf-8")
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value)
            pending.extend(value.values())


# ---- large bodies ----------------------------------------------------------------------------------------------------

_ENDINGS = {"{": "},", "[": "],", '"': '",'}
"""How an item of an array ends that begins so, with the comma before the next."""
_WHITE = (" ", "\n", "\t", "\r")
_SPACE = re.compile(r"[ \t\n\r]*")
_STRETCH = re.compile(
    r"""[^"\\]* (?: \\ (?:
        [^u]
      | u (?! [dD][89abAB] ) [0-9a-fA-F]{4}
      | u [dD][89abAB][0-9a-fA-F]{2} (?: \\u[dD][c-fC-F][0-9a-fA-F]{2} | (?! \\u[dD][c-fC-F] | \\?u?[dD]?\Z ) )
    ) [^"\\]* )*""",
    re.DOTALL | re.VERBOSE,
)
"""The inside of a string literal. It ends neither in an escape nor between two that are, or could be, one character."""
_UNIT = len(r"\ud83d\ude00")
"""A step that lacks as much as this has met something else than its end."""


def _decode(raw: bytes | bytearray) -> str:
    return text_of(_decoded(raw))


def _decoded(raw: bytes | bytearray) -> Iterator[str]:
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(raw)
    for start in range(0, len(raw), STEP):
        yield decoder.decode(view[start : start + STEP])
    yield decoder.decode(b"", final=True)


class _Reader:
    """Reads one text. Between any two steps of its methods other threads can run. Positions are indexes of the text."""

    __slots__ = ("_containers", "_members", "_text", "_values")

    def __init__(self, text: str):
        self._text = text
        self._values = self._members = self._containers = 0

    def read(self) -> Any:
        value, end = self._value(self._gap(0), 0)
        end = self._gap(end)
        if end < len(self._text):
            raise JSONDecodeError("Extra data", self._text, end)
        return value

    # Each gets where something begins, and tells it and where it has ended.

    def _value(self, at: int, depth: int) -> tuple[Any, int]:
        match self._text[at : at + 1]:
            case '"':
                self._count(1)
                return self._string(at)
            case "{":
                self._count(1, containers=1)
                return self._object(at, depth + 1)
            case "[":
                self._count(1, containers=1)
                return self._array(at, depth + 1)
        self._count(1)
        try:  # a slice, since a number might have as many digits as the text has room for
            value, length = _DECODER.raw_decode(self._text[at : at + NUMBER_CHARS_MAX + 2])
        except JSONDecodeError:
            raise JSONDecodeError("Expecting value", self._text, at) from None
        return value, at + length

    def _count(self, values: int, containers: int = 0, members: int = 0) -> None:
        self._values += values
        self._containers += containers
        self._members += members
        if self._values > VALUES_MAX or self._containers > CONTAINERS_MAX or self._members > MEMBERS_MAX:
            raise InvalidJson(
                f"the body holds more than {VALUES_MAX} values, {MEMBERS_MAX} of them with names, or {CONTAINERS_MAX} arrays "
                "and objects"
            )

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        text, built = self._text, dict[str, Any]()
        if depth > DEPTH_MAX:
            raise _too_deep()
        at = self._gap(at + 1)
        if text.startswith("}", at):
            return built, at + 1
        while True:
            if not text.startswith('"', at):
                raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
            name, at = self._string(at)
            if name in built:
                raise _twice(name)
            self._count(0, members=1)
            at = self._gap(at)
            if not text.startswith(":", at):
                raise JSONDecodeError("Expecting ':' delimiter", text, at)
            built[name], at = self._value(self._gap(at + 1), depth)
            at = self._gap(at)
            if text.startswith("}", at):
                return built, at + 1
            if not text.startswith(",", at):
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
            at = self._gap(at + 1)

    def _array(self, at: int, depth: int) -> tuple[list[Any], int]:
        text, items = self._text, list[Any]()
        if depth > DEPTH_MAX:
            raise _too_deep()
        at = batched = self._gap(at + 1)
        if text.startswith("]", at):
            return items, at + 1
        while True:
            if at >= batched:
                batch, batched = self._batch(at, depth)
                if batch:
                    items += batch
                    at = batched = self._gap(batched)
                    continue
            item, at = self._value(at, depth)
            items.append(item)
            at = self._gap(at)
            if text.startswith("]", at):
                return items, at + 1
            if not text.startswith(",", at):
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
            at = self._gap(at + 1)

    def _batch(self, at: int, depth: int) -> tuple[list[Any], int]:
        """About as many items of an array as a step reads and the end of the comma behind them, taken on trial: what reads
        as a list is one. No items: those up to the end must be read one by one."""
        end = at + STEP
        ending = _ENDINGS.get(self._text[at : at + 1], ",")
        comma = self._text.rfind(ending, at, end) + len(ending)
        if comma < len(ending):
            return [], end
        text = f"[{self._text[at : comma - 1]}]"
        try:
            items: list[Any] = _DECODER.decode(text)
        except (JSONDecodeError, RecursionError):
            return [], comma
        outside = _outside_strings(text)
        containers = outside.count("[") + outside.count("{")
        self._count(outside.count(",") + containers, containers - 1, outside.count(":"))
        if containers > 1:
            _check_depth(outside, depth - 1)
        if "\\u" in text:
            _refuse_lone_surrogates(items)
        return items, comma

    def _string(self, at: int) -> tuple[str, int]:
        text, begin, pieces = self._text, at, list[str]()
        at += 1
        while True:
            end = self._stretch(at)
            pieces.append(self._literal(at, end))
            if text.startswith('"', end):
                return text_of(pieces), end + 1
            if end - at <= STEP - _UNIT:
                if text.startswith("\\u", end):
                    raise JSONDecodeError("Invalid \\uXXXX escape", text, end + 1)
                raise JSONDecodeError("Unterminated string starting at", text, begin)
            at = end

    def _stretch(self, at: int) -> int:
        """The end of a step from inside a literal: of the literal at most, and not in the middle of an escape."""
        text, end = self._text, min(at + STEP, len(self._text))
        quote = text.find('"', at, end)
        plain = quote if quote >= 0 else end
        if text.find("\\", at, plain) < 0:
            return plain
        found = _STRETCH.match(text, at, end)
        return found.end() if found else at

    def _literal(self, at: int, end: int) -> str:
        """What a piece of the inside of a literal says."""
        try:
            piece, _ = _DECODER.raw_decode(f'"{self._text[at:end]}"')
        except JSONDecodeError as exc:
            raise JSONDecodeError(exc.msg, self._text, at - 1 + exc.pos) from None
        assert isinstance(piece, str)
        if not piece.isascii():
            piece.encode()
        return piece

    def _gap(self, at: int) -> int:
        """Where white space ends that may begin here."""
        if not self._text.startswith(_WHITE, at):
            return at
        while (found := _SPACE.match(self._text, at, at + STEP)) and found.end() > at:
            at = found.end()
        return at
