"""The facts about one answer that its payloads report and that no request or event carries; `app.py` gives them."""

from __future__ import annotations

from dataclasses import dataclass

from ..card import Instance


@dataclass(slots=True, frozen=True)
class Served:
    """`suffix` is 22 characters of `[a-z0-9]`, `created` Unix seconds, `model` the id to report."""

    suffix: str
    created: int
    model: str
    instance: Instance
