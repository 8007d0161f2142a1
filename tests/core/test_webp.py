"""WebP pictures become PNG in a process of their own, and what is none, too large or broken is told."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import random
import struct
from typing import Any

import pytest
from PIL import Image

from lmlite.core.engine import webp as module
from lmlite.core.engine.webp import HINT, WebP, is_webp, size_of
from lmlite.errors import MediaRefused
from lmlite.messages import MediaPart

RED, WHITE = (255, 0, 0), (255, 255, 255)


def picture(size: tuple[int, int] = (40, 30), mode: str = "RGB", color: Any = RED, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "WEBP", **more)
    return file.getvalue()


def shown(data: bytes, webp: WebP | None = None) -> Image.Image:
    async def run() -> bytes:
        (part,) = await (webp or WebP()).replaced((MediaPart("image", data, "input"),))
        assert part.where == "input"
        return part.data

    return Image.open(io.BytesIO(asyncio.run(run())))


def near(image: Image.Image, place: tuple[int, int], color: tuple[int, int, int]) -> bool:
    pixel = image.convert("RGB").getpixel(place)
    assert isinstance(pixel, tuple)
    return max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 8


@pytest.mark.parametrize("more", [{}, {"lossless": True}, {"quality": 10}])
def test_a_picture_becomes_png(more: dict[str, Any]) -> None:
    data = picture(**more)
    assert is_webp(data) and size_of(data) == (40, 30)
    image = shown(data)
    assert (image.format, image.size, image.mode) == ("PNG", (40, 30), "RGB") and near(image, (20, 15), RED)


def test_what_is_transparent_is_white() -> None:
    data = picture(mode="RGBA", color=(255, 0, 0, 0), lossless=True)
    assert size_of(data) == (40, 30)
    assert near(shown(data), (0, 0), WHITE)


def test_a_picture_is_turned_as_its_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert shown(picture(exif=exif)).size == (30, 40)


def test_of_a_film_the_first_picture_is_taken() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), color) for color in (RED, (0, 0, 255))]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert near(shown(file.getvalue()), (5, 5), RED)


def refused(data: bytes) -> str:
    with pytest.raises(MediaRefused) as caught:
        shown(data)
    assert caught.value.param == "input" and caught.value.status == 400
    return caught.value.reason


def vp8x(width: int, height: int) -> bytes:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("size", [(1 << 24, 1 << 24), (16384, 16384), (1 << 24, 3)])
def test_a_picture_that_is_too_large_reaches_no_decoder(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode", None)
    assert f"{size[0]} x {size[1]} pixels is too large" in refused(vp8x(*size))


def test_a_header_that_lies_is_found_out() -> None:
    data = bytearray(picture(mode="RGBA", color=(1, 2, 3, 4), size=(2000, 2000)))
    assert data[12:16] == b"VP8X"
    data[24:27] = data[27:30] = (9).to_bytes(3, "little")
    assert refused(bytes(data)) == "it is WebP that cannot be read"


def test_broken_ones_are_told() -> None:
    whole = picture((64, 64), lossless=True)
    draw = random.Random(5)
    for cut in (12, 16, 20, 29, len(whole) // 2):
        assert refused(whole[:cut]) in ("it begins as WebP and is none", "it is WebP that cannot be read")
    noisy = bytearray(whole)
    noisy[21:] = draw.randbytes(len(noisy) - 21)
    assert "WebP" in refused(bytes(noisy))


def test_without_pillow_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused(picture()) == HINT


def test_the_same_picture_is_decoded_once_and_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def decode(data: bytes) -> bytes:
        decoded.append(data)
        return b"png of " + data[-4:]

    monkeypatch.setattr(module, "decode", decode)
    monkeypatch.setattr(module, "KEPT_BYTES", 25)

    async def run() -> None:
        webp = WebP()
        files = [MediaPart("image", picture(size=(n, n))) for n in (10, 11, 12)]
        for media in ((files[0], files[1]), (files[1], files[0]), (files[2],), (files[0],), (files[1],)):
            await webp.replaced(media)
        assert decoded == [files[n].data for n in (0, 1, 2, 1)]

    asyncio.run(run())


def test_others_pass_as_they_are() -> None:
    media = (MediaPart("image", b"\x89PNG"), MediaPart("audio", b"RIFF\0\0\0\0WEBPVP8 "))
    assert asyncio.run(WebP().replaced(media)) is media
