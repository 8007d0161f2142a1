"""Endpoints that list models, and signs of life."""

from __future__ import annotations

from ..api.anthropic import models as anthropic_models
from ..api.lmstudio import models as lmstudio_v1
from ..api.lmstudio import v0 as lmstudio_v0
from ..api.openai import models as openai_models
from ..api.own import models as lmlite_models
from ..card import ANY_TEXT, Instance, ModelCard
from ..wire.connection import Request, Response
from .state import State


def asks_as_anthropic(request: Request) -> bool:
    """No other family's clients send this header."""
    return "anthropic-version" in request.headers


async def list_compatible(app: State, request: Request, response: Response, _: str) -> None:
    """All models by all of their names, and instances; where requests load nothing, only what they can use. Clients of
    Anthropic's are told of those that can answer them."""
    loaded = app.models.instances()
    cards = await app.models.cards() if app.config.jit else [app.models.latest(instance.card) for instance in loaded]
    named = {name: card for card in cards for name in (*([card.id] if app.config.jit else ()), *names_of(card))}
    named |= {instance.id: instance.card for instance in loaded if instance.id not in named}
    if asks_as_anthropic(request):
        listed = [as_listed(app, name, card) for name, card in named.items() if card.type != "embedding"]
        response.whole(200, anthropic_models.models(listed).encode())
    else:
        response.whole(200, openai_models.models(named).encode())


def names_of(card: ModelCard) -> list[str]:
    """Those of the user's own for it that are one name each."""
    return [alias for alias in card.aliases if ANY_TEXT not in alias]


def as_listed(app: State, name: str, card: ModelCard) -> anthropic_models.Listed:
    """With the context that it has, or would be loaded with now."""
    instance = instance_of(app, name, card)
    if instance is not None:
        return anthropic_models.Listed(name, card.display_name, instance.context_length)
    asked = card.settings.context_length
    length = app.config.context_length if asked is None else asked
    most = card.max_context_length
    return anthropic_models.Listed(name, card.display_name, min(length or most, most) if most else length)


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


async def show_compatible(app: State, request: Request, response: Response, name: str) -> None:
    card = await app.models.resolve(name)
    instance = instance_of(app, name, card)
    id = card.id if instance is None else instance.id
    if asks_as_anthropic(request):
        response.whole(200, anthropic_models.model(as_listed(app, id, card)).encode())
    else:
        response.whole(200, openai_models.model(id).encode())


async def show_v0(app: State, request: Request, response: Response, name: str) -> None:
    card = await app.models.resolve(name)
    instance = instance_of(app, name, card)
    shown = lmstudio_v0.model(card.id if instance is None else instance.id, card, instance, app.config.v0_extras)
    response.whole(200, shown.encode())


def instance_of(app: State, name: str, card: ModelCard) -> Instance | None:
    """The loaded instance that `name` names, or the one that goes by the name of the model."""
    loaded = {instance.id: instance for instance in app.models.instances()}
    return loaded.get(name.lower()) or loaded.get(card.id)


def health(app: State, request: Request, response: Response, _: str) -> None:
    response.whole(200, b'{"status":"ok"}')


def ready(app: State, request: Request, response: Response, _: str) -> None:
    """Whether a proxy should send requests here."""
    if app.leaving:
        response.whole(503, b'{"status":"stopping"}')
    else:
        response.whole(200, b'{"status":"ok"}')


def greet(app: State, request: Request, response: Response, _: str) -> None:
    """What LM Studio's own client looks for."""
    response.whole(200, b'{"lmstudio":true}')
