"""Which models crash so often that they are refused.

One that does is loaded no more, until someone loads or unloads it by name or its files change: what would come otherwise
is another crash, for the sake of whose requests the machine would be busy with loading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..card import ModelCard
from ..errors import EngineGone
from .stamps import Stamps

MAX_CRASHES: Final = 3
CRASH_WINDOW_S: Final = 60.0
"""A model that crashes more often than this would keep the machine busy with loading and its clients with waiting."""


@dataclass(slots=True)
class _History:
    """The recent crashes of one model; `files` are those of the one that was too much."""

    times: list[float] = field(default_factory=list)
    reason: str = "unknown"
    files: Stamps | None = None


class Crashes:
    """For all models of a pool, by the ids of their cards."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def note(self, card: ModelCard, files: Stamps, now: float) -> None:
        """One more, of an engine with these `files`, at the time `now` of a monotonic clock. Why is told later."""
        history = self._histories.setdefault(card.id, _History())
        history.times = [time for time in history.times if now - time < CRASH_WINDOW_S] + [now]
        if len(history.times) > MAX_CRASHES:
            history.files = files

    def explain(self, card: ModelCard, reason: str) -> None:
        if card.id in self._histories:
            self._histories[card.id].reason = reason

    def refuse(self, card: ModelCard) -> None:
        """Raises `EngineGone` for a model that is refused."""
        history = self._histories.get(card.id)
        if history is None or history.files is None:
            return
        often = f"it crashed {MAX_CRASHES + 1} times within {CRASH_WINDOW_S:.0f} s, last: {history.reason}"
        raise EngineGone(card.id, f"{often}; it stays off until it is loaded or unloaded by name")

    async def reconsider(self, card: ModelCard) -> None:
        """Forgives a model whose files have changed since."""
        history = self._histories.get(card.id)
        if history is not None and history.files is not None and await history.files.change():
            self.forgive(card.id)

    def forgive(self, card_id: str) -> bool:
        """Forgets what was; whether the model was refused."""
        history = self._histories.pop(card_id, None)
        return history is not None and history.files is not None
