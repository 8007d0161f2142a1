"""One instance of a model in the pool, from the beginning of its load to its end; and those who wait to begin one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import field, replace

from ...card import Activity, Instance, ModelCard, Presence, Runtime
from ...records import dataclass
from ...settings import ModelSettings
from ..disk.stamps import Stamps
from ..engine.client import Engine
from ..engine.payloads import Loaded, LoadSettings


@dataclass(slots=True, eq=False)
class Slot:
    """An instance that is loaded or being loaded. `users` are leases and those who wait for one.

    One that came just in time (`jit`) has one of the pool's places, and leaves when another model is waited for; while
    it is still in use then, it is `closed` to further requests.
    """

    id: str
    card: ModelCard
    settings: LoadSettings
    jit: bool
    ttl_s: float | None
    checked: bool  # whether the machine must be known to have the memory
    asked: ModelSettings  # of the request that caused the load; its files may change, and then it is loaded once more
    ready: asyncio.Future[None]
    files: Stamps | None = None  # as they were before the engine read them
    load: asyncio.Task[None] | None = None
    engine: Engine | None = None
    instance: Instance | None = None
    listeners: list[Callable[[float], object]] = field(default_factory=list)
    # use
    users: int = 0
    closed: bool = False
    kept: bool = False  # it goes on being loaded when nobody waits for it
    left: asyncio.Event = field(default_factory=asyncio.Event)  # its engine is gone
    asked_at: float = 0.0  # on the pool's clock
    idle_since: float = 0.0
    used_at: float | None = None  # Unix seconds
    draft: Stamps | None = None  # the files of the model that drafts for this one
    attaching: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def loaded(self) -> bool:
        return self.instance is not None

    @property
    def idle(self) -> bool:
        return self.loaded and not self.users

    def progress(self, fraction: float) -> None:
        for listener in self.listeners:
            listener(fraction)

    async def wait(self, on_progress: Callable[[float], object] | None) -> None:
        """Until it is loaded; raises why it will not be."""
        if on_progress is not None:
            self.listeners.append(on_progress)
        try:
            await asyncio.shield(self.ready)  # a waiter that is cancelled takes only itself away
        finally:
            if on_progress is not None:
                self.listeners.remove(on_progress)

    def remaining_ttl_s(self, now: float) -> float | None:
        """None: it stays however long nobody uses it."""
        if self.ttl_s is None or not self.idle:
            return self.ttl_s
        return max(0.0, self.idle_since + self.ttl_s - now)

    def seen(self, now: float) -> Instance | None:
        """The instance as a list shows it."""
        if self.instance is None or self.ttl_s is None:
            return self.instance
        return replace(self.instance, remaining_ttl_s=self.remaining_ttl_s(now))

    def presence(self, now: float) -> Presence:
        loaded, work = self.instance or self.settings, self.engine.work() if self.engine else None
        status: Activity = "loading"
        queued = self.users
        if self.loaded and work is not None:
            status = "generating" if work.generates else "processingPrompt" if work.n_runs else "idle"
            queued = max(0, work.n_runs - loaded.parallel)
        return Presence(
            id=self.id,
            card=self.card,
            status=status,
            context_length=loaded.context_length,
            parallel=loaded.parallel,
            threads=self.instance.threads if self.instance else None,
            queued=queued,
            ttl_s=self.ttl_s,
            remaining_ttl_s=self.remaining_ttl_s(now),
            used_at=self.used_at,
            pid=self.engine.pid if self.engine else None,
            chat_template=self.settings.chat_template,
            warnings=self.instance.warnings if self.instance else (),
        )


@dataclass(slots=True, eq=False)
class Place:
    """What requests for one model wait for: a place to load it in. `came` gets the slot, which then counts them all as
    its users."""

    card: ModelCard
    settings: LoadSettings
    asked: ModelSettings
    came: asyncio.Future[Slot]
    waiting: int = 0


def instance_of(id: str, card: ModelCard, loaded: Loaded) -> Instance:
    return Instance(
        id=id,
        card=card,
        runtime=Runtime(loaded.runtime_name, loaded.runtime_version),
        context_length=loaded.context_length,
        parallel=loaded.parallel,
        kv_cells=loaded.kv_cells,
        eval_batch_size=loaded.eval_batch_size,
        threads=loaded.threads,
        flash_attention=loaded.flash_attention,
        gpu_layers=loaded.gpu_layers,
        n_params=loaded.n_params,
        n_embd=loaded.n_embd,
        vocab_size=loaded.vocab_size,
        load_ms=loaded.load_ms,
        offload_kv_cache=loaded.offload_kv_cache,
        n_experts=loaded.n_experts,
        vision=loaded.vision,
        audio=loaded.audio,
        warnings=loaded.warnings,
    )
