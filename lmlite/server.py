"""One server: its listening sockets, its life and its end. `Service` lives in a running loop; `Server` is for programs.

Stopping is in order: no new connection from the first moment; running requests have `drain` seconds; the rest are told
`ShuttingDown` in their dialect; then connections, engines and sockets are closed. Nothing outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, TypeVar

from .app import App
from .app.logs import keep
from .card import ModelCard
from .config import Config
from .errors import ConfigError, PortInUse
from .forks import KEPT_FROM_CHILDREN, Origin

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel holds while the loop is busy, as far as the system lets it: one more is not refused but has
to ask again, after a second."""
ACCEPT_BURST = 16
"""Connections taken per turn of the loop, two milliseconds with all that follows, so that a flood of them does not stop the
streams."""
ACCEPT_PAUSE_S = 0.2
"""After the process ran out of descriptors: long enough for some to be closed, short enough to go unnoticed."""
EVERY_ADDRESS = ("0.0.0.0", "::")
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
FLUSH_S = 1.0
"""What clients have to take the last bytes of their answers, once all answers are finished."""

NO_SUCH_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
"""Without IPv6, `localhost` still names ::1, and `::` every address."""

T = TypeVar("T")


# ---- listening -------------------------------------------------------------------------------------------------------


def bind_all(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets for all of `hosts`, all on one port. As `bind`; an address that two of them mean is bound once."""
    sockets: list[socket.socket] = []
    bound: set[tuple[int, str]] = set()
    try:
        for host in sorted(hosts, key=lambda host: host not in EVERY_ADDRESS):  # none of them could follow what it covers
            sockets += bind(host, sockets[0].getsockname()[1] if sockets else port, bound)
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def bind(host: str, port: int, bound: set[tuple[int, str]]) -> list[socket.socket]:
    """Listening sockets for every address of `host` that is not in `bound` and that the machine has, all on one port.
    `ConfigError` says why it cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"host: {host!r} is not an address of this machine ({error.strerror})") from None
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    served = False  # by what listens already
    try:
        addresses = dict.fromkeys((int(entry[0]), str(entry[4][0])) for entry in found)
        if (socket.AF_INET6, "::") in addresses:  # whoever says "every address" means those of IPv4 too
            addresses[(socket.AF_INET, "0.0.0.0")] = None
        for family, address in addresses:
            if covers(bound, family, address):
                served = True
                continue
            try:
                sockets.append(listen(family, address, sockets[0].getsockname()[1] if sockets else port))
            except OSError as error:
                if error.errno not in NO_SUCH_FAMILY:
                    raise
                missing = error
            else:
                bound.add((family, address))
        if missing is not None and not (sockets or served):
            raise missing
    except OSError as error:
        for listening in sockets:
            listening.close()
        if error.errno == errno.EADDRINUSE:
            from .wire.occupant import find_listener

            raise PortInUse(host, port, find_listener(port)) from None
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return sockets


def covers(bound: set[tuple[int, str]], family: int, address: str) -> bool:
    """Something of `bound` takes the connections to `address` already."""
    every = "::" if family == socket.AF_INET6 else "0.0.0.0"
    return (family, address) in bound or (family, every) in bound


def listen(family: int, address: str, port: int) -> socket.socket:
    listening = KEPT_FROM_CHILDREN.include(socket.socket(family, socket.SOCK_STREAM))
    try:
        if sys.platform != "win32":  # there it would let two programs share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


class Acceptor:
    """Takes connections from one listening socket; pauses while the process has no descriptors left.

    asyncio's own does not stop its burst at the first failure, and logs each of them with a traceback.
    """

    def __init__(self, listening: socket.socket, connect: Callable[[], asyncio.Protocol]):
        self._socket, self._connect = listening, connect
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BURST):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                log.warning("cannot accept connections: %s", error.strerror)
                self._loop.remove_reader(self._socket.fileno())
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            KEPT_FROM_CHILDREN.include(accepted).setblocking(False)
            if accepted.family != socket.AF_UNIX:  # asyncio sees to it only where a socket bears its protocol's number
                with contextlib.suppress(OSError):  # some systems refuse it to one that was reset meanwhile
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connect, accepted)
        except OSError:  # it left before it arrived
            accepted.close()

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()


# ---- a server in a running loop --------------------------------------------------------------------------------------


class Service:
    """`open`, then `close`; both in the loop that serves. `expire` ends the time that running requests have."""

    def __init__(self, config: Config, app: App | None = None):
        self.config = config
        self.app = app or App(config)
        self.origin = Origin("server")
        self.port = 0
        self._acceptors: list[Acceptor] = []
        self._expired: asyncio.Event | None = None
        self._keeping: asyncio.Future[None] | None = None

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.config.host[0], self.config.host[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def open(self) -> None:
        if self._expired is not None:
            raise RuntimeError("a server runs once; make another one")
        self.origin = Origin("server")
        for path in self.config.models:
            if not path.exists():
                raise ConfigError(f"models: there is no file {str(path)!r}")
        sockets = bind_all(self.config.host, self.config.port)
        self.port = sockets[0].getsockname()[1]
        self._expired = asyncio.Event()
        if self.config.log_prompts:
            self._keeping = asyncio.ensure_future(keep(self.app.logs))
        self._acceptors = [Acceptor(listening, self.app.connect) for listening in sockets]
        self.app.open()

    async def cards(self) -> tuple[ModelCard, ...]:
        return await self.app.models.cards()

    def expire(self) -> None:
        if self._expired is not None:
            self._expired.set()

    async def close(self) -> None:
        self.origin.check()
        for acceptor in self._acceptors:
            acceptor.close()
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
