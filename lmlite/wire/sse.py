"""Server-sent events: the bytes of one event, of the end that OpenAI's clients wait for, and of a sign of life."""

from __future__ import annotations

import re

HEADERS = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)
"""Proxies must neither keep a stream back nor compress it."""
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which every client skips."""
SILENCE_S = 10.0
"""A stream that has nothing to say for so long says that: clients and proxies give up on those that do not."""

LINE_END = re.compile(r"\r\n|\r|\n")


def frame(name: str | None, payload: str) -> bytes:
    """One event: `payload` is JSON text. A payload of several lines becomes several data lines, which clients rejoin."""
    if "\n" in payload or "\r" in payload:
        payload = LINE_END.sub("\ndata: ", payload)
    if name is None:
        return f"data: {payload}\n\n".encode()
    if "\n" in name or "\r" in name:
        raise ValueError(f"not an event name: {name!r}")
    return f"event: {name}\ndata: {payload}\n\n".encode()
