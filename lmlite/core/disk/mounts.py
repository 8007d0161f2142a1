"""What the kernel tells of mounted file systems, and whether looking at a file can keep one waiting."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

TABLE_MAX: Final = 1 << 20
"""Characters; a machine with thousands of containers has some hundred thousand."""
AT_HAND: Final = frozenset(
    ("bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "squashfs", "tmpfs", "xfs", "zfs")
)
"""Their inodes of files in use are in memory, and no other machine has a word to say: a look takes microseconds. Of any other
file system, of a network or of a program, nobody knows how long it takes."""
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")

T = TypeVar("T")


class Mount(NamedTuple):
    root: str  # the folder of the file system that is seen at `point`
    point: str
    kind: str  # "ext4", "nfs4"
    options: tuple[str, ...]


def mounts(root: Path = Path("/")) -> Iterator[Mount]:
    """In the order in which they were made; none where the system does not tell. `root` is where `proc` is."""
    try:
        with open(root / "proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            lines = table.read(TABLE_MAX).splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, (kind, *rest) = before.split(), after.split() or [""]
        if len(fields) >= 5:
            options = tuple(rest[-1].split(",")) if rest else ()
            yield Mount(_unescaped(fields[3]), _unescaped(fields[4]), kind, options)


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda code: chr(int(code[1], 8)), text)


def at_hand(paths: Sequence[Path], root: Path = Path("/")) -> bool:
    """Whether all of `paths` can be looked at without waiting. Looks at them, and may wait itself."""
    points = [(mount.point.rstrip("/") + "/", mount.kind) for mount in mounts(root)]

    def kind(path: str) -> str:
        """Of the deepest mount around it, the last one if there are several at one place."""
        around = [(len(point), at, kind) for at, (point, kind) in enumerate(points) if path.startswith(point)]
        return max(around, default=(0, 0, ""))[2]

    ways = {way for path in paths for way in (os.path.abspath(path), os.path.realpath(path))}  # links lead elsewhere
    return all(kind(way) in AT_HAND for way in ways)


async def looked(look: Callable[[], T], is_at_hand: bool) -> T:
    """What `look` sees; in a thread if that may take its time."""
    if is_at_hand:
        return look()
    import asyncio  # a command that lists models needs none

    return await asyncio.to_thread(look)
