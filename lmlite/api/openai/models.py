"""`GET /v1/models` and `GET /v1/models/{model}`: ids, and nothing that these objects could say about a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..spell import dumps


def models(ids: Iterable[str]) -> str:
    return dumps({"data": [_spell(id) for id in ids], "object": "list"})


def model(id: str) -> str:
    return dumps(_spell(id))


def _spell(id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "owned_by": "organization_owner"}
