"""The bytes of one accepted connection, for loops that watch descriptors: what asyncio's own transport promises, sooner.

asyncio's takes four turns of the loop until a new connection is read. This one is read in the turn that takes it, since its
request mostly came along. Where nobody is to be asked or waited for, it is answered in that turn, too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

READ_MAX: Final = 256 << 10
"""Bytes that are read at once, as asyncio has it."""
LATER: Final = (BlockingIOError, InterruptedError)


class SocketTransport(asyncio.Transport):
    """Owns `sock`, which does not block. Its protocol hears `connection_lost` in a turn of its own, and nothing afterwards."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, peer: Any, connect: Callable[[], asyncio.Protocol]
    ):
        super().__init__()
        self._loop, self._sock, self._peer = loop, sock, peer
        self._fd = sock.fileno()
        self._protocol: asyncio.Protocol | None = connect()
        self._watched = False  # for something to read
        self._reading = True  # is wanted
        self._ended = False  # the far end sends no more
        self._unsent = bytearray()
        self._high = self._low = 64 << 10
        self._held_up = False  # the protocol knows that more is unsent than should be
        self._says_more = True  # no end of what is sent was asked for
        self._closing = False
        self._lost = False  # the end is on its way to the protocol

    def open(self) -> None:
        """Call once: what has come with the connection is read."""
        try:
            self._told().connection_made(self)
        except Exception as error:  # noqa: BLE001 - as whatever a protocol raises, below
            self._fail(error)
        self._read()
        self._watch()

    def _told(self) -> asyncio.Protocol:
        assert self._protocol is not None
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "peername":
                return self._peer
            case "socket":
                return self._sock
        return default

    # ---- reading

    def _watch(self) -> None:
        """Says to the loop whether to tell of something to read."""
        wanted = self._reading and not self._ended and not self._closing
        if wanted != self._watched:
            self._watched = wanted
            if wanted:
                self._loop.add_reader(self._fd, self._read)
            else:
                self._loop.remove_reader(self._fd)

    def _read(self) -> None:
        if self._closing:
            return
        try:
            data = self._sock.recv(READ_MAX)
        except LATER:
            return
        except OSError as error:
            self._fail(error)
            return
        try:
            if data:
                self._told().data_received(data)
                return
            self._ended = True
            if not self._told().eof_received():
                self.close()
        except Exception as error:  # noqa: BLE001 - a bug: it is reported, and costs its connection
            self._fail(error)
        self._watch()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False
        self._watch()

    def resume_reading(self) -> None:
        self._reading = True
        self._watch()

    # ---- writing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = (64 << 10) if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._says_more:
            raise RuntimeError("nothing can be written after the end")
        if not data or self._lost:
            return
        if not self._unsent:
            try:
                n_sent = self._sock.send(data)
            except LATER:
                n_sent = 0
            except OSError as error:
                self._fail(error)
                return
            if n_sent == len(data):
                return
            data = memoryview(data)[n_sent:]
            self._loop.add_writer(self._fd, self._flush)
        self._unsent += data
        if len(self._unsent) > self._high and not self._held_up:
            self._held_up = True
            self._told().pause_writing()

    def _flush(self) -> None:
        try:
            n_sent = self._sock.send(self._unsent)
        except LATER:
            return
        except OSError as error:
            self._fail(error)
            return
        del self._unsent[:n_sent]
        if not self._unsent:
            self._loop.remove_writer(self._fd)
        if self._held_up and len(self._unsent) <= self._low:
            self._held_up = False
            self._told().resume_writing()  # which may write
        if not self._unsent:
            if self._closing:
                self._lose(None)
            elif not self._says_more:
                self._shut_down()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._says_more and not self._closing:
            self._says_more = False
            if not self._unsent:
                self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # the far end was quicker
            self._fail(error)

    # ---- the end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """What is unsent is sent first."""
        self._closing = True
        self._watch()
        if not self._unsent:
            self._lose(None)

    def abort(self) -> None:
        self._fail(None)

    def _fail(self, error: Exception | None) -> None:
        """Ends it now. That a connection broke is no news to anybody but its protocol."""
        if error is not None and not isinstance(error, OSError):
            context = {"message": "a connection's protocol failed", "exception": error, "protocol": self._protocol}
            self._loop.call_exception_handler(context)
        if self._unsent:
            self._unsent.clear()
            self._loop.remove_writer(self._fd)
        self._closing = True
        self._watch()
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._tell_lost, error)

    def _tell_lost(self, error: Exception | None) -> None:
        protocol, self._protocol = self._told(), None  # each has the other
        try:
            protocol.connection_lost(error)
        finally:
            self._sock.close()
