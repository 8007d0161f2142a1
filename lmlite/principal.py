"""Who asks: a token's owner, and what that one may do. Where no tokens are asked for, everybody may do everything."""

from __future__ import annotations

from typing import Final

from .records import dataclass

RIGHTS: Final = ("chat", "embed", "models", "load", "download", "mcp", "admin")
"""What a route can need. "models" is to see which there are, "admin" to see what everybody does."""


@dataclass(slots=True, frozen=True)
class Principal:
    """`scope` is shared by those who share conversations and cached prompts; others see neither. 0 is no limit."""

    name: str
    scope: str
    rights: frozenset[str]
    requests_max: int = 0  # at once
    tokens_per_minute: int = 0  # of prompts and answers together

    @property
    def limited(self) -> bool:
        return self.requests_max > 0 or self.tokens_per_minute > 0


ANYBODY: Final = Principal("", "", frozenset(RIGHTS))
