"""The facts about one answer that its payloads report: when and under which id, and by whom it was made."""

from __future__ import annotations

from ..card import Instance
from ..records import dataclass
from .dialect import Origin


@dataclass(slots=True, frozen=True)
class Served:
    origin: Origin
    instance: Instance

    @property
    def model(self) -> str:
        """The id to report."""
        return self.instance.id

    @property
    def suffix(self) -> str:
        return self.origin.suffix

    @property
    def created(self) -> int:
        return self.origin.created
