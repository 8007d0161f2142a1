"""Whether the far end of a connection is still held, as Linux tells it of sockets on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from lmlite.wire.peer import is_held

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others do not tell")


@contextmanager
def connected(host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server's end and its client's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1" if host == "::" else host, port)) as client:
            accepted, _ = listening.accept()
            with closing(accepted):
                yield accepted, client


def wait_for_eof(accepted: socket.socket) -> None:
    accepted.settimeout(20)
    assert accepted.recv(1) == b""


HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])


@HOSTS
def test_a_client_that_is_there_is_held(host: str) -> None:
    with connected(host) as (accepted, client):
        assert is_held(accepted) is True
        client.shutdown(socket.SHUT_WR)
        wait_for_eof(accepted)
        assert is_held(accepted) is True, "only its sending half is closed"


@HOSTS
def test_a_client_that_has_closed_its_socket_has_left(host: str) -> None:
    with connected(host) as (accepted, client):
        client.close()
        wait_for_eof(accepted)
        assert is_held(accepted) is False


def test_a_client_that_closes_after_its_sending_half_has_left() -> None:
    with connected("127.0.0.1") as (accepted, client):
        client.shutdown(socket.SHUT_WR)
        wait_for_eof(accepted)
        client.close()
        assert is_held(accepted) is False


def test_a_client_whose_process_has_died_has_left() -> None:
    program = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.send(b'x'); input()"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", program, str(listening.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            accepted, _ = listening.accept()
            with closing(accepted):
                assert accepted.recv(1) == b"x" and is_held(accepted) is True
                process.kill()
                process.wait()
                wait_for_eof(accepted)
                assert is_held(accepted) is False


def test_nothing_is_told_of_what_is_no_connection() -> None:
    with socket.socket() as unconnected:
        assert is_held(unconnected) is None
