"""Pictures and sounds for a model, at the terminal: files by their names, or dropped on it, which types their paths."""

from __future__ import annotations

import base64
import io
import os
import shlex
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from ..errors import LmError
from .terminal import escaped

BYTES_MAX: Final = 20 << 20
"""Of one file: a server takes requests of 32 MiB, and Base64 makes a third more of it."""
PICTURES: Final = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".bmp": "image/bmp",
                   ".webp": "image/webp"}  # fmt: skip
SOUNDS: Final = {".wav": "wav", ".mp3": "mp3", ".flac": "flac"}


def is_medium(path: Path) -> bool:
    return path.suffix.lower() in (PICTURES.keys() | SOUNDS.keys())


def read(path: Path) -> dict[str, Any]:
    """The file as a part of a message; what it really is the server finds out. Raises `LmError`."""
    shown = escaped(str(path))
    try:
        if not path.is_file():
            raise LmError(f"{shown} is not there." if not path.exists() else f"{shown} is not a file.")
        if path.stat().st_size > BYTES_MAX:
            raise LmError(f"{shown} is larger than {BYTES_MAX >> 20} MiB.")
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise LmError(f"{shown} cannot be read: {error.strerror}") from None
    if (form := SOUNDS.get(path.suffix.lower())) is not None:
        return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
    kind = PICTURES.get(path.suffix.lower(), "application/octet-stream")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def named(text: str) -> Path:
    """A path as people type it, or as windows drop it: quoted, with backslashes, as a file: URL."""
    words = _words(text)
    return _path(words[0] if len(words) == 1 else text)


def dropped(line: str) -> tuple[list[Path], str]:
    """Files at the beginning of a line that are there and are pictures or sounds, and the rest of it."""
    paths: list[Path] = []
    rest = line.strip()
    while rest.startswith(("/", "~", "'", '"', "file:", "./", "../")):
        word, after = _first(rest)
        path = _path(word)
        if not is_medium(path) or not path.is_file():
            break
        paths.append(path)
        rest = after
    return paths, rest if paths else line


def _first(text: str) -> tuple[str, str]:
    """The first word, as a shell reads it, and what is behind it."""
    stream = io.StringIO(text)
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        word = lexer.get_token() or ""
    except ValueError:  # a quote that is not closed
        return text, ""
    return word, stream.read().strip()


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return [text]


def _path(word: str) -> Path:
    if word.startswith("file:"):
        word = unquote(urlsplit(word).path)
    return Path(os.path.expanduser(word))
