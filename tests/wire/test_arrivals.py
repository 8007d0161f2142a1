"""Whose turn it is of those that wait to be opened, and who of them has left."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lmlite.wire.arrivals import Arrivals, address_of, has_asked, has_left


class Named:
    """A socket of which only its end counts."""

    def __init__(self, name: str):
        self.name, self.closed = name, False

    def close(self) -> None:
        self.closed = True


def arriving(waiting: Arrivals, *names: str) -> list[Named]:
    """`a1` is the first of address a."""
    given = [Named(name) for name in names]
    for one in given:
        waiting.add((one, (one.name[0], 1)))  # type: ignore[arg-type]
    return given


def names(waiting: Arrivals) -> list[str]:
    return [waiting.pop()[0].name for _ in range(len(waiting))]  # type: ignore[attr-defined]


def test_addresses_take_turns_and_each_keeps_its_order() -> None:
    waiting = Arrivals(9, 9)
    arriving(waiting, "a1", "a2", "a3", "b1", "a4", "c1", "b2")
    assert names(waiting) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_an_address_that_has_all_that_it_may_loses_its_oldest() -> None:
    waiting = Arrivals(2, 9)
    a1, a2, *others = arriving(waiting, "a1", "a2", "b1", "a3", "a4")
    assert a1.closed and a2.closed and not any(one.closed for one in others)
    assert names(waiting) == ["a3", "b1", "a4"]

def test_room_for_another_address_is_made_by_the_one_that_has_most() -> None:
    waiting = Arrivals(9, 4)
    a1, *_ = arriving(waiting, "a1", "a2", "a3", "b1", "c1")
    assert a1.closed and names(waiting) == ["a2", "b1", "c1", "a3"]


def test_whoever_waits_at_the_end_is_closed() -> None:
    waiting = Arrivals(9, 9)
    given = arriving(waiting, "a1", "a2", "b1")
    waiting.close()
    assert all(one.closed for one in given) and not waiting


def test_an_address_is_one_of_ipv4_or_a_network_of_ipv6() -> None:
    assert address_of(("10.0.0.1", 1)) != address_of(("10.0.0.2", 1))
    assert address_of(("2001:db8::1", 1, 0, 0)) == address_of(("2001:db8::2", 9, 0, 0))
    assert address_of(("2001:db8:0:1::1", 1, 0, 0)) != address_of(("2001:db8::1", 1, 0, 0))
    assert address_of(("::ffff:10.0.0.1", 1, 0, 0)) != address_of(("::ffff:10.0.0.2", 1, 0, 0))
    assert address_of(("fe80::1%eth0", 1, 0, 3)) == address_of(("fe80::2%eth1", 1, 0, 4))
    assert address_of("") == address_of(b"") == ""  # through a file


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell")
@pytest.mark.parametrize("end", ["close", "shutdown", "reset"])
def test_who_sends_no_more_has_left(sockets: ExitStack, end: str) -> None:
    listening = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = sockets.enter_context(socket.create_connection(listening.getsockname()))
    accepted = sockets.enter_context(listening.accept()[0])
    client.sendall(b"GET / HTTP/1.1\r\n")
    assert not has_left(accepted)
    match end:
        case "shutdown":
            client.shutdown(socket.SHUT_WR)
        case "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        case _:
            client.close()
    accepted.settimeout(20)
    try:
        while accepted.recv(100):
            pass
    except ConnectionResetError:
        assert end == "reset"
    assert has_left(accepted)


@pytest.mark.parametrize("asked", [True, False])
def test_who_has_left_without_a_word_has_not_asked(sockets: ExitStack, asked: bool) -> None:
    near, far = map(sockets.enter_context, socket.socketpair())
    near.setblocking(False)
    assert has_asked(near)  # it may
    if asked:
        far.sendall(b"GET")
    far.close()
    assert has_asked(near) == asked
    assert near.recv(10) == (b"GET" if asked else b"")  # nothing of it was taken


def test_of_who_came_through_a_file_nothing_is_known(sockets: ExitStack) -> None:
    near, far = map(sockets.enter_context, socket.socketpair())
    far.close()
    assert not has_left(near)
