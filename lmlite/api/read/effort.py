"""How hard a model is to think: what the words of the dialects say to the variables of its template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""OpenAI's."""

SWITCHED_EFFORTS: Final = ("off", "on", *EFFORTS[1:])
"""LM Studio's."""


def set_effort(effort: str) -> Mapping[str, Any]:
    """The variables that templates of reasoning models read; others ignore them."""
    if effort in ("none", "off"):
        return {"enable_thinking": False}
    return {"enable_thinking": True} if effort == "on" else {"enable_thinking": True, "reasoning_effort": effort}
