"""Whether anybody still has the far end of a connection whose client has said that it sends no more.

On the wire a closed sending half and a closed socket look alike until something is sent. Of a socket on this machine, which
most clients' is, Linux tells to which open file it belongs: to none once the client has closed it, or has died.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from struct import Struct
from typing import Final

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
ANY_STATE: Final = 0xFFFFFFFF
NO_COOKIE: Final = b"\xff" * 8
QUESTION: Final = Struct("=IHHII BBBxI 2s2s16s16sI8s")
"""Of linux/netlink.h and linux/inet_diag.h: nlmsghdr, inet_diag_req_v2 with its inet_diag_sockid."""
ANSWER: Final = Struct("=IHHII BBBB 2s2s16s16sI8s IIIII")
"""nlmsghdr, inet_diag_msg; its last number is the inode."""
ESTABLISHED, LISTEN = 1, 10
ANSWER_BYTES: Final = 1 << 12

Address = tuple[str, int]


def is_held(connection: socket.socket) -> bool | None:
    """Whether a process has the socket at the far end of `connection`; None where that cannot be told."""
    try:
        peer, own = connection.getpeername()[:2], connection.getsockname()[:2]
        answer = ask(connection.family, peer, own)
    except (OSError, AttributeError):  # lost by now, or not Linux, or a sandbox that does not let it be asked
        return None
    if answer is None:
        return False if is_loopback(peer[0]) else None  # another machine's, or this one has forgotten it
    return answer != 0


def ask(family: int, source: Address, destination: Address) -> int | None:
    """The inode of the socket that is bound to `source` and connected to `destination`, 0 where no file has it; None where
    this machine has no such socket. Raises OSError."""
    ports = [address[1].to_bytes(2, "big") for address in (source, destination)]
    addresses = [socket.inet_pton(family, address[0].partition("%")[0]) for address in (source, destination)]
    header = (QUESTION.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
    question = QUESTION.pack(*header, family, socket.IPPROTO_TCP, 0, ANY_STATE, *ports, *addresses, 0, NO_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.setblocking(False)  # the kernel has answered when `send` returns
        netlink.send(question)
        answer = netlink.recv(ANSWER_BYTES)
    if len(answer) < ANSWER.size:  # an errno: there is none
        return None
    _, kind, _, _, _, _, state, *_, inode = ANSWER.unpack_from(answer)
    return int(inode) if kind == SOCK_DIAG_BY_FAMILY and state != LISTEN else None


def is_loopback(address: str) -> bool:
    found = ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback
