"""Model files inside another file (`lmlite.pyz`), which are used where they lie and never unpacked.

Such a model's path is that of the file around it with where it begins and how long it is, and behind that its own name:
`/opt/lmlite.pyz@65536+1519392/falcon.gguf`. A file that is really called so goes before. The engine reads `FILE@BEGIN+SIZE`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .records import dataclass

VARIABLE: Final = "LMLITE_ARCHIVE"
"""Set by what starts the package from an archive with models in it: that archive."""
INDEX: Final = "models.json"
"""The archive's entry that tells which models lie where: `{"publisher/repo/file.gguf": [begin, size]}`."""
MAX_INDEX: Final = 1 << 20

_PART: Final = re.compile(r"(.*[^/])@([0-9]{1,18})\+([0-9]{1,18})/[^/]+", re.DOTALL)


@dataclass(slots=True, frozen=True)
class Part:
    file: str
    begin: int
    size: int

    def path(self, name: str) -> Path:
        return Path(f"{self}/{name}")

    def __str__(self) -> str:
        return f"{self.file}@{self.begin}+{self.size}"


def part(path: str | Path) -> Part | None:
    """What a path leads to inside of another file; None for any other path."""
    split = _PART.fullmatch(os.fspath(path))
    if split is None or os.path.lexists(path):
        return None
    return Part(split[1], int(split[2]), int(split[3]))


def file_of(path: Path) -> Path:
    """The file that is opened for `path`."""
    inside = part(path)
    return path if inside is None else Path(inside.file)


def stat(path: Path) -> os.stat_result:
    """As os.stat. Of a part it has the size, and all else of the file around it."""
    inside = part(path)
    if inside is None:
        return os.stat(path)
    around = os.stat(inside.file)
    if inside.begin + inside.size > around.st_size:  # another file than the one whose index told of it
        raise FileNotFoundError(2, os.strerror(2), str(path))
    times = {name: getattr(around, name) for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")}
    return os.stat_result((*around[:6], inside.size, *around[7:10]), times)


def models(archive: Path) -> Mapping[str, Part]:
    """Those in `archive`, by their place in the layout of models folders; {} for one that has none, or is none."""
    import json
    import zipfile

    try:
        with zipfile.ZipFile(archive) as opened, opened.open(INDEX) as entry:
            index = json.loads(entry.read(MAX_INDEX))
        return {name: Part(str(archive), int(begin), int(size)) for name, (begin, size) in index.items()}
    except (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile):
        return {}
