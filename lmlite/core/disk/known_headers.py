"""What was read of model files, kept from one start of the server to the next: a large vocabulary takes long to walk.

The file is lmlite's own and no more than a shortcut. One that is damaged, of another version of the reader, or that
cannot be written costs the time of reading again, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ...card import Reasoning
from ...records import dataclass
from . import chat_template, gguf
from .gguf import Facts, Header

log = logging.getLogger(__name__)

FILE_NAME: Final = "headers.json"
MAX_BYTES: Final = 64 << 20
"""A hundred thousand models; a file that is not ours is not read whole."""

Stamp = tuple[str, int, int, int]
"""What changes with a file: path, size, mtime in ns, inode."""


@dataclass(slots=True, frozen=True)
class Seen:
    """What was read of a file. A file that was cut off behind its header has `facts` and a `problem`."""

    size: int  # of what is the model's
    problem: str | None
    facts: Facts | None = None
    header: Header | None = None  # of parts of a model only: their facts are told together


def stamp_of(path: Path) -> Stamp | None:
    """None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino


def load(path: Path) -> dict[Stamp, Seen]:
    """What `save` has left there, {} if that is nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return {}
            head, _, body = file.read(MAX_BYTES).partition(b"\n")
        if head != _head(body):
            return {}
        rows = json.loads(body)
        return {(name, *rest): _seen(size, problem, facts) for name, *rest, size, problem, facts in rows}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def save(path: Path, seen: Mapping[Stamp, Seen]) -> None:
    """Models in parts are left out: their headers are too large to be kept twice."""
    kept = [(stamp, it) for stamp, it in seen.items() if not it.header]
    rows = [(*stamp, it.size, it.problem, asdict(it.facts) if it.facts else None) for stamp, it in kept]
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        body = json.dumps(rows, separators=(",", ":")).encode()
        beside.write_bytes(_head(body) + b"\n" + body)
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        log.debug("%s is not written: %s", FILE_NAME, error)
        with contextlib.suppress(OSError):
            beside.unlink()


def _seen(size: int, problem: str | None, facts: dict[str, object] | None) -> Seen:
    if facts is None:
        return Seen(size, problem)
    told = facts["reasoning"]
    if isinstance(told, dict):
        facts["reasoning"] = Reasoning(tuple(told["options"]), told["default"], told["effort_off"])
    return Seen(size, problem, Facts(**facts))  # type: ignore[arg-type]


def _head(body: bytes) -> bytes:
    """Changes with the body, and with the code that reads headers."""
    readers = [stamp_of(Path(module.__file__ or "")) for module in (gguf, chat_template)]
    reader = [stamp[1:3] for stamp in readers if stamp is not None]
    return f"{reader} {zlib.crc32(body):08x}".encode()
