"""How many compute threads this process can keep busy: the cores it may run on, and what its control groups grant of them.

Decided here alone, for every engine: more threads than cores wait for each other at each step. Other programs may use the
same cores; what a thread does then is decided where it waits (vendor/patches).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from .control_groups import folders, lines, number

_CPUS: Final = "sys/devices/system/cpu"
_MAC_FAST: Final = ("hw.perflevel0.physicalcpu", "hw.physicalcpu")
"""Performance cores; a Mac that has no other kind counts its cores only by the second name."""


class Cores(NamedTuple):
    """`usable` threads can run at once; from `fast` on, more of them compute no faster. Both at least 1."""

    usable: int
    fast: int


def cores(root: Path = Path("/"), affinity: Iterable[int] | None = None) -> Cores:
    """As it is now. `root` is where `proc` and `sys` are; `affinity` names the CPUs, None: those of this thread."""
    if sys.platform == "darwin":
        return _mac_cores()
    cpus = frozenset(_own_cpus() if affinity is None else affinity)
    granted = min((quota for version, folder in folders("cpu", root) if (quota := _quota(folder, version))), default=len(cpus))
    usable = max(1, min(len(cpus), int(granted)))
    return Cores(usable, max(1, min(usable, _count_fast(cpus, root))))


def _own_cpus() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


# ---- Linux -----------------------------------------------------------------------------------------------------------


def _quota(folder: Path, version: int) -> float | None:
    """CPUs' worth of time that the group grants; None where it does not limit it."""
    if version == 2:
        first = "".join(lines(folder / "cpu.max")[:1]).split()
        quota, period = (int(word) if word.isdigit() else None for word in (*first, "", "")[:2])
    else:
        quota, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _count_fast(cpus: frozenset[int], root: Path) -> int:
    """Cores among `cpus`: two threads of one core share what computes. Of a processor that has slow ones besides, the fast."""
    fast = cpus & _numbers(root / "sys/devices/cpu_core/cpus") or cpus
    if number(root / _CPUS / "smt/active") == 0:
        return len(fast)
    return len({min(_numbers(root / _CPUS / f"cpu{cpu}/topology/thread_siblings_list"), default=cpu) for cpu in fast})


def _numbers(file: Path) -> frozenset[int]:
    """Of a list like `0-3,8`; empty where there is none."""
    found: set[int] = set()
    for part in "".join(lines(file)[:1]).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return frozenset(found)


# ---- macOS -----------------------------------------------------------------------------------------------------------


def _mac_cores() -> Cores:
    usable = os.cpu_count() or 1
    return Cores(usable, min(usable, next(filter(None, map(_mac_number, _MAC_FAST)), usable)))


def _mac_number(name: str) -> int:
    """What sysctl says; 0 if nothing."""
    import ctypes

    value, size, none = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int)), ctypes.c_size_t(0)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, none)
    except (OSError, AttributeError):
        return 0
    return 0 if failed else max(0, value.value)
