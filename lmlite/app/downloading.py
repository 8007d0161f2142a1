"""Endpoints of downloads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..api.lmstudio import download as spelling
from ..api.read.json_body import parse_body
from ..wire.connection import Request, Response
from .state import State

if TYPE_CHECKING:
    from ..download import Progress


async def start(app: State, request: Request, response: Response, _: str) -> None:
    from ..hub import names

    model, quantization = spelling.parse(parse_body(request.body))
    jobs = await app.downloads.jobs()
    wanted = names.parse(model, quantization, jobs.endpoint)
    response.whole(200, spelling.started(await jobs.start(wanted)).encode())


async def status(app: State, request: Request, response: Response, id: str) -> None:
    progress = await (await app.downloads.jobs()).get(id)
    response.whole(200, spelling.status(progress, time.time()).encode())


async def list_all(app: State, request: Request, response: Response, _: str) -> None:
    found = await (await app.downloads.jobs()).all()
    response.whole(200, spelling.downloads(found, time.time()).encode())


async def show(app: State, request: Request, response: Response, id: str) -> None:
    tell(response, await (await app.downloads.jobs()).get(id))


async def pause(app: State, request: Request, response: Response, id: str) -> None:
    tell(response, await (await app.downloads.jobs()).pause(id))


async def resume(app: State, request: Request, response: Response, id: str) -> None:
    tell(response, await (await app.downloads.jobs()).resume(id))


async def cancel(app: State, request: Request, response: Response, id: str) -> None:
    await (await app.downloads.jobs()).cancel(id)
    response.whole(200, spelling.cancelled(id).encode())


def tell(response: Response, progress: Progress) -> None:
    response.whole(200, spelling.ours(progress, time.time()).encode())
