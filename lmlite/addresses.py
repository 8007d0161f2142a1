"""What an IP address is part of: whom others name must not lead this machine to itself, to its neighbours or to a cloud's
credentials."""

from __future__ import annotations

import ipaddress
from typing import Final

METADATA: Final = frozenset(("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192"))
"""Where clouds give credentials to whoever asks from inside."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def kind(address: str) -> str:
    """What an IP address is part of: "public", "loopback", "private", "link-local", "metadata" or "reserved"."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip.sixtofour is not None:
            ip = ip.sixtofour
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if str(ip) in METADATA:
        return "metadata"
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_global and not ip.is_multicast and not ip.is_reserved:
        return "public"
    return "private" if ip.is_private and not ip.is_unspecified and not ip.is_reserved else "reserved"
