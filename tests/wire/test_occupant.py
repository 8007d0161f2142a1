"""Who listens on a port, by /proc."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from lmlite.wire.occupant import find_listener

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/net")


@LINUX
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_listening_process_is_found(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listening:
        try:
            listening.bind((address, 0))
        except OSError:
            pytest.skip("no such addresses here")
        listening.listen()
        assert find_listener(listening.getsockname()[1]) == os.getpid()


@LINUX
def test_socket_that_only_talks_is_not_taken_for_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as talking:
            port = talking.getsockname()[1]
            assert find_listener(port) is None


@pytest.mark.parametrize("content", [None, "", "head\n", "head\n\n1 2\n", "head\n" + "a " * 12, "\xff\xfe"])
def test_nothing_is_found_where_proc_is_missing_or_strange(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "tcp").write_text(content)
    assert find_listener(1234, tmp_path) is None


def test_processes_that_may_not_be_looked_into_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    columns = "0: 0100007F:04D2 00000000:0000 0A 0:0 0:0 0 1000 0 777 1"
    (tmp_path / "net" / "tcp").write_text(f"head\n{columns}\n")
    (tmp_path / "7").mkdir()  # without an fd folder
    (tmp_path / "8" / "fd").mkdir(parents=True)
    (tmp_path / "8" / "fd" / "3").symlink_to("socket:[777]")
    assert find_listener(1234, tmp_path) == 8
