"""Listening sockets: on addresses, on a file, or handed over by a service manager; and what takes connections from them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PortInUse
from ..forks import KEPT_FROM_CHILDREN
from . import tls
from .arrivals import Arrival, Arrivals, has_asked, has_left
from .transport import SocketTransport

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel holds while the loop is busy, as far as the system lets it: one more is not refused but has
to ask again, after a second."""
TAKEN_PER_TURN = 64
"""Of the loop, from what the kernel holds: a millisecond. There everybody waits behind everybody else."""
OPENED_PER_TURN = 8
"""Two milliseconds with what most of them ask for, so that a flood of them does not stop the streams."""
WAITING_MAX = 4096
"""Between the two, as many as the kernel holds: a few megabytes."""
LEFT_MAX = 256
"""Of one address, who sent something and sends no more, and ..."""
LEFT_PAUSE_S = 0.002
"""... from one of them to the next, while more come than can be opened: an eighth of the loop goes to answers that mostly
nobody reads."""
ACCEPT_PAUSE_S = 0.2
"""After the process ran out of descriptors: long enough for some to be closed, short enough to go unnoticed."""
EVERY_ADDRESS = ("0.0.0.0", "::")
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
"""Without IPv6, `localhost` still names ::1, and `::` every address."""
FIRST_INHERITED = 3
"""Descriptors that a service manager hands over begin here (sd_listen_fds)."""
PRIVATE = 0o600


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
    name = host.encode() if host.isascii() else host  # for texts Python brings a codec and a database of all characters
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
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
            from .occupant import find_listener

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


# ---- files, and sockets of others ------------------------------------------------------------------------------------


def bind_file(path: Path) -> socket.socket:
    """A listening socket at `path`, which only its owner may use. The file of a server that is no more is replaced."""
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"unix_socket: {path} is there already, and no socket")
        if is_answered(path):
            raise ConfigError(f"unix_socket: another program listens on {path}")
        path.unlink()
    listening = KEPT_FROM_CHILDREN.include(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        listening.bind(str(path))
        path.chmod(PRIVATE)  # before it listens, nobody is let in
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise ConfigError(f"unix_socket: cannot listen on {path}: {error.strerror or error}") from None
    return listening


def is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def inherited(environ: Mapping[str, str]) -> list[socket.socket]:
    """Those that a service manager has opened for this very process (systemd's socket activation)."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or not environ.get("LISTEN_FDS", "").isdigit():
        return []
    sockets = []
    for descriptor in range(FIRST_INHERITED, FIRST_INHERITED + int(environ["LISTEN_FDS"])):
        try:
            given = socket.socket(fileno=descriptor)
        except OSError as error:
            raise ConfigError(f"descriptor {descriptor}, which was handed over, is no socket: {error.strerror}") from None
        if given.type != socket.SOCK_STREAM or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigError(f"descriptor {descriptor}, which was handed over, is no socket that listens")
        os.set_inheritable(descriptor, False)
        given.setblocking(False)
        sockets.append(KEPT_FROM_CHILDREN.include(given))
    return sockets


# ---- taking connections ----------------------------------------------------------------------------------------------


class Acceptor:
    """Takes connections from one listening socket; pauses while the process has no descriptors left.

    asyncio's own does not stop its burst at the first failure, and logs each of them with a traceback. Other loops than its
    own may have better transports than ours.

    Where more come than a turn of the loop can open, all are taken from the kernel's queue, in which everybody waits behind a
    flood, and addresses take turns. Who has left without an answer is answered in what time there is.
    """

    def __init__(
        self, listening: socket.socket, connect: Callable[[], asyncio.Protocol], secured: ssl.SSLContext | None = None
    ):
        self._socket, self._connect, self._secured = listening, connect, secured
        self._loop = asyncio.get_running_loop()
        self._plain = secured is None and isinstance(self._loop, asyncio.SelectorEventLoop)
        self._is_tcp = listening.family != socket.AF_UNIX
        self._here = Arrivals(WAITING_MAX, WAITING_MAX)
        self._left = Arrivals(LEFT_MAX, WAITING_MAX)
        self._opening: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._next_here: asyncio.Handle | None = None
        self._next_left: asyncio.Handle | None = None
        self._resume()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        taken = self._take()
        if len(taken) <= OPENED_PER_TURN and not self._here and not self._left:
            for arrival in taken:
                self._open(arrival)
            return
        for arrival in taken:
            if not self._set_apart(arrival):
                self._here.add(arrival)
        if self._next_here is None:
            self._open_here()
        if self._next_left is None:
            self._open_left()

    def _take(self) -> list[Arrival]:
        taken: list[Arrival] = []
        while len(taken) < TAKEN_PER_TURN:
            try:
                accepted, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                if not taken:
                    self._give_way(error)
                break
            KEPT_FROM_CHILDREN.include(accepted).setblocking(False)
            taken.append((accepted, peer))
        return taken

    def _give_way(self, error: OSError) -> None:
        """No descriptor is left: of those that wait here some are closed, or no more are taken for a while."""
        waiting = max(self._left, self._here, key=len)
        if waiting:
            waiting.drop_one()
            return
        log.warning("cannot accept connections: %s", error.strerror)
        self._loop.remove_reader(self._socket.fileno())
        self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)

    # ---- more than can be opened

    def _set_apart(self, arrival: Arrival) -> bool:
        """Whether its client has left: without having asked for anything it is done with."""
        if not has_left(arrival[0]):
            return False
        if has_asked(arrival[0]):
            self._left.add(arrival)
        else:
            arrival[0].close()
        return True

    def _open_here(self) -> None:
        """Some of those that are there, the others in the loop's next turns."""
        self._next_here = None
        n_opened = 0
        while self._here and n_opened < OPENED_PER_TURN:
            arrival = self._here.pop()
            if self._set_apart(arrival):  # it has left meanwhile
                continue
            self._open(arrival)
            n_opened += 1
        if self._here:
            self._next_here = self._loop.call_soon(self._open_here)

    def _open_left(self) -> None:
        self._next_left = None
        if self._left:
            self._open(self._left.pop())
            self._next_left = self._loop.call_later(LEFT_PAUSE_S, self._open_left)

    # ---- one

    def _open(self, arrival: Arrival) -> None:
        accepted, peer = arrival
        if self._is_tcp:  # asyncio sees to it only where a socket bears its protocol's number
            with contextlib.suppress(OSError):  # some systems refuse it to one that was reset meanwhile
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._plain:
            SocketTransport(self._loop, accepted, peer, self._connect).open()
            return
        task = self._loop.create_task(self._hand_over(accepted))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _hand_over(self, accepted: socket.socket) -> None:
        try:
            if self._secured is None:
                await self._loop.connect_accepted_socket(self._connect, accepted)
            else:
                await tls.connect(self._connect, accepted, self._secured)
        except OSError:  # it left before it arrived, or has another idea of TLS
            accepted.close()

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._socket.fileno())
        for handle in (self._next_here, self._next_left):
            if handle is not None:
                handle.cancel()
        self._here.close()
        self._left.close()
        self._socket.close()
