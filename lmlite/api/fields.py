"""Strict JSON bodies and typed reads of their fields; every refusal is an `errors.InvalidRequest` that names the field.

`parse_body` accepts RFC 8259 objects in UTF-8 and nothing looser, and bounds the work by counting before it parses.
A key that occurs twice in one object is refused, since readers differ on which one counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ..errors import InvalidJson, InvalidRequest, InvalidType, MissingField, OutOfRange

INLINE_BYTES_MAX = 32 * 1024
"""Bodies up to here parse within 3 ms whatever they hold; larger ones (150 ms at 16 MiB) belong in a thread, where
no single step keeps the interpreter from the event loop for longer than 45 ms."""

STEP_BYTES = 64 * 1024

DEPTH_MAX = 64
"""Nesting of arrays and objects. Real requests stay below 20; recursive parsers further on stay far from theirs."""

VALUES_MAX = 150_000
"""Values in one body: a prompt of 131,072 token ids fits, and 150,000 floats parse in 50 ms."""

MEMBERS_MAX = 100_000
"""Name-value pairs in all objects together, each costs three times a list's value: 20,000 messages with parts fit."""

CONTAINERS_MAX = 65_536
"""Arrays and objects in all: 20,000 messages whose content is a list of one part are 60,001."""

NUMBER_CHARS_MAX = 400
"""Characters of one number. The longest double written out has 309 digits before its point; `int()` is quadratic."""

NAME_CHARS_MAX = 1024
"""Characters of a name (model, tool, user): file systems stop at 255 a component."""

_OPEN_CLOSE = b"[{]}"
_NOT_BRACKETS = bytes(set(range(256)) - set(_OPEN_CLOSE))
_STEP = tuple(1 if byte in b"[{" else -1 for byte in range(256))


def parse_body(raw: bytes | bytearray) -> dict[str, Any]:
    """The top-level object of a request body; `InvalidJson` for everything that is not strictly one."""
    _bound(raw)
    try:
        body = _DECODER.decode(raw.decode("utf-8"))
        if b"\\u" in raw:
            _refuse_lone_surrogates(body)
    except UnicodeDecodeError:
        raise InvalidJson("the body is not valid UTF-8") from None
    except UnicodeEncodeError:
        raise InvalidJson("a string holds half of a surrogate pair") from None
    except json.JSONDecodeError as exc:
        raise InvalidJson(f"the body is not valid JSON: {exc.msg} at character {exc.pos}") from None
    except RecursionError:
        raise InvalidJson(f"the body is nested deeper than {DEPTH_MAX} levels") from None
    if not isinstance(body, dict):
        raise InvalidJson("the body must be a JSON object")
    return body


def _bound(raw: bytes | bytearray) -> None:
    """Refuses bodies that cost too much to parse, before parsing, by counts that run at the speed of memchr."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise InvalidJson("the body begins with a byte order mark")
    containers = raw.count(b"[") + raw.count(b"{")
    if containers <= DEPTH_MAX and containers + raw.count(b",") <= VALUES_MAX and raw.count(b":") <= MEMBERS_MAX:
        return  # characters inside strings are counted too: most bodies are so small that it does not matter
    outside = _outside_strings(raw)
    containers = outside.count(b"[") + outside.count(b"{")
    brackets = outside.translate(None, _NOT_BRACKETS)
    if (
        containers > CONTAINERS_MAX
        or len(brackets) > 2 * CONTAINERS_MAX
        or containers + outside.count(b",") > VALUES_MAX
        or outside.count(b":") > MEMBERS_MAX
    ):
        raise InvalidJson(f"the body holds more than {VALUES_MAX} values or {CONTAINERS_MAX} arrays and objects")
    if brackets and max(accumulate(map(_STEP.__getitem__, brackets))) > DEPTH_MAX:
        raise InvalidJson(f"the body is nested deeper than {DEPTH_MAX} levels")


def _outside_strings(raw: bytes | bytearray) -> bytes:
    """What stands outside string literals. Exact up to the first syntax error, where the parser stops anyway."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if raw.count(b'"') > 2 * (VALUES_MAX + MEMBERS_MAX):
        raise InvalidJson(f"the body holds more than {VALUES_MAX} values")
    outside: list[bytes | bytearray] = []
    inside = 0
    for start in range(0, len(raw), STEP_BYTES):  # a split of all at once would keep the loop waiting
        parts = raw[start : start + STEP_BYTES].split(b'"')
        outside += parts[inside::2]
        inside ^= (len(parts) - 1) & 1
    return b"".join(outside)


def _refuse_lone_surrogates(body: object) -> None:
    """Raises UnicodeEncodeError for a string that UTF-8 cannot carry; only a `\\u` escape can have made one."""
    pending: list[Any] = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not value.isascii():
                value.encode("utf-8")
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value)
            pending.extend(value.values())


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
        twice = next(name for name in built if names.count(name) > 1)
        raise InvalidJson(f"the key {clip(twice)!r} occurs twice in one object")
    return built


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_constant=_refuse_constant, parse_float=_parse_float, parse_int=_parse_int
)


def clip(text: str) -> str:
    """What of a client's word goes into a message."""
    return text if len(text) <= 80 else text[:80] + "…"


# ---- single values: `where` is the field's name as the client would write it -----------------------------------------


def as_integer(value: object, where: str, low: int, high: int) -> int:
    """JSON `1` but not `1.0`, `"1"` or `true`."""
    if type(value) is not int:
        raise InvalidType(where, "an integer")
    if not low <= value <= high:
        raise OutOfRange(where, low, high)
    return value


def as_number(value: object, where: str, low: float, high: float) -> float:
    if type(value) is not int and type(value) is not float:
        raise InvalidType(where, "a number")
    if not low <= value <= high:
        raise OutOfRange(where, low, high)
    return float(value)


def as_string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidType(where, "a string")
    return value


def as_array(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise InvalidType(where, "an array")
    return value


def as_object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidType(where, "an object")
    return value


def as_name(value: object, where: str) -> str:
    """A string that names something: bounded, one line, no control characters."""
    name = as_string(value, where)
    if len(name) > NAME_CHARS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {NAME_CHARS_MAX} characters", where)
    if any(character < " " or character == "\x7f" for character in name):
        raise InvalidRequest(f"'{where}' must not hold control characters", where)
    return name


class Fields:
    """One JSON object being read. `null` counts as absent; a read of an absent field gives None."""

    __slots__ = ("_prefix", "values")

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        self.values = values
        self._prefix = f"{path}." if path else ""

    def where(self, name: str) -> str:
        return self._prefix + name

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def require(self, name: str) -> Any:
        value = self.values.get(name)
        if value is None:
            raise MissingField(self.where(name))
        return value

    def require_string(self, name: str) -> str:
        return as_string(self.require(name), self.where(name))

    def require_object(self, name: str) -> Fields:
        return Fields(as_object(self.require(name), self.where(name)), self.where(name))

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.values.get(name)
        return None if value is None else as_integer(value, self.where(name), low, high)

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.values.get(name)
        return None if value is None else as_number(value, self.where(name), low, high)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidType(self.where(name), "true or false")
        return value

    def string(self, name: str) -> str | None:
        value = self.values.get(name)
        return None if value is None else as_string(value, self.where(name))

    def name(self, name: str) -> str | None:
        """A name; the empty one counts as absent, as clients send it when they have nothing to say."""
        value = self.values.get(name)
        return None if value is None else as_name(value, self.where(name)) or None

    def choice(self, name: str, allowed: Sequence[str]) -> str | None:
        value = self.string(name)
        if value is not None and value not in allowed:
            listing = ", ".join(f"'{word}'" for word in allowed)
            raise InvalidRequest(f"'{self.where(name)}' must be one of {listing}", self.where(name))
        return value

    def array(self, name: str) -> Sequence[Any] | None:
        value = self.values.get(name)
        return None if value is None else as_array(value, self.where(name))

    def object(self, name: str) -> Fields | None:
        value = self.values.get(name)
        return None if value is None else Fields(as_object(value, self.where(name)), self.where(name))
