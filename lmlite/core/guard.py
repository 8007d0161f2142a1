"""Whether there is memory for a model, asked before it is loaded: what does not fit ends other programs, or this one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from ..errors import LmError, MemoryRefused
from .estimate import estimate
from .memory import available
from .payloads import LoadSpec
from .worker import Placement

log = logging.getLogger(__name__)

SMALL_BYTES: Final = 1 << 30
SMALL_TIMES: Final = 2
SMALL_CELLS: Final = 500
"""A model takes at most about twice its file, as much again for each thousand cells of its cache, and some buffers. One that
would still fit twice is not asked about: with a large vocabulary an estimate takes as long as half of a small model's load."""
KNOWN_SHARE: Final = 0.75
"""What took no more than this of the free memory is not asked about again: the cells that an engine adds where there is
more memory take at most a quarter of it."""
KNOWN_MAX: Final = 256

Files = tuple[tuple[str, int, int, int], ...]


class MemoryGuard:
    """`place` gives each estimate its engine; `free` tells the bytes that there are."""

    def __init__(self, place: Callable[[], Placement], free: Callable[[], int] = available):
        self._place, self._free = place, free
        self._known: dict[tuple[LoadSpec, Files], int] = {}  # bytes of models that take nothing of a GPU

    async def check(self, spec: LoadSpec) -> None:
        """Raises `MemoryRefused`. An estimate that fails refuses nothing: the load itself will say what is wrong."""
        files = await asyncio.to_thread(files_of, spec)
        free = self._free()
        if files is None or is_small(spec, files, free):
            return
        known = self._known.get((spec, files))
        if known is not None and known <= free * KNOWN_SHARE:
            return
        try:
            told = await estimate(self._place, spec)
        except (LmError, OSError) as error:
            log.info("no estimate of %s: %s", spec.paths[0].name, error)
            return
        if shortage := told.shortage(self._free()):
            raise MemoryRefused(*shortage)
        if not told.gpu:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[spec, files] = told.host


def files_of(spec: LoadSpec) -> Files | None:
    """What tells the files of `spec` from any that come later under their names, sizes last; None if one is missing."""
    try:
        found = [(path, path.stat()) for path in (*spec.paths, *(lora.path for lora in spec.settings.loras))]
    except OSError:
        return None
    return tuple((str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in found)


def is_small(spec: LoadSpec, files: Files, free: int) -> bool:
    """Whether `free` bytes are more than a load can come near to, by the sizes of the files alone."""
    cells = max(spec.settings.context_length, spec.settings.kv_cells)
    if not spec.settings.context_length:
        return False  # the context is the file's to say
    size = sum(size for *_, size in files)
    return 2 * (size * (SMALL_TIMES + cells / SMALL_CELLS) + SMALL_BYTES) <= free
