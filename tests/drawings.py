"""Draws what the bundled model that sees knows: shapes of one colour on a light ground, as PNG files."""

from __future__ import annotations

import base64
import random
import re
import struct
import zlib
from typing import Any

COLOURS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40), "purple": (150, 50, 180),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")


def png(width: int, height: int, pixels: bytes) -> bytes:
    """Of three bytes a pixel, row by row."""
    rows = b"".join(b"\0" + pixels[3 * width * y : 3 * width * (y + 1)] for y in range(height))
    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _is_inside(shape: str, x: float, y: float) -> bool:
    """Of a shape about as large as the square from -1 to 1; y grows downwards."""
    if shape == "circle":
        return x * x + y * y < 1
    if shape == "square":
        return max(abs(x), abs(y)) < 0.86
    return y < 1 and abs(x) < (1 + y) / 2


def drawing(colour: str, shape: str, side: int = 96, seed: int = 0) -> bytes:
    """Somewhere in the picture, in some size: one picture for each seed."""
    chance = random.Random(f"{colour} {shape} {side} {seed}")
    radius = side * chance.uniform(0.2, 0.4)
    left, top = chance.uniform(radius, side - radius), chance.uniform(radius, side - radius)
    ground = bytes(round(chance.uniform(225, 255)) for _ in range(3))
    paint = bytes(max(0, min(255, round(value + chance.uniform(-15, 15)))) for value in COLOURS[colour])
    pixels = b"".join(
        paint if _is_inside(shape, (x + 0.5 - left) / radius, (y + 0.5 - top) / radius) else ground
        for y in range(side)
        for x in range(side)
    )
    return png(side, side, pixels)


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def part(picture: bytes) -> dict[str, Any]:
    """As OpenAI's chats have it."""
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def named(answer: str) -> set[str]:
    """The colours and shapes that an answer names."""
    return set(re.findall("[a-z]+", answer.lower())) & {*COLOURS, *SHAPES}
