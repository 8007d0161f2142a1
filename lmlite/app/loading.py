"""Endpoints that load and unload models, and say what those that are loaded do."""

from __future__ import annotations

import asyncio

from ..api.lmstudio import load as spelling
from ..beside import beside
from ..errors import SettingRefused, ShuttingDown
from ..wire import sse
from ..wire.connection import Request, Response
from .facts import fact
from .generation import frames, parsed
from .models import prompt_cache_folder
from .state import State


async def load(app: State, request: Request, response: Response, _: str) -> None:
    """Answers when the model is loaded; a stream tells how far it is. A client that leaves gives up the load."""
    asked = await parsed(spelling.parse_load, request.body)
    began = asyncio.get_running_loop().time()
    progress = Progress(response) if asked.stream else None
    try:
        instance = await app.models.load(
            asked.model,
            asked.settings,
            identifier=asked.identifier,
            gpu=asked.gpu,
            checked=not asked.force,
            on_begin=progress.begin if progress else None,
            on_progress=progress.tell if progress else None,
        )
    except asyncio.CancelledError:
        if not (app.expired and response.started):
            raise
        response.finish(frames([spelling.failed(ShuttingDown())]))
        return
    except Exception as exc:  # noqa: BLE001 - a stream that has begun must not end without a word
        told = spelling.spelled(asked, exc) if isinstance(exc, SettingRefused) else exc
        if not response.started:
            raise told from exc.__cause__
        response.finish(frames([spelling.failed(fact(told))]))
        return
    answer = spelling.loaded(instance, asyncio.get_running_loop().time() - began, asked.echo)
    if response.started:
        response.finish(frames([spelling.ended(answer)]))
    else:
        response.whole(200, answer.encode())


class Progress:
    """The events of a load as they come. What fails before the load begins is an HTTP status."""

    def __init__(self, response: Response):
        self._response = response
        self._id = ""

    def begin(self, instance_id: str) -> None:
        self._id = instance_id
        self._response.start(200, sse.HEADERS, sse.KEEP_ALIVE)
        self._response.write(frames([spelling.started(instance_id)]))

    def tell(self, fraction: float) -> None:
        if not self._response.paused:  # a slow reader misses what the next event says anyway
            self._response.write(frames([spelling.progressed(self._id, fraction)]))


async def unload(app: State, request: Request, response: Response, _: str) -> None:
    """Answers when the memory is free. Requests that run end with LM Studio's words for it."""
    instance_id = await parsed(spelling.parse_unload, request.body)
    await app.models.unload(instance_id)
    response.whole(200, spelling.unloaded(instance_id).encode())


async def list_instances(app: State, request: Request, response: Response, _: str) -> None:
    """And, where prompts are kept on the disk, what they take of it."""
    kept = await prompts_on_disk(app) if app.config.prompt_cache else None
    response.whole(200, spelling.instances(app.models.presences(), kept).encode())


async def prompts_on_disk(app: State) -> spelling.KeptPrompts:
    """The folder is asked and no engine: it is there without one, and a busy one would keep the asker waiting."""
    from ..store.prompt_files import held_bytes

    folder = prompt_cache_folder(app.config)
    used = await beside(lambda: held_bytes(folder), large=True)
    return spelling.KeptPrompts(used, app.config.prompt_cache << 20)
