"""The joiner: a request is routed, read by its dialect, given a leased engine, and its events go back as bytes.

Every dialect that generates goes through `generating`: whole answers are a fold over the events that a stream carries.
A stream starts with its first event, so that what fails before it is an HTTP status; what fails later is the stream's
last event. A client that leaves cancels its request down to the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import string
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .api import (
    lmstudio_v0,
    lmstudio_v1,
    openai_chat,
    openai_embeddings,
    openai_error,
    openai_models,
    openai_text,
    rerank,
    tokens,
)
from .api.call import Call, EmbedCall, Frame
from .api.call import Reply as Spelled
from .api.fields import INLINE_BYTES_MAX, parse_body
from .api.served import Served
from .card import Instance, ModelCard
from .config import Config
from .errors import HttpError, InternalError, LmError, ModelNotFound, QueueFull, ShuttingDown, UnexpectedEndpoint
from .events import Event
from .request import Generate
from .wire import sse
from .wire.connection import Connection, Hooks, Reply, Request, no_precheck
from .wire.guard import Policy, preflight
from .wire.http1 import Headers
from .wire.router import Route, Router

if TYPE_CHECKING:
    from .core.catalog import Catalog
    from .core.engine import Engine
    from .core.pool import Lease, Needs, Pool
    from .core.worker import Placement

log = logging.getLogger(__name__)

RESCAN_S: Final = 1.0
"""A list of models is at most this old: a client that polls must not keep the disk busy."""
TURN_S: Final = 0.005
"""How long one request may keep the event loop, where its work can be cut."""
SUFFIX_LETTERS: Final = string.ascii_lowercase + string.digits
SUFFIX_LENGTH: Final = 22

Endpoint = Callable[["App", Request, Reply, str], Awaitable[None]]
Spelling = Callable[[LmError], tuple[int, str]]

T = TypeVar("T")


# ---- models ----------------------------------------------------------------------------------------------------------


def open_catalog(config: Config) -> Catalog:
    """The models of `config`, or the bundled one where there are none."""
    from .core.catalog import Catalog, model_folders

    folders = model_folders(config.home, config.models_dir, os.environ)
    return Catalog(folders, config.models, aliases=dict(config.alias), bundled=True)


def open_pool(config: Config, catalog: Catalog, place: Callable[[], Placement] | None = None) -> Pool:
    """`place` stands in for the configured placement; tests put a fake engine there."""
    from .core.payloads import LoadSettings, Lora
    from .core.pool import Pool
    from .core.worker import Process, Thread

    k_type, _, v_type = config.kv_type.partition(",")
    settings = LoadSettings(
        context_length=config.context_length,
        parallel=config.parallel,
        max_queue=config.max_queue,
        kv_cells=config.kv_cells,
        eval_batch_size=config.eval_batch_size,
        threads=config.threads,
        gpu_layers=config.gpu_layers,
        flash_attention={"on": True, "off": False}.get(config.flash_attention),
        k_cache_type=k_type,
        v_cache_type=v_type or k_type,
        offload_kv_cache=config.kv_offload,
        n_experts=config.experts,
        mmap=config.mmap,
        mlock=config.mlock,
        main_gpu=config.main_gpu,
        split_mode=config.split_mode,
        tensor_split=config.tensor_split,
        idle_cells=config.idle_cells,
        spill_bytes=config.spill if config.spill < 0 else config.spill << 20,
        loras=tuple(Lora(path, scale) for path, scale in config.lora),
    )
    if place is None:
        place = Thread if config.isolation == "thread" else lambda: Process(log=log.error)
    return Pool(catalog, place, settings, config.ttl or None)


class Models:
    """What is on disk and what is loaded, for one event loop.

    The disk is looked at in a thread, by one at a time and not too often. The first look brings the code for all of
    this too: a server is ready before that.
    """

    def __init__(self, config: Config, place: Callable[[], Placement] | None = None, max_age_s: float = RESCAN_S):
        self.max_age_s = max_age_s
        self._config, self._place = config, place
        self._opened: tuple[Catalog, Pool] | None = None
        self._look: asyncio.Future[None] | None = None
        self._looked_at = -math.inf

    # ---- on disk

    async def cards(self) -> tuple[ModelCard, ...]:
        """All models, as the disk was at most `max_age_s` ago."""
        now = asyncio.get_running_loop().time()
        catalog, _ = await self._current(again=now - self._looked_at >= self.max_age_s)
        return catalog.cards()

    async def resolve(self, name: str, param: str = "model") -> ModelCard:
        """The model that the field `param` names; the disk is looked at again for one that is unknown. Raises
        `ModelNotFound`."""
        catalog, _ = await self._current()
        card = catalog.resolve(name)
        if card is None:
            known = await self.cards()
            card = catalog.resolve(name)
            if card is None:
                raise ModelNotFound(name, tuple(card.id for card in known), param)
        return card

    async def _current(self, again: bool = False) -> tuple[Catalog, Pool]:
        if self._opened is None or again:
            if self._look is None:
                self._look = asyncio.get_running_loop().run_in_executor(None, self._scan)
                self._look.add_done_callback(self._note)
            await asyncio.shield(self._look)  # others wait for the same one
        assert self._opened is not None
        return self._opened

    def _scan(self) -> None:
        """Runs in a thread."""
        if self._opened is not None:
            self._opened[0].rescan()
            return
        catalog = open_catalog(self._config)
        catalog.rescan()
        self._opened = catalog, open_pool(self._config, catalog, self._place)

    def _note(self, look: asyncio.Future[None]) -> None:
        self._look = None
        self._looked_at = asyncio.get_running_loop().time()

    # ---- loaded

    @contextlib.asynccontextmanager
    async def lease(
        self, name: str | None, needs: Needs, ttl_s: float | None = None, draft: str | None = None
    ) -> AsyncIterator[Lease]:
        """See `Pool.lease`."""
        _, pool = await self._current()
        if name is not None:
            await self.resolve(name)
        if draft is not None:
            await self.resolve(draft, "draft_model")
        async with pool.lease(name, needs, ttl_s, draft=draft) as lease:
            yield lease

    async def lease_any(self, name: str | None) -> AbstractAsyncContextManager[Lease]:
        """A lease for what every type of model can do."""
        from .core.pool import purpose

        return self.lease(name, "text" if name is None else purpose(await self.resolve(name)))

    def instances(self) -> tuple[Instance, ...]:
        return self._opened[1].instances() if self._opened else ()

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened[1].close()


# ---- the application -------------------------------------------------------------------------------------------------


class App:
    """All that requests share: models, routes, and the connections there are. Lives in one event loop."""

    def __init__(self, config: Config, place: Callable[[], Placement] | None = None):
        self.config = config
        self.models = Models(config, place)
        self._router: Router[Endpoint] = Router(ROUTES)
        self._policy = Policy.of([config.host], config.allow_host, config.allow_origin)
        self._hooks = Hooks(self.handle, self.spell_error, no_precheck, self._opened, self._closed)
        self._connections: set[Connection] = set()
        self._deserted = asyncio.Event()  # no connection is left
        self._deserted.set()
        self._draining = self.expired = False

    # ---- life

    def connect(self) -> Connection:
        """The protocol of one new connection."""
        return Connection(self._hooks, self._policy)

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._deserted.clear()
        if self._draining:
            connection.shutdown()

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._deserted.set()

    def drain(self) -> None:
        """No further request is taken; those that run go on."""
        self._draining = True
        for connection in list(self._connections):
            connection.shutdown()

    def expire(self) -> None:
        """The requests that still run end now, with `ShuttingDown`."""
        self.expired = True
        for connection in list(self._connections):
            connection.cancel()

    async def deserted(self) -> None:
        """Returns once the last connection is closed."""
        await self._deserted.wait()

    async def close(self) -> None:
        for connection in list(self._connections):
            connection.abort()
        await self.models.close()

    # ---- one request

    async def handle(self, request: Request, reply: Reply) -> None:
        if request.method == "OPTIONS" and (allowed := preflight(self._policy, request.method, request.headers)):
            reply.whole(204, b"", allowed)
            return
        match = self._router.match(request.method, request.path, request.target)
        await match.route.endpoint(self, request, reply, "".join(match.parameters.values()))

    def spell_error(self, request: Request | None, exc: Exception) -> tuple[int, Headers, bytes]:
        """The whole answer to a request that failed before an answer to it had begun."""
        error = fact(exc)
        status, body = spelling(request.path if request else "")(error)
        return status, headers_of(error), body.encode()

    def served(self, lease: Lease) -> Served:
        return Served(
            suffix="".join([SUFFIX_LETTERS[byte % len(SUFFIX_LETTERS)] for byte in os.urandom(SUFFIX_LENGTH)]),
            created=int(time.time()),
            model=lease.instance.id,
            instance=lease.instance,
            extras=self.config.v0_extras,
        )


def fact(exc: Exception) -> LmError:
    """What a client is told of `exc`; what is no fact but a bug goes to the log."""
    if isinstance(exc, LmError):
        return exc
    log.error("a request failed", exc_info=exc)
    return InternalError()


def spelling(path: str) -> Spelling:
    """The words of the family that `path` belongs to."""
    for prefix, error in FAMILIES:
        if path == prefix or path.startswith(prefix + "/"):
            return error
    return openai_error.error


def headers_of(error: LmError) -> tuple[tuple[str, str], ...]:
    match error:
        case HttpError(headers=headers):
            return headers
        case UnexpectedEndpoint(allow=allow) if allow:
            return (("Allow", ", ".join(allow)),)
        case QueueFull(retry_after_s=seconds):
            return (("Retry-After", str(seconds)),)
        case _:
            return ()


# ---- generation ------------------------------------------------------------------------------------------------------


def generating(parse: Callable[[dict[str, Any]], Call]) -> Endpoint:
    """The endpoint of a dialect that generates."""

    async def endpoint(app: App, request: Request, reply: Reply, _: str) -> None:
        call = await parsed(parse, request.body)
        async with app.models.lease(call.model, call.needs, call.ttl_s, call.draft_model) as lease:
            if call.stream:
                await stream(app, call, app.served(lease), lease.engine, reply)
            else:
                await answer(call, app.served(lease), lease.engine, reply)

    return endpoint


async def parsed(parse: Callable[[dict[str, Any]], T], body: bytes) -> T:
    """A large body is read in a thread: others' streams must not wait for it."""
    if len(body) <= INLINE_BYTES_MAX:
        return parse(parse_body(body))
    return await asyncio.to_thread(lambda: parse(parse_body(body)))


async def answer(call: Call, served: Served, engine: Engine, reply: Reply) -> None:
    async def collect(work: Generate) -> list[Event]:
        return [event async for event in engine.run(replace(work, whole=True))]

    events = await together([collect(work) for work in call.runs])
    reply.whole(200, call.reply(served).whole(events).encode())


async def stream(app: App, call: Call, served: Served, engine: Engine, reply: Reply) -> None:
    """One write per batch of a run, however many events and frames that is."""
    spelled = call.reply(served)

    def take(index: int, events: list[Event]) -> bool:
        said = spell(spelled, index, events)
        if not reply.started:  # until there is an event, a failure is an HTTP status
            reply.start(200, sse.HEADERS)
            said = frames(spelled.begin()) + said
        reply.write(said)
        return not reply.paused

    try:
        runs = (engine.run(work).feed(partial(take, index), reply.drain) for index, work in enumerate(call.runs))
        await together(list(runs))
        last = spelled.end()
    except asyncio.CancelledError:
        if not (app.expired and reply.started):
            raise
        last = spelled.failed(ShuttingDown())
    except Exception as exc:  # noqa: BLE001 - a stream that has begun must not end without a word
        if not reply.started:
            raise
        last = spelled.failed(fact(exc))
    reply.finish(frames(last))


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first failure ends the others."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def spell(spelled: Spelled, index: int, events: Iterable[Event]) -> bytes:
    return b"".join([sse.frame(name, payload) for event in events for name, payload in spelled.stream(index, event)])


def frames(pairs: Iterable[Frame]) -> bytes:
    return b"".join([sse.frame(name, payload) for name, payload in pairs])


# ---- what is asked of a model besides --------------------------------------------------------------------------------


def embedding(parse: Callable[[dict[str, Any]], EmbedCall]) -> Endpoint:
    async def endpoint(app: App, request: Request, reply: Reply, _: str) -> None:
        call = await parsed(parse, request.body)
        async with app.models.lease(call.model, "embedding", call.ttl_s) as lease:
            vectors = await lease.engine.embed(call.embed)
            served = app.served(lease)
        reply.whole(200, "".join([piece async for piece in in_turns(call.pieces(served, vectors))]).encode())

    return endpoint


async def in_turns(pieces: Iterable[str]) -> AsyncIterator[str]:
    """The pieces, with other requests' turns in between where they take long to make."""
    clock = asyncio.get_running_loop().time
    turn_began = clock()
    for piece in pieces:
        yield piece
        if clock() - turn_began > TURN_S:
            await asyncio.sleep(0)
            turn_began = clock()


async def score(app: App, request: Request, reply: Reply, _: str) -> None:
    call = await parsed(rerank.parse_rerank, request.body)
    async with app.models.lease(call.model, "rerank", call.ttl_s) as lease:
        scores = await lease.engine.rerank(call.rerank)
        served = app.served(lease)
    reply.whole(200, call.reply(served, scores).encode())


async def tokenize(app: App, request: Request, reply: Reply, _: str) -> None:
    call = await parsed(tokens.parse_tokenize, request.body)
    async with await app.models.lease_any(call.model) as lease:
        ids, pieces = await lease.engine.tokenize(
            call.text, add_special=call.add_special, parse_special=call.parse_special
        )
    reply.whole(200, call.reply(ids, pieces).encode())


async def detokenize(app: App, request: Request, reply: Reply, _: str) -> None:
    call = await parsed(tokens.parse_detokenize, request.body)
    async with await app.models.lease_any(call.model) as lease:
        text = await lease.engine.detokenize(call.tokens)
    reply.whole(200, call.reply(text).encode())


# ---- lists of models, and signs of life ------------------------------------------------------------------------------


async def list_openai(app: App, request: Request, reply: Reply, _: str) -> None:
    reply.whole(200, openai_models.models(card.id for card in await app.models.cards()).encode())


async def list_v0(app: App, request: Request, reply: Reply, _: str) -> None:
    listed = lmstudio_v0.models(await app.models.cards(), app.models.instances(), app.config.v0_extras)
    reply.whole(200, listed.encode())


async def list_v1(app: App, request: Request, reply: Reply, _: str) -> None:
    reply.whole(200, lmstudio_v1.models(await app.models.cards(), app.models.instances()).encode())


async def show_openai(app: App, request: Request, reply: Reply, name: str) -> None:
    reply.whole(200, openai_models.model((await app.models.resolve(name)).id).encode())


async def show_v0(app: App, request: Request, reply: Reply, name: str) -> None:
    card = await app.models.resolve(name)
    instance = next((instance for instance in app.models.instances() if instance.id == card.id), None)
    reply.whole(200, lmstudio_v0.model(card.id, card, instance, app.config.v0_extras).encode())


async def health(app: App, request: Request, reply: Reply, _: str) -> None:
    reply.whole(200, b'{"status":"ok"}')


async def greet(app: App, request: Request, reply: Reply, _: str) -> None:
    """What LM Studio's own client looks for."""
    reply.whole(200, b'{"lmstudio":true}')


# ---- tables ----------------------------------------------------------------------------------------------------------

ROUTES: Final[tuple[Route[Endpoint], ...]] = (
    Route("GET", "/health", health),
    Route("GET", "/lmstudio-greeting", greet),
    # OpenAI
    Route("GET", "/v1/models", list_openai),
    Route("GET", "/v1/models/{model}", show_openai),
    Route("POST", "/v1/chat/completions", generating(openai_chat.parse_chat)),
    Route("POST", "/v1/completions", generating(openai_text.parse_completions)),
    Route("POST", "/v1/embeddings", embedding(openai_embeddings.parse_embeddings)),
    # shapes of other servers, and of our own
    Route("POST", "/v1/rerank", score),
    Route("POST", "/rerank", score),
    Route("POST", "/v1/tokenize", tokenize),
    Route("POST", "/v1/detokenize", detokenize),
    # LM Studio
    Route("GET", "/api/v0/models", list_v0),
    Route("GET", "/api/v0/models/{model}", show_v0),
    Route("POST", "/api/v0/chat/completions", generating(lmstudio_v0.parse_chat)),
    Route("POST", "/api/v0/completions", generating(lmstudio_v0.parse_completions)),
    Route("POST", "/api/v0/embeddings", embedding(lmstudio_v0.parse_embeddings)),
    Route("GET", "/api/v1/models", list_v1),
)

FAMILIES: Final[tuple[tuple[str, Spelling], ...]] = (("/api/v0", lmstudio_v0.error), ("/api/v1", lmstudio_v1.error))
"""Whose words an error is told in, by the beginning of the path; OpenAI's elsewhere."""
