"""A service manager's end of the socket that a server tells its life to."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import TIMEOUT_S


@contextmanager
def manager(abstract: bool = False) -> Iterator[tuple[socket.socket, str]]:
    """The socket, and its name as NOTIFY_SOCKET has it."""
    with (
        tempfile.TemporaryDirectory(prefix="lm") as folder,  # a test's own folder may be too long a name for a socket
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):
        listening.settimeout(TIMEOUT_S)
        name = f"lmlite-test-{os.getpid()}" if abstract else f"{folder}/notify"
        listening.bind("\0" + name if abstract else name)
        yield listening, "@" + name if abstract else name
