"""`GET /v1/models` and `GET /v1/models/{model}` for those who ask as clients of Anthropic's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ...records import dataclass
from ..spell import dumps

UNKNOWN_DATE: Final = "1970-01-01T00:00:00Z"
"""Anthropic's word for it."""


@dataclass(slots=True, frozen=True)
class Listed:
    """One name that a request can have. `context_length` is what it has or would get if it were loaded now."""

    id: str
    display_name: str
    context_length: int


def models(listed: Iterable[Listed]) -> str:
    data = [_spell(model) for model in listed]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return dumps({"data": data, "has_more": False, **ends})


def model(listed: Listed) -> str:
    return dumps(_spell(listed))


def _spell(listed: Listed) -> dict[str, Any]:
    return {
        "type": "model",
        "id": listed.id,
        "display_name": listed.display_name,
        "created_at": UNKNOWN_DATE,
        "lifecycle": "active",
        "max_input_tokens": listed.context_length,
        "max_tokens": listed.context_length,
    }
