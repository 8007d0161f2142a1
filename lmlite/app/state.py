"""What the endpoints of one server share, and how they are called."""

from __future__ import annotations

import os
import string
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from ..api.dialect import Origin
from ..card import Runtime
from ..config import Config
from ..rounds.history import History
from ..store.database import Database
from ..store.home import Home
from ..wire.connection import Request, Response
from .auth import Door, GuardedDoor
from .background import Background
from .downloads import ModelDownloads
from .logs import Logs
from .metrics import Metrics, Reports
from .models import Models
from .tools import Tools

if TYPE_CHECKING:
    from ..core.engine.worker import Placement

SUFFIX_LETTERS: Final = bytes((string.ascii_lowercase + string.digits).encode()[byte % 36] for byte in range(256))
"""The letter or digit of each byte."""
SUFFIX_LENGTH: Final = 22
ORIGIN_BYTES: Final = 24
"""Of randomness: 48 digits."""


class State:
    """Lives in one event loop. `leaving` tells that the server will stop, `expired` that the requests which still
    run have no time left."""

    def __init__(self, config: Config, place: Callable[[], Placement] | None = None):
        self.config = config
        self.logs = Logs(self._runtime, self._owner)
        self.models = Models(config, place, self.logs.engine_said)
        self.database = Database(Home(config.home).state)
        self.door = GuardedDoor(self.database.path) if config.auth else Door()
        self.downloads = ModelDownloads(config, self.database)
        self.history = History(self.database, config.history_size, config.history_days)
        self.background = Background()
        self.tools = Tools(config)
        self.expired = False
        self.leaving = False
        self.metrics = Metrics()
        self.reports = Reports()
        self.n_connections = 0
        self.page = b""  # what is shown at "/"
        self.started = time.time()
        self._started_at = time.monotonic()

    def _runtime(self) -> Runtime | None:
        """What engines run on, if one has told it."""
        return next((instance.runtime for instance in self.models.instances()), None)

    def _owner(self, pid: int) -> str | None:
        """Whose engine the process `pid` is."""
        return next((presence.id for presence in self.models.presences() if presence.pid == pid), None)

    def uptime_s(self) -> float:
        return time.monotonic() - self._started_at

    def origin(self) -> Origin:
        drawn = os.urandom(ORIGIN_BYTES)
        suffix = drawn[:SUFFIX_LENGTH].translate(SUFFIX_LETTERS).decode()
        return Origin(suffix, drawn.hex(), int(time.time()), self.history.keeps)


Endpoint = Callable[[State, Request, Response, str], "Awaitable[None] | None"]
"""Answers one request; the text is the parameter in its path, if the route has one."""
