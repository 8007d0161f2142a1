"""What was read in steps, as one. To join many megabytes at once is to touch as much new memory, page by page, which takes
tens of milliseconds in which no other thread has the interpreter: here memory is touched by a piece at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Final

GROWTH: Final = 1 << 20
"""Characters: a millisecond. Where a text cannot grow in place, as while a debugger looks on, it is copied each time."""


def text_of(pieces: Iterable[str]) -> str:
    """A text that nobody else holds grows where it is."""
    text = ""
    for part in _parts(pieces):
        text += part
    return text


def _parts(pieces: Iterable[str]) -> Iterator[str]:
    part, n = list[str](), 0
    for piece in pieces:
        part.append(piece)
        n += len(piece)
        if n >= GROWTH:
            yield "".join(part)
            part, n = [], 0
    yield "".join(part)


def bytes_of(pieces: Iterable[bytes], n: int) -> bytes:
    """The `pieces`, which have `n` bytes in all. So many zeros are memory that is not there before it is written to, and a
    BytesIO writes to those that nobody else holds, and gives them back as they are."""
    with BytesIO(bytes(n)) as whole:
        for piece in pieces:
            whole.write(piece)
        return whole.getvalue()
