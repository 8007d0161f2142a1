"""Which models are loaded: just in time, once however many requests wait, until nobody has used them for a while.

A request holds a `Lease`; a model with leases is never unloaded by time. A load that nobody waits for any more is given
up. A dead engine is forgotten at once and the next lease loads again, unless the model keeps crashing: then its leases
fail at once for a while, with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

from ..card import Instance, ModelCard, Runtime
from ..errors import EngineGone, InternalError, LmError, LoadFailed, ModelNotFound, ShuttingDown, WrongModelType
from ..metrics import Loads
from .engine import Engine
from .gguf import GgufError, read_header
from .line import Clock, Timer
from .payloads import Loaded, LoadSettings, LoadSpec, Lora
from .worker import Placement

MAX_CRASHES: Final = 3
CRASH_WINDOW_S: Final = 60.0
"""A model that crashes more often than this would keep the machine busy with loading and its clients with waiting."""
FAILED_S: Final = 60.0
"""How long such a model is refused; then one may try again."""

Needs = Literal["chat", "text", "embedding", "rerank"]
State = Literal["not-loaded", "loading", "loaded"]

_ABILITY: Final[dict[Needs, str]] = {
    "chat": "chat",
    "text": "text completion",
    "embedding": "embeddings",
    "rerank": "reranking",
}


class Catalog(Protocol):
    def cards(self) -> tuple[ModelCard, ...]: ...

    def resolve(self, name: str) -> ModelCard | None: ...

    def default(self) -> ModelCard | None: ...


@dataclass(slots=True, frozen=True)
class Lease:
    """`loaded_now` tells that this request waited for the load."""

    engine: Engine
    instance: Instance
    loaded_now: bool


@dataclass(slots=True, eq=False)
class _Slot:
    """A model that is loaded or being loaded. `users` are leases and those who wait for one."""

    card: ModelCard
    ttl_s: float | None
    ready: asyncio.Future[None]
    load: asyncio.Task[None] | None = None
    engine: Engine | None = None
    instance: Instance | None = None
    users: int = 0
    idle_since: float = 0.0
    draft: str | None = None
    """The card id of the model that drafts for this one."""
    attaching: asyncio.Lock = field(default_factory=asyncio.Lock)
    listeners: list[Callable[[float], None]] = field(default_factory=list)

    @property
    def loaded(self) -> bool:
        return self.instance is not None

    def progress(self, fraction: float) -> None:
        for listener in self.listeners:
            listener(fraction)


@dataclass(slots=True)
class _Crashes:
    """The recent crashes of one model."""

    times: list[float] = field(default_factory=list)
    failed_until: float = 0.0
    reason: str = "unknown"


class Pool:
    """For one event loop. `place` gives each new engine its placement; `ttl_s` None keeps models for ever."""

    def __init__(
        self,
        catalog: Catalog,
        place: Callable[[], Placement],
        settings: LoadSettings,
        ttl_s: float | None = None,
        *,
        clock: Clock | None = None,
    ):
        self._catalog, self._place, self._settings, self._ttl_s = catalog, place, settings, ttl_s
        self._own_clock = clock
        self.counted = Loads()
        self._slots: dict[str, _Slot] = {}
        self._crashes: dict[str, _Crashes] = {}
        self._closing: dict[asyncio.Task[None], str] = {}  # engines on their way out, by card id
        self._timer: asyncio.TimerHandle | Timer | None = None
        self._timer_due = 0.0
        self._leases = 0
        self._stopping = False
        self._quiet = asyncio.Event()  # set when the last lease ends while stopping

    # ---- leases

    @contextlib.asynccontextmanager
    async def lease(
        self,
        name: str | None,
        needs: Needs,
        ttl_s: float | None = None,
        on_progress: Callable[[float], None] | None = None,
        *,
        draft: str | None = None,
    ) -> AsyncIterator[Lease]:
        """The engine of the model `name` for the time of one request, loaded if it is not. None means the one loaded
        model that can do it, or the catalogue's default. `ttl_s` counts if this request causes the load. The model
        `draft` is loaded beside it to draft for it, in the place of any other: a request that was drafted for by that one
        goes on with this one.

        Raises `ModelNotFound`, `WrongModelType`, `LoadFailed`, `EngineGone`, `ShuttingDown`, `BuildError`, and
        `InvalidRequest` for a draft model that does not fit the model.
        """
        card = self._choose(name, needs)
        draft_card = None if draft is None else self._choose_draft(draft)
        slot = self._slots.get(card.id) or self._begin(card, self._ttl_s if ttl_s is None else ttl_s)
        loaded_now = not slot.loaded
        slot.users += 1
        self._leases += 1
        try:
            if loaded_now:
                await self._wait(slot, on_progress)
            assert slot.engine is not None and slot.instance is not None
            if draft_card is not None:
                await self._attach(slot, slot.engine, draft_card)
            yield Lease(slot.engine, slot.instance, loaded_now)
        finally:
            slot.users -= 1
            self._leases -= 1
            if not slot.users:
                self._unused(slot)
            if self._stopping and not self._leases:
                self._quiet.set()

    def _choose(self, name: str | None, needs: Needs) -> ModelCard:
        if self._stopping:
            raise ShuttingDown
        if name is None:
            active = [slot.card for slot in self._slots.values() if serves(slot.card, needs)]
            card = active[0] if len(active) == 1 else self._catalog.default()
        else:
            card = self._catalog.resolve(name)
        if card is None:
            raise ModelNotFound(name, tuple(known.id for known in self._catalog.cards()))
        if not serves(card, needs):
            raise WrongModelType(card.id, _ABILITY[needs])
        return card

    def _choose_draft(self, name: str) -> ModelCard:
        card = self._catalog.resolve(name)
        if card is None:
            raise ModelNotFound(name, tuple(known.id for known in self._catalog.cards()), "draft_model")
        if not serves(card, "text"):
            raise WrongModelType(card.id, "drafting", "draft_model")
        if card.problem is not None:
            raise LoadFailed(card.id, card.problem, "draft_model")
        return card

    async def _attach(self, slot: _Slot, engine: Engine, card: ModelCard) -> None:
        """One at a time; who waited for the same one finds it done."""
        async with slot.attaching:
            if slot.draft == card.id:
                return
            slot.draft = None  # unknown, if this is cancelled
            try:
                await engine.attach_draft(card.paths)
            except LoadFailed as failed:
                raise LoadFailed(card.id, failed.reason, "draft_model") from None
            slot.draft = card.id

    async def _wait(self, slot: _Slot, on_progress: Callable[[float], None] | None) -> None:
        if on_progress is not None:
            slot.listeners.append(on_progress)
        try:
            await asyncio.shield(slot.ready)  # a waiter that is cancelled takes only itself away
        finally:
            if on_progress is not None:
                slot.listeners.remove(on_progress)

    def _unused(self, slot: _Slot) -> None:
        """The last user has left."""
        if self._slots.get(slot.card.id) is not slot:
            return  # unloaded, or dead
        if not slot.loaded:
            self._retire(slot, EngineGone(slot.card.id, "unloaded"))
        elif slot.ttl_s is not None:
            slot.idle_since = self._clock.time()
            self._arm(slot.idle_since + slot.ttl_s)

    # ---- loading

    def _begin(self, card: ModelCard, ttl_s: float | None) -> _Slot:
        if card.problem is not None:
            raise LoadFailed(card.id, card.problem)
        self._refuse_if_crashing(card)
        loop = asyncio.get_running_loop()
        slot = self._slots[card.id] = _Slot(card, ttl_s, loop.create_future())
        slot.load = loop.create_task(self._load(slot))
        return slot

    async def _load(self, slot: _Slot) -> None:
        """Ends with `ready` settled, but for a load that was given up: who gives it up settles it."""
        card = slot.card
        try:
            await self._all_gone(card.id)  # the memory of the last engine has to be free for the next
            slot.engine = await Engine.open(
                self._place(), card.id, clock=self._own_clock, on_gone=lambda: self._lost(slot)
            )
            spec = LoadSpec(card.paths, await settings_for(card, self._settings))
            slot.instance = instance_of(card, await slot.engine.load(spec, slot.progress))
            self.counted.loaded(card.id, slot.instance.load_ms / 1000)
            slot.ready.set_result(None)
        except asyncio.CancelledError:
            if slot.engine is not None:
                await slot.engine.close()
            raise
        except EngineGone as gone:  # what kills an engine during the load is the file
            self._load_failed(slot, LoadFailed(card.id, f"the engine ended: {gone.reason}"))
        except OSError as error:
            self._load_failed(slot, LoadFailed(card.id, f"no engine can be started: {error.strerror}"))
        except LmError as error:
            self._load_failed(slot, error)
        except BaseException:
            self._load_failed(slot, InternalError())
            raise

    def _load_failed(self, slot: _Slot, error: LmError) -> None:
        self.counted.failed(slot.card.id)
        if self._slots.get(slot.card.id) is slot:
            self._retire(slot, error)

    def _retire(self, slot: _Slot, error: LmError) -> None:
        """Forgets the slot, sees its engine off in the background; whoever waits or runs gets `error`."""
        del self._slots[slot.card.id]
        if not slot.ready.done():
            slot.ready.set_exception(error)
            slot.ready.exception()  # seen, even if nobody waits
        assert slot.load is not None
        if slot.loaded or slot.load is asyncio.current_task():
            if slot.engine is not None:
                self._see_off(slot, asyncio.get_running_loop().create_task(slot.engine.close(error)))
        else:
            slot.load.cancel()
            self._see_off(slot, slot.load)

    def _see_off(self, slot: _Slot, task: asyncio.Task[None]) -> None:
        self._closing[task] = slot.card.id
        task.add_done_callback(lambda done: self._closing.pop(done))

    # ---- crashes

    def _lost(self, slot: _Slot) -> None:
        """The engine has ended by itself. Why is known once it is closed; its requests hear it from the engine."""
        self.counted.crashed(slot.card.id)
        crashes = self._crashes.setdefault(slot.card.id, _Crashes())
        now = self._clock.time()
        crashes.times = [time for time in crashes.times if now - time < CRASH_WINDOW_S] + [now]
        if len(crashes.times) > MAX_CRASHES:
            crashes.times.clear()
            crashes.failed_until = now + FAILED_S
        engine = slot.engine
        if engine is not None:
            self._see_off(slot, asyncio.get_running_loop().create_task(self._inquire(engine, crashes)))
        if slot.loaded and self._slots.get(slot.card.id) is slot:
            del self._slots[slot.card.id]

    async def _inquire(self, engine: Engine, crashes: _Crashes) -> None:
        await engine.close()
        crashes.reason = engine.gone or crashes.reason

    def _refuse_if_crashing(self, card: ModelCard) -> None:
        crashes = self._crashes.get(card.id)
        if crashes is not None and self._clock.time() < crashes.failed_until:
            often = f"it crashed {MAX_CRASHES + 1} times within {CRASH_WINDOW_S:.0f} s"
            raise EngineGone(card.id, f"{often}, last: {crashes.reason}")

    # ---- time

    @property
    def _clock(self) -> Clock:
        return self._own_clock or asyncio.get_running_loop()

    def _arm(self, due: float) -> None:
        """One timer for all models, set to the earliest end of an idle time."""
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._clock.call_later(max(0.0, due - self._clock.time()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.time()
        for slot in list(self._slots.values()):
            if slot.users or not slot.loaded or slot.ttl_s is None:
                continue
            due = slot.idle_since + slot.ttl_s
            if due <= now:
                self._retire(slot, EngineGone(slot.card.id, "unloaded"))
            else:
                self._arm(due)

    # ---- what is loaded, and an end to it

    def instances(self) -> tuple[Instance, ...]:
        return tuple(slot.instance for slot in self._slots.values() if slot.instance is not None)

    def engines(self) -> tuple[tuple[Instance, Engine], ...]:
        """Those that are loaded, without a lease: to be asked how they are, and nothing that is work."""
        slots = self._slots.values()
        return tuple((slot.instance, slot.engine) for slot in slots if slot.instance is not None and slot.engine)

    def state(self, card_id: str) -> State:
        slot = self._slots.get(card_id)
        if slot is None:
            return "not-loaded"
        return "loaded" if slot.loaded else "loading"

    async def unload(self, instance_id: str) -> bool:
        """Ends the model, its running requests too (`EngineGone`); returns when its memory is free, False if it was not
        loaded."""
        slot = self._slots.get(instance_id)
        if slot is None:
            return False
        self._retire(slot, EngineGone(instance_id, "unloaded"))
        await self._all_gone(instance_id)
        return True

    async def close(self, grace_s: float = 0.0) -> None:
        """No lease from now on; those there are have `grace_s` to end, then get `ShuttingDown`. Returns when no engine
        is left."""
        self._stopping = True
        if self._leases and grace_s > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), grace_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for slot in list(self._slots.values()):
            self._retire(slot, ShuttingDown())
        await self._all_gone()

    async def _all_gone(self, card_id: str | None = None) -> None:
        own = asyncio.current_task()  # a load that was given up leaves too, and must not wait for itself
        while leaving := {task for task, owner in self._closing.items() if card_id in (None, owner)} - {own}:
            await asyncio.wait(leaving)


def serves(card: ModelCard, needs: Needs) -> bool:
    return needs == purpose(card) or (needs == "chat" and purpose(card) == "text")


def purpose(card: ModelCard) -> Needs:
    """What every model of the kind can do."""
    if card.type == "embedding":
        return "rerank" if card.reranks else "embedding"
    return "text"


async def settings_for(card: ModelCard, settings: LoadSettings) -> LoadSettings:
    """`settings` with those LoRA adapters that are for the model's architecture, or that the engine has to refuse."""

    def fits(lora: Lora) -> bool:
        try:
            return read_header(lora.path).text("general.architecture") in (card.arch, None)
        except GgufError:
            return True

    if not settings.loras:
        return settings
    return await asyncio.to_thread(lambda: replace(settings, loras=tuple(filter(fits, settings.loras))))


def instance_of(card: ModelCard, loaded: Loaded) -> Instance:
    return Instance(
        id=card.id,
        card=card,
        runtime=Runtime(loaded.runtime_name, loaded.runtime_version),
        context_length=loaded.context_length,
        parallel=loaded.parallel,
        kv_cells=loaded.kv_cells,
        eval_batch_size=loaded.eval_batch_size,
        flash_attention=loaded.flash_attention,
        gpu_layers=loaded.gpu_layers,
        n_params=loaded.n_params,
        n_embd=loaded.n_embd,
        vocab_size=loaded.vocab_size,
        load_ms=loaded.load_ms,
        offload_kv_cache=loaded.offload_kv_cache,
        n_experts=loaded.n_experts,
    )
