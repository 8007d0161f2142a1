"""`/v1/responses` and what is asked of responses later, by their ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..api.dialect import Call
from ..api.openai import responses_kept as kept
from ..api.openai.responses import parse_responses
from ..api.openai.responses_items import dereference, references
from ..api.openai.responses_reply import ResponseReply, response_beginning
from ..api.read.json_body import parse_body
from ..errors import InvalidRequest, NotKept, UnknownItem
from ..exchange import Exchange
from ..messages import media_of
from ..request import Chat
from ..rounds.history import OwnHistory
from ..rounds.run import completed
from ..turn import Turn
from ..wire import sse
from ..wire.connection import Request, Response
from . import media
from .generation import frames, read, respond, rounds, scoped, sized, tell_ignored, with_reply
from .state import State

T = TypeVar("T")


async def create(app: State, request: Request, response: Response, _: str) -> None:
    caller = request.caller
    call, reply = await read_call(app, request, lambda call: with_reply(app, call, len(request.body)))
    if not call.background:
        await respond(app, call, reply, response, request.caller)
        return
    if not app.history.keeps:
        raise NotKept("this server keeps nothing (--history-size, --history-days)")
    await media.fetch(app, call.turn)
    past, turn = own(app, request), scoped(call.turn, caller)
    await app.models.expect(turn)
    turn = await past.follow(turn)
    assert isinstance(reply, ResponseReply)
    tell_ignored(call, response)
    run = app.background.start(rounds(app, caller), past, turn, reply)
    if call.stream:
        await run.follow(-1, response)
    else:
        response.whole(200, reply.body().encode())


def own(app: State, request: Request) -> OwnHistory:
    return app.history.own(request.caller.scope)


async def read_call(app: State, request: Request, then: Callable[[Call], T]) -> T:
    """With the items in their places that the request only points at."""

    def look() -> tuple[dict[str, Any], tuple[str, ...]]:
        fields = parse_body(request.body)
        return fields, references(fields)

    fields, ids = await read(look, len(request.body))
    if ids:
        fields = dereference(fields, await find_items(own(app, request), ids))
    return await read(lambda: then(parse_responses(fields)), len(request.body))


async def find_items(past: OwnHistory, ids: tuple[str, ...]) -> Mapping[str, Any]:
    """Several are mostly of one response."""
    items: dict[str, Mapping[str, Any]] = {}
    for id in ids:
        beginning = response_beginning(id)
        if beginning and beginning not in items:
            exchange = await past.find_beginning(beginning)
            items[beginning] = {} if exchange is None else await of_kept(kept.items_of, exchange)
        if id not in items.get(beginning, {}):
            raise UnknownItem(id)
    return {id: items[response_beginning(id)][id] for id in ids}


async def of_kept(work: Callable[..., T], exchange: Exchange, *more: Any) -> T:
    """What is kept may be as large as what may be sent."""
    n_bytes = len(exchange.body) + len(exchange.items) + sum(len(part.data) for part in media_of(exchange.asked))
    return await read(lambda: work(exchange, *more), n_bytes)


async def count(app: State, request: Request, response: Response, _: str) -> None:
    turn = await read_call(app, request, lambda call: sized(call.turn, len(request.body)))
    response.whole(200, kept.spell_count(await count_tokens(app, turn, own(app, request))).encode())


async def count_tokens(app: State, turn: Turn, past: OwnHistory) -> int:
    """Of all that the model would read."""
    await media.fetch(app, turn)
    turn = await past.follow(turn)
    async with app.models.lease(turn.model, turn.needs, turn.load, senses=turn.senses) as lease:
        run = completed(turn, app.models, lease.instance).runs[0]
        assert isinstance(run.prompt, Chat)
        _, n_tokens = await lease.engine.count(run.prompt, large=run.large)
        return n_tokens


# ---- by their ids ----------------------------------------------------------------------------------------------------


async def show(app: State, request: Request, response: Response, id: str) -> None:
    streams, after = kept.parse_show(request.query)
    run = app.background.find(id, request.caller.scope)
    if run is not None:
        if streams:
            await run.follow(after, response)
        else:
            response.whole(200, run.reply.body().encode())
        return
    exchange = await own(app, request).find(id)
    if not streams:
        response.whole(200, (await of_kept(kept.spell_response, exchange)).encode())
        return
    if exchange.is_open:
        raise InvalidRequest("a response that still runs is told again only if it runs in the background", "stream")
    said = frames(await of_kept(kept.replay, exchange, after))
    response.start(200, sse.HEADERS, sse.KEEP_ALIVE)
    response.finish(said)


async def delete(app: State, request: Request, response: Response, id: str) -> None:
    if (run := app.background.find(id, request.caller.scope)) is not None:
        await run.stop()
    await own(app, request).delete(id, "response")
    response.whole(200, kept.spell_deleted(id).encode())


async def cancel(app: State, request: Request, response: Response, id: str) -> None:
    """One that is over stays as it is."""
    if (run := app.background.find(id, request.caller.scope)) is not None:
        await run.stop()
        response.whole(200, run.reply.body().encode())
        return
    exchange = await own(app, request).find(id)
    found = await of_kept(kept.response_of, exchange)
    if not found["background"]:
        raise InvalidRequest("only a response that runs in the background can be cancelled; else leave it", "background")
    response.whole(200, (await of_kept(kept.spell_response, exchange)).encode())


async def list_input(app: State, request: Request, response: Response, id: str) -> None:
    if (run := app.background.find(id, request.caller.scope)) is not None:
        exchange = run.reply.kept()
    else:
        exchange = await own(app, request).find(id)
    response.whole(200, (await of_kept(kept.spell_input, exchange, request.query)).encode())
