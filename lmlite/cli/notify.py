"""Tells a service manager of the server's life, as systemd's `Type=notify` wants it: datagrams on a socket it names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

ABSTRACT = "@"
"""Marks a name outside the file system, which the kernel writes with a leading zero byte."""


class Notifier:
    """Without `NOTIFY_SOCKET` in the environment nothing is sent. What cannot be sent is dropped: it is advice."""

    def __init__(self, environ: Mapping[str, str]):
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith(ABSTRACT) else name
        self.watchdog_s = watchdog_s(environ) if name else None
        """The manager takes the server for dead that is silent for this long; None: it does not watch."""

    def ready(self, status: str) -> None:
        self.send("READY=1", f"STATUS={status}")

    def stopping(self, seconds: float) -> None:
        """Running requests have `seconds`: the manager must not lose patience before."""
        self.send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def send(self, *fields: str) -> None:
        if not self._address:
            return
        import socket

        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(self._address)
            sender.send("\n".join(fields).encode())

    async def keep_alive(self) -> None:
        """Shows the manager that the loop turns, for as long as it runs: a hung server is started again."""
        import asyncio

        while self.watchdog_s is not None:
            self.send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)


def watchdog_s(environ: Mapping[str, str]) -> float | None:
    """What is asked of this very process, in seconds."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) else None
