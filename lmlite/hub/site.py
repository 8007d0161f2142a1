"""Where the hub is and how it is reached, as the environment says: HF_ENDPOINT, HF_TOKEN, the proxies.

A token or a proxy's password is in no message and no `repr`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Final
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError, HubError
from ..records import dataclass
from .names import HUB

PORTS: Final = {"http": 80, "https": 443}
_TOKEN: Final = re.compile(r"[!-~]{1,4096}")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_TARGET: Final = re.compile(r"[!-~]*")


@dataclass(slots=True, frozen=True)
class Address:
    """One http or https URL taken apart; `target` is its path and query, which may be signed: never to be shown."""

    scheme: str
    host: str  # lower case, without brackets
    port: int
    target: str = field(repr=False)

    @classmethod
    def of(cls, url: str) -> Address:
        """`HubError` unless it is a URL that a hub may send us to."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise HubError("the hub redirects to what is no address") from None
        if parts.scheme not in PORTS:
            raise HubError(f"the hub redirects to {parts.scheme[:20] or 'no scheme'}:, which is not followed")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.username is not None or _HOST.fullmatch(host) is None or _TARGET.fullmatch(target) is None or port == 0:
            raise HubError("the hub redirects to what is no address")
        return cls(parts.scheme, host, port or PORTS[parts.scheme], target)

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The value of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(slots=True, frozen=True)
class Proxy:
    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)  # "user:password"


@dataclass(slots=True, frozen=True)
class Site:
    """`endpoint` has no slash at its end; `proxies` by scheme; `direct` are the hosts of NO_PROXY."""

    endpoint: str = HUB
    token: str | None = field(default=None, repr=False)
    proxies: Mapping[str, Proxy] = field(default_factory=dict)
    direct: tuple[str, ...] = ()

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Site:
        """Raises `ConfigError`."""
        proxies = {scheme: proxy for scheme in PORTS if (proxy := _proxy(environ, f"{scheme}_proxy"))}
        direct = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").lower()
        return cls(_endpoint(environ), _token(environ), proxies, tuple(re.split(r"[\s,]+", direct.strip())))

    def url(self, path: str) -> str:
        return self.endpoint + path

    def proxy_for(self, address: Address) -> Proxy | None:
        """None: to be reached directly, as this machine itself always is."""
        if address.scheme not in self.proxies or is_here(address.host):
            return None
        return None if any(_covers(rule, address) for rule in self.direct) else self.proxies[address.scheme]


def is_here(host: str) -> bool:
    """Whether `host` names this machine by itself, without a resolver."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _endpoint(environ: Mapping[str, str]) -> str:
    endpoint = (environ.get("HF_ENDPOINT") or HUB).strip().rstrip("/")
    try:
        address = Address.of(endpoint)
    except HubError:
        raise ConfigError("HF_ENDPOINT: must be an http or https URL without a user name") from None
    if "?" in address.target or "#" in endpoint:
        raise ConfigError("HF_ENDPOINT: must be a URL without a query")
    return endpoint


def _token(environ: Mapping[str, str]) -> str | None:
    token = environ.get("HF_TOKEN", "").strip()
    if token and _TOKEN.fullmatch(token) is None:
        raise ConfigError("HF_TOKEN: has characters that no token has")
    return token or None


def _proxy(environ: Mapping[str, str], variable: str) -> Proxy | None:
    text = environ.get(variable) or environ.get(variable.upper())
    if not text:
        return None
    wrong = ConfigError(f"{variable.upper()}: must be http://[USER:PASSWORD@]HOST[:PORT]")
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port or PORTS["http"]
    except ValueError:
        raise wrong from None
    if parts.scheme != "http" or _HOST.fullmatch(host) is None:
        raise wrong
    credentials = None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, credentials)


def _covers(rule: str, address: Address) -> bool:
    """`*`, a host with its subdomains, an IP address or a network; each may end in a port."""
    if rule == "*":
        return True
    try:
        return ipaddress.ip_address(address.host) in ipaddress.ip_network(rule.strip("[]"), strict=False)
    except ValueError:
        pass
    host, colon, port = rule.rpartition(":")
    if colon and port.isdecimal() and port.isascii():
        if int(port) != address.port:
            return False
        rule = host
    rule = rule.strip("[]").lstrip("*").lstrip(".")
    return bool(rule) and (address.host == rule or address.host.endswith(f".{rule}"))
