"""One turn of a conversation as it is kept: what was asked, what was answered, and which turn it goes on from."""

from __future__ import annotations

from typing import Literal

from .messages import Message
from .records import dataclass

ExchangeKind = Literal["response", "chat"]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


@dataclass(slots=True, frozen=True)
class Exchange:
    """Its conversation is that of `previous`, then `asked`, then `answer`. `body` and `items` are the words of its dialect."""

    id: str
    kind: ExchangeKind
    scope: str
    """Whose it is: nobody of another scope knows it."""
    model: str
    created: float
    """Unix seconds."""
    status: Status
    """Of one that was "queued" or "in_progress" when its server died: "failed", whatever `body` says."""
    previous: str | None
    asked: tuple[Message, ...]
    """What this turn added to the conversation."""
    answer: tuple[Message, ...]
    """What the model said, and the results of tools that the server ran between."""
    body: str
    """JSON of the answer."""
    items: str
    """JSON of what was asked."""

    @property
    def is_open(self) -> bool:
        """Its turn still runs."""
        return self.status in ("queued", "in_progress")
