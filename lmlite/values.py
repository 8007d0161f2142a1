"""How much a JSON text holds, told before it is parsed. Python's parser keeps the interpreter from all other threads until it
is done: 8 MB of empty objects are a second and a quarter of a gigabyte."""

from __future__ import annotations


def holds_more(text: bytes, n_max: int) -> bool:
    """Than `n_max` values. Strings may have as many commas and brackets as they like."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") <= n_max:
        return False
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * n_max:  # names and values, with one at either end
        return True
    outside = b"".join(bare.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{") > n_max
