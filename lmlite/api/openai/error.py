"""Errors as `/v1` and `/api/v0` spell them: OpenAI's object, and LM Studio's plain texts where clients match on them.

What a server's own failure says is fixed here: no path of this machine and no exception text of ours leaves it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ...errors import (
    ConfigError,
    ContextOverflow,
    EngineError,
    EngineGone,
    HttpError,
    HubError,
    LmError,
    LoadFailed,
    MissingField,
    ModelFileChanged,
    RateLimited,
    ShuttingDown,
    UnexpectedEndpoint,
)

_DIRECTORY = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\":]+[/\\])*(?=[^/\\\s])")
"""The directory of an absolute path in an engine's message; the file's name stays, since it says which model it was."""

_RESPONSES_FIELDS = {"messages": "input", "response_format": "text.format"}

_TELLING = (ConfigError, EngineGone, HttpError, HubError, ModelFileChanged, RateLimited, ShuttingDown)
"""Errors whose text was written for clients, whatever their status."""


def error(exc: LmError) -> tuple[int, str]:
    """HTTP status and body. The body is ASCII: a request's target may hold what UTF-8 cannot carry."""
    plain = isinstance(exc, UnexpectedEndpoint) or (isinstance(exc, MissingField) and exc.param == "messages")
    return exc.status, json.dumps({"error": exc.message if plain else error_object(exc)}, separators=(",", ":"))


def error_object(exc: LmError) -> dict[str, Any]:
    """What stands under `error`; in a stream that has begun always in this shape."""
    if isinstance(exc, ContextOverflow):
        return {
            "code": exc.code,
            "message": exc.message,
            "type": "exceed_context_size_error",
            "n_prompt_tokens": exc.needed,
            "n_ctx": exc.limit,
        }
    return {"message": tell(exc), "type": _classify(exc.status), "param": exc.param, "code": exc.code}


def response_error(exc: LmError) -> tuple[int, str]:
    """As `error`, for a Responses request."""
    spelled = exc.message if isinstance(exc, UnexpectedEndpoint) else response_error_object(exc)
    return exc.status, json.dumps({"error": spelled}, separators=(",", ":"))


def response_error_object(exc: LmError) -> dict[str, Any]:
    """An engine names fields as chat completions do."""
    spelled = error_object(exc)
    if (param := spelled.get("param")) is not None:
        spelled["param"] = _RESPONSES_FIELDS.get(param, param)
    return spelled


def _classify(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def tell(exc: LmError) -> str:
    """The message for a client."""
    if isinstance(exc, (EngineError, LoadFailed)):
        return _DIRECTORY.sub("", exc.message) if exc.status < 500 else f"the engine failed ({exc.code})"
    if exc.status < 500 or isinstance(exc, _TELLING):
        return exc.message
    return "internal error"
