"""Bodies that were sent compressed: inflated in steps, within the limit that other bodies have.

For threads: a small body can inflate to the limit, which takes longer than an event loop may be kept.
"""

from __future__ import annotations

import zlib

from ..errors import HttpError

GZIP = 16 + zlib.MAX_WBITS
STEP = 256 << 10
"""Bytes inflated at once: what a bomb can take beyond the limit."""


def inflate(body: bytes | bytearray, limit: int) -> bytearray:
    """The content of a gzip body, of all its members. `HttpError` 413 for more than `limit` bytes, 400 for what is no gzip."""
    inflated = bytearray()
    rest = bytes(body)
    try:
        while rest:
            member = zlib.decompressobj(GZIP)
            while not member.eof:
                piece = member.decompress(rest, STEP)
                rest = member.unconsumed_tail
                inflated += piece
                if len(inflated) > limit:
                    raise HttpError(413, f"the body is larger than {limit} bytes")
                if not member.eof and not piece and not rest:
                    raise HttpError(400, "the body ends in the middle of its gzip data")
            rest = member.unused_data
    except zlib.error:
        raise HttpError(400, "the body is not what gzip makes") from None
    return inflated
