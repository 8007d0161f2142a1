"""JSON of others: how much it holds, told before it is parsed, and its values as UTF-8 can say them. Python's parser keeps the
interpreter from all other threads until it is done: 8 MB of empty objects are a second and a quarter of a gigabyte."""

from __future__ import annotations

import json
import re
from typing import Any, Final

HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""How half of a surrogate pair is written. JavaScript cuts texts between the two."""


def load_whole(text: str) -> Any:
    """The value, with U+FFFD in the place of a half, which UTF-8 has no bytes for. Raises ValueError and RecursionError."""
    value = json.loads(text)
    if HALF.search(text) is None:
        return value
    spelled = json.dumps(value, ensure_ascii=False)
    return json.loads(spelled.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def holds_more(text: bytes, n_max: int) -> bool:
    """Than `n_max` values. Strings may have as many commas and brackets as they like."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") <= n_max:
        return False
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * n_max:  # names and values, with one at either end
        return True
    outside = b"".join(bare.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{") > n_max
