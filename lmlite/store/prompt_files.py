"""What engines keep of prompts on the disk (`--prompt-cache`): a folder of files for each model. They alone write and remove
them; here they are only looked at."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

MODEL_NAME: Final = re.compile("[0-9a-f]{32}")
"""Of a model's folder; what else lies there is somebody else's."""


def held_bytes(folder: Path) -> int:
    """As the engines count them against their budget. Files that come and go meanwhile are no failure."""
    held = 0
    for model in entries(folder):
        if MODEL_NAME.fullmatch(model.name) and is_of_kind(model, folders=True):
            held += sum(size_of(file) for file in entries(model.path) if is_of_kind(file, folders=False))
    return held


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def is_of_kind(entry: os.DirEntry[str], *, folders: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) if folders else entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
