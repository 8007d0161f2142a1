"""Writes `lmlite.pyz`: the built package in one file that any CPython from 3.10 on runs, without pip, cffi or numpy.

Models that go with it lie as they are between the file's first line and the archive, each from the beginning of a page:
so they can be mapped into memory from there, however large they are, and Python reads an archive behind anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

BEGINNING: Final = b"#!/usr/bin/env python3\n"
DATE: Final = (1980, 1, 1, 0, 0, 0)
"""Of every entry: the same package makes the same file."""
DIGITS: Final = 16
LEFT_OUT: Final = ("__pycache__",)
PAGE: Final = 65536
"""The largest that systems have."""
INDEX: Final = "models.json"
"""What lmlite/archive.py reads."""
_PART: Final = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.gguf", re.IGNORECASE)


class ModelError(Exception):
    """Why a model cannot go with the package: a sentence."""


def write(package: Path, target: Path, models: Sequence[Path] = ()) -> None:
    """`package` is the folder of the built package `lmlite`, the library in it; `models` are GGUF files, projectors too, of a
    model in parts any of them. Replaces `target` as a whole. Raises ModelError."""
    files = sorted(path for path in package.rglob("*") if path.is_file() and not set(path.parts) & set(LEFT_OUT))
    if not any(path.name == "lmlite-engine" for path in files):
        raise FileNotFoundError(f"{package} was not built: there is no engine in it")
    placed = place(models)
    digest = hashlib.sha256()
    for path in files:
        digest.update(repr((str(path.relative_to(package)), path.stat().st_size)).encode())
        digest.update(path.read_bytes())
    first = (Path(__file__).parent / "first.py").read_text(encoding="utf-8")
    sizes = {f"lmlite/{path.relative_to(package).as_posix()}": path.stat().st_size for path in files}
    first = first.replace("@DIGEST@", digest.hexdigest()[:DIGITS])
    first = first.replace('"@HAS_MODELS@"', repr(bool(placed))).replace('{"@FILES@": 0}', repr(sizes))
    begun = target.with_name(f"{target.name}.new")
    with removed_if_unfinished(begun), begun.open("wb") as file:
        file.write(BEGINNING)
        index = {name: add_model(file, path) for name, path in sorted(placed.items())}
        packed = io.BytesIO()  # for itself: its places count from its own beginning, and old Pythons know none above 4 GB
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            add(archive, "__main__.py", first.encode(), 0o644)
            if index:
                add(archive, INDEX, json.dumps(index).encode(), 0o644)
            for path in files:
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                add(archive, f"lmlite/{path.relative_to(package).as_posix()}", path.read_bytes(), mode)
        file.write(packed.getbuffer())
    begun.chmod(0o755)
    os.replace(begun, target)


@contextlib.contextmanager
def removed_if_unfinished(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def place(models: Sequence[Path]) -> dict[str, Path]:
    """The files by their place in the archive: `publisher/repo/file.gguf` for what lies so on the disk, else a folder for each
    folder, so that projectors stay with their models."""
    placed: dict[str, Path] = {}
    folders: dict[Path, str] = {}
    for model in models:
        path = Path(os.path.abspath(model))
        for file in with_other_parts(path):
            check(file)
            folder = folders.setdefault(file.parent, in_layout(file) or str(len(folders)))
            placed[f"{folder}/{file.name}"] = file
    return placed


def with_other_parts(path: Path) -> list[Path]:
    split = _PART.fullmatch(path.name)
    if split is None:
        return [path]
    n = int(split[2])
    return [path.with_name(f"{split[1]}-{i:05}-of-{n:05}{path.suffix}") for i in range(1, n + 1)]


def check(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is no GGUF file")
    except OSError as error:
        raise ModelError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None


def in_layout(path: Path) -> str | None:
    """publisher/repo of a file in a folder that has the file's name, in another folder."""
    repo, publisher = path.parent.name, path.parent.parent.name
    known = re.sub(r"[-_. ]gguf$", "", repo, flags=re.IGNORECASE)
    return f"{publisher}/{repo}" if known and publisher and plain(path.name).startswith(plain(known)) else None


def plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.casefold())


def add_model(file: BinaryIO, path: Path) -> tuple[int, int]:
    """Where it begins in `file`, and its size."""
    file.write(b"\0" * (-file.tell() % PAGE))
    begin = file.tell()
    with path.open("rb") as source:
        shutil.copyfileobj(source, file, 1 << 20)
    return begin, file.tell() - begin


def add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    entry = zipfile.ZipInfo(name, DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = mode << 16
    archive.writestr(entry, content)
