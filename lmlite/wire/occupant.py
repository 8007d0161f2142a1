"""Which process listens on a port, for a message that helps: by what Linux tells in /proc, as far as we may look."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TABLES: Final = ("net/tcp", "net/tcp6")
LISTEN: Final = "0A"
"""The state in those tables."""


def find_listener(port: int, proc: Path = Path("/proc")) -> int | None:
    """Its process id; None where there is no /proc, or where the process is another user's."""
    wanted = {f"socket:[{inode}]" for table in TABLES for inode in listening(proc / table, port)}
    if not wanted:
        return None
    for folder in processes(proc):
        if not wanted.isdisjoint(open_files(folder / "fd")):
            return int(folder.name)
    return None


def listening(table: Path, port: int) -> Iterator[str]:
    """The inodes of sockets that listen on `port`, on any address."""
    try:
        with open(table, encoding="ascii") as lines:
            next(lines, None)
            for line in lines:
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                if state == LISTEN and int(local.rpartition(":")[2], 16) == port:
                    yield inode
    except (OSError, ValueError):  # not Linux, or not as Linux has it
        return


def processes(proc: Path) -> Iterator[Path]:
    try:
        yield from (entry for entry in proc.iterdir() if entry.name.isdecimal())
    except OSError:
        return


def open_files(folder: Path) -> Iterator[str]:
    try:
        entries = os.listdir(folder)
    except OSError:  # another user's
        return
    for entry in entries:
        with contextlib.suppress(OSError):  # closed by now
            yield os.readlink(folder / entry)
