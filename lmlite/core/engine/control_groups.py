"""The control groups around this process, of both versions, and the kernel's small texts in which they tell their limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..disk.mounts import Mount, mounts

KERNEL_TEXT_MAX: Final = 1 << 20
"""Above any of the kernel's tables that are read here."""


def folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """The version and the folder of each group that `controller` ("cpu", "memory") can limit this process in, from the
    innermost to the topmost that can be seen. `root` is where `proc` and `sys` are."""
    paths = dict(_own_groups(controller, root))
    for version, mount in _group_mounts(controller, root):
        path = paths.get(version)
        if path is None:
            continue
        top, above = root / mount.point.lstrip("/"), mount.root.rstrip("/")
        inside = path[len(above) :] if path.startswith(above) else ""  # a container sees its own as the top
        folder = top.joinpath(*inside.split("/"))
        while True:
            yield version, folder
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent


def _own_groups(controller: str, root: Path) -> Iterator[tuple[int, str]]:
    """The version and the path of this process's groups."""
    for line in lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield 2, path
        elif controller in controllers.split(","):
            yield 1, path


def _group_mounts(controller: str, root: Path) -> Iterator[tuple[int, Mount]]:
    for mount in mounts(root):
        if mount.kind == "cgroup2":
            yield 2, mount
        elif mount.kind == "cgroup" and controller in mount.options:
            yield 1, mount


# ---- texts -----------------------------------------------------------------------------------------------------------


def lines(file: Path) -> list[str]:
    """None where there is no such file, or none for us."""
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            return stream.read(KERNEL_TEXT_MAX).splitlines()
    except OSError:
        return []


def table(file: Path) -> dict[str, int]:
    """Names and numbers of lines like `MemFree:  12 kB` or `shmem 12`."""
    found = {}
    for line in lines(file):
        name, *rest = line.replace(":", " ", 1).split()
        if rest and rest[0].isdigit():
            found[name] = int(rest[0])
    return found


def number(file: Path) -> int | None:
    """None for a file that says something else, as `max`."""
    text = "".join(lines(file)[:1]).strip()
    return int(text) if text.isdigit() else None
