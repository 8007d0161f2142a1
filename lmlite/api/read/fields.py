"""Typed reads of the fields of a JSON body; every refusal is an `errors.InvalidRequest` that names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import InvalidRequest, InvalidType, MissingField, OutOfRange

NAME_CHARS_MAX = 1024
"""Characters of a name (model, tool, user): file systems stop at 255 a component."""


def clip(text: str) -> str:
    """What of a client's word goes into a message."""
    return text if len(text) <= 80 else text[:80] + "…"


# ---- single values: `where` is the field's name as the client would write it -----------------------------------------


def as_integer(value: object, where: str, low: int, high: int) -> int:
    """JSON `1` and `1.0`, for JSON knows one kind of number only, but not `"1"` or `true`."""
    if type(value) is float and value.is_integer():
        value = int(value)
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


def as_boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidType(where, "true or false")
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
        return default if value is None else as_boolean(value, self.where(name))

    def optional_boolean(self, name: str) -> bool | None:
        """None where nothing is said."""
        return None if self.values.get(name) is None else self.boolean(name)

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
