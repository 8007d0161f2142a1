"""Bodies that were sent compressed: inflated in steps, within the limit that other bodies have.

For threads: a small body can inflate to the limit, which takes longer than an event loop may be kept.
"""

from __future__ import annotations

import zlib

from ..errors import HttpError

GZIP = 16 + zlib.MAX_WBITS
STEP = 256 << 10
"""Bytes inflated at once: what a bomb can take beyond the limit."""
READ = 64 << 10
"""Bytes read at once: what is left of them is copied after each step and each member."""
MEMBERS_MAX = 4096
"""Compressors that work in blocks make one of 64 KiB or more; millions of empty ones are work for nothing."""


def inflate(body: bytes | bytearray, limit: int) -> bytearray:
    """The content of a gzip body, of all its members. `HttpError` 413 for more than `limit` bytes, 400 for what is no gzip."""
    inflated = bytearray()
    if not body:
        return inflated
    member, n_members = zlib.decompressobj(GZIP), 1
    try:
        with memoryview(body) as view:
            for start in range(0, len(view), READ):
                rest: bytes | memoryview = view[start : start + READ]
                while rest:
                    if member.eof:
                        member, n_members = zlib.decompressobj(GZIP), n_members + 1
                        if n_members > MEMBERS_MAX:
                            raise HttpError(400, f"the body has more than {MEMBERS_MAX} gzip members")
                    extend(inflated, member.decompress(rest, STEP), limit)
                    rest = member.unused_data if member.eof else member.unconsumed_tail
        while not member.eof:
            if not extend(inflated, member.decompress(b"", STEP), limit):
                raise HttpError(400, "the body ends in the middle of its gzip data")
    except zlib.error:
        raise HttpError(400, "the body is not what gzip makes") from None
    return inflated


def extend(inflated: bytearray, piece: bytes, limit: int) -> int:
    inflated += piece
    if len(inflated) > limit:
        raise HttpError(413, f"the body is larger than {limit} bytes")
    return len(piece)
