"""The text of a JSON object that was cut off, brought to an end: what is there stays, and what has to follow is found."""

from __future__ import annotations

import json
import re
from typing import Final, Literal

_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:(")|\\?\Z)|([{}\[\],:])|[^\s"{}\[\],:]+', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-fA-F]{4}|[^u]|u?[0-9a-fA-F]{0,3}\Z)", re.DOTALL)
_FIRST_HALF: Final = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
_SECOND_HALF: Final = r"\udc00"
"""Of a character that is escaped as two; the second may be any from this one on."""
_WORDS: Final = ("true", "false", "null")
_CLOSING: Final = {"{": "}", "[": "]"}
_MISSING: Final = {"key": '"":null', "colon": ":null", "value": "null"}

Place = Literal["first key", "key", "colon", "value", "first item", "end"]
"""What may come next."""


def ending(text: str) -> str:
    """What has to follow the text of an object, whole or cut off, for all of it to be one; "" of a whole one."""
    if is_json(text):
        return ""
    if not text.strip():
        return "{}"
    opened: list[str] = []
    place: Place = "value"
    last = ""
    for token in _TOKEN.finditer(text):
        last = "" if token[1] or token[2] or token.end() < len(text) else token[0]
        match token[2]:
            case "{":
                opened.append("{")
                place = "first key"
            case "[":
                opened.append("[")
                place = "first item"
            case "}" | "]":
                del opened[-1:]
                place = "end"
            case ",":
                place = "key" if opened[-1:] == ["{"] else "value"
            case ":":
                place = "value"
            case _:
                place = "colon" if place in ("first key", "key") else "end"
    closing = "".join(_CLOSING[bracket] for bracket in reversed(opened))
    return _finish(last) + _MISSING.get(place, "") + closing


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _finish(token: str) -> str:
    """Of a string, a word or a number that the text ends with; "" of none."""
    if token[:1] == '"':
        return _finish_escape(token) + '"'
    for word in _WORDS:
        if token and word.startswith(token):
            return word[len(token) :]
    return "0" if token and not token[-1].isdigit() else ""


def _finish_escape(string: str) -> str:
    before, last = "", ""
    end = 0
    for escape in _ESCAPE.finditer(string):
        before, last = last if escape.start() == end else "", escape[0]
        end = escape.end()
    if end < len(string):
        return ""
    if _FIRST_HALF.fullmatch(before) and _SECOND_HALF.startswith(last.lower()):
        return _SECOND_HALF[len(last) :]
    if last == "\\":
        return "\\"
    missing = "0" * (6 - len(last)) if last[1:2] == "u" else ""
    return missing + (_SECOND_HALF if _FIRST_HALF.fullmatch(last + missing) else "")
