"""Whether there is memory for a model, asked before it is loaded: what does not fit ends other programs, or this one."""

from __future__ import annotations

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


class MemoryGuard:
    """`place` gives each estimate its engine; `free` tells the bytes that there are."""

    def __init__(self, place: Callable[[], Placement], free: Callable[[], int] = available):
        self._place, self._free = place, free

    async def check(self, spec: LoadSpec) -> None:
        """Raises `MemoryRefused`. An estimate that fails refuses nothing: the load itself will say what is wrong."""
        free = self._free()
        if is_small(spec, free):
            return
        try:
            told = await estimate(self._place, spec)
        except (LmError, OSError) as error:
            log.info("no estimate of %s: %s", spec.paths[0].name, error)
            return
        if shortage := told.shortage(self._free()):
            raise MemoryRefused(*shortage)


def is_small(spec: LoadSpec, free: int) -> bool:
    """Whether `free` bytes are more than a load can come near to, by the sizes of the files alone."""
    settings = spec.settings
    cells = max(settings.context_length, settings.kv_cells)
    if not cells:
        return False  # the context is the file's to say
    try:
        size = sum(path.stat().st_size for path in (*spec.paths, *(lora.path for lora in settings.loras)))
    except OSError:
        return False
    return 2 * (size * (SMALL_TIMES + cells / SMALL_CELLS) + SMALL_BYTES) <= free
