"""Endpoints that list models, and signs of life."""

from __future__ import annotations

from ..api import lmlite_models, lmstudio_v0, lmstudio_v1, openai_models
from ..wire.connection import Reply, Request
from .state import State


async def list_openai(app: State, request: Request, reply: Reply, _: str) -> None:
    reply.whole(200, openai_models.models(card.id for card in await app.models.cards()).encode())


async def list_v0(app: State, request: Request, reply: Reply, _: str) -> None:
    listed = lmstudio_v0.models(await app.models.cards(), app.models.instances(), app.config.v0_extras)
    reply.whole(200, listed.encode())


async def list_v1(app: State, request: Request, reply: Reply, _: str) -> None:
    reply.whole(200, lmstudio_v1.models(await app.models.cards(), app.models.instances()).encode())


async def list_own(app: State, request: Request, reply: Reply, _: str) -> None:
    reply.whole(200, lmlite_models.models(await app.models.cards()).encode())


async def show_openai(app: State, request: Request, reply: Reply, name: str) -> None:
    reply.whole(200, openai_models.model((await app.models.resolve(name)).id).encode())


async def show_v0(app: State, request: Request, reply: Reply, name: str) -> None:
    card = await app.models.resolve(name)
    instance = next((instance for instance in app.models.instances() if instance.id == card.id), None)
    reply.whole(200, lmstudio_v0.model(card.id, card, instance, app.config.v0_extras).encode())


async def health(app: State, request: Request, reply: Reply, _: str) -> None:
    reply.whole(200, b'{"status":"ok"}')


async def greet(app: State, request: Request, reply: Reply, _: str) -> None:
    """What LM Studio's own client looks for."""
    reply.whole(200, b'{"lmstudio":true}')
