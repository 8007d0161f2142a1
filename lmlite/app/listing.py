"""Endpoints that list models, and signs of life."""

from __future__ import annotations

from ..api.lmstudio import models as lmstudio_v1
from ..api.lmstudio import v0 as lmstudio_v0
from ..api.openai import models as openai_models
from ..api.own import models as lmlite_models
from ..card import Instance, ModelCard
from ..wire.connection import Request, Response
from .state import State


async def list_openai(app: State, request: Request, response: Response, _: str) -> None:
    """All models by all of their names, and instances; where requests load nothing, only what they can use."""
    loaded = app.models.instances()
    cards = await app.models.cards() if app.config.jit else [app.models.latest(instance.card) for instance in loaded]
    names = [name for card in cards for name in (*([card.id] if app.config.jit else ()), *card.aliases)]
    ids = dict.fromkeys([*names, *(instance.id for instance in loaded)])
    response.whole(200, openai_models.models(ids).encode())


async def list_v0(app: State, request: Request, response: Response, _: str) -> None:
    listed = lmstudio_v0.models(await app.models.cards(), app.models.instances(), app.config.v0_extras)
    response.whole(200, listed.encode())


async def list_v1(app: State, request: Request, response: Response, _: str) -> None:
    response.whole(200, lmstudio_v1.models(await app.models.cards(), app.models.instances()).encode())


async def list_own(app: State, request: Request, response: Response, _: str) -> None:
    cards = {card.id: card for card in await app.models.cards()}
    for instance in app.models.instances():
        cards.setdefault(instance.card.id, instance.card)  # the bundled one, or one whose file is gone
    response.whole(200, lmlite_models.models(cards.values(), app.models.notes()).encode())


async def show_openai(app: State, request: Request, response: Response, name: str) -> None:
    card = await app.models.resolve(name)
    instance = instance_of(app, name, card)
    response.whole(200, openai_models.model(card.id if instance is None else instance.id).encode())


async def show_v0(app: State, request: Request, response: Response, name: str) -> None:
    card = await app.models.resolve(name)
    instance = instance_of(app, name, card)
    shown = lmstudio_v0.model(card.id if instance is None else instance.id, card, instance, app.config.v0_extras)
    response.whole(200, shown.encode())


def instance_of(app: State, name: str, card: ModelCard) -> Instance | None:
    """The loaded instance that `name` names, or the one that goes by the name of the model."""
    loaded = {instance.id: instance for instance in app.models.instances()}
    return loaded.get(name.lower()) or loaded.get(card.id)


async def health(app: State, request: Request, response: Response, _: str) -> None:
    response.whole(200, b'{"status":"ok"}')


async def greet(app: State, request: Request, response: Response, _: str) -> None:
    """What LM Studio's own client looks for."""
    response.whole(200, b'{"lmstudio":true}')
