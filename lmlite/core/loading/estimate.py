"""What a load would take of the memory: asked of an engine of its own, which reads the file's header, makes nothing, and ends.

A projector is the exception: its sizes are nowhere told, so it is loaded and tried there.

llama.cpp aborts on some files, and what it measures includes the process that it runs in: hence the engine of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from ...errors import EngineGone
from ...records import dataclass
from ..engine.client import Engine
from ..engine.line import Clock
from ..engine.payloads import DeviceMemory, LoadSpec, Measured
from ..engine.worker import Placement

HOST: Final = ""
"""Among the names of devices: the machine's own memory."""
NOTHING: Final[Mapping[str, int]] = MappingProxyType({})
ESTIMATE_S: Final = 60.0
"""Most take a tenth of a second; on a slow disk that holds a vocabulary of 250,000 tokens some seconds."""


@dataclass(slots=True, frozen=True)
class Estimate:
    """The bytes that a model takes, on all devices together, from its load to the end of a full context."""

    weights: int
    kv_cache: int  # recurrent states, too
    compute: int  # buffers, and the engine's own process with the tokenizer's tables
    projector: int  # what sees or hears, with all for the largest picture; 0: none is loaded
    gpu: int  # of all of them, what lies on GPUs
    file_pages: int = 0
    """Beside them, pages of the mapped file that are read while it is loaded and then of no more use: they stay as long as
    nobody needs the memory, which is why they are not part of `total`."""
    context_length: int = 0  # tokens one request may use
    kv_cells: int = 0
    threads: int = 0
    devices: tuple[DeviceMemory, ...] = ()

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.compute + self.projector

    @property
    def host(self) -> int:
        """The part of `total` that the machine's own memory has to give."""
        return self.total - sum(device.needed for device in self.devices if not device.shares_host_memory)

    @property
    def takes(self) -> dict[str, int]:
        """`HOST`, and each GPU with a memory of its own."""
        return {HOST: self.host, **{device.name: device.needed for device in self.devices if not device.shares_host_memory}}

    def shortage(self, available: int, promised: Mapping[str, int] = NOTHING) -> tuple[int, int] | None:
        """Where it does not fit: the bytes needed and those there are. `available` is for the machine's own memory; what is
        `promised` to others is there no more."""
        free = {HOST: available, **{device.name: device.free for device in self.devices if not device.shares_host_memory}}
        for name, needed in self.takes.items():
            left = max(0, free[name] - promised.get(name, 0))
            if needed > left:
                return needed, left
        return None


async def estimate(place: Callable[[], Placement], spec: LoadSpec, *, clock: Clock | None = None) -> Estimate:
    """Raises what a load of `spec` would (`LoadFailed`, `InvalidRequest`), `EngineGone` for a file that kills or stalls the
    engine, OSError or `BuildError` if there can be none."""
    name = spec.paths[0].name
    engine = await Engine.open(place(), name, clock=clock)
    try:
        measured = await asyncio.wait_for(engine.measure(spec), ESTIMATE_S)
    except asyncio.TimeoutError:
        raise EngineGone(name, "it gave no estimate in time") from None
    finally:
        await engine.close()
    return _sum(measured)


def _sum(measured: Measured) -> Estimate:
    devices = measured.devices
    return Estimate(
        weights=sum(device.weights for device in devices),
        kv_cache=sum(device.kv_cache for device in devices),
        compute=sum(device.compute for device in devices) + measured.process,
        projector=measured.projector,
        gpu=sum(device.needed for device in devices if device.gpu),
        file_pages=measured.file_pages,
        context_length=measured.context_length,
        kv_cells=measured.kv_cells,
        threads=measured.threads,
        devices=devices,
    )
