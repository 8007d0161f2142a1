"""One server: its listening sockets, its life and its end. `Service` lives in a running loop; `Server` is for programs.

Stopping is in order: for `drain_delay` seconds all goes on, but for `/ready`, which tells proxies; then no new connection is
taken, and running requests have `drain` seconds; the rest are told `ShuttingDown` in their dialect; then connections, engines
and sockets are closed. Nothing outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .app import App
from .app.logs import keep
from .card import ModelCard
from .config import Config
from .errors import ConfigError
from .forks import Origin
from .wire import listening, tls
from .wire.listening import Acceptor

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

FLUSH_S = 1.0
"""What clients have to take the last bytes of their answers, once all answers are finished."""

T = TypeVar("T")


# ---- a server in a running loop --------------------------------------------------------------------------------------


class Service:
    """`open`, then `close`; both in the loop that serves. `expire` ends the time that running requests have."""

    def __init__(self, config: Config, app: App | None = None):
        self.config = config
        self.app = app or App(config)
        self.origin = Origin("server")
        self.port = 0
        self._acceptors: list[Acceptor] = []
        self._secured: ssl.SSLContext | None = None
        self._file: Path | None = None  # that it listens in, and made
        self._expired: asyncio.Event | None = None
        self._keeping: asyncio.Future[None] | None = None

    @property
    def url(self) -> str:
        """Where it is for a program on this machine; `unix:` and a path for a file."""
        if self.config.unix_socket:
            return f"unix:{self.config.unix_socket}"
        scheme = "http" if self._secured is None else "https"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.config.host[0], self.config.host[0])
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    async def open(self, inherited: Sequence[socket.socket] = ()) -> None:
        """`inherited` are sockets that listen already, in the place of what the options say of that."""
        if self._expired is not None:
            raise RuntimeError("a server runs once; make another one")
        self.origin = Origin("server")
        for path in self.config.models:
            if not path.exists():
                raise ConfigError(f"models: there is no file {str(path)!r}")
            if path.is_dir():
                raise ConfigError(f"models: {str(path)!r} is a folder; --models-dir serves what is in one")
        for path in self.config.models_dir:
            if not path.is_dir():
                log.warning("models_dir: there is no folder %r", str(path))
        config = self.config
        self._secured = tls.context(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
        if inherited:
            check_exposure(config, inherited)
            sockets = list(inherited)
        elif config.unix_socket:
            sockets = [listening.bind_file(config.unix_socket)]
            self._file = config.unix_socket
        else:
            sockets = listening.bind_all(config.host, config.port)
        self.port = next((found.getsockname()[1] for found in sockets if found.family != socket.AF_UNIX), 0)
        self._expired = asyncio.Event()
        if self.config.log_prompts:
            self._keeping = asyncio.ensure_future(keep(self.app.logs))
        self._acceptors = [
            Acceptor(found, self.app.connect_file)
            if found.family == socket.AF_UNIX
            else Acceptor(found, self.app.connect, self._secured)
            for found in sockets
        ]
        self.app.open()

    def renew_certificate(self) -> None:
        """Reads it again, for the connections to come. Raises `ConfigError`."""
        if self._secured is not None and self.config.tls_cert and self.config.tls_key:
            tls.renew(self._secured, self.config.tls_cert, self.config.tls_key)

    async def cards(self) -> tuple[ModelCard, ...]:
        return await self.app.models.cards()

    def expire(self) -> None:
        if self._expired is not None:
            self._expired.set()

    async def close(self) -> None:
        self.origin.check()
        if self._expired is not None and self.config.drain_delay:
            self.app.leave()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._expired.wait(), self.config.drain_delay)
        for acceptor in self._acceptors:
            acceptor.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None
        self._acceptors = []
        self.app.drain()
        if self._expired is not None:
            await self._wait_until_deserted(self._expired)
        self.app.expire()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.app.deserted(), FLUSH_S)
        await self.app.close()
        if self._keeping is not None:
            await self._keeping

    async def _wait_until_deserted(self, expired: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(self.app.deserted()), asyncio.ensure_future(expired.wait())]
        try:
            await asyncio.wait(waiting, timeout=self.config.drain, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()


def check_exposure(config: Config, sockets: Sequence[socket.socket]) -> None:
    """What the options may not say, no socket of others may do either."""
    for found in sockets:
        if found.family != socket.AF_UNIX:
            replace(config, host=(found.getsockname()[0],)).check()


# ---- a server in a program -------------------------------------------------------------------------------------------


class LoopThread:
    """An event loop in a thread of its own, to be called from threads that have none."""

    def __init__(self, name: str, serves: str = "server"):
        self.origin = Origin(serves)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def closed(self) -> bool:
        return self.loop.is_closed()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Raises `RuntimeError` if it was closed, and in a forked child."""
        if self.closed or not self.origin.is_here:
            coroutine.close()
            self.origin.check()
            raise RuntimeError("it was closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs `coroutine` in the loop to its end; an interrupt of the caller cancels it."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        if self.closed:
            return
        self.origin.check()
        self.call(self._settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _settle(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        await self.loop.shutdown_default_executor()


class Server:
    """A server inside this program. `with Server(port=0) as server:` runs it in a thread of its own, `async with` in
    the caller's loop. Options are those of `Config`; neither the environment nor a config file is looked at."""

    def __init__(self, config: Config | None = None, **options: Any):
        if config is not None and options:
            raise TypeError("give a Config or options, not both")
        self._service = Service(config or Config.of(**options))
        self._thread: LoopThread | None = None

    @property
    def url(self) -> str:
        return self._service.url

    @property
    def port(self) -> int:
        return self._service.port

    def start(self) -> None:
        thread = LoopThread("lmlite-server")
        try:
            thread.call(self._service.open())
        except BaseException:
            thread.close()
            raise
        self._thread = thread

    def close(self) -> None:
        """Stops in order, see above; may be called twice."""
        if self._thread is None:
            return
        self._thread.origin.check()
        thread, self._thread = self._thread, None
        try:
            thread.call(self._service.close())
        finally:
            thread.close()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None or self._service.origin.is_here:  # what ends a child is not to be hidden
            self.close()

    async def __aenter__(self) -> Server:
        await self._service.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None or self._service.origin.is_here:
            await self._service.close()
