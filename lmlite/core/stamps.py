"""Whether the files of a loaded model are still those that were loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .mounts import at_hand, looked

Stamp = tuple[tuple[int, int], int, int]
"""Which file it is (device and inode), its size, and when it was written (ns)."""

Change = Literal["replaced", "rewritten"]


class Stamps:
    """The state of some files at one moment. To be made in a thread: a disk may be at the other end of a network."""

    __slots__ = ("_files", "_is_at_hand", "_stamps", "paths")

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self._files = [str(path) for path in paths]
        self._stamps = self._look()
        self._is_at_hand = at_hand(paths)

    async def change(self) -> Change | None:
        """What has happened to the files since then. Where other files have taken their places, or none have, whoever has
        the old ones open goes on with them; one that was written to is another for all."""
        now = await looked(self._look, self._is_at_hand)
        if now == self._stamps:
            return None
        pairs = [(old, new) for old, new in zip(self._stamps, now) if old is not None and new is not None and old != new]
        return "rewritten" if any(old[0] == new[0] for old, new in pairs) else "replaced"

    def _look(self) -> list[Stamp | None]:
        return [stamp(file) for file in self._files]


def stamp(file: str) -> Stamp | None:
    """None: there is no such file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns
