"""Which endpoint serves a request, from an immutable table of routes; the endpoint's type is the table's own business.

A pattern is a fixed path, or a fixed prefix and one parameter that takes the rest, slashes included
(`/api/v0/models/{model}`), or all but a fixed end (`/v1/responses/{id}/cancel`). A slash at the end of a path says nothing.
Fixed paths win over prefixes, long prefixes over short ones, and with an end over without. GET routes serve HEAD.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from ..errors import UnexpectedEndpoint
from ..records import dataclass

Endpoint = TypeVar("Endpoint")

PATTERN = re.compile(r"(/[^{}]*)(?:\{([a-z_]+)\}((?:/[^{}]+)?))?")
NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True, frozen=True)
class Route(Generic[Endpoint]):
    method: str
    pattern: str
    endpoint: Endpoint
    right: str = ""
    """What it takes to be let in, in the table's own words."""


@dataclass(slots=True, frozen=True)
class Match(Generic[Endpoint]):
    route: Route[Endpoint]
    parameters: Mapping[str, str]


class Router(Generic[Endpoint]):
    """ValueError if a pattern cannot be read or is given twice for one method."""

    def __init__(self, routes: Iterable[Route[Endpoint]]) -> None:
        fixed: dict[str, dict[str, Route[Endpoint]]] = {}
        open_ended: dict[tuple[str, str, str], dict[str, Route[Endpoint]]] = {}
        for route in routes:
            parts = PATTERN.fullmatch(route.pattern)
            if parts is None:
                raise ValueError(f"not a route pattern: {route.pattern!r}")
            prefix, parameter, end = parts.groups()
            methods = open_ended.setdefault((prefix, parameter, end), {}) if parameter else fixed.setdefault(prefix, {})
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                if method in methods:
                    raise ValueError(f"two routes for {method} {route.pattern}")
                methods[method] = route
        self._fixed = fixed
        self._open_ended = sorted(
            open_ended.items(), key=lambda item: (len(item[0][0]), len(item[0][2])), reverse=True
        )

    def match(self, method: str, path: str, target: str | None = None) -> Match[Endpoint]:
        """The route for a decoded path. UnexpectedEndpoint otherwise, which names `target` (the path, if not given)."""
        allow: list[str] = []
        wanted = target if target is not None else path
        path = path[:-1] if len(path) > 1 and path.endswith("/") else path
        methods = self._fixed.get(path, {})
        if method in methods:
            return Match(methods[method], NO_PARAMETERS)
        allow.extend(methods)
        for (prefix, parameter, end), methods in self._open_ended:
            if path.startswith(prefix) and path.endswith(end) and len(path) > len(prefix) + len(end):
                if method in methods:
                    value = path[len(prefix) : len(path) - len(end)]
                    return Match(methods[method], MappingProxyType({parameter: value}))
                allow.extend(methods)
                if end:
                    break  # what has an end of its own is nothing that the parameter could be
        raise UnexpectedEndpoint(method, wanted, tuple(sorted(set(allow))), "" if allow else self._meant(path))

    def _meant(self, path: str) -> str:
        return next((known for known in self._fixed if known != "/" and (known.endswith(path) or path.endswith(known))), "")
