"""WebP pictures, which the engine does not read: their header is checked here, then a process of its own makes PNG of them,
with Pillow where that is installed. What it dies of is nobody else's end, and no decoder holds up the event loop.
"""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Final

from ...errors import MediaRefused
from ...messages import MediaPart

PIXELS_MAX: Final = 1 << 25
"""Of one picture, 33 million: cameras make 12 to 24 million, and 300 MB while they are decoded."""
DECODE_S: Final = 10.0
"""The largest take two seconds."""
KEPT_BYTES: Final = 32 << 20
"""Of PNG, for a conversation that goes on: its pictures come again with each turn."""
DECODER: Final = Path(__file__).with_name("webp_decoder.py")

HINT: Final = "it is WebP, which this server reads only with Pillow (pip install 'lmlite[webp]'): send PNG or JPEG"


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height as the header tells them. Raises ValueError."""
    kind, head = data[12:16], data[20:30]
    if len(head) == 10:
        match kind:
            case b"VP8X":
                return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
            case b"VP8L" if head[0] == 0x2F:
                bits = int.from_bytes(head[1:5], "little")
                return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
            case b"VP8 " if head[3:6] == b"\x9d\x01\x2a":
                width, height = struct.unpack("<HH", head[6:10])
                return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no header of WebP")


class WebP:
    """Makes PNG of WebP, one picture at a time; for one event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._turn = asyncio.Lock()

    async def replaced(self, media: tuple[MediaPart, ...]) -> tuple[MediaPart, ...]:
        """`media` with PNG in the places of WebP. Raises `MediaRefused`."""
        if not any(part.kind == "image" and is_webp(part.data) for part in media):
            return media
        shown = []
        for index, part in enumerate(media):
            if part.kind == "image" and is_webp(part.data):
                part = MediaPart("image", await self._png(part, index), part.where)
            shown.append(part)
        return tuple(shown)

    async def _png(self, part: MediaPart, index: int) -> bytes:
        try:
            width, height = size_of(part.data)
        except ValueError:
            raise MediaRefused("it begins as WebP and is none", index, part.where) from None
        if not 0 < width * height <= PIXELS_MAX:
            told = f"a WebP picture of {width} x {height} pixels is too large: {PIXELS_MAX} pixels are the limit"
            raise MediaRefused(told, index, part.where)
        if importlib.util.find_spec("PIL") is None:
            raise MediaRefused(HINT, index, part.where)
        async with self._turn:
            if part.digest not in self._kept:
                png = await asyncio.to_thread(decode, part.data)
                if png is None:
                    raise MediaRefused("it is WebP that cannot be read", index, part.where)
                self._kept[part.digest] = png
                while len(self._kept) > 1 and sum(map(len, self._kept.values())) > KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(part.digest)
            return self._kept[part.digest]


def decode(data: bytes) -> bytes | None:
    """In a process of its own; None if it fails of it."""
    try:
        done = subprocess.run(
            [sys.executable, str(DECODER)], input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=DECODE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 and done.stdout else None
