"""The ids that models were given: a model that comes changes nobody's name, from one start of the server to the next.

The file is lmlite's own. One that is damaged or cannot be written costs that memory: models are named as if all of them
had come at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .model_files import small_text

log = logging.getLogger(__name__)

FILE_NAME: Final = "model-ids.json"
MAX_BYTES: Final = 32 << 20
"""A hundred thousand models in deep folders; a file that is not ours is not read whole."""
MAX_ABSENT: Final = 1000
"""Models that are remembered though they are not there: on a disk that is not mounted, or about to be downloaded again."""


class GivenIds:
    """Ids by the path of a model's first file. An absent model's id is free for others, which then have it."""

    def __init__(self, file: Path | None):
        self._file = file
        self.by_path: dict[str, str] = {}

    def load(self) -> None:
        """What was given when the file was written; nothing if that cannot be read."""
        if self._file is None:
            return
        try:
            found = json.loads(small_text(self._file, MAX_BYTES))
        except (ValueError, RecursionError):
            return
        pairs = found.items() if isinstance(found, dict) else ()
        self.by_path = {path: id for path, id in pairs if isinstance(id, str) and id}

    def give(self, ids: Mapping[str, str]) -> None:
        """These models are there, and these are their ids."""
        taken = set(ids.values())
        absent = {path: id for path, id in self.by_path.items() if path not in ids and id not in taken}
        now = {**dict(list(absent.items())[-MAX_ABSENT:]), **ids}
        if now != self.by_path:
            self.by_path = now
            self._save()

    def _save(self) -> None:
        if self._file is None:
            return
        beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(self.by_path, indent=0))
            os.replace(beside, self._file)
        except (OSError, ValueError) as error:
            log.debug("%s is not written: %s", FILE_NAME, error)
            with contextlib.suppress(OSError):
                beside.unlink()
