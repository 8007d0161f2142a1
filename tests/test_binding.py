"""What a host's name is listened on, on machines that have not all of its addresses."""

from __future__ import annotations

import errno
import socket

import pytest

from lmlite.errors import ConfigError
from lmlite.wire import listening as server


@pytest.fixture(params=[errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def no_ipv6(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = server.listen

    def refuse(family: int, address: str, port: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(request.param, "no such address")
        return listen(family, address, port)

    monkeypatch.setattr(server, "listen", refuse)
    names = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
    found = {
        b"localhost": [(family, socket.SOCK_STREAM, 6, "", (address, 0)) for family, address in names],
        b"::": [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::", 0))],
        b"::1": [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0))],
    }
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: found[host])


@pytest.mark.usefixtures("no_ipv6")
@pytest.mark.parametrize(("host", "address"), [("localhost", "127.0.0.1"), ("::", "0.0.0.0")])
def test_without_ipv6_a_name_is_listened_on_where_it_can_be(host: str, address: str) -> None:
    (listening,) = server.bind_all([host], 0)
    with listening:
        assert listening.getsockname()[0] == address


@pytest.mark.usefixtures("no_ipv6")
def test_a_name_whose_other_address_is_covered_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo
    every = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("0.0.0.0", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: every if host == b"0.0.0.0" else found(host, 0))
    (listening,) = server.bind_all(["localhost", "0.0.0.0"], 0)
    with listening:
        assert listening.getsockname()[0] == "0.0.0.0"


@pytest.mark.usefixtures("no_ipv6")
def test_an_address_that_the_machine_has_not_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="cannot listen on ::1"):
        server.bind_all(["::1"], 0)
