"""What is set of a process that serves and does nothing else: who gets the interpreter when, and what becomes of memory.

A request for `/health` waits a few milliseconds at most, also while others are large; afterwards their memory is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ..app.scrape import resident_bytes

SWITCH_S: Final = 0.0002
"""What the loop waits for a thread that reads a large request, each time it wants the interpreter back; Python's own 5 ms
come several times over in one small answer."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
ARENAS: Final = 2
LARGE_BYTES: Final = 1 << 20
"""What is mapped for itself, and so is given back when it is let go, and grows without a copy. glibc's own bound moves up to
32 MB with the first large requests: then what they took stays, in part where `malloc_trim` gives nothing back."""
LOOSE_BYTES: Final = 4 << 20
"""Free bytes at the end of an arena from which on they are given back."""
LOOK_S: Final = 5.0
SPARE_BYTES: Final = 16 << 20
"""More than after the last look is worth giving back."""
QUIET: Final = 0.2
"""The part of a core below which nothing large can be under way: the memory would be wanted again at once, and a page of
it costs more to get than to fill."""
IDLE: Final = 0.02
"""The part of a core below which nothing at all is under way."""
WORTH_S: Final = 0.1
LITTLE_BYTES: Final = 4 << 20
"""So much work since the last time, and so much more than there ever was at least, are worth it where it is idle."""
OBJECTS: Final = 30_000
"""A collection looks at each there is, which takes a millisecond for ten thousand or so; thousands of idle connections are
more than the loop can be kept from its work for."""
PATIENCE: Final = 12
"""Looks at spare memory until it goes back even so, a minute together: where somebody streams all day it is never quiet. It
costs others up to 40 ms."""


def tune() -> None:
    """Call once, before there are threads: arenas that they have stay."""
    sys.setswitchinterval(SWITCH_S)
    if (libc := glibc()) is not None:
        libc("mallopt", M_ARENA_MAX, ARENAS)
        libc("mallopt", M_MMAP_THRESHOLD, LARGE_BYTES)
        libc("mallopt", M_TRIM_THRESHOLD, LOOSE_BYTES)


def settle() -> None:
    """Call when all is there that stays: it is looked at no more."""
    gc.collect()
    gc.freeze()


async def give_memory_back(sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Has glibc return what large requests took, once they are over; by itself it keeps hundreds of MB for ever. Python keeps
    some thousands of small objects for later use, which lie anywhere: they are given back, too."""
    if (libc := glibc()) is None:
        return
    least = lowest = resident_bytes() or 0
    busy_s = given_back_s = time.process_time()
    n_looks = 0
    while True:
        await sleep(LOOK_S)
        before, busy_s = busy_s, time.process_time()
        now = resident_bytes() or 0
        least, lowest = min(least, now), min(lowest, now)
        n_looks = n_looks + 1 if now > least + SPARE_BYTES else 0
        worked, held = busy_s - given_back_s > WORTH_S, now > lowest + LITTLE_BYTES
        quiet, idle = busy_s - before < QUIET * LOOK_S, busy_s - before < IDLE * LOOK_S
        if n_looks >= PATIENCE or (n_looks and quiet) or (idle and worked and held):
            if quiet and len(gc.get_objects()) < OBJECTS:  # without those that were there at the start
                gc.collect()
            await asyncio.to_thread(libc, "malloc_trim", 0)
            least, given_back_s, n_looks = resident_bytes() or 0, time.process_time(), 0


def glibc() -> Callable[..., int] | None:
    """Calls a function of it by name; None where there is another C library."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - others have none
        return lambda name, *arguments: int(getattr(library, name)(*arguments))
    return None
