"""Endpoints for what is asked of a model besides text: vectors, scores, tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from ..api.dialect import CountCall, EmbedCall
from ..api.openai.chat import parse_chat
from ..api.own import rerank, tokens
from ..beside import Turns
from ..request import Chat
from ..rounds.run import completed
from ..settings import ModelSettings
from ..turn import Turn
from ..wire.connection import Request, Response
from . import media
from .generation import parsed, sized
from .state import Endpoint, State


def embedding(parse: Callable[[dict[str, Any]], EmbedCall]) -> Endpoint:
    async def endpoint(app: State, request: Request, response: Response, _: str) -> None:
        call = await parsed(parse, request.body)
        async with app.models.lease(call.model, "embedding", ModelSettings(ttl_s=call.ttl_s)) as lease:
            vectors = await lease.engine.embed(call.embed)
            instance = lease.instance
        n_tokens = sum(vector.n_tokens for vector in vectors)
        app.metrics.read(instance.card.id, n_tokens, request.caller.name)
        app.door.charge(request.caller, n_tokens)
        response.whole(200, "".join([piece async for piece in in_turns(call.pieces(instance.id, vectors))]).encode())

    return endpoint


async def in_turns(pieces: Iterable[str]) -> AsyncIterator[str]:
    """The pieces, with other requests' turns in between where they take long to make."""
    turns = Turns()
    for piece in pieces:
        yield piece
        await turns.pause()


async def score(app: State, request: Request, response: Response, _: str) -> None:
    call = await parsed(rerank.parse_rerank, request.body)
    async with app.models.lease(call.model, "rerank", ModelSettings(ttl_s=call.ttl_s)) as lease:
        scores = await lease.engine.rerank(call.rerank)
        instance = lease.instance
    n_tokens = sum(score.n_tokens for score in scores)
    app.metrics.read(instance.card.id, n_tokens, request.caller.name)
    app.door.charge(request.caller, n_tokens)
    response.whole(200, call.reply(instance.id, scores).encode())


async def count_chat(app: State, request: Request, response: Response, _: str) -> None:
    _, n_tokens = await read_chat(app, request)
    response.whole(200, tokens.spell_count(n_tokens).encode())


async def apply_template(app: State, request: Request, response: Response, _: str) -> None:
    prompt, n_tokens = await read_chat(app, request)
    response.whole(200, tokens.spell_prompt(prompt, n_tokens).encode())


def counting(parse: Callable[[dict[str, Any]], CountCall]) -> Endpoint:
    async def endpoint(app: State, request: Request, response: Response, _: str) -> None:
        call = await parsed(parse, request.body)
        _, n_tokens = await render(app, sized(call.turn, len(request.body)))
        response.whole(200, call.reply(n_tokens).encode())

    return endpoint


async def read_chat(app: State, request: Request) -> tuple[str, int]:
    return await render(app, sized((await parsed(parse_chat, request.body)).turn, len(request.body)))


async def render(app: State, turn: Turn) -> tuple[str, int]:
    """What the model would see of a chat, and how many tokens that is."""
    await media.fetch(app, turn)
    async with app.models.lease(turn.model, turn.needs, turn.load, senses=turn.senses) as lease:
        run = completed(turn, app.models, lease.instance).runs[0]
        assert isinstance(run.prompt, Chat)
        return await lease.engine.count(run.prompt, run.grammar, run.large)


async def tokenize(app: State, request: Request, response: Response, _: str) -> None:
    call = await parsed(tokens.parse_tokenize, request.body)
    async with app.models.lease(call.model, "any") as lease:
        ids, pieces = await lease.engine.tokenize(
            call.text, add_special=call.add_special, parse_special=call.parse_special
        )
    response.whole(200, call.reply(ids, pieces).encode())


async def detokenize(app: State, request: Request, response: Response, _: str) -> None:
    call = await parsed(tokens.parse_detokenize, request.body)
    async with app.models.lease(call.model, "any") as lease:
        text = await lease.engine.detokenize(call.tokens)
    response.whole(200, call.reply(text).encode())
