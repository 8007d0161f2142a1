"""Endpoints of downloads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..api import lmstudio_v1_download as spelling
from ..api.json_body import parse_body
from ..wire.connection import Reply, Request
from .state import State

if TYPE_CHECKING:
    from ..download import Progress


async def start(app: State, request: Request, reply: Reply, _: str) -> None:
    from ..hub import names

    model, quantization = spelling.parse(parse_body(request.body))
    jobs = await app.downloads.jobs()
    wanted = names.parse(model, quantization, jobs.endpoint)
    reply.whole(200, spelling.started(await jobs.start(wanted)).encode())


async def status(app: State, request: Request, reply: Reply, id: str) -> None:
    progress = await (await app.downloads.jobs()).get(id)
    reply.whole(200, spelling.status(progress, time.time()).encode())


async def list_all(app: State, request: Request, reply: Reply, _: str) -> None:
    found = await (await app.downloads.jobs()).all()
    reply.whole(200, spelling.downloads(found, time.time()).encode())


async def show(app: State, request: Request, reply: Reply, id: str) -> None:
    tell(reply, await (await app.downloads.jobs()).get(id))


async def pause(app: State, request: Request, reply: Reply, id: str) -> None:
    tell(reply, await (await app.downloads.jobs()).pause(id))


async def resume(app: State, request: Request, reply: Reply, id: str) -> None:
    tell(reply, await (await app.downloads.jobs()).resume(id))


async def cancel(app: State, request: Request, reply: Reply, id: str) -> None:
    await (await app.downloads.jobs()).cancel(id)
    reply.whole(200, spelling.cancelled(id).encode())


def tell(reply: Reply, progress: Progress) -> None:
    reply.whole(200, spelling.ours(progress, time.time()).encode())
