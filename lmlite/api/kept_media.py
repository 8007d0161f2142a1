"""Pictures and sound in the JSON that is kept of a request: their digests stand in it, the bytes are kept beside it, once.

A text of a client's that looks like one of these marks stays what it is, unless it names a picture of the very same request.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..messages import MediaPart, Message, media_of
from ..pieces import text_of

MARK: Final = re.compile(r"lmlite-media:([0-9a-f]{64});(.*)", re.DOTALL)
STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
"""Of a place in a request, as errors tell it: `input[2].content[0].image_url`."""
PIECE: Final = 3 << 15
"""Bytes that are encoded at once; see `read.media.STEP`."""


def without_media(given: Any, name: str, messages: Iterable[Message]) -> Any:
    """`given`, which is the field `name` of a request, with marks in the places of the media of the `messages` that were read
    from it. A request may have tens of thousands of them, all in one list."""
    places: dict[Any, Any] = {}
    for part in media_of(messages):
        if part.where and not part.url:
            *way, last = _steps(part.where)
            inner = places
            for step in way:
                inner = inner.setdefault(step, {})
            inner[last] = part
    return _marked({name: given}, places)[name]


def _steps(where: str) -> list[str | int]:
    return [int(index) if index else name for name, index in STEP.findall(where)]


def _marked(value: Any, places: Any) -> Any:
    """A copy of as much of `value` as the `places` in it change."""
    if isinstance(places, MediaPart):
        text = str(value)
        return f"lmlite-media:{places.digest};{text[: text.find(',') + 1] if text[:5].lower() == 'data:' else ''}"
    copy: Any = dict(value) if isinstance(value, Mapping) else list(value)
    for step, inner in places.items():
        copy[step] = _marked(copy[step], inner)
    return copy


def with_media(kept: Any, messages: Iterable[Message]) -> Any:
    """What `without_media` has left, as it was sent."""
    known = {part.digest: part.data for part in media_of(messages)}
    return _restored(kept, known) if known else kept


def _restored(value: Any, known: Mapping[str, bytes]) -> Any:
    match value:
        case dict():
            return {name: _restored(item, known) for name, item in value.items()}
        case list():
            return [_restored(item, known) for item in value]
        case str() if (mark := MARK.fullmatch(value)) is not None and mark[1] in known:
            return mark[2] + encode(known[mark[1]])
    return value


def encode(data: bytes) -> str:
    return text_of(base64.b64encode(data[begin : begin + PIECE]).decode() for begin in range(0, len(data), PIECE))
