"""What went wrong, for clients: facts are told, bugs are logged."""

from __future__ import annotations

import logging

from ..errors import InternalError, LmError

log = logging.getLogger(__name__)


def fact(exc: Exception) -> LmError:
    """What a client is told of `exc`; what is no fact but a bug goes to the log."""
    if isinstance(exc, LmError):
        return exc
    log.error("a request failed", exc_info=exc)
    return InternalError()
