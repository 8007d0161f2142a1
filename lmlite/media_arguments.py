"""Pictures and sound as Python programs have them: paths, bytes, numpy arrays, PIL images. They become parts of messages as
requests have them, and what is wrong with one is a TypeError or ValueError before anything runs."""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

PIXELS_MAX: Final = 1 << 25
"""Of an array or a PIL image: the engine takes no larger ones, and they would be written here for nothing."""
CHANNELS: Final[Mapping[int, int]] = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's color types: gray, gray with alpha, RGB, RGB with alpha."""


def spelled_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """`message`, with parts of its content that requests do not have in their words. An item of the content may be a text or a
    picture itself; {"type": "image", "image": ...} and {"type": "audio", "audio": ...} say what it is."""
    content = message.get("content")
    if isinstance(content, (str, bytes, bytearray)) or not isinstance(content, Sequence):
        content = [content] if is_picture(content) else None
    if content is None:
        return dict(message)
    return {**message, "content": [spelled_part(part) for part in content]}


def spelled_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if is_picture(part):
        return picture_part(part)
    if isinstance(part, Mapping):
        if part.get("type") == "image" and "image" in part:
            return picture_part(part["image"])
        if part.get("type") == "audio" and "audio" in part:
            data = base64.b64encode(file_of(part["audio"], "audio")).decode()
            return {"type": "input_audio", "input_audio": {"data": data}}
        return dict(part)
    raise TypeError(f"a part of a message must be a text, a picture or a mapping, not {type(part).__name__}")


def is_picture(value: object) -> bool:
    return isinstance(value, (Path, bytes, bytearray, memoryview)) or _is_array(value) or _is_pil(value)


def picture_part(value: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(picture_of(value)).decode()}"}}


def picture_of(value: Any) -> bytes:
    """The file that it is, or that is made of it."""
    if _is_array(value):
        return png_of(value)
    return _saved(value) if _is_pil(value) else file_of(value, "image")


def file_of(value: Any, name: str) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (str, os.PathLike)):
        return Path(value).expanduser().read_bytes()
    kinds = "a path or bytes" if name == "audio" else "a path, bytes, a numpy array or a PIL image"
    raise TypeError(f"{name} must be {kinds}, not {type(value).__name__}")


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # who has an array has imported it
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_pil(value: object) -> bool:
    image = sys.modules.get("PIL.Image")
    return image is not None and isinstance(value, image.Image)


def _saved(image: Any) -> bytes:
    """Turned as its camera was held."""
    if image.width * image.height > PIXELS_MAX:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels is too large")
    shown = import_module("PIL.ImageOps").exif_transpose(image)
    shown = shown.convert("RGBA" if shown.has_transparency_data else "RGB")
    file = io.BytesIO()
    shown.save(file, "PNG", compress_level=1)
    return file.getvalue()


def png_of(array: Any) -> bytes:
    """Of an array of bytes: height x width, or height x width x channels (gray, gray and alpha, RGB, RGB and alpha)."""
    if array.dtype.name != "uint8":
        raise TypeError(f"a picture's array must be of type uint8 (0..255), not {array.dtype.name}")
    rows = array[:, :, None] if array.ndim == 2 else array
    if rows.ndim != 3 or rows.shape[2] not in CHANNELS or not 0 < rows.shape[0] * rows.shape[1] <= PIXELS_MAX:
        raise ValueError(f"a picture's array has the shape (height, width) or (height, width, 1..4), not {array.shape}")
    height, width, channels = rows.shape
    compress = zlib.compressobj(1)
    lines = [compress.compress(b"\0" + row.tobytes()) for row in rows]
    head = struct.pack(">IIBBBBB", width, height, 8, CHANNELS[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", b"".join((*lines, compress.flush()))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
