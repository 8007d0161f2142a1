"""Who asks where a proxy stands between, and by which name: what `X-Forwarded-For`, `-Host` and `-Proto` say counts where a
proxy says it that the operator trusts, and is nothing but words of the client where anybody else does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from ..records import dataclass

UNIX: Final = "unix"
"""Names whoever comes through a socket file, where a network stands else."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True, frozen=True)
class Proxies:
    """Those that are believed. `files`: all that comes through socket files comes from one."""

    networks: tuple[Network, ...] = ()
    files: bool = False

    @classmethod
    def of(cls, names: Iterable[str]) -> Proxies:
        """Raises ValueError for what is no address and no network."""
        names = tuple(names)
        return cls(tuple(ipaddress.ip_network(name, strict=False) for name in names if name != UNIX), UNIX in names)

    @property
    def there_are(self) -> bool:
        return self.files or bool(self.networks)

    def trust(self, address: str) -> bool:
        """`address` is "" of who came through a socket file."""
        if not address:
            return self.files
        found = literal(address)
        return found is not None and any(found in network for network in self.networks)


@dataclass(slots=True, frozen=True)
class Asking:
    """`client` is the address of who asks, "" where that is not known; `headers` have the name that it called in `host`;
    `secure` tells that it spoke TLS."""

    client: str
    headers: Mapping[str, str]
    secure: bool


def look(proxies: Proxies, peer: Any, headers: Mapping[str, str], secure: bool) -> Asking:
    """`peer` is the name that the socket gives its other end, `secure` whether that speaks TLS with us."""
    client = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    if not proxies.there_are or not proxies.trust(client):
        return Asking(client, headers, secure)
    for said in reversed(headers.get("x-forwarded-for", "").split(",")):
        address = literal(without_port(said.strip()))
        if address is None:
            break
        client = str(address)
        if not proxies.trust(client):
            break
    if host := last(headers, "x-forwarded-host"):
        headers = {**headers, "host": host}
    if scheme := last(headers, "x-forwarded-proto"):
        secure = scheme.lower() == "https"
    return Asking(client, headers, secure)


def last(headers: Mapping[str, str], name: str) -> str:
    """What the proxy itself says, and not what it was told by others."""
    return headers.get(name, "").rpartition(",")[2].strip()


def without_port(text: str) -> str:
    """Some proxies tell one, too."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


@lru_cache(maxsize=1024)  # who asks, asks again
def literal(text: str) -> Address | None:
    """An IPv4 address in IPv6's clothes is the one that it is."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
