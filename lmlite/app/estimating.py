"""What loading a model would take, for those who want to know before they load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api.lmstudio.load import parse_load, spelled
from ..api.spell import dumps
from ..errors import SettingRefused
from ..wire.connection import Request, Response
from .generation import parsed
from .state import State

if TYPE_CHECKING:
    from ..core.loading.estimate import Estimate


async def estimate(app: State, request: Request, response: Response, _: str) -> None:
    """The body is that of a load; what is loaded just now is counted as the others' memory, even if the load would have it
    leave."""
    asked = await parsed(parse_load, request.body)
    try:
        told, available = await app.models.estimate(asked.model, asked.settings, gpu=asked.gpu)
    except SettingRefused as error:
        raise spelled(asked, error) from None
    response.whole(200, spell(told, available).encode())


def spell(told: Estimate, available: int) -> str:
    """All in bytes. `available` is the machine's own memory, `gpu_available` that of the GPUs, of which each has to hold its
    own part."""
    return dumps(
        {
            "weights": told.weights,
            "kv_cache": told.kv_cache,
            "compute": told.compute,
            "projector": told.projector,
            "total": told.total,
            "gpu_total": told.gpu,
            "available": available,
            "gpu_available": sum(device.free for device in told.devices if device.gpu),
            "fits": told.shortage(available) is None,
            "context_length": told.context_length,
            "threads": told.threads,
        }
    )
