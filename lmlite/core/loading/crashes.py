"""Which requests and which models end engines so often that they are refused.

A request that was there when an engine ended, twice, is given to no further one: who repeats it would cost all others their
answers each time. A model whose engines go on ending, of different requests or of none, is loaded no more, until someone
loads or unloads it by name or its files change: what would come otherwise is another crash, for the sake of whose requests
the machine would be busy with loading.
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from ...card import ModelCard
from ...errors import EngineGone, RequestRefused
from ...records import dataclass
from ..disk.stamps import Stamps

MAX_CRASHES: Final = 3
CRASH_WINDOW_S: Final = 60.0
"""A model that crashes more often than this would keep the machine busy with loading and its clients with waiting."""

MAX_CRASHES_OF_REQUEST: Final = 2
"""Once can be chance: the request was there, and another one, or the machine, did it."""

REQUEST_WINDOW_S: Final = 600.0
"""For so long after its last crash a request is remembered: an engine each five minutes is what it can cost."""

MAX_SUSPECTS: Final = 1024
"""Requests remembered of one model, the latest ones: more than engines can end of within the window."""


@dataclass(slots=True)
class _Record:
    """The crashes that a request was there for."""

    n: int = 0
    last: float = 0.0


@dataclass(slots=True, frozen=True)
class _Crash:
    time: float
    suspects: frozenset[int]  # marks of requests


@dataclass(slots=True)
class _History:
    """The recent crashes of one model; `files` are those of the one that was too much."""

    crashes: list[_Crash] = field(default_factory=list)
    requests: dict[int, _Record] = field(default_factory=dict)  # by their marks, the latest last
    reason: str = "unknown"
    files: Stamps | None = None

    def note_request(self, mark: int, now: float) -> None:
        record = self.requests.pop(mark, None)
        if record is None or now - record.last >= REQUEST_WINDOW_S:
            record = _Record()
        record.n += 1
        record.last = now
        self.requests[mark] = record
        if len(self.requests) > MAX_SUSPECTS:
            del self.requests[next(iter(self.requests))]

    def n_causes(self) -> int:
        """The crashes, those of one refused request counted as one."""
        refused = {mark for mark, record in self.requests.items() if record.n >= MAX_CRASHES_OF_REQUEST}
        causes: set[object] = set()
        for index, crash in enumerate(self.crashes):
            causes.add(min(crash.suspects & refused, default=None) or (index,))
        return len(causes)


class Crashes:
    """For all models of a pool, by the ids of their cards."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def note(self, card: ModelCard, files: Stamps, now: float, suspects: frozenset[int] = frozenset()) -> None:
        """One more, of an engine with these `files`, at the time `now` of a monotonic clock; `suspects` are the marks of the
        requests that may have caused it. Why is told later."""
        history = self._histories.setdefault(card.id, _History())
        for mark in suspects:
            history.note_request(mark, now)
        history.crashes = [crash for crash in history.crashes if now - crash.time < CRASH_WINDOW_S]
        history.crashes.append(_Crash(now, suspects))
        if history.n_causes() > MAX_CRASHES:
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

    def refuse_request(self, card: ModelCard, mark: int, now: float) -> None:
        """Raises `RequestRefused` for a request that is."""
        history = self._histories.get(card.id)
        record = None if history is None else history.requests.get(mark)
        if history is None or record is None or record.n < MAX_CRASHES_OF_REQUEST:
            return
        if now - record.last < REQUEST_WINDOW_S:
            raise RequestRefused(card.id, record.n, history.reason)
        del history.requests[mark]

    async def reconsider(self, card: ModelCard) -> None:
        """Forgives a model whose files have changed since."""
        history = self._histories.get(card.id)
        if history is not None and history.files is not None and await history.files.change():
            self.forgive(card.id)

    def forgive(self, card_id: str) -> bool:
        """Forgets what was; whether the model was refused."""
        history = self._histories.pop(card_id, None)
        return history is not None and history.files is not None
