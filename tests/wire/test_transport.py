"""Transports of accepted connections, over pairs of sockets: each ends, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from lmlite.wire.transport import READ_MAX, SocketTransport

PATIENCE_S = 20.0
"""Only ever reached by a failing test."""
LARGE = bytes(range(256)) * (1 << 14)
"""More than the buffers of a pair of sockets hold."""


class Listener(asyncio.Protocol):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.told: list[str] = []
        self.keeps = False
        self.lost = asyncio.Event()
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.keeps

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.error = exc
        self.lost.set()


class Pair:
    """A transport, and the far end of its connection."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.near, self.far = socket.socketpair()
        for sock in (self.near, self.far):
            sock.setblocking(False)
        self.listener = Listener()
        self.transport = SocketTransport(self.loop, self.near, "them", lambda: self.listener)

    async def read(self, n: int = -1) -> bytes:
        """`n` bytes, or all up to the end."""
        found = b""
        while len(found) != n and (piece := await self.loop.sock_recv(self.far, 1 << 16)):
            found += piece
        return found


Scenario = Callable[[Pair], Awaitable[None]]


@pytest.fixture
def run() -> Iterator[Callable[[Scenario], None]]:
    def play(scenario: Scenario) -> None:
        bugs: list[dict[str, Any]] = []

        async def bounded() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: bugs.append(context))
            pair = Pair()
            await asyncio.wait_for(scenario(pair), PATIENCE_S)
            pair.transport.abort()
            await asyncio.wait_for(pair.listener.lost.wait(), PATIENCE_S)
            await asyncio.sleep(0)
            assert pair.near.fileno() == -1 and pair.listener.told[-1] == "lost" and pair.listener.told.count("lost") == 1
            assert not loop.remove_reader(pair.transport._fd) and not loop.remove_writer(pair.transport._fd)
            pair.far.close()

        asyncio.run(bounded())
        assert bugs == []

    yield play


def test_what_came_with_the_connection_is_read_at_once(run: Callable[[Scenario], None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.far.send(b"hello")
        pair.transport.open()
        assert (pair.listener.told, pair.listener.heard) == (["made"], b"hello")
        assert pair.transport.get_extra_info("peername") == "them"
        assert pair.transport.get_extra_info("sslcontext") is None

    run(scenario)


def test_what_comes_later_is_read_then_but_not_while_reading_pauses(run: Callable[[Scenario], None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.transport.open()
        pair.transport.pause_reading()
        pair.far.send(b"x" * 1000)
        for _ in range(5):
            await asyncio.sleep(0)
        assert pair.listener.heard == b"" and not pair.transport.is_reading()
        pair.transport.resume_reading()
        while len(pair.listener.heard) < 1000:
            await asyncio.sleep(0)

    run(scenario)


def test_a_reader_that_is_slow_gets_all_and_its_writer_is_told_to_wait(run: Callable[[Scenario], None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.transport.open()
        pair.transport.set_write_buffer_limits(high=1000)
        pair.transport.write(LARGE)
        pair.transport.write(b"more")
        assert pair.listener.told == ["made", "pause"] and pair.transport.get_write_buffer_size() > 1000
        assert await pair.read(len(LARGE) + 4) == LARGE + b"more"
        assert pair.listener.told == ["made", "pause", "resume"] and pair.transport.get_write_buffer_size() == 0
        pair.transport.write(b"again")
        assert await pair.read(5) == b"again"

    run(scenario)


@pytest.mark.parametrize("how", ["close", "write_eof"])
def test_what_is_unsent_is_sent_before_the_end(run: Callable[[Scenario], None], how: str) -> None:
    async def scenario(pair: Pair) -> None:
        pair.transport.open()
        pair.transport.write(LARGE)
        getattr(pair.transport, how)()
        assert await pair.read() == LARGE
        if how == "write_eof":
            assert not pair.transport.is_closing()
            pair.far.send(b"still heard")
            while pair.listener.heard != b"still heard":
                await asyncio.sleep(0)
            with pytest.raises(RuntimeError):
                pair.transport.write(b"x")

    run(scenario)


def test_an_abort_sends_nothing_more(run: Callable[[Scenario], None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.transport.open()
        pair.transport.write(LARGE)
        pair.transport.abort()
        pair.transport.write(b"more")
        assert pair.transport.get_write_buffer_size() == 0 and pair.listener.told[-1] != "lost", "in a turn of its own"
        assert len(await pair.read()) < len(LARGE)

    run(scenario)


@pytest.mark.parametrize("keeps", [False, True])
def test_the_far_ends_end_is_told_once_and_ends_both_unless_it_is_kept(
    run: Callable[[Scenario], None], keeps: bool
) -> None:
    async def scenario(pair: Pair) -> None:
        pair.listener.keeps = keeps
        pair.far.send(b"x" * (READ_MAX // 8))
        pair.transport.open()
        pair.far.shutdown(socket.SHUT_WR)
        while "eof" not in pair.listener.told:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert pair.listener.told.count("eof") == 1 and pair.transport.is_closing() == (not keeps)
        if keeps:
            pair.transport.pause_reading()
            pair.transport.resume_reading()
            pair.transport.write(b"answer")
            assert await pair.read(6) == b"answer"

    run(scenario)


def test_a_connection_that_breaks_is_told_as_lost_and_nothing_else(run: Callable[[Scenario], None]) -> None:
    async def scenario(pair: Pair) -> None:
        pair.transport.open()
        pair.far.close()
        pair.transport.write(b"x")
        pair.transport.write(b"y")
        await pair.listener.lost.wait()
        assert isinstance(pair.listener.error, OSError)

    run(scenario)


@pytest.mark.parametrize("method", ["connection_made", "data_received", "eof_received"])
def test_a_bug_of_the_protocol_is_reported_and_costs_its_connection(method: str) -> None:
    bugs: list[dict[str, Any]] = []

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        pair = Pair()
        setattr(pair.listener, method, fail)
        pair.far.send(b"x")
        pair.far.shutdown(socket.SHUT_WR)
        pair.transport.open()
        await asyncio.wait_for(pair.listener.lost.wait(), PATIENCE_S)
        pair.far.close()

    asyncio.run(scenario())
    assert [type(bug["exception"]) for bug in bugs] == [ZeroDivisionError]


def test_a_connection_that_has_ended_is_gone_without_the_collector() -> None:
    async def scenario() -> None:
        pair = Pair()
        pair.transport.open()
        pair.transport.close()
        await pair.listener.lost.wait()
        await asyncio.sleep(0)
        left = weakref.ref(pair.listener)
        pair.far.close()
        gc.disable()
        try:
            pair.listener = None  # type: ignore[assignment]
            transport, pair = pair.transport, None  # type: ignore[assignment]
            assert left() is None and transport.is_closing()
        finally:
            gc.enable()

    asyncio.run(scenario())
