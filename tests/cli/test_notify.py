"""What a service manager is told, over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator

import pytest

from lmlite.cli.notify import Notifier
from tests.cli.manager import manager


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("only Linux has abstract names")
    with manager(abstract=request.param == "abstract") as found:
        yield found


def fields(listening: socket.socket) -> list[str]:
    return listening.recv(4096).decode().split("\n")


def test_ready_and_stopping_are_told(listener: tuple[socket.socket, str]) -> None:
    listening, name = listener
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("listening on somewhere")
    assert fields(listening) == ["READY=1", "STATUS=listening on somewhere"]
    notifier.stopping(2.5)
    assert fields(listening) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=2500000"]


def test_watchdog_is_fed_twice_as_often_as_it_looks(listener: tuple[socket.socket, str]) -> None:
    listening, name = listener
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 0.02

    async def feed() -> None:
        feeding = asyncio.ensure_future(notifier.keep_alive())
        for _ in range(3):
            assert await asyncio.to_thread(fields, listening) == ["WATCHDOG=1"]
        feeding.cancel()

    asyncio.run(feed())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "@x"},
        {"WATCHDOG_USEC": "20000"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "often"},
    ],
)
def test_no_watchdog_is_fed_that_does_not_look_at_this_process(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    assert notifier.watchdog_s is None
    asyncio.run(notifier.keep_alive())  # returns


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@lmlite-test-nobody", "x" * 1000])
def test_manager_that_is_not_there_is_no_failure(name: str) -> None:
    Notifier({"NOTIFY_SOCKET": name}).ready("")
