"""How much memory the machine, or the control group that this process is in, can still give without taking it from others.

File cache counts as free, but not the files that are mapped just now: the weights of running models and the programs
themselves. The kernel would give their pages too, and read them again at every token.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ..engine.control_groups import folders, number, table

UNLIMITED: Final = 1 << 60
"""Version 1 spells "no limit" as the largest number of whole pages."""

_MAC_STATISTICS: Final = struct.Struct("=4I9Q2I")
"""The beginning of vm_statistics64_data_t: free, active, inactive, wired; nine counters; purgeable, speculative (pages)."""
_MAC_INTS: Final = 64
_HOST_VM_INFO64: Final = 4


def available(root: Path = Path("/")) -> int:
    """Bytes; at least 0. `root` is where `proc` and `sys` are."""
    if sys.platform == "darwin":
        return _mac_available()
    free = _machine_available(root)
    groups = [group.available for group in memory_groups(root)]
    return max(0, min([free, *groups]))


# ---- Linux: the machine ----------------------------------------------------------------------------------------------


def _machine_available(root: Path) -> int:
    info = table(root / "proc/meminfo")
    if "MemAvailable" not in info:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # a machine that does not tell: half of it
    return (info["MemAvailable"] - max(0, info.get("Mapped", 0) - info.get("Shmem", 0))) << 10


# ---- Linux: control groups -------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """One control group that limits memory, in bytes."""

    limit: int
    used: int
    reclaimable: int

    @property
    def available(self) -> int:
        return self.limit - self.used + self.reclaimable


def memory_groups(root: Path = Path("/")) -> Iterator[Group]:
    """The control groups around this process that have a limit, of both versions."""
    for version, folder in folders("memory", root):
        if group := _read_group(folder, version):
            yield group


def _read_group(folder: Path, version: int) -> Group | None:
    """None where there is no limit."""
    if version == 2:
        limit, used = number(folder / "memory.max"), number(folder / "memory.current")
    else:
        limit, used = number(folder / "memory.limit_in_bytes"), number(folder / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= UNLIMITED:
        return None
    statistics = table(folder / "memory.stat")
    prefix = "" if version == 2 else "total_"  # of the groups inside, too
    return Group(limit, used, _reclaimable(statistics, prefix, "file_mapped" if version == 2 else "mapped_file"))


def _reclaimable(statistics: Mapping[str, int], prefix: str, mapped_name: str) -> int:
    """Cached file pages that nobody has mapped."""

    def amount(name: str) -> int:
        return statistics.get(prefix + name, 0)

    mapped_files = max(0, amount(mapped_name) - amount("shmem"))  # the count has shared memory in it
    return max(0, amount("active_file") + amount("inactive_file") - mapped_files)


# ---- macOS -----------------------------------------------------------------------------------------------------------


def _mac_available() -> int:
    """What is free or was not used lately; half of the memory where the system does not tell."""
    import ctypes

    page = os.sysconf("SC_PAGE_SIZE")
    try:
        library = ctypes.CDLL(None)
        numbers = (ctypes.c_uint32 * _MAC_INTS)()
        count = ctypes.c_uint32(_MAC_INTS)
        host = library.mach_host_self()
        if library.host_statistics64(host, _HOST_VM_INFO64, numbers, ctypes.byref(count)) == 0:
            return mac_pages(bytes(numbers)) * page
    except (OSError, AttributeError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * page // 2


def mac_pages(statistics: bytes) -> int:
    """The pages that a vm_statistics64_data_t calls free (speculative ones among them) or inactive."""
    free, _, inactive, *_ = _MAC_STATISTICS.unpack_from(statistics)
    return int(free) + int(inactive)
