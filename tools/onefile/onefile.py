"""Writes `lmlite.pyz`: the built package in one file that any CPython from 3.10 on runs, without pip, cffi or numpy."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Final

BEGINNING: Final = b"#!/usr/bin/env python3\n"
DATE: Final = (1980, 1, 1, 0, 0, 0)
"""Of every entry: the same package makes the same file."""
DIGITS: Final = 16
LEFT_OUT: Final = ("__pycache__",)


def write(package: Path, target: Path) -> None:
    """`package` is the folder of the built package `lmlite`, the library in it. Replaces `target` as a whole."""
    files = sorted(path for path in package.rglob("*") if path.is_file() and not set(path.parts) & set(LEFT_OUT))
    if not any(path.name == "lmlite-engine" for path in files):
        raise FileNotFoundError(f"{package} was not built: there is no engine in it")
    digest = hashlib.sha256()
    for path in files:
        digest.update(repr((str(path.relative_to(package)), path.stat().st_size)).encode())
        digest.update(path.read_bytes())
    first = (Path(__file__).parent / "first.py").read_text(encoding="utf-8")
    first = first.replace("@DIGEST@", digest.hexdigest()[:DIGITS])
    begun = target.with_name(f"{target.name}.new")
    with begun.open("wb") as file:
        file.write(BEGINNING)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            add(archive, "__main__.py", first.encode(), 0o644)
            for path in files:
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                add(archive, f"lmlite/{path.relative_to(package).as_posix()}", path.read_bytes(), mode)
    begun.chmod(0o755)
    os.replace(begun, target)


def add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    entry = zipfile.ZipInfo(name, DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = mode << 16
    archive.writestr(entry, content)
