"""Who may call: checks of Host, Origin and Content-Type that keep web pages away from a server on the same machine.

A page can reach loopback in three ways, each refused here before authentication and before the body is read: by a
name of its own that resolves to us (Host), by a cross-origin request (Origin, Sec-Fetch-Site), and by a form that
needs no preflight (Content-Type). Pure functions of the policy and the headers; they raise `HttpError`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from ..errors import HttpError
from ..records import dataclass
from .forwarded import Proxies

ANY = "*"
HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._\-]{1,253})(?::[0-9]{1,5})?")
HOME_SITES = frozenset(("same-origin", "none"))
"""Sec-Fetch-Site of our own pages and of addresses typed by the user. Another port of localhost is `same-site`."""
JSON_TYPE = re.compile(r"application/(?:[0-9A-Za-z.\-]{1,64}\+)?json")
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
PREFLIGHT_SECONDS = "600"
"""How long a browser may remember a preflight: Chromium's own default cap is of that order."""

CorsHeaders = tuple[tuple[str, str], ...]


@dataclass(slots=True, frozen=True)
class Policy:
    """`names`: lower-case host names and IP literals that are ours besides localhost and loopback; `any_literal`: every
    IP literal is (a literal needs no resolver, so it cannot be rebound); `origins`: web origins let in, ANY for all;
    `any_name`: whatever clients call us; `proxies`: those that may say who asks them."""

    names: frozenset[str]
    any_literal: bool
    origins: frozenset[str]
    any_name: bool = False
    proxies: Proxies = Proxies()

    @classmethod
    def of(
        cls,
        bound: Iterable[str],
        allow_host: Iterable[str] = (),
        allow_origin: Iterable[str] = (),
        trusted_proxy: Iterable[str] = (),
    ) -> Policy:
        """For a server that listens on the addresses `bound` and has the three configured lists."""
        bound = [canonical(name) for name in bound]
        wildcard = any(address is not None and address.is_unspecified for address in map(literal, bound))
        return cls(
            names=frozenset((*bound, *(canonical(name) for name in allow_host))),
            any_literal=wildcard,
            origins=frozenset(origin.lower().rstrip("/") for origin in allow_origin),
            any_name=ANY in allow_host,
            proxies=Proxies.of(trusted_proxy),
        )

    def of_file(self) -> Policy:
        """For who comes through a socket file: no web page does, and the file's mode says who may. Names say nothing there."""
        return replace(self, any_name=True)


def check(policy: Policy, headers: Mapping[str, str], has_body: bool, secure: bool = False) -> CorsHeaders:
    """All three checks; returns the headers that every answer to this request needs (none without a foreign origin). `secure`
    tells that the client spoke TLS."""
    check_host(policy, headers)
    cors = check_origin(policy, headers, secure)
    check_content_type(headers, has_body)
    return cors


def check_host(policy: Policy, headers: Mapping[str, str]) -> None:
    """403 unless Host is a name of ours. HTTP/1.0 clients may leave it out: no browser does."""
    given = headers.get("host")
    if given is None:
        return
    match = HOST.fullmatch(given)
    if match is None:
        raise HttpError(400, "header host is not a host name")
    name = canonical(match[1])
    address = literal(name)
    if address is not None:
        ours = address.is_loopback or policy.any_literal
    else:
        ours = name == "localhost" or name.endswith(".localhost")
    if not ours and name not in policy.names and not policy.any_name:
        raise HttpError(
            403,
            f"this server does not go by the name {name}. Names are checked since web pages of others could be behind them; "
            f"if {name} is yours, as host.docker.internal or a service's name in a container network is, start the server "
            f"with --allow-host {name} (or --allow-host '*' for any name)",
        )


def check_origin(policy: Policy, headers: Mapping[str, str], secure: bool = False) -> CorsHeaders:
    """403 for a request that a foreign web page made; the CORS headers for one of an origin that is allowed."""
    origin = headers.get("origin")
    if origin is not None and not is_same_origin(origin, headers, secure):
        if ANY in policy.origins:
            return (("Access-Control-Allow-Origin", "*"),)
        if origin.lower() in policy.origins:
            return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))
        raise HttpError(403, "web pages of other origins may not call this server; allow_origin can let them")
    site = headers.get("sec-fetch-site")
    # A GET without CORS (an image, a link) has no Origin: only `*` can mean it.
    if site is not None and site.lower() not in HOME_SITES and ANY not in policy.origins:
        raise HttpError(403, "web pages of other sites may not call this server; allow_origin can let them")
    return ()


def check_content_type(headers: Mapping[str, str], has_body: bool) -> None:
    """415 for a body that does not say it is JSON. Without a sign of a browser it is taken for JSON, as curl -d needs."""
    if not has_body:
        return
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if JSON_TYPE.fullmatch(media_type):
        return
    if "origin" in headers or any(name.startswith("sec-fetch-") for name in headers):
        raise HttpError(415, "the body must be sent as application/json")


def preflight(policy: Policy, method: str, headers: Mapping[str, str]) -> CorsHeaders | None:
    """What a CORS preflight that `check` let in gets besides the headers that `check` returned; None if it is none."""
    if method != "OPTIONS" or not policy.origins or "origin" not in headers:
        return None
    if "access-control-request-method" not in headers:
        return None
    answer = [("Access-Control-Allow-Methods", METHODS), ("Access-Control-Max-Age", PREFLIGHT_SECONDS)]
    asked = headers.get("access-control-request-headers")
    if asked:
        answer.append(("Access-Control-Allow-Headers", asked))
    if headers.get("access-control-request-private-network") == "true":
        answer.append(("Access-Control-Allow-Private-Network", "true"))
    return tuple(answer)


def is_same_origin(origin: str, headers: Mapping[str, str], secure: bool = False) -> bool:
    """An origin equal to Host, which `check_host` has found to be ours. What came without TLS is another origin than what came
    with it: anybody on the way could have written that page."""
    scheme, separator, authority = origin.lower().partition("://")
    return bool(separator) and authority == headers.get("host", "").lower() and not (secure and scheme == "http")


def canonical(name: str) -> str:
    """Lower case, without brackets or the root's dot; IP literals in their one short spelling."""
    name = name.lower().strip("[]").rstrip(".")
    address = literal(name)
    return name if address is None else str(address)


@lru_cache(maxsize=64)  # clients hardly ever change what they call the server
def literal(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
