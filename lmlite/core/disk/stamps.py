"""Whether the files of a loaded model are still those that were loaded.

A look costs microseconds. Only where the times of a file have changed and nothing else, what is in it is read: its first
part, where the header is, and samples of the rest. Copies, backups and `touch` change times.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from ... import archive
from .mounts import at_hand, looked

HEAD: Final = 16 << 20
"""Bytes that are read whole: the header of a model with a large vocabulary, where single values get edited in place."""
PIECE: Final = 256 << 10
SAMPLES: Final = 64
SAMPLE: Final = 4 << 10
"""What is read of the tensors: whoever changes these in place changes whole ones, and of those a file has some hundred."""

Stamp = tuple[tuple[int, int], int, int, int]
"""Which file it is (device and inode), its size, and when it was written and when it was changed in any way (ns)."""

Change = Literal["replaced", "rewritten"]


class Stamps:
    """The state of some files at one moment. To be made in a thread: a disk may be at the other end of a network."""

    __slots__ = ("_files", "_is_at_hand", "_judging", "_said", "_stamps", "paths")

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self._files = [str(archive.file_of(path)) for path in paths]
        self._stamps = self._look()
        self._said: asyncio.Future[list[bytes | None]] | None = None
        self._is_at_hand = at_hand(paths)
        self._judging = asyncio.Lock()

    def remember(self) -> None:
        """Begins to read, in a thread, what `change` needs to tell a touch from a change. Without it each is one."""
        self._said = asyncio.get_running_loop().run_in_executor(None, self._read, list(self._stamps))

    async def change(self) -> Change | None:
        """What has happened to the files since then. Where other files have taken their places, or none have, whoever has
        the old ones open goes on with them; one that was written to is another for all."""
        if await looked(self._look, self._is_at_hand) == self._stamps:
            return None
        async with self._judging:
            return await self._judge()

    async def _judge(self) -> Change | None:
        now = await looked(self._look, self._is_at_hand)
        touched = [_touched(old, new) for old, new in zip(self._stamps, now, strict=True)]
        said: list[bytes | None] = [None] * len(now)
        if any(touched) and self._said is not None:
            before = await asyncio.shield(self._said)
            after = await asyncio.to_thread(self._read, [new if it else None for it, new in zip(touched, now, strict=True)])
            said = [old if old == new else None for old, new in zip(before, after, strict=True)]
        changes = {
            "rewritten" if old is not None and new is not None and old[0] == new[0] else "replaced"
            for old, new, same in zip(self._stamps, now, said, strict=True)
            if old != new and same is None
        }
        if not changes:
            self._stamps = now
            return None
        return "rewritten" if "rewritten" in changes else "replaced"

    def _look(self) -> list[Stamp | None]:
        return [stamp(file) for file in self._files]

    def _read(self, stamps: Sequence[Stamp | None]) -> list[bytes | None]:
        """What the files say that have these stamps; None for another file, and for None."""
        return [None if it is None else content(file, it) for file, it in zip(self._files, stamps, strict=True)]


def _touched(old: Stamp | None, new: Stamp | None) -> bool:
    """Nothing but a time has changed."""
    return old is not None and new is not None and old != new and old[:2] == new[:2]


def stamp(file: str) -> Stamp | None:
    """None: there is no such file."""
    try:
        return _of(os.stat(file))
    except (OSError, ValueError):
        return None


def _of(status: os.stat_result) -> Stamp:
    return (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content(file: str, expected: Stamp) -> bytes | None:
    """A digest of what is read of the file; None if it is not the `expected` one, also afterwards, or cannot be read."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    size = expected[1]
    step = max(SAMPLE, (size - HEAD) // SAMPLES)
    samples = [(at, SAMPLE) for at in (*range(HEAD, size, step), max(0, size - SAMPLE))]
    try:
        fd = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(fd, "rb", buffering=0) as opened:
            for at, length in (*((at, PIECE) for at in range(0, min(HEAD, size), PIECE)), *samples):
                opened.seek(at)
                digest.update(opened.read(length))
            if _of(os.fstat(fd)) != expected:
                return None
    except (OSError, ValueError):
        return None
    return digest.digest()
