"""The joiner: a request is routed, its endpoint answers it, and what fails is spelled in the words of its family."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ..config import Config
from ..errors import HttpError, LmError, RateLimited, UnexpectedEndpoint
from ..metrics import OTHER
from ..principal import ANYBODY, Principal
from ..wire.connection import Connection, Hooks, Request, Response
from ..wire.guard import Policy, preflight
from ..wire.http1 import Headers
from ..wire.router import Router
from .facts import fact
from .greeting import page
from .listing import asks_as_anthropic
from .request_log import RequestLog
from .routes import ANTHROPIC_FAMILIES, ELSEWHERE, FAMILIES, ROUTES, Spelling
from .state import Endpoint, State

if TYPE_CHECKING:
    from ..core.engine.worker import Placement

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
WORK: Final = frozenset({"chat", "embed"})
"""Rights whose use costs something that a token can have less of."""
CLIENT_LEFT: Final = 499
"""Counted for a client that left before its answer began; nginx's number, which dashboards know."""

class App(State):
    """The state, its routes, and the connections there are."""

    def __init__(self, config: Config, place: Callable[[], Placement] | None = None):
        super().__init__(config, place)
        self._router: Router[Endpoint] = Router(ROUTES)
        self.page = page(ROUTES)
        self._policy = Policy.of(config.host, config.allow_host, config.allow_origin, config.trusted_proxy)
        self._hooks = Hooks(self.handle, self.spell_error, self.admit, self._opened, self._closed, self._answered)
        self._request_log = RequestLog()
        self._connections: set[Connection] = set()
        self._deserted = asyncio.Event()  # no connection is left
        self._deserted.set()
        self._draining = False
        self._headers = (("X-Lmlite-Node", config.node),) if config.node else ()

    # ---- life

    def open(self) -> None:
        """The server has begun to listen."""
        self.downloads.resume_unfinished()
        self.history.open()

    def connect(self) -> Connection:
        """The protocol of one new connection."""
        return Connection(self._hooks, self._policy, headers=self._headers)

    def connect_file(self) -> Connection:
        """Of one that came through a socket file."""
        return Connection(self._hooks, self._policy.of_file(), headers=self._headers)

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.n_connections = len(self._connections)
        self._deserted.clear()
        if self._draining:
            connection.shutdown()
        elif self.leaving:
            connection.retire()

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.n_connections = len(self._connections)
        if not self._connections:
            self._deserted.set()

    def leave(self) -> None:
        """Whoever asks is told that the server will stop; requests are taken until it drains."""
        self.leaving = True
        for connection in self._connections:
            connection.retire()

    def drain(self) -> None:
        """No further request is taken; those that run go on."""
        self._draining = True
        self.logs.close()
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
        await self.background.close()
        await self.tools.close()
        await self.downloads.close()
        await self.models.close()
        self.door.close()
        await self.history.close()
        if self.database.is_open:
            await asyncio.to_thread(self.database.close)

    # ---- one request

    def admit(self, request: Request) -> Principal:
        """Who asks, if that one may: before the body is read. Browsers ask without a token whether they may ask."""
        if request.method == "OPTIONS" or self.config.auth is False:
            return ANYBODY
        match = self._router.match(request.method, request.path, request.target)
        return self.door.admit(request.headers, match.route.right)

    def handle(self, request: Request, response: Response) -> Awaitable[None] | None:
        if request.method == "OPTIONS" and (allowed := preflight(self._policy, request.method, request.headers)):
            response.whole(204, b"", allowed)
            return None
        match = self._router.match(request.method, request.path, request.target)
        response.route = match.route.pattern
        answer = partial(match.route.endpoint, self, request, response, "".join(match.parameters.values()))
        return self._counted(request, answer) if match.route.right in WORK and request.caller.limited else answer()

    async def _counted(self, request: Request, answer: Callable[[], Awaitable[None] | None]) -> None:
        with self.door.working(request.caller):
            work = answer()
            if work is not None:
                await work

    def spell_error(self, request: Request | None, exc: Exception) -> tuple[int, Headers, bytes]:
        """The whole answer to a request that failed before an answer to it had begun."""
        error = fact(exc)
        status, body = spelling(request)(error, lambda: self.origin().suffix)
        return status, headers_of(error), body.encode()

    def _answered(self, request: Request | None, response: Response) -> None:
        """Counts the request, and logs that it was."""
        now = asyncio.get_running_loop().time()
        status = response.status or CLIENT_LEFT
        method = request.method if request is not None and request.method in METHODS else OTHER
        caller = "" if request is None or request.caller is None else request.caller.name
        self.metrics.answered(response.route or OTHER, method, status, now - response.began, caller)
        if request is not None:
            self._request_log.tell(request, response, status, now)


def spelling(request: Request | None) -> Spelling:
    """The words of the family that its path belongs to."""
    if request is not None:
        for prefix, error in ANTHROPIC_FAMILIES if asks_as_anthropic(request) else FAMILIES:
            if request.path == prefix or request.path.startswith(prefix + "/"):
                return error
    return ELSEWHERE


def headers_of(error: LmError) -> tuple[tuple[str, str], ...]:
    match error:
        case HttpError(headers=headers):
            return headers
        case UnexpectedEndpoint(allow=allow) if allow:
            return (("Allow", ", ".join(allow)),)
        case RateLimited(retry_after_s=seconds):
            return (("Retry-After", str(seconds)),)
        case _:
            return ()
