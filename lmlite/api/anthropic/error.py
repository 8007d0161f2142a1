"""Errors as Anthropic's API spells them: their kind decides whether clients repeat a request, their words whether an agent
shortens its history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ...errors import ContextOverflow, HttpError, LmError
from ..openai.error import tell

STATUSES: Final[Mapping[int, int]] = {409: 529, 422: 400, 502: 500, 503: 529}
"""What this family has for statuses that it does not know: 529 is its word for what succeeds if it is asked again."""

TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error(exc: LmError, suffix: str) -> tuple[int, str]:
    """HTTP status and body. The body is ASCII: a request's target may hold what UTF-8 cannot carry."""
    return status_of(exc), json.dumps(error_object(exc, suffix), separators=(",", ":"))


def error_object(exc: LmError, suffix: str) -> dict[str, Any]:
    """Of a stream that has begun, too. `suffix` sets the request apart from others."""
    status = status_of(exc)
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _tell(exc)}, "request_id": f"req_{suffix}"}


def status_of(exc: LmError) -> int:
    return exc.status if isinstance(exc, HttpError) else STATUSES.get(exc.status, exc.status)


def _tell(exc: LmError) -> str:
    """An overflow is told in the words that Claude Code looks for."""
    if isinstance(exc, ContextOverflow) and exc.index is None:
        return (
            f"prompt is too long: {exc.needed} tokens > {exc.limit} maximum, the context that the model is loaded with. Send "
            "less, or give it more if it was trained for that: --context-length, or context_length in model-settings.json"
        )
    return tell(exc)
