"""The models of one server: what is on disk and what is loaded, opened as the configuration says."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..card import Instance, ModelCard, Presence
from ..config import Config
from ..errors import EngineGone, InvalidRequest, LoadFailed, ModelNotFound
from ..events import Event
from ..messages import Sense
from ..metrics import Family
from ..settings import UNSAID, ModelSettings
from ..store.home import Home
from ..turn import Turn
from .disk import open_catalog
from .looks import Looks

if TYPE_CHECKING:
    from ..core.disk.catalog import Catalog
    from ..core.engine.client import Engine
    from ..core.engine.worker import Placement
    from ..core.loading.estimate import Estimate
    from ..core.loading.pool import Lease, Needs, Pool, Shelf

log = logging.getLogger(__name__)


def open_pool(
    config: Config,
    catalog: Shelf,
    place: Callable[[], Placement] | None = None,
    on_line: Callable[[int, str], None] | None = None,
    look: Callable[[], Awaitable[None]] | None = None,
) -> Pool:
    """`place` stands in for the configured placement; tests put a fake engine there. `on_line` is told, in threads, what
    engines say on stderr, and by which process. `look` brings `catalog` up to date with the disk."""
    from ..core.engine.worker import Process, Thread
    from ..core.loading.effective import of_server
    from ..core.loading.memory_guard import MemoryGuard
    from ..core.loading.pool import Pool

    estimates = place or Process  # whose failures the load itself will tell
    if place is None:
        place = Thread if config.isolation == "thread" else lambda: Process(log=log.error, on_line=on_line)
    max_jit = config.max_loaded or (1 if config.auto_evict else None)
    guard = MemoryGuard(estimates, strict=config.memory_guard, tries=place is Thread)
    return Pool(
        catalog,
        place,
        of_server(config),
        config.ttl or None,
        jit=config.jit,
        max_jit=max_jit,
        room=guard.room,
        look=look,
        prompt_cache=prompt_cache_folder(config),
    )


def prompt_cache_folder(config: Config) -> Path:
    return (config.prompt_cache_dir or Home(config.home).prompt_cache).absolute()


class Models:
    """What is on disk and what is loaded, for one event loop.

    Nobody is told of the disk what was so before the question (`looks`). The first look brings the code for all of this
    too: a server is ready before that.
    """

    def __init__(
        self,
        config: Config,
        place: Callable[[], Placement] | None = None,
        on_line: Callable[[int, str], None] | None = None,
    ):
        self._config, self._place, self._on_line = config, place, on_line
        self._opened: tuple[Catalog, Pool] | None = None
        self._looks = Looks(self._scan)

    # ---- on disk

    async def cards(self) -> tuple[ModelCard, ...]:
        """All models that are on disk now."""
        await self._looks.fresh()
        catalog, _ = await self._current()
        return catalog.cards()

    async def resolve(self, name: str, param: str = "model") -> ModelCard:
        """The model that the field `param` names, or whose instance it names: see `Pool.resolve`."""
        _, pool = await self._current()
        return (await pool.resolve(name, param)).card

    def latest(self, card: ModelCard) -> ModelCard:
        """See `Catalog.latest`; `card` itself if the model is gone."""
        return (self._opened[0].latest(card) if self._opened else None) or card

    def settings_of(self, instance: Instance) -> ModelSettings:
        """The settings of its model as they are now: they may have changed since it was loaded."""
        return self.latest(instance.card).settings

    def notes(self) -> tuple[str, ...]:
        """See `Catalog.notes`."""
        return self._opened[0].notes() if self._opened else ()

    async def _current(self) -> tuple[Catalog, Pool]:
        if self._opened is None:
            await self._looks.any()
        assert self._opened is not None
        return self._opened

    def _scan(self) -> None:
        """Runs in a thread."""
        if self._opened is not None:
            self._opened[0].rescan()
            return
        catalog = open_catalog(self._config)
        catalog.rescan()
        self._opened = catalog, open_pool(self._config, catalog, self._place, self._on_line, self._looks.fresh)

    # ---- loaded

    @contextlib.asynccontextmanager
    async def lease(
        self,
        name: str | None,
        needs: Needs,
        asked: ModelSettings = UNSAID,
        draft: str | None = None,
        heard: Callable[[Event], object] | None = None,
        effort: str | None = None,
        senses: frozenset[Sense] = frozenset(),
    ) -> AsyncIterator[Lease]:
        """See `Pool.lease`."""
        _, pool = await self._current()
        async with pool.lease(name, needs, asked, heard, draft=draft, effort=effort, senses=senses) as lease:
            yield lease

    async def expect(self, turn: Turn) -> frozenset[Sense]:
        """See `Pool.expect`."""
        _, pool = await self._current()
        return await pool.expect(turn.model, turn.needs, turn.load, turn.senses)

    async def load(
        self,
        name: str,
        settings: ModelSettings,
        *,
        identifier: str | None = None,
        gpu: float | None = None,
        checked: bool = True,
        on_begin: Callable[[str], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Instance:
        """See `Pool.load`."""
        _, pool = await self._current()
        return await pool.load(
            name,
            settings,
            identifier=identifier,
            gpu=gpu,
            checked=checked,
            on_begin=on_begin,
            on_progress=on_progress,
        )

    async def estimate(
        self, name: str, settings: ModelSettings, *, gpu: float | None = None
    ) -> tuple[Estimate, int]:
        """What such a load would take, and the bytes of the machine's own memory that are free. Raises as a load does."""
        from ..core.engine.worker import Process
        from ..core.loading.effective import refused
        from ..core.loading.estimate import estimate
        from ..core.loading.memory import available

        card = await self.resolve(name)
        if card.problem is not None:
            raise LoadFailed(card.id, card.problem)
        _, pool = await self._current()
        free = available()
        spec = replace(await pool.spec(card, settings, gpu), host_memory=free)
        try:
            return await estimate(self._place or Process, spec), free
        except EngineGone as gone:
            raise LoadFailed(card.id, f"the engine ended: {gone.reason}") from None
        except OSError as failed:
            raise LoadFailed(card.id, f"it cannot be estimated: {failed.strerror}") from None
        except InvalidRequest as error:
            raise refused(card, error) from None

    async def unload(self, instance_id: str) -> None:
        """See `Pool.unload`. Raises `ModelNotFound`."""
        loaded: tuple[str, ...] = ()
        if self._opened is not None:
            pool = self._opened[1]
            if await pool.unload(instance_id):
                return
            loaded = tuple(presence.id for presence in pool.presences())
        raise ModelNotFound(instance_id, loaded, "instance_id")

    def instances(self) -> tuple[Instance, ...]:
        return self._opened[1].instances() if self._opened else ()

    def engines(self) -> tuple[tuple[Instance, Engine], ...]:
        """See `Pool.engines`."""
        return self._opened[1].engines() if self._opened else ()

    def waiting(self) -> dict[str, int]:
        """See `Pool.waiting`."""
        return self._opened[1].waiting() if self._opened else {}

    def counted(self) -> Iterator[Family]:
        """What became of loads so far."""
        if self._opened is not None:
            yield from self._opened[1].counted.families()

    def presences(self) -> tuple[Presence, ...]:
        return self._opened[1].presences() if self._opened else ()

    async def close(self) -> None:
        await self._looks.close()
        if self._opened is not None:
            await self._opened[1].close()
