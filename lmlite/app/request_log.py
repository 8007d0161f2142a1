"""One line in the log for each request: method, path, who asks from where, status, time. Never a body, nor a query, which may
hold a key."""

from __future__ import annotations

import logging
from typing import Final

from ..wire.connection import Request, Response

log = logging.getLogger(__name__)

LINES_MAX: Final = 200
"""Per second. A person reads fewer, and a flood of bad requests must not fill a disk."""
HERE: Final = frozenset({"127.0.0.1", "::1"})
"""Where most requests come from, which says nothing."""
POLLED: Final = frozenset({"/health", "/ready", "/metrics", "/lmstudio-greeting"})
"""What machines ask every few seconds: no news, unless somebody debugs."""


class RequestLog:
    """Of one server."""

    def __init__(self) -> None:
        self._second = 0
        self._told = 0
        self._untold = 0

    def tell(self, request: Request, response: Response, status: int, now: float) -> None:
        """`now` is the loop's time."""
        level = logging.DEBUG if response.route in POLLED else logging.INFO
        if log.isEnabledFor(level) and self._has_room(int(now)):
            path = ascii(request.path)[1:-1]
            cut = "" if response.complete else " and cut"
            took_ms = (now - response.began) * 1000
            whose = f" by {request.caller.name}" if request.caller is not None and request.caller.name else ""
            whence = f" from {request.client}" if request.client and request.client not in HERE else ""
            told = (request.method, path, whence, whose, status, cut, took_ms)
            log.log(level, "%.16s %.200s%.60s%s: %d%s after %.0f ms", *told)

    def _has_room(self, second: int) -> bool:
        if second != self._second:
            if self._untold:
                log.warning("%d further requests within that second were not logged", self._untold)
            self._second, self._told, self._untold = second, 0, 0
        if self._told >= LINES_MAX:
            self._untold += 1
            return False
        self._told += 1
        return True
