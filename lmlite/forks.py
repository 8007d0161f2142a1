"""What a forked child has of its parent: copies of objects whose threads stayed behind, and of every descriptor.

It is told so at once wherever it uses one. Its descriptors are closed: by them it would keep connections, ports and engines
of its parent open, which end when the last copy of their sockets does.
"""

from __future__ import annotations

import os
import socket
import weakref
from typing import Final


class Sockets:
    """Those of which children that are forked from now on close their copies."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._close)

    def include(self, sock: socket.socket) -> socket.socket:
        self._open.add(sock)
        return sock

    def _close(self) -> None:
        for sock in list(self._open):
            sock.close()


KEPT_FROM_CHILDREN: Final = Sockets()
"""Of the process, as a fork is: what is done at one can be registered and never taken back."""


class Origin:
    """The process in which something was made."""

    __slots__ = ("_made", "_pid")

    def __init__(self, made: str):
        """`made` is what, in a word."""
        self._made, self._pid = made, os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raises `RuntimeError` in a child."""
        if not self.is_here:
            raise RuntimeError(
                f"this {self._made} belongs to process {self._pid}, of which this one was forked: its threads are there. Load "
                "a model or start a server in the child itself, best in one that is started by spawn or forkserver, or ask "
                "the parent's server over HTTP"
            )

