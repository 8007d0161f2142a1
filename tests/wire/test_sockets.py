"""Connections over real loopback sockets: what a fake transport cannot show."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from lmlite.wire import sse
from lmlite.wire.connection import Connection, Handler, Hooks, Limits, Request, Response
from lmlite.wire.guard import Policy
from lmlite.wire.listening import Acceptor, bind_all
from tests.wire.wire_fakes import DEFAULT, answers, echo, get, post, spell_error

PATIENCE_S = 20.0
"""Only ever reached by a failing test."""


@dataclass
class Site:
    """A listening server; `closed` is set at the first connection whose end was told."""

    port: int = 0
    connections: set[Connection] = field(default_factory=set)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.closed.set()


@asynccontextmanager
async def serving(
    handler: Handler, limits: Limits = DEFAULT, listening: socket.socket | None = None
) -> AsyncIterator[Site]:
    site = Site()
    hooks = Hooks(handler, spell_error, on_open=site.connections.add, on_close=site.forget)
    policy = Policy.of(["127.0.0.1"])
    if listening is None:
        [listening] = bind_all(["127.0.0.1"], 0)
    site.port = listening.getsockname()[1]
    acceptor = Acceptor(listening, lambda: Connection(hooks, policy, limits))
    try:
        yield site
    finally:
        acceptor.close()
        for connection in list(site.connections):
            connection.shutdown()
            connection.cancel()
        while site.connections:
            site.closed.clear()
            await site.closed.wait()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), PATIENCE_S)

    asyncio.run(bounded())


def test_a_thousand_pipelined_requests_are_answered_in_order() -> None:
    async def scenario() -> None:
        async with serving(echo) as site:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            for n in range(1000):
                writer.write(get(f"/{n}", *(["Connection: close"] if n == 999 else [])))
            found = answers(await reader.read())
            assert [body for _, _, body in found] == [f"GET /{n} ".encode() for n in range(1000)]
            writer.close()

    run(scenario)


def test_slow_clients_do_not_delay_others_and_get_408() -> None:
    async def scenario() -> None:
        async with serving(echo, Limits(head_s=1.0, linger_s=PATIENCE_S)) as site:  # else one may be reset before it has read
            slow = []
            for _ in range(200):
                slow.append(await asyncio.open_connection("127.0.0.1", site.port))
                slow[-1][1].write(b"GET / HT")
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(get("/quick", "Connection: close"))
            assert answers(await reader.read())[0][2] == b"GET /quick "
            writer.close()
            for slow_reader, slow_writer in slow:
                assert [status for status, _, _ in answers(await slow_reader.read())] == [408]
                slow_writer.close()

    run(scenario)


def test_stream_that_is_never_read_is_cut() -> None:
    async def scenario() -> None:
        cancelled = asyncio.Event()

        async def flood(request: Request, response: Response) -> None:
            response.start(200, sse.HEADERS)
            try:
                while True:
                    response.write(b"x" * 65536)
                    if response.paused:
                        await response.drain()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with serving(flood, Limits(stall_s=0.2)) as site:
            with socket.create_connection(("127.0.0.1", site.port)) as client:
                client.sendall(get("/"))
                await cancelled.wait()
                await site.closed.wait()
                assert not site.connections

    run(scenario)


def test_handler_is_cancelled_when_the_client_closes() -> None:
    async def scenario() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(request: Request, response: Response) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with serving(wait) as site:
            for reset in (False, True):
                started.clear()
                cancelled.clear()
                client = socket.create_connection(("127.0.0.1", site.port))
                client.sendall(get("/"))
                await started.wait()
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
                await cancelled.wait()

    run(scenario)


def test_refusal_reaches_a_client_that_is_still_sending() -> None:
    """Closing at once would answer the unread bytes with a reset, which can destroy the answer before it is read."""

    async def scenario() -> None:
        async with serving(echo, Limits(max_body=1000)) as site:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(post("/x", b"x" * 4_000_000))
            assert [status for status, _, _ in answers(await reader.read())] == [413]
            await writer.drain()
            writer.close()

    run(scenario)


def test_large_bodies_both_ways() -> None:
    async def scenario() -> None:
        async with serving(echo) as site:
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            body = b"0123456789abcdef" * (1 << 18)
            writer.write(post("/x", body, "Connection: close"))
            assert answers(await reader.read())[0][2] == b"POST /x " + body
            writer.close()

    run(scenario)


# ---- more than can be opened at once


def call(port: int, path: str, address: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(address, 0))
    client.sendall(get(path, "Connection: close"))
    return client


async def reading(client: socket.socket) -> bytes:
    client.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client)
    answer = await reader.read()
    writer.close()
    return answer


class Noting:
    """Answers, and notes in which order it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, request: Request, response: Response) -> None:
        self.asked.append(request.path)
        response.whole(200, b"")


MANY = 100
"""All come before the first is taken. Any system's queue has room for them."""


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell who has left, and have one address")
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_who_is_there_does_not_wait_for_those_that_have_left(address: str) -> None:
    async def scenario() -> None:
        noting = Noting()
        async with serving(noting) as site:
            for _ in range(MANY):
                call(site.port, "/left").close()
            assert b"200 OK" in await reading(call(site.port, "/here", address))
            assert noting.asked.count("/left") < MANY / 2

    run(scenario)


def test_who_has_shut_down_only_its_sending_half_is_answered_in_time() -> None:
    async def scenario() -> None:
        async with serving(Noting()) as site:
            clients = [call(site.port, "/") for _ in range(MANY)]
            for client in clients:
                client.shutdown(socket.SHUT_WR)
            assert all(b"200 OK" in answer for answer in await asyncio.gather(*map(reading, clients)))

    run(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="others have one address")
def test_an_address_does_not_wait_for_all_of_another() -> None:
    async def scenario() -> None:
        noting = Noting()
        async with serving(noting) as site:
            clients = [call(site.port, "/many") for _ in range(MANY)] + [call(site.port, "/one", "127.0.0.2")]
            assert all(b"200 OK" in answer for answer in await asyncio.gather(*map(reading, clients)))
            assert noting.asked.index("/one") < MANY / 2

    run(scenario)


class Poor(socket.socket):
    """Listens for a process that has no more descriptors when most of them are taken, and some again a moment later."""

    n_asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.n_asked += 1
        if self.n_asked in (MANY - 20, MANY - 19):
            raise OSError(errno.EMFILE, "none is left")
        return super().accept()


def test_without_descriptors_who_waits_longest_makes_room() -> None:
    async def scenario() -> None:
        listening = Poor()
        listening.bind(("127.0.0.1", 0))
        listening.listen(MANY)
        listening.setblocking(False)
        with ExitStack() as clients:
            async with serving(Noting(), listening=listening) as site:
                ends = [clients.enter_context(call(site.port, "/")) for _ in range(MANY)]
                answered = await asyncio.gather(*map(reading, ends), return_exceptions=True)
            assert sum(isinstance(answer, bytes) and b"200 OK" in answer for answer in answered) == MANY - 1

    run(scenario)


def test_who_waits_when_the_server_stops_is_told_so_by_the_end_of_its_connection() -> None:
    async def scenario() -> None:
        async with serving(Noting()) as site:
            clients = [call(site.port, "/") for _ in range(MANY)]
            await asyncio.sleep(0)  # the first are opened
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*map(reading, clients), return_exceptions=True)
        assert len(outcomes) == MANY  # none waits on

    run(scenario)
