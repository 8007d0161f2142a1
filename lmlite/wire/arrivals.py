"""Connections that were taken and not opened yet, while more come than can be opened: whose turn it is.

Addresses take turns, and each of them is served in the order in which it came: one that sends ever new connections waits for
itself. Who has left already, as most of such a flood have, waits apart from who is there.
"""

from __future__ import annotations

import socket
import sys
from collections import deque
from typing import Any, Final

Arrival = tuple[socket.socket, Any]
"""A connection, and who is at its far end."""
TCP_INFO: Final = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
LEFT: Final = (7, 8)
"""TCP_CLOSE and TCP_CLOSE_WAIT of netinet/tcp.h, as Linux has them: it was reset; the far end sends no more."""
ADDRESS_AND_PORT: Final = 2
"""Are all that there is of a peer whose address is IPv4's."""
NETWORK_BYTES: Final = 8
"""Of an IPv6 address: whoever has one has all that begin so."""
MAPPED: Final = bytes(10) + b"\xff\xff"
"""Such addresses are IPv4's, each somebody else's."""


class Arrivals:
    """At most `per_address_max` of each address, and `n_max` in all. To make room, the oldest of the address that has most is
    closed: its client has waited for longest."""

    def __init__(self, per_address_max: int, n_max: int):
        self._per_address_max, self._n_max = per_address_max, n_max
        self._waiting: dict[bytes | str, deque[Arrival]] = {}  # whose turn it is comes first; nobody waits in vain
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, arrival: Arrival) -> None:
        address = address_of(arrival[1])
        waiting = self._waiting.get(address)
        if waiting is not None and len(waiting) >= self._per_address_max:
            self._drop(address)
        elif self._n >= self._n_max:
            self.drop_one()
        self._waiting.setdefault(address, deque()).append(arrival)
        self._n += 1

    def pop(self) -> Arrival:
        """The next one; somebody has to be waiting."""
        address = next(iter(self._waiting))
        waiting = self._waiting.pop(address)
        arrival = waiting.popleft()
        self._n -= 1
        if waiting:
            self._waiting[address] = waiting
        return arrival

    def drop_one(self) -> None:
        self._drop(max(self._waiting, key=lambda address: len(self._waiting[address])))

    def close(self) -> None:
        while self._n:
            self.pop()[0].close()

    def _drop(self, address: bytes | str) -> None:
        waiting = self._waiting[address]
        waiting.popleft()[0].close()
        self._n -= 1
        if not waiting:
            del self._waiting[address]


def address_of(peer: Any) -> bytes | str:
    """What fairness goes by: an address of IPv4, a network of IPv6, one for all who come through a file."""
    if not isinstance(peer, tuple):
        return ""
    if len(peer) == ADDRESS_AND_PORT:
        return str(peer[0])
    address = socket.inet_pton(socket.AF_INET6, peer[0].partition("%")[0])
    return address if address.startswith(MAPPED) else address[:NETWORK_BYTES]


def has_left(sock: socket.socket) -> bool:
    """Its client sends no more: it may still want its answer, but hardly ever does. False where that cannot be told."""
    if TCP_INFO is None:
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0] in LEFT
    except OSError:  # it came through a file
        return False


def has_asked(sock: socket.socket) -> bool:
    """Of one that has left: whether it sent anything before."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True  # it is there still
    except OSError:  # it was reset
        return False
