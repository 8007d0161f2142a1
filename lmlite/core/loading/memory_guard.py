"""Whether there is memory for a model, asked before it is loaded: what does not fit ends other programs, or this one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Final

from ... import archive
from ...errors import LmError, MemoryRefused
from ...records import dataclass
from ..engine.payloads import LoadSpec
from ..engine.worker import Placement
from .estimate import HOST, Estimate, estimate
from .memory import available

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


@dataclass(slots=True, eq=False)
class Load:
    """One that has begun: what it is expected to take, in bytes by device, and its end."""

    takes: Mapping[str, int]
    over: asyncio.Future[None]


class MemoryGuard:
    """For one event loop. `place` gives each estimate its engine; `free` tells the bytes that there are. One that is not
    `strict` refuses nothing.

    With `tries`, for loads in this very process, a projector is tried in an engine of its own first: a broken one may end
    the process that loads it."""

    def __init__(
        self, place: Callable[[], Placement], free: Callable[[], int] = available, *, strict: bool = True, tries: bool = False
    ):
        self._place, self._free, self._strict, self._tries = place, free, strict, tries
        self._tried: set[Files] = set()
        self._known: dict[tuple[LoadSpec, Files], int] = {}  # bytes of models that take nothing of a GPU
        self._loads: set[Load] = set()

    @contextlib.asynccontextmanager
    async def room(self, spec: LoadSpec, checked: bool = True) -> AsyncIterator[LoadSpec]:
        """Lasts as long as the load of `spec`, which comes back with the memory that there is for it; what it is expected to
        take is not there for others meanwhile. Where others leave too little, they are waited for, one after another.

        Raises `MemoryRefused`, if `checked`, and what trying a projector does. Any other estimate that fails refuses nothing:
        the load itself will say what is wrong.
        """
        if self._tries and spec.loads is not None:
            await self._try(spec)
        load = await self._begin(spec, checked and self._strict)
        try:
            yield self._with_memory(spec, load)
        finally:
            self._loads.remove(load)
            load.over.set_result(None)

    async def _begin(self, spec: LoadSpec, checked: bool) -> Load:
        files = await asyncio.to_thread(files_of, spec)
        while (takes := self._at_a_glance(spec, files, checked)) is None:
            try:
                told = await estimate(self._place, self._with_memory(spec))
            except (LmError, OSError) as error:
                log.info("no estimate of %s: %s", spec.paths[0].name, error)
                takes = {}
                break
            free = self._free()
            if told.shortage(free, self._promised()) is None:
                takes = told.takes
                self._note(spec, files, told)
                break
            if shortage := told.shortage(free):
                raise MemoryRefused(*shortage)
            await asyncio.wait([load.over for load in self._loads], return_when=asyncio.FIRST_COMPLETED)
        load = Load(takes, asyncio.get_running_loop().create_future())
        self._loads.add(load)
        return load

    async def _try(self, spec: LoadSpec) -> None:
        """Raises what the load would, and `EngineGone` where it would end this process."""
        files = await asyncio.to_thread(files_of, spec)
        if files is None or files in self._tried:
            return
        try:
            await estimate(self._place, self._with_memory(spec))
        except OSError as error:
            log.warning("the projector of %s is not tried: %s", spec.paths[0].name, error)
            return
        if len(self._tried) >= KNOWN_MAX:
            self._tried.clear()
        self._tried.add(files)

    def _at_a_glance(self, spec: LoadSpec, files: Files | None, checked: bool) -> Mapping[str, int] | None:
        """What a load takes that needs no estimate."""
        if files is None:
            return {}
        if not checked:
            return {HOST: sum(size for *_, size in files)}
        free = self._free() - self._promised()[HOST]
        most = ceiling(spec, files)
        if most is not None and 2 * most <= free:
            return {HOST: most}
        known = self._known.get((spec, files))
        return {HOST: known} if known is not None and known <= free * KNOWN_SHARE else None

    def _note(self, spec: LoadSpec, files: Files | None, told: Estimate) -> None:
        if files is not None and not told.gpu:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[spec, files] = told.host

    def _promised(self, but: Load | None = None) -> Counter[str]:
        """Bytes by device."""
        sums: Counter[str] = Counter()
        for load in self._loads - {but}:
            sums.update(load.takes)
        return sums

    def _with_memory(self, spec: LoadSpec, load: Load | None = None) -> LoadSpec:
        return replace(spec, host_memory=max(1, self._free() - self._promised(load)[HOST]))


def files_of(spec: LoadSpec) -> Files | None:
    """What tells the files of `spec` from any that come later under their names, sizes last; None if one is missing."""
    try:
        projector = () if spec.loads is None else (spec.loads,)
        paths = (*spec.paths, *projector, *(lora.path for lora in spec.settings.loras))
        found = [(path, archive.stat(path)) for path in paths]
    except OSError:
        return None
    return tuple((str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in found)


def ceiling(spec: LoadSpec, files: Files) -> int | None:
    """Bytes that a load hardly exceeds, by the sizes of the files alone; None if the context is the file's to say."""
    if not spec.settings.context_length:
        return None
    cells = max(spec.settings.context_length, spec.settings.kv_cells)
    size = sum(size for *_, size in files)
    return round(size * (SMALL_TIMES + cells / SMALL_CELLS)) + SMALL_BYTES
